package simplestreams_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// readAll downloads an image and returns its files one after the other.
func readAll(t *testing.T, client *simplestreams.Client, image *simplestreams.Image) []byte {
	t.Helper()
	content, err := download(t.Context(), client, image, nil)
	require.NoError(t, err)

	return content
}

func download(ctx context.Context, client *simplestreams.Client, image *simplestreams.Image, options *simplestreams.DownloadOptions) ([]byte, error) {
	d, err := client.Open(ctx, image, options)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	content, err := io.ReadAll(d.Metadata)
	if err != nil || d.Rootfs == nil {
		return content, err
	}
	root, err := io.ReadAll(d.Rootfs)

	return append(content, root...), err
}

// The files of big.
const (
	bigMeta = "images/big/20240101/lxd.tar.xz"
	bigRoot = "images/big/20240101/rootfs.squashfs"
)

// big serves a split image of a little more than 2 MiB.
func big(t *testing.T, change func(*simplestreams.Options)) (*streamstest.Server, *simplestreams.Client, *simplestreams.Image, []byte) {
	t.Helper()
	meta, root := make([]byte, 700), make([]byte, 2<<20+333)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(meta)
	_, _ = random.Read(root)
	server := serve(t, streamstest.Tree([]streamstest.Product{{Name: "big", Aliases: []string{"big"}, Versions: []streamstest.Version{
		{Serial: "20240101", Metadata: meta, Roots: map[string][]byte{"squashfs": root}},
	}}}, nil))
	client := newClient(t, server, change)
	image, err := client.Resolve(t.Context(), "big", nil)
	require.NoError(t, err)
	server.Requests()

	return server, client, image, append(bytes.Clone(meta), root...)
}

func TestDownloadEveryKind(t *testing.T) {
	for _, family := range []string{"lxd", "incus"} {
		server := serve(t, streamstest.Tree(products(family), nil))
		client := newClient(t, server, nil)
		for _, image := range all(t, client) {
			content := readAll(t, client, image)
			require.Equal(t, image.Fingerprint, streamstest.Hash(content))
			require.EqualValues(t, image.Size, len(content))
		}
	}
}

func TestDownloadInPieces(t *testing.T) {
	_, client, image, want := big(t, nil)
	d, err := client.Open(t.Context(), image, nil)
	require.NoError(t, err)
	defer d.Close()
	require.Equal(t, "lxd.tar.xz", d.Metadata.Name())
	require.Equal(t, "rootfs.squashfs", d.Rootfs.Name())
	require.EqualValues(t, len(want), d.Size)
	require.EqualValues(t, len(want)-700, d.Rootfs.Size())

	_, err = d.Rootfs.Read(make([]byte, 1))
	require.ErrorContains(t, err, "before the root filesystem")
	require.NoError(t, iotest.TestReader(iotest.OneByteReader(d.Metadata), want[:700]))
	n, err := d.Rootfs.Read(nil)
	require.NoError(t, err)
	require.Zero(t, n)
	rest, err := io.ReadAll(io.LimitReader(d.Rootfs, 1<<40))
	require.NoError(t, err)
	require.Equal(t, want[700:], rest)
	_, err = d.Rootfs.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err, "the end stays the end")
}

func TestProgress(t *testing.T) {
	_, client, image, want := big(t, nil)
	var last, calls int64
	_, err := download(t.Context(), client, image, &simplestreams.DownloadOptions{Progress: func(done, total int64) {
		require.Greater(t, done, last)
		require.EqualValues(t, len(want), total)
		last = done
		calls++
	}})
	require.NoError(t, err)
	require.EqualValues(t, len(want), last)
	require.Greater(t, calls, int64(2))
}

func TestResume(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault  streamstest.Fault
		ranges bool
	}{
		"cut once":            {streamstest.Times(1, streamstest.Cut(1<<20)), true},
		"cut again and again": {streamstest.Times(5, streamstest.Cut(300000)), true},
		"cut at once":         {streamstest.Times(2, streamstest.Cut(0)), false},
		"stalled":             {streamstest.Times(1, streamstest.Stall(1<<20)), true},
		"no headers":          {streamstest.Times(1, streamstest.Stall(-1)), false},
		"busy":                {streamstest.Times(2, streamstest.Status(http.StatusServiceUnavailable)), false},
		"no ranges":           {streamstest.Together(streamstest.Times(1, streamstest.Cut(1<<20)), streamstest.NoRanges()), true},
		"no etag":             {streamstest.Together(streamstest.Times(1, streamstest.Cut(1<<20)), streamstest.Header("ETag", "")), true},
		"cut without length":  {streamstest.Together(streamstest.Times(1, streamstest.Cut(1<<20)), streamstest.NoLength()), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, client, image, want := big(t, func(o *simplestreams.Options) {
				o.RetryTimeout = 0
				o.StallTimeout = time.Second
			})
			server.Fault(bigRoot, test.fault)
			require.Equal(t, want, readAll(t, client, image))
			resumed := false
			for _, request := range server.Requests() {
				resumed = resumed || request.Header.Get("Range") != ""
			}
			require.Equal(t, test.ranges, resumed)
		})
	}
}

func TestDownloadFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		path  string
		fault streamstest.Fault
		is    error
		says  string
	}{
		"missing":           {bigRoot, streamstest.Status(http.StatusNotFound), simplestreams.ErrNotFound, "HTTP 404"},
		"missing metadata":  {bigMeta, streamstest.Status(http.StatusNotFound), simplestreams.ErrNotFound, "HTTP 404"},
		"forbidden":         {bigRoot, streamstest.Status(http.StatusForbidden), nil, "HTTP 403: Forbidden"},
		"no content":        {bigRoot, streamstest.Status(http.StatusNoContent), simplestreams.ErrBadData, "HTTP 204"},
		"busy":              {bigRoot, streamstest.Status(http.StatusServiceUnavailable), nil, "HTTP 503"},
		"HTML page":         {bigRoot, streamstest.HTML(), simplestreams.ErrBadData, "the index says 2097485"},
		"truncated":         {bigRoot, streamstest.Truncate(1000), simplestreams.ErrBadData, "the server has 1000 bytes"},
		"cut":               {bigRoot, streamstest.Cut(1000), io.ErrUnexpectedEOF, "after 1000 bytes"},
		"cut, chunked":      {bigRoot, streamstest.Together(streamstest.NoLength(), streamstest.Truncate(1000)), io.ErrUnexpectedEOF, "after 1000 bytes"},
		"stalled":           {bigRoot, streamstest.Stall(1000), simplestreams.ErrStalled, "after 1000 bytes"},
		"stalled headers":   {bigRoot, streamstest.Stall(-1), simplestreams.ErrStalled, "no data was sent"},
		"redirect loop":     {bigRoot, streamstest.RedirectLoop(), simplestreams.ErrRedirect, "too many redirects"},
		"corrupt":           {bigRoot, streamstest.Corrupt(1 << 20), simplestreams.ErrBadData, "SHA-256 is"},
		"corrupt last byte": {bigRoot, streamstest.Corrupt(2<<20 + 332), simplestreams.ErrBadData, "SHA-256 is"},
		"corrupt metadata":  {bigMeta, streamstest.Corrupt(0), simplestreams.ErrBadData, "SHA-256 is"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, client, image, _ := big(t, func(o *simplestreams.Options) {
				if errors.Is(test.is, simplestreams.ErrStalled) {
					o.StallTimeout = 300 * time.Millisecond
				}
			})
			server.Fault(test.path, test.fault)
			_, err := download(t.Context(), client, image, nil)
			require.Error(t, err)
			require.NotErrorIs(t, err, io.EOF)
			require.ErrorContains(t, err, server.URL+"/"+test.path)
			require.ErrorContains(t, err, test.says)
			require.NotErrorIs(t, err, context.Canceled, "nobody has cancelled it")
			if test.is != nil {
				require.ErrorIs(t, err, test.is)
			}
		})
	}
}

func TestHashError(t *testing.T) {
	server, client, image, want := big(t, nil)

	t.Run("file", func(t *testing.T) {
		server.Fault(bigRoot, streamstest.Corrupt(5))
		defer server.Fault(bigRoot, nil)
		_, err := download(t.Context(), client, image, nil)
		var wrong *simplestreams.HashError
		require.ErrorAs(t, err, &wrong)
		require.Equal(t, server.URL+"/"+bigRoot, wrong.File)
		require.Equal(t, image.Files[1].SHA256, wrong.Expected)
		changed := bytes.Clone(want[700:])
		changed[5] ^= 0xff
		require.Equal(t, streamstest.Hash(changed), wrong.Actual)
	})

	t.Run("combined", func(t *testing.T) {
		other := *image
		other.Fingerprint = streamstest.Hash([]byte("other"))
		content, err := download(t.Context(), client, &other, nil)
		var wrong *simplestreams.HashError
		require.ErrorAs(t, err, &wrong)
		require.Contains(t, wrong.File, bigMeta+" followed by ")
		require.Contains(t, wrong.File, bigRoot)
		require.Equal(t, other.Fingerprint, wrong.Expected)
		require.Equal(t, image.Fingerprint, wrong.Actual)
		require.Equal(t, want, content)
	})

	t.Run("only combined", func(t *testing.T) {
		other := *image
		other.Files = []simplestreams.File{image.Files[0], image.Files[1]}
		other.Files[1].SHA256 = ""
		require.Equal(t, want, readAll(t, client, &other))
		server.Fault(bigRoot, streamstest.Corrupt(5))
		defer server.Fault(bigRoot, nil)
		_, err := download(t.Context(), client, &other, nil)
		var wrong *simplestreams.HashError
		require.ErrorAs(t, err, &wrong)
		require.Equal(t, image.Fingerprint, wrong.Expected)
	})
}

func TestTheLastBytesTellTheOutcome(t *testing.T) {
	for name, fault := range map[string]streamstest.Fault{"with a length": nil, "in chunks": streamstest.NoLength()} {
		for _, corrupt := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, corrupt %v", name, corrupt), func(t *testing.T) {
				server, client, image, _ := big(t, nil)
				faults := []streamstest.Fault{}
				if fault != nil {
					faults = append(faults, fault)
				}
				if corrupt {
					faults = append(faults, streamstest.Corrupt(2<<20))
				}
				server.Fault(bigRoot, streamstest.Together(faults...))
				d, err := client.Open(t.Context(), image, nil)
				require.NoError(t, err)
				defer d.Close()
				for _, r := range []*simplestreams.FileReader{d.Metadata, d.Rootfs} {
					var n, got int
					for buffer := make([]byte, 100<<10); int64(got) < r.Size(); got += n {
						require.NoError(t, err)
						n, err = r.Read(buffer)
						require.Positive(t, n)
					}
					if corrupt && r == d.Rootfs {
						var wrong *simplestreams.HashError
						require.ErrorAs(t, err, &wrong)
						return
					}
					require.Equal(t, io.EOF, err)
					err = nil
				}
			})
		}
	}
}

func TestSizeIsLearned(t *testing.T) {
	server, client, image, want := big(t, nil)
	image.Files[0].Size, image.Files[1].Size = 0, 0
	d, err := client.Open(t.Context(), image, nil)
	require.NoError(t, err)
	require.EqualValues(t, len(want), d.Size)
	require.NoError(t, d.Close())
	require.Equal(t, want, readAll(t, client, image))

	server.Fault(bigRoot, streamstest.NoLength())
	d, err = client.Open(t.Context(), image, nil)
	require.NoError(t, err)
	require.EqualValues(t, -1, d.Size)
	require.NoError(t, d.Close())
	require.Equal(t, want, readAll(t, client, image))

	server.Fault(bigRoot, streamstest.Status(http.StatusNotFound))
	d, err = client.Open(t.Context(), image, nil)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, d.Metadata)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, d.Rootfs)
	require.ErrorIs(t, err, simplestreams.ErrNotFound)
	require.NoError(t, d.Close())

	server.Fault(bigRoot, streamstest.Times(1, streamstest.Status(http.StatusBadGateway)))
	patient := newClient(t, server, func(o *simplestreams.Options) { o.RetryTimeout = 0 })
	require.Equal(t, want, readAll(t, patient, image))
}

func TestLongerThanTheIndexSays(t *testing.T) {
	server, client, image, _ := big(t, nil)
	server.Fault(bigRoot, streamstest.NoLength())
	image.Files[1].Size = 1000
	_, err := download(t.Context(), client, image, nil)
	require.ErrorIs(t, err, simplestreams.ErrBadData)
	require.ErrorContains(t, err, "more than 1000 bytes")
}

func TestReplacedWhileDownloading(t *testing.T) {
	for name, test := range map[string]struct {
		change func(root []byte) []byte
		check  func(t *testing.T, err error)
	}{
		"same content, another ETag and date": {func(root []byte) []byte { return root }, func(t *testing.T, err error) { require.NoError(t, err) }},
		"other content": {func(root []byte) []byte { return make([]byte, len(root)) }, func(t *testing.T, err error) {
			var wrong *simplestreams.HashError
			require.ErrorAs(t, err, &wrong)
			require.ErrorContains(t, err, bigRoot)
		}},
		"another length": {func(root []byte) []byte { return root[:len(root)-1] }, func(t *testing.T, err error) {
			require.ErrorIs(t, err, simplestreams.ErrBadData)
			require.ErrorContains(t, err, "replaced")
			require.ErrorContains(t, err, bigRoot)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			server, client, image, want := big(t, func(o *simplestreams.Options) { o.RetryTimeout = 0 })
			server.Fault(bigRoot, streamstest.Times(1, streamstest.Cut(1000)))
			d, err := client.Open(t.Context(), image, nil)
			require.NoError(t, err)
			defer d.Close()
			_, err = io.Copy(io.Discard, d.Metadata)
			require.NoError(t, err)
			_, err = io.ReadFull(d.Rootfs, make([]byte, 1000))
			require.NoError(t, err)
			server.Set(bigRoot, test.change(want[700:]))
			server.Fault(bigRoot, streamstest.Together(
				streamstest.Header("ETag", `"another"`), streamstest.Header("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")))
			_, err = io.Copy(io.Discard, d.Rootfs)
			test.check(t, err)
			requests := server.Requests()
			require.Equal(t, "bytes=1000-", requests[len(requests)-1].Header.Get("Range"))
		})
	}
}

func TestWrongRange(t *testing.T) {
	for name, header := range map[string]string{
		"other start": "bytes 5-2097484/2097485", "none": "", "nonsense": "lines 1-2",
	} {
		t.Run(name, func(t *testing.T) {
			server, client, image, _ := big(t, func(o *simplestreams.Options) { o.RetryTimeout = 0 })
			server.Fault(bigRoot, streamstest.Together(streamstest.Times(1, streamstest.Cut(1000)), streamstest.Header("Content-Range", header)))
			_, err := download(t.Context(), client, image, nil)
			require.ErrorIs(t, err, simplestreams.ErrBadData)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF, "what made the range necessary")
			require.ErrorContains(t, err, bigRoot)
			require.ErrorContains(t, err, "after 1000 bytes")
			require.ErrorContains(t, err, strconv.Quote(header))
		})
	}
}

func TestRedirectToAnotherHost(t *testing.T) {
	server, client, image, want := big(t, nil)
	mirror := serve(t, map[string][]byte{"copy": want[700:]})
	server.Fault(bigRoot, streamstest.Redirect(mirror.URL+"/copy"))
	require.Equal(t, want, readAll(t, client, image))

	// The password is for the server, not for the mirror.
	server.Fault(bigMeta, streamstest.Redirect(strings.Replace(mirror.URL, "127.0.0.1", "localhost", 1)+"/meta"))
	mirror.Set("meta", want[:700])
	mirror.Requests()
	trusted, err := simplestreams.New(strings.Replace(server.URL, "//", "//user:hunter2@", 1), &simplestreams.Options{AllowHTTP: true})
	require.NoError(t, err)
	defer trusted.Close()
	require.Equal(t, want, readAll(t, trusted, image))
	for _, request := range mirror.Requests() {
		require.Empty(t, request.Header.Get("Authorization"))
	}

	secure := streamstest.NewTLSServer(map[string][]byte{bigMeta: want[:700]})
	defer secure.Close()
	strict, err := simplestreams.New(secure.URL, &simplestreams.Options{Certificate: secure.CA, RetryTimeout: -1})
	require.NoError(t, err)
	defer strict.Close()
	secure.Fault(bigMeta, streamstest.Redirect(server.URL+"/"+bigMeta))
	_, err = strict.Open(t.Context(), image, nil)
	require.ErrorIs(t, err, simplestreams.ErrInsecure)
}

func TestContextEndsADownload(t *testing.T) {
	for name, bytes := range map[string]int64{"in the body": 1000, "before the headers": -1} {
		t.Run(name, func(t *testing.T) {
			server, client, image, _ := big(t, func(o *simplestreams.Options) { o.RetryTimeout = 0 })
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var ended time.Time
			server.Fault(bigRoot, func(s *streamstest.Server, next http.Handler) http.Handler {
				stalled := streamstest.Stall(bytes)(s, next)
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.AfterFunc(100*time.Millisecond, func() {
						ended = time.Now()
						cancel()
					})
					stalled.ServeHTTP(w, r)
				})
			})
			_, err := download(ctx, client, image, nil)
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorContains(t, err, bigRoot)
			require.Less(t, time.Since(ended), 20*time.Second)
		})
	}

	t.Run("between attempts", func(t *testing.T) {
		server, client, image, _ := big(t, func(o *simplestreams.Options) { o.RetryTimeout = 0 })
		server.Fault(bigMeta, streamstest.Together(streamstest.Header("Retry-After", "500"), streamstest.Status(http.StatusServiceUnavailable)))
		stop := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		go cancel(stop)
		_, err := client.Open(ctx, image, nil)
		require.ErrorIs(t, err, stop)
		require.ErrorIs(t, err, context.Canceled)
	})

	t.Run("after a response", func(t *testing.T) {
		_, _, image, _ := big(t, nil)
		stop := errors.New("enough")
		for name, call := range map[string]func(context.Context, *simplestreams.Client) error{
			"file": func(ctx context.Context, c *simplestreams.Client) error {
				_, err := download(ctx, c, image, nil)
				return err
			},
			"index": func(ctx context.Context, c *simplestreams.Client) error {
				_, err := c.Resolve(ctx, "big", nil)
				return err
			},
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			busy := transportFunc(func(r *http.Request) (*http.Response, error) {
				cancel(stop)
				return &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
			})
			client, err := simplestreams.New("https://images.example.net", &simplestreams.Options{HTTPClient: &http.Client{Transport: busy}})
			require.NoError(t, err)
			err = call(ctx, client)
			require.ErrorIs(t, err, stop, name)
			require.ErrorIs(t, err, context.Canceled, name)
		}
	})
}

func TestCloseEarly(t *testing.T) {
	_, client, image, _ := big(t, nil)
	d, err := client.Open(t.Context(), image, nil)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	_, err = d.Metadata.Read(make([]byte, 1))
	require.ErrorIs(t, err, context.Canceled)
}

func TestCloseEndsARead(t *testing.T) {
	server, client, image, _ := big(t, func(o *simplestreams.Options) { o.StallTimeout = -1 })
	server.Fault(bigRoot, streamstest.Stall(1000))
	reading := make(chan struct{}, 1)
	var d *simplestreams.Download
	d, err := client.Open(t.Context(), image, &simplestreams.DownloadOptions{Progress: func(done, _ int64) {
		if done == 700+1000 {
			reading <- struct{}{}
		}
	}})
	require.NoError(t, err)
	go func() {
		<-reading
		_ = d.Close()
	}()
	_, err = io.Copy(io.Discard, d.Metadata)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, d.Rootfs)
	require.ErrorIs(t, err, context.Canceled)
}

func TestProgressMayClose(t *testing.T) {
	_, client, image, _ := big(t, nil)
	var d *simplestreams.Download
	d, err := client.Open(t.Context(), image, &simplestreams.DownloadOptions{Progress: func(int64, int64) { _ = d.Close() }})
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, iotest.OneByteReader(d.Metadata))
	require.ErrorIs(t, err, context.Canceled)
}

func TestOpenRefuses(t *testing.T) {
	server, client, image, _ := big(t, nil)
	for name, change := range map[string]func(*simplestreams.Image){
		"no files":        func(i *simplestreams.Image) { i.Files = nil },
		"three files":     func(i *simplestreams.Image) { i.Files = append(i.Files, i.Files[0]) },
		"no fingerprint":  func(i *simplestreams.Image) { i.Fingerprint = "" },
		"short print":     func(i *simplestreams.Image) { i.Fingerprint = i.Fingerprint[:12] },
		"path":            func(i *simplestreams.Image) { i.Files[1].Path = "../" + i.Files[1].Path },
		"empty path":      func(i *simplestreams.Image) { i.Files[1].Path = "" },
		"negative size":   func(i *simplestreams.Image) { i.Files[1].Size = -5 },
		"hash of nothing": func(i *simplestreams.Image) { i.Files[1].SHA256 = "0" },
	} {
		t.Run(name, func(t *testing.T) {
			changed := *image
			changed.Files = append([]simplestreams.File(nil), image.Files...)
			change(&changed)
			_, err := client.Open(t.Context(), &changed, nil)
			require.Error(t, err)
		})
	}
	_, err := client.Open(t.Context(), nil, nil)
	require.Error(t, err)
	require.Empty(t, server.Requests(), "refused before a byte is sent")
}
