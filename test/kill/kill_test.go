package kill_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// envSeed repeats the random points of an earlier run of TestKill.
const envSeed = "LXD_TEST_SEED"

// killSize is the size of an image that is moved while a daemon is killed.
const killSize = 16 << 20

// TestKill kills real daemons in the middle of each transfer, starts them
// again, and compares what the client returned with what the daemon has.
func TestKill(t *testing.T) {
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	seed := rand.Uint64()
	if text := os.Getenv(envSeed); text != "" {
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, envSeed)
	}
	t.Logf("the seed is %s=%d", envSeed, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, named := range testdaemon.Distinct(append(lxds, incuses...)) {
		// Those of the environment belong to the other tests.
		d := testdaemon.New(t, named.Family, &testdaemon.Options{Binary: named.Binary})
		for round := range testkit.Size(t, 2, 25) {
			for _, k := range killings {
				delay := time.Duration(random.Int64N(int64(k.within)))
				t.Run(fmt.Sprintf("%s %s, round %d", d.Name(), k.name, round), func(t *testing.T) {
					k.play(t, d, delay)
				})
			}
		}
	}
}

// killing is a transfer that does not survive untouched.
type killing struct {
	name string
	// within is how long after its beginning the daemon is killed at most.
	within time.Duration
	// begin prepares the transfer, and returns it and the fingerprint of its
	// image.
	begin func(t *testing.T, d *testdaemon.Daemon, c *lxd.Client) (run func(context.Context) error, fingerprint string)
	// there says that the image was there before.
	there bool
}

var killings = []killing{
	{name: "upload", within: 150 * time.Millisecond, begin: func(t *testing.T, _ *testdaemon.Daemon, c *lxd.Client) (func(context.Context) error, string) {
		data := testkit.Unified(t, killSize)
		return func(ctx context.Context) error {
			_, err := c.Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
			return err
		}, lxdtest.Fingerprint(data)
	}},
	{name: "one-shot upload", within: 150 * time.Millisecond, begin: func(t *testing.T, _ *testdaemon.Daemon, c *lxd.Client) (func(context.Context) error, string) {
		data := testkit.Unified(t, killSize)
		return func(ctx context.Context) error {
			_, err := c.Images.Create(ctx, testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true})
			return err
		}, lxdtest.Fingerprint(data)
	}},
	{name: "export", within: 100 * time.Millisecond, there: true, begin: func(t *testing.T, d *testdaemon.Daemon, c *lxd.Client) (func(context.Context) error, string) {
		data := testkit.Unified(t, killSize)
		fingerprint, err := d.Upload(t.Context(), bytes.NewReader(data))
		require.NoError(t, err)
		image, err := c.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		return func(ctx context.Context) error {
			export, err := image.Export(ctx, nil)
			if err != nil {
				return err
			}
			defer export.Close()
			n, err := io.Copy(slowWriter{}, export)
			if err == nil && n != int64(len(data)) {
				err = fmt.Errorf("success with %d of %d bytes", n, len(data))
			}
			return err
		}, fingerprint
	}},
	{name: "relay copy", within: 150 * time.Millisecond, begin: func(t *testing.T, _ *testdaemon.Daemon, c *lxd.Client) (func(context.Context) error, string) {
		source := testkit.StartFake(t)
		fingerprint, err := source.AddImage(testkit.Unified(t, killSize), nil)
		require.NoError(t, err)
		image, err := source.Client.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		return func(ctx context.Context) error {
			_, err := image.Copy(ctx, c, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true})
			return err
		}, fingerprint
	}},
	{name: "wait", within: 500 * time.Millisecond, begin: func(t *testing.T, _ *testdaemon.Daemon, c *lxd.Client) (func(context.Context) error, string) {
		data := testkit.Unified(t, 1<<20)
		fingerprint := lxdtest.Fingerprint(data)
		source := httptest.NewUnstartedServer(nil)
		source.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for _, family := range []string{"LXD", "Incus"} {
				w.Header().Set(family+"-Image-Hash", fingerprint)
				w.Header().Set(family+"-Image-URL", source.URL+"/image")
			}
			if r.Method == http.MethodHead {
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			for block := range (len(data) + 65535) / 65536 {
				if _, err := w.Write(data[block*65536 : min(len(data), (block+1)*65536)]); err != nil {
					return
				}
				select {
				case <-time.After(20 * time.Millisecond): // a slow line
				case <-r.Context().Done():
					return
				}
			}
		})
		source.Start()
		t.Cleanup(source.Close)
		image, err := c.Images.CreateFromURL(t.Context(), source.URL+"/image", &lxd.CreateFromURLOptions{Via: lxd.ViaServer})
		require.NoError(t, err)
		return image.Wait, fingerprint
	}},
}

// slowWriter writes slowly.
type slowWriter struct{}

func (slowWriter) Write(p []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	return len(p), nil
}

// readAll reads and verifies the image's content.
func readAll(ctx context.Context, image *lxd.Image) error {
	export, err := image.Export(ctx, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, export)
	return errors.Join(err, export.Close())
}

func (k *killing) play(t *testing.T, d *testdaemon.Daemon, delay time.Duration) {
	c := testkit.NewClient(t, "unix://"+d.Socket, nil)
	_, err := c.Server(t.Context())
	require.NoError(t, err)
	run, fingerprint := k.begin(t, d, c)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	outcome := make(chan error, 1)
	go func() { outcome <- run(ctx) }()
	time.Sleep(delay)
	require.NoError(t, d.Kill())
	require.NoError(t, d.Restart(ctx))
	err = <-outcome
	t.Logf("killed after %v: %v", delay, err)
	require.NoError(t, ctx.Err(), "it hangs")

	var broken *lxd.OperationError
	var cut *lxd.FingerprintError
	typed := errors.Is(err, lxd.ErrUnavailable) || errors.Is(err, lxd.ErrNotReplayable) || errors.Is(err, lxd.ErrOutcomeUnknown) ||
		errors.As(err, &broken) || errors.As(err, &cut)
	require.True(t, err == nil || typed, "%T: %v", err, err)
	require.NotErrorIs(t, err, io.EOF)

	fresh := testkit.NewClient(t, "unix://"+d.Socket, nil)
	is, ierr := fresh.Images.Exists(ctx, fingerprint)
	require.NoError(t, ierr)
	if err == nil || k.there {
		require.True(t, is, "a success without the image")
	}
	if is {
		image, gerr := fresh.Images.Get(ctx, fingerprint)
		require.NoError(t, gerr)
		// Incus 7.0.2 records an image that it imports before it renames the file, so
		// that the image may be without content. The client says so.
		if missing := readAll(ctx, image); missing != nil {
			require.ErrorIs(t, missing, lxd.ErrNotFound)
			require.ErrorIs(t, err, lxd.ErrOutcomeUnknown)
			require.ErrorContains(t, err, "does not send its content")
		}
		require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
	}
	// A daemon that starts tidies its images up, which soon ends.
	require.Eventually(t, func() bool {
		operations, err := fresh.Operations(ctx)
		require.NoError(t, err)
		return !slices.ContainsFunc(operations, func(op *lxd.Operation) bool {
			status := op.Status()
			about := status.Class == "token" || strings.Contains(strings.ToLower(status.Description), "image")
			return about && !status.Done()
		})
	}, 20*time.Second, 20*time.Millisecond, "an operation is left")
}
