package lxd_test

import (
	"bytes"
	"net"
	"strings"
	"testing"
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
	for name, call := range map[string]func(*lxd.Client, *lxd.Operation) error{
		"request": func(c *lxd.Client, _ *lxd.Operation) error {
			_, err := c.Images.Get(t.Context(), oneFingerprint)
			return err
		},
		"wait": func(_ *lxd.Client, o *lxd.Operation) error { return o.Wait(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFake(t)
			client := testkit.NewClient(t, f.Endpoint(), nil)
			stall := f.Inject(lxdtest.StallImages())
			defer stall.Remove()
			made, err := client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), nil)
			require.NoError(t, err)
			down := f.Inject(lxdtest.TooManyRequests(time.Minute))
			ended := make(chan error, 1)
			go func() { ended <- call(client, made.Operation()) }()
			require.Eventually(t, func() bool { return down.Fired() > 0 }, exportWait, exportTick)
			time.Sleep(20 * time.Millisecond) // until the pause; before it, the call ends too
			require.NoError(t, client.Close())
			select {
			case err := <-ended:
				require.ErrorIs(t, err, net.ErrClosed)
			case <-time.After(time.Second):
				t.Fatal("it still waits")
			}
		})
	}
}
