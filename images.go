package lxd

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/wire"
)

// Images manages the images of a client's project.
type Images struct {
	client *Client
}

// Get reads an image by its fingerprint or a unique prefix of it (LXD 6.5 and
// later: of at least 12 characters). If there is none, the error matches
// [ErrNotFound]; if the prefix is not unique, [ErrAmbiguous]; if the server
// returns another image than the requested one, [ErrBadResponse].
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
		return nil, "", m.prefixError(ctx, fingerprint, err)
	}
	return image.bind(m.client), resp.etag, nil
}

// prefixError returns ErrAmbiguous if err means that the server refused a prefix,
// and otherwise err: LXD 5.0.2 responds 500 to an ambiguous one, LXD 6.5 and later
// 400 to a short one.
func (m *Images) prefixError(ctx context.Context, prefix string, err error) error {
	var e *Error
	if len(prefix) == 64 || !errors.As(err, &e) || errors.Is(err, ErrBadResponse) || (e.StatusCode != http.StatusBadRequest && e.StatusCode != http.StatusInternalServerError) {
		return err
	}
	if e.StatusCode == http.StatusInternalServerError {
		matches, u := 0, ""
		_, lerr := m.client.t.call(ctx, &request{method: http.MethodGet, path: path("images"), query: m.client.query()}, &list{
			limit: maxList, // no element is kept, but the list must end
			begin: func() { matches = 0 },
			element: func(dec *jsontext.Decoder) error {
				if err := wire.UnmarshalElement(dec, &u); err != nil {
					return err
				}
				name, _, _ := strings.Cut(u[strings.LastIndexByte(u, '/')+1:], "?")
				if strings.HasPrefix(strings.ToLower(name), strings.ToLower(prefix)) {
					matches++
				}
				return nil
			},
		})
		if lerr != nil || matches < 2 {
			return err
		}
	}
	ambiguous := *e
	ambiguous.kind, ambiguous.Hint = ErrAmbiguous, "use more digits of the fingerprint"
	return &ambiguous
}

// GetByAlias reads the image that an alias points to.
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

// Exists reports whether there is an image with that fingerprint (or unique
// prefix), or an alias of that name. If the project does not exist, the error
// matches [ErrProjectNotFound]; if this client may not use it, [ErrForbidden].
func (m *Images) Exists(ctx context.Context, fingerprintOrAlias string) (bool, error) {
	if err := m.check(ctx); err != nil {
		return false, err
	}
	if fingerprintOrAlias == "" {
		return false, invalid("fingerprintOrAlias", "is empty")
	}
	if checkFingerprint("", fingerprintOrAlias) == nil {
		_, err := m.Get(ctx, fingerprintOrAlias)
		if err == nil {
			return true, nil
		}
		// It may also be an alias, such as "ace"; and some servers refuse short
		// prefixes.
		if !isMissing(err) && !(errors.Is(err, ErrAmbiguous) && len(fingerprintOrAlias) < 12) {
			return false, err
		}
	}
	_, err := m.client.Aliases.Get(ctx, fingerprintOrAlias)
	if isMissing(err) {
		return false, nil
	}
	return err == nil, err
}

// isMissing reports whether an image or alias does not exist in a project that does,
// and that this client may use.
func isMissing(err error) bool {
	return errors.Is(err, ErrNotFound) && !errors.Is(err, ErrProjectNotFound) && !errors.Is(err, ErrForbidden)
}
