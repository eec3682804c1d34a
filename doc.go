// Package lxd is a client for the images of LXD and Incus servers. [Images.Ensure]
// makes an alias stand for the image that a source has now:
//
//	client, err := lxd.New("", nil) // the local daemon
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	source, err := lxd.OpenSource("images:debian/13", nil) // "images" is a remote of the user
//	if err != nil {
//		return err
//	}
//	defer source.Close()
//	ensured, err := client.Images.Ensure(ctx, source, &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "web"}}})
//
// [Images] has the calls that create and find images, [Image] those on one image, such
// as Export, Copy and Update, and [Aliases] those on aliases.
//
// # Sources
//
// A [Source] is where an image comes from. [OpenSource] returns that of a name which the
// lxc and incus command lines know; the functions that begin with From return that of a
// file, a reader, a URL, a simplestreams server, an OCI registry, an image of another
// server, or an instance. [Images.CreateFrom] creates the image of a source once;
// [Images.Ensure] does so only if the server does not have it, moves the aliases, and can
// delete the images that they had before. [Images.Create], which uploads a reader, and the
// other Create methods are the short forms for one kind of source.
//
// # Instances
//
// This package has no methods for instances, but what joins them to images:
// [Image.InstanceSource] is the part of a request that creates an instance from an image,
// [Client.Do] sends that and any other request, and [Image.UsedBy] returns the instances
// that were created from an image.
//
// # Endpoints
//
// [New] returns a client for the local daemon, a unix socket, or an https
// address; it sends nothing. [Remote] returns one for a remote of the user's
// own lxc or incus command line. A client has one connection pool and is safe
// for concurrent use; Close closes all its connections. [Client.InProject]
// returns a client for another project over the same connections.
//
// A server's family and features are read from GET /1.0 when first needed. A
// call that needs an API extension that the server lacks fails with
// [ErrUnsupported] and names the extension; nothing is left out silently.
//
// # Waiting
//
// Servers do long work in the background, as an [Operation]. With Wait set, a
// call returns when the operation has finished, with the complete [Image].
// Otherwise it returns when the server has accepted the work; [Image.Operation]
// is its handle, and [Image.Wait] waits, does the remaining work, and completes
// the Image. When the context ends, the wait ends, but the operation continues:
// [Operation.Cancel] ends it. A broken connection is not an outcome. If the
// server has forgotten the operation when it is available again, the client
// looks for the operation's result on the server; if that does not determine the
// outcome, the error is [ErrOutcomeUnknown].
//
// # Retries
//
// A transient failure is retried until [Options].RetryTimeout has passed
// without progress; the default is 30 seconds, enough for a restart of the
// daemon. The time counts from the first failure. A response that brings 4 KiB
// of a transfer that resumes is progress; sending a request again from its
// start is not. The pauses double from 100 ms to 5 s, with jitter, and the last
// attempt is made when the time is up. A Retry-After header lengthens the
// pause, up to 10 minutes, once even beyond the timeout; if it asks for more,
// the error is returned at once. [IsTransient] reports whether the same call may
// succeed later.
//
// The statuses 429 and 503 are retried, and connections that cannot be made. A
// missing unix socket is retried only after the client has reached the daemon
// over it, as when a snap is refreshed. After the statuses 502 and 504, or a
// connection that breaks before the response arrives, the server may have acted
// on the request. Such a request is repeated if that does no harm: reads,
// deletions, replacements, and uploads, as the same content is the same image. A
// body is sent again if its reader is an [io.Seeker]; any other reader is never
// read twice. An export of a unified image resumes at the byte where it broke.
//
// A server that is silent for [Options].StallTimeout, one minute by default, has
// broken the connection: it does not read what is sent to it, or sends neither its
// response nor the next byte. The request is then retried or resumed as above.
//
// The same rules apply to the event connection and to images that this client
// downloads from a URL. Two things have another timeout: waiting for an
// operation continues for a minute without a response, and [Client.Events],
// once connected, reconnects without limit.
//
// # Verification
//
// The fingerprint of an image is the SHA-256 of its file, or of the two files of
// a split image one after the other. Every export is hashed while it is read; if
// the content is not the image's, the last read returns a [*FingerprintError]
// instead of io.EOF. Uploads are verified by the server if a fingerprint is
// given, and by the client if CreateOptions.Verify is set.
//
// # Errors
//
// An error response of the server is an [*Error], a failed operation an
// [*OperationError], a failed connection a [*ConnectionError], and input that is
// refused before anything is sent an [*InputError]. They match the sentinels of
// this package with [errors.Is], and are always wrapped, never flattened. If a
// context ends a call, the error wraps the context's error.
//
// # Same content twice
//
// Creating or copying an image that already exists succeeds and returns the
// existing one; IfExists makes it an [ErrExists]. Every way to create an image then
// applies the options that are set to it: Properties are added to its own, and a zero
// field changes nothing. A copy applies what CopyOptions set, and nothing of the
// source. With a Fingerprint, or Dedupe, no content is sent. Repeating a call that has
// succeeded succeeds, also with an alias, which the image then has already.
//
// The same is true of calls at the same moment. The server keeps an image that it has
// cached (Image.Cached) as a cached one, which it deletes when it is not used any
// more: neither an upload, a pull, an update nor an alias changes that (LXD 5.0.2,
// Incus 6.0.4, 7.0.2). To keep it, delete it and create it again.
//
// # Testing
//
// Package lxdtest is an in-process server for tests, of this package and of
// programs that use it.
package lxd
