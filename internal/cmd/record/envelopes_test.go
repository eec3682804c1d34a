package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/testdaemon"
)

const envelopes = "../../../testdata/envelopes"

// traces matches what a recording must not contain: directories and ports of the
// machine on which it was made, and keys. Port 1 is that of the proxy that test
// daemons are given, which does not exist.
var traces = regexp.MustCompile(`/(?:tmp|work)/|PRIVATE KEY|127\.0\.0\.1:(?:1\d|[02-79]|8[0-35-9]|84[0-35-9]|844[0-24-9])`)

func TestRecordedEnvelopes(t *testing.T) {
	servers, err := filepath.Glob(envelopes + "/*/index.json")
	require.NoError(t, err)
	require.Len(t, servers, 8)
	for _, path := range servers {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) { testRecording(t, dir) })
	}
}

func testRecording(t *testing.T, dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	require.NoError(t, err)
	require.NotRegexp(t, traces, string(data))
	var index []entry
	require.NoError(t, json.Unmarshal(data, &index))
	listed := map[string]bool{"index.json": true}
	for _, e := range index {
		require.False(t, listed[e.File], "%s is listed twice", e.File)
		listed[e.File] = true
		body, err := os.ReadFile(filepath.Join(dir, e.File))
		require.NoError(t, err)
		require.NotRegexp(t, traces, string(body), e.File)
		if filepath.Ext(e.File) == ".jsonl" {
			for line := range bytes.Lines(body) {
				require.True(t, json.Valid(line), "%s: %s", e.File, line)
			}
			continue
		}
		var a struct {
			Type      string `json:"type"`
			ErrorCode int    `json:"error_code"`
		}
		require.NoError(t, json.Unmarshal(body, &a), e.File)
		switch {
		case e.Status == http.StatusAccepted:
			require.Equal(t, "async", a.Type, e.File)
			require.NotEmpty(t, e.Location, e.File)
		case e.Status >= 400:
			require.Equal(t, "error", a.Type, e.File)
			require.Equal(t, e.Status, a.ErrorCode, e.File)
		default:
			require.Contains(t, []string{"sync", "error"}, a.Type, e.File)
		}
	}
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, file := range files {
		require.True(t, listed[file.Name()], "%s is not in index.json", file.Name())
	}
}

func TestNeutralKeepsTheRest(t *testing.T) {
	d := recordedDaemon()
	n, err := newNeutralizer(d)
	require.NoError(t, err)
	n.add("127.0.0.1:4321", "images.example")
	got := n.apply([]byte(`{"server_name":"vm","type":"vm","server_pid":4711,"secret":"s3cret","a":"127.0.0.1:12345","b":"/dir/x","u":"http://127.0.0.1:4321/i","kernel_version":"6"}`))
	require.JSONEq(t, `{"server_name":"host","type":"vm","server_pid":1,"secret":"`+neutralHex+`","a":"127.0.0.1:8443","b":"/var/lib/lxd/x","u":"http://images.example/i","kernel_version":"6.1.0"}`, string(got))
}

func recordedDaemon() *testdaemon.Daemon {
	return &testdaemon.Daemon{
		Family:            testdaemon.LXD,
		Dir:               "/dir",
		URL:               "https://127.0.0.1:12345",
		ServerCertificate: []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
	}
}
