package lxdtest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// imageDate is the creation date in every generated image. It is fixed, so that
// the same seed yields the same fingerprint on every run.
var imageDate = time.Date(2024, time.January, 1, 0, 0, 0, 0, time.UTC)

// UnifiedImage returns a small valid container image in one tarball:
// metadata.yaml and rootfs. The tarball is not compressed, so that the same
// seed and size yield the same bytes with every version of Go. An
// incompressible file in rootfs pads it to about size bytes; size 0 yields the
// smallest image. Its properties are os=lxdtest, release=1, description and
// seed.
func UnifiedImage(seed string, size int64) []byte {
	var buf bytes.Buffer
	buf.Grow(int(size) + 4096)
	// A bytes.Buffer never fails.
	_ = WriteUnifiedImage(&buf, seed, size)
	return buf.Bytes()
}

// WriteUnifiedImage writes the image that UnifiedImage returns to w, in
// constant memory, for images too large for memory.
func WriteUnifiedImage(w io.Writer, seed string, size int64) error {
	return writeTarball(w, seed, size, true, true)
}

// SplitImage returns a small valid container image in two files, the metadata
// tarball and the root file system, which has the padding. The fingerprint is
// the SHA-256 of the first followed by the second.
func SplitImage(seed string, size int64) (metadata, rootfs []byte) {
	var meta, root bytes.Buffer
	_ = writeTarball(&meta, seed, 0, true, false)
	root.Grow(int(size) + 4096)
	_ = writeTarball(&root, seed, size, false, true)
	return meta.Bytes(), root.Bytes()
}

// VMImage returns a small valid virtual machine image: the metadata tarball and
// an empty qcow2 disk of 1 MiB, padded to about size bytes. In an upload the
// disk is the part named rootfs.img.
func VMImage(seed string, size int64) (metadata, disk []byte) {
	var meta bytes.Buffer
	_ = writeTarball(&meta, seed, 0, true, false)
	disk = emptyDisk()
	if pad := size - int64(len(disk)); pad > 0 {
		filler := make([]byte, pad)
		_, _ = io.ReadFull(noise(seed), filler)
		disk = append(disk, filler...)
	}
	return meta.Bytes(), disk
}

// Fingerprint returns the fingerprint of an image that consists of these files:
// the SHA-256 of the only file of a unified image, or of the metadata followed
// by the root file system of a split one.
func Fingerprint(files ...[]byte) string {
	hash := sha256.New()
	for _, file := range files {
		hash.Write(file)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// metadataYAML returns the metadata.yaml of a generated image.
func metadataYAML(seed string) string {
	return fmt.Sprintf("architecture: x86_64\ncreation_date: %d\nproperties:\n"+
		"  architecture: x86_64\n  description: Test image %s\n  os: lxdtest\n  release: \"1\"\n  seed: %q\n",
		imageDate.Unix(), yamlPlain(seed), seed)
}

// yamlPlain removes the characters of s that are unsafe in a plain YAML scalar.
func yamlPlain(s string) string {
	kept := make([]rune, 0, len(s))
	for _, r := range s {
		if r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			kept = append(kept, r)
		}
	}
	return string(kept)
}

// writeTarball writes a tarball with the metadata, a root file system, or both.
// It is not compressed: the output of a compressor depends on the version of
// Go.
func writeTarball(w io.Writer, seed string, size int64, metadata, rootfs bool) error {
	out := tar.NewWriter(w)
	if metadata {
		data := []byte(metadataYAML(seed))
		if err := addFile(out, "metadata.yaml", bytes.NewReader(data), int64(len(data))); err != nil {
			return err
		}
	}
	if rootfs {
		// A root file system without metadata has its files at the top level.
		prefix := ""
		if metadata {
			prefix = "rootfs/"
			header := &tar.Header{Typeflag: tar.TypeDir, Name: prefix, Mode: 0o755, ModTime: imageDate, Format: tar.FormatUSTAR}
			if err := out.WriteHeader(header); err != nil {
				return err
			}
		}
		name := []byte(seed + "\n")
		if err := addFile(out, prefix+"seed", bytes.NewReader(name), int64(len(name))); err != nil {
			return err
		}
		if pad := size - 4096; pad > 0 {
			if err := addFile(out, prefix+"padding", noise(seed), pad); err != nil {
				return err
			}
		}
	}
	return out.Close()
}

// addFile adds a regular file with the first size bytes of content.
func addFile(out *tar.Writer, name string, content io.Reader, size int64) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: imageDate, Format: tar.FormatPAX}
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.CopyN(out, content, size)
	return err
}

// noise returns an endless stream of incompressible bytes, the same for the
// same seed.
func noise(seed string) io.Reader {
	return rand.NewChaCha8(sha256.Sum256([]byte(seed)))
}

// emptyDisk returns a valid qcow2 file, version 3, of an empty disk of 1 MiB.
// Its four clusters of 512 bytes are the header, the refcount table, one
// refcount block and the L1 table.
func emptyDisk() []byte {
	const cluster = 512
	disk := make([]byte, 4*cluster)
	put32 := func(at int, v uint32) { binary.BigEndian.PutUint32(disk[at:], v) }
	put64 := func(at int, v uint64) { binary.BigEndian.PutUint64(disk[at:], v) }
	copy(disk, "QFI\xfb")
	put32(4, 3)          // version
	put32(20, 9)         // cluster bits
	put64(24, 1<<20)     // virtual size
	put32(36, 32)        // entries in the L1 table: 1 MiB / (64 × 512)
	put64(40, 3*cluster) // offset of the L1 table
	put64(48, cluster)   // offset of the refcount table
	put32(56, 1)         // clusters of the refcount table
	put32(96, 4)         // refcounts of 16 bits
	put32(100, 104)      // header length
	put64(cluster, 2*cluster)
	for i := range 4 {
		binary.BigEndian.PutUint16(disk[2*cluster+2*i:], 1)
	}
	return disk
}
