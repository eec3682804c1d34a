package simplestreams_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serveNginx serves a directory with nginx, over http, with what docs/imageserver.md says about it. nginx runs in a
// directory of its own.
func serveNginx(t *testing.T, dir string) (url string) {
	t.Helper()
	page, err := os.ReadFile("../docs/imageserver.md")
	require.NoError(t, err)
	block := regexp.MustCompile("(?s)```nginx\n(.*?)```").FindSubmatch(page)
	require.NotNil(t, block)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	server := string(block[1])
	for old, with := range map[string]string{
		`listen 443 ssl;`: "listen " + address + ";", `ssl_certificate\w* \S+;`: "", `root \S+;`: "root " + dir + ";",
	} {
		pattern := regexp.MustCompile(old)
		require.True(t, pattern.MatchString(server), old)
		server = pattern.ReplaceAllLiteralString(server, with)
	}

	own := t.TempDir()
	config := fmt.Sprintf("daemon off; master_process off; user root; pid %[1]s/pid; error_log %[1]s/error.log;\nevents {}\nhttp {\n"+
		"access_log %[1]s/access.log; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;\n"+
		"fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;\n%[2]s}\n", own, server)
	path := filepath.Join(own, "nginx.conf")
	require.NoError(t, os.WriteFile(path, []byte(config), 0o600))
	cmd := exec.Command("nginx", "-p", own, "-c", path, "-e", filepath.Join(own, "error.log"))
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start(), "Debian's package nginx-light has it")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	for {
		response, err := http.Get("http://" + address + "/streams/v1/index.json")
		if err == nil {
			require.NoError(t, response.Body.Close())
			require.Equal(t, http.StatusOK, response.StatusCode)
			break
		}
		select {
		case err := <-ended:
			ended <- err
			log, _ := os.ReadFile(filepath.Join(own, "error.log"))
			t.Fatalf("nginx has ended: %v: %s", err, log)
		case <-time.After(10 * time.Millisecond):
		}
	}
	response, err := http.Get("http://" + address + "/.golxd/lock")
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusNotFound, response.StatusCode)

	return "http://" + address
}
