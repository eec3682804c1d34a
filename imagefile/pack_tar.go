package imagefile

import (
	"archive/tar"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"
)

// tarball writes the entries of one tarball, compressed.
type tarball struct {
	prefix string // of the names of entries, such as "rootfs/"
	out    io.WriteCloser
	tar    *tar.Writer
	below  interface { // a program that the tarball is written to
		Close() error
		discard()
	}
}

// newTarball begins a tarball. The caller must call close or discard.
func newTarball(to io.Writer, c Compression, level int) (*tarball, error) {
	out, err := compress(c, level, to)
	if err != nil {
		return nil, err
	}
	return &tarball{out: out, tar: tar.NewWriter(out)}, nil
}

// copyFunc copies the content of an entry.
type copyFunc func(to io.Writer, from io.Reader, size int64) error

// add writes an entry.
func (t *tarball) add(e *entry, copyContent copyFunc) error {
	h := e.Header
	h.Name, h.Linkname = t.name(e.Name), e.Linkname
	h.Uname, h.Gname, h.AccessTime, h.ChangeTime, h.Format = "", "", time.Time{}, time.Time{}, tar.FormatUnknown
	h.ModTime = h.ModTime.Truncate(time.Second)
	switch h.Typeflag {
	case tar.TypeDir:
		h.Name = strings.TrimSuffix(h.Name, "/") + "/"
	case tar.TypeLink:
		h.Linkname = t.name(e.Linkname)
	}
	if e.data != nil {
		return t.addSparse(h, e, copyContent)
	}
	if err := t.tar.WriteHeader(&h); err != nil {
		if strings.HasPrefix(err.Error(), "archive/tar: ") { // and not that of the writer
			err = fmt.Errorf("%.1000q: %w", e.Name, err)
		}
		return err
	}
	if e.content == nil {
		return nil
	}
	return copyContent(t.tar, e.content, h.Size)
}

// name is the name of an entry in the tarball.
func (t *tarball) name(name string) string {
	if name == "." {
		return cmp.Or(t.prefix, "./")
	}
	return t.prefix + name
}

// addFile writes a file of root's.
func (t *tarball) addFile(name string, data []byte, modTime time.Time) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: modTime.Truncate(time.Second)}
	if err := t.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := t.tar.Write(data)
	return err
}

// The keys of a sparse file's records, and those that stand for them, as archive/tar drops records with the former.
const (
	sparsePrefix   = "GNU.sparse."
	sparseStandsBy = "GNV.sparse."
)

// addSparse writes a sparse file in the format 1.0 of GNU tar: the content begins with the list of the pieces.
func (t *tarball) addSparse(h tar.Header, e *entry, copyContent copyFunc) error {
	pieces := e.data
	if n := len(pieces); n == 0 || pieces[n-1].offset+pieces[n-1].size < h.Size {
		pieces = append(pieces[:n:n], piece{h.Size, 0}) // GNU tar ends the file after the last piece.
	}
	list := strconv.AppendInt(nil, int64(len(pieces)), 10)
	size := int64(0)
	for _, p := range pieces {
		list = strconv.AppendInt(append(list, '\n'), p.offset, 10)
		list = strconv.AppendInt(append(list, '\n'), p.size, 10)
		size += p.size
	}
	list = append(list, '\n')
	list = append(list, make([]byte, padding(int64(len(list))))...)

	records := map[string]string{
		sparseStandsBy + "major":    "1",
		sparseStandsBy + "minor":    "0",
		sparseStandsBy + "name":     h.Name,
		sparseStandsBy + "realsize": strconv.FormatInt(h.Size, 10),
	}
	for key, value := range h.PAXRecords {
		records[key] = value
	}
	h.PAXRecords, h.Format = records, tar.FormatPAX
	h.Name = path.Join(path.Dir(h.Name), "GNUSparseFile.0", path.Base(h.Name))
	h.Size = int64(len(list)) + size

	var header bytes.Buffer
	if err := tar.NewWriter(&header).WriteHeader(&h); err != nil {
		return err
	}
	if err := t.tar.Flush(); err != nil {
		return err
	}
	blocks := header.Bytes()
	renameRecords(blocks[512 : len(blocks)-512])
	for _, part := range [][]byte{blocks, list} {
		if _, err := t.out.Write(part); err != nil {
			return err
		}
	}
	if err := copyContent(t.out, e.content, size); err != nil {
		return err
	}
	_, err := t.out.Write(make([]byte, padding(size)))
	return err
}

// renameRecords gives the records of sparse files their keys. A record is its own length, a space, the key, "=", the value
// and a line feed.
func renameRecords(records []byte) {
	for {
		length, rest, ok := bytes.Cut(records, []byte(" "))
		n, err := strconv.Atoi(string(length))
		if !ok || err != nil || n > len(records) {
			return
		}
		if bytes.HasPrefix(rest, []byte(sparseStandsBy)) {
			copy(rest, sparsePrefix)
		}
		records = records[n:]
	}
}

// padding is what follows size bytes up to the end of a block.
func padding(size int64) int64 { return -size & 511 }

// close ends the tarball.
func (t *tarball) close() error {
	if err := t.tar.Close(); err != nil {
		return err
	}
	if err := t.out.Close(); err != nil {
		return err
	}
	if t.below != nil {
		below := t.below
		t.below = nil
		return below.Close()
	}
	return nil
}

// discard ends the compressor's goroutines, and a program.
func (t *tarball) discard() {
	_ = t.out.Close()
	if t.below != nil {
		t.below.discard()
	}
}
