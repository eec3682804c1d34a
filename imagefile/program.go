package imagefile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// ProgramError says that a program that this package runs is not installed or fails. If it is not installed, it matches
// [exec.ErrNotFound], and nothing has been written.
type ProgramError struct {
	Program string // such as "tar2sqfs"
	Package string // of Debian, such as "squashfs-tools-ng"
	Stderr  string // the end of what the program wrote to its standard error
	Err     error
}

// Error returns what is wrong, and what to install.
func (e *ProgramError) Error() string {
	if errors.Is(e.Err, exec.ErrNotFound) {
		return fmt.Sprintf("the program %s is not installed; install the package %s", e.Program, e.Package)
	}
	text := fmt.Sprintf("the program %s fails: %v", e.Program, e.Err)
	if e.Stderr != "" {
		text += ": " + e.Stderr
	}
	return text
}

// Unwrap returns Err.
func (e *ProgramError) Unwrap() error { return e.Err }

// program is a program that this package runs.
type program struct{ name, pkg string }

var (
	sqfs2tar = program{"sqfs2tar", "squashfs-tools-ng"}
	tar2sqfs = program{"tar2sqfs", "squashfs-tools-ng"}
	qemuImg  = program{"qemu-img", "qemu-utils"}
)

// available returns a *ProgramError if the program is not installed.
func (p program) available() error {
	if _, err := exec.LookPath(p.name); err != nil {
		return &ProgramError{Program: p.name, Package: p.pkg, Err: err}
	}
	return nil
}

// process is a program that is not started yet, runs, or has ended.
type process struct {
	*exec.Cmd
	program program
	ctx     context.Context
	stderr  tail
}

// command returns a process that is killed when ctx ends.
func (p program) command(ctx context.Context, args ...string) *process {
	proc := &process{Cmd: exec.CommandContext(ctx, p.name, args...), program: p, ctx: ctx}
	proc.Cmd.Stderr = &proc.stderr
	// A process that the program leaves behind may keep its standard error open.
	proc.WaitDelay = 500 * time.Millisecond
	return proc
}

// wait returns the error of ctx if it has ended, otherwise a *ProgramError if the program failed.
func (p *process) wait() error { return p.failure(p.Wait()) }

// run starts the program and waits for it.
func (p *process) run() error { return p.failure(p.Run()) }

func (p *process) failure(err error) error {
	// A program whose input ends before it is killed may succeed with what it has.
	if ended := ctxerr.Of(p.ctx); ended != nil || err == nil {
		return ended
	}
	return &ProgramError{Program: p.program.name, Package: p.program.pkg, Stderr: strings.TrimSpace(string(p.stderr)), Err: err}
}

// tail keeps the last bytes that are written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	const limit = 2000
	*t = append(*t, p[max(0, len(p)-limit):]...)
	*t = (*t)[max(0, len(*t)-limit):]
	return len(p), nil
}

// contextReader returns the error of its context when that has ended.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := ctxerr.Of(r.ctx); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// regularFile returns the absolute name of a file, which is neither an option nor a URL for any program, what it is, and its
// first bytes.
func regularFile(name string) (path string, stat fs.FileInfo, head []byte, err error) {
	if path, err = filepath.Abs(name); err == nil {
		// A FIFO would block in Open.
		stat, err = os.Stat(path)
	}
	if err != nil {
		return "", nil, nil, &InputError{Field: "root", Problem: fmt.Sprintf("cannot be read: %v", err)}
	}
	if !stat.Mode().IsRegular() {
		return "", nil, nil, &InputError{Field: "root", Problem: "is not a regular file: " + name}
	}
	file, err := os.Open(path)
	if err != nil {
		return "", nil, nil, &InputError{Field: "root", Problem: fmt.Sprintf("cannot be read: %v", err)}
	}
	defer file.Close()
	head = make([]byte, headSize)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", nil, nil, &InputError{Field: "root", Problem: fmt.Sprintf("cannot be read: %v", err)}
	}
	return path, stat, head[:n], nil
}

// unchanged returns an error if a file is not the one that stat described.
func unchanged(path string, stat fs.FileInfo) error {
	now, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(now, stat) || now.Size() != stat.Size() || !now.ModTime().Equal(stat.ModTime()) {
		return fmt.Errorf("%.1000q: %w", path, ErrChanged)
	}
	return nil
}
