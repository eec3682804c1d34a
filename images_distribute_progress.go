package lxd

import (
	"sync"

	"github.com/golxd/lxd/internal/progress"
)

// distributeMeters report the progress of the transfers of one call of Distribute. It is
// safe for concurrent use.
type distributeMeters struct {
	report func(DistributeProgress) // nil for none
	size   int64                    // of the image

	mu    sync.Mutex // of a report, too
	all   DistributeProgress
	bytes map[*Client]int64 // of the transfers
}

// found counts a server.
func (m *distributeMeters) found(target *Client) {
	m.change(target, func() { m.all.Servers++ })
}

// ended counts a server that has the image, or has failed.
func (m *distributeMeters) ended(target *Client, ok bool) {
	m.change(target, func() {
		bytes, transferred := m.bytes[target]
		switch {
		case !ok:
			m.all.Failed++
			if transferred {
				m.all.Bytes -= bytes
				m.all.TotalBytes -= m.size
			}
		default:
			m.all.Done++
			if transferred {
				m.all.Bytes += m.size - bytes
			}
		}
	})
}

// needs counts what there is to transfer to a server.
func (m *distributeMeters) needs(target *Client) {
	m.change(target, func() {
		m.all.TotalBytes += m.size
		m.bytes[target] = 0
	})
}

// start starts the meter of a transfer to a server; nil for none.
func (m *distributeMeters) start(target *Client) *progress.Meter {
	if m.report == nil {
		return nil
	}
	return progress.Start(PhaseServer, m.size, func(s progress.State) {
		m.change(target, func() {
			m.all.Transfer = Progress(s)
			done := s.Done
			if s.Phase == PhaseServer {
				done = m.size * int64(max(s.Percent, 0)) / 100
			}
			// A mode that failed, or a phase that follows, takes nothing back.
			if more := min(done, m.size) - m.bytes[target]; more > 0 {
				m.bytes[target] += more
				m.all.Bytes += more
			}
		})
	})
}

// change reports what change changes.
func (m *distributeMeters) change(target *Client, change func()) {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all.Target != target {
		m.all.Target, m.all.Transfer = target, Progress{Done: -1, Total: -1, Percent: -1}
	}
	change()
	m.report(m.all)
}
