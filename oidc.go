package lxd

import (
	"context"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/golxd/lxd/internal/daemon"
	"github.com/golxd/lxd/internal/wire"
)

// OIDCProvider is the OpenID Connect provider whose access tokens a server
// accepts, as the server describes it. It is part of an [*Error] that matches
// [ErrUnauthorized]:
//
//	var refused *lxd.Error
//	if errors.As(err, &refused) && refused.OIDC != nil {
//		// Log in with refused.OIDC.Issuer, then create a client with a TokenSource.
//	}
type OIDCProvider struct {
	Issuer   string   // its URL
	ClientID string   // to log in as
	Audience string   // that the token must be for; "" for any
	Scopes   []string // to ask for; nil if the server does not say (LXD 5.0.2, Incus 6.0.4)
}

// String returns the issuer, client ID and audience in one line.
func (p *OIDCProvider) String() string {
	s := "provider " + p.Issuer + " for the client ID " + p.ClientID
	if p.Audience != "" {
		s += " and the audience " + p.Audience
	}
	return s
}

// oidcProvider reads the headers of either family; it returns nil if there are
// none.
func oidcProvider(h http.Header) *OIDCProvider {
	for _, family := range daemon.Unknown.Prefixes() {
		prefix := "X-" + family + "-OIDC-"
		p := OIDCProvider{
			Issuer:   h.Get(prefix + "issuer"),
			ClientID: h.Get(prefix + "clientid"),
			Audience: h.Get(prefix + "audience"),
			Scopes:   scopes(h.Get(prefix + "scopes")),
		}
		if p.Issuer != "" {
			return &p
		}
	}
	return nil
}

// scopes splits a list at commas and spaces; servers use either.
func scopes(list string) []string {
	if list == "" {
		return nil
	}
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// sessionExtension is the API extension of servers that have a session for each OpenID
// Connect client: they respond 403 to a token whose client they cannot name by its
// User-Agent, or that does not keep cookies.
const sessionExtension = "auth_oidc_sessions"

// sessionAgent is a User-Agent that these servers accept (LXD 6.9). They refuse any
// that does not have this form.
const sessionAgent = "LXD 6.9 (Linux; x86_64; 6.1.0) (cookiejar)"

// session is the client's side of a server's OpenID Connect sessions.
type session struct {
	known  atomic.Bool // whether the server has them
	wanted atomic.Bool // the server has them
	jar    http.CookieJar
}

func newSession() *session {
	jar, err := cookiejar.New(nil)
	if err != nil {
		panic(fmt.Sprintf("lxd: cookie jar without options: %v", err)) // it has no other error
	}
	return &session{jar: jar}
}

// authorize sets the headers that identify the client to the server at target.
func (t *transport) authorize(ctx context.Context, req *request, target *url.URL, header http.Header) (err error) {
	header.Set("User-Agent", t.agent)
	if t.token == nil || req.anonymous {
		return nil
	}
	if req.bearer, err = t.bearer(ctx); err != nil {
		return err
	}
	header.Set("Authorization", "Bearer "+req.bearer)
	if req.inSession = t.session.wanted.Load(); !req.inSession {
		return nil
	}
	header.Set("User-Agent", sessionAgent)
	cookies := &http.Request{Header: http.Header{}}
	for _, cookie := range t.session.jar.Cookies(target) {
		cookies.AddCookie(cookie)
	}
	if text := cookies.Header.Get("Cookie"); text != "" {
		header.Set("Cookie", text)
	}
	return nil
}

// keepCookies keeps the session that a response begins or renews.
func (t *transport) keepCookies(target *url.URL, res *http.Response) {
	if t.session.wanted.Load() {
		t.session.jar.SetCookies(target, res.Cookies())
	}
}

// learnsSession reports whether a request with this status may succeed when it is sent
// again, as the server turns out to have sessions. It asks once, without the token.
func (t *transport) learnsSession(ctx context.Context, req *request, status int) bool {
	if status != http.StatusForbidden || t.token == nil || req.anonymous || req.inSession {
		return false
	}
	if t.session.known.Load() {
		return t.session.wanted.Load() // another request has asked meanwhile
	}
	ask := &request{method: http.MethodGet, path: "/1.0", base: req.base, anonymous: true}
	res, err := t.sendOnce(ctx, ask)
	if err != nil {
		return false
	}
	defer func() { _ = res.Body.Close() }()
	var server wire.Server
	if _, err := t.readResponse(ctx, ask, res, &server); err != nil {
		return false
	}
	t.session.wanted.Store(slices.Contains(server.APIExtensions, sessionExtension))
	t.session.known.Store(true)
	return t.session.wanted.Load()
}
