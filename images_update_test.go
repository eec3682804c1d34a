package lxd_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
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

// TestUpdateByRef repeats the change after a conflict.
func TestUpdateByRef(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		image := testkit.Upload(t, f.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web"}}, Properties: map[string]string{"n": "1"}})
		calls := 0
		updated, err := f.Client.Images.Update(t.Context(), "web", func(i *lxd.Image) error {
			if calls++; calls < 3 {
				image.Properties["theirs"] = strconv.Itoa(calls)
				require.NoError(t, image.Update(t.Context(), nil))
			}
			n, err := strconv.Atoi(i.Properties["n"])
			i.Properties["n"] = strconv.Itoa(n + 1)
			return err
		}, nil)
		require.NoError(t, err)
		require.Equal(t, 3, calls)
		require.Equal(t, "2", updated.Properties["n"])
		require.Equal(t, "2", updated.Properties["theirs"])

		f.ForgetRequests()
		mine := errors.New("mine")
		_, err = f.Client.Images.Update(t.Context(), image.Fingerprint[:14], func(*lxd.Image) error { return mine }, nil)
		require.Equal(t, mine, err)
		_, err = f.Client.Images.Update(t.Context(), "missing", func(*lxd.Image) error { t.Error("there is none"); return nil }, nil)
		require.ErrorIs(t, err, lxd.ErrNotFound)
		_, err = f.Client.Images.Update(t.Context(), "web", nil, nil)
		require.Equal(t, "change", testkit.ErrOf[*lxd.InputError](t, err).Field)
		_, err = f.Client.Images.Update(t.Context(), "web", func(*lxd.Image) error { return nil }, nil)
		require.NoError(t, err)
		require.Empty(t, changesAt(f), "nothing was changed")
	})
}

// TestUpdateEndsWithItsContext while others conflict with it.
func TestUpdateEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	_, err := f.Client.Images.Update(ctx, image.Fingerprint, func(i *lxd.Image) error {
		n++
		image.Properties["theirs"] = strconv.Itoa(n)
		require.NoError(t, image.Update(t.Context(), nil))
		i.Properties["mine"] = "x"
		if n == 3 {
			cancel()
		}
		return nil
	}, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, n)

	// An update that waits for another one of this client ends, too.
	stall := f.Inject(lxdtest.StallUpdates())
	defer stall.Remove()
	first, second := make(chan error, 1), testkit.Upload(t, f.Client, nil)
	*second = *image
	image.Public = true
	go func() { first <- image.Update(t.Context(), nil) }()
	require.Eventually(t, func() bool { return stall.Fired() > 0 }, exportWait, exportTick)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	second.AutoUpdate = true
	require.ErrorIs(t, second.Update(short, nil), context.DeadlineExceeded)
	stall.Remove()
	require.NoError(t, <-first)
}

// TestUpdateSendsWhatDiffers: what another changes in the same moment stays, as far as
// the daemons allow it.
func TestUpdateSendsWhatDiffers(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		f.AddProfile("small")
		fingerprint, err := f.AddImage(testkit.Unified(t, 0), nil)
		require.NoError(t, err)
		other, err := f.Client.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		expires := time.Date(2035, 1, 2, 3, 4, 5, 0, time.UTC)
		c := between(t, f, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			if req.Method == http.MethodPatch || req.Method == http.MethodPut {
				// Neither is in the ETag.
				other.Profiles, other.ExpiresAt = []string{"small"}, expires
				if err := other.Update(context.Background(), nil); err != nil {
					return nil, err
				}
			}
			return next.RoundTrip(req)
		})
		image, err := c.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		image.Properties["mine"], image.Public = "x", true
		require.NoError(t, image.Update(t.Context(), nil))
		require.Equal(t, []string{"small"}, image.Profiles)
		require.True(t, image.ExpiresAt.Equal(expires))
		require.Equal(t, "x", image.Properties["mine"])
		require.True(t, image.Public)
	})
}

// TestUpdateThatIsOverwritten by another client in the same moment is a conflict.
func TestUpdateThatIsOverwritten(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*lxd.Image){
		"property":         func(i *lxd.Image) { i.Properties["mine"] = "x" },
		"property removed": func(i *lxd.Image) { delete(i.Properties, "old") },
		"public":           func(i *lxd.Image) { i.Public = true },
		"expiry":           func(i *lxd.Image) { i.ExpiresAt = time.Date(2035, 1, 2, 3, 4, 5, 0, time.UTC) },
		"profiles":         func(i *lxd.Image) { i.Profiles = []string{"small"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFake(t)
			f.AddProfile("small")
			before := testkit.Upload(t, f.Client, &lxd.CreateOptions{Properties: map[string]string{"old": "1"}})
			other := testkit.NewClient(t, f.Endpoint(), nil)
			c := between(t, f, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
				res, err := next.RoundTrip(req)
				if err == nil && (req.Method == http.MethodPatch || req.Method == http.MethodPut) {
					// As another's write that was compared before this one, and lands after it.
					theirs, err := other.Images.Get(context.Background(), before.Fingerprint)
					if err != nil {
						return nil, err
					}
					theirs.Properties, theirs.Public, theirs.ExpiresAt, theirs.Profiles = map[string]string{"old": "1", "theirs": "y"}, false, time.Time{}, []string{"default"}
					if err := theirs.Update(context.Background(), nil); err != nil {
						return nil, err
					}
				}
				return res, err
			})
			image, err := c.Images.Get(t.Context(), before.Fingerprint)
			require.NoError(t, err)
			change(image)
			err = image.Update(t.Context(), nil)
			require.ErrorIs(t, err, lxd.ErrConflict)
			require.NotEmpty(t, testkit.ErrOf[*lxd.Error](t, err).Hint)
		})
	}
}

// TestUpdateThatIsRepeated succeeds if the image already is as requested.
func TestUpdateThatIsRepeated(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		image := testkit.Upload(t, f.Client, nil)
		f.Inject(lxdtest.LoseResponse().On(http.MethodPatch, "/1.0/images/*").Times(1))
		image.Properties["key"] = "1"
		require.NoError(t, image.Update(t.Context(), nil), "the response is lost")
		require.Equal(t, "1", image.Properties["key"])
		twice := *image
		twice.Properties = map[string]string{"key": "2"}
		image.Properties = map[string]string{"key": "2"}
		require.NoError(t, image.Update(t.Context(), nil))
		require.NoError(t, twice.Update(t.Context(), nil))
		f.Inject(lxdtest.Reset().On(http.MethodPatch, "/1.0/images/*").Times(1))
		image.Properties["key"] = "3"
		err := image.Update(t.Context(), nil)
		require.ErrorIs(t, err, lxd.ErrUnavailable, "the request is lost")
		require.NoError(t, image.Update(t.Context(), nil))
		is, _ := f.Image(image.Fingerprint)
		require.Equal(t, "3", is.Properties["key"])
	})
}

// TestUpdateOfOtherFields is refused.
func TestUpdateOfOtherFields(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	for field, change := range map[string]func(*lxd.Image){
		"Image.Aliases":  func(i *lxd.Image) { i.Aliases = append(i.Aliases, lxd.Alias{Name: "more"}) },
		"Image.Filename": func(i *lxd.Image) { i.Filename = "other" },
		"Image":          func(i *lxd.Image) { i.Architecture = "aarch64" },
	} {
		image := testkit.Upload(t, f.Client, nil)
		require.NoError(t, image.AddAlias(t.Context(), field, "text"))
		image.Public = true
		require.NoError(t, image.Update(t.Context(), nil), "the package's own changes")
		require.NoError(t, image.SetAlias(t.Context(), field, ""))
		require.Equal(t, []lxd.Alias{{Name: field, Description: "text"}}, image.Aliases)
		f.ForgetRequests()
		change(image)
		err := image.Update(t.Context(), nil)
		require.Equal(t, field, testkit.ErrOf[*lxd.InputError](t, err).Field)
		require.Empty(t, f.Requests())
	}
	image := testkit.Upload(t, f.Client, nil)
	require.NoError(t, image.AddAlias(t.Context(), "name", ""))
	for field, change := range map[string]func(*lxd.Alias){
		"Alias.Name": func(a *lxd.Alias) { a.Name = "other" },
		"Alias.Type": func(a *lxd.Alias) { a.Type = lxd.VirtualMachine },
	} {
		err := f.Client.Aliases.Update(t.Context(), "name", change)
		require.Equal(t, field, testkit.ErrOf[*lxd.InputError](t, err).Field)
	}
}

// TestSetAliasKeepsDescription, wherever the alias pointed before.
func TestSetAliasKeepsDescription(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			c := s.Client(t)
			one, two := testkit.Upload(t, c, nil), testkit.Upload(t, c, nil)
			name := testkit.Unique("kept")
			require.NoError(t, one.SetAlias(t.Context(), name, ""), "it is new")
			require.NoError(t, one.SetAlias(t.Context(), name, "text"))
			require.NoError(t, two.SetAlias(t.Context(), name, ""))
			require.Equal(t, []lxd.Alias{{Name: name, Description: "text"}}, two.Aliases)
			require.NoError(t, c.Aliases.Set(t.Context(), lxd.Alias{Name: name, Target: one.Fingerprint}))
			alias, err := c.Aliases.Get(t.Context(), name)
			require.NoError(t, err)
			require.Equal(t, "text", alias.Description)
			require.Equal(t, one.Fingerprint, alias.Target)
			require.NoError(t, c.Aliases.Update(t.Context(), name, func(a *lxd.Alias) { a.Description = "" }))
			alias, err = c.Aliases.Get(t.Context(), name)
			require.NoError(t, err)
			require.Empty(t, alias.Description)
		})
	}
}

// TestUpdateLostUnseen: the one loss that is not reported. The server has compared the
// ETag of one update when another begins; it writes the first after the second has
// been read again. Through one client, the second waits for the first.
func TestUpdateLostUnseen(t *testing.T) {
	for _, shared := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
			defer server.Close()
			fingerprint, err := server.AddImage(testkit.Unified(t, 0), nil)
			require.NoError(t, err)
			connect := func() *lxd.Client {
				client, err := lxd.New("unix:///lxd", &lxd.Options{Dial: server.DialContext})
				require.NoError(t, err)
				return client
			}
			mine := connect()
			defer func() { require.NoError(t, mine.Close()) }()
			other := mine
			if !shared {
				other = connect()
				defer func() { require.NoError(t, other.Close()) }()
			}
			done := make(chan string, 2)
			set := func(c *lxd.Client, name string) {
				_, err := c.Images.Update(t.Context(), fingerprint, func(i *lxd.Image) error {
					i.Properties["by"] += name
					return nil
				}, nil)
				assert.NoError(t, err, name)
				done <- name
			}
			stall := server.Inject(lxdtest.StallUpdates().Times(1))
			go set(mine, "first")
			synctest.Wait()
			require.Equal(t, 1, stall.Fired())
			go set(other, "second")
			synctest.Wait()
			if shared {
				require.Empty(t, done, "the second waits")
			} else {
				require.Equal(t, "second", <-done)
			}
			stall.Remove()
			require.Equal(t, "first", <-done)
			want := "first"
			if shared {
				require.Equal(t, "second", <-done)
				want = "firstsecond"
			}
			read, err := mine.Images.Get(t.Context(), fingerprint)
			require.NoError(t, err)
			require.Equal(t, want, read.Properties["by"])
		})
	}
}

// TestFourWriters update one image at once. Through one client no change is lost.
// Through four, which may be four programs, the daemons can lose some unseen; the
// others are reported as conflicts, and repeated.
func TestFourWriters(t *testing.T) {
	t.Parallel()
	const writers = 4
	rounds := 5
	if text := os.Getenv("LXD_TEST_WRITER_ROUNDS"); text != "" {
		var err error
		rounds, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	for _, s := range testkit.Subjects(t) {
		for line, connect := range map[string]func(*testing.T) *lxd.Client{"unix": s.Client, "TLS": s.TLSClient} {
			for _, shared := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %s, shared %t", s.Column, line, shared), func(t *testing.T) {
					image := testkit.Upload(t, connect(t), nil)
					client := connect(t)
					var all sync.WaitGroup
					var mu sync.Mutex
					calls, conflicts := 0, 0
					for writer := range writers {
						c := client
						if !shared {
							c = connect(t)
						}
						all.Go(func() {
							for round := range rounds {
								times := 0
								_, err := c.Images.Update(t.Context(), image.Fingerprint, func(i *lxd.Image) error {
									times++
									i.Properties[fmt.Sprintf("writer.%d.%d", writer, round)] = "done"
									return nil
								}, nil)
								if err != nil {
									t.Errorf("writer %d: %v", writer, err)
								}
								mu.Lock()
								calls, conflicts = calls+1, conflicts+times-1
								mu.Unlock()
							}
						})
					}
					all.Wait()
					read, err := client.Images.Get(t.Context(), image.Fingerprint)
					require.NoError(t, err)
					lost := 0
					for writer := range writers {
						for round := range rounds {
							if read.Properties[fmt.Sprintf("writer.%d.%d", writer, round)] == "" {
								lost++
							}
						}
					}
					t.Logf("updates %d, conflicts that were repeated %d, lost %d", calls, conflicts, lost)
					require.Equal(t, writers*rounds, calls)
					if shared {
						require.Zero(t, lost)
					} else {
						// What is lost cannot be told from what remains: the image keeps
						// neither a history nor the ETag of the overwritten state. So this
						// is only a bound; see TestUpdateLostUnseen.
						require.Less(t, lost, calls/2, "most of what is reported as done is there")
					}
				})
			}
		}
	}
}

// TestUpdateAfterTheWriteOfAnother: what another client writes between the comparison
// and the request is not overwritten, by PATCH and by PUT.
func TestUpdateAfterTheWriteOfAnother(t *testing.T) {
	t.Parallel()
	for method, change := range map[string]func(*lxd.Image){
		http.MethodPatch: func(i *lxd.Image) { i.Properties["n"] = "mine" },
		http.MethodPut:   func(i *lxd.Image) { i.Properties["n"] = "mine"; delete(i.Properties, "old") },
	} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			eachDialect(t, func(t *testing.T, f *testkit.Fake) {
				other := testkit.Upload(t, f.Client, &lxd.CreateOptions{Properties: map[string]string{"old": "1", "n": "1"}})
				var once sync.Once
				c := between(t, f, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
					if req.Method != method {
						return next.RoundTrip(req)
					}
					var err error
					once.Do(func() {
						other.Properties["n"] = "theirs"
						err = other.Update(context.Background(), nil)
					})
					if err != nil {
						return nil, err
					}
					return next.RoundTrip(req)
				})
				image, err := c.Images.Get(t.Context(), other.Fingerprint)
				require.NoError(t, err)
				change(image)
				require.ErrorIs(t, image.Update(t.Context(), nil), lxd.ErrConflict)
				now, err := f.Client.Images.Get(t.Context(), other.Fingerprint)
				require.NoError(t, err)
				require.Equal(t, "theirs", now.Properties["n"])
			})
		})
	}
}

// TestUpdateWithoutProfile: a profile that does not exist is an ErrNotFound that names
// it, and nothing is changed.
func TestUpdateWithoutProfile(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			image := testkit.Upload(t, s.Client(t), nil)
			name := testkit.Unique("none")
			image.Profiles = []string{name}
			err := image.Update(t.Context(), nil)
			require.ErrorIs(t, err, lxd.ErrNotFound)
			require.ErrorContains(t, err, name)
			now, err := image.Client().Images.Get(t.Context(), image.Fingerprint)
			require.NoError(t, err)
			require.Equal(t, []string{"default"}, now.Profiles)
			image.Profiles, image.Public = now.Profiles, true
			require.NoError(t, image.Update(t.Context(), nil))
		})
	}
}
