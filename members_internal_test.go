package lxd

import (
	"io"
	"net/http"
	"syscall"
	"testing"

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
