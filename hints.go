package lxd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"regexp"
	"syscall"

	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/redact"
)

// connectionError returns the error for a request to which no response arrived.
func (t *transport) connectionError(ctx context.Context, req *request, err error) error {
	if cause := ctxerr.Of(ctx); cause != nil {
		return fmt.Errorf("%s %s: %w", req.method, req.path, cause)
	}
	cause := err
	if t.conns.isClosed() && !errors.Is(err, errClosed) {
		err = fmt.Errorf("%w: %w", errClosed, err)
	}
	if errors.Is(err, io.EOF) {
		// io.EOF would tell the caller that the content ended.
		err = fmt.Errorf("the connection was closed: %w", io.ErrUnexpectedEOF)
	}
	// The error of a caller's round tripper may contain the URL, and a server's
	// words anything.
	err = req.hidden().Error(redact.Error(err))
	var dial *dialError
	if errors.As(cause, &dial) && !neverSent(err) {
		err = &dialError{err, dial.reached}
	}
	failed := &ConnectionError{Endpoint: t.endpointOf(req), Method: req.method, Path: req.path, Hint: t.hint(err), Err: err}
	if t.unix && errors.Is(err, fs.ErrPermission) {
		failed.kind = ErrForbidden
	}
	return failed
}

// endpointOf is the address that a request was sent to last.
func (t *transport) endpointOf(req *request) string {
	if t.unix || req.base == "" {
		return t.endpoint
	}
	return req.base
}

// hint suggests what to do about a failed connection.
func (t *transport) hint(err error) string {
	var record tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	var alert tls.AlertError
	var dns *net.DNSError
	var proxy *ProxyError
	switch {
	case errors.As(err, &proxy) && proxy.StatusCode == http.StatusProxyAuthRequired:
		return "the proxy requires a user name and password; put them into its URL"
	case errors.As(err, &proxy):
		return "is the proxy (Options.Proxy, HTTPS_PROXY) right, or is this server missing in NO_PROXY?"
	case t.unix && errors.Is(err, fs.ErrPermission):
		return "this user may not use the socket; add it to the group that may (lxd, incus or incus-admin) and log in again, or run as root"
	case t.unix && errors.Is(err, fs.ErrNotExist):
		return "there is no socket; is the daemon installed and running, and is this its path (LXD_DIR, LXD_SOCKET, INCUS_DIR, INCUS_SOCKET)?"
	case t.unix && errors.Is(err, syscall.ECONNREFUSED):
		return "no daemon listens on the socket; start it (systemctl start lxd or incus, or snap start lxd)"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there; is core.https_address set on the server, and the port right?"
	case errors.As(err, &record):
		return "the server does not speak TLS there; is it a plain http port?"
	case errors.As(err, &verification):
		return "the server's certificate is not trusted; set it as Options.ServerCertificate, its SHA-256 as Options.ServerFingerprint, or its authority as Options.RootCAs"
	case errors.As(err, &alert):
		return "the server aborted the TLS handshake"
	case errors.As(err, &dns):
		return "the host name cannot be resolved"
	}
	return ""
}

// operationHints are the hints for the daemons' words about an operation that has
// failed, as LXD 5.0.2, Incus 6.0.4 and 7.0.2 write them. The first that matches is
// used. They only advise: no behavior depends on them.
var operationHints = []struct {
	words *regexp.Regexp
	hint  string
}{
	{regexp.MustCompile(`no space left on device|disk quota exceeded`), "the server has no space left; delete images that are not needed, or enlarge its storage"},
	{regexp.MustCompile(`executable file not found`), "the server lacks this program; install it there, or use another compression"},
	{regexp.MustCompile(`^(Invalid c|C)ompression algorithm`), "use a compression that this server has, such as gzip or none"},
	{regexp.MustCompile(`^Invalid instance type`), "there is no root filesystem: a unified image contains metadata.yaml and a rootfs, and is whole; the files of a split image are two readers, see CreateOptions.Rootfs"},
	{regexp.MustCompile(`^Unsupported compression`), "the image, or its metadata, is not a tar archive, or its compression is unknown to the server; is it the right file, and whole?"},
	{regexp.MustCompile(`^unexpected EOF`), "the content ended too soon; is the file whole?"},
	{regexp.MustCompile(`is missing metadata\.yaml`), "the tar archive must have metadata.yaml at its top, and must be whole"},
	{regexp.MustCompile(`^(go-)?yaml[: ]`), "metadata.yaml in the image is not valid YAML"},
	{regexp.MustCompile(`^Architecture isn't supported`), "metadata.yaml in the image must have the architecture, such as x86_64 or aarch64"},
	{regexp.MustCompile(`^Missing creation date`), "metadata.yaml in the image must have creation_date, in seconds since 1970"},
	{regexp.MustCompile(`^fingerprints don't match`), "the content that arrived is not that of the required fingerprint; is it the right file, and whole?"},
	{regexp.MustCompile(`^Hash mismatch`), "the content at the source is not what the source says of it; it is corrupt, or was replaced meanwhile"},
	{regexp.MustCompile(`^Image with same fingerprint already exists`), "the server has the image; get it by its fingerprint"},
	{regexp.MustCompile(`Profile.* (doesn't exist|not found)`), "create the profile in the image's project, or choose others"},
	{regexp.MustCompile(`^not authorized`), "the target does not accept the secret, which is wrong, used or expired; copy the image again"},
	{regexp.MustCompile(`Image ("[^"]*" )?not found$|couldn't be found`), "the source has no such image, or it is not public, and the secret is wrong, used or expired"},
	{regexp.MustCompile(`x509: `), "the server does not trust the certificate at that address; see CreateFromSimplestreamsOptions.Certificate, or use ViaClient (of a copy: CopyRelay), which needs only this client"},
	{regexp.MustCompile(`^Missing \S+-Image-(Hash|URL) header`), "the URL is not of a server that the daemon can import from; with ViaClient, this client fetches a plain file"},
	{regexp.MustCompile(`^Unable to fetch|: Unable to fetch`), "the source does not have this file; is the address right?"},
	{reachability, reachabilityHint},
}

// reachability matches the words about a connection that the server could not make.
var reachability = regexp.MustCompile(`connection refused|no such host|no route to host|network is unreachable|i/o timeout|connection reset|deadline exceeded|Unable to connect|Failed to connect`)

// reachabilityHint is replaced by one that names the address, see withHint.
const reachabilityHint = "the server must be able to connect to that address"

// operationHint suggests what to do about an operation that has failed.
func operationHint(message string) string {
	for _, h := range operationHints {
		if h.words.MatchString(message) {
			return h.hint
		}
	}
	return ""
}
