// Package simplestreams reads and writes simplestreams image servers, the kind that LXD and Incus download their images from:
//
//	client, err := simplestreams.New("https://images.example.net", nil)
//	image, err := client.Resolve(ctx, "debian/12", nil)
//	download, err := client.Open(ctx, image, nil)
//	defer download.Close()
//	_, err = io.Copy(file, download.Metadata) // and download.Rootfs, if the image has one
//
// [Client.DownloadTo] writes the image to files in a directory instead.
//
// # What a server has
//
// The index, streams/v1/index.json, lists products files. Those of the datatype image-downloads that list any products
// are read. If [Options.Verifier] is set, the signed .sjson files are read in their place. A product has aliases and an
// architecture, its versions have items, and the items make up images:
//
//	lxd_combined.tar.gz, incus_combined.tar.gz   a unified image; its sha256 is the fingerprint
//	lxd.tar.xz, incus.tar.xz                     metadata, with a combined hash for each root filesystem beside it:
//	  + squashfs, root.tar.xz                    a container
//	  + disk-kvm.img, uefi1.img, disk1.img       a virtual machine
//
// LXD 5.0.2 reads only items with lxd in their type, and lxd_requirements; Incus 6.0.4 only those with incus, and
// requirements. [Options.Family] selects one of them, and [Options.DaemonVersion] a version: see [Family]. Delta files
// are ignored. Entries that daemons ignore, this package ignores; if no image is left for a name, the error of
// [Client.Resolve] says why.
//
// # Names
//
// An alias resolves to the newest version of the first product that has it, in the order of [Client.Images]; images for
// the host's architecture and containers are preferred. "alias/amd64" selects an architecture by its name in the index;
// other spellings ("alias/x86_64") work too. A fingerprint may be abbreviated as long as it is unique. An [Image] has the
// values that the daemons show for the image once they have imported it, except for the file name, which
// they show only in listings.
//
// # Safety
//
// Plain http is refused unless [Options.AllowHTTP] is set, in redirects too. Redirects may lead to other hosts, as they
// do with mirrors, at most ten times; passwords are not passed on. A path in the index is relative to the server's
// address, even if it begins with "/"; with items for Incus it is escaped as in a URL. One that is a URL or contains
// ".." is refused. Metadata beyond [Options.MaxMetadataSize] is an error. A file whose length differs from the index is
// refused before a byte of it is returned; daemons accept it if the hash matches. An item without a sha256 is accepted
// if the combined hash matches; daemons refuse it.
//
// The SHA-256 of each file and of the whole image is checked. On a mismatch the last read returns a [*HashError] instead
// of [io.EOF]: a reader that returns io.EOF has returned the right bytes, and no error of a corrupt download matches
// io.EOF.
//
// # Signatures
//
// By default no signature is verified, as by the daemons: the server's certificate authenticates the index, and that the
// hashes of the images. With [Options.Verifier] (package simplestreams/signed has one for OpenPGP) the index and each
// products file must be signed by a trusted key: they are the .sjson files, whose signature is in them, or, of a server
// that has none, the .json files with the signatures .json.gpg. Each is verified as a whole, also when it comes from a
// [Cache], before anything of it is used; nothing but what the signature covers is used. There is no way back to a file
// that is not signed: the error matches [ErrSignature]. A signature does not show that an index is the newest one.
//
// # Timeouts and retries
//
// Every call ends when its context ends. A request fails when the server sends nothing for [Options.StallTimeout]. A
// transient failure is retried: the statuses 429, 502, 503 and 504, and a connection that cannot be made, breaks or
// stalls; but not a host name that does not exist, or a TLS handshake that is refused. Retries continue for
// [Options.RetryTimeout] after the first failure, or after the last response with 4 KiB of an image. The pauses double
// from 100 ms to 5 s. A server's Retry-After is respected up to ten minutes, and may exceed RetryTimeout once; with a
// longer one the call fails at once. See [Error.Transient] and [Error.RetryAfter].
//
// A download that breaks resumes: it requests the rest with Range, and on servers without ranges skips the bytes that it
// has; that of DownloadTo also in a later call or process. Since the hash verifies the content, the responses may have different ETags and dates, as those of mirrors do; a
// response with another length ends the download.
//
// HEAD is sent only for a root filesystem, or with DownloadTo any file, whose size is not in the index, once. If it fails,
// the size is unknown.
//
// # Memory and caching
//
// The index is read once, as a stream (a signed file is in memory as a whole while it is read), and kept in a compact form
// for [Options.TTL]; then the client asks the server whether it has changed. It asks earlier if the index lists a file that is missing, or another than the index says.
// With a [Cache], such as [DirCache], the index is kept from one run to the next. Files of images are never cached or
// kept in memory.
//
// # Writing a tree
//
// A [Tree] writes what an image server has to a [Store]: a directory ([DirStore]), or any other place. [Tree.Publish] adds
// images, [Tree.Remove] and [Tree.Prune] remove them. Any web server can serve the directory; [NewHandler] is for programs
// that have none:
//
//	store, err := simplestreams.NewDirStore("/srv/images")
//	tree, err := simplestreams.NewTree(store, nil)
//	image, err := tree.Publish(ctx, &simplestreams.Publication{…, Files: simplestreams.FileContents("metadata.tar.xz", "rootfs.squashfs")}, nil)
//	http.Handle("/", simplestreams.NewHandler(store.FS()))
//
// The page docs/imageserver.md has more.
//
// # Errors
//
// [*Error] names the file and the HTTP status, [*ResolveError] the reference, [*HashError] the file and both hashes.
// [*InputError] names an argument or option that was refused; package lxd has the same type. [ErrInvalid], [ErrNotFound],
// [ErrAmbiguous], [ErrBadData], [ErrSignature], [ErrTooLarge], [ErrInsecure], [ErrRedirect], [ErrStalled], [ErrExists] and
// [ErrConflict] are matched with [errors.Is].
package simplestreams
