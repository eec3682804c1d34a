package lxd_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

func TestConnectionErrorsHaveHints(t *testing.T) {
	server := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(server.Close)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	page := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<html><body>Welcome</body></html>")
	}))
	t.Cleanup(page.Close)
	stale := filepath.Join(shortDir(t), "unix.socket")
	listener, err := net.Listen("unix", stale)
	require.NoError(t, err)
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, listener.Close())
	pageHost := strings.TrimPrefix(page.URL, "https://")

	failing := func(err error) func(context.Context, string, string) (net.Conn, error) {
		return func(context.Context, string, string) (net.Conn, error) { return nil, err }
	}
	closing := func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			_, _ = server.Read(make([]byte, 4<<10))
			_ = server.Close()
		}()
		return client, nil
	}

	for name, test := range map[string]struct {
		endpoint string
		opts     lxd.Options
		is       error
		says     string
	}{
		"no socket":          {"/nowhere/unix.socket", lxd.Options{}, os.ErrNotExist, "is the daemon installed and running"},
		"nobody listens":     {stale, lxd.Options{RetryTimeout: -1}, syscall.ECONNREFUSED, "start it"},
		"no listener":        {"https://127.0.0.1:1", lxd.Options{RetryTimeout: -1}, syscall.ECONNREFUSED, "core.https_address"},
		"plain http":         {"https://" + strings.TrimPrefix(plain.URL, "http://"), lxd.Options{}, lxd.ErrUnavailable, "plain http port"},
		"not trusted":        {server.URL(), lxd.Options{}, lxd.ErrUnavailable, "Options.ServerCertificate"},
		"another pin":        {server.URL(), lxd.Options{ServerFingerprint: strings.Repeat("0", 64)}, lxd.ErrUnavailable, strings.Repeat("0", 64)},
		"no permission":      {"/lxd/unix.socket", lxd.Options{Dial: failing(os.ErrPermission)}, lxd.ErrForbidden, "add it to the group"},
		"unknown host":       {"https://lxd.example", lxd.Options{Dial: failing(&net.DNSError{Err: "no such host", IsNotFound: true})}, lxd.ErrUnavailable, "cannot be resolved"},
		"closed":             {"/lxd/unix.socket", lxd.Options{RetryTimeout: -1, Dial: closing}, io.ErrUnexpectedEOF, "the connection was closed"},
		"a page, status 200": {"https://" + pageHost, lxd.Options{ServerFingerprint: fingerprintOf(page.Certificate().Raw)}, lxd.ErrBadResponse, "text/html"},
	} {
		_, err := testkit.NewClient(t, test.endpoint, &test.opts).Images.All(t.Context(), nil)
		require.ErrorIs(t, err, test.is, name)
		require.ErrorContains(t, err, test.says, name)
		require.NotErrorIs(t, err, io.EOF, name)
		if name != "a page, status 200" {
			broken := testkit.ErrOf[*lxd.ConnectionError](t, err)
			require.Equal(t, "GET", broken.Method)
			require.NotEmpty(t, broken.Endpoint)
		}
	}
	_, err = testkit.NewClient(t, server.URL(), &lxd.Options{ServerFingerprint: strings.Repeat("0", 64)}).Server(t.Context())
	require.Equal(t, strings.Repeat("0", 64), testkit.ErrOf[*lxd.PinError](t, err).Want)
	require.Empty(t, testkit.ErrOf[*lxd.ConnectionError](t, err).Hint, "the error of the pin says it all")
}

// TestOperationsHaveHints: the words that LXD 5.0.2, Incus 6.0.4 and 7.0.2 were seen to
// fail operations with have a hint, and those of a cancelled one have none.
func TestOperationsHaveHints(t *testing.T) {
	t.Parallel()
	for words, hint := range map[string]string{
		"Invalid instance type":                                        "CreateOptions.Rootfs",
		"Unsupported compression":                                      "not a tar archive",
		"Metadata tarball is missing metadata.yaml":                    "metadata.yaml at its top",
		"Architecture isn't supported: ":                               "must have the architecture",
		"Architecture isn't supported: vax":                            "x86_64",
		"unexpected EOF":                                               "ended too soon",
		"Missing creation date":                                        "creation_date",
		"yaml: found character that cannot start any token":            "not valid YAML",
		"go-yaml load error in scanner (while scanning) at L1.C1: bad": "not valid YAML",
		`exec: "zstd": executable file not found in $PATH`:             "install it",
		"fingerprints don't match, got 87d5 expected abab":             "not that of the required fingerprint",
		`Hash mismatch for "http://127.0.0.1:1/i": 8152 != abab`:       "corrupt",
		"Image with same fingerprint already exists":                   "get it",
		"Profile 'nothing' doesn't exist":                              "create the profile",
		"write /var/lib/lxd/images/x: no space left on device":         "no space left",
		"write /var/lib/incus/images/x: disk quota exceeded":           "no space left",
		`Compression algorithm "lz4" isn't currently supported`:        "such as gzip",
		`Compression algorithm "lz4" isn't supported on this system`:   "such as gzip",
		`Compression algorithm argument "-99" isn't allowed`:           "such as gzip",

		"Missing LXD-Image-Hash header":                                                   "ViaClient",
		"Missing Incus-Image-URL header":                                                  "ViaClient",
		`Unable to fetch "http://127.0.0.1:1/nothing": 404 Not Found`:                     "is the address right",
		`Head "http://nowhere.example/x": dial tcp: lookup nowhere.example: no such host`: "able to connect",
		`Head "http://127.0.0.1:1/x": Unable to connect to: 127.0.0.1:1 ([dial tcp 127.0.0.1:1: connect: connection refused])`:                                                                    "able to connect",
		`Head "https://127.0.0.1:1/good": tls: failed to verify certificate: x509: certificate signed by unknown authority`:                                                                       "ViaClient",
		`Failed getting remote image info: Failed getting image: Failed parsing stream: Unable to fetch https://127.0.0.1:1/streams/v1/index.json: 404 Not Found`:                                 "is the address right",
		`Failed getting remote image info: Failed getting image: Failed parsing stream: Get "https://127.0.0.1:1/streams/v1/index.json": x509: certificate signed by unknown authority`:           "Certificate",
		`Failed getting remote image info: Failed getting image: Failed parsing stream: Get "https://127.0.0.1:1/streams/v1/index.json": proxyconnect tcp: dial tcp: connect: connection refused`: "able to connect",

		`Failed getting remote image info: Image "0c13" not found`: "not public",
		`Failed getting remote image info: Image not found`:        "no such image",
		`Image "0c13" not found`:                                   "secret is wrong, used or expired",
		`Failed to connect to LXD server "https://127.0.0.1:1": Get "https://127.0.0.1:1/1.0": x509: certificate signed by unknown authority`: "CopyRelay",
		`Failed to connect to the server "https://127.0.0.1:1": Get "https://127.0.0.1:1/1.0": EOF`:                                           "able to connect",
		`Post "https://127.0.0.1:1/1.0/images": Unable to connect to: 127.0.0.1:1 ([dial tcp: connection refused])`:                           "able to connect",
		"not authorized": "copy the image again",

		"something else": "",
	} {
		operation := fmt.Sprintf(`{"id":"1","class":"task","description":"Downloading image","status":"Failure","status_code":400,"err":%q}`, words)
		c := clientOf(t, canned{http.StatusOK, text(`{"type":"sync","metadata":{"failure":[` + operation + `]}}`)})
		operations, err := c.Operations(t.Context())
		require.NoError(t, err)
		failed := testkit.ErrOf[*lxd.OperationError](t, operations[0].Wait(t.Context()))
		require.Equal(t, words, failed.Message)
		require.Contains(t, failed.Hint, hint, words)
		require.Equal(t, hint == "", failed.Hint == "", words)
		require.Contains(t, failed.Error(), hint)
	}
}
