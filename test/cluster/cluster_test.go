// Package cluster_test runs the client against clusters of three real daemons, of
// each kind that the environment names.
package cluster_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// onClusters runs a test on a cluster of each kind and version of daemon that the
// environment names.
func onClusters(t *testing.T, test func(t *testing.T, members []*testdaemon.Daemon)) {
	t.Helper()
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, d := range testdaemon.Distinct(append(lxds, incuses...)) {
		t.Run(d.Name(), func(t *testing.T) {
			t.Parallel()
			test(t, testdaemon.NewCluster(t, d.Family, 3, &testdaemon.Options{Binary: d.Binary}))
		})
	}
}

// clientOf returns a client of the members' addresses, in this order.
func clientOf(t *testing.T, members ...*testdaemon.Daemon) *lxd.Client {
	t.Helper()
	addresses := make([]string, len(members))
	for n, d := range members {
		addresses[n] = d.URL
	}
	return testkit.NewClient(t, strings.Join(addresses, ","), &lxd.Options{
		ClientCertificate: members[0].ClientCertificate, ClientKey: members[0].ClientKey, ServerCertificate: members[0].ServerCertificate,
	})
}

// TestMembers makes an image on each member, and reads, changes and deletes it on
// the others.
func TestMembers(t *testing.T) {
	onClusters(t, func(t *testing.T, members []*testdaemon.Daemon) {
		for n := range members {
			first, second, third := clientOf(t, members[n]), clientOf(t, members[(n+1)%3]), clientOf(t, members[(n+2)%3])
			data := testkit.Unified(t, 1<<20)
			alias := testkit.Unique("alias")
			made := uploadToAll(t, first, members, data, lxd.CreateOptions{
				Filename: "image.tar.gz", Properties: map[string]string{"os": "Test"}, Aliases: []lxd.Alias{{Name: alias}},
			})
			image, err := second.Images.GetByAlias(t.Context(), alias)
			require.NoError(t, err)
			require.Equal(t, made.Fingerprint, image.Fingerprint)
			require.Equal(t, "Test", image.Properties["os"])

			export, err := image.Export(t.Context(), nil)
			require.NoError(t, err)
			got, err := io.ReadAll(export)
			require.NoError(t, err)
			require.NoError(t, export.Close())
			require.Equal(t, made.Fingerprint, lxdtest.Fingerprint(got))

			image.Properties["release"] = "next"
			require.NoError(t, image.Update(t.Context(), nil))
			again, err := third.Images.Get(t.Context(), made.Fingerprint)
			require.NoError(t, err)
			require.Equal(t, "next", again.Properties["release"])
			require.NoError(t, again.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			for _, c := range []*lxd.Client{first, second, third} {
				is, err := c.Images.Exists(t.Context(), made.Fingerprint)
				require.NoError(t, err)
				require.False(t, is)
			}
		}
	})
}

// slowSource serves an image as slowly as a daemon should take to fetch it: pause is
// called after each block, unless the daemon goes away.
func slowSource(t *testing.T, data []byte, pause func() <-chan time.Time) (url string) {
	t.Helper()
	source := httptest.NewUnstartedServer(nil)
	source.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, family := range []string{"LXD", "Incus"} {
			w.Header().Set(family+"-Image-Hash", lxdtest.Fingerprint(data))
			w.Header().Set(family+"-Image-URL", source.URL+"/image")
		}
		if r.Method == http.MethodHead {
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		for rest := data; len(rest) > 0; {
			block := rest[:min(len(rest), 64<<10)]
			if _, err := w.Write(block); err != nil {
				return
			}
			rest = rest[len(block):]
			select {
			case <-pause():
			case <-r.Context().Done():
				return
			}
		}
	})
	source.Start()
	t.Cleanup(source.Close)
	return source.URL + "/image"
}

// TestOperationOfAnotherMember waits on one member for what another one does, and
// listens to its events.
func TestOperationOfAnotherMember(t *testing.T) {
	onClusters(t, func(t *testing.T, members []*testdaemon.Daemon) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		works, waits := clientOf(t, members[0]), clientOf(t, members[1])
		data := testkit.Unified(t, 1<<20)
		fingerprint := lxdtest.Fingerprint(data)
		created := make(chan error, 1)
		connected := make(chan struct{})
		once := sync.OnceFunc(func() { close(connected) })
		go func() {
			for event, err := range waits.Events(ctx, &lxd.EventsOptions{Types: []lxd.EventType{lxd.EventLifecycle}}) {
				switch {
				case err != nil:
					created <- err
					return
				case event.Type == lxd.EventConnected:
					once()
				case event.Lifecycle.Action == "image-created" && event.Lifecycle.Fingerprint() == fingerprint:
					created <- nil
					return
				}
			}
		}()
		<-connected
		seen := make(chan time.Time) // closed when the test has seen the operation
		see := sync.OnceFunc(func() { close(seen) })
		t.Cleanup(see)
		image, err := works.Images.CreateFromURL(ctx, slowSource(t, data, func() <-chan time.Time { return seen }), &lxd.CreateFromURLOptions{Via: lxd.ViaServer})
		require.NoError(t, err)
		var there *lxd.Operation
		operations, err := waits.Operations(ctx)
		require.NoError(t, err)
		for _, op := range operations {
			if op.ID() == image.Operation().ID() {
				there = op
			}
		}
		require.NotNil(t, there, "the member does not list the operation of another one")
		status := there.Status()
		require.False(t, status.Done())
		require.Equal(t, "member1", status.Location)
		see()
		require.NoError(t, there.Wait(ctx))
		require.NoError(t, image.Wait(ctx))
		require.NoError(t, <-created)
		require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
	})
}
