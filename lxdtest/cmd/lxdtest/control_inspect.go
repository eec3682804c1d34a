package main

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"github.com/golxd/lxd/lxdtest"
)

// requestJSON is a request that a server has received.
type requestJSON struct {
	Method    string      `json:"method"`
	Path      string      `json:"path"`
	Query     string      `json:"query,omitempty"`
	Header    http.Header `json:"header"`
	TLS       bool        `json:"tls"`
	BodyBytes int64       `json:"body_bytes"` // that have arrived
	Text      string      `json:"text,omitempty"`
	Done      bool        `json:"done"`
	Status    int         `json:"status,omitempty"` // of the response
}

func newRequestJSON(r *lxdtest.Request) requestJSON {
	return requestJSON{r.Method, r.Path, r.Query, r.Header, r.TLS, r.BodyBytes(), string(r.Text()), r.Done(), r.Status()}
}

func (c *control) requests(s *server, r *http.Request) (any, error) {
	out := []requestJSON{}
	for _, request := range s.fake.Requests() {
		out = append(out, newRequestJSON(request))
	}
	return out, checkQuery(r)
}

func (c *control) forgetRequests(s *server, r *http.Request) (any, error) {
	if err := read(r, &struct{}{}); err != nil {
		return nil, err
	}
	s.fake.ForgetRequests()
	return struct{}{}, nil
}

// waitTimeout is how long a call of wait waits if it does not say it.
const waitTimeout = "60s"

func (c *control) wait(s *server, r *http.Request) (any, error) {
	if err := checkQuery(r, "method", "path", "done", "timeout"); err != nil {
		return nil, err
	}
	query := r.URL.Query()
	if done := query.Get("done"); query.Has("done") && done != "true" {
		return nil, badRequest("done can only be true, not %q", done)
	}
	var request *lxdtest.Request
	err := within(r, cmp.Or(query.Get("timeout"), waitTimeout), func(ctx context.Context) (err error) {
		request, err = s.fake.WaitRequest(ctx, query.Get("method"), query.Get("path"))
		if err == nil && query.Has("done") {
			err = request.Wait(ctx)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return newRequestJSON(request), nil
}

// imageJSON is an image of a server.
type imageJSON struct {
	Project      string            `json:"project"`
	Fingerprint  string            `json:"fingerprint"`
	Filename     string            `json:"filename"`
	Type         string            `json:"type"`
	Architecture string            `json:"architecture"`
	Size         int64             `json:"size"`
	Public       bool              `json:"public"`
	AutoUpdate   bool              `json:"auto_update"`
	Cached       bool              `json:"cached"`
	Properties   map[string]string `json:"properties"`
	Profiles     []string          `json:"profiles"`
	Aliases      []string          `json:"aliases"`
	ExpiresAt    time.Time         `json:"expires_at,omitzero"`
	CreatedAt    time.Time         `json:"created_at,omitzero"`
	UploadedAt   time.Time         `json:"uploaded_at"`
	LastUsedAt   time.Time         `json:"last_used_at,omitzero"`
}

func (c *control) images(s *server, r *http.Request) (any, error) {
	out := []imageJSON{}
	for _, image := range s.fake.Images() {
		image.Aliases, image.Profiles = list(image.Aliases), list(image.Profiles)
		out = append(out, imageJSON(image))
	}
	return out, checkQuery(r)
}

func (c *control) addImage(s *server, r *http.Request) (any, error) {
	var in struct {
		Image string `json:"image"`
	}
	if err := read(r, &in); err != nil {
		return nil, err
	}
	image, err := parseImage(in.Image)
	if err != nil {
		return nil, badRequest("image %q: %v", in.Image, err)
	}
	fingerprint, err := image.add(s.fake)
	if err != nil {
		return nil, badRequest("image %q: %v", in.Image, err)
	}
	return map[string]string{"fingerprint": fingerprint}, nil
}

func (c *control) tokens(s *server, r *http.Request) (any, error) {
	return list(s.fake.Tokens()), checkQuery(r)
}

func (c *control) newToken(s *server, r *http.Request) (any, error) {
	var in struct {
		Name string `json:"name"`
	}
	if err := read(r, &in); err != nil {
		return nil, err
	}
	if in.Name == "" {
		return nil, badRequest("name: the token needs the name of a client")
	}
	return map[string]string{"token": s.fake.NewTrustToken(in.Name)}, nil
}
