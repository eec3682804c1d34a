package ensure_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// Each of the programs has a client of its own.
const programs, callers = 4, 8

// offer is an image that a source has.
type offer struct {
	job
	// transfers returns how often its content was read, if the server reads it.
	transfers func(t *testing.T) int
}

// kinds are the sources, and whether all programs share one transfer of the content, as
// the server makes it. Otherwise each program makes at most one.
var kinds = []struct {
	name   string
	shared bool
	offer  func(t *testing.T, s *testkit.Subject, data []byte) offer
}{
	{"simplestreams", true, func(t *testing.T, _ *testkit.Subject, data []byte) offer {
		const product = "product"
		server := streamstest.NewServer(streamstest.Tree([]streamstest.Product{{
			Name: product, Aliases: []string{"rolling"}, OS: "Distro", Release: "1",
			Versions: []streamstest.Version{{Serial: "20240101", Family: "both", Unified: data}},
		}}, nil))
		t.Cleanup(server.Close)
		return offer{job{Kind: "simplestreams", From: server.URL, Ref: "rolling"}, func(*testing.T) (n int) {
			for _, r := range server.Requests() {
				if r.Method == "GET" && strings.HasPrefix(r.Path, "images/"+product) {
					n++
				}
			}
			return n
		}}
	}},
	{"image", true, func(t *testing.T, s *testkit.Subject, data []byte) offer {
		far := s.Twin.TLSClient(t)
		image, err := far.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		testkit.DeleteAfter(t, image)
		j := job{Kind: "image", From: far.Endpoint(), Ref: image.Fingerprint}
		if f := s.Twin.Fake; f != nil {
			j.Certificate, j.Key = f.ClientCertificate()
			j.Server = f.Certificate()
		} else {
			j.Certificate, j.Key, j.Server = s.Twin.Real.ClientCertificate, s.Twin.Real.ClientKey, s.Twin.Real.ServerCertificate
		}
		return offer{j, retrievals(t, far, image.Fingerprint)}
	}},
	{"file", false, func(t *testing.T, _ *testkit.Subject, data []byte) offer {
		path := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(path, data, 0o600))
		return offer{job{Kind: "file", From: path}, nil}
	}},
	{"url", false, func(t *testing.T, _ *testkit.Subject, data []byte) offer {
		server := streamstest.NewServer(nil)
		t.Cleanup(server.Close)
		return offer{job{Kind: "url", From: server.Direct("direct", streamstest.Direct{Content: data})}, nil}
	}},
}

// retrievals counts how often an image of a server is read, by its events.
func retrievals(t *testing.T, far *lxd.Client, fingerprint string) func(t *testing.T) int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	connected, ended := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(connected) })
	n, last := 0, testkit.Unique("last")
	go func() {
		defer close(ended)
		for event, err := range far.Events(ctx, &lxd.EventsOptions{Types: []lxd.EventType{lxd.EventLifecycle}}) {
			switch {
			case err != nil:
				return
			case event.Type == lxd.EventConnected:
				once()
			case event.Lifecycle.Action == "image-retrieved" && event.Lifecycle.Fingerprint() == fingerprint:
				n++
			case event.Lifecycle.Alias() == last:
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	<-connected
	return func(t *testing.T) int {
		t.Helper()
		require.NoError(t, far.Aliases.Create(t.Context(), lxd.Alias{Name: last, Target: fingerprint}))
		<-ended
		require.NoError(t, ctx.Err())
		return n
	}
}

// TestManyPrograms: 32 callers in four programs ensure the same image, first where there
// is none, then where the aliases have an older one. All succeed, and the state is that
// of one call. What the server fetches is transferred once for all of them, what the
// client sends once for each program.
func TestManyPrograms(t *testing.T) {
	for _, s := range subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			for _, kind := range kinds {
				t.Run(kind.name, func(t *testing.T) {
					dir := ""
					if s.Real != nil {
						dir = s.Real.Dir
					}
					h := emptyHistory(t, s.Client(t).Endpoint(), dir)
					before := h.files(t)
					for range testkit.Size(t, 3, 20) {
						data := testkit.Unified(t, contentSize)
						h.made = append(h.made, lxdtest.Fingerprint(data))
						o := kind.offer(t, s, data)
						o.Endpoint, o.Callers, o.wish = h.endpoint, callers, h.wish
						uploads := h.atOnce(t, o.job)
						image, err := h.client.Images.GetByAlias(t.Context(), h.Aliases[0])
						require.NoError(t, err)
						h.settled(t, image)
						if kind.shared {
							require.Equal(t, 1, o.transfers(t))
						} else {
							require.LessOrEqual(t, uploads, programs)
						}
						t.Logf("%d requests to create the image", uploads)
					}
					require.ElementsMatch(t, before, h.files(t))
				})
			}
		})
	}
}

// atOnce runs the programs, and returns how many requests created an image.
func (h *history) atOnce(t *testing.T, j job) (uploads int) {
	t.Helper()
	running := make([]*program, programs)
	for n := range running {
		running[n] = start(t, j)
	}
	for _, p := range running {
		p.begin(t)
	}
	for _, p := range running {
		out, ended := p.end(t)
		require.True(t, ended)
		require.Empty(t, out.Failed)
		uploads += out.Uploads
	}
	return uploads
}
