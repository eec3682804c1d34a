// Package progress reports how far a transfer is, without slowing it down.
package progress

import (
	"sync"
	"sync/atomic"
	"time"
)

// Interval is the least time between two reports of a running transfer.
const Interval = 100 * time.Millisecond

// A Meter counts the bytes of a transfer and reports them from one goroutine at
// a time: every Interval while they change, and once at the end. A nil Meter
// counts nothing.
type Meter struct {
	report func(phase string, done, total int64)
	done   atomic.Int64

	mu      sync.Mutex
	phase   string
	total   int64
	last    state
	once    sync.Once
	stop    chan struct{}
	stopped chan struct{}
}

type state struct {
	phase       string
	done, total int64
}

// Start begins to report. It gives nil where report is nil. Every Meter must be
// ended with Stop.
func Start(phase string, total int64, report func(phase string, done, total int64)) *Meter {
	if report == nil {
		return nil
	}
	m := &Meter{report: report, phase: phase, total: total, stop: make(chan struct{}), stopped: make(chan struct{})}
	go m.run()
	return m
}

func (m *Meter) run() {
	defer close(m.stopped)
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if now := m.state(); now != m.last {
				m.last = now
				m.report(now.phase, now.done, now.total)
			}
		case <-m.stop:
			return
		}
	}
}

func (m *Meter) state() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return state{m.phase, m.done.Load(), m.total}
}

// Add counts n more bytes.
func (m *Meter) Add(n int) {
	if m != nil {
		m.done.Add(int64(n))
	}
}

// Counter is Add as a function, or nil for a nil Meter.
func (m *Meter) Counter() func(int) {
	if m == nil {
		return nil
	}
	return m.Add
}

// Phase begins another phase, counting from done. total is -1 where it is
// unknown.
func (m *Meter) Phase(phase string, done, total int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.phase, m.total = phase, total
	m.done.Store(done)
}

// Total sets the number of bytes of this phase once it is known.
func (m *Meter) Total(total int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total = total
}

// Stop makes the last report and returns when no other will follow.
func (m *Meter) Stop() {
	if m == nil {
		return
	}
	m.once.Do(func() {
		close(m.stop)
		<-m.stopped
		now := m.state()
		m.report(now.phase, now.done, now.total)
	})
}
