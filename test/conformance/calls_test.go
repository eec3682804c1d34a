package conformance_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/ociregistry"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// conformanceCalls are the rows of the table, in the order of the package's
// documentation.
var conformanceCalls = []struct {
	name string
	run  func(*testing.T, *subject)
}{
	{"Server", testServer},
	{"Images.Create unified", testCreateUnified},
	{"Images.Create split", testCreateSplit},
	{"Images.Create virtual machine", testCreateVM},
	{"Images.Create attributes", testCreateAttributes},
	{"Images.Create without Wait", testCreateNoWait},
	{"Images.Create same content twice", testCreateTwice},
	{"Images.Create verified", testCreateVerified},
	{"Images.Create refused", testCreateRefused},
	{"Images.All", testAll},
	{"Images.All in all projects", testAllProjects},
	{"Images.Each", testEach},
	{"Images.Get", testGet},
	{"Images.Get prefix", testGetPrefix},
	{"Images.GetWithEntitlements", testEntitlements},
	{"Images.GetByAlias", testGetByAlias},
	{"Images.Resolve", testResolve},
	{"Images.Exists", testExists},
	{"Image.Locations", testLocations},
	{"Images.CreateFromURL", testFromURL},
	{"Images.CreateFromSimplestreams", testFromSimplestreams},
	{"Images.CreateFrom", testCreateFrom},
	{"Images.CreateFrom an OCI registry", testFromOCI},
	{"Images.Ensure", testEnsure},
	{"Images.InstanceSource", testSourceForInstance},
	{"Image.Distribute", testDistribute},
	{"Images.Prune", testPrune},
	{"Images.Watch", testWatch},
	{"Images.CreateFromInstance", testFromInstance},
	{"Images.CreateFromInstance split", testFromInstanceSplit},
	{"Images.CreateFromInstance of existing content", testFromInstanceExisting},
	{"Images.Update", testImagesUpdate},
	{"Images.Delete", testImagesDelete},
	{"DeleteReplaced", testDeleteReplaced},
	{"Image.Export unified", testExportUnified},
	{"Image.Export split", testExportSplit},
	{"Image.ExportTo", testExportTo},
	{"ExportedFiles.Verify", testVerifyFiles},
	{"Image.Content", testContent},
	{"Image.Update", testUpdate},
	{"Image.Update conflict", testUpdateConflict},
	{"Image.AddAlias", testAddAlias},
	{"Image.SetAlias", testSetAlias},
	{"Image.DeleteAlias", testDeleteAlias},
	{"Aliases", testAliases},
	{"Aliases with odd names", testOddAliases},
	{"Image.Refresh", testRefresh},
	{"Image.Refresh Fresh", testRefreshFresh},
	{"Image.Delete", testDelete},
	{"Image.Secret", testSecret},
	{"Image.Copy pull", testCopyPull},
	{"Image.Copy push", testCopyPush},
	{"Image.Copy relay", testCopyRelay},
	{"Image.Copy auto", testCopyAuto},
	{"Image.Copy into a project", testCopyProject},
	{"Client.InProject", testInProject},
	{"Client.Projects", testProjects},
	{"Client.Do", testDo},
	{"Image.InstanceSource", testInstanceSource},
	{"Client.Operations", testOperations},
	{"Client.Events", testEvents},
	{"Operation.Cancel", testCancel},
	{"Registries", testRegistries},
	{"untrusted client", testUntrusted},
}

func testServer(t *testing.T, s *subject) {
	info, err := s.Client(t).Server(t.Context())
	require.NoError(t, err)
	require.Equal(t, s.Family, info.Family)
	require.True(t, info.Trusted)
	require.NotEmpty(t, info.Version)
	require.True(t, info.Has("image_profiles"))
	require.False(t, info.Has("no_such_extension"))
}

func testCreateUnified(t *testing.T, s *subject) {
	c := s.Client(t)
	data := testkit.Unified(t, 100_000)
	image, err := c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
	require.EqualValues(t, len(data), image.Size)
	require.Equal(t, lxd.Container, image.Type)
	require.Equal(t, "x86_64", image.Architecture)
	require.Equal(t, "lxdtest", image.Properties["os"])
	require.Equal(t, []string{"default"}, image.Profiles)
	require.Equal(t, "default", image.Project)
	require.Empty(t, image.Aliases)
	require.False(t, image.Public)
	require.False(t, image.AutoUpdate)
	require.False(t, image.Cached)
	require.Nil(t, image.UpdateSource)
	require.True(t, image.ExpiresAt.IsZero())
	require.True(t, image.LastUsedAt.IsZero())
	require.WithinDuration(t, time.Now(), image.UploadedAt, time.Minute)
	require.Equal(t, 2024, image.CreatedAt.UTC().Year())

	// A reader of unknown length, and one with CreateOptions.Size.
	for _, size := range []int64{0, int64(len(data))} {
		require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		image, err = c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true, Size: size})
		require.NoError(t, err)
		require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
	}
}

func testCreateSplit(t *testing.T, s *subject) {
	metadata, rootfs := lxdtest.SplitImage(rand.Text(), 100_000)
	image, err := s.Client(t).Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(rootfs), Filename: "root.tar", Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	require.Equal(t, lxdtest.Fingerprint(metadata, rootfs), image.Fingerprint)
	require.Equal(t, lxd.Container, image.Type)
	require.EqualValues(t, len(metadata)+len(rootfs), image.Size)
}

func testCreateVM(t *testing.T, s *subject) {
	metadata, disk := lxdtest.VMImage(rand.Text(), 0)
	image, err := s.Client(t).Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(disk), Type: lxd.VirtualMachine})
	require.NoError(t, err)
	require.Equal(t, lxdtest.Fingerprint(metadata, disk), image.Fingerprint)
	require.NoError(t, image.Wait(t.Context()))
	testkit.DeleteAfter(t, image)
	require.Equal(t, lxd.VirtualMachine, image.Type)
}

func testCreateAttributes(t *testing.T, s *subject) {
	c := s.Client(t)
	profile := s.AddProfile(t)
	expires := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	first, second := testkit.Unique("alias/a#b"), testkit.Unique("alias%")
	image := testkit.Upload(t, c, &lxd.CreateOptions{
		Public: true, Filename: "größe.tar.gz", Properties: map[string]string{"os": "Över & out=1", "kind": "a b+c"},
		Profiles: []string{profile, "default"}, ExpiresAt: expires,
		Aliases: []lxd.Alias{{Name: first, Description: "the first"}, {Name: second}},
	})
	read, err := c.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	for _, i := range []*lxd.Image{image, read} {
		require.True(t, i.Public)
		if s.Clustered() { // LXD 5.0.2 loses it when the members have copied the image
			require.Contains(t, []string{"größe.tar.gz", ""}, i.Filename)
		} else {
			require.Equal(t, "größe.tar.gz", i.Filename)
		}
		require.Equal(t, "Över & out=1", i.Properties["os"])
		require.Equal(t, "a b+c", i.Properties["kind"])
		require.Equal(t, "1", i.Properties["release"], "the image's own properties stay")
		require.ElementsMatch(t, []string{profile, "default"}, i.Profiles)
		require.True(t, i.ExpiresAt.Equal(expires), i.ExpiresAt)
		require.ElementsMatch(t, []lxd.Alias{{Name: first, Description: "the first"}, {Name: second}}, i.Aliases)
	}

	_, err = c.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Wait: true, Aliases: []lxd.Alias{{Name: first}}})
	require.ErrorIs(t, err, lxd.ErrExists, "the alias is another image's")
	moved := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: first}}, ReuseAliases: true})
	byAlias, err := c.Images.GetByAlias(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, moved.Fingerprint, byAlias.Fingerprint)

	data := testkit.Unified(t, 0)
	_, err = c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Profiles: []string{"no-such-profile"}})
	require.ErrorContains(t, err, "no-such-profile")
	exists, err := c.Images.Exists(t.Context(), lxdtest.Fingerprint(data))
	require.NoError(t, err)
	require.False(t, exists, "an image without what was asked for is not left behind")
}

func testCreateNoWait(t *testing.T, s *subject) {
	c := s.Client(t)
	data := testkit.Unified(t, 50_000)
	alias := testkit.Unique("later")
	image, err := c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: alias}}})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint, "hashed on the way")
	require.NotNil(t, image.Operation())
	require.NoError(t, image.Wait(t.Context()))
	require.Equal(t, "x86_64", image.Architecture, "complete after Wait")
	require.Equal(t, []lxd.Alias{{Name: alias}}, image.Aliases)
	require.NoError(t, image.Wait(t.Context()), "Wait may be called again")
}

func testCreateTwice(t *testing.T, s *subject) {
	c := s.Client(t)
	data := testkit.Unified(t, 0)
	first, err := c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Properties: map[string]string{"n": "1"}})
	require.NoError(t, err)
	testkit.DeleteAfter(t, first)
	alias := testkit.Unique("twice")
	for _, o := range []lxd.CreateOptions{
		{},
		{Dedupe: true},
		{Fingerprint: first.Fingerprint},
		{Verify: true, Aliases: []lxd.Alias{{Name: alias}}},
	} {
		for _, wait := range []bool{true, false} {
			o.Wait, o.Properties = wait, map[string]string{"n": "2"}
			again, err := c.Images.Create(t.Context(), bytes.NewReader(data), &o)
			require.NoError(t, err)
			require.NoError(t, again.Wait(t.Context()))
			require.Equal(t, first.Fingerprint, again.Fingerprint)
			require.Equal(t, "2", again.Properties["n"], "the options are applied to the image that exists")
			o.IfExists, o.Aliases = lxd.ErrorIfExists, nil
			again, err = c.Images.Create(t.Context(), bytes.NewReader(data), &o)
			if err == nil {
				err = again.Wait(t.Context())
			}
			require.ErrorIs(t, err, lxd.ErrExists)
			o.IfExists = lxd.UseExisting
		}
	}
	byAlias, err := c.Images.GetByAlias(t.Context(), alias)
	require.NoError(t, err)
	require.Equal(t, first.Fingerprint, byAlias.Fingerprint, "but gets the alias")
}

func testCreateVerified(t *testing.T, s *subject) {
	c := s.Client(t)
	data := testkit.Unified(t, 100_000)
	want := lxdtest.Fingerprint(testkit.Unified(t, 0))
	for _, reader := range []io.Reader{bytes.NewReader(data), testkit.OneShotReader{Reader: bytes.NewReader(data)}} {
		for _, verify := range []bool{false, true} {
			if seeker, ok := reader.(io.Seeker); ok {
				_, err := seeker.Seek(0, io.SeekStart)
				require.NoError(t, err)
			} else {
				reader = testkit.OneShotReader{Reader: bytes.NewReader(data)}
			}
			_, err := c.Images.Create(t.Context(), reader, &lxd.CreateOptions{Wait: true, Fingerprint: want, Verify: verify})
			if _, ok := reader.(io.Seeker); ok || verify {
				mismatch := testkit.ErrOf[*lxd.FingerprintError](t, err)
				require.Equal(t, want, mismatch.Want)
				require.Equal(t, lxdtest.Fingerprint(data), mismatch.Got)
			} else {
				require.ErrorContains(t, err, lxdtest.Fingerprint(data), "the daemon's words")
			}
		}
	}
	exists, err := c.Images.Exists(t.Context(), lxdtest.Fingerprint(data))
	require.NoError(t, err)
	require.False(t, exists)

	image, err := c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true, Verify: true, Fingerprint: strings.ToUpper(lxdtest.Fingerprint(data))})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
}

func testCreateRefused(t *testing.T, s *subject) {
	c := s.Client(t)
	_, err := c.Images.Create(t.Context(), strings.NewReader("not an image\x00"), &lxd.CreateOptions{Wait: true})
	failed := testkit.ErrOf[*lxd.OperationError](t, err)
	require.NotEmpty(t, failed.Message)
	require.NotEmpty(t, failed.ID)
	for _, text := range []string{"", "a text"} {
		_, err = c.Images.Create(t.Context(), strings.NewReader(text), &lxd.CreateOptions{Wait: true})
		require.ErrorIs(t, err, lxd.ErrInvalid)
	}

	broken := errors.New("the disk has died")
	data := testkit.Unified(t, 1<<20)
	for _, size := range []int64{0, int64(len(data))} {
		_, err = c.Images.Create(t.Context(), io.MultiReader(bytes.NewReader(data[:1<<19]), failingReader{broken}), &lxd.CreateOptions{Wait: true, Size: size})
		require.ErrorIs(t, err, broken, "the reader's own error comes back")
	}
	_, err = c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true, Size: int64(len(data)) + 10})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "shorter than said")
	_, err = c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true, Size: int64(len(data)) - 10})
	require.ErrorIs(t, err, lxd.ErrBodyChanged, "longer than said")
	require.Equal(t, 1, strings.Count(err.Error(), lxd.ErrBodyChanged.Error()), err)
	exists, err := c.Images.Exists(t.Context(), lxdtest.Fingerprint(data))
	require.NoError(t, err)
	require.False(t, exists)
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func testAll(t *testing.T, s *subject) {
	c := s.Client(t)
	mark := rand.Text()
	odd := `v.1+(x) "y" it's`
	one := testkit.Upload(t, c, &lxd.CreateOptions{Public: true, Properties: map[string]string{"mark": mark, "n": "1", "odd": odd, "sp": "a b.c"}})
	two := testkit.Upload(t, c, &lxd.CreateOptions{Properties: map[string]string{"mark": mark, "n": "2", "odd": "v.1+(x)", "sp": "a bxc"}})
	yes, no := true, false
	for name, test := range map[string]struct {
		opts lxd.ListOptions
		want []string
	}{
		"both":         {lxd.ListOptions{}, []string{one.Fingerprint, two.Fingerprint}},
		"public":       {lxd.ListOptions{Public: &yes}, []string{one.Fingerprint}},
		"private":      {lxd.ListOptions{Public: &no}, []string{two.Fingerprint}},
		"cached":       {lxd.ListOptions{Cached: &yes}, []string{}},
		"no update":    {lxd.ListOptions{AutoUpdate: &no}, []string{one.Fingerprint, two.Fingerprint}},
		"type":         {lxd.ListOptions{Type: lxd.Container}, []string{one.Fingerprint, two.Fingerprint}},
		"other type":   {lxd.ListOptions{Type: lxd.VirtualMachine}, []string{}},
		"architecture": {lxd.ListOptions{Architecture: "aarch64"}, []string{}},
		"property":     {lxd.ListOptions{Properties: map[string]string{"n": "2"}}, []string{two.Fingerprint}},
		"space":        {lxd.ListOptions{Properties: map[string]string{"sp": "a b.c"}}, []string{one.Fingerprint}},
		"quotes":       {lxd.ListOptions{Properties: map[string]string{"odd": odd}}, []string{one.Fingerprint}},
		"meta":         {lxd.ListOptions{Properties: map[string]string{"odd": "v.1+(x)"}}, []string{two.Fingerprint}},
		"raw":          {lxd.ListOptions{Filter: "properties.n eq 1"}, []string{one.Fingerprint}},
		"raw not":      {lxd.ListOptions{Filter: "properties.n ne 1"}, []string{two.Fingerprint}},
	} {
		t.Run(name, func(t *testing.T) {
			if test.opts.Properties == nil {
				test.opts.Properties = map[string]string{}
			}
			test.opts.Properties["mark"] = mark
			images, err := c.Images.All(t.Context(), &test.opts)
			require.NoError(t, err)
			require.ElementsMatch(t, test.want, testkit.Fingerprints(images))
		})
	}
	_, err := c.Images.All(t.Context(), &lxd.ListOptions{Filter: "this is no filter"})
	require.Error(t, err)
}

func testAllProjects(t *testing.T, s *subject) {
	c := s.Client(t)
	project := s.AddProject(t)
	mark := rand.Text()
	there := testkit.Upload(t, c.InProject(project), &lxd.CreateOptions{Properties: map[string]string{"mark": mark}})
	here := testkit.Upload(t, c, &lxd.CreateOptions{Properties: map[string]string{"mark": mark}})
	images, err := c.Images.All(t.Context(), &lxd.ListOptions{AllProjects: true, Properties: map[string]string{"mark": mark}})
	if info, _ := c.Server(t.Context()); !info.Has("images_all_projects") {
		s.unsupported(t, err, "images_all_projects")
		return
	}
	require.NoError(t, err)
	require.ElementsMatch(t, []string{there.Fingerprint, here.Fingerprint}, testkit.Fingerprints(images))
	for _, image := range images {
		if image.Fingerprint == there.Fingerprint {
			require.Equal(t, project, image.Project)
			require.NoError(t, image.AddAlias(t.Context(), testkit.Unique("there"), ""), "it works in its own project")
		}
	}
}

func testEach(t *testing.T, s *subject) {
	c := s.Client(t)
	mark := rand.Text()
	want := []string{}
	for range 3 {
		want = append(want, testkit.Upload(t, c, &lxd.CreateOptions{Properties: map[string]string{"mark": mark}}).Fingerprint)
	}
	each := c.Images.Each(t.Context(), &lxd.ListOptions{Properties: map[string]string{"mark": mark}})
	for range 2 { // it can be ranged over again
		got := []string{}
		for image, err := range each {
			require.NoError(t, err)
			got = append(got, image.Fingerprint)
		}
		require.ElementsMatch(t, want, got)
	}
	for range each {
		break // leaving early is fine
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for image, err := range c.Images.Each(ctx, nil) {
		require.Nil(t, image)
		require.ErrorIs(t, err, context.Canceled)
	}
}

func testGet(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	read, err := c.Images.Get(t.Context(), strings.ToUpper(image.Fingerprint))
	require.NoError(t, err)
	require.Equal(t, image.Fingerprint, read.Fingerprint)
	require.Equal(t, image.Properties, read.Properties)
	_, err = c.Images.Get(t.Context(), strings.Repeat("0", 64))
	require.ErrorIs(t, err, lxd.ErrNotFound)
	refused := testkit.ErrOf[*lxd.Error](t, err)
	require.Equal(t, 404, refused.StatusCode)
	require.Equal(t, "GET", refused.Method)
	require.Contains(t, refused.Path, "/1.0/images/000")
	require.NotEmpty(t, refused.Message)
}

func testGetPrefix(t *testing.T, s *subject) {
	c := s.Client(t).InProject(s.AddProject(t))
	first := testkit.Upload(t, c, nil)
	read, err := c.Images.Get(t.Context(), first.Fingerprint[:14])
	require.NoError(t, err)
	require.Equal(t, first.Fingerprint, read.Fingerprint)
	// Seventeen images have two that begin alike.
	seen := map[byte]bool{first.Fingerprint[0]: true}
	for {
		next := testkit.Upload(t, c, nil)
		if seen[next.Fingerprint[0]] {
			_, err = c.Images.Get(t.Context(), next.Fingerprint[:1])
			require.ErrorIs(t, err, lxd.ErrAmbiguous)
			return
		}
		seen[next.Fingerprint[0]] = true
	}
}

func testGetByAlias(t *testing.T, s *subject) {
	c := s.Client(t)
	alias := testkit.Unique("by/alias")
	image := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: alias}}})
	read, err := c.Images.GetByAlias(t.Context(), alias)
	require.NoError(t, err)
	require.Equal(t, image.Fingerprint, read.Fingerprint)
	_, err = c.Images.GetByAlias(t.Context(), "no such alias")
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

func testExists(t *testing.T, s *subject) {
	c := s.Client(t).InProject(s.AddProject(t)) // no other run's image begins like that
	alias := testkit.Unique("exists")
	image := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: alias}}})
	hex := "ace"
	if strings.HasPrefix(image.Fingerprint, hex) {
		hex = "bad"
	}
	for name, want := range map[string]bool{
		image.Fingerprint: true, image.Fingerprint[:20]: true, alias: true, "nothing of the kind": false, strings.Repeat("f", 64): false, hex: false,
	} {
		exists, err := c.Images.Exists(t.Context(), name)
		require.NoError(t, err, name)
		require.Equal(t, want, exists, name)
	}
}

func testFromURL(t *testing.T, s *subject) {
	c := s.Client(t)
	data := testkit.Unified(t, 100_000)
	source := streamstest.NewServer(nil)
	t.Cleanup(source.Close)
	url := source.Direct("image", streamstest.Direct{Content: data})
	alias := testkit.Unique("url")
	image, err := c.Images.CreateFromURL(t.Context(), url, &lxd.CreateFromURLOptions{Public: true, AutoUpdate: true, Aliases: []lxd.Alias{{Name: alias}}, Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
	require.True(t, image.Public)
	require.True(t, image.AutoUpdate)
	require.Equal(t, []lxd.Alias{{Name: alias}}, image.Aliases)
}

func testFromSimplestreams(t *testing.T, s *subject) {
	c := s.Client(t)
	data := testkit.Unified(t, 100_000)
	source := streamstest.NewServer(streamstest.Tree([]streamstest.Product{{
		Name: "product", Aliases: []string{"distro/1"}, OS: "Distro", Release: "1",
		Versions: []streamstest.Version{{Serial: "20240101", Family: "both", Unified: data}},
	}}, nil))
	t.Cleanup(source.Close)
	image, err := c.Images.CreateFromSimplestreams(t.Context(), source.URL, "distro/1", &lxd.CreateFromSimplestreamsOptions{Wait: true, AllowHTTP: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
	require.Equal(t, "Distro", image.Properties["os"])
}

func testFromInstance(t *testing.T, s *subject) {
	c := s.Client(t)
	instance := s.AddInstance(t)
	expires := time.Date(2033, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, name := range []string{instance, instance + "/snap0"} {
		alias := testkit.Unique("published")
		image, err := c.Images.CreateFromInstance(t.Context(), name, &lxd.CreateFromInstanceOptions{
			Public: true, Properties: map[string]string{"description": "of " + name}, Aliases: []lxd.Alias{{Name: alias}},
			Compression: "none", ExpiresAt: expires, Wait: true, Progress: func(lxd.Progress) {},
		})
		require.NoError(t, err, name)
		testkit.DeleteAfter(t, image)
		require.Equal(t, "of "+name, image.Properties["description"])
		require.Len(t, image.Fingerprint, 64)
		require.True(t, image.Public)
		require.True(t, image.ExpiresAt.Equal(expires), image.ExpiresAt)
		// A snapshot of the same content, published in the same second, is the same image.
		require.Contains(t, image.Aliases, lxd.Alias{Name: alias})
	}
	_, err := c.Images.CreateFromInstance(t.Context(), "no-such-instance", &lxd.CreateFromInstanceOptions{Wait: true})
	require.Error(t, err)
	if s.Fake != nil {
		running := testkit.Unique("running")
		s.Fake.AddInstance(running, &lxdtest.InstanceOptions{Running: true})
		_, err := c.Images.CreateFromInstance(t.Context(), running, &lxd.CreateFromInstanceOptions{Wait: true})
		require.Error(t, err)
	}
}

func testFromInstanceSplit(t *testing.T, s *subject) {
	c := s.Client(t)
	instance := s.AddInstance(t)
	for _, name := range []string{instance, instance + "/snap0"} {
		alias := testkit.Unique("split")
		image, err := c.Images.CreateFromInstance(t.Context(), name, &lxd.CreateFromInstanceOptions{
			Split: true, Filename: alias, Properties: map[string]string{"description": "of " + name}, Aliases: []lxd.Alias{{Name: alias}},
			Compression: "none", Wait: true,
		})
		if !s.splits(t) {
			s.unsupported(t, err, "instance_publish_split")
			return
		}
		require.NoError(t, err, name)
		testkit.DeleteAfter(t, image)
		require.Equal(t, lxd.Container, image.Type)
		if name == instance {
			require.Equal(t, alias, image.Filename)
		}
		require.Contains(t, image.Aliases, lxd.Alias{Name: alias})
		files, err := image.ExportTo(t.Context(), t.TempDir(), nil)
		require.NoError(t, err)
		metadata, err := os.ReadFile(files.Metadata)
		require.NoError(t, err)
		rootfs, err := os.ReadFile(files.Rootfs)
		require.NoError(t, err)
		require.Equal(t, image.Fingerprint, lxdtest.Fingerprint(metadata, rootfs))
		require.EqualValues(t, len(metadata)+len(rootfs), image.Size)
	}
}

func testLocations(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	info, err := c.Server(t.Context())
	require.NoError(t, err)
	if !info.Has("image_locations") {
		require.Empty(t, image.Locations)
		s.results.set(s.Column, "Image.Locations", "none: no image_locations")
		return
	}
	require.Equal(t, []string{"none"}, image.Locations)
}

func testEntitlements(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	_, err := c.Images.GetWithEntitlements(t.Context(), image.Fingerprint, "can_edit")
	info, ierr := c.Server(t.Context())
	require.NoError(t, ierr)
	if !info.Has("entities_with_entitlements") {
		s.unsupported(t, err, "entities_with_entitlements")
		return
	}
	// The client is an administrator, whose permissions are not fine-grained.
	var refused *lxd.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, http.StatusBadRequest, refused.StatusCode)
}

func testExportUnified(t *testing.T, s *subject) {
	c := s.Client(t)
	data := testkit.Unified(t, 3<<20)
	image, err := c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true, Filename: "../../etc/passwd"})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	export, err := image.Export(t.Context(), nil)
	require.NoError(t, err)
	require.False(t, export.Split())
	require.EqualValues(t, len(data), export.Size())
	require.NotContains(t, export.Filename(), "/")
	got, err := io.ReadAll(export)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	require.ErrorIs(t, export.Next(), io.EOF)
	require.NoError(t, export.Close())

	export, err = image.Export(t.Context(), nil)
	require.NoError(t, err)
	var buffer bytes.Buffer
	n, err := io.Copy(&buffer, export) // by WriteTo
	require.NoError(t, err)
	require.EqualValues(t, len(data), n)
	require.True(t, bytes.Equal(data, buffer.Bytes()))
	require.NoError(t, export.Close())

	export, err = image.Export(t.Context(), nil)
	require.NoError(t, err)
	_, err = io.ReadFull(export, make([]byte, 1000))
	require.NoError(t, err)
	require.NoError(t, export.Close(), "closing early is fine")
}

func testExportSplit(t *testing.T, s *subject) {
	c := s.Client(t)
	metadata, rootfs := lxdtest.SplitImage(rand.Text(), 3<<20)
	image, err := c.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(rootfs), Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	for _, skip := range []bool{false, true} {
		export, err := image.Export(t.Context(), nil)
		require.NoError(t, err)
		require.True(t, export.Split())
		if !skip {
			got, err := io.ReadAll(export)
			require.NoError(t, err)
			require.True(t, bytes.Equal(metadata, got))
		}
		require.NoError(t, export.Next())
		got, err := io.ReadAll(export)
		require.NoError(t, err)
		require.True(t, bytes.Equal(rootfs, got))
		require.ErrorIs(t, export.Next(), io.EOF)
		require.NoError(t, export.Close())
	}
}

func testExportTo(t *testing.T, s *subject) {
	c := s.Client(t)
	data := testkit.Unified(t, 3<<20)
	image, err := c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	metadata, rootfs := lxdtest.SplitImage(rand.Text(), 3<<20)
	split, err := c.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(rootfs), Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, split)
	dir := t.TempDir()
	for range 2 { // the second time they are there
		files, err := image.ExportTo(t.Context(), dir, nil)
		require.NoError(t, err)
		require.Empty(t, files.Rootfs)
		requireFile(t, files.Image, data)
		files, err = split.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Name: "split", Sync: true})
		require.NoError(t, err)
		requireFile(t, files.Metadata, metadata)
		requireFile(t, files.Rootfs, rootfs)
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 3, "nothing else is left")

	// Over several connections, if the content has parts.
	dir = t.TempDir()
	files, err := image.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: 3})
	require.NoError(t, err)
	testkit.RequireExported(t, dir, files, data)
	dir = t.TempDir()
	files, err = split.ExportTo(t.Context(), dir, &lxd.ExportToOptions{Connections: 3})
	require.NoError(t, err)
	testkit.RequireExported(t, dir, files, metadata, rootfs)
}

func requireFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), path)
}

func testUpdate(t *testing.T, s *subject) {
	c := s.Client(t)
	profile := s.AddProfile(t)
	expires := time.Date(2035, 1, 1, 0, 0, 0, 0, time.UTC)
	image := testkit.Upload(t, c, &lxd.CreateOptions{Profiles: []string{profile}, ExpiresAt: expires})

	image.Public = true
	image.Properties["new"] = "a value"
	delete(image.Properties, "os")
	require.NoError(t, image.Update(t.Context(), nil))
	read, err := c.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	require.True(t, read.Public)
	require.Equal(t, "a value", read.Properties["new"])
	require.NotContains(t, read.Properties, "os")
	require.Equal(t, []string{profile}, read.Profiles, "not reset")
	require.True(t, read.ExpiresAt.Equal(expires), "not reset")

	// Out of a list, and twice in a row.
	images, err := c.Images.All(t.Context(), nil)
	require.NoError(t, err)
	listed := images[slices.IndexFunc(images, func(i *lxd.Image) bool { return i.Fingerprint == image.Fingerprint })]
	listed.AutoUpdate = true
	require.NoError(t, listed.Update(t.Context(), nil))
	listed.ExpiresAt = time.Time{}
	listed.Profiles = []string{"default"}
	require.NoError(t, listed.Update(t.Context(), nil))
	read, err = c.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	require.True(t, read.AutoUpdate)
	require.True(t, read.ExpiresAt.IsZero(), "the zero time means never")
	require.Equal(t, []string{"default"}, read.Profiles)
}

func testUpdateConflict(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	profile := s.AddProfile(t)
	for name, change := range map[string]func(*lxd.Image){
		"properties": func(i *lxd.Image) { i.Properties["by"] = "another" },
		"profiles":   func(i *lxd.Image) { i.Profiles = []string{profile} },
		"expiry":     func(i *lxd.Image) { i.ExpiresAt = time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC) },
		"public":     func(i *lxd.Image) { i.Public = !i.Public },
	} {
		mine, err := c.Images.Get(t.Context(), image.Fingerprint)
		require.NoError(t, err)
		theirs, err := c.Images.Get(t.Context(), image.Fingerprint)
		require.NoError(t, err)
		change(theirs)
		require.NoError(t, theirs.Update(t.Context(), nil), name)
		mine.Properties["by"] = "me"
		require.ErrorIs(t, mine.Update(t.Context(), nil), lxd.ErrConflict, name)
		now, err := c.Images.Get(t.Context(), image.Fingerprint)
		require.NoError(t, err)
		require.NotEqual(t, "me", now.Properties["by"], name)
	}
}

func testAddAlias(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	alias := testkit.Unique("add")
	require.NoError(t, image.AddAlias(t.Context(), alias, "what it is"))
	require.Equal(t, []lxd.Alias{{Name: alias, Description: "what it is"}}, image.Aliases)
	require.NoError(t, image.AddAlias(t.Context(), alias, ""), "it has it")
	require.Equal(t, []lxd.Alias{{Name: alias, Description: "what it is"}}, image.Aliases)
	require.ErrorIs(t, testkit.Upload(t, c, nil).AddAlias(t.Context(), alias, ""), lxd.ErrExists)
	read, err := c.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	require.Equal(t, []lxd.Alias{{Name: alias, Description: "what it is"}}, read.Aliases)
}

func testSetAlias(t *testing.T, s *subject) {
	c := s.Client(t)
	one, two := testkit.Upload(t, c, nil), testkit.Upload(t, c, nil)
	alias := testkit.Unique("set")
	require.NoError(t, one.SetAlias(t.Context(), alias, "first"))
	require.NoError(t, two.SetAlias(t.Context(), alias, "second"))
	got, err := c.Aliases.Get(t.Context(), alias)
	require.NoError(t, err)
	require.Equal(t, two.Fingerprint, got.Target)
	require.Equal(t, "second", got.Description)
	metadata, disk := lxdtest.VMImage(rand.Text(), 0)
	vm, err := c.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(disk), Type: lxd.VirtualMachine, Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, vm)
	require.NoError(t, vm.SetAlias(t.Context(), alias, "third"), "from a container's image to a virtual machine's")
	got, err = c.Aliases.Get(t.Context(), alias)
	require.NoError(t, err)
	require.Equal(t, lxd.Alias{Name: alias, Description: "third", Target: vm.Fingerprint, Type: lxd.VirtualMachine}, got)
}

func testDeleteAlias(t *testing.T, s *subject) {
	c := s.Client(t)
	one, two := testkit.Upload(t, c, nil), testkit.Upload(t, c, nil)
	alias := testkit.Unique("delete")
	require.NoError(t, one.AddAlias(t.Context(), alias, ""))
	require.ErrorIs(t, two.DeleteAlias(t.Context(), alias), lxd.ErrConflict, "it is the other's")
	require.NoError(t, one.DeleteAlias(t.Context(), alias))
	require.Empty(t, one.Aliases)
	require.ErrorIs(t, one.DeleteAlias(t.Context(), alias), lxd.ErrNotFound)
}

func testAliases(t *testing.T, s *subject) {
	c := s.Client(t)
	one, two := testkit.Upload(t, c, nil), testkit.Upload(t, c, nil)
	name, newName := testkit.Unique("alias"), testkit.Unique("renamed")
	require.NoError(t, c.Aliases.Create(t.Context(), lxd.Alias{Name: name, Description: "d", Target: one.Fingerprint}))
	all, err := c.Aliases.All(t.Context())
	require.NoError(t, err)
	require.Contains(t, all, lxd.Alias{Name: name, Description: "d", Target: one.Fingerprint, Type: lxd.Container})
	require.NoError(t, c.Aliases.Update(t.Context(), name, func(a *lxd.Alias) { a.Description, a.Target = "e", two.Fingerprint }))
	require.ErrorIs(t, c.Aliases.Update(t.Context(), name, func(*lxd.Alias) {
		require.NoError(t, one.SetAlias(t.Context(), name, "by another"))
	}), lxd.ErrConflict)
	metadata, disk := lxdtest.VMImage(rand.Text(), 0)
	vm, err := c.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(disk), Type: lxd.VirtualMachine, Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, vm)
	require.ErrorIs(t, vm.AddAlias(t.Context(), name, ""), lxd.ErrExists, "a container's and a virtual machine's image cannot share a name")
	other := testkit.Unique("taken")
	require.NoError(t, c.Aliases.Set(t.Context(), lxd.Alias{Name: other, Target: two.Fingerprint}))
	require.ErrorIs(t, c.Aliases.Rename(t.Context(), name, other), lxd.ErrExists)
	require.NoError(t, c.Aliases.Rename(t.Context(), name, newName))
	_, err = c.Aliases.Get(t.Context(), name)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	require.NoError(t, c.Aliases.Delete(t.Context(), newName))
	require.ErrorIs(t, c.Aliases.Delete(t.Context(), newName), lxd.ErrNotFound)
	require.Error(t, c.Aliases.Set(t.Context(), lxd.Alias{Name: testkit.Unique("dangling"), Target: strings.Repeat("0", 64)}))
}

func testOddAliases(t *testing.T, s *subject) {
	c := s.Client(t).InProject(s.AddProject(t)) // ".." is ".." to every run of this
	one, two := testkit.Upload(t, c, nil), testkit.Upload(t, c, nil)
	suffix := testkit.Unique("")
	// Each must be itself, and no other of them.
	odd := []string{"a/b", "a b", "a?b", "a#b", "50%25", "50%", "日本", "a", "..", ".", "a&b=c", "a+b", `a"b`, "a;b", "a:b", "a@b", "%2F", "a//b", "a\\b"}
	for n := range odd {
		if odd[n] != ".." && odd[n] != "." {
			odd[n] += suffix
		}
	}
	odd = slices.DeleteFunc(odd, func(name string) bool {
		err := one.SetAlias(t.Context(), name, "about "+name)
		if refused := s.refusesAlias(name); refused {
			require.ErrorContains(t, err, "Invalid image alias name", name)
			return true
		}
		require.NoError(t, err, name)
		return false
	})
	read, err := c.Images.Get(t.Context(), one.Fingerprint)
	require.NoError(t, err)
	require.Len(t, read.Aliases, len(odd))
	for n, name := range odd {
		got, err := c.Aliases.Get(t.Context(), name)
		require.NoError(t, err, name)
		require.Equal(t, lxd.Alias{Name: name, Description: "about " + name, Target: one.Fingerprint, Type: lxd.Container}, got)
		require.NoError(t, two.SetAlias(t.Context(), name, ""), name)
		require.NoError(t, two.DeleteAlias(t.Context(), name), name)
		read, err = c.Images.Get(t.Context(), one.Fingerprint)
		require.NoError(t, err)
		require.Len(t, read.Aliases, len(odd)-n-1, "deleting %q deleted another", name)
	}
}

func testRefresh(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	_, err := image.Refresh(t.Context(), &lxd.RefreshOptions{Wait: true})
	if err != nil {
		// An image that came from nowhere cannot be refreshed; the daemons say
		// so as an operation.
		testkit.ErrOf[*lxd.OperationError](t, err)
	}
	require.NotNil(t, image.Operation())

	source := streamstest.NewServer(streamstest.Tree([]streamstest.Product{{
		Name: "product", Aliases: []string{"rolling"}, OS: "Distro", Release: "1",
		Versions: []streamstest.Version{{Serial: "20240101", Family: "both", Unified: testkit.Unified(t, 0)}},
	}}, nil))
	t.Cleanup(source.Close)
	alias := testkit.Unique("rolling")
	image, err = c.Images.CreateFromSimplestreams(t.Context(), source.URL, "rolling", &lxd.CreateFromSimplestreamsOptions{
		Via: lxd.ViaServer, AutoUpdate: true, Wait: true, Aliases: []lxd.Alias{{Name: alias}},
	})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	require.True(t, image.AutoUpdate)
	require.NotNil(t, image.UpdateSource)
	require.Equal(t, "rolling", image.UpdateSource.Alias)
	same, err := image.Refresh(t.Context(), &lxd.RefreshOptions{Wait: true})
	require.NoError(t, err)
	require.Same(t, image, same)
	require.Equal(t, false, image.Operation().Status().Metadata["refreshed"])
}

func testRefreshFresh(t *testing.T, s *subject) {
	c := s.Client(t)
	product := streamstest.Product{Name: "product", Aliases: []string{"rolling"}, OS: "Distro", Release: "1",
		Versions: []streamstest.Version{{Serial: "20240101", Family: "both", Unified: testkit.Unified(t, 0)}}}
	source := streamstest.NewServer(streamstest.Tree([]streamstest.Product{product}, nil))
	t.Cleanup(source.Close)
	alias := testkit.Unique("rolling")
	image, err := c.Images.CreateFromSimplestreams(t.Context(), source.URL, "rolling", &lxd.CreateFromSimplestreamsOptions{
		Via: lxd.ViaServer, Wait: true, Aliases: []lxd.Alias{{Name: alias}},
	})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	same, err := image.Refresh(t.Context(), &lxd.RefreshOptions{Fresh: true})
	require.NoError(t, err)
	require.Same(t, image, same)
	content := testkit.Unified(t, 0)
	product.Versions = append(product.Versions, streamstest.Version{Serial: "20240202", Family: "both", Unified: content})
	for path, file := range streamstest.Tree([]streamstest.Product{product}, nil) {
		source.Set(path, file)
	}
	newer, err := image.Refresh(t.Context(), &lxd.RefreshOptions{Fresh: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, newer)
	require.Equal(t, lxdtest.Fingerprint(content), newer.Fingerprint)
	found, err := c.Images.GetByAlias(t.Context(), alias)
	require.NoError(t, err)
	require.Equal(t, newer.Fingerprint, found.Fingerprint)
}

func testResolve(t *testing.T, s *subject) {
	c := s.Client(t)
	alias := testkit.Unique("resolved")
	image := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: alias}}})
	for _, ref := range []string{alias, image.Fingerprint, image.Fingerprint[:20]} {
		found, err := c.Images.Resolve(t.Context(), ref, &lxd.ResolveOptions{Type: lxd.Container, Architecture: "amd64"})
		require.NoError(t, err, ref)
		require.Equal(t, image.Fingerprint, found.Fingerprint)
		_, err = c.Images.Resolve(t.Context(), ref, &lxd.ResolveOptions{Type: lxd.VirtualMachine})
		require.ErrorIs(t, err, lxd.ErrNotFound, ref)
	}
}

func testImagesUpdate(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	updated, err := c.Images.Update(t.Context(), image.Fingerprint[:20], func(i *lxd.Image) error {
		i.Properties["new"] = "a value"
		return nil
	}, nil)
	require.NoError(t, err)
	require.Equal(t, "a value", updated.Properties["new"])
	read, err := c.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	require.Equal(t, updated.Properties, read.Properties)
}

func testImagesDelete(t *testing.T, s *subject) {
	c := s.Client(t)
	alias := testkit.Unique("deleted")
	image := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: alias}}})
	require.NoError(t, c.Images.Delete(t.Context(), alias, &lxd.DeleteOptions{Wait: true}))
	_, err := c.Images.Get(t.Context(), image.Fingerprint)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	require.ErrorIs(t, c.Images.Delete(t.Context(), alias, nil), lxd.ErrNotFound)
}

func testContent(t *testing.T, s *subject) {
	data := testkit.Unified(t, 100_000)
	image, err := s.Client(t).Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	content, err := image.Content(t.Context(), nil)
	require.NoError(t, err)
	require.EqualValues(t, len(data), content.Size())
	for _, offset := range []int64{50_000, 0} {
		_, err = content.Seek(offset, io.SeekStart)
		require.NoError(t, err)
		got, err := io.ReadAll(content)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data[offset:], got), offset)
	}
	require.NoError(t, content.Close())
}

func testVerifyFiles(t *testing.T, s *subject) {
	image := testkit.Upload(t, s.Client(t), nil)
	files, err := image.ExportTo(t.Context(), t.TempDir(), nil)
	require.NoError(t, err)
	require.NoError(t, files.Verify(t.Context(), image.Fingerprint))
	require.NoError(t, os.WriteFile(files.Image, []byte("damaged"), 0o600))
	testkit.ErrOf[*lxd.FingerprintError](t, files.Verify(t.Context(), image.Fingerprint))
}

func testFromInstanceExisting(t *testing.T, s *subject) {
	c := s.Client(t)
	instance := s.AddInstance(t) + "/snap0"
	first, err := c.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{Compression: "none", Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, first)
	// The content of a second publication is the same, or differs in its time.
	second, err := c.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{
		Compression: "none", Wait: true, Properties: map[string]string{"second": "yes"},
	})
	require.NoError(t, err)
	testkit.DeleteAfter(t, second)
	require.Equal(t, "yes", second.Properties["second"])
}

func testDeleteReplaced(t *testing.T, s *subject) {
	c := s.Client(t)
	aliases := []lxd.Alias{{Name: testkit.Unique("replaced")}}
	old := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: aliases})
	image := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: aliases, ReuseAliases: true, DeleteReplaced: true})
	require.Len(t, image.Aliases, 1)
	_, err := c.Images.Get(t.Context(), old.Fingerprint)
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

func testDelete(t *testing.T, s *subject) {
	c := s.Client(t)
	for _, wait := range []bool{true, false} {
		image := testkit.Upload(t, c, nil)
		require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: wait}))
		require.NoError(t, image.Wait(t.Context()))
		_, err := c.Images.Get(t.Context(), image.Fingerprint)
		require.ErrorIs(t, err, lxd.ErrNotFound)
		err = image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true})
		require.ErrorIs(t, err, lxd.ErrNotFound)
	}
}

func testSecret(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	secret, err := image.Secret(t.Context())
	require.NoError(t, err)
	stranger := s.Stranger(t, lxd.Options{})
	_, err = stranger.Images.Get(t.Context(), image.Fingerprint)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	_, err = stranger.Images.GetWithSecret(t.Context(), image.Fingerprint, "wrong")
	require.Error(t, err)
	read, err := stranger.Images.GetWithSecret(t.Context(), image.Fingerprint, secret.Value)
	require.NoError(t, err)
	require.Equal(t, image.Properties, read.Properties)
	export, err := read.Export(t.Context(), nil)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, export)
	require.NoError(t, err)
	require.NoError(t, export.Close())
	require.NoError(t, secret.Revoke(t.Context()))
	require.NoError(t, secret.Revoke(t.Context()), "again")
	status, err := secret.Operation().Refresh(t.Context())
	require.True(t, errors.Is(err, lxd.ErrNotFound) || status.Done())
}

func testCopyMode(t *testing.T, s *subject, mode lxd.CopyMode) {
	source, target := s.Client(t), s.Twin.Client(t)
	for _, split := range []bool{false, true} {
		for _, wait := range []bool{true, false} {
			image := testkit.CopySource(t, source, split)
			if split && wait {
				image.Public = true
				require.NoError(t, image.Update(t.Context(), nil))
			}
			copied, err := image.Copy(t.Context(), target, &lxd.CopyOptions{Mode: mode, CopyAliases: true, Wait: wait})
			if mode == lxd.CopyPush && !s.Pushes(t) {
				s.unsupported(t, err, "images_push_relay")
				return
			}
			require.NoError(t, err)
			require.NoError(t, copied.Wait(t.Context()))
			testkit.DeleteAfter(t, copied.Image)
			require.Equal(t, mode, copied.Mode)
			testkit.RequireCopy(t, image, copied)

			again, err := image.Copy(t.Context(), target, &lxd.CopyOptions{Mode: mode, Wait: wait})
			require.NoError(t, err, "what is there is not copied again")
			require.Empty(t, again.Mode)
			_, err = image.Copy(t.Context(), target, &lxd.CopyOptions{Mode: mode, IfExists: lxd.ErrorIfExists})
			require.ErrorIs(t, err, lxd.ErrExists)
		}
	}

	// A virtual machine's image.
	metadata, disk := lxdtest.VMImage(rand.Text(), 100_000)
	machine, err := source.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{
		Rootfs: bytes.NewReader(disk), Type: lxd.VirtualMachine, Filename: "disk.qcow2", Wait: true,
	})
	require.NoError(t, err)
	testkit.DeleteAfter(t, machine)
	vm, err := machine.Copy(t.Context(), target, &lxd.CopyOptions{Mode: mode, Wait: true})
	if mode == lxd.CopyPush {
		require.ErrorIs(t, err, lxd.ErrUnsupported, "it would arrive as a container's")
	} else {
		require.NoError(t, err)
		testkit.DeleteAfter(t, vm.Image)
		testkit.RequireCopy(t, machine, vm)
	}

	// Everything else.
	profile := s.Twin.AddProfile(t)
	image := testkit.CopySource(t, source, false)
	yes, never := true, time.Time{}
	copied, err := image.Copy(t.Context(), target, &lxd.CopyOptions{
		Mode: mode, Wait: true, Public: &yes, Properties: map[string]string{"only": "this"}, Profiles: []string{profile}, ExpiresAt: &never,
	})
	require.NoError(t, err)
	testkit.DeleteAfter(t, copied.Image)
	read, err := target.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	require.True(t, read.Public)
	require.Equal(t, map[string]string{"only": "this"}, read.Properties)
	require.Equal(t, []string{profile}, read.Profiles)
	require.Empty(t, read.Aliases)
	require.True(t, read.ExpiresAt.IsZero(), read.ExpiresAt)

	// An alias that is another image's at the target.
	other := testkit.Upload(t, target, nil)
	image = testkit.CopySource(t, source, false)
	require.NoError(t, other.AddAlias(t.Context(), image.Aliases[0].Name, ""))
	_, err = image.Copy(t.Context(), target, &lxd.CopyOptions{Mode: mode, CopyAliases: true, Wait: true})
	require.ErrorIs(t, err, lxd.ErrExists)
	_, err = target.Images.Get(t.Context(), image.Fingerprint)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	copied, err = image.Copy(t.Context(), target, &lxd.CopyOptions{Mode: mode, CopyAliases: true, Wait: true, ReuseAliases: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, copied.Image)
	testkit.RequireCopy(t, image, copied)
}

func testCopyPull(t *testing.T, s *subject)  { testCopyMode(t, s, lxd.CopyPull) }
func testCopyPush(t *testing.T, s *subject)  { testCopyMode(t, s, lxd.CopyPush) }
func testCopyRelay(t *testing.T, s *subject) { testCopyMode(t, s, lxd.CopyRelay) }

func testCopyAuto(t *testing.T, s *subject) {
	image := testkit.CopySource(t, s.Client(t), false)
	copied, err := image.Copy(t.Context(), s.Twin.Client(t), &lxd.CopyOptions{CopyAliases: true, Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, copied.Image)
	require.Equal(t, lxd.CopyPull, copied.Mode)
	require.Empty(t, copied.Failed)
	testkit.RequireCopy(t, image, copied)
}

func testCopyProject(t *testing.T, s *subject) {
	from, to := s.Client(t).InProject(s.AddProject(t)), s.Twin.Client(t).InProject(s.Twin.AddProject(t))
	for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay} {
		if mode == lxd.CopyPush && !s.Pushes(t) {
			continue
		}
		image := testkit.CopySource(t, from, false)
		copied, err := image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, CopyAliases: true, Wait: true})
		require.NoError(t, err, mode)
		testkit.DeleteAfter(t, copied.Image)
		require.Equal(t, to.Project(), copied.Project)
		testkit.RequireCopy(t, image, copied)
		// And to another project of the same server.
		sibling := s.Client(t)
		copied, err = image.Copy(t.Context(), sibling, &lxd.CopyOptions{Mode: mode, CopyAliases: true, Wait: true})
		require.NoError(t, err, mode)
		testkit.DeleteAfter(t, copied.Image)
		testkit.RequireCopy(t, image, copied)
	}
}

func testInProject(t *testing.T, s *subject) {
	c := s.Client(t)
	project := s.AddProject(t)
	inside := c.InProject(project)
	require.Equal(t, project, inside.Project())
	require.Equal(t, "default", c.Project())
	image := testkit.Upload(t, inside, nil)
	require.Equal(t, project, image.Project)
	_, err := c.Images.Get(t.Context(), image.Fingerprint)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	require.NoError(t, image.AddAlias(t.Context(), "inside", ""))
	_, err = c.Aliases.Get(t.Context(), "inside")
	require.ErrorIs(t, err, lxd.ErrNotFound)
	_, err = c.InProject("no-such-project").Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

// testCreateFrom creates an image from a reader, and from an image of the twin.
func testFromOCI(t *testing.T, s *subject) {
	c := s.Client(t)
	registry := ociregistry.New(ociregistry.Options{})
	t.Cleanup(registry.Close)
	name := testkit.Unique("app")
	want := registry.Add(name, "v1", "amd64", name)
	image, err := c.Images.CreateFrom(t.Context(), lxd.FromOCI(registry.URL, name+":v1", nil), &lxd.CreateFromOptions{Wait: true})
	info, ierr := c.Server(t.Context())
	require.NoError(t, ierr)
	if !info.Has("instance_oci") {
		s.unsupported(t, err, "instance_oci")
		return
	}
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	require.Equal(t, want.Fingerprint(), image.Fingerprint)
	require.Equal(t, "oci", image.Properties["type"])
}

func testCreateFrom(t *testing.T, s *subject) {
	c := s.Client(t)
	far := testkit.Upload(t, s.Twin.Client(t), nil)
	for _, source := range []lxd.Source{lxd.FromReader(bytes.NewReader(testkit.Unified(t, 0)), nil), lxd.FromImage(far.Client(), far.Fingerprint, nil)} {
		resolved, err := source.Resolve(t.Context(), c)
		require.NoError(t, err)
		image, err := c.Images.CreateFrom(t.Context(), source, &lxd.CreateFromOptions{Wait: true})
		require.NoError(t, err)
		testkit.DeleteAfter(t, image)
		require.Equal(t, resolved.Fingerprint, image.Fingerprint)
	}
}

// testEnsure replaces an image by another, and finds then that nothing is to do.
func testEnsure(t *testing.T, s *subject) {
	c := s.Client(t)
	opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: testkit.Unique("ensured")}}, DeleteReplaced: true}
	for range 2 {
		content := testkit.Unified(t, 0)
		source := lxd.FromReader(bytes.NewReader(content), nil)
		for _, changed := range []bool{true, false} {
			ensured, err := c.Images.Ensure(t.Context(), source, opts)
			require.NoError(t, err)
			testkit.DeleteAfter(t, ensured.Image)
			require.Equal(t, lxdtest.Fingerprint(content), ensured.Image.Fingerprint)
			require.Equal(t, changed, len(ensured.Changes) > 0)
		}
	}
}

func testProjects(t *testing.T, s *subject) {
	own, shared := s.AddProject(t), s.AddSharedProject(t)
	projects, err := s.Client(t).Projects(t.Context())
	require.NoError(t, err)
	images := map[string]bool{}
	for _, p := range projects {
		images[p.Name] = p.OwnImages()
	}
	require.True(t, images["default"])
	require.True(t, images[own])
	require.Contains(t, images, shared)
	require.False(t, images[shared])
}

func testDo(t *testing.T, s *subject) {
	c := s.Client(t)
	var names []string
	op, err := c.Do(t.Context(), http.MethodGet, "/1.0/projects", nil, &names)
	require.NoError(t, err)
	require.Nil(t, op)
	require.Contains(t, names, "/1.0/projects/default")
	_, err = c.Do(t.Context(), http.MethodGet, "/1.0/projects/none", nil, nil)
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

// testWatch sees an image that is there, and one that is added.
func testWatch(t *testing.T, s *subject) {
	c := s.Client(t)
	properties := map[string]string{"set": testkit.Unique("set")}
	kinds := []lxd.ImageChangeKind{}
	upload := func() { testkit.Upload(t, c, &lxd.CreateOptions{Properties: properties}) }
	upload()
	for change, err := range c.Images.Watch(t.Context(), &lxd.WatchOptions{Properties: properties}) {
		require.NoError(t, err)
		kinds = append(kinds, change.Kind)
		if change.Kind == lxd.ImagesSynced {
			upload()
		}
		if change.Kind == lxd.ImageAdded {
			break
		}
	}
	require.Equal(t, []lxd.ImageChangeKind{lxd.ImagePresent, lxd.ImagesSynced, lxd.ImageAdded}, kinds)
}

// testDistribute brings an image to a server, which has it then.
func testDistribute(t *testing.T, s *subject) {
	image := testkit.CopySource(t, s.Client(t), false)
	for _, mode := range []lxd.CopyMode{lxd.CopyPull, ""} {
		results := 0
		for delivery, err := range image.Distribute(t.Context(), []*lxd.Client{s.Twin.Client(t)}, &lxd.DistributeOptions{Copy: lxd.CopyOptions{CopyAliases: true}}) {
			results++
			require.NoError(t, err)
			require.Equal(t, mode, delivery.Mode)
			testkit.RequireCopy(t, image, &lxd.Copied{Image: delivery.Image, Mode: delivery.Mode})
			testkit.DeleteAfter(t, delivery.Image)
		}
		require.Equal(t, 1, results)
	}
}

// testPrune deletes all but the newest image with a property.
func testPrune(t *testing.T, s *subject) {
	c := s.Client(t)
	properties := map[string]string{"set": testkit.Unique("set")}
	old := testkit.Upload(t, c, &lxd.CreateOptions{Properties: properties})
	newer := testkit.Upload(t, c, &lxd.CreateOptions{Properties: properties})
	pruned, err := c.Images.Prune(t.Context(), &lxd.PruneOptions{Keep: 1, Properties: properties})
	require.NoError(t, err)
	require.Len(t, pruned.Deleted, 1)
	require.Equal(t, old.Fingerprint, pruned.Deleted[0].Fingerprint)
	require.Len(t, pruned.Kept, 1)
	require.Equal(t, newer.Fingerprint, pruned.Kept[0].Fingerprint)
}

// testSourceForInstance returns an alias of a server that a daemon can read.
func testSourceForInstance(t *testing.T, s *subject) {
	c := s.Client(t)
	source, err := c.Images.InstanceSource(t.Context(), lxd.FromSimplestreams("https://localhost", "debian/13", nil))
	require.NoError(t, err)
	require.Equal(t, &lxd.InstanceSource{Type: "image", Mode: "pull", Server: "https://localhost", Protocol: "simplestreams", Alias: "debian/13"}, source)
	_, err = c.Images.InstanceSource(t.Context(), lxd.FromFile("image.tar", nil))
	require.ErrorIs(t, err, lxd.ErrUnsupported)
}

// testInstanceSource creates an instance, finds the image's users, and deletes it.
func testInstanceSource(t *testing.T, s *subject) {
	c := s.Client(t)
	if s.Real != nil && !s.Clustered() {
		require.NoError(t, s.Real.CreatePool(t.Context()))
	}
	image := testkit.Upload(t, c, nil)
	source, err := image.InstanceSource(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, image.Fingerprint, source.Fingerprint)
	used, err := image.UsedBy(t.Context())
	require.NoError(t, err)
	require.Empty(t, used)
	if s.Clustered() {
		return // its members have no storage pool
	}
	name := testkit.Unique("instance")
	op, err := c.Do(t.Context(), http.MethodPost, "/1.0/instances", map[string]any{
		"name": name, "source": source,
		"devices": map[string]any{"root": map[string]any{"type": "disk", "path": "/", "pool": testdaemon.PoolName}},
	}, nil)
	require.NoError(t, err)
	require.NoError(t, op.Wait(t.Context()))
	used, err = image.UsedBy(t.Context())
	require.NoError(t, err)
	require.Len(t, used, 1)
	require.Equal(t, name, used[0].Name)
	op, err = c.Do(t.Context(), http.MethodDelete, "/1.0/instances/"+name, nil, nil)
	require.NoError(t, err)
	require.NoError(t, op.Wait(t.Context()))
}

func testOperations(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	secret, err := image.Secret(t.Context())
	require.NoError(t, err)
	operations, err := c.Operations(t.Context())
	require.NoError(t, err)
	found := slices.IndexFunc(operations, func(o *lxd.Operation) bool { return o.ID() == secret.Operation().ID() })
	require.GreaterOrEqual(t, found, 0)
	status, err := operations[found].Refresh(t.Context())
	require.NoError(t, err)
	require.False(t, status.Done())
	require.Equal(t, "token", status.Class)
	require.NoError(t, operations[found].Cancel(t.Context()))
}

func testEvents(t *testing.T, s *subject) {
	c := s.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	image := testkit.Upload(t, c, nil)
	seen := map[string]bool{}
	for event, err := range c.Events(ctx, &lxd.EventsOptions{ImagesOnly: true}) {
		require.NoError(t, err)
		switch {
		case event.Type == lxd.EventConnected:
			require.NoError(t, image.Delete(ctx, nil))
		case event.Lifecycle != nil && event.Lifecycle.Action == "image-deleted" && event.Lifecycle.Fingerprint() == image.Fingerprint:
			seen["lifecycle"] = true
		case event.Operation != nil && event.Operation.Done():
			seen["operation"] = true
		}
		if len(seen) == 2 {
			break
		}
	}
	require.Len(t, seen, 2)
	cancel()
	for _, err := range c.Events(ctx, nil) {
		require.ErrorIs(t, err, context.Canceled)
	}
}

func testCancel(t *testing.T, s *subject) {
	c := s.Client(t)
	image := testkit.Upload(t, c, nil)
	secret, err := image.Secret(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = secret.Operation().Wait(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded, "the end of ctx ends the waiting")
	status, err := secret.Operation().Refresh(t.Context())
	require.NoError(t, err)
	require.False(t, status.Done(), "and not the operation")
	require.NoError(t, secret.Operation().Cancel(t.Context()))
	require.ErrorIs(t, secret.Operation().Wait(t.Context()), lxd.ErrCancelled)
	require.NoError(t, secret.Operation().Cancel(t.Context()), "again")
}

func testRegistries(t *testing.T, s *subject) {
	c := s.Client(t)
	_, err := c.Registries.All(t.Context())
	if info, _ := c.Server(t.Context()); !info.Has("image_registries") {
		s.unsupported(t, err, "image_registries")
		return
	}
	require.NoError(t, err)
	name := testkit.Unique("registry")
	require.NoError(t, c.Registries.Create(t.Context(), lxd.Registry{Name: name, Protocol: "simplestreams", Config: map[string]string{"url": "https://images.example.net"}}))
	registry, err := c.Registries.Get(t.Context(), name)
	require.NoError(t, err)
	require.Equal(t, "https://images.example.net", registry.Config["url"])
	require.NoError(t, c.Registries.Delete(t.Context(), name))
	_, err = c.Registries.Get(t.Context(), name)
	require.ErrorIs(t, err, lxd.ErrNotFound)
}

func testUntrusted(t *testing.T, s *subject) {
	c := s.Client(t)
	hidden := testkit.Upload(t, c, nil)
	mark := rand.Text()
	public := testkit.Upload(t, c, &lxd.CreateOptions{Public: true, Properties: map[string]string{"mark": mark}})
	stranger := s.Stranger(t, lxd.Options{})
	_, err := stranger.Images.All(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrForbidden, "not an empty list that looks like success")
	_, err = stranger.Images.Get(t.Context(), hidden.Fingerprint)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	_, err = stranger.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), nil)
	require.ErrorIs(t, err, lxd.ErrForbidden)
	info, err := stranger.Server(t.Context())
	require.NoError(t, err)
	require.False(t, info.Trusted)
	if s.hidesInfo() {
		require.Empty(t, info.Family)
	} else {
		require.Equal(t, s.Family, info.Family, "known without trust")
	}
	read, err := stranger.Images.Get(t.Context(), public.Fingerprint)
	require.NoError(t, err)
	require.Equal(t, mark, read.Properties["mark"])
	images, err := s.Stranger(t, lxd.Options{PublicOnly: true}).Images.All(t.Context(), &lxd.ListOptions{Properties: map[string]string{"mark": mark}})
	require.NoError(t, err)
	require.Equal(t, []string{public.Fingerprint}, testkit.Fingerprints(images))
	// A public image can be copied by somebody whom its server does not trust.
	copied, err := read.Copy(t.Context(), s.Twin.Client(t), &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, copied.Image)
}
