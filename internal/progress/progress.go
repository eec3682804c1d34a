// Package progress reports the progress of a transfer without slowing it down.
package progress

import (
	"sync"
	"sync/atomic"
	"time"
)

// Interval is the minimum time between two reports of a running transfer.
const Interval = 100 * time.Millisecond

// State is the content of a report.
type State struct {
	Phase       string
	Done, Total int64  // bytes, -1 if unknown
	Percent     int    // of the phase, -1 if unknown
	Text        string // the server's own words
}

// A Meter counts the bytes of a transfer and reports them from one goroutine at
// a time: every Interval while they change, and once at the end. A nil Meter
// counts nothing.
type Meter struct {
	report func(State)
	done   atomic.Int64

	mu      sync.Mutex
	phase   string
	total   int64
	percent int
	text    string
	ended   bool // Stop or Leave was called: only the last report may start

	reporting chan struct{} // the lock of a report
	last      State         // guarded by reporting
	stop      chan struct{}
}

// Start starts a Meter; it returns nil if report is nil. The caller must end the
// Meter with Stop or Leave.
func Start(phase string, total int64, report func(State)) *Meter {
	if report == nil {
		return nil
	}
	m := &Meter{report: report, phase: phase, total: total, percent: -1, reporting: make(chan struct{}, 1), stop: make(chan struct{})}
	go m.run()
	return m
}

func (m *Meter) run() {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			m.reportChange()
		case <-m.stop:
			return
		}
	}
}

// reportChange reports the state if it has changed.
func (m *Meter) reportChange() {
	m.reporting <- struct{}{}
	defer func() { <-m.reporting }()
	m.mu.Lock()
	ended := m.ended
	m.mu.Unlock()
	if now := m.state(); !ended && now != m.last {
		m.last = now
		m.report(now)
	}
}

func (m *Meter) state() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := State{Phase: m.phase, Done: m.done.Load(), Total: m.total, Percent: m.percent, Text: m.text}
	if s.Percent < 0 && s.Total > 0 && s.Done >= 0 {
		s.Percent = int(min(100*s.Done/s.Total, 100))
	}
	return s
}

// Add counts n more bytes.
func (m *Meter) Add(n int) {
	if m != nil {
		m.done.Add(int64(n))
	}
}

// Counter returns Add, or nil for a nil Meter.
func (m *Meter) Counter() func(int) {
	if m == nil {
		return nil
	}
	return m.Add
}

// Phase starts another phase, of which done bytes are already done. total is -1 if
// unknown.
func (m *Meter) Phase(phase string, done, total int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.phase, m.total, m.percent, m.text = phase, total, -1, ""
	m.done.Store(done)
}

// Server sets the progress that the server reports of its own work.
func (m *Meter) Server(percent int, done int64, text string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.percent, m.text = percent, text
	m.done.Store(done)
}

// Stop makes the last report, and returns when no other will follow. The report
// function must not call it, but Leave.
func (m *Meter) Stop() {
	if m == nil || !m.end() {
		return
	}
	m.reporting <- struct{}{}
	defer func() { <-m.reporting }()
	m.report(m.state())
}

// Leave ends the reports like Stop, but the report function may call it: if a report
// is in progress, Leave does not wait for it, and it is the last.
func (m *Meter) Leave() {
	if m == nil || !m.end() {
		return
	}
	select {
	case m.reporting <- struct{}{}:
		defer func() { <-m.reporting }()
		m.report(m.state())
	default:
	}
}

// end ends the reports; it returns false if an earlier call has done so.
func (m *Meter) end() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return false
	}
	m.ended = true
	close(m.stop)
	return true
}
