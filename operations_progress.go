package lxd

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/retry"
)

// OperationProgress is the progress of an operation.
type OperationProgress struct {
	// Text is the daemon's own description, such as "rootfs: 45% (12.00MB/s)".
	Text string
	// Percent is from 0 to 100, or -1 if unknown.
	Percent int
	// Bytes is the number of bytes processed, or -1 if unknown.
	Bytes int64
}

// Progress returns the progress in this state. ok is false if the server reported
// none.
func (s *OperationStatus) Progress() (p OperationProgress, ok bool) {
	p = OperationProgress{Percent: -1, Bytes: -1}
	if fields, isMap := s.Metadata["progress"].(map[string]any); isMap {
		number := func(name string) int64 {
			switch v := fields[name].(type) {
			case string:
				if n, err := strconv.ParseInt(v, 10, 64); err == nil {
					return n
				}
			case float64:
				if v >= 0 && v < 1<<62 {
					return int64(v)
				}
			}
			return -1
		}
		p.Bytes, ok = max(number("processed"), -1), true
		if percent := number("percent"); percent >= 0 && percent <= 100 {
			p.Percent = int(percent)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Metadata)) {
		text, isText := s.Metadata[name].(string)
		if !isText || !strings.HasSuffix(name, "_progress") {
			continue
		}
		p.Text, ok = text, true
		if p.Percent < 0 {
			p.Percent = percentIn(text)
		}
	}
	return p, ok
}

// percentIn returns the number before the first percent sign, or -1 if there is
// none.
func percentIn(text string) int {
	before, _, found := strings.Cut(text, "%")
	if !found {
		return -1
	}
	start := len(before)
	for start > 0 && before[start-1] >= '0' && before[start-1] <= '9' {
		start--
	}
	n, err := strconv.Atoi(before[start:])
	if err != nil || n > 100 {
		return -1
	}
	return n
}

// watchInterval is how often an operation is read if events are not available.
const watchInterval = 500 * time.Millisecond

// watch reports an operation's progress to a meter: from events, or by reading the
// operation if events are not available. The caller must call stop.
func (o *Operation) watch(ctx context.Context, m *progress.Meter) (stop func()) {
	if m == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	report := func(s *OperationStatus) {
		if p, ok := s.Progress(); ok {
			m.Server(p.Percent, p.Bytes, o.secrets.Text(p.Text))
		}
	}
	read := func() {
		req := &request{method: http.MethodGet, path: path("operations", o.id), query: o.query, noRetry: true, secrets: o.secrets}
		if state, err := o.get(ctx, req); err == nil {
			status := statusOf(state)
			report(&status)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event, err := range o.client.Events(ctx, &EventsOptions{Types: []EventType{EventOperation}}) {
			switch {
			case err != nil:
			case event.Type == EventConnected:
				read() // for the progress before the connection
			case event.Operation != nil && event.Operation.ID == o.id:
				report(event.Operation)
			}
		}
		for retry.Sleep(ctx, watchInterval) == nil {
			read()
		}
	}()
	return func() { cancel(); <-done }
}
