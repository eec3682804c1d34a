package lxd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	gopath "path"
	"strings"

	"github.com/golxd/lxd/internal/rangeread"
	"github.com/golxd/lxd/internal/retry"
)

// contentReader reads the content of an image from a server. If the connection
// breaks, it resumes.
type contentReader struct {
	*rangeread.Reader
	ctx   context.Context //nolint:containedctx // of the transfer
	image *Image
	req   *request // the last one, with the secrets to remove from errors
}

// content starts to read the image's content from an offset to another one or, if
// that is 0, to its end. If the server ignores the range, the error is a
// rangeread.ErrNoRange; with readOver, what comes before from is dropped instead.
func (i *Image) content(ctx context.Context, from, to int64, readOver bool) (*contentReader, error) {
	t := i.client.t
	size := int64(-1)
	if (from > 0 || to > 0) && i.Size > 0 {
		size = i.Size
	}
	r := &contentReader{ctx: ctx, image: i}
	var err error
	r.Reader, err = rangeread.Start(ctx, rangeread.Options{
		Open: func(ctx context.Context, header http.Header) (*http.Response, error) {
			r.req = i.exportRequest(header)
			res, err := t.stream(ctx, r.req)
			if err != nil && !r.req.retryable(err) {
				err = retry.Permanent(err)
			}
			return res, err
		},
		From: from, To: to, Size: size, Verified: true, ReadOver: readOver,
		Retry: t.retry,
		Retrying: func(offset int64, err error) {
			t.log.DebugContext(ctx, "lxd export is retried", "fingerprint", i.Fingerprint, "offset", offset, "error", err)
		},
	})
	if err != nil {
		return nil, r.badResponse(err)
	}
	return r, nil
}

// exportRequest returns the request for the content, or for the range in the
// header.
func (i *Image) exportRequest(header http.Header) *request {
	query := i.client.query()
	if i.secret != "" {
		q := url.Values{"secret": {i.secret}}
		for name, values := range query {
			q[name] = values
		}
		query = q
	}
	return &request{method: http.MethodGet, path: path("images", i.Fingerprint, "export"), query: query, header: header}
}

// Read reads the next bytes.
func (r *contentReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err == nil || err == io.EOF || errors.Is(err, rangeread.ErrClosed) {
		return n, err
	}
	err = r.badResponse(err)
	var refused *Error
	if !errors.Is(err, ErrBadResponse) && !errors.Is(err, ErrUnavailable) && !errors.As(err, &refused) {
		err = r.image.client.t.connectionError(r.ctx, r.req, err) // of a broken body
	}
	return n, err
}

// badResponse makes an ErrBadResponse of the rangeread errors for a response that
// is not what was requested.
func (r *contentReader) badResponse(err error) error {
	for _, bad := range []error{rangeread.ErrNoRange, rangeread.ErrChanged, rangeread.ErrRange} {
		if errors.Is(err, bad) {
			return fmt.Errorf("%w: %w", ErrBadResponse, r.req.hidden().Error(err))
		}
	}
	return err
}

// form reports whether the content is a form of two files, a split image, and
// returns its boundary. A form is not resumed: no part of it can be requested.
func (r *contentReader) form() (split bool, boundary string, err error) {
	kind, params, err := mime.ParseMediaType(r.Header().Get("Content-Type"))
	switch {
	case err == nil && strings.HasPrefix(kind, "multipart/"):
		r.NoResume()
		return true, params["boundary"], nil
	case err == nil && kind == "application/octet-stream":
		return false, "", nil
	}
	res := &http.Response{StatusCode: r.Status(), Header: r.Header()}
	return false, "", r.image.client.t.badResponse(r.req, res, errors.New("it is not an image"))
}

// accept checks the first response, and sets the fields of e that come from its
// headers.
func (e *Export) accept(src *contentReader) error {
	split, boundary, err := src.form()
	if err != nil {
		return err
	}
	if split {
		e.split, e.size = true, -1
		// The parser reads 4 KiB at a time; the buffer makes the reads larger.
		e.form = multipart.NewReader(bufio.NewReaderSize(src, 64<<10), boundary)
		return nil
	}
	if size := src.Size(); size >= 0 && e.image.Size > 0 && size != e.image.Size {
		return &FingerprintError{Want: e.image.Fingerprint, Err: fmt.Errorf("%w: the server sends %d bytes, the image has %d", ErrBadResponse, size, e.image.Size)}
	}
	e.size, e.filename = src.Size(), dispositionName(src.Header().Get("Content-Disposition"))
	return nil
}

// dispositionName returns the last path element of the filename in a
// Content-Disposition, or "" if there is none.
func dispositionName(header string) string {
	_, params, err := mime.ParseMediaType(header)
	if err != nil {
		return ""
	}
	return lastElement(params["filename"])
}

// lastElement returns the last path element of a server's file name, which may be any
// text; "" if there is none.
func lastElement(name string) string {
	name = gopath.Base(gopath.Clean("/" + strings.ReplaceAll(name, `\`, "/")))
	if name == "/" || checkFilename("", name) != nil {
		return ""
	}
	return name
}
