package lxd

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// TestOnlyTheCurrentMemberIsLeft: of several requests that fail at one member at
// once, only the first changes the current one.
func TestOnlyTheCurrentMemberIsLeft(t *testing.T) {
	t.Parallel()
	m := newMembers("https://a:8443", "https://b:8443", "https://c:8443")
	for range 3 {
		m.leave("https://a:8443")
		require.Equal(t, "https://b:8443", m.base())
	}
	m.leave("https://b:8443")
	m.leave("https://c:8443")
	require.Equal(t, "https://a:8443", m.base())
}

// TestBrokenBodyLeavesItsMember: a member is left if a response breaks, but not at
// the end of one, nor if the client closes it.
func TestBrokenBodyLeavesItsMember(t *testing.T) {
	t.Parallel()
	left := 0
	body := func(r io.Reader) *memberBody {
		return &memberBody{ReadCloser: io.NopCloser(r), leave: func() { left++ }}
	}
	_, err := io.ReadAll(body(strings.NewReader("whole")))
	require.NoError(t, err)
	require.Zero(t, left)
	closed := body(iotest.ErrReader(errors.New("closed")))
	require.NoError(t, closed.Close())
	_, err = closed.Read(make([]byte, 1))
	require.Error(t, err)
	require.Zero(t, left)
	_, err = io.ReadAll(body(iotest.ErrReader(io.ErrUnexpectedEOF)))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Equal(t, 1, left)
}

// TestRetryable has the connection of each kind of request break after it was
// sent: it is repeated only where doing it twice does no harm.
func TestRetryable(t *testing.T) {
	t.Parallel()
	broken := &ConnectionError{Err: io.ErrUnexpectedEOF}
	unsent := &ConnectionError{Err: &dialError{err: syscall.ECONNREFUSED}}
	for name, test := range map[string]struct {
		req  request
		want bool
	}{
		"GET":             {request{method: http.MethodGet}, true},
		"HEAD":            {request{method: http.MethodHead}, true},
		"DELETE":          {request{method: http.MethodDelete}, true},
		"POST":            {request{method: http.MethodPost}, false},
		"repeatable POST": {request{method: http.MethodPost, repeatable: true}, true},
		"PUT":             {request{method: http.MethodPut}, true},
		"PUT of a state":  {request{method: http.MethodPut, header: http.Header{"If-Match": {"etag"}}}, false},
		"PATCH":           {request{method: http.MethodPatch}, false},
		"without retries": {request{method: http.MethodGet, noRetry: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, test.req.retryable(broken))
			require.Equal(t, !test.req.noRetry, test.req.retryable(unsent), "nothing was sent")
		})
	}
}
