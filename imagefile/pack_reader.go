package imagefile

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/golxd/lxd/internal/ctxerr"
)

// NewReader returns the unified image that [Pack] writes, as a reader, for instance for Images.Create of package lxd. It is
// packed while it is read, without a temporary file. What Pack returns as an error is returned by Read.
//
// The caller must call Close, which ends the packing, or read to an error or to the end.
func NewReader(ctx context.Context, root Root, metadata *Metadata, opts *PackOptions) io.ReadCloser {
	job := newPackJob(ctx, root, func(ctx context.Context, job *packJob) error {
		_, err := Pack(ctx, job.image.in, nil, root, metadata, opts)
		if err == nil {
			job.image.finish()
		}
		return err
	})
	return &job.image
}

// NewReaders returns the split image that [Pack] writes, as two readers, for instance for Images.Create of package lxd and
// its option Rootfs. They can be read in any order; the metadata tarball is in memory. Otherwise they are as the reader of
// [NewReader]. Close of a reader that was not read to its end ends both.
func NewReaders(ctx context.Context, root Root, metadata *Metadata, opts *PackOptions) (image, rootfs io.ReadCloser) {
	job := newPackJob(ctx, root, func(ctx context.Context, job *packJob) error {
		p, err := newPacker(ctx, true, root, metadata, opts)
		if err != nil {
			return err
		}
		// The metadata tarball is kept, so that whoever reads the files does so in any order.
		var first bytes.Buffer
		_, err = p.run(&first, job.rootfs.in, func() {
			job.sending.Go(func() {
				if _, err := first.WriteTo(job.image.in); err == nil {
					job.image.finish()
				}
			})
		})
		return err
	})
	return &job.image, &job.rootfs
}

// packJob packs an image for readers. It begins when one of them is read, so that readers that are never read need no Close.
type packJob struct {
	image, rootfs packReader
	start         func()
	cancel        context.CancelFunc
	sending       sync.WaitGroup // of the metadata tarball
	ended         chan struct{}  // closed when nothing is packed any more
	mu            sync.Mutex
	begun, closed bool
}

func newPackJob(ctx context.Context, root Root, pack func(context.Context, *packJob) error) *packJob {
	job := &packJob{ended: make(chan struct{})}
	for _, r := range []*packReader{&job.image, &job.rootfs} {
		r.job = job
		r.out, r.in = io.Pipe()
	}
	job.start = func() {
		ctx, cancel := context.WithCancel(ctx)
		job.cancel = cancel
		// A Write to a pipe that nobody reads does not know ctx.
		stop := context.AfterFunc(ctx, func() { job.end(fmt.Errorf("imagefile: pack %s: %w", root, ctxerr.Of(ctx))) })
		go func() {
			defer close(job.ended)
			defer cancel()
			if err := pack(ctx, job); err != nil {
				stop()
				job.end(err)
			} else {
				job.rootfs.finish()
			}
			job.sending.Wait()
			stop()
		}()
	}
	return job
}

// end ends the readers with an error.
func (j *packJob) end(err error) {
	_ = j.image.in.CloseWithError(err)
	_ = j.rootfs.in.CloseWithError(err)
}

// packReader is one file of the image.
type packReader struct {
	job *packJob
	out *io.PipeReader
	in  *io.PipeWriter
	// complete says that nothing more is written.
	complete atomic.Bool
}

// finish ends the reader after all that it has.
func (r *packReader) finish() {
	r.complete.Store(true)
	_ = r.in.Close()
}

// Read implements io.Reader.
func (r *packReader) Read(p []byte) (int, error) {
	r.job.mu.Lock()
	if !r.job.begun && !r.job.closed {
		r.job.begun = true
		r.job.start()
	}
	r.job.mu.Unlock()
	return r.out.Read(p)
}

// Close ends the packing, and returns when it has ended. If the reader was read to its end, Close does nothing.
func (r *packReader) Close() error {
	if r.complete.Load() {
		return r.out.Close()
	}
	r.job.mu.Lock()
	begun := r.job.begun
	r.job.closed = true
	r.job.mu.Unlock()
	r.job.end(io.ErrClosedPipe)
	if begun {
		r.job.cancel()
		<-r.job.ended
	}
	return nil
}
