package lxd_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

func TestNewRefusesBadEndpointsAndOptions(t *testing.T) {
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	defer server.Close()
	cert, key := server.ClientCertificate()
	for name, test := range map[string]struct {
		endpoint string
		opts     lxd.Options
		field    string
	}{
		"plain http":         {"http://127.0.0.1:8443", lxd.Options{}, "endpoint"},
		"other scheme":       {"ftp://127.0.0.1", lxd.Options{}, "endpoint"},
		"no host":            {"https://", lxd.Options{}, "endpoint"},
		"no path":            {"unix://", lxd.Options{}, "endpoint"},
		"user name":          {"https://me:secret@127.0.0.1", lxd.Options{}, "endpoint"},
		"path":               {"https://127.0.0.1/1.0", lxd.Options{}, "endpoint"},
		"query":              {"https://127.0.0.1?a=b", lxd.Options{}, "endpoint"},
		"broken":             {"https://127.0.0.1:port", lxd.Options{}, "endpoint"},
		"family":             {"", lxd.Options{Family: "lxc"}, "Options.Family"},
		"key missing":        {"https://h", lxd.Options{ClientCertificate: cert}, "Options.ClientKey"},
		"certificate":        {"https://h", lxd.Options{ClientKey: key}, "Options.ClientCertificate"},
		"no pair":            {"https://h", lxd.Options{ClientCertificate: server.Certificate(), ClientKey: key}, "Options.ClientCertificate"},
		"server certificate": {"https://h", lxd.Options{ServerCertificate: []byte("no PEM")}, "Options.ServerCertificate"},
		"fingerprint":        {"https://h", lxd.Options{ServerFingerprint: "abc"}, "Options.ServerFingerprint"},
		"two servers":        {"https://h", lxd.Options{ServerCertificate: cert, ServerFingerprint: strings.Repeat("0", 64)}, "Options.ServerFingerprint"},
	} {
		_, err := lxd.New(test.endpoint, &test.opts)
		require.ErrorIs(t, err, lxd.ErrInvalid, name)
		require.Equal(t, test.field, testkit.ErrOf[*lxd.InputError](t, err).Field, name)
		require.NotContains(t, err.Error(), "secret", name)
	}
}

func TestClose(t *testing.T) {
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	export, err := image.Export(t.Context(), nil)
	require.NoError(t, err)
	other := testkit.NewClient(t, f.Endpoint(), nil)
	sub := other.InProject("default")
	_, err = sub.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, other.Close())
	require.NoError(t, other.Close(), "again")
	_, err = sub.Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	require.ErrorContains(t, err, "closed")
	require.NoError(t, export.Close())
}

// TestCloseDuringRetries: a call that waits before a retry ends at once.
func TestCloseDuringRetries(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(context.Context, *lxd.Client, *lxd.Operation) error{
		"request": func(ctx context.Context, c *lxd.Client, _ *lxd.Operation) error {
			_, err := c.Images.Get(ctx, oneFingerprint)
			return err
		},
		"wait": func(ctx context.Context, _ *lxd.Client, o *lxd.Operation) error { return o.Wait(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, nil)
				client := testkit.NewClient(t, f.Endpoint(), &lxd.Options{Dial: f.DialContext})
				stall := f.Inject(lxdtest.StallImages())
				defer stall.Remove()
				made, err := client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), nil)
				require.NoError(t, err)
				down := f.Inject(lxdtest.TooManyRequests(time.Minute))
				ended := make(chan error, 1)
				go func() { ended <- call(t.Context(), client, made.Operation()) }()
				synctest.Wait() // until the pause
				require.NotZero(t, down.Fired())
				require.Empty(t, ended)
				began := time.Now()
				require.NoError(t, client.Close())
				require.ErrorIs(t, <-ended, net.ErrClosed)
				require.Less(t, time.Since(began), time.Second)
			})
		})
	}
}
