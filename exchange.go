package lxd

import (
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync"

	"github.com/golxd/lxd/internal/netconn"
	"github.com/golxd/lxd/internal/stall"
)

// exchange watches one request, from its body to its response, for a silent
// server.
type exchange struct {
	watch *stall.Watch

	mu      sync.Mutex
	waiting bool // for the server
	over    bool // the response has arrived, or none will
}

// newExchange begins to watch a request: all the time until the response, except
// that in which the body is read, and in which "100 Continue" is awaited, which has
// a timeout of its own. It wraps the body; the wrapper implements netconn.Sender
// with the body's own, if it has one.
func newExchange(w *stall.Watch, req *http.Request) (*exchange, *http.Request) {
	x := &exchange{watch: w}
	x.wait()
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &exchangeBody{req.Body, x}
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Wait100Continue: x.pause}))
	}
	return x, req
}

// wait begins to wait for the server, unless the response has already arrived.
func (x *exchange) wait() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.waiting && !x.over {
		x.waiting = true
		x.watch.Start()
	}
}

// pause ends the wait.
func (x *exchange) pause() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.waiting {
		x.waiting = false
		x.watch.Stop()
	}
}

// responded must be called when the response has arrived, or none will.
func (x *exchange) responded() {
	x.mu.Lock()
	x.over = true
	x.mu.Unlock()
	x.pause()
}

// exchangeBody is the body of an exchange.
type exchangeBody struct {
	io.ReadCloser
	exchange *exchange
}

// Read is called if Options.Transport has wrapped the body. What its reader does
// between two reads is to write to the connection.
func (b *exchangeBody) Read(p []byte) (int, error) {
	b.exchange.pause()
	defer b.exchange.wait()
	return b.ReadCloser.Read(p)
}

// SendTo writes to a connection.
func (b *exchangeBody) SendTo(w netconn.FileWriter, n int64) (int64, error) {
	b.exchange.pause()
	to := stallFileWriter{stallWriter{w, b.exchange.watch}, w}
	if body, ok := b.ReadCloser.(netconn.Sender); ok {
		return body.SendTo(to, n)
	}
	return netconn.Copy(to, b.ReadCloser, n)
}

// WriteTo writes a body of unknown length.
func (b *exchangeBody) WriteTo(w io.Writer) (int64, error) {
	b.exchange.pause()
	to := stallWriter{w, b.exchange.watch}
	if body, ok := b.ReadCloser.(io.WriterTo); ok {
		return body.WriteTo(to)
	}
	return netconn.Copy(to, b.ReadCloser, 1<<62)
}

// Close is called by net/http at the end of the body.
func (b *exchangeBody) Close() error {
	b.exchange.wait()
	return b.ReadCloser.Close()
}

// stallWriter watches each Write.
type stallWriter struct {
	w     io.Writer
	watch *stall.Watch
}

func (w stallWriter) Write(p []byte) (int, error) {
	w.watch.Start()
	defer w.watch.Stop()
	return w.w.Write(p)
}

// stallFileWriter also watches each step of sending a file.
type stallFileWriter struct {
	stallWriter
	w netconn.FileWriter
}

func (w stallFileWriter) WriteFile(f *os.File, offset, n int64, sent func(int)) (int64, error) {
	w.watch.Start()
	defer w.watch.Stop()
	return w.w.WriteFile(f, offset, n, func(step int) {
		w.watch.Progress()
		if sent != nil {
			sent(step)
		}
	})
}
