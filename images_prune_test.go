package lxd_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// lines returns images and reasons as text, with names in place of fingerprints.
func lines(images []lxd.PrunedImage, names map[string]string) []string {
	all := []string{}
	for _, image := range images {
		all = append(all, names[image.Fingerprint]+": "+image.Reason)
	}
	return all
}

// TestPrune: the newest of each group, what has another name, what is protected and what
// is used remain; the plan is what is done then.
func TestPrune(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			set, build := testkit.Unique("set"), testkit.Unique("build")+"/"
			names, images := map[string]string{}, map[string]*lxd.Image{}
			add := func(name, os string, aliases ...string) {
				opts := &lxd.CreateOptions{Properties: map[string]string{"set": set, "os": os}}
				for _, alias := range aliases {
					opts.Aliases = append(opts.Aliases, lxd.Alias{Name: alias})
				}
				images[name] = testkit.Upload(t, c, opts)
				names[images[name].Fingerprint] = name
			}
			remaining := func() (left []string) {
				found, err := c.Images.All(t.Context(), &lxd.ListOptions{Properties: map[string]string{"set": set}})
				require.NoError(t, err)
				for _, image := range found {
					left = append(left, names[image.Fingerprint])
				}
				return left
			}
			prune := func(opts lxd.PruneOptions) *lxd.Pruned {
				opts.Properties = map[string]string{"set": set}
				opts.DryRun = true
				before := remaining()
				plan, err := c.Images.Prune(t.Context(), &opts)
				require.NoError(t, err)
				require.ElementsMatch(t, before, remaining())
				opts.DryRun = false
				pruned, err := c.Images.Prune(t.Context(), &opts)
				require.NoError(t, err)
				require.Equal(t, lines(plan.Deleted, names), lines(pruned.Deleted, names))
				require.Equal(t, lines(plan.Kept, names), lines(pruned.Kept, names))
				require.Len(t, remaining(), len(before)-len(pruned.Deleted))
				return pruned
			}
			add("1", "debian", build+"1")
			add("2", "debian", build+"2", set)
			add("3", "alpine", build+"3", build+"stable")
			add("4", "debian", build+"4")
			add("5", "debian", build+"5")
			add("6", "debian")
			user := createInstance(t, s, c, &lxd.InstanceSource{Type: "image", Fingerprint: images["4"].Fingerprint})
			used := fmt.Sprintf("instance %q of project \"default\" was created from it", user)
			newest := fmt.Sprintf("one of the newest 1 of %q, container, x86_64", build)

			for _, kept := range prune(lxd.PruneOptions{Keep: 1}).Kept[:5] {
				require.Contains(t, kept.Reason, "it has the alias", "nothing with a name is deleted unless that is asked for")
			}
			pruned := prune(lxd.PruneOptions{Keep: 1, AliasPrefixes: []string{build}, Protect: []string{build + "st*"}})
			require.Equal(t, []string{"1: not " + newest}, lines(pruned.Deleted, names))
			require.Equal(t, fmt.Sprintf("image %.12s (%s): not %s", images["1"].Fingerprint, build+"1", newest), pruned.Deleted[0].String())
			require.Equal(t, []string{
				fmt.Sprintf("2: it has the alias %q", set), fmt.Sprintf("3: its alias %q is protected", build+"stable"), "4: " + used, "5: " + newest,
			}, lines(pruned.Kept, names))

			pruned = prune(lxd.PruneOptions{Keep: 1, GroupBy: []string{"os"}, Protect: []string{set}, Used: true, Named: true})
			require.Equal(t, []string{`4: not one of the newest 1 of container, x86_64, os="debian"`, `5: not one of the newest 1 of container, x86_64, os="debian"`}, lines(pruned.Deleted, names))
			require.Equal(t, []string{
				fmt.Sprintf("2: its alias %q is protected", set), `3: one of the newest 1 of container, x86_64, os="alpine"`, `6: one of the newest 1 of container, x86_64, os="debian"`,
			}, lines(pruned.Kept, names))

			pruned = prune(lxd.PruneOptions{Unnamed: true})
			require.Equal(t, []string{"6: without an alias"}, lines(pruned.Deleted, names))
			require.Equal(t, fmt.Sprintf("image %.12s: without an alias", images["6"].Fingerprint), pruned.Deleted[0].String())
			require.Empty(t, prune(lxd.PruneOptions{CachedOnly: true}).Deleted)
			for _, none := range []lxd.PruneOptions{{Unnamed: true, Architecture: "arm64"}, {Keep: 1, Type: lxd.VirtualMachine}, {OlderThan: time.Hour}, {UnusedFor: time.Hour}} {
				pruned = prune(none)
				require.Empty(t, append(pruned.Deleted, pruned.Kept...))
			}
			require.ElementsMatch(t, []string{"2", "3"}, remaining())
		})
	}
}

// TestPruneCached: an image that a server has fetched for an instance.
func TestPruneCached(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			this := *s
			this.TLS = true
			c := this.Client(t)
			set := testkit.Unique("set")
			properties := map[string]string{"set": set}
			far := testkit.Upload(t, this.Twin.TLSClient(t), &lxd.CreateOptions{Public: true, Properties: properties})
			testkit.Upload(t, c, &lxd.CreateOptions{Properties: properties})
			source, err := far.InstanceSource(t.Context(), &lxd.InstanceSourceOptions{Target: c})
			require.NoError(t, err)
			createInstance(t, s, c, source)
			opts := &lxd.PruneOptions{Properties: properties, CachedOnly: true}
			pruned, err := c.Images.Prune(t.Context(), opts)
			require.NoError(t, err)
			require.Empty(t, pruned.Deleted)
			require.Len(t, pruned.Kept, 1)
			require.False(t, pruned.Kept[0].LastUsedAt.IsZero())
			opts.Used = true
			pruned, err = c.Images.Prune(t.Context(), opts)
			require.NoError(t, err)
			require.Equal(t, []string{"far: cached"}, lines(pruned.Deleted, map[string]string{far.Fingerprint: "far"}))
		})
	}
}

// TestPruneByAge: ages are those by the server's clock.
func TestPruneByAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer server.Close()
		client, err := lxd.New(server.Endpoint(), &lxd.Options{Dial: server.DialContext})
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close()) }()
		names := map[string]string{}
		add := func(name string) *lxd.Image {
			image, err := client.Images.Create(t.Context(), strings.NewReader(string(testkit.Unified(t, 0))), &lxd.CreateOptions{Wait: true})
			require.NoError(t, err)
			names[image.Fingerprint] = name
			return image
		}
		add("old")
		time.Sleep(time.Minute)
		used := add("used")
		time.Sleep(24 * time.Hour)
		op, err := client.Do(t.Context(), http.MethodPost, "/1.0/instances", map[string]any{"name": "web1", "source": map[string]any{"type": "image", "fingerprint": used.Fingerprint}}, nil)
		require.NoError(t, err)
		require.NoError(t, op.Wait(t.Context()))
		add("new")
		time.Sleep(time.Hour)
		for want, opts := range map[string]*lxd.PruneOptions{
			"old: not used for 12h0m0s, and never used":                                                          {UnusedFor: 12 * time.Hour, Used: true},
			"old: uploaded more than 24h0m0s ago, not used for 24h0m0s, and never used":                          {OlderThan: 24 * time.Hour, UnusedFor: 24 * time.Hour},
			"old: uploaded more than 24h0m0s ago; used: uploaded more than 24h0m0s ago":                          {OlderThan: 24 * time.Hour, Used: true},
			"old: without an alias, uploaded more than 2h0m0s ago, not one of the newest 1 of container, x86_64": {OlderThan: 2 * time.Hour, Unnamed: true, Keep: 1},
			"": {OlderThan: 26 * time.Hour},
		} {
			opts.DryRun = true
			pruned, err := client.Images.Prune(t.Context(), opts)
			require.NoError(t, err)
			require.Equal(t, want, strings.Join(lines(pruned.Deleted, names), "; "))
		}
	})
}

// TestPruneLooksAgain: an image that gets an alias, is used, uploaded again or no longer
// selected after it was listed remains, and so does none that is gone.
func TestPruneLooksAgain(t *testing.T) {
	t.Parallel()
	properties := map[string]string{"set": "pruned"}
	for name, change := range map[string]func(t *testing.T, f *testkit.Fake, image *lxd.Image){
		"an alias": func(t *testing.T, f *testkit.Fake, image *lxd.Image) {
			require.NoError(t, image.AddAlias(t.Context(), "web", ""))
		},
		"a use": func(t *testing.T, f *testkit.Fake, image *lxd.Image) {
			op, err := image.Client().Do(t.Context(), http.MethodPost, "/1.0/instances", map[string]any{"name": "web1", "source": map[string]any{"type": "image", "fingerprint": image.Fingerprint}}, nil)
			require.NoError(t, err)
			require.NoError(t, op.Wait(t.Context()))
		},
		"an upload": func(t *testing.T, f *testkit.Fake, image *lxd.Image) {
			files, err := f.Files(image.Fingerprint)
			require.NoError(t, err)
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			_, err = image.Client().Images.Create(t.Context(), bytes.NewReader(files[0]), &lxd.CreateOptions{Properties: image.Properties, Wait: true})
			require.NoError(t, err)
		},
		"a property": func(t *testing.T, f *testkit.Fake, image *lxd.Image) {
			image.Properties["set"] = "other"
			require.NoError(t, image.Update(t.Context(), nil))
		},
		"gone": func(t *testing.T, f *testkit.Fake, image *lxd.Image) {
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFake(t)
			image := testkit.Upload(t, f.Client, &lxd.CreateOptions{Properties: properties})
			stall := f.Inject(lxdtest.StallHeaders().On("GET", "/1.0/images/*").Times(1))
			var pruned *lxd.Pruned
			var err error
			done := make(chan struct{})
			go func() {
				defer close(done)
				pruned, err = f.Client.Images.Prune(t.Context(), &lxd.PruneOptions{Properties: properties, Unnamed: true})
			}()
			require.Eventually(t, func() bool { return stall.Fired() == 1 }, 30*time.Second, time.Millisecond)
			change(t, f, image)
			stall.Release()
			<-done
			require.NoError(t, err)
			require.Empty(t, pruned.Deleted)
			require.Equal(t, name != "gone", len(pruned.Kept) == 1)
			_, err = f.Client.Images.Get(t.Context(), image.Fingerprint)
			require.Equal(t, name != "gone", err == nil)
		})
	}
}

// TestPruneProtect: patterns, and aliases that look like one.
func TestPruneProtect(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	testkit.Upload(t, f.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web[1]"}}})
	testkit.Upload(t, f.Client, nil)
	for pattern, deleted := range map[string]int{"web[1]": 0, "web*": 0, "web?1?": 0, "web": 1, "web1": 1, "*/*": 1} {
		pruned, err := f.Client.Images.Prune(t.Context(), &lxd.PruneOptions{Keep: 1, Named: true, Protect: []string{pattern}, DryRun: true})
		require.NoError(t, err)
		require.Len(t, pruned.Deleted, deleted, pattern)
	}
}

// TestPruneGoesOn: an image that cannot be deleted does not keep the others.
func TestPruneGoesOn(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	bad := testkit.Upload(t, f.Client, nil)
	testkit.Upload(t, f.Client, nil)
	refused := f.Inject(lxdtest.Status(http.StatusForbidden, "not today").On("DELETE", "/1.0/images/"+bad.Fingerprint))
	pruned, err := f.Client.Images.Prune(t.Context(), &lxd.PruneOptions{Unnamed: true})
	require.ErrorIs(t, err, lxd.ErrForbidden)
	require.ErrorContains(t, err, bad.Fingerprint[:12])
	require.Len(t, pruned.Deleted, 1)
	images, err := f.Client.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, images, 1)
	refused.Remove()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = f.Client.Images.Prune(ctx, &lxd.PruneOptions{Unnamed: true})
	require.ErrorIs(t, err, context.Canceled)
}

// TestPruneGroups: a reason names each group in which the image is not kept.
func TestPruneGroups(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	names := map[string]string{}
	names[testkit.Upload(t, f.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "a/1"}, {Name: "b/1"}}}).Fingerprint] = "1"
	for _, alias := range []string{"a/2", "b/2"} {
		testkit.Upload(t, f.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: alias}}})
	}
	pruned, err := f.Client.Images.Prune(t.Context(), &lxd.PruneOptions{Keep: 1, AliasPrefixes: []string{"a/", "b/"}})
	require.NoError(t, err)
	require.Equal(t, []string{`1: not one of the newest 1 of "a/", container, x86_64, not one of the newest 1 of "b/", container, x86_64`}, lines(pruned.Deleted, names))
}

// TestPruneOfADeletedImage: an image that somebody else deletes at the same time is not
// among the deleted.
func TestPruneOfADeletedImage(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	stall := f.Inject(lxdtest.StallHeaders().On("DELETE", "").Times(1))
	var pruned *lxd.Pruned
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		pruned, err = f.Client.Images.Prune(t.Context(), &lxd.PruneOptions{Unnamed: true})
	}()
	require.Eventually(t, func() bool { return stall.Fired() == 1 }, 30*time.Second, time.Millisecond)
	require.NoError(t, f.Client.Images.Delete(t.Context(), image.Fingerprint, &lxd.DeleteOptions{Wait: true}))
	stall.Release()
	<-done
	require.NoError(t, err)
	require.Empty(t, append(pruned.Deleted, pruned.Kept...))
}

// TestPruneEnds: with ctx, within a second, and with one error.
func TestPruneEnds(t *testing.T) {
	t.Parallel()
	const timeout = 20 * time.Second
	for _, on := range [][2]string{{"GET", "/1.0"}, {"GET", "/1.0/images"}, {"GET", "/1.0/images/*"}, {"DELETE", "/1.0/images/*"}} {
		synctest.Test(t, func(t *testing.T) {
			f := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, nil)
			for range 3 {
				testkit.Upload(t, f.Client, nil)
			}
			stall := f.Inject(lxdtest.StallHeaders().On(on[0], on[1]))
			t.Cleanup(stall.Remove)
			opts := &lxd.PruneOptions{Unnamed: true}
			if on[1] == "/1.0" {
				opts.OlderThan = time.Hour
			}
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			began := time.Now()
			pruned, err := f.Client.Images.Prune(ctx, opts)
			require.LessOrEqual(t, time.Since(began), timeout+time.Second)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 1, strings.Count(err.Error(), context.DeadlineExceeded.Error()), err)
			require.Empty(t, pruned.Deleted)
			require.NotZero(t, stall.Fired())
		})
	}
}

// TestPruneWithoutAClock: no image is too old by a clock that the server does not tell.
func TestPruneWithoutAClock(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, nil, &lxd.Options{Transport: func(next http.RoundTripper) http.RoundTripper { return dateless{next} }})
	testkit.Upload(t, f.Client, nil)
	_, err := f.Client.Images.Prune(t.Context(), &lxd.PruneOptions{OlderThan: 1})
	require.ErrorIs(t, err, lxd.ErrUnsupported)
	pruned, err := f.Client.Images.Prune(t.Context(), &lxd.PruneOptions{Unnamed: true})
	require.NoError(t, err)
	require.Len(t, pruned.Deleted, 1)
}

// dateless removes the header Date of responses.
type dateless struct{ http.RoundTripper }

func (d dateless) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := d.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Header.Del("Date")
	}
	return res, err
}

// TestPruneOfARefreshedImage: it has the last use of the image that it replaces, which
// counts only until it was uploaded.
func TestPruneOfARefreshedImage(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c, far := s.Client(t), s.Twin.TLSClient(t)
			source := testkit.Unique("source")
			old := testkit.Upload(t, far, &lxd.CreateOptions{Public: true, Aliases: []lxd.Alias{{Name: source}}})
			next := testkit.Upload(t, far, &lxd.CreateOptions{Public: true})
			copied, err := old.Copy(t.Context(), c, &lxd.CopyOptions{Mode: lxd.CopyPull, AutoUpdate: new(true), Wait: true})
			require.NoError(t, err)
			createInstance(t, s, c, &lxd.InstanceSource{Type: "image", Fingerprint: old.Fingerprint})
			require.NoError(t, next.SetAlias(t.Context(), source, ""))
			fresh, err := copied.Refresh(t.Context(), &lxd.RefreshOptions{Wait: true})
			require.NoError(t, err)
			testkit.DeleteAfter(t, fresh)
			require.False(t, fresh.LastUsedAt.IsZero())
			require.True(t, fresh.LastUsedAt.Before(fresh.UploadedAt))
		})
	}
}

// TestPruneInput: what is refused before anything is sent.
func TestPruneInput(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	for field, opts := range map[string]*lxd.PruneOptions{
		"PruneOptions":               {Type: lxd.Container, Protect: []string{"web"}, AliasPrefixes: []string{"x"}},
		"PruneOptions.Type":          {Type: "vm", Unnamed: true},
		"PruneOptions.Architecture":  {Architecture: "pdp11", Unnamed: true},
		"PruneOptions.Keep":          {Keep: -1},
		"PruneOptions.OlderThan":     {OlderThan: -1},
		"PruneOptions.UnusedFor":     {UnusedFor: -1},
		"PruneOptions.GroupBy":       {GroupBy: []string{"os"}, Unnamed: true},
		"PruneOptions.AliasPrefixes": {Keep: 1, AliasPrefixes: []string{""}},
		"PruneOptions.Unnamed":       {Unnamed: true, AliasPrefixes: []string{"x"}},
		"PruneOptions.Protect":       {Unnamed: true, Protect: []string{"[a"}},
		"PruneOptions.Protect ":      {Unnamed: true, Protect: []string{"web", ""}},
	} {
		_, err := f.Client.Images.Prune(t.Context(), opts)
		require.Equal(t, strings.TrimSpace(field), testkit.ErrOf[*lxd.InputError](t, err).Field)
	}
	_, err := f.Client.Images.Prune(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrInvalid)
	require.Empty(t, f.Requests())
}
