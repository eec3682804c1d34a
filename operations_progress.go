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

// OperationProgress is how far the server's work is.
type OperationProgress struct {
	// Text is the daemon's own, such as "rootfs: 45% (12.00MB/s)".
	Text string
	// Percent is from 0 to 100, or -1 where it is unknown.
	Percent int
	// Bytes done, or -1 where unknown.
	Bytes int64
}

// Progress reads how far the operation was when it was last seen. ok is false
// where the server tells nothing.
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

// percentIn finds the number before the first percent sign.
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

// watchInterval is how often an operation is looked at where there are no
// events.
const watchInterval = 500 * time.Millisecond

// watch reports the server's progress to a meter while somebody waits: from
// events, or by asking where they cannot be had. It must be stopped.
func (o *Operation) watch(ctx context.Context, m *progress.Meter) (stop func()) {
	if m == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	tell := func(s *OperationStatus) {
		if p, ok := s.Progress(); ok {
			m.Server(p.Percent, p.Bytes, o.secrets.Text(p.Text))
		}
	}
	ask := func() {
		req := &request{method: http.MethodGet, path: path("operations", o.id), query: o.query, noRetry: true, secrets: o.secrets}
		if state, err := o.get(ctx, req); err == nil {
			status := statusOf(state)
			tell(&status)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event, err := range o.client.Events(ctx, &EventsOptions{Types: []EventType{EventOperation}}) {
			switch {
			case err != nil:
			case event.Type == EventConnected:
				ask() // what was told before
			case event.Operation != nil && event.Operation.ID == o.id:
				tell(event.Operation)
			}
		}
		for retry.Sleep(ctx, watchInterval) == nil {
			ask()
		}
	}()
	return func() { cancel(); <-done }
}
