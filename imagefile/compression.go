package imagefile

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/mikelolasagasti/xz"
	xzwriter "github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxWindow limits the memory of a decompressor. xz -9 needs 64 MiB, zstd --long 128 MiB.
const maxWindow = 128 << 20

// errWindow says that an lzma file needs more than maxWindow.
var errWindow = errors.New("lzma: window too large")

// headSize is what detect looks at: up to the magic of a tarball.
const headSize = 512

// detect returns what a file is by its first bytes. The format of a compressed file is empty.
func detect(head []byte) (Compression, Format) {
	starts := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case starts("\x1f\x8b"):
		return Gzip, ""
	case starts("BZh"):
		return Bzip2, ""
	case starts("\xfd7zXZ\x00"):
		return XZ, ""
	case starts("]\x00\x00"):
		return LZMA, ""
	case starts("\x28\xb5\x2f\xfd"):
		return Zstd, ""
	}
	return None, detectFormat(head)
}

// detectFormat returns the format of an uncompressed file, "" if it is unknown.
func detectFormat(head []byte) Format {
	switch {
	case bytes.HasPrefix(head, []byte("hsqs")):
		return Squashfs
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		return Qcow2
	case len(head) >= 262 && string(head[257:262]) == "ustar":
		return Tar
	case len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa:
		return Raw
	}
	return ""
}

// decompress returns the content of a file, and a function that frees its memory.
func decompress(c Compression, r *bufio.Reader) (io.Reader, func(), error) {
	nothing := func() {}
	switch c {
	case Gzip:
		out, err := gzip.NewReader(r)
		return out, nothing, err
	case Bzip2:
		return bzip2.NewReader(r), nothing, nil
	case XZ:
		out, err := xz.NewReader(r, maxWindow)
		return out, nothing, err
	case LZMA:
		if head, err := r.Peek(5); err == nil && binary.LittleEndian.Uint32(head[1:]) > maxWindow {
			return nil, nothing, errWindow
		}
		out, err := lzma.ReaderConfig{DictCap: maxWindow}.NewReader(r)
		return out, nothing, err
	case Zstd:
		out, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nothing, err
		}
		return out, out.Close, nil
	}
	return r, nothing, nil
}

// compress returns a writer that compresses what is written to it. Its Close does not close w.
func compress(c Compression, level int, w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		out, err := pgzip.NewWriterLevel(w, cmp.Or(level, pgzip.DefaultCompression))
		if err != nil {
			return nil, err
		}
		return gzipWriter{out}, nil
	case XZ:
		out, err := xzwriter.NewWriter(w)
		if err != nil {
			return nil, err
		}
		return out, nil
	case Zstd:
		// With two encoders or more the bytes are the same, whatever their number; with one they are not. Each needs about
		// 50 MiB with this window, with which the result is as large as that of the program zstd.
		encoders := min(max(2, runtime.GOMAXPROCS(0)), 4)
		out, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(cmp.Or(level, 3))),
			zstd.WithConcurrentBlocks(true), zstd.WithEncoderConcurrency(encoders), zstd.WithWindowSize(2<<20))
		if err != nil {
			return nil, err
		}
		return out, nil
	}
	return uncompressed{w}, nil
}

// gzipWriter ends the goroutines of pgzip, which its Close does not after an error.
type gzipWriter struct{ *pgzip.Writer }

// Close implements io.Closer.
func (g gzipWriter) Close() error {
	err := g.Writer.Close()
	if err != nil {
		g.Reset(io.Discard)
	}
	return err
}

// uncompressed is a compressor that does nothing.
type uncompressed struct{ io.Writer }

// Close implements io.Closer.
func (uncompressed) Close() error { return nil }

// squashfsSize returns the size that a squashfs says it has; 0 if the head is too short, or of another version than 4, which
// has another superblock.
func squashfsSize(head []byte) int64 {
	if len(head) < 48 || binary.LittleEndian.Uint16(head[28:]) != 4 {
		return 0
	}
	return int64(min(binary.LittleEndian.Uint64(head[40:]), 1<<62))
}

// qcow2Size returns the size of the disk in a qcow2; 0 if the head is too short.
func qcow2Size(head []byte) int64 {
	if len(head) < 32 {
		return 0
	}
	return int64(min(binary.BigEndian.Uint64(head[24:]), 1<<62))
}

// qcow2Needs returns the size that a qcow2 must have, by the tables that its header names; 0 if the head is too short. What
// its clusters need is not known without reading the tables.
func qcow2Needs(head []byte) int64 {
	if len(head) < 72 {
		return 0
	}
	at := func(offset int) uint64 { return min(binary.BigEndian.Uint64(head[offset:]), 1<<61) }
	l1 := at(40) + 8*uint64(binary.BigEndian.Uint32(head[36:]))
	refcounts := at(48) + uint64(binary.BigEndian.Uint32(head[56:]))<<min(binary.BigEndian.Uint32(head[20:]), 21)
	return int64(max(l1, refcounts))
}

// isCut says whether an error of a decompressor is that of a file that ends too early.
func isCut(err error) bool { return errors.Is(err, xz.ErrBuf) }

// isMemoryLimit says whether a decompressor needs more than maxWindow.
func isMemoryLimit(err error) bool {
	return errors.Is(err, errWindow) || errors.Is(err, xz.ErrMemlimit) || errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded)
}
