package lxdtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// requestFaults are the effects of the matching faults on one request.
type requestFaults struct {
	request   *http.Request
	responded bool // the request is done; no handler may run
	lost      bool // reset the connection instead of responding
	writer    *faultyWriter
	drips     bool
}

type truncateKey struct{}

// truncation returns the size to which TruncateRootfs truncates the root file
// system of this export, if it applies.
func truncation(r *http.Request) (limit int64, cut bool) {
	limit, cut = r.Context().Value(truncateKey{}).(int64)
	return limit, cut
}

// inject applies the faults that match a request, which are counted already. The handler must use the
// returned response writer; done must be called when the handler returns.
func (s *Server) inject(w http.ResponseWriter, r *http.Request, matched []*Injection) (http.ResponseWriter, *requestFaults) {
	in := &requestFaults{request: r}
	if len(matched) == 0 {
		return w, in
	}
	in.writer = &faultyWriter{ResponseWriter: w, request: r, cutAt: -1, stallAt: -1, freezeAt: -1, corruptAt: -1}
	for _, i := range matched {
		s.apply(in, i, w, r)
		if in.responded {
			break
		}
	}
	return in.writer, in
}

// apply applies one fault, or arranges for it to occur later.
func (s *Server) apply(in *requestFaults, i *Injection, w http.ResponseWriter, r *http.Request) {
	f := &i.fault
	out := in.writer
	switch f.kind {
	case kindReset:
		in.responded = true
		abort(r)
	case kindCutResponse:
		out.cutAt = f.bytes
	case kindCutRequest:
		r.Body = &brokenBody{ReadCloser: r.Body, left: f.bytes, broken: func() { abort(r) }}
	case kindLoseResponse:
		in.lost = true
		out.lost = true
	case kindStallHeaders:
		if !i.wait(r.Context()) {
			in.responded = true
		}
	case kindLatency:
		if !i.pause(r.Context()) {
			in.responded = true
		}
	case kindStallBody:
		out.stallAt, out.stall = f.bytes, i
	case kindStallRequest:
		r.Body = &brokenBody{ReadCloser: r.Body, left: f.bytes, broken: func() { i.wait(r.Context()) }}
	case kindHalfOpen:
		out.freezeAt, out.stall = f.bytes, i
	case kindSlowLoris:
		if c := connOf(r); c != nil {
			c.setDrip(max(f.pause, 1))
			in.drips = true
		}
	case kindCorrupt:
		out.corruptAt = f.bytes
	case kindShort:
		out.short = f.bytes
	case kindTruncateRootfs:
		*r = *r.WithContext(context.WithValue(r.Context(), truncateKey{}, f.bytes))
	case kindCall:
		f.call(r)
	case kindRestart:
		restart := func() {
			s.Restart()
			panic(http.ErrAbortHandler)
		}
		if f.bytes <= 0 {
			in.responded = true
			restart()
		}
		r.Body = &brokenBody{ReadCloser: r.Body, left: f.bytes, broken: restart}
	default:
		in.responded = true
		respond(f, w, r)
	}
}

// respond sends the response of a fault instead of the handler's.
func respond(f *Fault, w http.ResponseWriter, r *http.Request) {
	for name, values := range f.header {
		w.Header()[name] = values
	}
	switch f.kind {
	case kindStatus:
		if f.pause > 0 {
			w.Header().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(f.pause.Seconds())), 10))
		}
		writeError(w, statusErrorf(f.status, "%s", f.message))
	case kindEarly:
		readFirst(r.Body, f.bytes)
		// Tells the client that the rest of its body will not be read.
		w.Header().Set("Connection", "close")
		writeError(w, statusErrorf(f.status, "%s", f.message))
	case kindHTML:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><h1>Please sign in</h1></body></html>\n")
	case kindRedirect:
		http.Redirect(w, r, f.url, http.StatusTemporaryRedirect)
	case kindEndless:
		w.Header().Set("Content-Type", "application/json")
		_, err := io.WriteString(w, `{"type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"","metadata":["`)
		for item := strings.Repeat(fmt.Sprintf("/1.0/images/%064x\",\"", 1), 400); err == nil; {
			_, err = io.WriteString(w, item)
		}
	}
}

// done ends the effects of the faults when the handler has returned.
func (in *requestFaults) done() {
	if in.drips {
		_ = http.NewResponseController(in.writer.ResponseWriter).Flush()
		if c := connOf(in.request); c != nil {
			c.setDrip(0)
		}
	}
	if in.lost {
		abort(in.request)
	}
}

// brokenBody is a request body that calls broken, once, after left bytes.
type brokenBody struct {
	io.ReadCloser
	left   int64
	broken func()
}

// Read reads from the body, up to the offset at which it calls broken.
func (b *brokenBody) Read(p []byte) (int, error) {
	if b.broken == nil {
		return b.ReadCloser.Read(p)
	}
	if b.left <= 0 {
		broken := b.broken
		b.broken = nil
		broken()
		return b.ReadCloser.Read(p)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

// faultyWriter is a response writer whose faults occur at offsets in the body;
// an offset of -1 disables the fault.
type faultyWriter struct {
	http.ResponseWriter
	request *http.Request

	written   int64
	cutAt     int64
	stallAt   int64
	freezeAt  int64
	corruptAt int64
	stall     *Injection
	short     int64 // the number of bytes to omit at the end
	tail      []byte
	lost      bool
	headerOut bool
}

// Unwrap returns the underlying writer to http.ResponseController.
func (w *faultyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader sends the header, with a Content-Length reduced by short.
func (w *faultyWriter) WriteHeader(code int) {
	if w.lost || w.headerOut {
		return
	}
	w.headerOut = true
	if length, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64); err == nil && w.short > 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(max(0, length-w.short), 10))
	}
	w.ResponseWriter.WriteHeader(code)
	for _, at := range []int64{w.cutAt, w.stallAt, w.freezeAt} {
		if at == 0 {
			w.breakHere()
		}
	}
}

// FlushError sends all data written so far.
func (w *faultyWriter) FlushError() error {
	if w.lost {
		return nil
	}
	if !w.headerOut {
		w.WriteHeader(http.StatusOK)
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack hijacks the connection, for WebSockets.
func (w *faultyWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// Write writes a part of the body and triggers the faults at its offsets.
func (w *faultyWriter) Write(p []byte) (int, error) {
	total := len(p)
	if w.lost {
		return total, nil
	}
	if !w.headerOut {
		w.WriteHeader(http.StatusOK)
	}
	if w.short > 0 {
		w.tail = append(w.tail, p...)
		keep := int(min(w.short, int64(len(w.tail))))
		p = w.tail[:len(w.tail)-keep]
		defer func() { w.tail = append([]byte(nil), w.tail[len(w.tail)-keep:]...) }()
	}
	for len(p) > 0 {
		n := len(p)
		for _, at := range []int64{w.cutAt, w.stallAt, w.freezeAt} {
			if at > w.written {
				n = int(min(int64(n), at-w.written))
			}
		}
		chunk := p[:n]
		if at := w.corruptAt - w.written; w.corruptAt >= 0 && at >= 0 && at < int64(n) {
			chunk = append([]byte(nil), chunk...)
			chunk[at] ^= 0xff
		}
		if _, err := w.ResponseWriter.Write(chunk); err != nil {
			return 0, err
		}
		w.written += int64(n)
		p = p[n:]
		if w.written == w.cutAt || w.written == w.stallAt || w.written == w.freezeAt {
			w.breakHere()
		}
	}
	return total, nil
}

// breakHere triggers the faults of the current offset.
func (w *faultyWriter) breakHere() {
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	switch w.written {
	case w.cutAt:
		abort(w.request)
	case w.stallAt:
		w.stallAt = -1
		if !w.stall.wait(w.request.Context()) {
			panic(http.ErrAbortHandler)
		}
	case w.freezeAt:
		if c := connOf(w.request); c != nil {
			c.freeze()
			select {
			case <-w.stall.released:
			case <-c.closed:
			}
		}
		abort(w.request)
	}
}
