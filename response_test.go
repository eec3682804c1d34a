package lxd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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

// clientOf returns a client whose every request gets one response, except GET /1.0
// unless that is tested.
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

// TestResponsesOfTheWrongKind: none is a success, and none is an ErrNotFound.
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
	// A proxy whose server is unavailable: any body is an ErrUnavailable.
	for _, body := range []string{image, operation, "<html>"} {
		_, err := clientOf(t, canned{502, text(body)}).Images.Get(ctx, oneFingerprint)
		require.ErrorIs(t, err, lxd.ErrUnavailable)
	}
}

// TestAnotherThingIsRefused: a response must be the requested thing.
func TestAnotherThingIsRefused(t *testing.T) {
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

// rewriting returns a server's client whose requests and responses are changed on the
// way.
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

// TestFingerprintsInUpperCase: in responses they are accepted, and made lower case.
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

// element is the smallest element that each list accepts.
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

// TestListsAreOfElements sends 8 MiB of something other than elements.
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

// TestMemoryOfLists sends 2 MiB of the smallest elements.
func TestMemoryOfLists(t *testing.T) {
	const size = 2 << 20
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

// heavy is an element of which no list keeps anything, and that counts for more than
// 6 MiB: unknown fields are skipped.
func heavy(element string) string {
	return strings.TrimSuffix(element, "}") + `,"unknown":[` + strings.Repeat("1,", 100_000) + `1]}`
}

// TestListsAreBounded: the whole is limited, unless its elements are not kept, and so is
// each element.
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
	// The list that shows whether a prefix is ambiguous.
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

// TestManyValuesInOneThing: small values in a response need far more memory than
// their bytes.
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

// TestBodyThatDoesNotEnd: a complete envelope is a success soon, however long the
// body is kept open.
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
		require.Less(t, time.Since(started), patience)
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

// TestResponsesAreClosed: successes, errors, invalid responses, and the response to an
// upload that nobody waits for any more.
func TestResponsesAreClosed(t *testing.T) {
	t.Parallel()
	s := testkit.StartFake(t)
	var open, seen atomic.Int64
	uploading, late := make(chan struct{}), make(chan struct{})
	c := testkit.NewClient(t, s.Endpoint(), &lxd.Options{RetryTimeout: -1, Transport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.Header.Get("Content-Type") == "application/octet-stream" {
				close(uploading)
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

	ended, cancel := context.WithCancel(ctx)
	go func() {
		<-uploading
		cancel()
	}()
	_, err = c.Images.Create(ended, bytes.NewReader(testkit.Unified(t, 1000)), nil)
	require.ErrorIs(t, err, context.Canceled)
	before := seen.Load()
	close(late)
	require.Eventually(t, func() bool { return seen.Load() == before+1 && open.Load() == 0 }, patience, time.Millisecond)
}

// TestMetadataIsBounded sends responses without an end, each of a shape that
// decodes, and looks at the memory.
func TestMetadataIsBounded(t *testing.T) {
	var sent atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := `{"type":"sync","metadata":{"name":"`
		switch {
		case strings.Contains(r.URL.Path, "/operations/"):
			start = `{"type":"sync","metadata":{"id":"x","err":"`
		case strings.HasSuffix(r.URL.Path, "/missing"):
			start = `{"type":"error","error":"`
		}
		_, err := io.WriteString(w, start)
		sent.Store(0)
		for block := strings.Repeat("x", 64<<10); err == nil; {
			var n int
			n, err = io.WriteString(w, block)
			sent.Add(int64(n))
		}
	}))
	_ = server.Listener.Close()
	server.Listener = l
	server.StartTLS()
	t.Cleanup(server.Close)
	c := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw)})
	for name, call := range map[string]func() error{
		"alias":   func() error { _, err := c.Aliases.Get(t.Context(), "a"); return err },
		"refusal": func() error { _, err := c.Aliases.Get(t.Context(), "missing"); return err },
		"server":  func() error { _, err := c.Server(t.Context()); return err },
		"image":   func() error { _, err := c.Images.Get(t.Context(), "ab"); return err },
		"each": func() error {
			for _, err := range c.Images.Each(t.Context(), nil) {
				return err
			}
			return nil
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := call()
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, lxd.ErrBadResponse, name)
		require.Less(t, after.HeapSys, before.HeapSys+(256<<20), name)
		require.Less(t, sent.Load(), int64(64<<20), name)
	}
}
