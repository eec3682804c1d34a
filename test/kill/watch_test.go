package kill_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
)

// TestKillWatch kills real daemons at random while their images change. What Watch has
// yielded adds up to what is there then.
func TestKillWatch(t *testing.T) {
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	for _, named := range testdaemon.Distinct(append(lxds, incuses...)) {
		t.Run(named.Name(), func(t *testing.T) {
			t.Parallel()
			d := testdaemon.New(t, named.Family, &testdaemon.Options{Binary: named.Binary})
			c := testkit.NewClient(t, "unix://"+d.Socket, nil)
			ctx, cancel := context.WithCancel(t.Context())
			watched := startWatch(ctx, c)
			defer func() {
				cancel()
				require.ErrorIs(t, <-watched.ended, context.Canceled)
			}()
			for round := range testkit.Size(t, 3, 25) {
				changing, stop := context.WithCancel(ctx)
				var writer sync.WaitGroup
				writer.Go(func() { changeImages(changing, t, c) })
				time.Sleep(rand.N(500 * time.Millisecond))
				require.NoError(t, d.Kill())
				require.NoError(t, d.Restart(ctx))
				time.Sleep(rand.N(200 * time.Millisecond))
				stop()
				writer.Wait()
				var want, got []string
				for range 300 {
					images, err := c.Images.All(ctx, nil)
					require.NoError(t, err)
					want, got = texts(slices.Values(images)), watched.texts()
					if slices.Equal(want, got) {
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				require.Equal(t, want, got, "round %d", round)
			}
		})
	}
}

// watched are the images that Watch has yielded.
type watched struct {
	mu     sync.Mutex
	images map[string]*lxd.Image
	ended  chan error
}

func startWatch(ctx context.Context, c *lxd.Client) *watched {
	w := &watched{images: map[string]*lxd.Image{}, ended: make(chan error, 1)}
	go func() {
		for change, err := range c.Images.Watch(ctx, &lxd.WatchOptions{Interval: -1}) {
			w.mu.Lock()
			switch {
			case err != nil:
				w.ended <- err
			case change.Image != nil:
				w.images[change.Image.Fingerprint] = change.Image
			case change.Former != nil:
				delete(w.images, change.Former.Fingerprint)
			}
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *watched) texts() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return texts(maps.Values(w.images))
}

// texts returns what can be changed of images.
func texts(images func(yield func(*lxd.Image) bool)) []string {
	all := []string{}
	for i := range images {
		names := []string{}
		for _, alias := range i.Aliases {
			names = append(names, alias.Name)
		}
		slices.Sort(names)
		all = append(all, fmt.Sprint(i.Fingerprint, names, i.Properties, i.Public))
	}
	slices.Sort(all)
	return all
}

// changeImages makes random changes until ctx ends. The errors are those of a daemon that
// was killed.
func changeImages(ctx context.Context, t *testing.T, c *lxd.Client) {
	for ctx.Err() == nil {
		images, err := c.Images.All(ctx, nil)
		if err != nil {
			continue
		}
		if len(images) < 4 {
			_, _ = c.Images.Create(ctx, bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: testkit.Unique("alias")}}, Wait: true})
			continue
		}
		image := images[rand.IntN(len(images))]
		switch rand.IntN(4) {
		case 0:
			_ = image.Delete(ctx, &lxd.DeleteOptions{Wait: true})
		case 1:
			_ = image.AddAlias(ctx, testkit.Unique("alias"), "")
		case 2:
			image.Properties["at"] = testkit.Unique("v")
			_ = image.Update(ctx, nil)
		case 3:
			for _, alias := range images[0].Aliases {
				_ = image.SetAlias(ctx, alias.Name, "")
			}
		}
	}
}
