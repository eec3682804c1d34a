package lxd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/golxd/lxd/internal/wire"
)

// members are the addresses of one server, such as those of the members of a
// cluster. Requests go to the current one; when it fails, the next becomes the
// current one.
type members struct {
	bases []string // "http://unix", or "https://host:port" of each

	mu      sync.Mutex
	current int
	known   *identity       // of the server; nil until a member has responded
	checked map[string]bool // the addresses at which that server has responded
}

// identity distinguishes a server, or a cluster, from another one.
type identity struct {
	base     string
	reported string // the fingerprint in the response to GET /1.0, for a trusted client
	shown    string // the fingerprint of the certificate of the TLS connection
}

func newMembers(bases ...string) *members {
	return &members{bases: bases, checked: map[string]bool{}}
}

// base returns the current address.
func (m *members) base() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bases[m.current]
}

// leave makes the address after base the current one, unless base is not
// current any more.
func (m *members) leave(base string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bases[m.current] == base {
		m.current = (m.current + 1) % len(m.bases)
	}
}

// leaveUnavailable leaves the member at base if it has responded that it is
// unavailable. A 429 is about the client, whatever the member.
func (m *members) leaveUnavailable(base string, status int) {
	if unavailable(status) && status != http.StatusTooManyRequests {
		m.leave(base)
	}
}

// isChecked reports whether base is known to be an address of the server. The
// only address is.
func (m *members) isChecked(base string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.bases) == 1 || m.checked[base]
}

// check notes what the server at an address is, and returns an error if it is
// another one than at the addresses before.
func (m *members) check(is *identity) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = is
	}
	k := m.known
	want, got := k.reported, is.reported
	if want == "" || got == "" {
		want, got = k.shown, is.shown
	}
	if want == "" || want != got {
		return fmt.Errorf("%s and %s are not known to be addresses of one server: %w", k.base, is.base, &PinError{Want: want, Got: got})
	}
	m.checked[is.base] = true
	return nil
}

// address returns the address for the next request. An address of several is
// checked before its first request: the members of a cluster report one
// certificate, and another server must not be mixed with them.
func (t *transport) address(ctx context.Context) (string, error) {
	base := t.members.base()
	if t.members.isChecked(base) {
		return base, nil
	}
	if err := t.checkMember(ctx, base); err != nil {
		return "", &checkError{err}
	}
	return base, nil
}

// checkError is an error of checking a member: the request itself was not sent.
type checkError struct{ err error }

func (e *checkError) Error() string { return e.err.Error() }

func (e *checkError) Unwrap() error { return e.err }

// checkMember checks that the server at an address is the one at the addresses
// before.
func (t *transport) checkMember(ctx context.Context, base string) error {
	// Without a token, which another server must not see.
	req := &request{method: http.MethodGet, path: "/1.0", base: base, anonymous: true}
	res, err := t.sendTo(ctx, req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	var server wire.Server
	req.check = func() error { return checkServer(&server) }
	if _, err := t.readResponse(ctx, req, res, &server); err != nil {
		return err
	}
	at, err := url.Parse(base) // it escapes the zone of an IPv6 address
	if err != nil {
		return err
	}
	is := &identity{base: base, reported: server.Environment.CertificateFingerprint, shown: t.conns.shownAt(at.Host)}
	if err := t.members.check(is); err != nil {
		t.members.leave(base)
		return err
	}
	return nil
}

// onMembers makes an attempt at a request. If no connection to the current member
// can be made, it makes the next attempt at once, at the next member, until each
// has failed. Then the error is that of all members.
func (t *transport) onMembers(req *request, attempt func() error) error {
	var errs []error
	for range t.members.bases {
		err := attempt()
		if err == nil || !neverSent(err) || (req.body != nil && !req.body.replayable()) {
			return err
		}
		errs = append(errs, err)
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// memberBody is the body of a member's response. If it breaks, the member is left,
// so that the rest is requested from the next one.
type memberBody struct {
	io.ReadCloser
	leave  func()
	closed atomic.Bool
}

func (b *memberBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && !b.closed.Load() {
		b.leave()
	}
	return n, err
}

func (b *memberBody) Close() error {
	b.closed.Store(true)
	return b.ReadCloser.Close()
}
