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

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/daemon"
	"github.com/golxd/lxd/internal/wire"
)

// ListOptions narrow a list. All conditions must hold; a zero field is none.
type ListOptions struct {
	// AllProjects lists the images of all projects (extension
	// images_all_projects). Image.Project tells which one an image is of.
	AllProjects bool

	Architecture string // such as "x86_64"
	Type         ImageType
	Public       *bool
	Cached       *bool
	AutoUpdate   *bool
	// Properties must all be there with these values.
	Properties map[string]string

	// Filter is an expression in the server's own language, such as
	// "properties.os eq ubuntu and not type eq container". A value that holds
	// a space is put in double quotes; string values are regular expressions,
	// matched whole and without regard to case. On LXD 5.0.2 conditions on
	// booleans never match; the fields above work everywhere.
	Filter string
}

// All lists the images with all their attributes, in one request. No match is
// an empty list. An untrusted client gets ErrForbidden unless
// Options.PublicOnly is set. A list that takes more than 512 MiB of memory,
// about 100,000 images, is an [ErrTooLarge]; use Each.
func (m *Images) All(ctx context.Context, opts *ListOptions) ([]*Image, error) {
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

// Each iterates over the same images, decoding them one at a time while they
// arrive, so in constant memory. An error is the last thing it yields, with a
// nil image. It holds a connection while the loop runs. Ranging again lists
// again.
func (m *Images) Each(ctx context.Context, opts *ListOptions) iter.Seq2[*Image, error] {
	var o ListOptions
	if opts != nil {
		o = *opts
		o.Properties = maps.Clone(opts.Properties)
	}
	return func(yield func(*Image, error) bool) {
		var current *request
		err := m.list(ctx, &o, 0, func(req *request) { current = req }, func(image *Image) bool {
			current.noRetry = true // what was yielded cannot be taken back
			return yield(image, nil)
		})
		if err != nil {
			yield(nil, err)
		}
	}
}

// list decodes the images one after another until yield is false. begin is
// called at the start of every attempt. The limit is for the whole answer; 0
// means that no image is kept.
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
	req := &request{method: http.MethodGet, path: path("images"), query: o.query(c), header: c.demandTrust()}
	private := false
	_, err := c.t.call(ctx, req, &list{
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
			if o.match(image.bind(c)) && !yield(image) {
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

// demandTrust asks a server for 403 in place of the public images only.
func (c *Client) demandTrust() http.Header {
	if c.t.unix || c.public {
		return nil
	}
	// Those of all families are sent, to spare a GET /1.0.
	header := http.Header{}
	for _, prefix := range daemon.Unknown.Prefixes() {
		header.Set("X-"+prefix+"-authenticated", "true")
	}
	return header
}

// checkTrust tells a server without private images from one that hides them:
// old servers do not know the header of demandTrust.
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
		Hint: "the server does not trust this client; give Options a client certificate or token that it trusts, or set Options.PublicOnly",
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

// filterClause writes one condition for the server. The values are regular
// expressions there. What its language cannot express safely is left out: match
// looks at every image anyway, the server's filter only spares sending it.
func filterClause(field, value string) (string, bool) {
	if value == "" || strings.ContainsAny(field, " \"\\") || strings.ContainsAny(value, "\"\\^") {
		return "", false
	}
	var b strings.Builder
	for _, r := range value {
		switch {
		case r < ' ':
			return "", false
		case strings.ContainsRune(".+*?()|[]{}$", r):
			b.WriteString("[" + string(r) + "]") // a backslash would have to pass two parsers
		default:
			b.WriteRune(r)
		}
	}
	quoted := b.String()
	if strings.Contains(quoted, " ") {
		quoted = `"` + quoted + `"` // without a space, the quotes fail to parse
	}
	return field + " eq " + quoted, true
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
