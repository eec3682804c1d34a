package testdaemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// logName is the name of the daemon's log in its directory. Its standard output
// and error, panics for example, go there too.
const logName = "test-daemon.log"

// findBinary returns the path of the daemon's executable.
func findBinary(family Family, given string) (string, error) {
	names := []string{given}
	switch {
	case given != "":
	case family == LXD:
		names = []string{"lxd"}
	case family == Incus:
		names = []string{"incusd", "/usr/libexec/incus/incusd", "/usr/lib/incus/incusd"}
	default:
		return "", fmt.Errorf("testdaemon: unknown family %q", family)
	}
	var first error
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			return path, nil
		}
		if first == nil {
			first = err
		}
	}
	return "", fmt.Errorf("testdaemon: %s is not installed: %w", family, first)
}

// command returns the command that starts the daemon.
func (d *Daemon) command(log io.Writer) *exec.Cmd {
	//nolint:noctx // The daemon outlives the context of its start.
	cmd := exec.Command(d.Binary, "--group", "root", "--logfile", filepath.Join(d.Dir, logName))
	cmd.Env = d.environ(os.Environ())
	cmd.Dir = d.Dir
	cmd.Stdout, cmd.Stderr = log, log
	return cmd
}

// environ returns base without the variables that could point the daemon to
// another directory or proxy. A proxy that does not exist prevents its requests
// to the Internet at start.
func (d *Daemon) environ(base []string) []string {
	env := make([]string, 0, len(base)+4)
	for _, entry := range base {
		name, _, _ := strings.Cut(strings.ToUpper(entry), "=")
		if strings.HasPrefix(name, "LXD_") || strings.HasPrefix(name, "INCUS_") || strings.HasSuffix(name, "_PROXY") {
			continue
		}
		env = append(env, entry)
	}
	return append(env,
		strings.ToUpper(string(d.Family))+"_DIR="+d.Dir,
		"HOME="+d.Dir,
		"HTTPS_PROXY=http://127.0.0.1:1",
		"HTTP_PROXY=http://127.0.0.1:1",
		"NO_PROXY=127.0.0.1,localhost,::1")
}

// registries makes skopeo, with which Incus pulls OCI images, accept any certificate of
// a registry on loopback.
const registries = `[[registry]]
location = "127.0.0.1"
insecure = true
`

// writeRegistries writes it to the home of the daemon.
func (d *Daemon) writeRegistries() error {
	dir := filepath.Join(d.Dir, ".config", "containers")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("testdaemon: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "registries.conf"), []byte(registries), 0o600); err != nil {
		return fmt.Errorf("testdaemon: %w", err)
	}
	return nil
}

// start starts the daemon's process and waits until it responds.
// The caller holds d.mu.
func (d *Daemon) start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(d.Dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("testdaemon: open the daemon's log: %w", err)
	}
	defer log.Close()
	process, err := startProcess(d.command(log))
	if err != nil {
		return fmt.Errorf("testdaemon: start %s: %w", d.Binary, err)
	}
	d.process = process
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	return d.waitUntilReady(ctx)
}

// waitUntilReady polls the daemon's socket and, once it is set, its https
// address. The daemon does not signal in any other way that it is ready.
func (d *Daemon) waitUntilReady(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := d.Do(ctx, "GET", "/1.0", nil, nil)
		if err == nil && d.URL != "" {
			err = d.pingTLS(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-d.process.done:
			return fmt.Errorf("testdaemon: %s exited during its start: %s\n%s", d.Family, d.process.cmd.ProcessState, d.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("testdaemon: %s does not respond: %w (last error: %w)\n%s", d.Family, context.Cause(ctx), err, d.LogTail())
		case <-tick.C:
		}
	}
}

// StopGracefully sends SIGTERM to the daemon, as a service manager does, and
// waits until it has exited. It returns nil if the daemon does not run. If ctx
// ends first, StopGracefully returns without killing the daemon.
func (d *Daemon) StopGracefully(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stop(ctx)
}

func (d *Daemon) stop(ctx context.Context) error {
	if !d.owned {
		return ErrNotStarted
	}
	if d.process == nil {
		return nil
	}
	if err := d.process.terminate(); err != nil {
		return fmt.Errorf("testdaemon: stop %s: %w", d.Family, err)
	}
	select {
	case <-d.process.done:
		d.process = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("testdaemon: %s does not stop: %w\n%s", d.Family, context.Cause(ctx), d.LogTail())
	}
}

// Kill kills the daemon and all processes that it started with SIGKILL. It
// returns nil if the daemon does not run.
func (d *Daemon) Kill() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.owned {
		return ErrNotStarted
	}
	if d.process == nil {
		return nil
	}
	if err := d.process.kill(); err != nil {
		return fmt.Errorf("testdaemon: kill %s: %w", d.Family, err)
	}
	<-d.process.done
	d.process = nil
	return nil
}

// Restart stops the daemon gracefully if it runs, starts it in the same
// directory and at the same address, and returns when it is ready. After
// [Daemon.Kill] it is a start after a crash.
func (d *Daemon) Restart(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.stop(ctx); err != nil {
		return err
	}
	return d.start(ctx)
}

// PID returns the daemon's process id, or 0 if it does not run or was started by
// another process.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.process == nil {
		return 0
	}
	return d.process.cmd.Process.Pid
}

// LogTail returns the last 4 KiB of the daemon's log.
func (d *Daemon) LogTail() string {
	const limit = 4 << 10
	data, err := os.ReadFile(filepath.Join(d.Dir, logName))
	if err != nil {
		return "no log: " + err.Error()
	}
	if len(data) > limit {
		data = data[len(data)-limit:]
		if _, rest, found := bytes.Cut(data, []byte("\n")); found {
			data = rest
		}
	}
	return string(data)
}
