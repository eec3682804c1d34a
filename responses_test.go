package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// canned is a response that is sent to every request.
type canned struct {
	status int
	body   func() io.Reader
}

// clientOf is a client whose every request gets one response, but for GET /1.0
// where that is not what is tested.
func clientOf(t *testing.T, c canned) *lxd.Client {
	t.Helper()
	return testkit.NewClient(t, "unix:///nowhere", &lxd.Options{
		RetryTimeout: -1,
		Transport: func(http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				res := &http.Response{StatusCode: c.status, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: -1, Request: req}
				body := c.body()
				if req.URL.Path == "/1.0" {
					res.StatusCode, body = http.StatusOK, strings.NewReader(serverSaying(`"image_registries","image_force_refresh"`))
				}
				res.Body = io.NopCloser(body)
				return res, nil
			})
		},
	})
}

func serverSaying(extensions string) string {
	return `{"type":"sync","metadata":{"api_version":"1.0","auth":"trusted","api_extensions":[` + extensions + `]}}`
}

func text(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }

var (
	oneFingerprint   = strings.Repeat("1a", 32)
	otherFingerprint = strings.Repeat("2b", 32)
)

// things are the calls that read or change one thing; lists those that list.
var (
	things = map[string]func(context.Context, *lxd.Client) error{
		"Images.Get": func(ctx context.Context, c *lxd.Client) error {
			_, err := c.Images.Get(ctx, oneFingerprint)
			return err
		},
		"prefix": func(ctx context.Context, c *lxd.Client) error {
			_, err := c.Images.Get(ctx, "1a1a1a1a1a1a")
			return err
		},
		"GetWithSecret": func(ctx context.Context, c *lxd.Client) error {
			_, err := c.Images.GetWithSecret(ctx, oneFingerprint, "s")
			return err
		},
		"GetByAlias":  func(ctx context.Context, c *lxd.Client) error { _, err := c.Images.GetByAlias(ctx, "web"); return err },
		"Aliases.Get": func(ctx context.Context, c *lxd.Client) error { _, err := c.Aliases.Get(ctx, "web"); return err },
		"Registries.Get": func(ctx context.Context, c *lxd.Client) error {
			_, err := c.Registries.Get(ctx, "web")
			return err
		},
	}
	lists = map[string]func(context.Context, *lxd.Client) (int, error){
		"Images.All": func(ctx context.Context, c *lxd.Client) (int, error) {
			images, err := c.Images.All(ctx, nil)
			return len(images), err
		},
		"Images.Each": func(ctx context.Context, c *lxd.Client) (n int, err error) {
			for _, err := range c.Images.Each(ctx, nil) {
				if err != nil {
					return n, err
				}
				n++
			}
			return n, nil
		},
		"Aliases.All": func(ctx context.Context, c *lxd.Client) (int, error) {
			aliases, err := c.Aliases.All(ctx)
			return len(aliases), err
		},
		"Registries.All": func(ctx context.Context, c *lxd.Client) (int, error) {
			registries, err := c.Registries.All(ctx)
			return len(registries), err
		},
		"Operations": func(ctx context.Context, c *lxd.Client) (int, error) {
			operations, err := c.Operations(ctx)
			return len(operations), err
		},
	}
	changes = map[string]func(context.Context, *lxd.Client) error{
		"Aliases.Create": func(ctx context.Context, c *lxd.Client) error {
			return c.Aliases.Create(ctx, lxd.Alias{Name: "web", Target: oneFingerprint})
		},
		"Aliases.Set": func(ctx context.Context, c *lxd.Client) error {
			return c.Aliases.Set(ctx, lxd.Alias{Name: "web", Target: oneFingerprint})
		},
		"Aliases.Rename": func(ctx context.Context, c *lxd.Client) error { return c.Aliases.Rename(ctx, "web", "new") },
		"Aliases.Delete": func(ctx context.Context, c *lxd.Client) error { return c.Aliases.Delete(ctx, "web") },
	}
)

// TestResponsesOfTheWrongKind: none is a success, and none says that something
// is not there.
func TestResponsesOfTheWrongKind(t *testing.T) {
	t.Parallel()
	const operation = `{"type":"async","status_code":100,"operation":"/1.0/operations/x","metadata":{"id":"x","status_code":103}}`
	image := `{"type":"sync","status_code":200,"metadata":{"fingerprint":"` + oneFingerprint + `"}}`
	ctx := t.Context()
	refuse := func(t *testing.T, c canned, calls map[string]func(context.Context, *lxd.Client) error) {
		t.Helper()
		for name, call := range calls {
			err := call(ctx, clientOf(t, c))
			require.ErrorIs(t, err, lxd.ErrBadResponse, name)
			for _, meaning := range []error{lxd.ErrNotFound, lxd.ErrExists, lxd.ErrConflict, lxd.ErrUnsupported, lxd.ErrAmbiguous} {
				require.NotErrorIs(t, err, meaning, name)
			}
		}
	}
	listing := map[string]func(context.Context, *lxd.Client) error{}
	for name, list := range lists {
		listing[name] = func(ctx context.Context, c *lxd.Client) error { _, err := list(ctx, c); return err }
	}
	for name, c := range map[string]canned{
		"success under 500":  {500, text(image)},
		"success under 404":  {404, text(image)},
		"success under 302":  {302, text(image)},
		"operation":          {202, text(operation)},
		"null":               {200, text(`{"type":"sync","metadata":null}`)},
		"nothing":            {200, text(`{"type":"sync"}`)},
		"text":               {200, text(`{"type":"sync","metadata":"x"}`)},
		"number":             {200, text(`{"type":"sync","metadata":1}`)},
		"wrong fields":       {200, text(`{"type":"sync","metadata":{"fingerprint":1,"name":[],"id":{}}}`)},
		"failed in itself":   {200, text(`{"type":"sync","status_code":400,"metadata":{"fingerprint":"` + oneFingerprint + `"}}`)},
		"204":                {204, text("")},
		"a page that is 400": {400, text("<html>")},
		"a page that is 404": {404, text("<html>")},
		"a page that is 409": {409, text("<html>")},
		"a page that is 501": {501, text("<html>")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refuse(t, c, things)
			refuse(t, c, listing)
			if c.status != http.StatusOK || name == "failed in itself" {
				refuse(t, c, changes)
			}
		})
	}
	for name, list := range lists {
		c := listOf(name, element[name], 0)
		c.status = http.StatusInternalServerError
		n, err := list(ctx, clientOf(t, c))
		require.ErrorIs(t, err, lxd.ErrBadResponse, name)
		require.Zero(t, n, name)
	}
	refuse(t, canned{200, text(`{"type":"sync","metadata":{}}`)}, things)
	for _, element := range []string{`{}`, `null`, `1`, `"x"`, `{"fingerprint":"1a1a"}`, `{"name":"web"}`, `{"name":"","target":"` + oneFingerprint + `"}`} {
		for name, list := range lists {
			elements, bad := `[`+element+`]`, true
			switch name {
			case "Operations":
				elements = `{"running":` + elements + `}`
			case "Registries.All":
				bad = element != `{"name":"web"}`
			}
			_, err := list(ctx, clientOf(t, canned{200, text(`{"type":"sync","metadata":` + elements + `}`)}))
			if bad {
				require.ErrorIs(t, err, lxd.ErrBadResponse, name+element)
			} else {
				require.NoError(t, err)
			}
		}
	}
	// What starts an operation takes nothing else.
	for _, c := range []canned{
		{200, text(image)}, {200, text(`{"type":"sync","metadata":{"id":"x"}}`)}, {500, text(operation)}, {202, text(`{"type":"async","metadata":null}`)},
		{202, text(`{"type":"async","metadata":{}}`)}, {204, text("")},
	} {
		_, err := clientOf(t, c).Images.CreateFromInstance(ctx, "web", nil)
		require.ErrorIs(t, err, lxd.ErrBadResponse)
	}
	// A server that does not say whether it trusts the client is none.
	for _, metadata := range []string{`{}`, `null`, `[]`, `{"auth":1}`} {
		c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"type":"sync","metadata":` + metadata + `}`)), Request: req}, nil
			})
		}})
		_, err := c.Server(ctx)
		require.ErrorIs(t, err, lxd.ErrBadResponse)
	}
	// A proxy whose server is away says so, whatever it sends.
	for _, body := range []string{image, operation, "<html>"} {
		_, err := clientOf(t, canned{502, text(body)}).Images.Get(ctx, oneFingerprint)
		require.ErrorIs(t, err, lxd.ErrUnavailable)
	}
}

// TestAnotherThingIsNotTaken: what comes back is what was asked for.
func TestAnotherThingIsNotTaken(t *testing.T) {
	t.Parallel()
	metadata := func(s string) canned { return canned{200, text(`{"type":"sync","metadata":` + s + `}`)} }
	image := `{"fingerprint":"` + otherFingerprint + `","name":"other","target":"` + otherFingerprint + `"}`
	for name, call := range things {
		err := call(t.Context(), clientOf(t, metadata(image)))
		require.ErrorIs(t, err, lxd.ErrBadResponse, name)
		switch name {
		case "Images.Get", "GetWithSecret":
			require.ErrorContains(t, err, oneFingerprint)
			require.ErrorContains(t, err, otherFingerprint)
		case "Aliases.Get", "GetByAlias", "Registries.Get":
			require.ErrorContains(t, err, `"other"`)
			require.ErrorContains(t, err, `"web"`)
		}
	}
	// An alias of the right name, whose target's image is not what comes.
	_, err := clientOf(t, metadata(`{"fingerprint":"`+otherFingerprint+`","name":"web","target":"`+oneFingerprint+`"}`)).Images.GetByAlias(t.Context(), "web")
	require.ErrorIs(t, err, lxd.ErrBadResponse)
	require.ErrorContains(t, err, otherFingerprint)
	// An alias whose target is not whole.
	_, err = clientOf(t, metadata(`{"name":"web","target":"1a1a"}`)).Aliases.Get(t.Context(), "web")
	require.ErrorIs(t, err, lxd.ErrBadResponse)

	// A profile of another name.
	_, err = clientOf(t, metadata(`{"name":"other"}`)).Images.CreateFromURL(t.Context(), "http://127.0.0.1:1/x", &lxd.CreateFromURLOptions{Profiles: []string{"web"}})
	require.ErrorIs(t, err, lxd.ErrBadResponse)

	// An operation of another id.
	ops, err := clientOf(t, metadata(`{"running":[{"id":"one","status_code":103}]}`)).Operations(t.Context())
	require.NoError(t, err)
	require.Len(t, ops, 1)
	var other atomic.Value
	other.Store(`{"type":"sync","metadata":{"running":[{"id":"one","status_code":103}]}}`)
	c := clientOf(t, canned{200, func() io.Reader { return strings.NewReader(other.Load().(string)) }})
	ops, err = c.Operations(t.Context())
	require.NoError(t, err)
	other.Store(`{"type":"sync","metadata":{"id":"two","status_code":200}}`)
	_, err = ops[0].Refresh(t.Context())
	require.ErrorIs(t, err, lxd.ErrBadResponse)
	require.ErrorContains(t, err, "one")
	require.ErrorContains(t, err, "two")
	require.ErrorIs(t, ops[0].Wait(t.Context()), lxd.ErrBadResponse)
}

// rewriting is a server's client behind something that changes what it sends,
// and what comes back.
func rewriting(t *testing.T, endpoint string, request func(*http.Request), response func(*http.Request, []byte) []byte) *lxd.Client {
	t.Helper()
	return testkit.NewClient(t, endpoint, &lxd.Options{Transport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if request != nil {
				req = req.Clone(req.Context())
				request(req)
			}
			res, err := next.RoundTrip(req)
			if err != nil || response == nil || res.Header.Get("Content-Type") != "application/json" {
				return res, err
			}
			data, err := io.ReadAll(res.Body)
			if err != nil {
				return nil, err
			}
			_ = res.Body.Close()
			data = response(req, data)
			res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
			return res, nil
		})
	}})
}

// TestFingerprintsInUpperCase: something on the way writes them so.
func TestFingerprintsInUpperCase(t *testing.T) {
	t.Parallel()
	s := testkit.StartFake(t)
	data := testkit.Unified(t, 1000)
	fingerprint := lxdtest.Fingerprint(data)
	c := rewriting(t, s.Endpoint(), nil, func(_ *http.Request, body []byte) []byte {
		return bytes.ReplaceAll(body, []byte(`"`+fingerprint), []byte(`"`+strings.ToUpper(fingerprint)))
	})
	for _, opts := range []*lxd.CreateOptions{{Verify: true}, {Fingerprint: fingerprint}, {Dedupe: true, Aliases: []lxd.Alias{{Name: "web"}}}} {
		opts.Wait = true
		image, err := c.Images.Create(t.Context(), bytes.NewReader(data), opts)
		require.NoError(t, err)
		require.Equal(t, fingerprint, image.Fingerprint)
	}
	alias, err := c.Aliases.Get(t.Context(), "web")
	require.NoError(t, err)
	require.Equal(t, fingerprint, alias.Target)
	image, err := c.Images.GetByAlias(t.Context(), "web")
	require.NoError(t, err)
	require.Equal(t, fingerprint, image.Fingerprint)
	all, err := c.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, []string{fingerprint}, testkit.Fingerprints(all))
	got, err := readExport(t, image)
	require.NoError(t, err)
	require.Equal(t, data, got)
	require.NoError(t, image.DeleteAlias(t.Context(), "web"))
}

// TestUploadOfAnotherImage: the fingerprint that pins an upload is lost on the
// way, so that the server verifies nothing. What it made then is not left
// behind, and what was there before is.
func TestUploadOfAnotherImage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testkit.StartFake(t)
	data := testkit.Unified(t, 1000)
	fingerprint := lxdtest.Fingerprint(data)
	before, err := s.AddImage(testkit.Unified(t, 2000), nil)
	require.NoError(t, err)
	lost := func(req *http.Request) {
		for name := range req.Header {
			if strings.HasSuffix(strings.ToLower(name), "-fingerprint") {
				req.Header.Del(name)
			}
		}
	}
	proxied := rewriting(t, s.Endpoint(), lost, nil)
	for _, wait := range []bool{true, false} {
		for name, reader := range map[string]io.Reader{"file": bytes.NewReader(data), "one-shot": testkit.OneShotReader{Reader: bytes.NewReader(data)}} {
			for _, verify := range []bool{true, false} {
				if seeker, ok := reader.(io.Seeker); ok {
					_, err := seeker.Seek(0, io.SeekStart)
					require.NoError(t, err)
				} else {
					reader = testkit.OneShotReader{Reader: bytes.NewReader(data)}
				}
				image, err := proxied.Images.Create(ctx, reader, &lxd.CreateOptions{Fingerprint: oneFingerprint, Verify: verify, Wait: wait})
				if !wait {
					require.NoError(t, err, name)
					err = image.Wait(ctx)
				}
				mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
				require.Equal(t, oneFingerprint, mismatch.Want, name)
				require.Equal(t, fingerprint, mismatch.Got, name)
				require.Len(t, s.Images(), 1, name)
			}
		}
	}

	// The server tells of an image that was there before.
	silent := false
	began := regexp.MustCompile(`"created_at":"[^"]*"`)
	lying := func(told string) *lxd.Client {
		return rewriting(t, s.Endpoint(), lost, func(req *http.Request, body []byte) []byte {
			if strings.Contains(req.URL.Path, "/operations/") {
				body = bytes.ReplaceAll(body, []byte(fingerprint), []byte(told))
			}
			if strings.Contains(req.URL.Path, "/operations/") && told == before && silent {
				body = began.ReplaceAll(body, nil)
				body = bytes.ReplaceAll(body, []byte(`,,`), []byte(`,`))
			}
			return body
		})
	}
	for _, opts := range []*lxd.CreateOptions{{Fingerprint: fingerprint}, {Verify: true}} {
		opts.Wait = true
		silent = !silent // when the operation began
		for _, told := range []string{before, "../" + before[3:], "1a1a"} {
			_, err := lying(told).Images.Create(ctx, bytes.NewReader(data), opts)
			mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
			require.Equal(t, fingerprint, mismatch.Want)
			require.Equal(t, told, mismatch.Got)
			require.NotErrorIs(t, err, lxd.ErrInvalid, "nobody asks for it")
			_, there := s.Image(before)
			require.True(t, there, "it is somebody else's")
			image, err := s.Client.Images.Get(ctx, fingerprint)
			require.NoError(t, err)
			require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
		}
	}
	// The server says that it has what was asked for, and was sent another.
	claimed := rewriting(t, s.Endpoint(), lost, func(req *http.Request, body []byte) []byte {
		return bytes.ReplaceAll(body, []byte(fingerprint), []byte(oneFingerprint))
	})
	_, err = claimed.Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Fingerprint: oneFingerprint, Verify: true, Wait: true})
	lie := testkit.ErrOf[*lxd.FingerprintError](t, err)
	require.Equal(t, []string{fingerprint, oneFingerprint}, []string{lie.Want, lie.Got})
	made, err := s.Client.Images.Get(ctx, fingerprint)
	require.NoError(t, err)
	require.NoError(t, made.Delete(ctx, &lxd.DeleteOptions{Wait: true}))

	// Nothing pins it, and what is told is no fingerprint.
	_, err = lying("1a1a").Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.ErrorIs(t, err, lxd.ErrBadResponse)

	// The upload has failed since the content is there; what is told is another.
	_, err = lying(before).Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Verify: true, Wait: true})
	mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
	require.Equal(t, []string{fingerprint, before}, []string{mismatch.Want, mismatch.Got})
	require.Len(t, s.Images(), 2)
}

// TestCopyOfAnotherImage: the source gives other content than the image's, and
// the target is not told what it should be.
func TestCopyOfAnotherImage(t *testing.T) {
	t.Parallel()
	source, target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil), testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	data, otherData := testkit.Unified(t, 1000), testkit.Unified(t, 1000)
	fingerprint, err := source.AddImage(data, nil)
	require.NoError(t, err)
	_, err = source.AddImage(otherData, nil)
	require.NoError(t, err)
	other := lxdtest.Fingerprint(otherData)
	// Every request and response about the image is about the other one.
	from := rewriting(t, source.Endpoint(), func(req *http.Request) {
		req.URL.Path = strings.ReplaceAll(req.URL.Path, fingerprint, other)
	}, func(_ *http.Request, body []byte) []byte {
		return bytes.ReplaceAll(body, []byte(other), []byte(fingerprint))
	})
	image, err := from.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	to := rewriting(t, target.Endpoint(), func(req *http.Request) { req.Header.Del("X-LXD-fingerprint") }, nil)
	for _, wait := range []bool{true, false} {
		copied, err := image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: wait})
		if !wait {
			require.NoError(t, err)
			err = copied.Wait(t.Context())
		}
		mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
		require.Equal(t, []string{fingerprint, other}, []string{mismatch.Want, mismatch.Got})
		require.Empty(t, target.Images())
	}
	// A target that pulls another image than it was told to.
	pulled := rewriting(t, target.Endpoint(), func(req *http.Request) {
		if req.Method == http.MethodPost && req.URL.Path == "/1.0/images" {
			body, err := io.ReadAll(req.Body)
			if err == nil {
				body = bytes.ReplaceAll(body, []byte(fingerprint), []byte(other))
			}
			req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
	}, nil)
	for _, fp := range []string{fingerprint, other} {
		public, err := source.Client.Images.Get(t.Context(), fp)
		require.NoError(t, err)
		public.Public = true
		require.NoError(t, public.Update(t.Context(), nil))
	}
	image, err = source.Client.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	_, err = image.Copy(t.Context(), pulled, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
	mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
	require.Equal(t, []string{fingerprint, other}, []string{mismatch.Want, mismatch.Got})
	require.Empty(t, target.Images())
}

// TestImportOfAnotherImage: an import by a whole fingerprint takes no other.
func TestImportOfAnotherImage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	target := importFake(t, lxdtest.LXD50, importOptions())
	source := importStreams(t, tree(t, "both", nil))["http"]
	opts := target.streamsFrom(source)
	opts.Via = lxd.ViaServer
	var known []string
	for _, alias := range []string{"distro", "unified"} {
		image, err := target.client.Images.CreateFromSimplestreams(ctx, source.URL, alias, opts)
		require.NoError(t, err)
		known = append(known, image.Fingerprint)
		require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
	}
	replaced := rewriting(t, target.fake.Endpoint(), func(req *http.Request) {
		if req.Method == http.MethodPost && req.URL.Path == "/1.0/images" {
			body, err := io.ReadAll(req.Body)
			if err == nil {
				body = bytes.ReplaceAll(body, []byte(known[0]), []byte(known[1]))
			}
			req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
	}, nil)
	_, err := replaced.Images.CreateFromSimplestreams(ctx, source.URL, known[0], opts)
	mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
	require.Equal(t, known, []string{mismatch.Want, mismatch.Got})
	target.requireEmpty(t)
	image, err := target.client.Images.CreateFromSimplestreams(ctx, source.URL, known[0], opts)
	require.NoError(t, err)
	require.Equal(t, known[0], image.Fingerprint)
	require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
}

// TestRetryStartsAfresh: nothing of a response that was cut is left in the next.
func TestRetryStartsAfresh(t *testing.T) {
	t.Parallel()
	start := `{"type":"sync","metadata":{"fingerprint":"` + oneFingerprint + `","properties":{`
	bodies := []io.Reader{
		io.MultiReader(strings.NewReader(start+`"old":"1"},"public":true,`), iotest.ErrReader(io.ErrUnexpectedEOF)),
		strings.NewReader(start + `"new":"2"}}}`),
	}
	c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			body := bodies[0]
			bodies = bodies[1:]
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(body), Request: req}, nil
		})
	}})
	image, err := c.Images.Get(t.Context(), oneFingerprint)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"new": "2"}, image.Properties)
	require.False(t, image.Public)
}

// repeated is a body of about that many bytes, of one element again and again.
func repeated(start, element, end string, size int64) func() io.Reader {
	return func() io.Reader {
		block := strings.Repeat(element+",", max(1, (64<<10)/(len(element)+1)))
		n := size/int64(len(block)) + 1
		return io.MultiReader(strings.NewReader(start), &repeater{block: block, left: n}, strings.NewReader(element+end))
	}
}

type repeater struct {
	block string
	at    int
	left  int64
}

func (r *repeater) Read(p []byte) (n int, err error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n = copy(p, r.block[r.at:])
	if r.at += n; r.at == len(r.block) {
		r.at, r.left = 0, r.left-1
	}
	return n, nil
}

// element is the smallest that each list takes.
var element = map[string]string{
	"Images.All": `{"fingerprint":"` + oneFingerprint + `"}`, "Images.Each": `{"fingerprint":"` + oneFingerprint + `"}`,
	"Aliases.All": `{"name":"a","target":"` + oneFingerprint + `"}`, "Registries.All": `{"name":"a"}`, "Operations": `{"id":"a"}`,
}

func listOf(name, element string, size int64) canned {
	start, end := `{"type":"sync","metadata":[`, `]}`
	if name == "Operations" {
		start, end = `{"type":"sync","metadata":{"running":[`, `]}}`
	}
	return canned{200, repeated(start, element, end, size)}
}

// allocated measures what call takes: the bytes allocated in all, and how many
// of them are in use when it returns.
func allocated(call func()) (total, kept int64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	call()
	runtime.ReadMemStats(&after)
	total = int64(after.TotalAlloc - before.TotalAlloc)
	runtime.GC()
	runtime.ReadMemStats(&after)
	return total, int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

// TestListsAreOfElements feeds 8 MiB of what is no element to the lists.
func TestListsAreOfElements(t *testing.T) {
	for name, list := range lists {
		for _, element := range []string{`{}`, `null`} {
			c := clientOf(t, listOf(name, element, 8<<20))
			total, _ := allocated(func() {
				_, err := list(t.Context(), c)
				require.ErrorIs(t, err, lxd.ErrBadResponse, name)
			})
			require.Less(t, total, int64(1<<20), name)
		}
	}
}

// TestMemoryOfLists feeds 8 MiB of the smallest elements.
func TestMemoryOfLists(t *testing.T) {
	const size = 8 << 20
	for name, list := range lists {
		c := clientOf(t, listOf(name, element[name], size))
		var n int
		var err error
		total, _ := allocated(func() { n, err = list(t.Context(), c) })
		require.NoError(t, err, name)
		require.GreaterOrEqual(t, n, size/(len(element[name])+1), name)
		require.Less(t, total, int64(40*size), name)
		t.Logf("%s: %d elements of %d bytes, %.1f bytes allocated for each byte", name, n, len(element[name]), float64(total)/size)
	}
}

// counted counts what is read of a body.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// heavy is an element that no list keeps anything of, and that counts for more
// than 6 MiB: what is not known is skipped.
func heavy(element string) string {
	return strings.TrimSuffix(element, "}") + `,"unknown":[` + strings.Repeat("1,", 100_000) + `1]}`
}

// TestListsAreBounded: as a whole, unless nothing is kept of them, and in each
// element.
func TestListsAreBounded(t *testing.T) {
	for name, list := range lists {
		_, err := list(t.Context(), clientOf(t, listOf(name, heavy(element[name]), 64<<20)))
		if name == "Images.Each" {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, lxd.ErrTooLarge, name)
			require.ErrorIs(t, err, lxd.ErrBadResponse, name)
		}
		for _, large := range []string{
			strings.TrimSuffix(element[name], "}") + `,"unknown":"` + strings.Repeat("x", 17<<20) + `"}`,
			strings.TrimSuffix(element[name], "}") + `,"unknown":[` + strings.Repeat("1,", 300_000) + `1]}`,
		} {
			_, err = list(t.Context(), clientOf(t, listOf(name, large, 0)))
			require.ErrorIs(t, err, lxd.ErrTooLarge, name)
		}
	}
	// The list that tells whether a prefix is ambiguous.
	var read atomic.Int64
	c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: req}
			body := repeated(`{"type":"sync","metadata":[`, `""`, `]}`, 64<<20)()
			if req.URL.Path != "/1.0/images" {
				res.StatusCode, body = http.StatusInternalServerError, strings.NewReader(`{"type":"error","error_code":500,"error":"which one?"}`)
			}
			res.Body = io.NopCloser(counted{body, &read})
			return res, nil
		})
	}})
	total, _ := allocated(func() {
		_, err := c.Images.Get(t.Context(), "1a1a")
		require.ErrorContains(t, err, "which one?")
	})
	require.Less(t, read.Load(), int64(40<<20))
	require.Less(t, total, int64(1<<20))
}

// TestManyValuesInOneThing: small values in a response take far more memory than
// bytes.
func TestManyValuesInOneThing(t *testing.T) {
	for _, member := range []string{"aliases", "profiles", "metadata", "unknown"} {
		value := map[string]string{"aliases": "{}", "profiles": `""`, "metadata": "[]", "unknown": "1"}[member]
		many := repeated(`{"type":"sync","metadata":{"fingerprint":"`+oneFingerprint+`","`+member+`":[`, value, `]}}`, 8<<20)
		total, _ := allocated(func() {
			_, err := clientOf(t, canned{200, many}).Images.Get(t.Context(), oneFingerprint)
			require.ErrorIs(t, err, lxd.ErrTooLarge)
		})
		require.Less(t, total, int64(128<<20), member)
	}
}

// TestBodyThatDoesNotEnd: an envelope that came whole is a success soon, however
// long the body is kept open.
func TestBodyThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	for _, length := range []string{"", "1000000"} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			_, _ = io.WriteString(w, `{"type":"sync","metadata":{"name":"web","target":"`+oneFingerprint+`"}}`)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
		c := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw)})
		started := time.Now()
		alias, err := c.Aliases.Get(t.Context(), "web")
		require.NoError(t, err)
		require.Equal(t, "web", alias.Name)
		require.Less(t, time.Since(started), time.Second)
		server.Close()
	}
}

// TestEventsAreBounded: one that is too large ends the loop.
func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		filler   string
		tooLarge bool
	}{
		"one MiB":     {`"` + strings.Repeat("x", 1<<20) + `"`, false},
		"no end":      {"", true},
		"many values": {`[` + strings.Repeat("[],", 300_000) + `1]`, true},
	} {
		var sent atomic.Int64
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			const event = `{"type":"operation","metadata":{"id":"x","metadata":{"filler":`
			if c.filler == "" {
				out, err := conn.NextWriter(websocket.TextMessage)
				for n, block := 0, []byte(event+`"`+strings.Repeat("x", 64<<10)); err == nil && n < 256<<20; {
					_, err = out.Write(block)
					n += len(block)
					sent.Store(int64(n))
				}
				return
			}
			_ = conn.WriteMessage(websocket.TextMessage, []byte(event+c.filler+`}}}`))
			_, _, _ = conn.ReadMessage() // until the client goes
		}))
		client := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw)})
		var events []lxd.EventType
		var err error
		for event, eventErr := range client.Events(t.Context(), nil) {
			if eventErr != nil {
				err = eventErr
				break
			}
			events = append(events, event.Type)
			if event.Type == lxd.EventOperation || len(events) == 3 {
				break
			}
		}
		if c.tooLarge {
			require.ErrorIs(t, err, lxd.ErrTooLarge, name)
			require.Less(t, sent.Load(), int64(64<<20), name)
			require.Equal(t, []lxd.EventType{lxd.EventConnected}, events, name)
		} else {
			require.NoError(t, err, name)
			require.Equal(t, []lxd.EventType{lxd.EventConnected, lxd.EventOperation}, events, name)
		}
		require.NoError(t, client.Close())
		server.Close()
	}
}

// tracked counts the bodies that are open.
type tracked struct {
	io.ReadCloser
	once sync.Once
	open *atomic.Int64
}

func (b *tracked) Close() error {
	b.once.Do(func() { b.open.Add(-1) })
	return b.ReadCloser.Close()
}

// TestResponsesAreClosed: successes, refusals and what is not understood, and
// the response to an upload that nobody waits for any more.
func TestResponsesAreClosed(t *testing.T) {
	t.Parallel()
	s := testkit.StartFake(t)
	var open, seen atomic.Int64
	late := make(chan struct{})
	c := testkit.NewClient(t, s.Endpoint(), &lxd.Options{RetryTimeout: -1, Transport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.Header.Get("Content-Type") == "application/octet-stream" {
				<-late
				body := &tracked{ReadCloser: io.NopCloser(strings.NewReader("{}")), open: &open}
				open.Add(1)
				seen.Add(1)
				return &http.Response{StatusCode: 202, Header: http.Header{}, Body: body, Request: req}, nil
			}
			res, err := next.RoundTrip(req)
			if err == nil {
				res.Body = &tracked{ReadCloser: res.Body, open: &open}
				open.Add(1)
				seen.Add(1)
			}
			return res, err
		})
	}})
	ctx := t.Context()
	fingerprint, err := s.AddImage(testkit.Unified(t, 1000), nil)
	require.NoError(t, err)
	image, err := c.Images.Get(ctx, fingerprint)
	require.NoError(t, err)
	_, err = c.Images.Get(ctx, oneFingerprint)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	for range c.Images.Each(ctx, nil) {
		break
	}
	_, err = readExport(t, image)
	require.NoError(t, err)
	for _, fault := range []lxdtest.Fault{lxdtest.HTML(), lxdtest.EndlessJSON(), lxdtest.Status(404, "no"), lxdtest.Status(503, "later"), lxdtest.Redirect("https://elsewhere.invalid/")} {
		injected := s.Inject(fault)
		_, err = c.Images.Get(ctx, fingerprint)
		require.Error(t, err)
		_, err = image.Export(ctx, nil)
		require.Error(t, err)
		injected.Remove()
	}
	require.Zero(t, open.Load())
	require.Greater(t, seen.Load(), int64(10))

	ended, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = c.Images.Create(ended, bytes.NewReader(testkit.Unified(t, 1000)), nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	before := seen.Load()
	close(late)
	require.Eventually(t, func() bool { return seen.Load() == before+1 && open.Load() == 0 }, 5*time.Second, time.Millisecond)
}

// TestEachIsNotSentAgain: what was yielded cannot be taken back.
func TestEachIsNotSentAgain(t *testing.T) {
	t.Parallel()
	for _, images := range []int{0, 1} {
		var requests atomic.Int64
		c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{RetryTimeout: shortRetries, Transport: func(http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				requests.Add(1)
				cut := io.MultiReader(strings.NewReader(`{"type":"sync","metadata":[`+strings.Repeat(element["Images.Each"]+",", images)), iotest.ErrReader(io.ErrUnexpectedEOF))
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(cut), Request: req}, nil
			})
		}})
		n, err := lists["Images.Each"](t.Context(), c)
		require.Equal(t, images, n)
		require.ErrorIs(t, err, lxd.ErrUnavailable)
		if images == 0 {
			require.Greater(t, requests.Load(), int64(1))
		} else {
			require.EqualValues(t, 1, requests.Load())
		}
	}
}

// TestListsTellTrust: only the public images are never taken for all of them.
func TestListsTellTrust(t *testing.T) {
	t.Parallel()
	public := `{"type":"sync","metadata":[{"fingerprint":"` + oneFingerprint + `","public":true}]}`
	private := `{"type":"sync","metadata":[{"fingerprint":"` + oneFingerprint + `"}]}`
	for name, test := range map[string]struct {
		list, auth string
		publicOnly bool
		forbidden  bool
	}{
		"public images of one that does not trust":   {public, "untrusted", false, true},
		"none of one that does not trust":            {`{"type":"sync","metadata":[]}`, "untrusted", false, true},
		"public images of one that trusts":           {public, "trusted", false, false},
		"a private one":                              {private, "untrusted", false, false},
		"public images, which is what was asked for": {public, "untrusted", true, false},
	} {
		var demanded, asked atomic.Bool
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/1.0" {
				asked.Store(true)
				_, _ = io.WriteString(w, `{"type":"sync","metadata":{"auth":"`+test.auth+`"}}`)
				return
			}
			demanded.Store(r.Header.Get("X-LXD-authenticated") == "true" && r.Header.Get("X-Incus-authenticated") == "true")
			_, _ = io.WriteString(w, test.list)
		}))
		c := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw), PublicOnly: test.publicOnly})
		for _, list := range []string{"Images.All", "Images.Each"} {
			_, err := lists[list](t.Context(), c)
			if test.forbidden {
				require.ErrorIs(t, err, lxd.ErrForbidden, name)
			} else {
				require.NoError(t, err, name)
			}
			require.Equal(t, !test.publicOnly, demanded.Load(), name)
			require.Equal(t, !test.publicOnly && test.list != private, asked.Load(), name)
		}
		server.Close()
	}
}

// TestRefusalsAreForbidden: of a client that is not known, and of one that may
// not.
func TestRefusalsAreForbidden(t *testing.T) {
	t.Parallel()
	for _, status := range []int{401, 403} {
		_, err := clientOf(t, canned{status, text(fmt.Sprintf(`{"type":"error","error":"no","error_code":%d}`, status))}).Images.Get(t.Context(), oneFingerprint)
		require.ErrorIs(t, err, lxd.ErrForbidden)
		require.Equal(t, status == 401, errors.Is(err, lxd.ErrUnauthorized))
	}
}

// TestDotsAreNames: an alias of dots is no way to another path.
func TestDotsAreNames(t *testing.T) {
	t.Parallel()
	var got []string
	c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			got = append(got, req.URL.EscapedPath())
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"type":"sync","metadata":{}}`)), Request: req}, nil
		})
	}})
	for _, name := range []string{".", "..", "../..", "...", "a/../b"} {
		require.NoError(t, c.Aliases.Delete(t.Context(), name))
	}
	require.Equal(t, []string{
		"/1.0/images/aliases/%2E", "/1.0/images/aliases/%2E%2E", "/1.0/images/aliases/..%2F..", "/1.0/images/aliases/...", "/1.0/images/aliases/a%2F..%2Fb",
	}, got)
}

// TestRegistriesByOperation: LXD's later versions make and delete registries in
// the background.
func TestRegistriesByOperation(t *testing.T) {
	t.Parallel()
	outcome := `"status_code":200`
	c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			res := &http.Response{StatusCode: 200, Header: http.Header{}, Request: req}
			body := serverSaying(`"image_registries"`)
			switch req.URL.Path {
			case "/1.0/image-registries", "/1.0/image-registries/web":
				res.StatusCode, body = 202, `{"type":"async","status_code":100,"operation":"/1.0/operations/one?project=default","metadata":{"id":"one","status_code":103}}`
			case "/1.0/operations/one/wait":
				body = `{"type":"sync","status_code":200,"metadata":{"id":"one",` + outcome + `}}`
			}
			res.Body = io.NopCloser(strings.NewReader(body))
			return res, nil
		})
	}})
	registry := lxd.Registry{Name: "web", Protocol: "simplestreams", Config: map[string]string{"url": "https://images.example.net"}}
	require.NoError(t, c.Registries.Create(t.Context(), registry))
	require.NoError(t, c.Registries.Delete(t.Context(), "web"))
	outcome = `"status_code":400,"err":"it has no room"`
	require.ErrorContains(t, c.Registries.Create(t.Context(), registry), "it has no room")
	require.ErrorContains(t, c.Registries.Delete(t.Context(), "web"), "it has no room")
}
