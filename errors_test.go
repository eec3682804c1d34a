package lxd_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
)

// TestRefusalsAreForbidden: of a client that is not known, and of one that may
// not.
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
