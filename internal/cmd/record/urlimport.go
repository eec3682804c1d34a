package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/lxdtest"
)

// recordURLImport records running operations: imports from a server that does
// not send the second half of the image until that is done.
func (r *recorder) recordURLImport(ctx context.Context) error {
	slow, err := r.startImport(ctx, "url", "an image from a URL")
	if err != nil {
		return err
	}
	defer slow.end()
	if err := r.doAll(ctx,
		request{name: "operation-running", comment: "an import in the middle", path: slow.operation},
		request{name: "operations-running", comment: "one operation runs", path: "/1.0/operations?recursion=1"},
		request{name: "wait-timeout", comment: "the wait timed out, the operation runs on", path: slow.operation + "/wait?timeout=1"},
	); err != nil {
		return err
	}
	slow.release()
	if err := r.doAll(ctx,
		request{name: "url-wait", comment: "the import succeeded", path: slow.operation + "/wait?timeout=20"},
		request{name: "image-url", comment: "the imported image: it has no update source, although auto_update is set", path: images + "/" + lxdtest.Fingerprint(slow.image)},
	); err != nil {
		return err
	}

	cancelled, err := r.startImport(ctx, "url-cancel", "an import to be cancelled")
	if err != nil {
		return err
	}
	defer cancelled.end()
	return r.doAll(ctx,
		request{name: "operation-cancelled", comment: "cancelling an import in the middle", method: "DELETE", path: cancelled.operation},
		request{name: "operation-wait-cancelled", comment: "waiting for an import that was cancelled", path: cancelled.operation + "/wait?timeout=20"},
	)
}

// slowImport is an import that stops in the middle until it is released.
type slowImport struct {
	operation string
	image     []byte
	release   func()
	server    *httptest.Server
}

// end sends the rest of the image and closes the server.
func (i *slowImport) end() {
	i.release()
	i.server.Close()
}

// startImport starts an import, recorded as name-accepted, and returns when the
// operation has reported progress.
func (r *recorder) startImport(ctx context.Context, name, comment string) (*slowImport, error) {
	released := make(chan struct{})
	i := &slowImport{
		image:   lxdtest.UnifiedImage(name, 3<<20),
		release: sync.OnceFunc(func() { close(released) }),
	}
	i.server = httptest.NewServer(r.imageServer(i.image, released))
	r.neutral.add(strings.TrimPrefix(i.server.URL, "http://"), "images.example")
	accepted, err := r.do(ctx, request{
		name: name + "-accepted", comment: comment, method: "POST", path: images,
		body: map[string]any{
			"source":      map[string]any{"type": "url", "mode": "pull", "url": i.server.URL + "/image"},
			"properties":  map[string]string{"from": "url"},
			"auto_update": true,
		},
	})
	if err == nil {
		i.operation = accepted.Operation
		err = r.waitForProgress(ctx, i.operation)
	}
	if err != nil {
		i.end()
		return nil, err
	}
	return i, nil
}

func (r *recorder) waitForProgress(ctx context.Context, path string) error {
	return r.poll(ctx, path, "the import reports no progress", func(a *envelope) bool {
		return strings.Contains(string(a.Metadata), "download_progress")
	})
}

// waitUntilQuiet waits until the operations of the daemon's start have ended and
// are forgotten.
func (r *recorder) waitUntilQuiet(ctx context.Context) error {
	return r.poll(ctx, "/1.0/operations", "the daemon still has operations", func(a *envelope) bool {
		return string(a.Metadata) == "{}"
	})
}

// poll repeats a request, without recording it, until done accepts the response.
func (r *recorder) poll(ctx context.Context, path, problem string, done func(*envelope) bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		a, err := r.do(ctx, request{path: path})
		if err != nil {
			return err
		}
		if done(a) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %s", problem, ctx.Err(), a.Metadata)
		case <-tick.C:
		}
	}
}

// imageServer returns a server of an image for imports from a URL.
func (r *recorder) imageServer(image []byte, released <-chan struct{}) http.Handler {
	prefix := "LXD-Image-"
	if r.daemon.Family == testdaemon.Incus {
		prefix = "Incus-Image-"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("HEAD /image", func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set(prefix+"Hash", lxdtest.Fingerprint(image))
		w.Header().Set(prefix+"URL", "http://"+q.Host+"/file")
	})
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(image)))
		half := len(image) / 2
		if _, err := w.Write(image[:half]); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-released:
		case <-q.Context().Done():
			return
		}
		// If this fails, the daemon gets a body that is too short.
		_, _ = w.Write(image[half:])
	})
	return mux
}
