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
