package lxd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/golxd/lxd/internal/redact"
	"github.com/golxd/lxd/internal/wire"
)

// Do sends a request for which this package has no method, such as one that creates
// an instance, over this client's connections, with its retries and errors.
//
// The method is GET, POST, PUT, PATCH or DELETE. The path is that of the API's
// documentation, escaped, with a query if needed: "/1.0/instances/web1/state". The
// client's project is added to it, unless the query contains project or all-projects.
// in is sent as JSON (encoding/json), nil for no body. The metadata of the response
// is decoded into out, a pointer; nil ignores it, and null leaves out unchanged. A
// response of more than 16 MiB is an error that matches [ErrTooLarge].
//
// If the server responds with an operation, Do returns it without waiting for it; out
// then receives the operation as the server sent it, with the secrets that
// [Operation.Status] hides. Otherwise the Operation is nil.
//
// Like the other calls, Do repeats GET, PUT and DELETE after a lost response, and the
// others only if the server has not received them. Values of in with the names secret,
// secrets, password, token, trust_token and trust_password, and user names and passwords
// in URLs, are hidden in errors and logs.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) (*Operation, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	c, req, err := c.newDo(method, path, in)
	if err != nil {
		return nil, err
	}
	if out != nil {
		if v := reflect.ValueOf(out); v.Kind() != reflect.Pointer || v.IsNil() {
			return nil, invalid("out", "is a %T, not a pointer to receive the response's metadata", out)
		}
	}
	c.t.secrets.add(req.hidden())
	var metadata jsontext.Value
	resp, err := c.t.call(ctx, req, &metadata)
	switch {
	case errors.Is(err, errDeletedBefore):
		return nil, nil
	case err != nil:
		return nil, err
	}
	var op *Operation
	if resp.Type == wire.TypeAsync {
		var state wire.Operation
		if err = wire.Unmarshal(metadata, &state); err == nil {
			err = checkOperation(&state, "")
		}
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w: %w", req.method, req.path, ErrBadResponse, err)
		}
		op = c.operation(state, nil, req.hidden())
	}
	if out != nil && len(metadata) > 0 {
		if err := json.Unmarshal(metadata, out); err != nil {
			return op, fmt.Errorf("%s %s: decode the metadata into a %T: %w", req.method, req.path, out, err)
		}
	}
	return op, nil
}

// doMethods are the methods of the API.
var doMethods = []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

// newDo checks the arguments of Do. It returns the request, and the client of its project.
func (c *Client) newDo(method, path string, in any) (*Client, *request, error) {
	if !slices.Contains(doMethods, method) {
		return nil, nil, invalid("method", "is %q, not one of %s", method, strings.Join(doMethods, ", "))
	}
	at, err := url.Parse(path)
	switch {
	case err != nil:
		return nil, nil, invalid("path", "is not the path of a request: %v", redact.Error(err))
	case at.IsAbs() || at.Host != "" || at.Fragment != "" || (at.Path != "/1.0" && !strings.HasPrefix(at.Path, "/1.0/")):
		return nil, nil, invalid("path", "%q does not begin with /1.0, or has more than a path and a query", redact.URL(at))
	case slices.ContainsFunc(strings.Split(at.Path, "/"), func(s string) bool { return s == "." || s == ".." }):
		return nil, nil, invalid("path", "%q has a relative element", redact.URL(at))
	}
	query, err := url.ParseQuery(at.RawQuery)
	if err != nil {
		return nil, nil, invalid("path", "has a malformed query: %v", redact.Error(err))
	}
	switch {
	case query.Has("project"):
		c = c.InProject(query.Get("project"))
	case c.project != "" && !query.Has("all-projects"):
		query.Set("project", c.project)
	}
	req := &request{method: method, path: at.EscapedPath(), query: query, expect: expectEither}
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, nil, invalid("in", "cannot be sent as JSON: %v", err)
		}
		req.body = &jsonBody{rawJSON(data)}
	}
	return c, req, nil
}

// rawJSON is a value that is encoded already.
type rawJSON []byte

// MarshalJSON returns the value.
func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

// secretNames are the names of secrets in requests of the API: of images, joining
// clusters, trust, storage and networks.
var secretNames = []string{"secret", "secrets", "password", "token", "trust_token", "trust_password"}

// Secrets returns the values with one of secretNames, and the user names and passwords in
// URLs, also those in lists and maps.
func (r rawJSON) Secrets() *redact.Secrets {
	var decoded any
	if json.Unmarshal(r, &decoded) != nil {
		return nil
	}
	var values []string
	var walk func(value any, secret bool)
	walk = func(value any, secret bool) {
		switch v := value.(type) {
		case string:
			if secret {
				values = append(values, v)
			}
			if u, err := url.Parse(v); err == nil && u.User != nil {
				password, _ := u.User.Password()
				values = append(values, u.User.Username(), password)
			}
		case []any:
			for _, element := range v {
				walk(element, secret)
			}
		case map[string]any:
			for name, element := range v {
				walk(element, secret || slices.Contains(secretNames, name))
			}
		}
	}
	walk(decoded, false)
	return redact.Hide(values...)
}
