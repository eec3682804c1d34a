package lxd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/golxd/lxd/internal/wire"
	"github.com/golxd/lxd/lxdtest"
)

// clientOfResponse returns a client whose every request gets the same response, that of
// a fuzzed server.
func clientOfResponse(tb testing.TB, header http.Header, status int, body []byte) *Client {
	tb.Helper()
	client, err := New("unix:///nowhere", &Options{
		RetryTimeout: -1,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("nothing is dialed")
		},
		Transport: func(http.RoundTripper) http.RoundTripper {
			return answer200(func(req *http.Request) *http.Response {
				if header == nil {
					header = http.Header{"Content-Type": {"application/json"}}
				}
				return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: req}
			})
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

type answer200 func(*http.Request) *http.Response

func (f answer200) RoundTrip(req *http.Request) (*http.Response, error) { return f(req), nil }

// FuzzEnvelope compares the reading of a response with what encoding/json makes of
// it: an error is an error with any HTTP status, and a success needs a status of 2xx.
func FuzzEnvelope(f *testing.F) {
	f.Add(`{"type":"sync","status":"Success","status_code":200,"metadata":{"a":1}}`, 200)
	f.Add(`{"type":"error","error":"not found","error_code":404}`, 200)
	f.Add(`{"type":"async","operation":"/1.0/operations/x","metadata":{"id":"x"}}`, 202)
	f.Add(`<html>`, 502)
	f.Add(`{"type":"sync"`, 200)
	f.Fuzz(func(t *testing.T, body string, status int) {
		status = 200 + (status&0xff)*2%400
		c := clientOfResponse(t, nil, status, []byte(body))
		resp, err := c.t.call(t.Context(), &request{method: http.MethodGet, path: path("x")}, nil)
		if (resp == nil) == (err == nil) {
			t.Fatal("either a response or an error")
		}
		if err == nil && (resp.Type != wire.TypeSync || status/100 != 2) {
			t.Fatalf("type %q with status %d is a success", resp.Type, status)
		}
		if errors.Is(err, io.EOF) {
			t.Fatalf("%v is io.EOF", err)
		}
		var told struct {
			Type string `json:"type"`
		}
		if json.Unmarshal([]byte(body), &told) == nil && told.Type == wire.TypeError && err == nil {
			t.Fatal("an error response is a success")
		}
	})
}

// FuzzOperation reads operations: whatever they contain, they end only by their
// status code, and only 200 is a success.
func FuzzOperation(f *testing.F) {
	f.Add(`{"id":"a","class":"task","status":"Success","status_code":200,"metadata":{"fingerprint":"ab"}}`)
	f.Add(`{"id":"a","status":"Failure","status_code":400,"err":"no space left","metadata":null}`)
	f.Add(`{"id":"a","status_code":103,"metadata":{"progress":{"percent":"12","processed":"4096"},"download_progress":"rootfs: 45% (12MB/s)"}}`)
	f.Add(`{"id":"a","status_code":103,"metadata":{"download_progress":"%%%99999999999999999999%"}}`)
	f.Fuzz(func(t *testing.T, body string) {
		var state wire.Operation
		if wire.Unmarshal([]byte(body), &state) != nil {
			return
		}
		op := clientOfResponse(t, nil, 200, nil).operation(state, nil, nil)
		ended, err := op.result()
		if ended != (state.StatusCode >= statusSuccess) || (err == nil && ended && state.StatusCode != statusSuccess) {
			t.Fatalf("status %d: ended %v, %v", state.StatusCode, ended, err)
		}
		if err != nil && err.Error() == "" {
			t.Fatal("an error without words")
		}
		status := op.Status()
		if p, ok := status.Progress(); ok && (p.Percent < -1 || p.Percent > 100) {
			t.Fatalf("%d percent", p.Percent)
		}
	})
}

// FuzzImage reads the JSON of an image, and of a list with it, as one by one.
func FuzzImage(f *testing.F) {
	fingerprint := strings.Repeat("ab", 32)
	f.Add(`{"fingerprint":"` + fingerprint + `","size":12,"aliases":[{"name":"a"}],"properties":{"os":"x"},"expires_at":"1970-01-01T00:00:00Z"}`)
	f.Add(`{"fingerprint":"../../etc/passwd","filename":"../x","properties":null,"profiles":null}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, image string) {
		one := clientOfResponse(t, nil, 200, []byte(`{"type":"sync","metadata":`+image+`}`))
		got, err := one.Images.Get(t.Context(), fingerprint)
		if err == nil && got.Fingerprint != fingerprint {
			t.Fatalf("image %q is taken for %s", got.Fingerprint, fingerprint)
		}
		list := clientOfResponse(t, nil, 200, []byte(`{"type":"sync","metadata":[`+image+`]}`))
		all, allErr := list.Images.All(t.Context(), nil)
		var each []*Image
		var eachErr error
		for i, err := range list.Images.Each(t.Context(), nil) {
			if err != nil {
				eachErr = err
				break
			}
			each = append(each, i)
			if checkFullFingerprint("", i.Fingerprint) != nil {
				t.Fatalf("%q is the fingerprint of an image", i.Fingerprint)
			}
		}
		if (allErr == nil) != (eachErr == nil) || (allErr == nil && len(all) != len(each)) {
			t.Fatalf("All: %d, %v; Each: %d, %v", len(all), allErr, len(each), eachErr)
		}
	})
}

// FuzzExport reads an export of any shape. Only content with the fingerprint
// ends well.
func FuzzExport(f *testing.F) {
	metadata, rootfs := []byte("metadata"), []byte("rootfs")
	form := "--b\r\nContent-Disposition: form-data; name=\"metadata\"; filename=\"m\"\r\n\r\nmetadata\r\n" +
		"--b\r\nContent-Disposition: form-data; name=\"rootfs\"; filename=\"r\"\r\n\r\nrootfs\r\n--b--\r\n"
	f.Add("multipart/form-data; boundary=b", []byte(form))
	f.Add("multipart/form-data; boundary=b", []byte(form[:len(form)-30]))
	f.Add("multipart/form-data", []byte(form))
	f.Add("application/octet-stream", append(bytes.Clone(metadata), rootfs...))
	f.Add("text/html", []byte("<html>"))
	want := lxdtest.Fingerprint(metadata, rootfs)
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		c := clientOfResponse(t, http.Header{"Content-Type": {kind}}, 200, body)
		image := (&Image{Fingerprint: want}).bind(c)
		export, err := image.Export(t.Context(), nil)
		if err != nil {
			return
		}
		defer func() { _ = export.Close() }()
		var got bytes.Buffer
		for err == nil {
			if name := export.Filename(); name != "" && (name != filepath.Base(name) || strings.ContainsAny(name, `/\`)) {
				t.Fatalf("file name %q", name)
			}
			if _, err = io.Copy(&got, export); err == nil {
				err = export.Next()
			}
		}
		if (err == io.EOF) != (lxdtest.Fingerprint(got.Bytes()) == want) && err == io.EOF { //nolint:errorlint // io.EOF itself is the good end
			t.Fatalf("%q passed for the image", got.Bytes())
		}
		if err != io.EOF && errors.Is(err, io.EOF) { //nolint:errorlint // as above
			t.Fatalf("%v is io.EOF", err)
		}
	})
}

// FuzzContentDisposition makes sure that no server-sent name is a path.
func FuzzContentDisposition(f *testing.F) {
	for _, s := range []string{
		"inline;filename=image.tar.gz", `inline;filename="../../etc/passwd"`, `attachment; filename="C:\\x\\y"`,
		`inline;filename=..`, `inline;filename*=UTF-8''%2e%2e%2fx`, `inline;filename="a/"`, "inline;filename=\"\x00\"",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		name := dispositionName(header)
		if name == "." || name == ".." || strings.ContainsAny(name, "/\\\x00\r\n") {
			t.Fatalf("%q becomes %q", header, name)
		}
	})
}

// FuzzAlias makes an alias of any name, beside ones that a name which is not
// escaped would hit, and looks for it on the server.
func FuzzAlias(f *testing.F) {
	for _, s := range []string{"prod", "prod?x", "prod#x", "a/b", "..", ".", "a b", "%2F", "%", "ü/ö", "prod;x", "a//b", "+", "a\\b", "x/../prod", "\u2028", "a\x00b", "\xff"} {
		f.Add(s)
	}
	// One server for all inputs: each is a name of its own.
	server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
	f.Cleanup(server.Close)
	client, err := New("unix:///memory", &Options{Dial: server.DialContext})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = client.Close() })
	fingerprint, err := server.AddImage(lxdtest.UnifiedImage("fuzz", 0), &lxdtest.AddOptions{Aliases: []string{"keep", "prod"}})
	if err != nil {
		f.Fatal(err)
	}
	var turn sync.Mutex
	f.Fuzz(func(t *testing.T, name string) {
		if name == "keep" || name == "prod" {
			return
		}
		turn.Lock()
		defer turn.Unlock()
		ctx := t.Context()
		err := client.Aliases.Create(ctx, Alias{Name: name, Target: fingerprint})
		if name == "" || !utf8.ValidString(name) || strings.Contains(name, "\x00") {
			if !errors.Is(err, ErrInvalid) || len(server.Aliases()) != 2 {
				t.Fatalf("name %q: %v, %v", name, err, server.Aliases())
			}
			return
		}
		if err != nil {
			t.Fatalf("create %q: %v", name, err)
		}
		if _, ok := server.Aliases()[name]; !ok || len(server.Aliases()) != 3 {
			t.Fatalf("%q became %v", name, server.Aliases())
		}
		got, err := client.Aliases.Get(ctx, name)
		if err != nil || got.Name != name || got.Target != fingerprint {
			t.Fatalf("get %q: %+v, %v", name, got, err)
		}
		if err := client.Aliases.Update(ctx, name, func(a *Alias) { a.Description = "changed" }); err != nil {
			t.Fatalf("update %q: %v", name, err)
		}
		if err := client.Aliases.Delete(ctx, name); err != nil {
			t.Fatalf("delete %q: %v", name, err)
		}
		if left := server.Aliases(); len(left) != 2 || left["keep"] == "" || left["prod"] == "" {
			t.Fatalf("deleting %q left %v", name, left)
		}
	})
}
