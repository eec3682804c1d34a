package lxd

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/golxd/lxd/internal/netconn"
	"github.com/golxd/lxd/internal/partfile"
)

// maxConnections is the largest ExportToOptions.Connections. It is far above what
// was measured to help, and keeps one call from using up a server's connections.
const maxConnections = partfile.MaxParts

// fetchParts downloads what is missing of the parts over several connections, and
// verifies the whole content. The error is a rangeread.ErrNoRange if the server
// ignores ranges.
func (x *exportJob) fetchParts(list []*partfile.Part) (*partfile.Files, error) {
	var have int64
	for _, p := range list {
		have += p.Next - p.From
	}
	x.resumed, x.split = have > 0, false
	x.meter.Phase(PhaseReceive, have, x.image.Size)
	if err := x.receiveParts(list); err != nil {
		if !slices.ContainsFunc(list, func(p *partfile.Part) bool { return p.Next > p.From }) {
			err = errors.Join(err, x.partial.Discard()) // there is nothing to resume
		}
		return nil, err
	}
	got, err := x.partial.Hash(x.ctx)
	if err != nil {
		return nil, err
	}
	if got != x.image.Fingerprint {
		return nil, errors.Join(&FingerprintError{Want: x.image.Fingerprint, Got: got}, x.partial.Discard())
	}
	return x.partial.Publish(x.ctx)
}

// receiveParts downloads the missing parts. The first error ends all of them.
func (x *exportJob) receiveParts(list []*partfile.Part) error {
	ctx, cancel := context.WithCancel(x.ctx)
	defer cancel()
	missing := make(chan *partTransfer, len(list))
	for _, p := range list {
		if p.Next < p.To {
			missing <- x.transfer(ctx, p)
		}
	}
	close(missing)
	first, ok := <-missing
	if !ok {
		return nil
	}
	// Only the first request shows whether the server supports ranges.
	if err := first.open(); err != nil {
		return err
	}
	var workers sync.WaitGroup
	var once sync.Once
	var failed error
	work := func(t *partTransfer) {
		for ; t != nil; t = <-missing {
			if err := t.run(); err != nil {
				once.Do(func() { failed = err })
				cancel()
				return
			}
		}
	}
	workers.Go(func() { work(first) })
	for range min(x.Connections-1, len(missing)) {
		workers.Go(func() { work(<-missing) })
	}
	workers.Wait()
	return failed
}

// partTransfer downloads the rest of a part.
type partTransfer struct {
	*partfile.Part
	ctx      context.Context //nolint:containedctx // of the transfer of all parts
	x        *exportJob
	src      *contentReader // nil until it is opened
	writeErr error          // of the file; nil for none
}

func (x *exportJob) transfer(ctx context.Context, p *partfile.Part) *partTransfer {
	return &partTransfer{Part: p, ctx: ctx, x: x}
}

func (t *partTransfer) open() (err error) {
	t.src, err = t.x.image.content(t.ctx, t.Next, t.To, false)
	return err
}

func (t *partTransfer) run() error {
	if t.src == nil {
		if err := t.open(); err != nil {
			return err
		}
	}
	defer func() { _ = t.src.Close() }()
	_, err := netconn.Copy(t, t.src, t.To-t.Next)
	if err != nil && t.writeErr == nil {
		return t.x.image.contentError(t.x.ctx, err)
	}
	return err
}

// Write writes the next bytes of the part to its place in the file.
func (t *partTransfer) Write(b []byte) (int, error) {
	n, err := t.Part.Write(b)
	t.writeErr = err
	t.x.meter.Add(n)
	return n, err
}
