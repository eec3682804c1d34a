package lxd

import "github.com/golxd/lxd/internal/progress"

// Phases of a transfer, as Progress tells them.
const (
	PhaseHash    = "hash"    // the client reads and hashes
	PhaseSend    = "send"    // the client sends
	PhaseServer  = "server"  // the server works
	PhaseReceive = "receive" // the client receives
	PhaseVerify  = "verify"  // the client hashes files that are on its disk
)

// Progress tells how far a transfer is. It is reported at most ten times a
// second and once at the end, never by two goroutines at once; what is reported
// to must return soon. A phase that is over sooner than that may not be reported
// at all, and the last that is reported of a phase may be less than all of it.
type Progress struct {
	Phase   string // one of the Phase constants
	Done    int64  // bytes, -1 where unknown
	Total   int64  // bytes, -1 where unknown
	Percent int    // of the phase, from 0 to 100, -1 where unknown
	// Text is what the server says of its own work, such as
	// "rootfs: 45% (12.00MB/s)"; only in the phase server, and often empty.
	Text string
}

// meter starts to report to a user's function.
func meter(phase string, total int64, report func(Progress)) *progress.Meter {
	if report == nil {
		return nil
	}
	return progress.Start(phase, total, func(s progress.State) { report(Progress(s)) })
}
