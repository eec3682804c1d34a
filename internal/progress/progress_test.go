package progress

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReportsAtMostTenTimesASecondAndAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var reports []State
		var times []time.Time
		m := Start("send", 1000, func(s State) {
			reports = append(reports, s)
			times = append(times, time.Now())
		})
		for range 1000 {
			m.Add(1)
			time.Sleep(time.Millisecond)
		}
		m.Stop()
		m.Stop()
		require.GreaterOrEqual(t, len(reports), 9)
		require.LessOrEqual(t, len(reports), 11)
		for n := 1; n < len(times)-1; n++ {
			require.GreaterOrEqual(t, times[n].Sub(times[n-1]), Interval)
		}
		require.Equal(t, State{Phase: "send", Done: 1000, Total: 1000, Percent: 100}, reports[len(reports)-1])
		time.Sleep(time.Minute)
		require.LessOrEqual(t, len(reports), 11, "nothing comes after Stop")
	})
}

func TestReportsNothingWhileNothingChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		m := Start("send", -1, func(State) { n++ })
		m.Add(1)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, 1, n)
		m.Stop()
		require.Equal(t, 2, n, "the end is always reported")
	})
}

func TestReportsOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var inside, most, n atomic.Int32
		m := Start("send", 100, func(State) {
			most.Store(max(most.Load(), inside.Add(1)))
			time.Sleep(3 * Interval) // a slow receiver
			inside.Add(-1)
			n.Add(1)
		})
		for range 100 {
			m.Add(1)
			time.Sleep(Interval / 10)
		}
		m.Stop()
		require.EqualValues(t, 1, most.Load())
		require.Positive(t, n.Load())
	})
}

// TestLeaveWithinAReport calls Leave from the report function.
func TestLeaveWithinAReport(t *testing.T) {
	t.Parallel()
	for _, last := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var m *Meter
			n := 0
			m = Start("send", 100, func(State) {
				n++
				m.Leave()
			})
			if !last {
				m.Add(1)
				time.Sleep(2 * Interval)
				synctest.Wait()
			}
			m.Stop()
			m.Leave()
			time.Sleep(time.Minute)
			require.Equal(t, 1, n)
		})
	}
}

// TestLeaveDuringAReport calls Leave during a report: it does not wait, and no other
// report starts.
func TestLeaveDuringAReport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		unblock := make(chan struct{})
		m := Start("send", 100, func(State) {
			n.Add(1)
			<-unblock
		})
		m.Add(1)
		time.Sleep(2 * Interval)
		m.Leave()
		close(unblock)
		m.Add(1)
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, n.Load())
	})
}

func TestLeaveReportsTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var reports []State
		m := Start("send", 100, func(s State) { reports = append(reports, s) })
		m.Add(7)
		m.Leave()
		time.Sleep(time.Minute)
		require.Equal(t, []State{{Phase: "send", Done: 7, Total: 100, Percent: 7}}, reports)
	})
}

func TestPercentIsAtMost100(t *testing.T) {
	t.Parallel()
	m := Start("send", 100, func(State) {})
	defer m.Leave()
	m.Add(200)
	require.Equal(t, 100, m.state().Percent)
}

func TestPhases(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var last State
		m := Start("hash", 10, func(s State) { last = s })
		m.Add(5)
		time.Sleep(2 * Interval)
		synctest.Wait()
		require.Equal(t, State{Phase: "hash", Done: 5, Total: 10, Percent: 50}, last)
		m.Phase("send", 2, -1)
		time.Sleep(2 * Interval)
		synctest.Wait()
		require.Equal(t, State{Phase: "send", Done: 2, Total: -1, Percent: -1}, last)
		m.Server(45, 7, "rootfs: 45%")
		time.Sleep(2 * Interval)
		synctest.Wait()
		require.Equal(t, State{Phase: "send", Done: 7, Total: -1, Percent: 45, Text: "rootfs: 45%"}, last)
		m.Stop()
	})
}

func TestNobodyIsTold(t *testing.T) {
	m := Start("send", 10, nil)
	require.Nil(t, m)
	require.Nil(t, m.Counter())
	require.Zero(t, testing.AllocsPerRun(100, func() {
		m.Add(1)
		m.Phase("x", 0, 0)
		m.Server(1, 1, "")
		m.Stop()
		m.Leave()
	}))
}

// TestUnknownPercent: a server that reports neither a percentage nor bytes.
func TestUnknownPercent(t *testing.T) {
	for _, total := range []int64{-1, 0, 1, 50, 1 << 40} {
		var last State
		m := Start("server", total, func(s State) { last = s })
		m.Server(-1, -1, "working")
		m.Stop()
		require.Equal(t, State{Phase: "server", Done: -1, Total: total, Percent: -1, Text: "working"}, last)
	}
}
