package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/golxd/lxd/internal/testdaemon"
)

// entry is the entry of a response in index.json, with its request.
type entry struct {
	File        string            `json:"file"`
	Comment     string            `json:"comment"`
	Over        string            `json:"over"` // "unix", "tls" or "tls untrusted"
	Method      string            `json:"method"`
	Path        string            `json:"path"`
	Headers     map[string]string `json:"request_headers,omitempty"`
	Body        json.RawMessage   `json:"request_body,omitempty"`
	Status      int               `json:"status"`
	ContentType string            `json:"content_type"`
	Location    string            `json:"location,omitempty"`
	ETag        string            `json:"etag,omitempty"`
}

// recorder sends requests to one daemon and writes the responses.
type recorder struct {
	daemon  *testdaemon.Daemon
	dir     string
	clients map[string]*http.Client
	neutral *neutralizer
	index   []entry
}

// request is a request to record. A body that is a []byte is sent as it is, any
// other as JSON.
type request struct {
	name    string // the file's name without .json; if empty, nothing is written
	comment string
	over    string // the default is "unix"
	method  string // the default is GET
	path    string
	headers map[string]string
	body    any
}

// envelope is a decoded response.
type envelope struct {
	Type      string          `json:"type"`
	Operation string          `json:"operation"`
	Metadata  json.RawMessage `json:"metadata"`
	status    int
}

const (
	overUnix      = "unix"
	overTLS       = "tls"
	overUntrusted = "tls untrusted"
)

func newRecorder(d *testdaemon.Daemon, dir string) (*recorder, error) {
	trusted, err := d.TLSConfig()
	if err != nil {
		return nil, err
	}
	untrusted := trusted.Clone()
	untrusted.Certificates = nil
	neutral, err := newNeutralizer(d)
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	return &recorder{
		daemon:  d,
		dir:     dir,
		neutral: neutral,
		clients: map[string]*http.Client{
			overUnix: {Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return dialer.DialContext(ctx, "unix", d.Socket)
				},
			}},
			overTLS:       tlsClient(trusted),
			overUntrusted: tlsClient(untrusted),
		},
	}, nil
}

func tlsClient(config *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
}

// do sends a request and records the response, whatever its status.
func (r *recorder) do(ctx context.Context, q request) (*envelope, error) {
	if q.method == "" {
		q.method = http.MethodGet
	}
	if q.over == "" {
		q.over = overUnix
	}
	base := "http://daemon"
	if q.over != overUnix {
		base = r.daemon.URL
	}
	var body io.Reader
	var jsonBody json.RawMessage
	switch b := q.body.(type) {
	case nil:
	case []byte:
		body = bytes.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		body, jsonBody = bytes.NewReader(data), data
	}
	hr, err := http.NewRequestWithContext(ctx, q.method, base+q.path, body)
	if err != nil {
		return nil, err
	}
	if jsonBody != nil {
		hr.Header.Set("Content-Type", "application/json")
	}
	for key, value := range q.headers {
		hr.Header.Set(key, value)
	}
	response, err := r.clients[q.over].Do(hr)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	a := &envelope{status: response.StatusCode}
	if err := json.Unmarshal(data, a); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", q.method, q.path, err, data)
	}
	if q.name == "" {
		return a, nil
	}
	e := entry{
		File: q.name + ".json", Comment: q.comment, Over: q.over,
		Method: q.method, Path: q.path, Headers: q.headers, Body: jsonBody,
		Status:      response.StatusCode,
		ContentType: response.Header.Get("Content-Type"),
		Location:    response.Header.Get("Location"),
		ETag:        response.Header.Get("ETag"),
	}
	return a, r.save(e, data)
}

// save writes a response and adds it to the index.
func (r *recorder) save(e entry, data []byte) error {
	r.index = append(r.index, e)
	data = append(bytes.TrimSuffix(data, []byte("\n")), '\n')
	return os.WriteFile(filepath.Join(r.dir, e.File), r.neutral.apply(data), 0o644)
}

func (r *recorder) writeIndex() error {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(r.index); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.dir, "index.json"), r.neutral.apply(out.Bytes()), 0o644)
}

// operation sends a request that starts an operation, records the response as
// name-accepted and that of the wait as name-wait, and returns the latter.
func (r *recorder) operation(ctx context.Context, q request) (*envelope, error) {
	name, comment := q.name, q.comment
	if name != "" {
		q.name = name + "-accepted"
	}
	started, err := r.do(ctx, q)
	if err != nil {
		return nil, err
	}
	if started.Type != "async" {
		return nil, fmt.Errorf("%s %s: no operation: %d %s", q.method, q.path, started.status, started.Metadata)
	}
	wait := request{path: started.Operation + "/wait?timeout=20", comment: comment + ": the wait"}
	if name != "" {
		wait.name = name + "-wait"
	}
	return r.do(ctx, wait)
}

// attempt sends a request that some servers refuse at once and others only in an
// operation. It records the response, and if there is an operation the wait as
// name-wait.
func (r *recorder) attempt(ctx context.Context, q request) error {
	a, err := r.do(ctx, q)
	if err != nil || a.Type != "async" {
		return err
	}
	_, err = r.do(ctx, request{name: q.name + "-wait", comment: q.comment + ": the wait", path: a.Operation + "/wait?timeout=20"})
	return err
}

// headers returns the headers of an upload, with the family's prefix for names
// that begin with "-".
func (r *recorder) headers(pairs map[string]string) map[string]string {
	prefix := "X-LXD-"
	if r.daemon.Family == testdaemon.Incus {
		prefix = "X-Incus-"
	}
	headers := map[string]string{"Content-Type": "application/octet-stream"}
	for key, value := range pairs {
		if name, found := strings.CutPrefix(key, "-"); found {
			key = prefix + name
		}
		headers[key] = value
	}
	return headers
}
