package lxd

import "github.com/golxd/lxd/internal/progress"

// The phases of a transfer, as in Progress.Phase.
const (
	PhaseHash    = "hash"    // the client reads and hashes the content
	PhaseSend    = "send"    // the client sends the content
	PhaseServer  = "server"  // the server works in the background
	PhaseReceive = "receive" // the client receives the content
	PhaseVerify  = "verify"  // the client hashes files on its disk
)

// Progress is the state of a transfer. It is reported at most ten times a second
// and once at the end, never by two goroutines at once; the function that
// receives it must return soon. A phase shorter than a tenth of a second may not
// be reported at all, and the last report of a phase may be below 100 percent.
type Progress struct {
	Phase   string // one of the Phase constants
	Done    int64  // bytes, -1 if unknown
	Total   int64  // bytes, -1 if unknown
	Percent int    // of the phase, from 0 to 100, -1 if unknown
	// Text is the server's own description of its work, such as
	// "rootfs: 45% (12.00MB/s)"; only in PhaseServer, and often empty.
	Text string
}

// meter starts a meter that reports to the caller's function. It returns nil if
// that is nil.
func meter(phase string, total int64, report func(Progress)) *progress.Meter {
	if report == nil {
		return nil
	}
	return progress.Start(phase, total, func(s progress.State) { report(Progress(s)) })
}
