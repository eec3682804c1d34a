package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/lxdtest"
)

// bench is the environment of the rows.
type bench struct {
	self   string // path of this program
	dir    string
	lxc    string   // path of the command, or empty
	python string   // path of a Python that has pylxd, or empty
	near   *os.File // the near end of the links; nil before the first one
	load   string   // the machine's load averages at the start

	source, target *testdaemon.Daemon

	size           int64
	unified        imageFiles
	split          imageFiles
	small          []string
	bySize         []imageFiles
	listLength     int
	listBytes      int64
	listSocket     string
	stopListServer func() error
	indexBytes     int64 // of the simplestreams server
	webServer      string
	stopWebServer  func() error
}

// imageFiles are the files of one image.
type imageFiles struct {
	size        int64
	image       string
	rootfs      string // of a split image
	fingerprint string
}

const (
	smallImages = 200
	manyImages  = 10_000
)

// memorySizes are the sizes, in MiB, of the images whose transfers show that memory
// does not grow with the size.
var memorySizes = []int64{64, 256, 1024}

func setUp(ctx context.Context, parent string, size int64) (b *bench, err error) {
	dir, err := os.MkdirTemp(parent, "lxd-bench-")
	if err != nil {
		return nil, err
	}
	b = &bench{dir: dir, load: contentOf("/proc/loadavg"), size: size, listLength: manyImages}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("curl"); err != nil {
		return nil, err
	}
	if runtime.GOOS == "linux" {
		if _, err := exec.LookPath("ip"); err != nil {
			return nil, err
		}
	}
	b.lxc, _ = exec.LookPath("lxc")
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if exec.CommandContext(ctx, python, "-c", "import pylxd").Run() == nil {
			b.python = python
			break
		}
	}
	if b.source, err = testdaemon.Start(ctx, testdaemon.LXD, &testdaemon.Options{Parent: parent}); err != nil {
		return nil, err
	}
	if b.target, err = testdaemon.Start(ctx, testdaemon.LXD, &testdaemon.Options{Parent: parent}); err != nil {
		return nil, err
	}
	if err := b.makeFiles(); err != nil {
		return nil, err
	}
	if err := b.writeLXCConfig(ctx); err != nil {
		return nil, err
	}
	if err := b.startWebServer(ctx); err != nil {
		return nil, err
	}
	return b, b.startListServer(ctx)
}

func (b *bench) close() error {
	var errs []error
	for _, stop := range []func() error{b.stopListServer, b.stopWebServer} {
		if stop != nil {
			errs = append(errs, stop())
		}
	}
	if b.near != nil {
		errs = append(errs, b.near.Close())
	}
	for _, d := range []*testdaemon.Daemon{b.source, b.target} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// makeFiles writes the images. Their padding is random, like compressed images.
func (b *bench) makeFiles() error {
	var err error
	if b.unified, err = b.unifiedFile("unified", b.size); err != nil {
		return err
	}
	if b.split, err = b.splitFiles("split", b.size); err != nil {
		return err
	}
	for n := range smallImages {
		small, err := b.unifiedFile(fmt.Sprintf("small-%d", n), 0)
		if err != nil {
			return err
		}
		b.small = append(b.small, small.image)
	}
	if err := b.makeTree(); err != nil {
		return err
	}
	for _, mib := range memorySizes {
		f, err := b.unifiedFile(fmt.Sprintf("memory-%d", mib), mib<<20)
		if err != nil {
			return err
		}
		b.bySize = append(b.bySize, f)
	}
	return nil
}

func (b *bench) unifiedFile(name string, size int64) (imageFiles, error) {
	f := imageFiles{image: filepath.Join(b.dir, name+".tar.gz")}
	err := writeFile(f.image, func(w io.Writer) error { return lxdtest.WriteUnifiedImage(w, name, size) })
	if err != nil {
		return f, err
	}
	return f, f.sum()
}

func (b *bench) splitFiles(name string, size int64) (imageFiles, error) {
	metadata, rootfs := lxdtest.SplitImage(name, 0)
	f := imageFiles{image: filepath.Join(b.dir, name+".meta.tar.gz"), rootfs: filepath.Join(b.dir, name+".root")}
	if err := os.WriteFile(f.image, metadata, 0o600); err != nil {
		return f, err
	}
	err := writeFile(f.rootfs, func(w io.Writer) error {
		if _, err := w.Write(rootfs); err != nil {
			return err
		}
		_, err := io.CopyN(w, rand.Reader, size)
		return err
	})
	if err != nil {
		return f, err
	}
	return f, f.sum()
}

func writeFile(path string, fill func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(fill(f), f.Close())
}

// The remotes in the lxc command's configuration.
const (
	sourceUnix, targetUnix = "source-unix", "target-unix"
	sourceTLS, targetTLS   = "source-tls", "target-tls"
)

func (b *bench) lxcDir() string { return filepath.Join(b.dir, "lxc") }

// writeLXCConfig writes a configuration of the lxc command with both daemons.
func (b *bench) writeLXCConfig(ctx context.Context) error {
	remotes := map[string]any{}
	files := map[string][]byte{}
	for name, d := range map[string]*testdaemon.Daemon{sourceUnix: b.source, targetUnix: b.target} {
		remotes[name] = map[string]any{"addr": "unix://" + d.Socket, "protocol": "lxd"}
	}
	for name, d := range map[string]*testdaemon.Daemon{sourceTLS: b.source, targetTLS: b.target} {
		remotes[name] = map[string]any{"addr": d.URL, "protocol": "lxd", "auth_type": "tls"}
		files[filepath.Join("servercerts", name+".crt")] = d.ServerCertificate
	}
	// The command has one certificate for all remotes.
	files["client.crt"], files["client.key"] = b.source.ClientCertificate, b.source.ClientKey
	config, err := json.Marshal(map[string]any{"default-remote": sourceUnix, "remotes": remotes, "aliases": map[string]string{}})
	if err != nil {
		return err
	}
	files["config.yml"] = config // JSON is YAML
	for name, data := range files {
		path := filepath.Join(b.lxcDir(), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return b.target.Trust(ctx, "lxc", b.source.ClientCertificate)
}

// startListServer starts a process that serves the long list.
func (b *bench) startListServer(ctx context.Context) (err error) {
	b.listSocket = filepath.Join(b.dir, "list.socket")
	b.stopListServer, b.listBytes, err = b.startImageServer(ctx, b.listLength, b.listSocket)
	return err
}

// startImageServer starts a process that serves a list of images, and returns its size.
func (b *bench) startImageServer(ctx context.Context, count int, socket string) (stop func() error, size int64, err error) {
	cmd, err := (&job{Do: "serveImages", Count: count, Out: socket}).command(ctx, b.self)
	if err != nil {
		return nil, 0, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	stop = func() error { return errors.Join(in.Close(), cmd.Wait()) }
	if _, err := fmt.Fscan(out, &size); err != nil {
		return nil, 0, errors.Join(err, stop())
	}
	return stop, size, nil
}

// unixEndpoint and tlsEndpoint return the endpoints of a daemon.
func unixEndpoint(d *testdaemon.Daemon) endpoint {
	return endpoint{URL: "unix://" + d.Socket, raw: d.Socket}
}

func tlsEndpoint(d *testdaemon.Daemon) endpoint {
	return endpoint{
		URL: d.URL, Certificate: d.ClientCertificate, Key: d.ClientKey, ServerCert: d.ServerCertificate,
		certFile: filepath.Join(d.Dir, "test-client.crt"), keyFile: filepath.Join(d.Dir, "test-client.key"), raw: d.URL,
	}
}

func (e endpoint) unix() bool { return strings.HasPrefix(e.URL, "unix://") }
