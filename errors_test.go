package lxd_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestRefusalsAreForbidden: for a client that the server does not trust, and for one
// without the permission.
func TestRefusalsAreForbidden(t *testing.T) {
	t.Parallel()
	for _, status := range []int{401, 403} {
		_, err := clientOf(t, canned{status, text(fmt.Sprintf(`{"type":"error","error":"no","error_code":%d}`, status))}).Images.Get(t.Context(), oneFingerprint)
		require.ErrorIs(t, err, lxd.ErrForbidden)
		require.Equal(t, status == 401, errors.Is(err, lxd.ErrUnauthorized))
	}
}

func TestTransient(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  interface{ Transient() bool }
		want bool
	}{
		{&lxd.Error{StatusCode: 503}, true},
		{&lxd.Error{StatusCode: 429}, true},
		{&lxd.Error{StatusCode: 502}, true},
		{&lxd.Error{StatusCode: 404}, false},
		{&lxd.Error{StatusCode: 500}, false},
		{&lxd.ConnectionError{Err: syscall.ECONNRESET}, true},
		{&lxd.ConnectionError{Err: os.ErrPermission}, false},
		{&lxd.ConnectionError{Err: &lxd.PinError{}}, false},
		{&lxd.ConnectionError{Err: &lxd.ProxyError{StatusCode: 407}}, false},
		{&lxd.ProxyError{StatusCode: 503, Err: io.ErrUnexpectedEOF}, true},
		{&lxd.ProxyError{StatusCode: 403, Err: io.ErrUnexpectedEOF}, false},
		{&lxd.SourceError{StatusCode: 504}, true},
		{&lxd.SourceError{StatusCode: 404}, false},
		{&lxd.SourceError{Err: io.ErrUnexpectedEOF}, true},
		{&lxd.SourceError{Problem: "it was replaced"}, false},
		{&lxd.InputError{}, false},
	} {
		require.Equal(t, test.want, test.err.Transient(), "%#v", test.err)
	}
}

// TestIsTransientOfEach: of the exported types only those that say so are transient, and
// of the sentinels none: it is their error that knows.
func TestIsTransientOfEach(t *testing.T) {
	t.Parallel()
	passing := map[string]error{
		"Error":           &lxd.Error{StatusCode: 503},
		"ConnectionError": &lxd.ConnectionError{Err: io.ErrUnexpectedEOF},
		"OperationError":  &lxd.OperationError{StatusCode: 503},
		"SourceError":     &lxd.SourceError{StatusCode: 503},
		"ProxyError":      &lxd.ProxyError{StatusCode: 503, Err: io.ErrUnexpectedEOF},
		"TrustError":      &lxd.TrustError{Err: &lxd.Error{StatusCode: 503}},
		"RemoteError":     &lxd.RemoteError{Err: &lxd.ConnectionError{Err: io.ErrUnexpectedEOF}},
		"FingerprintError": &lxd.FingerprintError{
			Err: &lxd.ConnectionError{Err: io.ErrUnexpectedEOF},
		},
	}
	lasting := map[string]error{
		"Error":            &lxd.Error{StatusCode: 404},
		"InputError":       &lxd.InputError{},
		"ConnectionError":  &lxd.ConnectionError{Err: &lxd.PinError{}},
		"OperationError":   &lxd.OperationError{StatusCode: 401},
		"FingerprintError": &lxd.FingerprintError{Got: oneFingerprint},
		"SourceError":      &lxd.SourceError{StatusCode: 404},
		"ProxyError":       &lxd.ProxyError{StatusCode: 407, Err: io.ErrUnexpectedEOF},
		"RemoteError":      &lxd.RemoteError{Err: os.ErrNotExist},
		"PinError":         &lxd.PinError{},
		"TrustError":       &lxd.TrustError{Err: &lxd.Error{StatusCode: 403}},
	}
	for name, err := range passing {
		require.True(t, lxd.IsTransient(err), name)
		require.True(t, lxd.IsTransient(fmt.Errorf("wrapped: %w", err)), name)
	}
	for name, err := range lasting {
		require.False(t, lxd.IsTransient(err), name)
	}
	for _, name := range exportedNames(t) {
		switch {
		case strings.Contains(name, ".") || !ast.IsExported(name) || name == "ErrorIfExists":
		case strings.HasSuffix(name, "Error"):
			require.Contains(t, lasting, name)
		case strings.HasPrefix(name, "Err"):
			require.Contains(t, sentinels, name)
		}
	}
	for name, err := range sentinels {
		require.False(t, lxd.IsTransient(err), name)
	}
}

// sentinels are the kinds of failure that a refusal may be.
var sentinels = map[string]error{
	"ErrInvalid": lxd.ErrInvalid, "ErrNotFound": lxd.ErrNotFound, "ErrExists": lxd.ErrExists, "ErrConflict": lxd.ErrConflict,
	"ErrAmbiguous": lxd.ErrAmbiguous, "ErrForbidden": lxd.ErrForbidden, "ErrUnauthorized": lxd.ErrUnauthorized,
	"ErrUnsupported": lxd.ErrUnsupported, "ErrUnavailable": lxd.ErrUnavailable, "ErrBadResponse": lxd.ErrBadResponse,
	"ErrTooLarge": lxd.ErrTooLarge, "ErrCancelled": lxd.ErrCancelled, "ErrOutcomeUnknown": lxd.ErrOutcomeUnknown,
	"ErrBodyChanged": lxd.ErrBodyChanged, "ErrNotReplayable": lxd.ErrNotReplayable, "ErrProjectNotFound": lxd.ErrProjectNotFound,
}

// requireKinds fails unless the error matches these sentinels and no other.
func requireKinds(t *testing.T, err error, want ...string) {
	t.Helper()
	var got []string
	for name, sentinel := range sentinels {
		if errors.Is(err, sentinel) {
			got = append(got, name)
		}
	}
	require.ElementsMatch(t, want, got, "%v", err)
}

func TestErrorMatchesByItsStatus(t *testing.T) {
	t.Parallel()
	for status, want := range map[int][]string{
		400: nil, 500: nil,
		401: {"ErrForbidden", "ErrUnauthorized"},
		403: {"ErrForbidden"},
		404: {"ErrNotFound"},
		409: {"ErrExists"},
		412: {"ErrConflict"},
		429: {"ErrUnavailable"}, 502: {"ErrUnavailable"}, 503: {"ErrUnavailable"}, 504: {"ErrUnavailable"},
		501: {"ErrUnsupported"},
	} {
		requireKinds(t, &lxd.Error{StatusCode: status}, want...)
	}
}

// TestErrorOfAnotherProgramMatches only ErrBadResponse: the status of a proxy's
// page does not mean anything about an image.
func TestErrorOfAnotherProgramMatches(t *testing.T) {
	t.Parallel()
	for _, status := range []int{404, 409, 412, 501} {
		_, err := clientOf(t, canned{status, text("<html><body>Welcome</body></html>")}).Images.Get(t.Context(), oneFingerprint)
		require.Equal(t, status, testkit.ErrOf[*lxd.Error](t, err).StatusCode)
		requireKinds(t, err, "ErrBadResponse")
	}
	_, err := clientOf(t, canned{404, repeated(`{"type":"error","error":"`, "x", `"}`, 20<<20)}).Images.Get(t.Context(), oneFingerprint)
	requireKinds(t, err, "ErrBadResponse", "ErrTooLarge")
}

// TestErrorTexts: they contain the request, the daemon's message, and a hint.
func TestErrorTexts(t *testing.T) {
	t.Parallel()
	cause := errors.New("the cable is cut")
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"refusal":                   {&lxd.Error{StatusCode: 404, Method: "GET", Path: "/1.0/images/a%2Fb", Message: "Image not found"}, "GET /1.0/images/a%2Fb: Image not found (404)"},
		"refusal without words":     {&lxd.Error{StatusCode: 404, Method: "GET", Path: "/1.0"}, "GET /1.0: not found (404)"},
		"refusal with a hint":       {&lxd.Error{StatusCode: 403, Method: "GET", Path: "/1.0", Message: "no", Hint: "join"}, "GET /1.0: no (403): join"},
		"input":                     {&lxd.InputError{Field: "CreateOptions.Size", Problem: "is negative"}, "CreateOptions.Size is negative"},
		"connection":                {&lxd.ConnectionError{Endpoint: "unix:///s", Method: "GET", Path: "/1.0", Err: cause}, "GET /1.0 at unix:///s: the cable is cut"},
		"connection with a hint":    {&lxd.ConnectionError{Endpoint: "unix:///s", Method: "GET", Path: "/1.0", Err: cause, Hint: "mend it"}, "GET /1.0 at unix:///s: the cable is cut: mend it"},
		"operation":                 {&lxd.OperationError{ID: "one", Description: "Downloading image", Message: "disk full"}, "downloading image: disk full (operation one)"},
		"operation without a name":  {&lxd.OperationError{ID: "one", Message: "disk full"}, "operation: disk full (operation one)"},
		"operation with a hint":     {&lxd.OperationError{ID: "one", Message: "disk full", Hint: "clean up"}, "operation: disk full (operation one): clean up"},
		"another content":           {&lxd.FingerprintError{Want: "aa", Got: "bb"}, "image content has fingerprint bb, not aa"},
		"another content, by cause": {&lxd.FingerprintError{Want: "aa", Got: "bb", Err: cause}, "image content has fingerprint bb, not aa: the cable is cut"},
		"incomplete content":        {&lxd.FingerprintError{Want: "aa", Err: io.ErrUnexpectedEOF}, "image aa is incomplete: unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, test.err.Error())
		})
	}
}

func TestErrorsWrapTheirCause(t *testing.T) {
	t.Parallel()
	connection := &lxd.ConnectionError{Err: syscall.ECONNREFUSED}
	require.ErrorIs(t, connection, syscall.ECONNREFUSED)
	requireKinds(t, connection, "ErrUnavailable")
	content := &lxd.FingerprintError{Want: "aa", Err: io.ErrUnexpectedEOF}
	require.ErrorIs(t, content, io.ErrUnexpectedEOF)
	requireKinds(t, content)
	requireKinds(t, &lxd.InputError{Field: "image"}, "ErrInvalid")
}

func TestOperationErrorMatchesByItsStatus(t *testing.T) {
	t.Parallel()
	for status, want := range map[int][]string{
		400: nil, // a failure without a kind
		401: {"ErrCancelled"},
		403: {"ErrForbidden"},
		404: {"ErrNotFound"},
		409: {"ErrExists"},
	} {
		requireKinds(t, &lxd.OperationError{StatusCode: status}, want...)
	}
}

// TestErrorSaysWhenToRetry: RetryAfter returns what the server requests.
func TestErrorSaysWhenToRetry(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, nil, &lxd.Options{RetryTimeout: -1})
	busy := f.Inject(lxdtest.TooManyRequests(3 * time.Second))
	_, err := f.Client.Images.All(t.Context(), nil)
	wait, ok := testkit.ErrOf[*lxd.Error](t, err).RetryAfter()
	require.True(t, ok)
	require.Equal(t, 3*time.Second, wait)
	busy.Remove()
	f.Inject(lxdtest.Unavailable())
	_, err = f.Client.Images.All(t.Context(), nil)
	_, ok = testkit.ErrOf[*lxd.Error](t, err).RetryAfter()
	require.False(t, ok)
}

// TestIsTransient distinguishes what lasts from what may pass.
func TestIsTransient(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(server.Close)
	dial := func(err error) *lxd.Options {
		return &lxd.Options{RetryTimeout: -1, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, err }}
	}
	closed := testkit.NewClient(t, server.Endpoint(), nil)
	require.NoError(t, closed.Close())
	for name, test := range map[string]struct {
		client    *lxd.Client
		transient bool
		also      error
	}{
		"closed client":     {closed, false, net.ErrClosed},
		"wrong pin":         {testkit.NewClient(t, server.URL(), &lxd.Options{ServerFingerprint: oneFingerprint}), false, nil},
		"unknown authority": {testkit.NewClient(t, server.URL(), nil), false, nil},
		"socket permission": {testkit.NewClient(t, "unix:///run/x", dial(syscall.EACCES)), false, lxd.ErrForbidden},
		"firewall":          {testkit.NewClient(t, "https://127.0.0.1", dial(syscall.EPERM)), false, syscall.EPERM},
		"missing socket":    {testkit.NewClient(t, "unix:///run/x", dial(syscall.ENOENT)), false, nil},
		"refused":           {testkit.NewClient(t, "unix:///run/x", dial(syscall.ECONNREFUSED)), true, nil},
		"broken":            {testkit.NewClient(t, "unix:///run/x", dial(io.ErrUnexpectedEOF)), true, nil},
	} {
		_, err := test.client.Images.Get(t.Context(), oneFingerprint)
		require.ErrorIs(t, err, lxd.ErrUnavailable, name)
		require.Equal(t, test.transient, lxd.IsTransient(err), "%s: %v", name, err)
		require.Equal(t, errors.Is(test.also, lxd.ErrForbidden), errors.Is(err, lxd.ErrForbidden), name)
		if test.also != nil {
			require.ErrorIs(t, err, test.also, name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := testkit.NewClient(t, server.Endpoint(), nil).Images.Get(ctx, oneFingerprint)
	require.False(t, lxd.IsTransient(err))
	require.False(t, lxd.IsTransient(nil))
	require.True(t, lxd.IsTransient(fmt.Errorf("wrapped: %w", &lxd.Error{StatusCode: 503})))
}

// TestCallsBrokenByClose: a call whose connection Close breaks says so.
func TestCallsBrokenByClose(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	stalled := f.Inject(lxdtest.StallHeaders())
	ended := make(chan error, 1)
	go func() {
		ended <- f.Client.Aliases.Create(context.Background(), lxd.Alias{Name: "x", Target: oneFingerprint})
	}()
	require.Eventually(t, func() bool { return stalled.Fired() == 1 }, 30*time.Second, time.Millisecond)
	require.NoError(t, f.Client.Close())
	var err error
	select {
	case err = <-ended:
	case <-time.After(patience):
		t.Fatal("it still waits for the response")
	}
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	require.False(t, lxd.IsTransient(err))
}
