package lxd_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestServerProgress receives the progress of the server: by events, and by reading
// the operation if the event connection breaks or is not available.
func TestServerProgress(t *testing.T) {
	for name, fault := range map[string]*lxdtest.Fault{
		"events":              nil,
		"dropped socket":      new(lxdtest.DropEvents()),
		"no event stream":     new(lxdtest.Status(403, "no events").On("GET", "/1.0/events")),
		"events out of order": new(lxdtest.ReorderEvents()),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFake(t)
			if fault != nil {
				f.Inject(*fault)
			}
			data := testkit.Unified(t, 4<<20)
			sum := sha256.Sum256(data)
			seen := make(chan struct{})
			var source *httptest.Server
			source = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("LXD-Image-Hash", hex.EncodeToString(sum[:]))
				w.Header().Set("LXD-Image-URL", source.URL)
				if r.Method == http.MethodHead {
					return
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(data)))
				_, _ = w.Write(data[:len(data)/2])
				_ = http.NewResponseController(w).Flush()
				select {
				case <-seen: // the server's progress has come through
				case <-r.Context().Done():
				}
				_, _ = w.Write(data[len(data)/2:])
			}))
			t.Cleanup(source.Close)
			var once sync.Once
			var phases []string
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			image, err := f.Client.Images.CreateFromURL(ctx, source.URL, &lxd.CreateFromURLOptions{
				Via: lxd.ViaServer, Wait: true,
				Progress: func(p lxd.Progress) {
					phases = append(phases, p.Phase)
					if p.Text != "" {
						once.Do(func() { close(seen) })
					}
				},
			})
			require.NoError(t, err)
			require.Equal(t, hex.EncodeToString(sum[:]), image.Fingerprint)
			require.Equal(t, []string{lxd.PhaseServer}, slices.Compact(phases))
		})
	}
}
