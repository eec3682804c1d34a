// Package ensure_test has programs call Images.Ensure: one that is killed, one whose
// daemon is killed, and many at once.
package ensure_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
)

// envJob has a process of this test binary do a job in place of the tests.
const envJob = "LXD_TEST_ENSURE_JOB"

// job is what a program does.
type job struct {
	Endpoint string
	Callers  int // that call Ensure at the same moment with one client

	// Kind is that of the source: "file", "url", "simplestreams" or "image".
	Kind string
	// From is its path, URL, or endpoint, and Ref its alias or fingerprint.
	From, Ref string
	// Certificate, Key and Server are for the endpoint of an image.
	Certificate, Key, Server []byte

	wish

	// FatalResponse is the number of the request after whose response the program kills
	// itself; 0 for none.
	FatalResponse int
	// FatalChange is the number, among the requests that are not GET, of the one that the
	// program has sent, or sent half of if it is large, when it kills itself.
	FatalChange int
}

// wish is what the programs of a test ask Ensure for.
type wish struct {
	Aliases  []string
	Previous string
	Made     string // the property
}

func (w wish) options() *lxd.EnsureOptions {
	opts := &lxd.EnsureOptions{Previous: w.Previous, DeleteReplaced: true, Properties: map[string]string{"made": w.Made}}
	for _, name := range w.Aliases {
		opts.Aliases = append(opts.Aliases, lxd.Alias{Name: name})
	}
	return opts
}

// outcome is what a program prints at its end.
type outcome struct {
	Requests int
	Uploads  int // how many of them created an image
	Failed   []string
}

func (j *job) source() (lxd.Source, func() error, error) {
	none := func() error { return nil }
	switch j.Kind {
	case "file":
		return lxd.FromFile(j.From, nil), none, nil
	case "url":
		return lxd.FromURL(j.From, &lxd.FromURLOptions{Via: lxd.ViaClient}), none, nil
	case "simplestreams":
		return lxd.FromSimplestreams(j.From, j.Ref, &lxd.FromSimplestreamsOptions{AllowHTTP: true}), none, nil
	}
	far, err := lxd.New(j.From, &lxd.Options{ClientCertificate: j.Certificate, ClientKey: j.Key, ServerCertificate: j.Server})
	if err != nil {
		return nil, nil, err
	}
	return lxd.FromImage(far, j.Ref, &lxd.FromImageOptions{Mode: lxd.CopyPull}), far.Close, nil
}

// runJob is the program. It says when it is ready, and begins when its input ends.
func runJob(text string) (code int) {
	var j job
	out, err := outcome{}, json.Unmarshal([]byte(text), &j)
	if err == nil {
		err = j.run(&out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return 1
	}
	return 0
}

func (j *job) run(out *outcome) (err error) {
	counter := &transport{}
	c, err := lxd.New(j.Endpoint, &lxd.Options{Transport: func(base http.RoundTripper) http.RoundTripper {
		counter.RoundTripper = base
		return counter
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	source, closeSource, err := j.source()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeSource()) }()
	if _, err := c.Server(context.Background()); err != nil {
		return err
	}
	counter.requests.Store(0)
	counter.job = j
	fmt.Println(ready)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	errs := make([]error, j.Callers)
	var all sync.WaitGroup
	for n := range errs {
		all.Go(func() { _, errs[n] = c.Images.Ensure(context.Background(), source, j.options()) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			out.Failed = append(out.Failed, err.Error())
		}
	}
	out.Requests, out.Uploads = int(counter.requests.Load()), int(counter.uploads.Load())
	return nil
}

const ready = "ready"

// transport counts requests, and kills the program at one of them.
type transport struct {
	http.RoundTripper

	*job                       // nil until it begins
	requests, changes, uploads atomic.Int64
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/images") {
		t.uploads.Add(1)
	}
	request, change := t.requests.Add(1), int64(0)
	if r.Method != http.MethodGet {
		change = t.changes.Add(1)
	}
	sent := change != 0 && t.job != nil && change == int64(t.FatalChange)
	if t.job == nil || !sent && request != int64(t.FatalResponse) {
		return t.RoundTripper.RoundTrip(r)
	}
	switch {
	case !sent:
	case r.ContentLength > large:
		r = r.Clone(r.Context())
		r.Body = &fatalBody{r.Body, r.ContentLength / 2}
	default:
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { killSelf() }}))
	}
	_, _ = t.RoundTripper.RoundTrip(r) //nolint:bodyclose // nothing survives
	killSelf()
	return nil, nil
}

// large is the size of a request that is sent in many writes.
const large = 64 << 10

// fatalBody kills the program when so much has been read.
type fatalBody struct {
	io.ReadCloser

	left int64
}

func (b *fatalBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		killSelf()
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

// killSelf ends the program as kill -9 does, and does not return.
func killSelf() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {}
}

// program is one that runs.
type program struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
	err strings.Builder
}

// start starts a program, and returns when it is ready.
func start(t *testing.T, j job) *program {
	t.Helper()
	text, err := json.Marshal(j)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	p := &program{cmd: exec.CommandContext(t.Context(), self)}
	// With the race detector, each program would sleep for a second at its end.
	p.cmd.Env = append(os.Environ(), envJob+"="+string(text), "GORACE=atexit_sleep_ms=0")
	p.cmd.Stderr = &p.err
	p.in, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.out = bufio.NewReader(out)
	require.NoError(t, p.cmd.Start())
	line, err := p.out.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != ready {
		_ = p.cmd.Wait()
		require.Fail(t, "the program does not start", "%v: %s", err, p.err.String())
	}
	return p
}

// begin lets the program begin.
func (p *program) begin(t *testing.T) {
	t.Helper()
	require.NoError(t, p.in.Close())
}

// end waits for the program. It is false if it was killed.
func (p *program) end(t *testing.T) (out outcome, ended bool) {
	t.Helper()
	text, err := io.ReadAll(p.out)
	require.NoError(t, err)
	err = p.cmd.Wait()
	require.Empty(t, p.err.String())
	if err != nil {
		return out, false
	}
	require.NoError(t, json.Unmarshal(text, &out), string(text))
	return out, true
}
