package retry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var errBroken = errors.New("broken")

// retryAfterError is an error of a server that requests a pause.
type retryAfterError struct{ wait time.Duration }

func (e retryAfterError) Error() string { return "retry after " + e.wait.String() }

func (e retryAfterError) RetryAfter() (time.Duration, bool) { return e.wait, true }

// series retries until fail succeeds or the policy gives up, and returns the time
// of each attempt after the start.
func series(t *testing.T, p Policy, fail func(attempt int) error) (attempts []time.Duration, err error) {
	t.Helper()
	began, r := time.Now(), p.Begin()
	for {
		attempts = append(attempts, time.Since(began))
		failure := fail(len(attempts))
		if failure == nil {
			return attempts, nil
		}
		if err := r.Pause(t.Context(), failure); err != nil {
			return attempts, err
		}
	}
}

func TestRetriesForTheTimeout(t *testing.T) {
	t.Parallel()
	for name, timeout := range map[string]time.Duration{"default": 0, "a second": time.Second, "an hour": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				attempts, err := series(t, Policy{Timeout: timeout}, func(int) error { return errBroken })
				require.Equal(t, errBroken, err)
				want := timeout
				if want == 0 {
					want = DefaultTimeout
				}
				require.Equal(t, want, attempts[len(attempts)-1], "the last attempt is at the end of the timeout")
				pause := FirstPause
				for n := 1; n < len(attempts)-1; n++ {
					between := attempts[n] - attempts[n-1]
					require.GreaterOrEqual(t, between, pause/2)
					require.LessOrEqual(t, between, pause)
					pause = min(2*pause, MaxPause)
				}
			})
		})
	}
}

func TestNeverRetries(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{errBroken, retryAfterError{time.Millisecond}} {
		require.Equal(t, failure, Policy{Timeout: -1}.Begin().Pause(t.Context(), failure))
	}
}

func TestProgressStartsNewSeries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := Policy{Timeout: time.Second}.Begin()
		fail := func() error { return r.Pause(t.Context(), errBroken) }
		for range 10 {
			for fail() == nil {
			}
			require.Equal(t, errBroken, fail(), "no retry after the timeout")
			r.Progress()
			began := time.Now()
			require.NoError(t, fail())
			require.LessOrEqual(t, time.Since(began), FirstPause)
			r.Progress()
		}
	})
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	wait := func(t *testing.T, timeout time.Duration, waits ...time.Duration) (attempts []time.Duration, err error) {
		t.Helper()
		return series(t, Policy{Timeout: timeout}, func(attempt int) error {
			if attempt > len(waits) {
				return nil
			}
			return retryAfterError{waits[attempt-1]}
		})
	}
	t.Run("within the timeout", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			attempts, err := wait(t, time.Minute, 10*time.Second, 20*time.Second)
			require.NoError(t, err)
			require.Equal(t, []time.Duration{0, 10 * time.Second, 30 * time.Second}, attempts)
		})
	})
	t.Run("beyond the timeout, once", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			attempts, err := wait(t, time.Second, MaxAfter)
			require.NoError(t, err)
			require.Equal(t, []time.Duration{0, MaxAfter}, attempts)
			_, err = wait(t, time.Second, time.Minute, time.Minute)
			require.Equal(t, retryAfterError{time.Minute}, err)
			_, err = wait(t, time.Second, time.Minute, 0)
			require.Equal(t, retryAfterError{0}, err)
		})
	})
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			attempts, err := series(t, Policy{}, func(int) error { return retryAfterError{0} })
			require.Equal(t, retryAfterError{0}, err)
			require.Equal(t, DefaultTimeout, attempts[len(attempts)-1])
			require.GreaterOrEqual(t, attempts[1], FirstPause/2)
			require.Less(t, len(attempts), 30, "the pauses double nevertheless")
		})
	})
	t.Run("too long", func(t *testing.T) {
		t.Parallel()
		_, err := wait(t, time.Hour, MaxAfter+time.Second)
		require.Equal(t, retryAfterError{MaxAfter + time.Second}, err)
	})
	t.Run("again and again", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			attempts, err := series(t, Policy{Timeout: 10 * time.Second}, func(int) error { return retryAfterError{3 * time.Second} })
			require.Error(t, err)
			require.LessOrEqual(t, attempts[len(attempts)-1], 13*time.Second)
		})
	})
}

func TestPauseEndsWithContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("the caller's reason")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, cause)
		defer cancel()
		began := time.Now()
		err := Policy{}.Begin().Pause(ctx, retryAfterError{5 * time.Minute})
		require.Equal(t, time.Minute, time.Since(began))
		for _, want := range []error{context.DeadlineExceeded, cause, retryAfterError{5 * time.Minute}} {
			require.ErrorIs(t, err, want)
		}
		failure := fmt.Errorf("attempt: %w", context.DeadlineExceeded)
		require.Equal(t, failure, Policy{}.Begin().Pause(ctx, failure), "the error already has the context's error")
	})
}

func TestStatus(t *testing.T) {
	t.Parallel()
	for code := 200; code < 600; code++ {
		transient, acted := Status(code)
		require.Equal(t, code == 429 || code == 502 || code == 503 || code == 504, transient, code)
		require.Equal(t, code == 502 || code == 504, acted, code)
	}
}

type markedError bool

func (markedError) Error() string { return "marked error" }

func (m markedError) Transient() bool { return bool(m) }

func TestTransient(t *testing.T) {
	t.Parallel()
	errno := func(e syscall.Errno) error { return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", e)} }
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"refused":              {errno(syscall.ECONNREFUSED), true},
		"reset":                {errno(syscall.ECONNRESET), true},
		"timeout":              {os.ErrDeadlineExceeded, true},
		"marked":               {markedError(true), true},
		"marked permanent":     {errors.Join(errno(syscall.ECONNRESET), markedError(false)), false},
		"as marked":            {errors.Join(markedError(true), fs.ErrPermission), true},
		"permission":           {errno(syscall.EACCES), false},
		"no file":              {fs.ErrNotExist, false},
		"no TLS":               {tls.RecordHeaderError{}, false},
		"plain http":           {http.ErrSchemeMismatch, false},
		"certificate":          {&tls.CertificateVerificationError{Err: errBroken}, false},
		"alert":                {tls.AlertError(42), false},
		"no such host":         {&net.DNSError{IsNotFound: true}, false},
		"resolver unavailable": {&net.DNSError{IsTemporary: true}, true},
		"resolver slow":        {&net.DNSError{IsTimeout: true}, true},
	} {
		require.Equal(t, c.want, Transient(fmt.Errorf("wrapped: %w", c.err)), name)
	}
}

func TestParseAfter(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"0": 0, " 7 ": 7 * time.Second, "99999999999": (1 << 30) * time.Second, "Mon, 02 Jan 2006 15:04:05 GMT": 0,
	} {
		got, ok := ParseAfter(text)
		require.True(t, ok, text)
		require.Equal(t, want, got, text)
	}
	got, ok := ParseAfter(time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
	require.True(t, ok)
	require.InDelta(t, time.Hour, got, float64(2*time.Second))
	for _, text := range []string{"", "-1", "soon", "1.5"} {
		_, ok := ParseAfter(text)
		require.False(t, ok, text)
	}
}
