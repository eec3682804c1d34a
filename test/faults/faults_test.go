package faults_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

var update = flag.Bool("update", false, "write docs/faults.md anew")

// The content of a case, and where in it the faults strike.
const (
	faultImageSize = 24_000
	faultAt        = 8_000
	faultPause     = 3 * time.Second // of Retry-After
)

// faultCase is one cell of the fault table: one transfer that meets one fault,
// in a bubble where no time passes. Server from has an image, to has none.
type faultCase struct {
	t            *testing.T
	from, to     *lxdtest.Server
	fromC, toC   *lxd.Client
	data, rootfs []byte
	fingerprint  string
	image        *lxd.Image // of from
	started      *lxd.Image // on to, for a wait
	held         *lxdtest.Injection
	dir          string
	injected     *lxdtest.Injection
	late         *lxdtest.Fault // to be injected when the socket is open
	source       *memorySource
}

// transfer is a column of the fault table.
type transfer struct {
	name    string
	method  string // of the request that meets the faults
	pattern string
	target  bool // the faults strike at server to, else at server from
	sends   bool // it has a body
	oneShot bool
	split   bool
	prepare func(*faultCase)
	run     func(context.Context, *faultCase) error
}

func create(oneShot bool) func(context.Context, *faultCase) error {
	return func(ctx context.Context, c *faultCase) error {
		reader := func(data []byte) io.Reader {
			if oneShot {
				return testkit.OneShotReader{Reader: bytes.NewReader(data)}
			}
			return bytes.NewReader(data)
		}
		opts := &lxd.CreateOptions{Wait: true}
		if c.rootfs != nil {
			opts.Rootfs = reader(c.rootfs)
		}
		_, err := c.toC.Images.Create(ctx, reader(c.data), opts)
		return err
	}
}

func exportAll(ctx context.Context, c *faultCase) error {
	export, err := c.image.Export(ctx, nil)
	if err != nil {
		return err
	}
	defer export.Close()
	var got bytes.Buffer
	for err == nil {
		if _, err = io.Copy(&got, export); err == nil {
			err = export.Next()
		}
	}
	if err != io.EOF { //nolint:errorlint // Next must return io.EOF itself
		return err
	}
	require.Equal(c.t, c.fingerprint, lxdtest.Fingerprint(got.Bytes()))
	return nil
}

func exportToDir(ctx context.Context, c *faultCase) error {
	files, err := c.image.ExportTo(ctx, c.dir, nil)
	if err != nil {
		for _, name := range testkit.FilesIn(c.t, c.dir) {
			require.True(c.t, strings.HasSuffix(name, ".partial"), "a failed ExportTo leaves %s", name)
		}
		return err
	}
	want := [][]byte{c.data}
	if c.rootfs != nil {
		want = append(want, c.rootfs)
	}
	testkit.RequireExported(c.t, c.dir, files, want...)
	return nil
}

func relay(ctx context.Context, c *faultCase) error {
	_, err := c.image.Copy(ctx, c.toC, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true})
	return err
}

var transfers = []transfer{
	{name: "upload", method: "POST", pattern: "/1.0/images", target: true, sends: true, run: create(false)},
	{name: "upload, one-shot", method: "POST", pattern: "/1.0/images", target: true, sends: true, oneShot: true, run: create(true)},
	{name: "split upload", method: "POST", pattern: "/1.0/images", target: true, sends: true, split: true, run: create(false)},
	{name: "split upload, one-shot", method: "POST", pattern: "/1.0/images", target: true, sends: true, split: true, oneShot: true, run: create(true)},
	{name: "export", method: "GET", pattern: testkit.ExportPattern, run: exportAll},
	{name: "split export", method: "GET", pattern: testkit.ExportPattern, split: true, run: exportAll},
	{name: "ExportTo", method: "GET", pattern: testkit.ExportPattern, run: exportToDir},
	{name: "split ExportTo", method: "GET", pattern: testkit.ExportPattern, split: true, run: exportToDir},
	{name: "relay, source", method: "GET", pattern: testkit.ExportPattern, run: relay},
	{name: "split relay, source", method: "GET", pattern: testkit.ExportPattern, split: true, run: relay},
	{name: "relay, target", method: "POST", pattern: "/1.0/images", target: true, sends: true, run: relay},
	{name: "URL import", method: "POST", pattern: "/1.0/images", target: true, run: func(ctx context.Context, c *faultCase) error {
		// The server works long enough for the progress to be listened to.
		c.held = c.to.Inject(lxdtest.StallOperations())
		timer := time.AfterFunc(5*time.Second, c.held.Release)
		defer timer.Stop()
		_, err := c.toC.Images.CreateFromURL(ctx, "http://source/image", &lxd.CreateFromURLOptions{
			Via: lxd.ViaServer, Wait: true, Progress: func(lxd.Progress) {},
		})
		return err
	}},
	{name: "wait", method: "GET", pattern: "/1.0/operations/*/wait", target: true,
		prepare: func(c *faultCase) {
			c.held = c.to.Inject(lxdtest.StallOperations())
			var err error
			c.started, err = c.toC.Images.Create(c.t.Context(), bytes.NewReader(c.data), nil)
			require.NoError(c.t, err)
		},
		run: func(ctx context.Context, c *faultCase) error {
			timer := time.AfterFunc(5*time.Second, c.held.Release)
			defer timer.Stop()
			return c.started.Wait(ctx)
		}},
	{name: "events", method: "GET", pattern: "/1.0/events", run: watchEvents},
	{name: "list", method: "GET", pattern: "/1.0/images", run: func(ctx context.Context, c *faultCase) error {
		images, err := c.fromC.Images.All(ctx, nil)
		if err == nil {
			require.Len(c.t, images, 1)
		}
		return err
	}},
	{name: "get", method: "GET", pattern: "/1.0/images/*", run: func(ctx context.Context, c *faultCase) error {
		image, err := c.fromC.Images.Get(ctx, c.fingerprint)
		if err == nil {
			require.Equal(c.t, c.fingerprint, image.Fingerprint)
		}
		return err
	}},
}

// watchEvents returns when events have come after the fault.
func watchEvents(ctx context.Context, c *faultCase) error {
	other, err := lxd.New("unix:///other", &lxd.Options{Dial: c.from.DialContext})
	require.NoError(c.t, err)
	busyCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		for n := 0; busyCtx.Err() == nil; n++ {
			_ = other.Aliases.Create(busyCtx, lxd.Alias{Name: fmt.Sprint("alias", n), Target: c.fingerprint})
			_, _ = other.Images.Create(busyCtx, bytes.NewReader(lxdtest.UnifiedImage(fmt.Sprint(n), 0)), &lxd.CreateOptions{Wait: true})
			select {
			case <-busyCtx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	defer func() { cancel(); <-idle; _ = other.Close() }()
	after := 0
	for event, err := range c.fromC.Events(ctx, nil) {
		if err != nil {
			return err
		}
		if event.Type == lxd.EventConnected && c.late != nil {
			c.injected, c.late = c.from.Inject(*c.late), nil
		}
		if c.injected != nil && c.injected.Fired() > 0 {
			after++
		}
		if after == 6 {
			return nil
		}
	}
	return errors.New("the events ended without an error")
}

// memorySource serves an image by the daemons' protocol for URLs.
type memorySource struct {
	http.Server
	conns chan net.Conn
	done  chan struct{}
}

func newMemorySource(data []byte) *memorySource {
	s := &memorySource{conns: make(chan net.Conn), done: make(chan struct{})}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("LXD-Image-Hash", lxdtest.Fingerprint(data))
		w.Header().Set("LXD-Image-URL", "http://source/image")
		if r.Method != http.MethodHead {
			_, _ = w.Write(data)
		}
	})
	go func() { _ = s.Serve(s) }()
	return s
}

func (s *memorySource) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *memorySource) Close() error   { close(s.done); return nil }
func (s *memorySource) Addr() net.Addr { return &net.UnixAddr{Name: "source", Net: "unix"} }

func (s *memorySource) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case s.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fault is a row of the fault table.
type fault struct {
	name string
	// of makes the fault for a transfer; ok is false if it does not apply.
	of func(*transfer) (f lxdtest.Fault, ok bool)
	// heal is when a lasting fault ends, 0 for never.
	heal time.Duration
	// late injects it once the event socket is open.
	late bool
	// cancel has the caller cancel after two seconds.
	cancel bool
	wants  map[string]string // outcomes by transfer; "" is for the others
}

func always(f lxdtest.Fault) func(*transfer) (lxdtest.Fault, bool) {
	return func(*transfer) (lxdtest.Fault, bool) { return f, true }
}

// aimed strikes n times at the request of the transfer; 0 is for ever.
func aimed(f lxdtest.Fault, times int) func(*transfer) (lxdtest.Fault, bool) {
	return func(t *transfer) (lxdtest.Fault, bool) { return f.On(t.method, t.pattern).Times(times), true }
}

func only(which func(*transfer) bool, of func(*transfer) (lxdtest.Fault, bool)) func(*transfer) (lxdtest.Fault, bool) {
	return func(t *transfer) (lxdtest.Fault, bool) {
		if !which(t) {
			return lxdtest.Fault{}, false
		}
		return of(t)
	}
}

func sends(t *transfer) bool       { return t.sends }
func exports(t *transfer) bool     { return t.pattern == testkit.ExportPattern }
func hasResponse(t *transfer) bool { return t.name != "events" }
func works(t *transfer) bool {
	return t.sends || t.name == "URL import" || t.name == "wait"
}
func unifiedExport(t *transfer) bool { return exports(t) && !t.split }
func splitExport(t *transfer) bool   { return exports(t) && t.split }

// hearsEvents are the transfers that listen.
func hearsEvents(t *transfer) bool { return t.name == "events" || t.name == "URL import" }

// inResponse selects the offset of a fault in the response's body.
func inResponse(f func(int64) lxdtest.Fault, times int) func(*transfer) (lxdtest.Fault, bool) {
	return func(t *transfer) (lxdtest.Fault, bool) {
		at := int64(100)
		if exports(t) {
			at = faultAt
		}
		return f(at).On(t.method, t.pattern).Times(times), true
	}
}

const (
	succeeds   = "succeeds"
	again      = "sent again"
	resumed    = "resumed"
	ended      = "ctx's error"
	badAnswer  = "ErrBadResponse"
	away       = "ErrUnavailable"
	once       = "ErrNotReplayable"
	corrupt    = "FingerprintError"
	unknown    = "ErrOutcomeUnknown"
	refusal    = "Error"
	failed     = "OperationError"
	noMeaning  = "–"
	unexpected = "an error without a type"
)

// outcomeOf names what became of a transfer.
func outcomeOf(c *faultCase, tr *transfer, err error) string {
	var fingerprint *lxd.FingerprintError
	var operation *lxd.OperationError
	var refused *lxd.Error
	switch {
	case err == nil:
		requests, ranges := 0, 0
		for _, r := range c.struck(tr).Requests() {
			if r.Method == tr.method && matchesPath(tr.pattern, r.Path) {
				requests++
				if r.Header.Get("Range") != "" {
					ranges++
				}
			}
		}
		switch {
		case ranges > 0:
			return resumed
		case requests > 1:
			return again
		}
		return succeeds
	case errors.Is(err, context.Canceled):
		return ended
	case errors.Is(err, lxd.ErrNotReplayable):
		return once
	case errors.As(err, &fingerprint):
		return corrupt
	case errors.Is(err, lxd.ErrBadResponse):
		return badAnswer
	case errors.Is(err, lxd.ErrOutcomeUnknown):
		return unknown
	case errors.As(err, &operation):
		return failed
	case errors.Is(err, lxd.ErrUnavailable):
		return away
	case errors.As(err, &refused):
		return refusal
	}
	return unexpected
}

func (c *faultCase) struck(tr *transfer) *lxdtest.Server {
	if tr.target {
		return c.to
	}
	return c.from
}

// matchesPath reports whether a path matches a pattern in which * is one segment.
func matchesPath(pattern, path string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return false
	}
	for n := range want {
		if want[n] != "*" && want[n] != got[n] {
			return false
		}
	}
	return true
}

func newFaultCase(t *testing.T, tr *transfer) *faultCase {
	c := &faultCase{t: t, dir: t.TempDir()}
	options := &lxdtest.AddOptions{}
	if tr.split {
		c.data, c.rootfs = lxdtest.SplitImage("faults", faultImageSize)
		options.Rootfs = c.rootfs
		c.fingerprint = lxdtest.Fingerprint(c.data, c.rootfs)
	} else {
		c.data = lxdtest.UnifiedImage("faults", faultImageSize)
		c.fingerprint = lxdtest.Fingerprint(c.data)
	}
	c.source = newMemorySource(c.data)
	c.from = lxdtest.NewServer(&lxdtest.Options{InMemory: true})
	c.to = lxdtest.NewServer(&lxdtest.Options{InMemory: true, Dial: c.source.dial})
	_, err := c.from.AddImage(c.data, options)
	require.NoError(t, err)
	c.fromC, err = lxd.New("unix:///from", &lxd.Options{Dial: c.from.DialContext})
	require.NoError(t, err)
	c.toC, err = lxd.New("unix:///to", &lxd.Options{Dial: c.to.DialContext})
	require.NoError(t, err)
	c.image, err = c.fromC.Images.Get(t.Context(), c.fingerprint)
	require.NoError(t, err)
	_, err = c.toC.Server(t.Context())
	require.NoError(t, err)
	if tr.prepare != nil {
		tr.prepare(c)
	}
	time.Sleep(2 * time.Minute) // idle connections go, so that a refusal is met
	c.from.ForgetRequests()
	c.to.ForgetRequests()
	return c
}

func (c *faultCase) close() {
	require.NoError(c.t, c.fromC.Close())
	require.NoError(c.t, c.toC.Close())
	c.from.Close()
	c.to.Close()
	require.NoError(c.t, c.source.Server.Close()) // closes the source too
}

// runFault plays one cell and returns its outcome.
func runFault(t *testing.T, tr *transfer, f *fault, injection lxdtest.Fault) string {
	c := newFaultCase(t, tr)
	defer c.close()
	// A socket that is dropped must be there first: what listens to events does
	// so beside the work itself.
	timed := f.late && tr.name != "events"
	struckLate := make(chan *lxdtest.Injection, 1)
	switch {
	case tr.name == "events" && f.late:
		c.late = &injection
	case timed:
		strike := time.AfterFunc(2*time.Second, func() { struckLate <- c.struck(tr).Inject(injection) })
		defer strike.Stop()
	default:
		c.injected = c.struck(tr).Inject(injection)
	}
	defer func() {
		if c.injected != nil {
			c.injected.Remove()
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if f.heal > 0 {
		healing := time.AfterFunc(f.heal, c.injected.Remove)
		defer healing.Stop()
	}
	var cancelled time.Time
	if f.cancel {
		giveUp := time.AfterFunc(2*time.Second, func() { cancelled = time.Now(); cancel() })
		defer giveUp.Stop()
	}
	started := time.Now()
	err := tr.run(ctx, c)
	took := time.Since(started)
	if timed {
		c.injected = <-struckLate
	}
	outcome := outcomeOf(c, tr, err)
	require.NotZero(t, c.injected.Fired(), "the fault was not met: %v", err)
	if err != nil {
		require.NotErrorIs(t, err, io.EOF)
	}
	if f.cancel {
		require.False(t, cancelled.IsZero(), "it did not stall: %v", err)
		require.LessOrEqual(t, time.Since(cancelled), time.Second)
	} else {
		require.Less(t, took, 5*time.Minute)
	}
	if f.name == "429 with Retry-After" && err == nil {
		require.GreaterOrEqual(t, took, faultPause)
	}
	c.requireSettled(tr, f, err)
	return outcome
}

// requireSettled looks at what is left behind.
func (c *faultCase) requireSettled(tr *transfer, f *fault, err error) {
	c.injected.Remove()
	if c.held != nil {
		c.held.Remove()
	}
	time.Sleep(10 * time.Second)
	for _, s := range []*lxdtest.Server{c.from, c.to} {
		require.Empty(c.t, s.Tokens())
		require.Empty(c.t, s.Running())
		require.LessOrEqual(c.t, s.Open(), 2)
	}
	images := c.to.Images()
	if err == nil && (tr.sends || tr.name == "URL import" || strings.Contains(tr.name, "relay")) {
		require.Len(c.t, images, 1)
		files, ferr := c.to.Files(c.fingerprint)
		require.NoError(c.t, ferr)
		require.Equal(c.t, c.fingerprint, lxdtest.Fingerprint(files...))
	}
	for _, image := range images {
		// Whatever the client returned, what exists is complete.
		require.Equal(c.t, c.fingerprint, image.Fingerprint, "an image that nobody sent")
	}
	if tr.oneShot {
		sent := 0
		for _, r := range c.to.Requests() {
			if r.Method == http.MethodPost && r.Path == "/1.0/images" && r.BodyBytes() > 0 {
				sent++
			}
		}
		require.LessOrEqual(c.t, sent, 1, "a one-shot body was sent twice")
	}
}

// TestFaults plays every fault that lxdtest has against every transfer, and
// compares the outcomes with the table and its document.
func TestFaults(t *testing.T) {
	outcomes := make(map[[2]string]string)
	for _, f := range faults {
		for _, tr := range transfers {
			injection, ok := f.of(&tr)
			key := [2]string{f.name, tr.name}
			if !ok {
				outcomes[key] = noMeaning
				continue
			}
			want, special := f.wants[tr.name]
			if !special {
				want = f.wants[""]
			}
			t.Run(f.name+"/"+tr.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					outcomes[key] = runFault(t, &tr, &f, injection)
					require.Equal(t, want, outcomes[key])
				})
			})
		}
	}
	if t.Failed() {
		return
	}
	table := faultDocument(outcomes)
	if *update {
		require.NoError(t, os.WriteFile(faultsDoc, []byte(table), 0o644))
	}
	doc, err := os.ReadFile(faultsDoc)
	require.NoError(t, err)
	require.Equal(t, string(doc), table, "%s differs from the test; run with -update", faultsDoc)
}

// TestContextEndsAPause ends the context while a call waits to try again after
// a fault that persists: the error wraps the context's error and its cause.
func TestContextEndsAPause(t *testing.T) {
	const limit = time.Millisecond // no pause is as short, and all else takes no time in a bubble
	for _, f := range []fault{
		{name: "503", of: aimed(lxdtest.Unavailable(), 0)},
		{name: "429", of: aimed(lxdtest.TooManyRequests(faultPause), 0)},
		{name: "reset before headers", of: aimed(lxdtest.Reset(), 0)},
		{name: "reset within the response", of: only(hasResponse, inResponse(lxdtest.CutResponse, 0))},
		{name: "reset within the upload", of: only(sends, aimed(lxdtest.CutRequest(faultAt), 0))},
	} {
		for _, tr := range transfers {
			injection, ok := f.of(&tr)
			if !ok {
				continue
			}
			t.Run(f.name+"/"+tr.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newFaultCase(t, &tr)
					defer c.close()
					defer c.struck(&tr).Inject(injection).Remove()
					stop := errors.New("enough")
					ctx, cancel := context.WithTimeoutCause(t.Context(), limit, stop)
					defer cancel()
					began := time.Now()
					err := tr.run(ctx, c)
					require.Less(t, time.Since(began), time.Second)
					if ctx.Err() == nil {
						require.Error(t, err) // without a pause before
						return
					}
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.ErrorIs(t, err, stop)
				})
			})
		}
	}
}

// TestContextEndsAStall has the caller cancel two seconds after the server has
// fallen silent, in every phase of each transfer.
func TestContextEndsAStall(t *testing.T) {
	for _, f := range []fault{
		{name: "stall before headers", of: aimed(lxdtest.StallHeaders(), 0), cancel: true},
		{name: "stall within the response", of: only(hasResponse, inResponse(lxdtest.StallResponse, 0)), cancel: true},
		{name: "stall within the upload", of: only(sends, aimed(lxdtest.StallRequest(faultAt), 0)), cancel: true},
		{name: "half-open", of: only(hasResponse, inResponse(lxdtest.HalfOpen, 0)), cancel: true},
	} {
		for _, tr := range transfers {
			injection, ok := f.of(&tr)
			if !ok {
				continue
			}
			t.Run(f.name+"/"+tr.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					require.Equal(t, ended, runFault(t, &tr, &f, injection))
				})
			})
		}
	}
}

const faultsDoc = "../../docs/faults.md"

func faultDocument(outcomes map[[2]string]string) string {
	var b strings.Builder
	counts := map[string]int{}
	cells := 0
	for _, outcome := range outcomes {
		if outcome != noMeaning {
			cells++
			counts[outcome]++
		}
	}
	b.WriteString(faultsPreface)
	fmt.Fprintf(&b, "\n%d faults against %d transfers, %d cells:\n\n| outcome | cells |\n|---|---|\n", len(faults), len(transfers), cells)
	for _, outcome := range []string{succeeds, again, resumed, away, badAnswer, corrupt, once, unknown, refusal, failed} {
		if counts[outcome] > 0 {
			fmt.Fprintf(&b, "| %s | %d |\n", outcome, counts[outcome])
		}
	}
	for start := 0; start < len(transfers); start += 8 {
		part := transfers[start:min(start+8, len(transfers))]
		b.WriteString("\n| fault |")
		for _, tr := range part {
			b.WriteString(" " + tr.name + " |")
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(part)) + "\n")
		for _, f := range faults {
			b.WriteString("| " + f.name + " |")
			for _, tr := range part {
				b.WriteString(" " + outcomes[[2]string{f.name, tr.name}] + " |")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

const faultsPreface = `# Faults

What becomes of each transfer when it meets each fault that lxdtest can inject.
Written by ` + "`go test ./test/faults -run TestFaults -update`" + ` and checked by the test, which plays every cell,
looks at the server afterwards (no token, no operation left, no image that is not whole,
no one-shot body sent twice, nothing under a final name). Where a server stalls, Options.StallTimeout is a minute,
the default. A caller who cancels during a stall has control again within a second (TestContextEndsAStall).

- *succeeds*: the fault does no harm. *sent again*: the request, body and all, went out anew.
  *resumed*: the rest was asked for with a Range request.
- *ErrUnavailable*, *ErrBadResponse*, *ErrNotReplayable*, *ErrOutcomeUnknown*: the sentinels of the package.
- *FingerprintError*, *OperationError*, *Error*: its types; the last is the daemon's own refusal.
- –: the fault cannot strike there.

A fault strikes once, unless its name says for how long.
A *one-shot* transfer has a reader that cannot be rewound.
`

// faults are the rows, with the outcome of each cell.
var faults = []fault{
	{name: "refused for half a second", of: always(lxdtest.Refuse()), heal: time.Second / 2, wants: map[string]string{"": succeeds}},
	{name: "refused for good", of: always(lxdtest.Refuse()), wants: map[string]string{"": away}},
	{name: "reset before headers", of: aimed(lxdtest.Reset(), 1), wants: map[string]string{"": again,
		"URL import": away,
	}},
	{name: "lost response", of: aimed(lxdtest.LoseResponse(), 1), wants: map[string]string{"": again,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
		"URL import":             away,
		"events":                 succeeds,
	}},
	{name: "reset within the response", of: only(hasResponse, inResponse(lxdtest.CutResponse, 1)), wants: map[string]string{"": again,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
		"export":                 resumed,
		"split export":           corrupt,
		"ExportTo":               resumed,
		"relay, source":          resumed,
		"URL import":             away,
	}},
	{name: "reset within the upload", of: only(sends, aimed(lxdtest.CutRequest(faultAt), 1)), wants: map[string]string{"": again,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
	}},
	{name: "stall before headers", of: aimed(lxdtest.StallHeaders(), 1), wants: map[string]string{"": again,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
		"URL import":             away,
	}},
	{name: "stall before headers for good", of: aimed(lxdtest.StallHeaders(), 0), wants: map[string]string{"": away,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
	}},
	{name: "stall within the response", of: only(hasResponse, inResponse(lxdtest.StallResponse, 1)), wants: map[string]string{"": again,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
		"export":                 resumed,
		"split export":           corrupt,
		"ExportTo":               resumed,
		"relay, source":          resumed,
		"URL import":             away,
	}},
	{name: "stall within the upload", of: only(sends, aimed(lxdtest.StallRequest(faultAt), 1)), wants: map[string]string{"": again,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
	}},
	{name: "half-open", of: only(hasResponse, inResponse(lxdtest.HalfOpen, 1)), wants: map[string]string{"": again,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
		"export":                 resumed,
		"split export":           corrupt,
		"ExportTo":               resumed,
		"relay, source":          resumed,
		"URL import":             away,
	}},
	{name: "half-open for good", of: only(hasResponse, inResponse(lxdtest.HalfOpen, 0)), wants: map[string]string{"": away,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
		"export":                 resumed,
		"split export":           corrupt,
		"ExportTo":               resumed,
		"split ExportTo":         corrupt,
		"relay, source":          resumed,
	}},
	{name: "503, then fine", of: aimed(lxdtest.Unavailable(), 1), wants: map[string]string{"": again}},
	{name: "503 for good", of: aimed(lxdtest.Unavailable(), 0), wants: map[string]string{"": away,
		"wait": again,
	}},
	{name: "429 with Retry-After", of: aimed(lxdtest.TooManyRequests(faultPause), 1), wants: map[string]string{"": again}},
	{name: "slow loris", of: only(hasResponse, aimed(lxdtest.SlowLoris(time.Millisecond), 1)), wants: map[string]string{"": succeeds}},
	{name: "20 kB/s for good", of: always(lxdtest.RateLimit(20_000)), wants: map[string]string{"": succeeds}},
	{name: "latency of 5 seconds for good", of: aimed(lxdtest.Latency(5*time.Second), 0), wants: map[string]string{"": succeeds}},
	{name: "early response 507", of: only(sends, aimed(lxdtest.EarlyResponse(faultAt, 507, "disk full"), 1)), wants: map[string]string{"": refusal}},
	{name: "cut multipart", of: only(splitExport, aimed(lxdtest.TruncateRootfs(faultAt), 1)), wants: map[string]string{"": corrupt,
		"split relay, source": failed,
	}},
	{name: "flipped byte", of: only(exports, inResponse(lxdtest.Corrupt, 1)), wants: map[string]string{"": corrupt,
		"relay, source":       failed,
		"split relay, source": failed,
	}},
	{name: "short length", of: only(unifiedExport, aimed(lxdtest.ShortLength(500), 1)), wants: map[string]string{"": corrupt,
		"relay, source": failed,
	}},
	{name: "duplicate events", of: only(hearsEvents, always(lxdtest.DuplicateEvents())), wants: map[string]string{"": succeeds}},
	{name: "reordered events", of: only(hearsEvents, always(lxdtest.ReorderEvents())), wants: map[string]string{"": succeeds}},
	{name: "dropped event socket", of: only(hearsEvents, always(lxdtest.DropEvents().Times(1))), late: true, wants: map[string]string{"": succeeds,
		"events": again,
	}},
	{name: "operations forgotten at once", of: only(works, always(lxdtest.ForgetOperations())), wants: map[string]string{"": succeeds}},
	{name: "restart", of: aimed(lxdtest.RestartServer(0), 1), wants: map[string]string{"": again,
		"URL import": away,
		"wait":       unknown,
	}},
	{name: "restart within the upload", of: only(sends, aimed(lxdtest.RestartServer(faultAt), 1)), wants: map[string]string{"": again,
		"upload, one-shot":       once,
		"split upload, one-shot": once,
	}},
	{name: "HTML page", of: aimed(lxdtest.HTML(), 1), wants: map[string]string{"": badAnswer,
		"wait": again,
	}},
	{name: "endless JSON", of: aimed(lxdtest.EndlessJSON(), 1), wants: map[string]string{"": badAnswer,
		"wait":   again,
		"events": again,
	}},
	{name: "redirect", of: aimed(lxdtest.Redirect("https://elsewhere.invalid/1.0"), 1), wants: map[string]string{"": badAnswer,
		"wait": again,
	}},
}
