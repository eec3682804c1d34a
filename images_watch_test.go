package lxd_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// watcher is a program that keeps what Watch yields.
type watcher struct {
	mu      sync.Mutex
	images  map[string]*lxd.Image // by project and fingerprint
	set     lxd.ImageSet
	changes []lxd.ImageChange // since ImagesSynced
	synced  bool
	err     error
	wake    chan struct{}
	cancel  context.CancelFunc
}

func startWatch(t *testing.T, c *lxd.Client, opts *lxd.WatchOptions) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{images: map[string]*lxd.Image{}, wake: make(chan struct{}, 1), cancel: cancel}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for change, err := range c.Images.Watch(ctx, opts) {
			w.add(change, err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		require.ErrorIs(t, w.err, context.Canceled)
	})
	w.wait(t, func() bool { return w.synced })
	return w
}

func (w *watcher) add(change lxd.ImageChange, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set.Apply(change)
	key := func(i *lxd.Image) string { return i.Project + "/" + i.Fingerprint }
	switch {
	case err != nil:
		w.err = errors.Join(w.err, err)
	case change.Kind == lxd.ImagesSynced:
		w.synced = true
	case change.Kind == lxd.ImageRemoved:
		delete(w.images, key(change.Former))
	default:
		w.images[key(change.Image)] = change.Image
	}
	if w.synced && change.Kind != lxd.ImagesSynced {
		w.changes = append(w.changes, change)
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// wait waits until is, which is called whenever something was yielded, returns true.
func (w *watcher) wait(t *testing.T, is func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		w.mu.Lock()
		ok, err := is(), w.err
		w.mu.Unlock()
		if ok {
			return
		}
		require.NoError(t, err)
		select {
		case <-w.wake:
		case <-limit:
			require.Fail(t, "it was not yielded")
		}
	}
}

// next returns the changes until one of them is the one, and forgets them.
func (w *watcher) next(t *testing.T, is func(lxd.ImageChange) bool) (changes []lxd.ImageChange) {
	t.Helper()
	w.wait(t, func() bool {
		if !slices.ContainsFunc(w.changes, is) {
			return false
		}
		changes, w.changes = w.changes, nil
		return true
	})
	return changes
}

// state is what the images are, but for their last use.
func state(images []*lxd.Image) map[string]string {
	all := map[string]string{}
	for _, i := range images {
		aliases := slices.Clone(i.Aliases)
		slices.SortFunc(aliases, func(a, b lxd.Alias) int { return strings.Compare(a.Name, b.Name) })
		all[i.Project+"/"+i.Fingerprint] = fmt.Sprint(aliases, i.Properties, i.Public, i.AutoUpdate, i.ExpiresAt, i.Profiles)
	}
	return all
}

// requireWhole requires that what was yielded soon adds up to what is there.
func (w *watcher) requireWhole(t *testing.T, c *lxd.Client, list *lxd.ListOptions) {
	t.Helper()
	var want, got map[string]string
	for range 300 {
		images, err := c.Images.All(t.Context(), list)
		require.NoError(t, err)
		w.mu.Lock()
		want, got = state(images), state(slices.Collect(maps.Values(w.images)))
		w.mu.Unlock()
		if maps.Equal(want, got) {
			w.requireSet(t, images)
			return
		}
		select {
		case <-w.wake:
		case <-time.After(100 * time.Millisecond):
		}
	}
	require.Equal(t, want, got)
}

// requireSet requires that the set has these images, by fingerprint and by alias.
func (w *watcher) requireSet(t *testing.T, images []*lxd.Image) {
	t.Helper()
	require.Equal(t, state(images), state(w.set.Find(nil)))
	require.Equal(t, w.synced, w.set.Synced())
	for _, image := range images {
		require.Equal(t, image.Size, w.set.Get(image.Project, image.Fingerprint).Size)
		for _, alias := range image.Aliases {
			require.Equal(t, image.Fingerprint, w.set.GetByAlias(image.Project, alias.Name).Fingerprint)
		}
	}
}

// TestWatch: what is there, and then each kind of change with the former image.
func TestWatch(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			ctx := t.Context()
			properties := map[string]string{"set": testkit.Unique("set")}
			first := testkit.Upload(t, c, &lxd.CreateOptions{Properties: properties})
			w := startWatch(t, c, &lxd.WatchOptions{Properties: properties, Interval: -1})
			require.Len(t, w.images, 1)

			second := testkit.Upload(t, c, &lxd.CreateOptions{Properties: properties})
			w.next(t, func(c lxd.ImageChange) bool {
				return c.Kind == lxd.ImageAdded && c.Image.Fingerprint == second.Fingerprint && c.Former == nil
			})
			one, two := testkit.Unique("one"), testkit.Unique("two")
			require.NoError(t, first.AddAlias(ctx, one, "about it"))
			changes := w.next(t, func(c lxd.ImageChange) bool { return len(c.Aliases) > 0 })
			require.Equal(t, lxd.ImageChanged, changes[0].Kind)
			require.Equal(t, []string{"Aliases"}, changes[0].Fields)
			require.Equal(t, []lxd.AliasChange{{Name: one, To: first.Fingerprint}}, changes[0].Aliases)
			require.Equal(t, fmt.Sprintf("changed image %.12s: Aliases; alias %q created", first.Fingerprint, one), changes[0].String())
			require.Empty(t, changes[0].Former.Aliases)

			require.NoError(t, c.Aliases.Rename(ctx, one, two))
			changes = w.next(t, func(c lxd.ImageChange) bool {
				return c.Image != nil && slices.ContainsFunc(c.Image.Aliases, func(a lxd.Alias) bool { return a.Name == two })
			})
			require.Len(t, changes, 1)
			require.Equal(t, []lxd.AliasChange{{Name: two, OldName: one, From: first.Fingerprint, To: first.Fingerprint}}, changes[0].Aliases)

			require.NoError(t, second.SetAlias(ctx, two, ""))
			moved := lxd.AliasChange{Name: two, From: first.Fingerprint, To: second.Fingerprint}
			require.Equal(t, fmt.Sprintf("alias %q moved from %.12s to %.12s", two, first.Fingerprint, second.Fingerprint), moved.String())
			require.Equal(t, fmt.Sprintf("alias %q renamed to %q", one, two), lxd.AliasChange{Name: two, OldName: one, From: "x", To: "x"}.String())
			require.Equal(t, `alias "x" deleted`, lxd.AliasChange{Name: "x", From: "y"}.String())
			require.Equal(t, "synced", lxd.ImageChange{Kind: lxd.ImagesSynced}.String())
			changes = w.next(t, func(c lxd.ImageChange) bool { return c.Image != nil && c.Image.Fingerprint == second.Fingerprint })
			require.Len(t, changes, 2)
			require.Equal(t, first.Fingerprint, changes[0].Image.Fingerprint)
			require.Equal(t, []lxd.AliasChange{moved}, changes[0].Aliases)
			require.Equal(t, []lxd.AliasChange{moved}, changes[1].Aliases)

			_, err := c.Images.Update(ctx, first.Fingerprint, func(i *lxd.Image) error { i.Properties["os"] = "mine"; i.Public = !i.Public; return nil }, nil)
			require.NoError(t, err)
			changes = w.next(t, func(c lxd.ImageChange) bool { return slices.Contains(c.Fields, "Properties") })
			require.Subset(t, []string{"Properties", "Public"}, changes[0].Fields)
			require.NotEqual(t, "mine", changes[0].Former.Properties["os"])

			require.NoError(t, c.Aliases.Delete(ctx, two))
			changes = w.next(t, func(c lxd.ImageChange) bool { return len(c.Aliases) > 0 })
			require.Equal(t, []lxd.AliasChange{{Name: two, From: second.Fingerprint}}, changes[0].Aliases)

			_, err = c.Images.Update(ctx, first.Fingerprint, func(i *lxd.Image) error { delete(i.Properties, "set"); return nil }, nil)
			require.NoError(t, err)
			w.next(t, func(c lxd.ImageChange) bool {
				return c.Kind == lxd.ImageRemoved && c.Former.Fingerprint == first.Fingerprint && c.Image == nil
			})
			require.NoError(t, second.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
			w.next(t, func(c lxd.ImageChange) bool {
				return c.Kind == lxd.ImageRemoved && c.Former.Fingerprint == second.Fingerprint
			})
			w.requireWhole(t, c, &lxd.ListOptions{Properties: properties})
		})
	}
}

// TestWatchProjects: all projects, one of its own, and one that shares the images of the
// default one.
func TestWatchProjects(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			server, err := c.Server(t.Context())
			require.NoError(t, err)
			own, shared := c.InProject(s.AddProject(t)), c.InProject(s.AddSharedProject(t))
			properties := map[string]string{"set": testkit.Unique("set")}
			opts := &lxd.WatchOptions{Properties: properties, Interval: -1}
			list := &lxd.ListOptions{Properties: properties}
			watchers := map[*lxd.Client]*watcher{c: startWatch(t, c, opts), own: startWatch(t, own, opts), shared: startWatch(t, shared, opts)}
			var all *watcher
			if server.Has("images_all_projects") {
				every := *opts
				every.AllProjects = true
				all = startWatch(t, c, &every)
			}
			for _, client := range []*lxd.Client{c, own, shared} {
				image := testkit.Upload(t, client, &lxd.CreateOptions{Properties: properties, Aliases: []lxd.Alias{{Name: testkit.Unique("alias")}}})
				for n := range 4 {
					for client, w := range watchers {
						w.requireWhole(t, client, list)
					}
					if all != nil {
						all.requireWhole(t, c, &lxd.ListOptions{AllProjects: true, Properties: properties})
					}
					switch n {
					case 0:
						_, err := client.Images.Update(t.Context(), image.Fingerprint, func(i *lxd.Image) error { i.Properties["os"] = "mine"; return nil }, nil)
						require.NoError(t, err)
						require.NoError(t, image.AddAlias(t.Context(), testkit.Unique("another"), ""))
					case 1:
						require.NoError(t, client.Aliases.Delete(t.Context(), image.Aliases[0].Name))
					case 2:
						require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
					}
				}
			}
		})
	}
}

// TestWatchSharedAliases: aliases that are moved, renamed and deleted through a project
// that shares the images of the default one.
func TestWatchSharedAliases(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			server, err := c.Server(t.Context())
			require.NoError(t, err)
			if !server.Has("images_all_projects") {
				return
			}
			shared := c.InProject(s.AddSharedProject(t))
			properties := map[string]string{"set": testkit.Unique("set")}
			list := &lxd.ListOptions{AllProjects: true, Properties: properties}
			w := startWatch(t, c, &lxd.WatchOptions{AllProjects: true, Properties: properties, Interval: -1})
			// A daemon sends no event of the moment in which the connection is new.
			first := testkit.Upload(t, c, &lxd.CreateOptions{Properties: properties})
			second := testkit.Upload(t, c, &lxd.CreateOptions{Properties: properties})
			w.requireWhole(t, c, list)
			one, two := testkit.Unique("one"), testkit.Unique("two")
			require.NoError(t, shared.Aliases.Create(t.Context(), lxd.Alias{Name: one, Target: first.Fingerprint}))
			w.requireWhole(t, c, list)
			w.next(t, func(lxd.ImageChange) bool { return true })
			require.NoError(t, shared.Aliases.Rename(t.Context(), one, two))
			changes := w.next(t, func(c lxd.ImageChange) bool { return len(c.Aliases) > 0 })
			require.Equal(t, []lxd.AliasChange{{Name: two, OldName: one, From: first.Fingerprint, To: first.Fingerprint}}, changes[0].Aliases)
			require.NoError(t, shared.Aliases.Set(t.Context(), lxd.Alias{Name: two, Target: second.Fingerprint}))
			w.requireWhole(t, c, list)
			require.NoError(t, shared.Aliases.Delete(t.Context(), two))
			w.requireWhole(t, c, list)
		})
	}
}

// TestWatchOfOneProject: a client that may not have the events of all projects has those
// of its own, which shares the images of the default one.
func TestWatchOfOneProject(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			project := s.AddSharedProject(t)
			properties := map[string]string{"set": testkit.Unique("set")}
			w := startWatch(t, s.Restricted(t, project).InProject(project), &lxd.WatchOptions{Properties: properties, Interval: -1})
			image := testkit.Upload(t, s.Client(t).InProject(project), &lxd.CreateOptions{Properties: properties})
			w.next(t, func(c lxd.ImageChange) bool {
				return c.Kind == lxd.ImageAdded && c.Image.Fingerprint == image.Fingerprint
			})
		})
	}
}

// TestWatchIgnoresUse: that an image was used is no change.
func TestWatchIgnoresUse(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		image := testkit.Upload(t, f.Client, nil)
		w := startWatch(t, f.Client, &lxd.WatchOptions{Interval: -1})
		op, err := f.Client.Do(t.Context(), http.MethodPost, "/1.0/instances", map[string]any{"name": "web1", "source": map[string]any{"type": "image", "fingerprint": image.Fingerprint}}, nil)
		require.NoError(t, err)
		require.NoError(t, op.Wait(t.Context()))
		require.NoError(t, image.AddAlias(t.Context(), "web", ""))
		changes := w.next(t, func(c lxd.ImageChange) bool { return len(c.Aliases) == 1 })
		require.Len(t, changes, 1)
		require.Equal(t, []string{"Aliases"}, changes[0].Fields)
		require.True(t, changes[0].Image.LastUsedAt.After(changes[0].Former.LastUsedAt))
	})
}

// TestWatchRefresh: an image that the server itself replaces by a newer one.
func TestWatchRefresh(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c, far := s.Client(t), s.Twin.TLSClient(t)
			source, alias := testkit.Unique("source"), testkit.Unique("rolling")
			old := testkit.Upload(t, far, &lxd.CreateOptions{Public: true, Aliases: []lxd.Alias{{Name: source}}})
			next := testkit.Upload(t, far, &lxd.CreateOptions{Public: true})
			copied, err := old.Copy(t.Context(), c, &lxd.CopyOptions{Mode: lxd.CopyPull, AutoUpdate: new(true), Aliases: []lxd.Alias{{Name: alias}}, Wait: true})
			require.NoError(t, err)
			testkit.DeleteAfter(t, copied.Image)
			w := startWatch(t, c, &lxd.WatchOptions{Interval: -1})
			require.NoError(t, next.SetAlias(t.Context(), source, ""))
			newer, err := copied.Refresh(t.Context(), &lxd.RefreshOptions{Wait: true})
			require.NoError(t, err)
			testkit.DeleteAfter(t, newer)
			require.Equal(t, next.Fingerprint, newer.Fingerprint)
			w.next(t, func(c lxd.ImageChange) bool {
				return c.Image != nil && c.Image.Fingerprint == next.Fingerprint && slices.ContainsFunc(c.Image.Aliases, func(a lxd.Alias) bool { return a.Name == alias })
			})
			w.wait(t, func() bool {
				return !slices.ContainsFunc(slices.Collect(maps.Values(w.images)), func(i *lxd.Image) bool { return i.Fingerprint == old.Fingerprint })
			})
		})
	}
}

// TestWatchReadsWhatChanged: a change costs the image, not the list.
func TestWatchReadsWhatChanged(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		kept := testkit.Upload(t, f.Client, nil)
		w := startWatch(t, f.Client, &lxd.WatchOptions{Interval: -1})
		f.ForgetRequests()
		image := testkit.Upload(t, f.Client, nil)
		w.next(t, func(c lxd.ImageChange) bool { return c.Kind == lxd.ImageAdded })
		require.NoError(t, kept.AddAlias(t.Context(), "web", ""))
		w.next(t, func(c lxd.ImageChange) bool { return len(c.Aliases) == 1 })
		require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		w.next(t, func(c lxd.ImageChange) bool { return c.Kind == lxd.ImageRemoved })
		for _, r := range f.Requests() {
			require.False(t, r.Method == "GET" && r.Path == "/1.0/images", "all are read again")
		}
	})
}

// change makes a random change to the images of a set.
func change(t *testing.T, c *lxd.Client, random *rand.Rand, properties map[string]string) {
	t.Helper()
	ctx := t.Context()
	images, err := c.Images.All(ctx, &lxd.ListOptions{Properties: properties})
	require.NoError(t, err)
	if len(images) < 3 {
		testkit.Upload(t, c, &lxd.CreateOptions{Properties: properties, Aliases: []lxd.Alias{{Name: testkit.Unique("alias")}}})
		return
	}
	image := images[random.IntN(len(images))]
	switch random.IntN(5) {
	case 0:
		require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
	case 1:
		require.NoError(t, image.AddAlias(ctx, testkit.Unique("alias"), ""))
	case 2:
		_, err := c.Images.Update(ctx, image.Fingerprint, func(i *lxd.Image) error { i.Properties["at"] = testkit.Unique("v"); return nil }, nil)
		require.NoError(t, err)
	case 3:
		for _, other := range images {
			for _, alias := range other.Aliases {
				require.NoError(t, image.SetAlias(ctx, alias.Name, ""))
				return
			}
		}
	case 4:
		for _, alias := range image.Aliases {
			require.NoError(t, image.DeleteAlias(ctx, alias.Name))
			return
		}
	}
}

// TestWatchAfterBreaks: whatever happens to the connection, the server and the events,
// what was yielded adds up to what is there.
func TestWatchAfterBreaks(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		properties := map[string]string{"set": "watched"}
		w := startWatch(t, f.Client, &lxd.WatchOptions{Properties: properties, Interval: -1})
		for range 10 {
			var fault *lxdtest.Injection
			switch random.IntN(4) {
			case 0:
				fault = f.Inject(lxdtest.DropEvents().Times(1))
			case 1:
				fault = f.Inject(lxdtest.ReorderEvents())
			case 2:
				fault = f.Inject(lxdtest.Unavailable().On("GET", "/1.0/images").Times(2))
			case 3:
				f.Restart()
			}
			for range 1 + random.IntN(4) {
				change(t, f.Client, random, properties)
			}
			if fault != nil {
				fault.Remove()
			}
			w.requireWhole(t, f.Client, &lxd.ListOptions{Properties: properties})
		}
	})
}

// TestWatchManyChanges: changes that come faster than they are read are read at once.
func TestWatchManyChanges(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	w := startWatch(t, f.Client, &lxd.WatchOptions{Interval: -1})
	stall := f.Inject(lxdtest.StallHeaders().On("GET", "/1.0/images/"+image.Fingerprint).Times(1))
	for n := range 300 {
		require.NoError(t, image.AddAlias(t.Context(), fmt.Sprintf("alias%d", n), ""))
	}
	stall.Release()
	f.ForgetRequests()
	w.requireWhole(t, f.Client, nil)
	require.Less(t, len(f.Requests()), 150)
}

// TestWatchRenamedAndMoved: an alias that is renamed and moved before it is read is lost
// by the image that had it by its old name.
func TestWatchRenamedAndMoved(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	first := testkit.Upload(t, f.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "one"}}})
	second := testkit.Upload(t, f.Client, nil)
	w := startWatch(t, f.Client, &lxd.WatchOptions{Interval: -1})
	stall := f.Inject(lxdtest.StallHeaders().On("GET", "/1.0/images/"+second.Fingerprint).Times(1))
	require.NoError(t, f.Client.Aliases.Create(t.Context(), lxd.Alias{Name: "other", Target: second.Fingerprint}))
	require.Eventually(t, func() bool { return stall.Fired() == 1 }, 30*time.Second, time.Millisecond)
	require.NoError(t, f.Client.Aliases.Rename(t.Context(), "one", "two"))
	require.NoError(t, f.Client.Aliases.Set(t.Context(), lxd.Alias{Name: "two", Target: second.Fingerprint}))
	stall.Release()
	w.requireWhole(t, f.Client, nil)
	require.Empty(t, w.images["default/"+first.Fingerprint].Aliases)
}

// TestWatchDeletedProject: an image whose project is deleted before it is read.
func TestWatchDeletedProject(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus60}, nil)
	f.AddProject("web", true)
	web := f.Client.InProject("web")
	image := testkit.Upload(t, web, nil)
	w := startWatch(t, f.Client, &lxd.WatchOptions{AllProjects: true, Interval: -1})
	for _, path := range []string{"/1.0/projects/web", "/1.0/images/" + image.Fingerprint} {
		defer f.Inject(lxdtest.Status(http.StatusNotFound, "Project not found").On("GET", path)).Remove()
	}
	_, err := web.Images.Get(t.Context(), image.Fingerprint)
	require.ErrorIs(t, err, lxd.ErrProjectNotFound)
	op, err := web.Do(t.Context(), http.MethodDelete, "/1.0/images/"+image.Fingerprint, nil, nil)
	require.NoError(t, err)
	require.NoError(t, op.Wait(t.Context()))
	w.next(t, func(c lxd.ImageChange) bool { return c.Kind == lxd.ImageRemoved })
}

// TestWatchOfAClosedClient: Close ends the loop, also in an outage.
func TestWatchOfAClosedClient(t *testing.T) {
	t.Parallel()
	for _, outage := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, nil)
			image := testkit.Upload(t, f.Client, nil)
			client := testkit.NewClient(t, f.Endpoint(), &lxd.Options{RetryTimeout: -1, Dial: f.DialContext})
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			var last error
			var closing sync.WaitGroup
			for change, err := range client.Images.Watch(ctx, nil) {
				if last = err; change.Kind != lxd.ImagesSynced {
					continue
				}
				closing.Go(func() {
					if outage {
						fault := f.Inject(lxdtest.Unavailable().On("GET", ""))
						assert.NoError(t, f.Client.Aliases.Create(ctx, lxd.Alias{Name: "web", Target: image.Fingerprint}))
						assert.Eventually(t, func() bool { return fault.Fired() >= 3 }, time.Hour, time.Second)
						defer fault.Remove()
					}
					assert.NoError(t, client.Close())
				})
			}
			closing.Wait()
			require.ErrorContains(t, last, "closed")
			require.NoError(t, ctx.Err())
			cancel()
		})
	}
}

// TestWatchReadsAgain: what could not be read is not lost, however long the server is
// unavailable.
func TestWatchReadsAgain(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, nil, &lxd.Options{RetryTimeout: -1})
	image := testkit.Upload(t, f.Client, nil)
	w := startWatch(t, f.Client, &lxd.WatchOptions{Interval: -1})
	fault := f.Inject(lxdtest.Unavailable().On("GET", "/1.0/images/*").Times(1))
	require.NoError(t, f.Client.Aliases.Create(t.Context(), lxd.Alias{Name: "web", Target: image.Fingerprint}))
	w.next(t, func(c lxd.ImageChange) bool { return len(c.Aliases) == 1 })
	require.Equal(t, 1, fault.Fired())
}

// TestWatchInterval: all images are read again without an event.
func TestWatchInterval(t *testing.T) {
	t.Parallel()
	for interval, want := range map[time.Duration]int{0: 3, time.Minute: 26, -1: 1} {
		synctest.Test(t, func(t *testing.T) {
			server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
			defer server.Close()
			client, err := lxd.New(server.Endpoint(), &lxd.Options{Dial: server.DialContext})
			require.NoError(t, err)
			defer func() { require.NoError(t, client.Close()) }()
			ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute+time.Second)
			defer cancel()
			for _, err := range client.Images.Watch(ctx, &lxd.WatchOptions{Interval: interval}) {
				if err != nil {
					require.ErrorIs(t, err, context.DeadlineExceeded)
				}
			}
			lists := 0
			for _, r := range server.Requests() {
				if r.Path == "/1.0/images" {
					lists++
				}
			}
			require.Equal(t, want, lists)
		})
	}
}

// TestWatchOwnsImages: what the caller does to an image has no effect on what is yielded.
func TestWatchOwnsImages(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web"}}})
	properties := map[string]string{"os": "lxdtest"}
	changes := f.Client.Images.Watch(t.Context(), &lxd.WatchOptions{Properties: properties})
	properties["os"] = "other"
	for change, err := range changes {
		require.NoError(t, err)
		switch change.Kind {
		case lxd.ImagePresent:
			change.Image.Properties["os"], change.Image.Aliases[0].Name = "other", "other"
		case lxd.ImagesSynced:
			require.NoError(t, image.AddAlias(t.Context(), "new", ""))
		default:
			require.Equal(t, []string{"Aliases"}, change.Fields)
			require.Equal(t, "web", change.Former.Aliases[0].Name)
			require.Equal(t, "lxdtest", change.Former.Properties["os"])
			return
		}
	}
}

// TestWatchEndsInALoop: the end of ctx ends a loop whose body is slow.
func TestWatchEndsInALoop(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	for range 3 {
		testkit.Upload(t, f.Client, nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	bodies := 0
	for _, err := range f.Client.Images.Watch(ctx, nil) {
		if bodies++; bodies == 1 {
			cancel()
			continue
		}
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Equal(t, 2, bodies)
}

// TestWatchLeavesNothing: a loop that is left at any point, even by a panic, has no
// goroutine afterwards.
func TestWatchLeavesNothing(t *testing.T) {
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	loop := func(last int, end func() bool) {
		defer func() {
			if cause := recover(); cause != nil {
				require.Equal(t, "in the loop", cause)
			}
		}()
		bodies := 0
		for _, err := range f.Client.Images.Watch(t.Context(), nil) {
			require.NoError(t, err)
			if bodies == last && end() {
				break
			}
			if bodies++; bodies == 2 {
				require.NoError(t, image.AddAlias(t.Context(), testkit.Unique("alias"), ""))
			}
		}
	}
	for last := range 3 {
		for _, end := range []func() bool{func() bool { return true }, func() bool { panic("in the loop") }} {
			loop(last, end)
			stacks := make([]byte, 1<<20)
			require.NotContains(t, string(stacks[:runtime.Stack(stacks, true)]), "watchJob")
		}
	}
}

// TestWatchEnds: by its context in every phase, within a second, by a refusal, and by
// bad input.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	const timeout = 20 * time.Second
	for _, fault := range []lxdtest.Fault{
		lxdtest.StallHeaders().On("GET", "/1.0/events"), lxdtest.StallHeaders().On("GET", "/1.0/images"), lxdtest.StallResponse(5).On("GET", "/1.0/images"), lxdtest.Unavailable(),
	} {
		synctest.Test(t, func(t *testing.T) {
			f := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, nil)
			stall := f.Inject(fault)
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			began := time.Now()
			var last error
			for _, err := range f.Client.Images.Watch(ctx, nil) {
				last = err
			}
			require.ErrorIs(t, last, context.DeadlineExceeded)
			require.LessOrEqual(t, time.Since(began), timeout+time.Second)
			require.NotZero(t, stall.Fired())
		})
	}
	f := testkit.StartFake(t)
	unavailable := testkit.StartFakeWith(t, nil, &lxd.Options{RetryTimeout: -1})
	unavailable.Inject(lxdtest.Unavailable().On("GET", "/1.0/images"))
	bodies := 0
	for _, err := range unavailable.Client.Images.Watch(t.Context(), nil) {
		bodies++
		require.ErrorIs(t, err, lxd.ErrUnavailable)
	}
	require.Equal(t, 1, bodies)
	for _, opts := range []*lxd.WatchOptions{{Type: "vm"}, {Architecture: "pdp11"}} {
		for _, err := range f.Client.Images.Watch(t.Context(), opts) {
			require.ErrorIs(t, err, lxd.ErrInvalid)
		}
	}
	f.Distrust()
	for _, err := range testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil).Client.InProject("none").Images.Watch(t.Context(), nil) {
		require.ErrorIs(t, err, lxd.ErrNotFound)
	}
}

// TestWatchOutlastsAnElection: a status of 500 ends the loop only if it lasts.
func TestWatchOutlastsAnElection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, nil)
		image := testkit.Upload(t, f.Client, nil)
		const reason = "failed to begin transaction: no available dqlite leader server found"
		refuse := func(path string) *lxdtest.Injection {
			return f.Inject(lxdtest.Status(http.StatusInternalServerError, reason).On("GET", path))
		}
		change := func(name string) {
			assert.NoError(t, f.Client.Aliases.Create(t.Context(), lxd.Alias{Name: name, Target: image.Fingerprint}))
		}
		var one, all *lxdtest.Injection
		var began time.Time
		var last error
		for got, err := range f.Client.Images.Watch(t.Context(), &lxd.WatchOptions{Interval: -1}) {
			switch last = err; {
			case err != nil:
			case got.Kind == lxd.ImagesSynced:
				one, all = refuse("/1.0/images/*"), refuse("/1.0/images")
				go func() {
					change("first")
					time.Sleep(20 * time.Second)
					one.Remove()
					all.Remove()
				}()
			case len(got.Aliases) == 1 && got.Aliases[0].Name == "first":
				require.NotZero(t, one.Fired())
				require.Greater(t, all.Fired(), 3)
				one, all = refuse("/1.0/images/*"), refuse("/1.0/images")
				began = time.Now()
				go change("second")
			}
		}
		require.ErrorContains(t, last, reason)
		require.WithinRange(t, time.Now(), began.Add(30*time.Second), began.Add(31*time.Second))
		one.Remove()
		all.Remove()
	})
}
