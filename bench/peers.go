package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/golxd/lxd/internal/testdaemon"
)

// own returns a function that runs a job in a child process of this program.
func (b *bench) own(j job) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		spec, err := json.Marshal(j)
		if err != nil {
			return sample{}, err
		}
		s, _, err := run(ctx, command{path: b.self, args: []string{string(spec)}, own: true})
		return s, err
	}
}

// curl runs curl on a path of the API.
func (b *bench) curl(ctx context.Context, e endpoint, path string, args ...string) (sample, []byte, error) {
	base := []string{"--silent", "--show-error", "--fail-with-body"}
	url := e.raw + path
	if e.unix() {
		base = append(base, "--unix-socket", e.raw)
		url = "http://unix" + path
	} else {
		base = append(base, "--insecure", "--cert", e.certFile, "--key", e.keyFile)
	}
	return run(ctx, command{path: "curl", args: append(append(base, args...), url)})
}

// curlUpload uploads an image with curl, and waits for the operation with another.
func (b *bench) curlUpload(ctx context.Context, e endpoint, f imageFiles) (sample, error) {
	args := []string{"--request", "POST", "--header", "Expect:"}
	if f.rootfs == "" {
		args = append(args, "--header", "Content-Type: application/octet-stream", "--upload-file", f.image)
	} else {
		args = append(args, "--form", "metadata=@"+f.image, "--form", "rootfs=@"+f.rootfs)
	}
	sent, out, err := b.curl(ctx, e, "/1.0/images", args...)
	if err != nil {
		return sent, err
	}
	var response struct {
		Operation string `json:"operation"`
	}
	if err := json.Unmarshal(out, &response); err != nil {
		return sent, err
	}
	waited, out, err := b.curl(ctx, e, response.Operation+"/wait?timeout=-1")
	if err != nil {
		return sent, err
	}
	var ended struct {
		Metadata testOperation `json:"metadata"`
	}
	if err := json.Unmarshal(out, &ended); err != nil {
		return sent, err
	}
	if ended.Metadata.StatusCode != 200 {
		return sent, fmt.Errorf("the upload failed: %s", ended.Metadata.Err)
	}
	return sent.and(waited), nil
}

type testOperation struct {
	StatusCode int    `json:"status_code"`
	Err        string `json:"err"`
}

// curlExport downloads an image with curl, which verifies nothing and writes a split
// image as one multipart form.
func (b *bench) curlExport(e endpoint, fingerprint string) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		s, _, err := b.curl(ctx, e, "/1.0/images/"+fingerprint+"/export", "--output", filepath.Join(b.outDir(), "curl"))
		return s, err
	}
}

// curlGet reads one image with curl n times on one connection.
func (b *bench) curlGet(e endpoint, fingerprint string, n int) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		path := "/1.0/images/" + fingerprint
		if n > 1 {
			path += fmt.Sprintf("?n=[1-%d]", n)
		}
		s, _, err := b.curl(ctx, e, path, "--output", "/dev/null")
		return s, err
	}
}

// lxcRun returns a function that runs the lxc command.
func (b *bench) lxcRun(args ...string) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		s, _, err := run(ctx, command{path: b.lxc, args: args, env: []string{"LXD_CONF=" + b.lxcDir()}})
		return s, err
	}
}

// pylxd returns a function that runs a Python program in which client is a connected
// pylxd client.
func (b *bench) pylxd(d *testdaemon.Daemon, tls bool, program ...string) func(context.Context) (sample, error) {
	connect := "client = pylxd.Client()"
	if tls {
		connect = fmt.Sprintf("client = pylxd.Client(%q, cert=(%q, %q), verify=%q)",
			d.URL, filepath.Join(d.Dir, "test-client.crt"), filepath.Join(d.Dir, "test-client.key"), filepath.Join(d.Dir, "test-server.crt"))
	}
	lines := append([]string{"import pylxd, shutil, warnings", "warnings.simplefilter('ignore')", connect}, program...)
	return func(ctx context.Context) (sample, error) {
		// If REQUESTS_CA_BUNDLE is set, it overrides pylxd's own setting.
		env := []string{"LXD_DIR=" + d.Dir, "REQUESTS_CA_BUNDLE=" + filepath.Join(d.Dir, "test-server.crt")}
		s, _, err := run(ctx, command{path: b.python, args: []string{"-c", strings.Join(lines, "\n")}, env: env})
		return s, err
	}
}
