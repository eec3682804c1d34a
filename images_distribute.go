package lxd

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"
)

// DistributeOptions describe how an image is brought to several servers.
type DistributeOptions struct {
	// Copy describes each copy: attributes, aliases, IfExists. What it leaves to the
	// source is that of the image that Distribute is called on, whichever server a copy
	// comes from. Wait and CancelOnDone are implied. Progress must be nil, and
	// AutoUpdate nil or false, which mean the same here: a server would look for
	// updates where its copy came from.
	//
	// Mode selects the ways. With CopyAuto, the default, servers pull or push from
	// server to server, and what cannot be copied so is relayed. CopyPull and CopyPush
	// allow only that; CopyRelay streams through this client alone.
	Copy CopyOptions

	// Fanout is how many servers each server sends to at once. The default is 1: all
	// are done soonest if what limits a transfer is the network of its servers, as a
	// server can send only what it has received whole.
	Fanout int
	// RelayFanout is how many servers a relay sends to at once, from one reading of the
	// source. The default is 8.
	RelayFanout int

	// AnyArchitecture copies the image also to servers that cannot run it. By default
	// such a server gets an error that matches ErrUnsupported.
	AnyArchitecture bool

	// DryRun changes nothing: a Delivery has the mode that would be tried first, a server
	// that has the image now as its source, the modes that the servers rule out in Failed,
	// and the error that can be foreseen. Whether servers can connect to each other is not
	// known before it is tried.
	DryRun bool

	// Progress receives the progress of each transfer, and of all. It is not called by
	// two goroutines at once, and not after the loop; it must return soon.
	Progress func(DistributeProgress)
}

// DistributeProgress is the state of a call of Distribute.
type DistributeProgress struct {
	// Target is the server whose transfer has changed, and Transfer its state, reported
	// at most ten times a second. Transfer.Phase is "" if only the counts have changed.
	Target   *Client
	Transfer Progress

	Servers int // that are known so far; targets of one cluster count once
	Done    int // servers that have the image
	Failed  int // servers that have finally failed
	// Bytes is what has been transferred, of the servers that did not have the image,
	// as far as the servers tell it; TotalBytes what there is to transfer for them.
	// A server that has finally failed does not count.
	Bytes, TotalBytes int64
}

// Delivery is what Distribute has done for one target.
type Delivery struct {
	Target *Client // as in targets
	Index  int     // in targets
	// SameAs is another of the targets that is the same server and project, or a member
	// of the same cluster: the image was brought there once, and this is the same
	// result, but for Bytes. It is nil if there is none.
	SameAs *Client

	// Image is the image of the target; nil if it does not have it, or must not have it
	// (ErrorIfExists). Beside an error, an attribute or an alias could not be set.
	Image *Image
	// Mode is the mode that succeeded. It is empty if the target had the image, and
	// beside most errors.
	Mode CopyMode
	// Source is the client of the server that the content came from; nil if none did.
	Source *Client
	Bytes  int64         // of content that the target received, or would in a dry run; 0 if it had the image
	Took   time.Duration // from the first transfer from Source to the end of that which succeeded
	// Failed lists the transfers that failed or were ruled out before that, and why.
	Failed []DeliveryAttempt
}

// DeliveryAttempt is a transfer that failed, or could not be tried.
type DeliveryAttempt struct {
	Source *Client
	Mode   CopyMode
	Err    error
}

// String returns the delivery as a line of a log.
func (d Delivery) String() string {
	switch {
	case d.Target == nil:
		return "no target"
	case d.SameAs != nil:
		return fmt.Sprintf("%s is the server of %s", d.Target.Endpoint(), d.SameAs.Endpoint())
	case d.Source != nil:
		return fmt.Sprintf("%s: %s from %s", d.Target.Endpoint(), d.Mode, d.Source.Endpoint())
	case d.Image != nil:
		return d.Target.Endpoint() + " has the image"
	}
	return d.Target.Endpoint() + " does not have the image"
}

// Distribute brings the image to several servers, and yields one result for each target
// as soon as it is known, beside the error of that target. A server that has the image
// becomes a source for the others, so that the time grows with the logarithm of their
// number, and the first server sends only its share. What servers cannot copy from each
// other is relayed: this client reads the content once and sends it to several at the
// same time. One that is slow does not hold the others for long: it continues with a
// reading of its own.
//
// The failure of one target does not stop the others. A transfer that failed is retried
// from another source, then by relay, which is retried once. A repeated call does only
// what is missing. Targets that are one server, or members of one cluster, are served
// once, through the client that had a response first. A target that is the image's own
// server already has it.
//
// If the call itself is wrong, it yields once: a zero Delivery beside an [*InputError].
// When ctx ends, or the loop is left, the transfers that run are cancelled, and the
// remaining targets get the error of ctx. A server may still complete what it has
// received (the daemons do not cancel every operation). The loop ends when nothing of the
// call is running any more; no token remains. A transfer between servers that makes no
// progress for the target's Options.StallTimeout does not hold the others; after ten
// times as long it is cancelled, and retried from another source.
func (i *Image) Distribute(ctx context.Context, targets []*Client, opts *DistributeOptions) iter.Seq2[Delivery, error] {
	var o DistributeOptions
	if opts != nil {
		o = *opts
		o.Copy = o.Copy.clone()
	}
	targets = slices.Clone(targets)
	return func(yield func(Delivery, error) bool) {
		o := o // the loop may be run more than once
		if err := o.check(ctx, i, targets); err != nil {
			yield(Delivery{}, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		j := newDistributeJob(i, targets, o)
		go j.run(ctx)
		defer func() {
			cancel()
			for range j.results { // until nothing is running
			}
		}()
		for r := range j.results {
			if !yield(r.Delivery, r.err) {
				return
			}
		}
	}
}

// check returns an error for a call that is wrong. It sets the defaults.
func (o *DistributeOptions) check(ctx context.Context, i *Image, targets []*Client) error {
	if err := checkContext(ctx); err != nil {
		return err
	}
	if err := i.checkExists(); err != nil {
		return err
	}
	switch {
	case o.Copy.Progress != nil:
		return invalid("DistributeOptions.Copy.Progress", "is set; use DistributeOptions.Progress")
	case o.Copy.AutoUpdate != nil && *o.Copy.AutoUpdate:
		return invalid("DistributeOptions.Copy.AutoUpdate", "is true; to keep servers up to date, see Images.Ensure")
	case o.Fanout < 0:
		return invalid("DistributeOptions.Fanout", "is negative")
	case o.RelayFanout < 0:
		return invalid("DistributeOptions.RelayFanout", "is negative")
	}
	o.Copy.AutoUpdate = new(bool)
	if o.Fanout == 0 {
		o.Fanout = 1
	}
	if o.RelayFanout == 0 {
		o.RelayFanout = 8
	}
	for n, target := range targets {
		if err := checkTarget(target); err != nil {
			return fmt.Errorf("targets[%d]: %w", n, err)
		}
	}
	return o.Copy.check()
}
