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
// # Retries
//
// A failure that may pass is retried for [Options].RetryTimeout without
// progress, 30 seconds unless set: a restart of the daemon fits into that. The
// time counts from the first failure; a new byte of a transfer that goes on
// where it was cut is progress, a request that is sent again from its start is
// not. The pauses double from 100 ms to 5 s, with jitter, and the last attempt is
// at the end of the time. A server that asks for a pause with Retry-After gets
// it, up to 10 minutes, once also beyond the timeout; where it asks for more,
// the error is returned at once. The errors tell by a method Transient whether
// the same call may succeed later.
//
// Retried are the statuses 429 and 503, and connections that cannot be made.
// A missing unix socket is waited for only once the client has reached the
// daemon over it, as when a snap is refreshed. The statuses 502 and 504, and a
// connection that breaks before the response is there, may hide that the server
// has acted: such a request is sent again if that does no harm, as reading,
// deleting, replacing, and uploading, as the same content is the same image. A
// body is sent again if its reader is an [io.Seeker]; one that is not is never
// read twice. An export of a unified image goes on where it was cut.
//
// The same rules hold for the event connection and for images that this client
// fetches from a URL. Two things have another timeout: a wait for an operation
// goes on for a minute without a response, and [Client.Events] for ever once it
// was connected.
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
