// Package simplestreams reads simplestreams image servers, the kind that LXD and Incus download their images from:
//
//	client, err := simplestreams.New("https://images.example.net", nil)
//	image, err := client.Resolve(ctx, "debian/12", nil)
//	download, err := client.Open(ctx, image, nil)
//	defer download.Close()
//	_, err = io.Copy(file, download.Metadata) // and download.Rootfs, if the image has one
//
// # What a server has
//
// The index, streams/v1/index.json, names products files. Those of the datatype image-downloads that name any products
// are read; signed .sjson files are not, so the server's certificate is all that vouches for the index. A product has
// aliases and an architecture, its versions have items, and the items make images:
//
//	lxd_combined.tar.gz, incus_combined.tar.gz   a unified image; its sha256 is the fingerprint
//	lxd.tar.xz, incus.tar.xz                     metadata, with a combined hash for each root filesystem beside it:
//	  + squashfs, root.tar.xz                    a container
//	  + disk-kvm.img, uefi1.img, disk1.img       a virtual machine
//
// LXD 5.0.2 reads only items with lxd in their type, and lxd_requirements; Incus 6.0.4 only those with incus, and
// requirements. [Options.Family] chooses. Delta files are ignored. What is described in a way that daemons pass over,
// this package passes over; where that leaves nothing under a name, [Client.Resolve] says why.
//
// # Names
//
// An alias leads to the newest version of the first product that has it, in the order of [Client.Images], for the host's
// architecture if there is one, and to a container if there is one. "alias/amd64" asks for an architecture by the name
// that the index gives it; other spellings ("alias/x86_64") work too. A fingerprint may be cut short as long as it is
// unique. What an [Image] says equals what LXD 5.0.2 and Incus 6.0.4 say of the image once they have imported it, but
// for the file name, which they show only in listings.
//
// # Safety
//
// Plain http is refused unless [Options.AllowHTTP] is set, in redirects too. Redirects may lead to other hosts, as they
// do with mirrors, at most ten times; passwords do not go along. A path in the index is relative to the server's
// address: one that is absolute, names a host or has ".." in it is refused. Metadata beyond [Options.MaxMetadataSize] is
// an error. A file whose length is not the one in the index is refused before a byte of it is given out; daemons let that
// pass if the hash fits. An item without a sha256 is taken if the combined hash fits; daemons refuse it.
//
// Each file's SHA-256 is checked, and that of the whole image. The mismatch, a [*HashError], takes the place of
// [io.EOF]: a reader that comes to io.EOF has had the right bytes, and no error of a corrupt download matches io.EOF.
//
// # Timeouts and retries
//
// Every call ends when its context ends. A request fails when the server sends nothing for [Options.StallTimeout]. A
// failure that may pass is retried: the statuses 429, 502, 503 and 504, and a connection that cannot be made, breaks or
// stalls; not a host name that does not exist, nor a TLS handshake that is refused. Retries go on for
// [Options.RetryTimeout] after the first failure, or after the last new byte of an image. The pauses double from 100 ms
// to 5 s. A Retry-After of the server is obeyed up to ten minutes, and may outlast RetryTimeout once; a longer one makes
// the call fail at once. See [Error.Transient] and [Error.RetryAfter].
//
// A download continues where it broke: it asks for the rest with Range, and skips what it has on servers without ranges.
// Since the hash decides whether the content is right, the responses may have different ETags and dates, as those of
// mirrors do; one with another length ends the download.
//
// HEAD is sent only for a root filesystem whose size the index does not give. If the server refuses it, the size is
// unknown.
//
// # Memory and caching
//
// The index is read once, as a stream, and kept in a compact form for [Options.TTL]; then the server is asked whether it
// has changed. With a [Cache], such as [DirCache], that holds from one run to the next. Files of images are never
// cached, nor held in memory.
//
// # Errors
//
// [*Error] names the file and the HTTP status, [*ResolveError] the reference, [*HashError] the file and both hashes.
// [ErrNotFound], [ErrAmbiguous], [ErrInvalid], [ErrTooLarge], [ErrInsecure], [ErrRedirect] and [ErrStalled] are for
// [errors.Is].
package simplestreams
