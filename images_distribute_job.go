package lxd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// probesAtOnce is how many servers are asked at the same time for what they have.
	probesAtOnce = 32
	// sourcesTried is how many servers a target is tried to be served from, if the one
	// before could not; relaysTried is the same for relays.
	sourcesTried = 2
	relaysTried  = 2
	// failuresAllowed is after how many transfers that failed, with none in between that
	// succeeded, a server is not used as a source any more, if there is another way.
	failuresAllowed = 2
	// probePatience is for how long a relay is delayed for servers that have not
	// responded yet, so that one relay serves all.
	probePatience = time.Second
)

// distributeJob is one call of Distribute. Its fields are used by run only, except
// results.
type distributeJob struct {
	DistributeOptions
	image   *Image
	targets []*Client
	results chan distributeResult // one for each target; closed when nothing is running
	left    int                   // how many are not sent yet
	cancel  func()                // what still runs when all are sent
	events  chan func()           // what other goroutines have run do
	running int                   // how many of them there are
	probes  chan struct{}         // a slot for each of the servers that are asked now

	servers  map[string]*distributeServer // by server and project
	sources  []*distributeSource          // the servers that have the image
	original *distributeSource            // the image's own server, also if it is not usable as a source
	// waiting are the servers that wait for a source, relays those that wait for a relay.
	waiting, relays []*distributeServer
	probing         int  // how many targets, and the image's own server, are asked
	tree            int  // how many transfers from server to server are running
	treeWorks       bool // one has succeeded
	relaying        bool // the source of a relay is being read

	overdue bool // servers that have not responded are not waited for

	meters distributeMeters
}

// distributeResult is what the loop yields.
type distributeResult struct {
	Delivery
	err error
}

// distributeServer is a server that the image is brought to.
type distributeServer struct {
	targets []int // the targets that are this server; the first one's client is used
	key     string
	job     *copyJob
	tried   []*distributeSource // from which transfers were tried
	relayed int                 // how often it was relayed
	failed  []DeliveryAttempt
	result  *distributeResult // nil before it is known
}

// distributeSource is a server that has the image.
type distributeSource struct {
	image    *Image
	key      string // of the server, without its project
	busy     int    // how many transfers it sends
	failures int    // how many of its transfers have failed since one has succeeded
	relays   int    // how many relays from it have failed
}

func newDistributeJob(i *Image, targets []*Client, o DistributeOptions) *distributeJob {
	j := &distributeJob{
		DistributeOptions: o, image: i, targets: targets,
		results: make(chan distributeResult, len(targets)), left: len(targets), events: make(chan func()),
		probes: make(chan struct{}, probesAtOnce), servers: map[string]*distributeServer{},
	}
	j.Copy.Wait, j.Copy.CancelOnDone = true, true
	j.meters = distributeMeters{report: o.Progress, size: max(i.Size, 0), bytes: map[*Client]int64{}}
	return j
}

// run ends when each target has its result and nothing is running.
func (j *distributeJob) run(ctx context.Context) {
	defer close(j.results)
	if len(j.targets) == 0 {
		return
	}
	ctx, j.cancel = context.WithCancel(ctx)
	defer j.cancel()
	overdue := time.NewTimer(probePatience)
	defer overdue.Stop()
	j.findSource(ctx)
	for n := range j.targets {
		j.identify(ctx, n)
	}
	for j.running > 0 {
		select {
		case then := <-j.events:
			then()
		case <-overdue.C:
			j.overdue = true
		}
		j.schedule(ctx)
	}
}

// start runs work in a goroutine, and then what it returns in that of run.
func (j *distributeJob) start(work func() (then func())) {
	j.running++
	go func() {
		then := work()
		j.events <- func() {
			j.running--
			then()
		}
	}()
}

// probe runs work when there is a slot for it. A server that does not respond soon does
// not keep its slot.
func (j *distributeJob) probe(ctx context.Context, work func() (then func())) {
	j.probing++
	j.start(func() func() {
		select {
		case j.probes <- struct{}{}:
			release := sync.OnceFunc(func() { <-j.probes })
			defer release()
			defer time.AfterFunc(probePatience, release).Stop()
		case <-ctx.Done(): // work returns at once
		}
		then := work()
		return func() {
			j.probing--
			then()
		}
	})
}

// findSource finds out which server the image's own is.
func (j *distributeJob) findSource(ctx context.Context) {
	j.original = &distributeSource{image: j.image}
	j.probe(ctx, func() func() {
		server, err := j.image.client.serverInfo(ctx, false)
		return func() {
			if err == nil {
				j.original.key = serverKey(j.image.client, server)
				j.addSource(j.original)
			}
		}
	})
}

// serverKey returns what tells a server, or a cluster, from all others.
func serverKey(c *Client, s *Server) string {
	switch {
	case s.CertificateFingerprint == "":
		return c.Endpoint() // it does not trust this client
	case s.Clustered:
		return s.CertificateFingerprint // all members have that of the cluster
	}
	// Hosts that were cloned may have the same certificate.
	return strings.Join(append([]string{s.CertificateFingerprint, s.Name}, s.Addresses...), " ")
}

// identify finds out which server a target is.
func (j *distributeJob) identify(ctx context.Context, n int) {
	target := j.targets[n]
	j.probe(ctx, func() func() {
		info, err := target.serverInfo(ctx, false)
		if err == nil && !j.AnyArchitecture && len(info.Architectures) > 0 && !slices.Contains(info.Architectures, j.image.Architecture) {
			err = fmt.Errorf("server %s does not run images of architecture %s, only %s: %w", target.Endpoint(), j.image.Architecture, strings.Join(info.Architectures, ", "), ErrUnsupported)
		}
		return func() {
			if err != nil {
				j.meters.found(target)
				j.meters.ended(target, false)
				j.send(distributeResult{Delivery{Target: target, Index: n}, err})
				return
			}
			key := serverKey(target, info)
			if s := j.servers[key+" "+target.Project()]; s != nil {
				s.targets = append(s.targets, n)
				if s.result != nil {
					j.repeat(s, n)
				}
				return
			}
			s := &distributeServer{targets: []int{n}, key: key}
			j.servers[key+" "+target.Project()] = s
			j.meters.found(target)
			j.prepare(ctx, s)
		}
	})
}

// prepare looks for the image at a server.
func (j *distributeJob) prepare(ctx context.Context, s *distributeServer) {
	target := j.targets[s.targets[0]]
	j.probe(ctx, func() func() {
		job, err := newCopyJob(j.image, target, &j.Copy)
		exists := false
		switch {
		case err != nil:
		case j.DryRun:
			exists, err = job.dryRun(ctx)
		default:
			exists, err = job.begin(ctx)
		}
		return func() {
			s.job = job
			switch {
			case exists && job.copied.Image != nil:
				j.finish(s, distributeResult{Delivery{Image: job.copied.Image}, err})
				j.addSource(&distributeSource{image: job.copied.Image, key: s.key})
			case err != nil:
				j.finish(s, distributeResult{err: err})
			default:
				if !j.DryRun {
					j.meters.needs(target)
				}
				j.wait(s)
			}
		}
	})
}

// wait lets a server wait for what its next transfer needs.
func (j *distributeJob) wait(s *distributeServer) {
	mode := j.Copy.Mode
	if mode == CopyRelay || mode == CopyAuto && len(s.tried) == sourcesTried {
		j.relays = append(j.relays, s)
	} else {
		j.waiting = append(j.waiting, s)
	}
}

// addSource lets the other servers copy from one that has the image.
func (j *distributeJob) addSource(source *distributeSource) {
	known := slices.ContainsFunc(j.sources, func(other *distributeSource) bool { return other.key == source.key })
	if !known {
		j.sources = append(j.sources, source)
	}
}

// schedule starts what can be started, and gives up what cannot be.
func (j *distributeJob) schedule(ctx context.Context) {
	if ctx.Err() != nil {
		j.giveUp(func(s *distributeServer) error {
			return fmt.Errorf("bring image %.12s to %s: %w", j.image.Fingerprint, s.job.target.Endpoint(), ctx.Err())
		})
		return
	}
	for j.startNext(ctx) {
	}
	switch {
	case j.tree == 0 && (j.probing == 0 || j.overdue && len(j.sources) > 0):
		// There is no source for the servers that wait.
		if j.Copy.Mode == CopyAuto {
			j.relays, j.waiting = append(j.relays, j.waiting...), nil
		}
		j.startRelay(ctx)
		if j.running == 0 {
			j.giveUp(func(s *distributeServer) error {
				if len(s.failed) > 0 {
					return s.failure(s.failed[len(s.failed)-1].Err)
				}
				return fmt.Errorf("bring image %.12s to %s: %w: no server that has it can be copied from", j.image.Fingerprint, s.job.target.Endpoint(), ErrUnavailable)
			})
		}
	case j.treeWorks:
		// Servers can copy from each other, so this relay is for few. Before that is
		// known, one relay is to serve all.
		j.startRelay(ctx)
	}
}

// startNext starts a transfer from server to server, if one is possible.
func (j *distributeJob) startNext(ctx context.Context) bool {
	if len(j.waiting) == 0 {
		return false
	}
	// Without relays, bad sources are better than none.
	anotherWay := j.Copy.Mode == CopyAuto || slices.ContainsFunc(j.sources, func(s *distributeSource) bool { return s.failures < failuresAllowed })
	free := slices.DeleteFunc(slices.Clone(j.sources), func(s *distributeSource) bool {
		return s.busy >= j.Fanout || anotherWay && s.failures >= failuresAllowed
	})
	slices.SortStableFunc(free, func(a, b *distributeSource) int { return a.busy - b.busy })
	for _, source := range free {
		for n, s := range j.waiting {
			if !slices.Contains(s.tried, source) {
				j.waiting = slices.Delete(j.waiting, n, n+1)
				j.transfer(ctx, s, source)
				return true
			}
		}
	}
	return false
}

// transfer copies the image from server to server.
func (j *distributeJob) transfer(ctx context.Context, s *distributeServer, source *distributeSource) {
	modes := []CopyMode{j.Copy.Mode}
	if j.Copy.Mode == CopyAuto {
		modes = []CopyMode{CopyPull, CopyPush}
	}
	s.tried = append(s.tried, source)
	j.tree++
	if j.DryRun {
		s.job.source, s.job.copied = source.image, &Copied{}
		j.start(func() func() {
			mode, err := s.job.possible(ctx, modes)
			return func() {
				j.tree--
				if err == nil {
					j.plan(s, source, mode)
					return
				}
				j.noteFailed(s, source)
				j.retry(ctx, s, err)
			}
		})
		return
	}
	source.busy++
	free := sync.OnceFunc(func() {
		source.busy--
		j.tree--
	})
	running, cancel := context.WithCancelCause(ctx)
	started := make(chan *Operation, len(modes))
	s.job.started = func(op *Operation) { started <- op }
	j.watchStall(running, started, s.job.target.t.stall, func() {
		free()
		source.failures++
	}, cancel)
	j.copy(ctx, running, s, source, modes, func(err error) {
		cancel(nil)
		free()
		var sources *sourceError
		var failed *OperationError
		switch {
		case err == nil:
			source.failures = 0
			j.treeWorks = true
		case errors.As(err, &sources), errors.As(err, &failed), errors.Is(err, ErrUnsupported):
			// Of an operation it is not known which server has failed. Any other error
			// is the target's own.
			source.failures++
		}
	})
}

// startRelay relays the image to the servers that wait for it.
func (j *distributeJob) startRelay(ctx context.Context) {
	source := j.relaySource()
	if len(j.relays) == 0 || j.relaying {
		return
	}
	if j.DryRun {
		for _, s := range j.relays {
			j.plan(s, source, CopyRelay)
		}
		j.relays = nil
		return
	}
	n := min(len(j.relays), j.RelayFanout)
	servers := slices.Clone(j.relays[:n])
	j.relays = slices.Delete(j.relays, 0, n)
	content, readers := source.image.shareContent(ctx, n)
	j.relaying = true
	j.start(func() func() {
		<-content.done
		return func() { j.relaying = false }
	})
	for n, s := range servers {
		s.relayed++
		s.job.shared, s.job.started = readers[n], nil
		j.copy(ctx, ctx, s, source, []CopyMode{CopyRelay}, func(err error) {
			_ = readers[n].Close()
			var failed *sourceError
			if errors.As(err, &failed) {
				source.relays++
			}
		})
	}
}

// relaySource returns the source that has failed least.
func (j *distributeJob) relaySource() *distributeSource {
	sources := j.sources
	if !slices.Contains(sources, j.original) {
		sources = append(slices.Clone(sources), j.original) // it may be a member that was not reached yet
	}
	return slices.MinFunc(sources, func(a, b *distributeSource) int { return (a.relays + a.failures) - (b.relays + b.failures) })
}

// copy runs the copy job of a server with another source, and then does what follows
// from its outcome. ended is called before. running is the context of the copy itself.
func (j *distributeJob) copy(ctx, running context.Context, s *distributeServer, source *distributeSource, modes []CopyMode, ended func(error)) {
	job := s.job
	job.source, job.copied = source.image, &Copied{}
	job.meter = j.meters.start(job.target)
	began := time.Now()
	j.start(func() func() {
		err := job.run(running, modes, true)
		if err != nil && errors.Is(context.Cause(running), errStalled) {
			err = errStalled
			job.copied.Failed = []CopyAttempt{{job.copied.Mode, err}}
		}
		took := time.Since(began)
		return func() {
			job.meter.Stop()
			ended(err)
			j.noteFailed(s, source)
			copied, err := job.result(ctx, err)
			if copied != nil && copied.Image != nil && (err == nil || !copied.UploadedAt.IsZero()) {
				j.finish(s, distributeResult{Delivery{
					Image: copied.Image, Mode: copied.Mode, Source: source.image.client, Bytes: max(copied.Size, 0), Took: took, Failed: s.failed,
				}, err})
				j.addSource(&distributeSource{image: copied.Image, key: s.key})
				return
			}
			j.retry(ctx, s, err)
		}
	})
}

// noteFailed notes which modes have failed with a source.
func (j *distributeJob) noteFailed(s *distributeServer, source *distributeSource) {
	for _, failed := range s.job.copied.Failed {
		s.failed = append(s.failed, DeliveryAttempt{source.image.client, failed.Mode, failed.Err})
	}
}

// retry lets a server wait for another source after err, if one may help.
func (j *distributeJob) retry(ctx context.Context, s *distributeServer, err error) {
	if ctx.Err() != nil || !s.job.shouldTryNext(ctx, err) || s.relayed == relaysTried || j.Copy.Mode != CopyAuto && len(s.tried) == sourcesTried {
		j.finish(s, distributeResult{Delivery{Failed: s.failed}, s.failure(err)})
		return
	}
	j.wait(s)
}

// failure returns the error of a server for which all attempts have failed, the last one
// with err.
func (s *distributeServer) failure(err error) error {
	if len(s.failed) < 2 {
		return err
	}
	e := &copyError{what: fmt.Sprintf("bring image %.12s to %s", s.job.source.Fingerprint, s.job.target.Endpoint())}
	for _, a := range s.failed {
		e.failed = append(e.failed, TransferAttempt{fmt.Sprintf("%s from %s", a.Mode, a.Source.Endpoint()), a.Err})
	}
	return e
}

// giveUp ends the wait of the servers that cannot be served, because of why.
func (j *distributeJob) giveUp(why func(*distributeServer) error) {
	for _, s := range slices.Concat(j.waiting, j.relays) {
		j.finish(s, distributeResult{Delivery{Failed: s.failed}, why(s)})
	}
	j.waiting, j.relays = nil, nil
}

// plan gives a server the result of a dry run.
func (j *distributeJob) plan(s *distributeServer, source *distributeSource, mode CopyMode) {
	j.finish(s, distributeResult{Delivery: Delivery{Mode: mode, Source: source.image.client, Bytes: max(j.image.Size, 0), Failed: s.failed}})
}

// finish sends the results of a server's targets.
func (j *distributeJob) finish(s *distributeServer, r distributeResult) {
	r.Target, r.Index = j.targets[s.targets[0]], s.targets[0]
	s.result = &r
	j.meters.ended(r.Target, r.err == nil)
	j.send(r)
	for _, n := range s.targets[1:] {
		j.repeat(s, n)
	}
}

// repeat sends the result of a server for another target that is the same server.
func (j *distributeJob) repeat(s *distributeServer, n int) {
	r := *s.result
	r.SameAs, r.Target, r.Index, r.Bytes = r.Target, j.targets[n], n, 0
	j.send(r)
}

// send sends the result of a target.
func (j *distributeJob) send(r distributeResult) {
	j.results <- r
	if j.left--; j.left == 0 {
		j.cancel()
	}
}
