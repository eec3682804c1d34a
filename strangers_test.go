package lxd_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// TestJoinSendsTheTokenAsTheServerWantsIt looks at the one field that carries
// the token, and at what the server told before.
func TestJoinSendsTheTokenAsTheServerWantsIt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		opts     lxdtest.Options
		stranger lxd.Family // that a client is told before it is trusted
		field    string
	}{
		"LXD 5.0.2":   {lxdtest.Options{Dialect: lxdtest.LXD50}, lxd.LXD, "password"},
		"LXD 6.9":     {lxdtest.Options{Dialect: lxdtest.LXD69}, lxd.LXD, "trust_token"},
		"Incus 6.0.4": {lxdtest.Options{Dialect: lxdtest.Incus60}, lxd.Incus, "trust_token"},
		"Incus 0.1":   {lxdtest.Options{Dialect: lxdtest.Incus60, WithoutExtensions: []string{"instances_lxcfs_per_instance"}}, lxd.Incus, "trust_token"},
		"Incus 7":     {lxdtest.Options{Dialect: lxdtest.Incus60, HideFromUntrusted: true}, "", "trust_token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.opts.TLS = true
			server := lxdtest.NewServer(&test.opts)
			t.Cleanup(server.Close)
			opts := joiner(t)
			opts.ServerCertificate = server.Certificate()
			stranger := newClient(t, server.URL(), opts)
			info, err := stranger.Server(t.Context())
			require.NoError(t, err)
			require.Equal(t, test.stranger, info.Family)
			require.False(t, info.Trusted)
			require.Equal(t, test.stranger == "", info.Extensions == nil)

			if test.stranger != lxd.LXD {
				require.ErrorIs(t, stranger.TrustPassword(t.Context(), "password", nil), lxd.ErrUnsupported)
				for _, r := range server.Requests() {
					require.NotEqual(t, "/1.0/certificates", r.Path, "the password is not sent")
				}
			}

			client, err := lxd.Join(t.Context(), server.NewTrustToken("x"), opts)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, client.Close()) })
			for _, r := range server.Requests() {
				if r.Path == "/1.0/certificates" {
					var body map[string]any
					require.NoError(t, json.Unmarshal(r.Text(), &body))
					require.Contains(t, body, test.field)
					require.Len(t, body, 2, "the type, and the token once")
				}
			}
			for _, c := range []*lxd.Client{client, stranger} {
				info, err := c.Server(t.Context())
				require.NoError(t, err)
				require.Equal(t, test.opts.Dialect.Family(), string(info.Family))
				require.NotEmpty(t, info.Extensions)
			}
			upload(t, client, &lxd.CreateOptions{Properties: map[string]string{"a": "b"}})
		})
	}
}

// TestExtensionsAreNotTold: what a server does not tell, it does not lack.
func TestExtensionsAreNotTold(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.Incus60, TLS: true, HideFromUntrusted: true})
	t.Cleanup(server.Close)
	opts := joiner(t)
	opts.ServerCertificate = server.Certificate()
	stranger := newClient(t, server.URL(), opts)
	_, err := stranger.Images.All(t.Context(), &lxd.ListOptions{AllProjects: true})
	require.ErrorIs(t, err, lxd.ErrForbidden)
	require.NotErrorIs(t, err, lxd.ErrUnsupported)
	_, err = stranger.Images.Create(t.Context(), bytes.NewReader(unified(t, 0)), &lxd.CreateOptions{Profiles: []string{"x"}})
	require.ErrorIs(t, err, lxd.ErrForbidden)

	// Not one of its images is hidden because of that.
	data := unified(t, 1000)
	fingerprint, err := server.AddImage(data, &lxdtest.AddOptions{Public: true})
	require.NoError(t, err)
	image, err := stranger.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.Incus60} {
		target := startFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		cut := server.Inject(lxdtest.Status(http.StatusInternalServerError, "no").On(http.MethodGet, "/1.0/images/*/export").Times(1))
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Wait: true})
		require.NoError(t, err)
		require.Equal(t, 1, cut.Fired())
		require.Equal(t, lxd.CopyRelay, copied.Mode, "%v", copied.NotTaken)
		require.ErrorIs(t, copied.NotTaken[1].Err, lxd.ErrUnsupported)
		require.Empty(t, target.Tokens())
	}
}

// untold makes a server one that tells its family to nobody.
type untold struct{ next http.RoundTripper }

func (u untold) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := u.next.RoundTrip(r)
	if err != nil || r.URL.Path != "/1.0" {
		return res, err
	}
	_ = res.Body.Close()
	res.Body = io.NopCloser(strings.NewReader(`{"type":"sync","status_code":200,"metadata":{"api_extensions":null,"auth":"untrusted"}}`))
	return res, nil
}

// TestUploadToAnUnknownFamily reaches either: a client may become trusted at any
// time.
func TestUploadToAnUnknownFamily(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		server := startFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, &lxd.Options{
			Transport: func(next http.RoundTripper) http.RoundTripper { return untold{next} },
		})
		info, err := server.Client.Server(t.Context())
		require.NoError(t, err)
		require.Empty(t, info.Family)
		image, err := server.Client.Images.Create(t.Context(), bytes.NewReader(unified(t, 0)), &lxd.CreateOptions{
			Public: true, Filename: "name.tar.gz", Properties: map[string]string{"a": "b"}, Wait: true,
		})
		require.NoError(t, err)
		require.Equal(t, "name.tar.gz", image.Filename)
		require.True(t, image.Public)
		require.Equal(t, "b", image.Properties["a"])

		source := startFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true}, nil)
		copied, err := upload(t, source.Client, nil).Copy(t.Context(), server.Client, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
		require.NoError(t, err)
		require.NotNil(t, copied.Image)
	}
}
