// Package imagefile reads and writes the files that images of LXD and Incus consist of. It needs no server.
//
// An image is one file or two. A unified image is a tarball with metadata.yaml and the root filesystem. A split image is a
// metadata tarball with metadata.yaml, and a root filesystem: a squashfs or tarball of a container, the disk of a virtual
// machine. The page docs/imagefiles.md explains them.
//
// [Inspect] and [InspectFiles] return what files contain. [Check] and [CheckFiles] also return what LXD 5.0.2, Incus 6.0.4
// or Incus 7.0.2 refuse in them, or accept and regret when an instance is created.
//
// [Pack], [PackFiles], [NewReader] and [NewReaders] write an image: of a directory, an fs.FS, a tarball, a squashfs, a disk or
// another image. The same input results in the same bytes.
//
// # Hostile files
//
// Files may come from anybody. Nothing is unpacked to disk. The memory of a call does not depend on the size of the files
// or the number of their entries: it is below 48 MiB, and more only for a compressor's window, which is limited to 128 MiB. What
// is read and unpacked is limited by MaxSize of the options. A context that ends is obeyed at once, even while a reader
// blocks: its Read is then not waited for, and no other follows.
//
// The package is apart from package lxd as it needs modules for compression, which programs that only import lxd do not
// link.
package imagefile
