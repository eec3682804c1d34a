package lxd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/wire"
)

// Images manages the images of a client's project. Ensure keeps an alias up to date from
// a [Source]; CreateFrom and the other Create methods create an image; Resolve finds one,
// All and Each find all. What can be done with one image are the methods of [Image].
type Images struct {
	client *Client
}

// Get reads an image by its fingerprint or a unique prefix of it. LXD 6.5 and later
// refuse prefixes of less than 12 characters; Get then reads the list of the images.
// If there is none, the error matches [ErrNotFound]; if the prefix is not unique,
// [ErrAmbiguous]; if the server returns another image than the requested one,
// [ErrBadResponse]. For a name that may be an alias, use Resolve.
func (m *Images) Get(ctx context.Context, fingerprint string) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	image, _, err := m.get(ctx, fingerprint, nil)
	return image, err
}

// GetWithEntitlements reads an image as Get does, and asks which of these
// entitlements the client has on it: "can_view", "can_edit", "can_delete". They are
// in Image.AccessEntitlements. The server must have the extension
// entities_with_entitlements (LXD 6), and the client must be one with fine-grained
// permissions; for another, such as one on the unix socket, the server returns an
// [Error] with StatusCode 400.
func (m *Images) GetWithEntitlements(ctx context.Context, fingerprint string, entitlements ...string) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	if err := checkFingerprint("fingerprint", fingerprint); err != nil {
		return nil, err
	}
	query, err := m.entitlements(ctx, "entitlements", entitlements)
	if err != nil {
		return nil, err
	}
	image, _, err := m.get(ctx, fingerprint, query)
	return image, err
}

// entitlements returns the query that asks for entitlements, which are the value of
// the given field; nil for none.
func (m *Images) entitlements(ctx context.Context, field string, names []string) (url.Values, error) {
	if len(names) == 0 {
		return nil, nil
	}
	for _, name := range names {
		if name == "" || strings.Contains(name, ",") {
			return nil, invalid(field, "%q is not an entitlement, such as \"can_edit\"", name)
		}
	}
	if err := m.client.need(ctx, "ask for entitlements", "entities_with_entitlements"); err != nil {
		return nil, err
	}
	return url.Values{"with-access-entitlements": {strings.Join(names, ",")}}, nil
}

func (m *Images) get(ctx context.Context, fingerprint string, extra url.Values) (*Image, string, error) {
	if err := checkFingerprint("fingerprint", fingerprint); err != nil {
		return nil, "", err
	}
	query := m.client.query()
	if len(extra) > 0 {
		query = maps.Clone(query)
		if query == nil {
			query = url.Values{}
		}
		maps.Copy(query, extra)
	}
	req := &request{method: http.MethodGet, path: path("images", strings.ToLower(fingerprint)), query: query}
	image, resp, err := get(ctx, m.client.t, req, func(i *Image) error { return i.checkResponse(fingerprint) })
	if err != nil {
		full, err := m.completePrefix(ctx, fingerprint, err)
		if err != nil {
			return nil, "", err
		}
		return m.get(ctx, full, extra)
	}
	return image.bind(m.client), resp.etag, nil
}

// completePrefix returns the fingerprint with a prefix that the server refused with
// err, or an error. LXD 5.0.2 responds 500 to an ambiguous one, LXD 6.5 and later 400
// to a short one.
func (m *Images) completePrefix(ctx context.Context, prefix string, err error) (string, error) {
	var e *Error
	if len(prefix) == 64 || !errors.As(err, &e) || errors.Is(err, ErrBadResponse) || (e.StatusCode != http.StatusBadRequest && e.StatusCode != http.StatusInternalServerError) {
		return "", err
	}
	short := e.StatusCode == http.StatusBadRequest
	matches, found, u := 0, "", ""
	_, lerr := m.client.t.call(ctx, &request{method: http.MethodGet, path: path("images"), query: m.client.query()}, &list{
		limit: maxList, // no element is kept, but the list must end
		begin: func() { matches = 0 },
		element: func(dec *jsontext.Decoder) error {
			if err := wire.UnmarshalElement(dec, &u); err != nil {
				return err
			}
			name, _, _ := strings.Cut(u[strings.LastIndexByte(u, '/')+1:], "?")
			if strings.HasPrefix(strings.ToLower(name), strings.ToLower(prefix)) {
				matches, found = matches+1, name
			}
			return nil
		},
	})
	refused := *e
	switch {
	case lerr == nil && matches == 1 && short && len(found) == 64:
		return found, nil
	case lerr == nil && matches == 0 && short:
		refused.kind, refused.StatusCode, refused.Message = ErrNotFound, http.StatusNotFound, "no image has a fingerprint with this prefix"
	case (lerr == nil && matches > 1) || short:
		refused.kind, refused.Hint = ErrAmbiguous, "use more digits of the fingerprint"
	default:
		return "", err
	}
	return "", &refused
}

// GetByAlias reads the image that an alias points to. If there is no such alias, the
// error matches [ErrNotFound]. For a name that may be a fingerprint, use Resolve.
func (m *Images) GetByAlias(ctx context.Context, alias string) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	a, err := m.client.Aliases.Get(ctx, alias)
	if err != nil {
		return nil, err
	}
	return m.Get(ctx, a.Target)
}

// ResolveOptions are the options of [Images.Resolve]. A zero field is no condition.
type ResolveOptions struct {
	Type         ImageType // Container or VirtualMachine
	Architecture string    // in any spelling, such as "x86_64" or "amd64"
}

// Resolve reads an image by a reference, as the lxc and incus commands do: its alias,
// or else its fingerprint or a unique prefix of it. If there is no such image, or it
// is not of the requested type and architecture, the error matches [ErrNotFound]; if a
// prefix is that of more than one of them, [ErrAmbiguous]. All arguments named ref are
// resolved in this way.
func (m *Images) Resolve(ctx context.Context, ref string, opts *ResolveOptions) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	var o ResolveOptions
	if opts != nil {
		o = *opts
	}
	if ref == "" {
		return nil, invalid("ref", "is empty; it is an alias, or a fingerprint or a prefix of one")
	}
	switch o.Type {
	case "", Container, VirtualMachine:
	default:
		return nil, invalid("ResolveOptions.Type", "is %q, not %q or %q", o.Type, Container, VirtualMachine)
	}
	var err error
	if o.Architecture, err = checkArchitecture("ResolveOptions.Architecture", o.Architecture); err != nil {
		return nil, err
	}
	image, err := m.GetByAlias(ctx, ref)
	if isMissing(err) && checkFingerprint("", ref) == nil {
		image, err = m.Get(ctx, ref)
		if errors.Is(err, ErrAmbiguous) && o != (ResolveOptions{}) {
			image, err = m.onlyMatch(ctx, ref, o, err)
		}
	}
	switch {
	case isMissing(err):
		return nil, fmt.Errorf("no image has the alias or fingerprint %q: %w", ref, err)
	case err != nil:
		return nil, err
	case (o.Type != "" && o.Type != image.Type) || (o.Architecture != "" && o.Architecture != image.Architecture):
		return nil, fmt.Errorf("%q is image %.12s for %s on %s, which was not asked for: %w", ref, image.Fingerprint, image.Type, image.Architecture, ErrNotFound)
	}
	return image, nil
}

// onlyMatch returns the image of this type and architecture with a prefix that more
// than one image has; ambiguous is the error if these are more than one, too.
func (m *Images) onlyMatch(ctx context.Context, prefix string, o ResolveOptions, ambiguous error) (*Image, error) {
	images, err := m.All(ctx, &ListOptions{Type: o.Type, Architecture: o.Architecture})
	if err != nil {
		return nil, err
	}
	images = slices.DeleteFunc(images, func(i *Image) bool { return !strings.HasPrefix(i.Fingerprint, strings.ToLower(prefix)) })
	switch len(images) {
	case 0:
		return nil, ErrNotFound
	case 1:
		return images[0], nil
	}
	return nil, ambiguous
}

// Exists reports whether Resolve finds an image. If the project does not exist, the
// error matches [ErrProjectNotFound]; if this client may not use it, [ErrForbidden]; if
// a prefix is not unique, [ErrAmbiguous].
func (m *Images) Exists(ctx context.Context, ref string) (bool, error) {
	_, err := m.Resolve(ctx, ref, nil)
	if isMissing(err) {
		return false, nil
	}
	return err == nil, err
}

// Update reads an image, has change change it, and sends the changes, as
// [Image.Update] does. If somebody else has changed the image in between, it begins
// anew, until Options.RetryTimeout has passed since the first conflict; change may then
// be called several times, with the current state each time. It returns the image in
// its new state. An error of change is returned as it is, and nothing is sent.
func (m *Images) Update(ctx context.Context, ref string, change func(*Image) error, opts *UpdateOptions) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	if change == nil {
		return nil, invalid("change", "is nil")
	}
	image, err := m.Resolve(ctx, ref, nil)
	if err != nil {
		return nil, err
	}
	return m.update(ctx, image, change, opts)
}

// update changes an image that was read. It reads it again after a conflict.
func (m *Images) update(ctx context.Context, image *Image, change func(*Image) error, opts *UpdateOptions) (*Image, error) {
	retries := m.client.t.retry.Begin()
	for {
		if err := change(image); err != nil {
			return nil, err
		}
		err := image.Update(ctx, opts)
		if err == nil {
			return image, nil
		}
		if !errors.Is(err, ErrConflict) {
			return nil, err
		}
		if err = retries.Pause(ctx, err); err != nil {
			return nil, err
		}
		if image, err = m.Get(ctx, image.Fingerprint); err != nil {
			return nil, err
		}
	}
}

// Delete deletes the image that ref resolves to, as [Image.Delete] does.
func (m *Images) Delete(ctx context.Context, ref string, opts *DeleteOptions) error {
	image, err := m.Resolve(ctx, ref, nil)
	if err != nil {
		return err
	}
	return image.Delete(ctx, opts)
}

// isMissing reports whether an image or alias does not exist in a project that does,
// and that this client may use.
func isMissing(err error) bool {
	return errors.Is(err, ErrNotFound) && !errors.Is(err, ErrProjectNotFound) && !errors.Is(err, ErrForbidden)
}
