package imagefile

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// squashfsAvailable returns a *ProgramError if a squashfs cannot be written.
func squashfsAvailable() error { return tar2sqfs.available() }

// squashfsWriter writes the squashfs of a tarball that is written to it. tar2sqfs makes it: unlike mksquashfs -tar (4.5.1), it
// keeps the owner, mode, time and extended attributes of the root directory, and the same tarball becomes the same bytes.
// Sparse files must be of version 1.0 of GNU's format: it refuses older ones.
type squashfsWriter struct {
	ctx    context.Context
	cancel context.CancelFunc
	w      io.Writer
	dir    string // of the temporary file
	proc   *process
	stdin  io.WriteCloser
	ended  bool
	err    error
}

// newSquashfsWriter returns a writer of a tarball whose entries are relative to the root directory. Close writes the squashfs
// to w. Its blocks are compressed with Gzip, XZ or Zstd; the default is XZ. created is its time, not that of the files. The
// caller must call discard.
func newSquashfsWriter(ctx context.Context, w io.Writer, compression Compression, created time.Time) (*squashfsWriter, error) {
	name := ""
	switch compression {
	case "", XZ:
		name = "xz"
	case Gzip:
		name = "gzip"
	case Zstd:
		name = "zstd"
	default:
		return nil, &InputError{Field: "Compression", Problem: fmt.Sprintf("is none of gzip, xz and zstd, which a squashfs can have: %q", string(compression))}
	}
	if err := checkSquashfsTime(created); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "imagefile-squashfs-")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &squashfsWriter{ctx: ctx, cancel: cancel, w: w, dir: dir}
	s.proc = tar2sqfs.command(ctx, "--quiet", "--no-skip", "--compressor", name, s.file())
	s.proc.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(created.Unix(), 10))
	if s.stdin, err = s.proc.StdinPipe(); err == nil {
		err = s.proc.Start()
	}
	if err != nil {
		err = s.proc.failure(err)
		s.ended = true
		s.discard()
		return nil, err
	}
	return s, nil
}

// checkSquashfsTime returns an *InputError for a creation date that a squashfs cannot have.
func checkSquashfsTime(created time.Time) error {
	if seconds := created.Unix(); seconds < 0 || seconds > math.MaxUint32 {
		return &InputError{Field: "metadata", Problem: fmt.Sprintf("has a creation date that a squashfs cannot have, as it is not within 1970 and 2106: %s", created)}
	}
	return nil
}

func (s *squashfsWriter) file() string { return filepath.Join(s.dir, "rootfs.squashfs") }

// Write writes a part of the tarball. Its error is that of ctx or of the program.
func (s *squashfsWriter) Write(p []byte) (int, error) {
	if !s.ended {
		if n, err := s.stdin.Write(p); err == nil {
			return n, nil
		}
	}
	// The program has ended. If it succeeds, p is the padding after the end of the tarball.
	if err := s.wait(); err != nil {
		return 0, err
	}
	return len(p), nil
}

// wait ends the tarball, and waits for the program.
func (s *squashfsWriter) wait() error {
	if !s.ended {
		s.ended = true
		_ = s.stdin.Close() // fails if the program has ended, which wait tells
		s.err = s.proc.wait()
	}
	return s.err
}

// Close writes the squashfs to w, unless a Write failed.
func (s *squashfsWriter) Close() error {
	defer s.discard()
	if err := s.wait(); err != nil {
		return err
	}
	file, err := os.Open(s.file())
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(s.w, &contextReader{s.ctx, file}); err != nil {
		return fmt.Errorf("write the squashfs: %w", err)
	}
	return nil
}

// discard ends the program and removes its file. It does nothing after Close.
func (s *squashfsWriter) discard() {
	s.cancel()
	_ = s.wait() // the program was killed
	_ = os.RemoveAll(s.dir)
}
