// Package lxd is a client for the images of LXD and Incus servers.
//
//	client, err := lxd.New("", nil) // the local daemon
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	image, err := client.Images.Create(ctx, file, &lxd.CreateOptions{Wait: true})
//
// # Endpoints
//
// [New] makes a client for the local daemon, a unix socket, or an https
// address; it sends nothing. [Remote] makes one for a remote of the user's own
// lxc or incus command line. A client has one pool of connections, is safe for
// concurrent use, and ends all of them with Close. [Client.InProject] gives a
// client for another project over the same connections.
//
// Which family a server is of, and what it can do, is read from GET /1.0 when
// it is first needed. A call that needs an API extension the server does not
// have gives [ErrUnsupported] and names it; nothing is left out silently.
//
// # Waiting
//
// Servers do long work in the background, as an [Operation]. With Wait set, a
// call returns when that has ended, with the complete [Image]. Otherwise it
// returns when the server has accepted the work; [Image.Operation] is its
// handle, and [Image.Wait] waits, does what is left to do, and completes the
// Image. The end of the context ends the waiting, never the operation:
// [Operation.Cancel] does that. A broken connection is not an outcome. If the
// server has forgotten the operation when it is there again, what it should
// have done is looked for, and where nothing tells, the error is
// [ErrOutcomeUnknown].
//
// # Trying again
//
// A request that fails to connect, or meets 429 or 503, is sent again up to
// [Options].Retries times, with growing pauses or as Retry-After says; where
// that is more than 10 minutes, the error is given at once. One whose answer
// was lost is sent again if that does no harm: reading, deleting, replacing,
// and uploading, as the same content is the same image. A body is sent again
// if its reader is an [io.Seeker]; one that is not is never read twice. An
// export of a unified image goes on where it was cut.
//
// # Verification
//
// The fingerprint of an image is the SHA-256 of its file, or of the two files of
// a split image one after the other. Every export is hashed while it is read,
// and a [*FingerprintError] takes the place of io.EOF where the content is not
// the image's. Uploads are verified by the server if a fingerprint is given, and
// by the client if CreateOptions.Verify is set.
//
// # Errors
//
// What the server answers is an [*Error], a failed operation an
// [*OperationError], a connection that fails a [*ConnectionError], and input
// that is refused before anything is sent an [*InputError]. They match the
// sentinels of this package with [errors.Is], and are always wrapped, never
// flattened. Where a context ends a call, its error is within.
//
// # Same content twice
//
// Creating or copying an image that is there already is a success that gives
// the one that is there; IfExists makes it an [ErrExists]. With a Fingerprint
// given, or Dedupe, no content is sent.
//
// # Testing
//
// Package lxdtest is an in-process server for tests, of this package and of
// programs that use it.
package lxd
