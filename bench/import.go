package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/golxd/lxd"
)

// importURL measures the import of an image from a web server by the client.
func (b *bench) importURL(f imageFiles) *row {
	e, gone := unixEndpoint(b.source), remove(b.source, f.fingerprint)
	own := func(j job) func(context.Context) (sample, error) {
		return func(ctx context.Context) (sample, error) {
			j.Do, j.Server, j.Image = "createFromURL", e, b.fileURL(f)
			return b.own(j)(ctx)
		}
	}
	const pipe = "curl into curl, and curl for the wait"
	return &row{
		name: fmt.Sprintf("import of %d MiB from a URL by the client, unix socket", f.size>>20),
		note: "a web server on loopback; curl verifies nothing, and its memory is that of its two processes",
		contenders: []contender{
			{ours, gone, own(job{}), nil},
			{ours + ", Fingerprint given", gone, own(job{Fingerprint: f.fingerprint}), nil},
			{pipe, gone, func(ctx context.Context) (sample, error) { return b.curlPipe(ctx, e, b.fileURL(f)) }, nil},
		},
		targets: []target{
			{against: pipe, what: wallTime, most: 1}, {against: pipe, what: cpuTime, most: 1},
			{what: peakMiB, most: 32},
		},
	}
}

// fileURL returns the file's URL on the web server.
func (b *bench) fileURL(f imageFiles) string { return b.webServer + "/" + filepath.Base(f.image) }

// startWebServer starts a process that serves the files of b.dir.
func (b *bench) startWebServer(ctx context.Context) error {
	cmd, err := (&job{Do: "serveFiles", Out: b.dir}).command(ctx, b.self)
	if err != nil {
		return err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	b.stopWebServer = func() error { return errors.Join(in.Close(), cmd.Wait()) }
	_, err = fmt.Fscan(out, &b.webServer)
	return err
}

// serveFiles serves the directory Out on loopback, until its standard input ends.
func serveFiles(_ context.Context, j *job) error {
	//nolint:noctx // It ends with this process.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(j.Out)), ReadHeaderTimeout: time.Minute}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	fmt.Println("http://" + listener.Addr().String())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// createFromURL streams the URL Image to the server.
func createFromURL(ctx context.Context, j *job) error {
	c, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_, err = c.Images.CreateFromURL(ctx, j.Image, &lxd.CreateFromURLOptions{
		Via: lxd.ViaClient, Wait: true, Fingerprint: j.Fingerprint, Progress: j.progress(),
	})
	return err
}

// curlPipe pipes one curl, which downloads, into another, which uploads; a third curl
// waits for the operation.
func (b *bench) curlPipe(ctx context.Context, e endpoint, url string) (sample, error) {
	fetch := exec.CommandContext(ctx, "curl", "--silent", "--show-error", "--fail", url)
	send := exec.CommandContext(ctx, "curl", "--silent", "--show-error", "--fail-with-body", "--unix-socket", e.raw,
		"--request", "POST", "--header", "Expect:", "--header", "Content-Type: application/octet-stream",
		"--upload-file", "-", "http://unix/1.0/images")
	r, w, err := os.Pipe()
	if err != nil {
		return sample{}, err
	}
	fetch.Stdout, send.Stdin = w, r
	fetch.Stderr, send.Stderr = os.Stderr, os.Stderr
	response, err := send.StdoutPipe()
	if err != nil {
		return sample{}, err
	}
	begin := time.Now()
	if err := errors.Join(fetch.Start(), send.Start(), r.Close(), w.Close()); err != nil {
		return sample{}, err
	}
	ended, peaks := make(chan struct{}), make(chan int64)
	for _, cmd := range []*exec.Cmd{fetch, send} {
		go func() { peaks <- watchPeak(cmd.Process.Pid, ended) }()
	}
	var started struct {
		Operation string `json:"operation"`
	}
	failed := json.NewDecoder(response).Decode(&started)
	failed = errors.Join(failed, send.Wait(), fetch.Wait())
	s := sample{wall: time.Since(begin)}
	close(ended)
	s.peak = <-peaks + <-peaks
	if failed != nil {
		return s, failed
	}
	for _, cmd := range []*exec.Cmd{fetch, send} {
		s.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	waited, out, err := b.curl(ctx, e, started.Operation+"/wait?timeout=-1")
	if err != nil {
		return s, err
	}
	var end struct {
		Metadata testOperation `json:"metadata"`
	}
	if err := json.Unmarshal(out, &end); err != nil {
		return s, err
	}
	if end.Metadata.StatusCode != 200 {
		return s, fmt.Errorf("the upload failed: %s", end.Metadata.Err)
	}
	return s.and(waited), nil
}
