package ensure_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// envSeed repeats the random points of an earlier run.
const envSeed = "LXD_TEST_SEED"

func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed, err := rand.Uint64(), error(nil)
	if text := os.Getenv(envSeed); text != "" {
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, envSeed)
	}
	t.Logf("the seed is %s=%d", envSeed, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// contentSize is that of the images.
const contentSize = 256 << 10

// history is the images that two aliases have had, and where they are.
type history struct {
	wish

	client   *lxd.Client
	endpoint string
	dir      string   // of a real daemon; empty for others
	made     []string // the fingerprints, the last one is to be the next
	phases   map[string]int
}

// newHistory returns a history of two images.
func newHistory(t *testing.T, endpoint, dir string) *history {
	t.Helper()
	h := emptyHistory(t, endpoint, dir)
	for range 2 {
		h.complete(t, h.next(t))
	}
	return h
}

func emptyHistory(t *testing.T, endpoint, dir string) *history {
	t.Helper()
	h := &history{
		wish:     wish{Aliases: []string{testkit.Unique("web"), testkit.Unique("also")}, Previous: testkit.Unique("previous"), Made: testkit.Unique("made")},
		client:   testkit.NewClient(t, endpoint, nil),
		endpoint: endpoint, dir: dir, phases: map[string]int{},
	}
	t.Cleanup(func() {
		for _, fingerprint := range h.made {
			image, err := h.client.Images.Get(context.Background(), fingerprint)
			if err == nil {
				err = image.Delete(context.Background(), &lxd.DeleteOptions{Wait: true})
			}
			if !errors.Is(err, lxd.ErrNotFound) {
				require.NoError(t, err)
			}
		}
	})
	return h
}

// next writes the file of the next image.
func (h *history) next(t *testing.T) (path string) {
	t.Helper()
	data := testkit.Unified(t, contentSize)
	h.made = append(h.made, lxdtest.Fingerprint(data))
	path = filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

func (h *history) job(path string) job {
	return job{Endpoint: h.endpoint, Kind: "file", From: path, Callers: 1, wish: h.wish}
}

// last is the fingerprint of the nth image from the end: 0 is the next one.
func (h *history) last(n int) string {
	if n >= len(h.made) {
		return ""
	}
	return h.made[len(h.made)-1-n]
}

// image is one of the images; nil if it does not exist.
func (h *history) image(t *testing.T, fingerprint string) *lxd.Image {
	t.Helper()
	image, err := h.client.Images.Get(t.Context(), fingerprint)
	if !errors.Is(err, lxd.ErrNotFound) {
		require.NoError(t, err)
	}
	return image
}

// check fails unless each alias has the old or the new image, which is complete. It
// returns the last step that was done.
func (h *history) check(t *testing.T) (phase string) {
	t.Helper()
	next, old := h.last(0), h.last(1)
	moved := 0
	for _, name := range h.Aliases {
		image, err := h.client.Images.GetByAlias(t.Context(), name)
		require.NoError(t, err)
		require.Contains(t, []string{next, old}, image.Fingerprint)
		require.Equal(t, h.Made, image.Properties["made"], "an alias of an image without its properties")
		export, err := image.Export(t.Context(), nil)
		require.NoError(t, err)
		data, err := io.ReadAll(export)
		require.NoError(t, err)
		require.NoError(t, export.Close())
		require.Equal(t, image.Fingerprint, lxdtest.Fingerprint(data))
		if image.Fingerprint == next {
			moved++
		}
	}
	oldest := h.image(t, h.last(2))
	if moved < len(h.Aliases) {
		require.NotNil(t, oldest, "deleted before the aliases were moved")
	}
	before := h.image(t, old)
	require.NotNil(t, before, "the old image has no name any more")
	previous, err := h.client.Aliases.Get(t.Context(), h.Previous)
	require.NoError(t, err)
	require.Contains(t, []string{old, h.last(2)}, previous.Target)
	image := h.image(t, next)
	switch {
	case oldest == nil:
		return "retired"
	case moved == len(h.Aliases):
		return "moved"
	case moved > 0:
		return "moved one"
	case previous.Target == old:
		return "named previous"
	case before.Properties[lxd.ReplacedProperty] != "":
		return "marked"
	case image == nil:
		return "nothing"
	case image.Properties["made"] == "":
		return "brought"
	}
	return "attributes"
}

var phases = []string{"nothing", "brought", "attributes", "marked", "named previous", "moved one", "moved", "retired"}

// complete ensures the next image, and fails if anything is not as it should be then.
func (h *history) complete(t *testing.T, path string) {
	t.Helper()
	ensured, err := h.client.Images.Ensure(t.Context(), lxd.FromFile(path, nil), h.options())
	require.NoError(t, err)
	h.settled(t, ensured.Image)
}

// settled fails unless the image is the next one, with its names, and of all others
// there is only the one before.
func (h *history) settled(t *testing.T, image *lxd.Image) {
	t.Helper()
	require.Equal(t, h.last(0), image.Fingerprint)
	require.Equal(t, h.Made, image.Properties["made"])
	require.NotContains(t, image.Properties, lxd.ReplacedProperty)
	require.ElementsMatch(t, h.Aliases, names(image))
	if len(h.made) > 1 {
		old := h.image(t, h.last(1))
		require.NotNil(t, old)
		require.Equal(t, []string{h.Previous}, names(old))
	}
	for _, fingerprint := range h.made[:max(0, len(h.made)-2)] {
		require.Nil(t, h.image(t, fingerprint), "an image is left")
	}
	require.Eventually(t, func() bool {
		operations, err := h.client.Operations(t.Context())
		require.NoError(t, err)
		return !slices.ContainsFunc(operations, func(op *lxd.Operation) bool {
			status := op.Status()
			return strings.Contains(strings.ToLower(status.Description), "image") && !status.Done()
		})
	}, 20*time.Second, 10*time.Millisecond, "an operation is left")
}

func names(image *lxd.Image) []string {
	var list []string
	for _, alias := range image.Aliases {
		list = append(list, alias.Name)
	}
	return list
}

// files are the names of the files of a daemon's images, complete or not.
func (h *history) files(t *testing.T) []string {
	t.Helper()
	if h.dir == "" {
		return nil
	}
	entries, err := os.ReadDir(filepath.Join(h.dir, "images"))
	require.NoError(t, err)
	var list []string
	for _, e := range entries {
		if !slices.Contains(h.made, e.Name()) {
			list = append(list, e.Name())
		}
	}
	return list
}

// TestKilledProgram kills a program that calls Ensure, at each of its requests and at
// random moments: the aliases have a complete image all the time, and the next call, by
// another program, completes the work.
func TestKilledProgram(t *testing.T) {
	for _, s := range subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			random := newRandom(t)
			dir := ""
			if s.Real != nil {
				dir = s.Real.Dir
			}
			h := newHistory(t, s.Client(t).Endpoint(), dir)
			before := h.files(t)
			var need time.Duration // of a program that is not killed
			for _, at := range []func(j *job, n int){
				func(j *job, n int) { j.FatalResponse = n },
				func(j *job, n int) { j.FatalChange = n },
			} {
				n := 0
				for ended := false; !ended; {
					n++
					j := h.job(h.next(t))
					at(&j, n)
					p := start(t, j)
					begun := time.Now()
					p.begin(t)
					var out outcome
					out, ended = p.end(t)
					need = time.Since(begun)
					require.Empty(t, out.Failed)
					h.phases[h.check(t)]++
					h.complete(t, j.From)
				}
				require.Greater(t, n, 6) // the changes
			}
			for _, phase := range phases {
				require.NotZero(t, h.phases[phase], "never killed after %q: %v", phase, h.phases)
			}
			for range testkit.Size(t, 3, 100) {
				h.randomly(t, random, need)
			}
			t.Logf("killed after %v", h.phases)
			require.Eventually(t, func() bool { return slices.Equal(before, h.files(t)) }, 30*time.Second, 10*time.Millisecond, "files are left")
		})
	}
}

// randomly kills a program within the time that it needs.
func (h *history) randomly(t *testing.T, random *rand.Rand, need time.Duration) {
	t.Helper()
	j := h.job(h.next(t))
	p := start(t, j)
	p.begin(t)
	time.Sleep(time.Duration(random.Int64N(int64(need))))
	if err := p.cmd.Process.Kill(); !errors.Is(err, os.ErrProcessDone) {
		require.NoError(t, err)
	}
	out, _ := p.end(t)
	require.Empty(t, out.Failed)
	h.phases[h.check(t)]++
	h.complete(t, j.From)
}

// mortal is a daemon that can be killed.
type mortal struct {
	endpoint, dir string

	kill    func() error
	restart func(context.Context) error
}

// mortals returns a server of lxdtest, and a daemon of each kind that the environment
// names; those of the environment belong to the other tests.
func mortals(t *testing.T) map[string]func(t *testing.T) mortal {
	t.Helper()
	all := map[string]func(t *testing.T) mortal{"lxdtest": func(t *testing.T) mortal {
		f := testkit.StartFake(t)
		return mortal{
			endpoint: f.Endpoint(),
			kill:     func() error { f.Shutdown(); return nil },
			restart:  func(context.Context) error { f.Restart(); return nil },
		}
	}}
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, named := range testdaemon.Distinct(append(lxds, incuses...)) {
		all[named.Name()] = func(t *testing.T) mortal {
			d := testdaemon.New(t, named.Family, &testdaemon.Options{Binary: named.Binary})
			return mortal{endpoint: "unix://" + d.Socket, dir: d.Dir, kill: d.Kill, restart: d.Restart}
		}
	}
	return all
}

// TestKilledDaemon kills daemons while Ensure runs, and starts them again: when they are
// back, the aliases have a complete image, and the next call completes the work.
func TestKilledDaemon(t *testing.T) {
	for name, start := range mortals(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			random := newRandom(t)
			d := start(t)
			h := newHistory(t, d.endpoint, d.dir)
			killer := &killer{at: -1}
			c := testkit.NewClient(t, h.endpoint, &lxd.Options{Transport: func(base http.RoundTripper) http.RoundTripper {
				killer.RoundTripper = base
				return killer
			}})
			_, err := c.Images.Ensure(t.Context(), lxd.FromFile(h.next(t), nil), h.options())
			require.NoError(t, err)
			total := killer.seen.Load()
			for round := range testkit.Size(t, 6, 60) {
				killer.at, killer.after = 1+random.Int64N(total), time.Duration(random.Int64N(int64(20*time.Millisecond)))
				h.killDaemon(t, &d, c, killer, round)
			}
			t.Logf("killed after %v", h.phases)
		})
	}
}

// killer kills a daemon a little after a request has begun.
type killer struct {
	http.RoundTripper

	seen  atomic.Int64
	at    int64
	after time.Duration
	kill  func()
}

func (k *killer) RoundTrip(r *http.Request) (*http.Response, error) {
	if k.seen.Add(1) == k.at {
		time.AfterFunc(k.after, k.kill)
	}
	return k.RoundTripper.RoundTrip(r)
}

func (h *history) killDaemon(t *testing.T, d *mortal, c *lxd.Client, k *killer, round int) {
	t.Helper()
	path, killed := h.next(t), make(chan error, 1)
	k.seen.Store(0)
	k.kill = func() { killed <- d.kill() }
	returned := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	go func() {
		_, err := c.Images.Ensure(ctx, lxd.FromFile(path, nil), h.options())
		if k.seen.Load() < k.at {
			k.kill() // fewer requests than those of the first call
		}
		returned <- err
	}()
	require.NoError(t, <-killed)
	require.NoError(t, d.restart(ctx))
	err := <-returned
	require.NoError(t, ctx.Err(), "it hangs")
	var broken *lxd.OperationError
	require.True(t, err == nil || errors.Is(err, lxd.ErrUnavailable) || errors.Is(err, lxd.ErrOutcomeUnknown) || errors.As(err, &broken), "%T: %v", err, err)
	phase := h.check(t)
	h.phases[phase]++
	t.Log(fmt.Sprintf("round %d: killed %v after request %d, after %q:", round, k.after, k.at, phase), err)
	h.complete(t, path)
}
