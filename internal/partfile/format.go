package partfile

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// formats are the formats of an image's files, recognized by a magic number.
var formats = []struct {
	ext    string
	magic  string
	offset int64
}{
	{".tar.gz", "\x1f\x8b", 0},
	{".tar.xz", "\xfd7zXZ\x00", 0},
	{".tar.zst", "\x28\xb5\x2f\xfd", 0},
	{".tar.bz2", "BZh", 0},
	{".tar.lzma", "\x5d\x00\x00", 0},
	{".tar.lz4", "\x04\x22\x4d\x18", 0},
	{".squashfs", "hsqs", 0},
	{".qcow2", "QFI\xfb", 0},
	{".tar", "ustar", 257},
}

// unknownFormat is the extension for any other format.
const unknownFormat = ".img"

func extensions() []string {
	var list []string
	for _, f := range formats {
		list = append(list, f.ext)
	}
	return append(list, unknownFormat)
}

func extension(f *os.File) (string, error) {
	head := make([]byte, HeadSize)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return Extension(head[:n]), nil
}

// HeadSize is the number of bytes that Extension needs of a file.
const HeadSize = 512

// Extension returns the extension for a file that begins with head, or ".img" if the
// format is unknown.
func Extension(head []byte) string {
	for _, format := range formats {
		if int64(len(head)) > format.offset && bytes.HasPrefix(head[format.offset:], []byte(format.magic)) {
			return format.ext
		}
	}
	return unknownFormat
}
