package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/procmem"
)

// job is the work of one child process, which uses only the public API of package
// lxd.
type job struct {
	Do     string
	Server endpoint
	Target endpoint // of a copy

	Image       string   // path of the file of a unified image, or of the metadata
	Rootfs      string   // path of the second file of a split image
	Images      []string // paths of many small images
	Fingerprint string
	Alias       string
	Wait        bool
	Workers     int // concurrent calls, or connections of one call
	Count       int
	Bytes       int64
	Link        *link // the network link for the job Far
	Far         *job
	Out         string // file or directory to write to
	Progress    bool   // report the progress, to measure its cost
}

// endpoint is how to reach a server.
type endpoint struct {
	URL                          string
	Certificate, Key, ServerCert []byte // PEM, for https
	SocketBuffer                 int    // of a unix socket, instead of the package's own size
	certFile, keyFile, raw       string // for other programs
}

func (e endpoint) client() (*lxd.Client, error) {
	o := &lxd.Options{ClientCertificate: e.Certificate, ClientKey: e.Key, ServerCertificate: e.ServerCert}
	if e.SocketBuffer > 0 {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			unix, ok := c.(*net.UnixConn)
			if !ok {
				return nil, errors.Join(errors.New("not a unix socket"), c.Close())
			}
			return fixedBuffer{unix}, unix.SetWriteBuffer(e.SocketBuffer)
		}
	}
	return lxd.New(e.URL, o)
}

// fixedBuffer is a connection that does not let the package change its buffer.
type fixedBuffer struct{ *net.UnixConn }

// SetWriteBuffer leaves the buffer as it is.
func (fixedBuffer) SetWriteBuffer(int) error { return nil }

// command returns the child process for the job.
func (j *job) command(ctx context.Context, self string) (*exec.Cmd, error) {
	spec, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, string(spec))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// work are the child's own measurements, which do not include the start of the
// process.
type work struct {
	Seconds   float64
	Allocated uint64 // total bytes allocated on the heap
	Objects   uint64
	Peak      int64 // of the memory, in bytes
}

// runChild does one job and prints its work as JSON.
func runChild(spec string) error {
	var j job
	if err := json.Unmarshal([]byte(spec), &j); err != nil {
		return err
	}
	do, ok := jobs[j.Do]
	if !ok {
		return fmt.Errorf("unknown job %q", j.Do)
	}
	begin := time.Now()
	if err := do(context.Background(), &j); err != nil {
		return fmt.Errorf("%s: %w", j.Do, err)
	}
	if j.Far != nil {
		return nil // its process has printed its work
	}
	w := work{Seconds: time.Since(begin).Seconds()}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	w.Allocated, w.Objects, w.Peak = mem.TotalAlloc, mem.Mallocs, procmem.Peak(os.Getpid())
	return json.NewEncoder(os.Stdout).Encode(w)
}

var jobs = map[string]func(context.Context, *job) error{
	"create":      create,
	"createMany":  createMany,
	"export":      export,
	"exportTo":    exportTo,
	"copy":        copyImage,
	"get":         get,
	"getMany":     getMany,
	"all":         listAll,
	"each":        listEach,
	"twoPasses":   listTwoPasses,
	"serveImages": serveImages,

	"ensure":        ensure(lxd.EnsureNewest),
	"ensureMissing": ensure(lxd.EnsureMissing),
	"ensureStreams": ensureStreams,
	"exists":        exists,

	"createFromURL": createFromURL,
	"serveFiles":    serveFiles,

	"touch": touch,
	"link":  runLink,
}

// touch writes Bytes bytes to the file Out and removes it, twice: in small blocks,
// which the page cache keeps in single pages, and in large ones.
func touch(_ context.Context, j *job) error {
	for _, block := range []int{4 << 10, 256 << 10} {
		err := writeFile(j.Out, func(w io.Writer) error {
			b := make([]byte, block)
			for n := int64(0); n < j.Bytes; n += int64(len(b)) {
				if _, err := w.Write(b); err != nil {
					return err
				}
			}
			return nil
		})
		if err := errors.Join(err, os.Remove(j.Out)); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) progress() func(lxd.Progress) {
	if !j.Progress {
		return nil
	}
	return func(lxd.Progress) {}
}

func create(ctx context.Context, j *job) error {
	c, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	f, err := os.Open(j.Image)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	o := &lxd.CreateOptions{Wait: j.Wait, Fingerprint: j.Fingerprint, Progress: j.progress()}
	if j.Rootfs != "" {
		rootfs, err := os.Open(j.Rootfs)
		if err != nil {
			return err
		}
		defer func() { _ = rootfs.Close() }()
		o.Rootfs = rootfs
	}
	_, err = c.Images.Create(ctx, f, o)
	return err
}

func createMany(ctx context.Context, j *job) error {
	c, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	todo := make(chan string)
	errs := make(chan error, j.Workers)
	var workers sync.WaitGroup
	for range j.Workers {
		workers.Go(func() {
			for path := range todo {
				if err := createOne(ctx, c, path); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	for _, path := range j.Images {
		select {
		case todo <- path:
		case err := <-errs:
			return err
		}
	}
	close(todo)
	workers.Wait()
	close(errs)
	return <-errs
}

func createOne(ctx context.Context, c *lxd.Client, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = c.Images.Create(ctx, f, &lxd.CreateOptions{Wait: true})
	return err
}

func export(ctx context.Context, j *job) error {
	c, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	image, err := c.Images.Get(ctx, j.Fingerprint)
	if err != nil {
		return err
	}
	content, err := image.Export(ctx, &lxd.ExportOptions{Progress: j.progress()})
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }()
	for n := 0; ; n++ {
		if err := toFile(fmt.Sprintf("%s.%d", j.Out, n), content); err != nil {
			return err
		}
		switch err := content.Next(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func toFile(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

func exportTo(ctx context.Context, j *job) error {
	c, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	image, err := c.Images.Get(ctx, j.Fingerprint)
	if err != nil {
		return err
	}
	_, err = image.ExportTo(ctx, j.Out, &lxd.ExportToOptions{Connections: j.Workers, Progress: j.progress()})
	return err
}

func copyImage(ctx context.Context, j *job) error {
	from, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := j.Target.client()
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	image, err := from.Images.Get(ctx, j.Fingerprint)
	if err != nil {
		return err
	}
	_, err = image.Copy(ctx, to, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true, Progress: j.progress()})
	return err
}

func get(ctx context.Context, j *job) error {
	j.Count = 1
	return getMany(ctx, j)
}

func getMany(ctx context.Context, j *job) error {
	c, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	for range j.Count {
		if _, err := c.Images.Get(ctx, j.Fingerprint); err != nil {
			return err
		}
	}
	return nil
}

func listAll(ctx context.Context, j *job) error {
	c, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	images, err := c.Images.All(ctx, nil)
	if err == nil && len(images) != j.Count {
		err = fmt.Errorf("listed %d images, not %d", len(images), j.Count)
	}
	return err
}

func listEach(ctx context.Context, j *job) error {
	c, err := j.Server.client()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	n := 0
	for _, err := range c.Images.Each(ctx, nil) {
		if err != nil {
			return err
		}
		n++
	}
	if n != j.Count {
		return fmt.Errorf("listed %d images, not %d", n, j.Count)
	}
	return nil
}

// listTwoPasses lists images as most clients do: it reads the whole body, decodes
// the envelope, and then its metadata.
func listTwoPasses(ctx context.Context, j *job) error {
	pool := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", j.Server.URL)
	}}
	defer pool.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://unix/1.0/images?recursion=1", nil)
	if err != nil {
		return err
	}
	res, err := pool.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	var envelope struct {
		Metadata json.RawMessage `json:"metadata"`
	}
	if err := json.Unmarshal(body, &envelope); err != nil {
		return err
	}
	var images []lxd.Image
	if err := json.Unmarshal(envelope.Metadata, &images); err != nil {
		return err
	}
	if len(images) != j.Count {
		return fmt.Errorf("listed %d images, not %d", len(images), j.Count)
	}
	return nil
}

// serveImages serves a list of Count images, which never change, on the unix socket Out, until its
// standard input ends.
func serveImages(_ context.Context, j *job) error {
	images := make([]lxd.Image, j.Count)
	for n := range images {
		sum := sha256.Sum256(fmt.Append(nil, n))
		images[n] = lxd.Image{
			Fingerprint: hex.EncodeToString(sum[:]), Architecture: "x86_64", Type: lxd.Container, Size: 123 << 20,
			Filename: fmt.Sprintf("image-%d.tar.xz", n), Profiles: []string{"default"}, Project: "default",
			Aliases:   []lxd.Alias{{Name: fmt.Sprintf("distribution/%d", n), Description: "one of many images"}},
			CreatedAt: time.Unix(1700000000, 0).UTC(), UploadedAt: time.Unix(1700000000, 123456789).UTC(),
			Properties: map[string]string{
				"architecture": "amd64", "description": "Distribution 24.04 LTS amd64 (release) (20260101)", "label": "release",
				"os": "distribution", "release": "noble", "serial": "20260101", "type": "squashfs", "version": "24.04",
			},
			UpdateSource: &lxd.UpdateSource{Alias: "24.04", Protocol: "simplestreams", Server: "https://images.example.net/releases"},
		}
	}
	envelope := func(metadata any) ([]byte, error) {
		return json.Marshal(map[string]any{"type": "sync", "status": "Success", "status_code": 200, "metadata": metadata})
	}
	list, err := envelope(images)
	if err != nil {
		return err
	}
	info, err := envelope(map[string]any{
		"api_version": "1.0", "auth": "trusted", "api_extensions": []string{}, "environment": map[string]any{"server": "lxd", "server_version": "5.0.2"},
	})
	if err != nil {
		return err
	}
	//nolint:noctx // It ends with this process.
	listener, err := net.Listen("unix", j.Out)
	if err != nil {
		return err
	}
	send := func(data []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(data)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /1.0", send(info))
	mux.HandleFunc("GET /1.0/images", send(list))
	mux.HandleFunc("GET /1.0/events", func(w http.ResponseWriter, r *http.Request) {
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err == nil {
			_, _, _ = conn.ReadMessage() // until the client leaves
			_ = conn.Close()
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	fmt.Println(len(list))
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return os.RemoveAll(filepath.Clean(j.Out))
}
