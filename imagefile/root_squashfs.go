package imagefile

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/golxd/lxd/internal/ctxerr"
)

// FromSquashfs returns the root filesystem in a squashfs, such as the second file of a split image. The program sqfs2tar
// (package squashfs-tools-ng) reads it; without it [Pack] returns a [*ProgramError]. Sockets are left out, as tarballs cannot
// have them. Holes of sparse files become zeros.
func FromSquashfs(file string) Root { return squashfsRoot(file) }

type squashfsRoot string

func (s squashfsRoot) String() string { return string(s) }

func (s squashfsRoot) check() error {
	_, _, head, err := regularFile(string(s))
	if err != nil {
		return err
	}
	if _, format := detect(head); format != Squashfs {
		return &InputError{Field: "root", Problem: "is not a squashfs: " + string(s)}
	}
	return sqfs2tar.available()
}

func (s squashfsRoot) walk(ctx context.Context, add func(*entry) error) error {
	name, stat, _, err := regularFile(string(s))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	// --root-becomes . makes an entry of the root directory.
	proc := sqfs2tar.command(ctx, "--root-becomes", ".", name)
	out, err := proc.StdoutPipe()
	if err == nil {
		err = proc.Start()
	}
	if err != nil {
		err = proc.failure(err)
		cancel()
		return err
	}
	output := &processOutput{process: proc, out: out}
	defer func() {
		cancel()
		_ = output.close() // the error that matters has been returned
	}()
	if err := s.read(ctx, output, add); err != nil {
		return err
	}
	return unchanged(name, stat)
}

// read calls add for the entries of a tarball of sqfs2tar.
func (s squashfsRoot) read(ctx context.Context, output io.Reader, add func(*entry) error) error {
	in := tar.NewReader(output)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			// What follows the end of the tarball tells whether the program succeeds.
			if _, err = io.Copy(io.Discard, output); err == nil {
				return nil
			}
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", s, err)
		}
		if err := ctxerr.Of(ctx); err != nil {
			return err
		}
		e := &entry{Header: *header}
		if e.Name, err = localName(header.Name); err == nil && header.Typeflag == tar.TypeLink {
			e.Linkname, err = localName(header.Linkname)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", s, err)
		}
		if header.Size > 0 {
			e.content = in
		}
		if err := add(e); err != nil {
			return err
		}
	}
}

// localName returns a name of a tarball as an entry has it.
func localName(name string) (string, error) {
	local := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if local == "" {
		return ".", nil
	}
	if path.Clean(local) != local || !filepath.IsLocal(local) {
		return "", fmt.Errorf("the name leaves the root filesystem: %.200q", name)
	}
	return local, nil
}

// processOutput reads the standard output of a process. At its end it returns the error of the process, if it fails.
type processOutput struct {
	process *process
	out     io.Reader
	ended   bool
	err     error
}

func (o *processOutput) Read(p []byte) (int, error) {
	if o.ended {
		return 0, o.err
	}
	n, err := o.out.Read(p)
	if err == nil {
		return n, nil
	}
	if err := o.close(); err != nil {
		return n, err
	}
	return n, err
}

// close waits for the process.
func (o *processOutput) close() error {
	if !o.ended {
		o.ended, o.err = true, io.EOF
		if err := o.process.wait(); err != nil {
			o.err = err
		}
	}
	if errors.Is(o.err, io.EOF) {
		return nil
	}
	return o.err
}
