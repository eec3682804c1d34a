package lxd_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
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
	return newClient(t, "unix:///nowhere", &lxd.Options{
		Retries: -1,
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
			for _, meaning := range []error{lxd.ErrNotFound, lxd.ErrExists, lxd.ErrConflict, lxd.ErrUnsupported} {
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
		c := newClient(t, "unix:///nowhere", &lxd.Options{Transport: func(http.RoundTripper) http.RoundTripper {
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
	return newClient(t, endpoint, &lxd.Options{Transport: func(next http.RoundTripper) http.RoundTripper {
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
	s := startFake(t)
	data := unified(t, 1000)
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
	require.Equal(t, []string{fingerprint}, fingerprints(all))
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
	s := startFake(t)
	data := unified(t, 1000)
	fingerprint := lxdtest.Fingerprint(data)
	before, err := s.AddImage(unified(t, 2000), nil)
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
		for name, reader := range map[string]io.Reader{"file": bytes.NewReader(data), "one-shot": onlyReader{bytes.NewReader(data)}} {
			for _, verify := range []bool{true, false} {
				if seeker, ok := reader.(io.Seeker); ok {
					_, err := seeker.Seek(0, io.SeekStart)
					require.NoError(t, err)
				} else {
					reader = onlyReader{bytes.NewReader(data)}
				}
				image, err := proxied.Images.Create(ctx, reader, &lxd.CreateOptions{Fingerprint: oneFingerprint, Verify: verify, Wait: wait})
				if !wait {
					require.NoError(t, err, name)
					err = image.Wait(ctx)
				}
				mismatch := errOf[*lxd.FingerprintError](t, err)
				require.Equal(t, oneFingerprint, mismatch.Want, name)
				require.Equal(t, fingerprint, mismatch.Got, name)
				require.Len(t, s.Images(), 1, name)
			}
		}
	}

	// The server tells of an image that was there before.
	lying := func(told string) *lxd.Client {
		return rewriting(t, s.Endpoint(), lost, func(req *http.Request, body []byte) []byte {
			if strings.Contains(req.URL.Path, "/operations/") {
				return bytes.ReplaceAll(body, []byte(fingerprint), []byte(told))
			}
			return body
		})
	}
	for _, opts := range []*lxd.CreateOptions{{Fingerprint: fingerprint}, {Verify: true}} {
		opts.Wait = true
		for _, told := range []string{before, "../" + before[3:], "1a1a"} {
			_, err := lying(told).Images.Create(ctx, bytes.NewReader(data), opts)
			mismatch := errOf[*lxd.FingerprintError](t, err)
			require.Equal(t, fingerprint, mismatch.Want)
			require.Equal(t, told, mismatch.Got)
			_, there := s.Image(before)
			require.True(t, there, "it is somebody else's")
			image, err := s.Client.Images.Get(ctx, fingerprint)
			require.NoError(t, err)
			require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
		}
	}
	// Nothing pins it, and what is told is no fingerprint.
	_, err = lying("1a1a").Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.ErrorIs(t, err, lxd.ErrBadResponse)

	// The upload has failed since the content is there; what is told is another.
	_, err = lying(before).Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Verify: true, Wait: true})
	mismatch := errOf[*lxd.FingerprintError](t, err)
	require.Equal(t, []string{fingerprint, before}, []string{mismatch.Want, mismatch.Got})
	require.Len(t, s.Images(), 2)
}

// TestCopyOfAnotherImage: the source gives other content than the image's, and
// the target is not told what it should be.
func TestCopyOfAnotherImage(t *testing.T) {
	t.Parallel()
	source, target := startFakeWith(t, &lxdtest.Options{TLS: true}, nil), startFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	data, otherData := unified(t, 1000), unified(t, 1000)
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
		mismatch := errOf[*lxd.FingerprintError](t, err)
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
	mismatch := errOf[*lxd.FingerprintError](t, err)
	require.Equal(t, []string{fingerprint, other}, []string{mismatch.Want, mismatch.Got})
	require.Empty(t, target.Images())
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
		t.Logf("%s: %d elements of %d bytes, %.1f bytes allocated for each byte", name, n, len(element[name]), float64(total)/size)
	}
}
