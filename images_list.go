package lxd

import (
	"context"
	"errors"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/daemon"
	"github.com/golxd/lxd/internal/wire"
)

// ListOptions select the images of a list. An image must match all conditions; a
// zero field is no condition.
type ListOptions struct {
	// AllProjects lists the images of all projects (extension
	// images_all_projects). Image.Project is the project of each.
	AllProjects bool

	Architecture string // such as "x86_64"
	Type         ImageType
	Public       *bool
	Cached       *bool
	AutoUpdate   *bool
	// Properties must all exist with these values.
	Properties map[string]string

	// Filter is an expression in the server's filter language, such as
	// "properties.os eq ubuntu and not type eq container". A value that contains
	// a space needs double quotes; string values are regular expressions, which
	// must match the whole value, ignoring case. On LXD 5.0.2 conditions on
	// booleans never match; the fields above work on all servers.
	Filter string

	// AccessEntitlements are entitlements, such as "can_edit", to be looked up for
	// each image: see [Images.GetWithEntitlements].
	AccessEntitlements []string
}

// All returns the images with all their attributes, in one request. If none
// matches, the list is empty, not nil. For a client that the server does not trust,
// the error matches [ErrForbidden], unless Options.PublicOnly is set. For a list
// that needs more than 512 MiB of memory, about 100,000 images, it matches
// [ErrTooLarge]; use Each.
func (m *Images) All(ctx context.Context, opts *ListOptions) ([]*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	var images []*Image
	err := m.list(ctx, opts, maxList, func(*request) { images = []*Image{} }, func(image *Image) bool {
		images = append(images, image)
		return true
	})
	if err != nil {
		return nil, err
	}
	return images, nil
}

// Each iterates over the same images. It decodes them one at a time as they
// arrive, so it needs constant memory. An error ends the iteration; it is yielded
// with a nil image. The loop uses a connection until it ends. Each range loop sends
// a new request.
func (m *Images) Each(ctx context.Context, opts *ListOptions) iter.Seq2[*Image, error] {
	var o ListOptions
	if opts != nil {
		o = *opts
		o.Properties, o.AccessEntitlements = maps.Clone(opts.Properties), slices.Clone(opts.AccessEntitlements)
	}
	return func(yield func(*Image, error) bool) {
		if err := m.check(ctx); err != nil {
			yield(nil, err)
			return
		}
		var current *request
		err := m.list(ctx, &o, 0, func(req *request) { current = req }, func(image *Image) bool {
			current.noRetry = true // a retry would yield the same images again
			return yield(image, nil)
		})
		if err != nil {
			yield(nil, err)
		}
	}
}

// list decodes the images one after another until yield returns false. It calls
// begin at the start of each attempt. limit is for the whole list; 0 means that no
// image is kept.
func (m *Images) list(ctx context.Context, opts *ListOptions, limit int64, begin func(*request), yield func(*Image) bool) error {
	var o ListOptions
	if opts != nil {
		o = *opts
	}
	c := m.client
	if o.AllProjects {
		if err := c.need(ctx, "list the images of all projects", "images_all_projects"); err != nil {
			return err
		}
	}
	entitlements, err := m.entitlements(ctx, "ListOptions.AccessEntitlements", o.AccessEntitlements)
	if err != nil {
		return err
	}
	query := o.query(c)
	maps.Copy(query, entitlements)
	req := &request{method: http.MethodGet, path: path("images"), query: query, header: c.demandTrust()}
	private := false
	_, err = c.t.call(ctx, req, &list{
		limit: limit, size: int64(reflect.TypeFor[Image]().Size()),
		begin: func() { begin(req) },
		element: func(dec *jsontext.Decoder) error {
			image := &Image{}
			if err := wire.UnmarshalElement(dec, image); err != nil {
				return err
			}
			if err := image.checkResponse(""); err != nil {
				return badElement(err)
			}
			private = private || !image.Public
			image.bind(c)
			if o.AllProjects && image.Project != c.Project() {
				image.client = c.InProject(image.Project)
			}
			if o.match(image) && !yield(image) {
				return errIterationStopped
			}
			return nil
		},
	})
	switch {
	case errors.Is(err, errIterationStopped):
		return nil
	case err == nil && !private:
		return c.checkTrust(ctx)
	}
	return err
}

// demandTrust returns the header that makes a server respond 403 to a client that
// it does not trust, instead of listing only the public images.
func (c *Client) demandTrust() http.Header {
	if c.t.unix || c.public {
		return nil
	}
	// Sending the headers of all families saves a GET /1.0.
	header := http.Header{}
	for _, prefix := range daemon.Unknown.Prefixes() {
		header.Set("X-"+prefix+"-authenticated", "true")
	}
	return header
}

// checkTrust returns ErrForbidden if the server hides its private images from this
// client: old servers do not know the header of demandTrust.
func (c *Client) checkTrust(ctx context.Context) error {
	if c.t.unix || c.public {
		return nil
	}
	s, err := c.serverInfo(ctx, false)
	if err != nil {
		return err
	}
	if s.Trusted {
		return nil
	}
	return &Error{
		StatusCode: http.StatusForbidden, Method: http.MethodGet, Path: path("images"), Message: "only the public images were listed",
		Hint: "the server does not trust this client; set a client certificate or token in Options that it trusts, or set Options.PublicOnly",
	}
}

func (o *ListOptions) query(c *Client) url.Values {
	q := url.Values{"recursion": {"1"}}
	switch {
	case o.AllProjects:
		q.Set("all-projects", "true")
	case c.project != "":
		q.Set("project", c.project)
	}
	var clauses []string
	add := func(field, value string) {
		if clause, ok := filterClause(field, value); ok {
			clauses = append(clauses, clause)
		}
	}
	add("architecture", o.Architecture)
	add("type", string(o.Type))
	for _, name := range slices.Sorted(maps.Keys(o.Properties)) {
		add("properties."+name, o.Properties[name])
	}
	if o.Filter != "" {
		clauses = append(clauses, o.Filter)
	}
	if len(clauses) > 0 {
		q.Set("filter", strings.Join(clauses, " and "))
	}
	return q
}

// filterClause returns one condition in the server's filter language. Its values
// are regular expressions for most daemons, and literal for LXD 4.0, 5.0.0 and 5.1.
// ok is false if the language cannot express the condition safely for all of them.
// Such a condition can be left out, as match checks every image anyway: the
// server's filter only makes the response smaller.
func filterClause(field, value string) (clause string, ok bool) {
	special := func(r rune) bool {
		return r < ' ' || (r != ' ' && unicode.IsSpace(r)) || strings.ContainsRune("\"\\^.+*?()|[]{}$", r)
	}
	// Daemons split an expression at white space, and join it with single spaces.
	if value == "" || value != strings.Join(strings.Fields(value), " ") || strings.ContainsFunc(value, special) ||
		strings.ContainsAny(field, "\"\\") || strings.ContainsFunc(field, unicode.IsSpace) {
		return "", false
	}
	if strings.Contains(value, " ") {
		value = `"` + value + `"` // without a space, the quotes fail to parse
	}
	return field + " eq " + value, true
}

func (o *ListOptions) match(i *Image) bool {
	flag := func(want *bool, is bool) bool { return want == nil || *want == is }
	if (o.Architecture != "" && o.Architecture != i.Architecture) || (o.Type != "" && o.Type != i.Type) ||
		!flag(o.Public, i.Public) || !flag(o.Cached, i.Cached) || !flag(o.AutoUpdate, i.AutoUpdate) {
		return false
	}
	for name, want := range o.Properties {
		if is, ok := i.Properties[name]; !ok || is != want {
			return false
		}
	}
	return true
}
