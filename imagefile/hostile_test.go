package imagefile_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/imagefile"
)

// endless returns data again and again.
type endless struct {
	data []byte
	at   int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.data[e.at:])
	e.at = (e.at + n) % len(e.data)
	return n, nil
}

// zeros is a zstd frame of 16 MiB zeros, of a few KiB.
var zeros = sync.OnceValue(func() []byte {
	out, _ := zstd.NewWriter(nil) // It never fails without options.
	return out.EncodeAll(make([]byte, 16<<20), nil)
})

// block returns the first block of a tarball's header, with a checksum.
func block(name string, kind byte, size int64, change func(b []byte)) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00")
	b[156] = kind
	copy(b[257:], "ustar  \x00")
	if change != nil {
		change(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// hugeXZ is the start of an xz file with a dictionary of 2 GiB.
func hugeXZ() []byte {
	crc := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	return append(append([]byte("\xfd7zXZ\x00"), crc([]byte{0, 1})...), append(crc([]byte{2, 0, 0x21, 1, 38, 0, 0, 0}), make([]byte, 1000)...)...)
}

// TestHostile: files of which nothing is bounded end with a problem, in little memory.
func TestHostile(t *testing.T) {
	// Not parallel: the heap is measured, and a limit is lowered.
	defer imagefile.SetMaxNames(9_000)()
	many := func(count int, each func(n int) *tar.Header) io.Reader {
		in, out := io.Pipe()
		go func() {
			buffer := bufio.NewWriterSize(out, 64<<10)
			archive := tar.NewWriter(buffer)
			for n := range count {
				if archive.WriteHeader(each(n)) != nil {
					return
				}
			}
			_ = archive.Close()
			_ = buffer.Flush()
			_ = out.Close()
		}()
		return in
	}
	sparse := make([]byte, 512) // an extended header of a sparse file, which says that another follows
	for n := range 21 {
		copy(sparse[n*24:], fmt.Sprintf("%011o\x00%011o\x00", 1<<20+n, 0))
	}
	sparse[504] = 1
	aliases := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		aliases += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	for _, c := range []struct {
		name string
		in   io.Reader
		kind imagefile.ProblemKind // of the first problem; empty for none
		size int64                 // MaxSize
	}{
		{name: "bomb", in: io.MultiReader(bytes.NewReader(tarZstd(t, block("rootfs/zeros", '0', 1<<32, nil))), &endless{data: zeros()}), kind: imagefile.TooLarge, size: 80 << 20},
		{name: "endless pipe", in: io.MultiReader(bytes.NewReader(block("rootfs/zeros", '0', 1<<32, nil)), &endless{data: make([]byte, 1<<20)}), kind: imagefile.TooLarge, size: 80 << 20},
		{name: "long names for ever", in: &endless{data: append(block("././@LongLink", 'L', 512, nil), make([]byte, 512)...)}, kind: imagefile.TooLarge},
		{name: "sparse for ever", in: io.MultiReader(bytes.NewReader(block("rootfs/sparse", 'S', 0, func(b []byte) {
			copy(b[386:], sparse[:96])
			b[482] = 1
			copy(b[483:], "77777777777\x00")
		})), &endless{data: sparse}), kind: imagefile.Damaged},
		{name: "endless metadata", in: io.MultiReader(bytes.NewReader(block("metadata.yaml", '0', 1<<32, nil)), &endless{data: bytes.Repeat([]byte("a: b\n"), 10_000)}), kind: imagefile.TooLarge},
		{name: "long name", in: many(1, func(int) *tar.Header { return &tar.Header{Name: "../" + strings.Repeat("x", 900_000)} }), kind: imagefile.EscapingPath},
		{name: "xz with 2 GiB", in: bytes.NewReader(hugeXZ()), kind: imagefile.TooLarge},
		{name: "lzma with 2 GiB", in: bytes.NewReader(append([]byte("]\x00\x00\x00\x80\xff\xff\xff\xff\xff\xff\xff\xff"), make([]byte, 1000)...)), kind: imagefile.TooLarge},
		{name: "zstd with 2 GiB", in: bytes.NewReader(append([]byte("\x28\xb5\x2f\xfd\x00\xa8"), make([]byte, 1000)...)), kind: imagefile.TooLarge},
		{name: "aliases", in: bytes.NewReader(unified(t, good+"templates:\n"+"  x: *a\n"+aliases)), kind: imagefile.BadMetadata},
		{name: "nested", in: bytes.NewReader(unified(t, strings.Repeat("[", 500_000))), kind: imagefile.BadMetadata},
		{name: "entries", in: many(20_000, func(n int) *tar.Header { return &tar.Header{Name: fmt.Sprint("rootfs/", n)} }), kind: imagefile.NoMetadata},
		{name: "devices", in: many(1_000, func(n int) *tar.Header { return &tar.Header{Name: fmt.Sprint("rootfs/", n), Typeflag: tar.TypeChar} }), kind: imagefile.DeviceNode},
		{name: "links", in: many(10_000, func(n int) *tar.Header {
			return &tar.Header{Name: fmt.Sprint("rootfs/", n), Typeflag: tar.TypeSymlink, Linkname: "/"}
		}), kind: imagefile.TooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer debug.SetGCPercent(debug.SetGCPercent(20))
			runtime.GC()
			in := &meter{in: c.in}
			in.measure()
			before := in.peak
			report, err := imagefile.Check(t.Context(), in, nil, &imagefile.CheckOptions{MaxSize: c.size})
			require.NoError(t, err)
			require.NotEmpty(t, report.Problems)
			require.Equal(t, c.kind, report.Problems[0].Kind, report.Problems[0])
			require.Equal(t, c.kind == imagefile.TooLarge, report.Problems[0].Severity == imagefile.Unchecked)
			if c.kind == imagefile.TooLarge {
				require.Error(t, report.Err())
			}
			require.LessOrEqual(t, len(report.Problems), 100)
			require.Less(t, len(report.Problems[0].Error()), 1000)
			in.measure()
			require.Less(t, in.peak-before, uint64(48<<20))
		})
	}
}

// tarZstd compresses the start of a tarball.
func tarZstd(t testing.TB, data []byte) []byte {
	t.Helper()
	out, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return out.EncodeAll(data, nil)
}

// meter measures the heap while it is read.
type meter struct {
	in   io.Reader
	n    int
	peak uint64
}

func (m *meter) measure() {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	m.peak = max(m.peak, stats.HeapAlloc)
}

func (m *meter) Read(p []byte) (int, error) {
	if m.n++; m.n%64 == 0 {
		m.measure()
	}
	return m.in.Read(p)
}
