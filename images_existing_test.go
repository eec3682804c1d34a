package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

func onSubjects(t *testing.T, test func(t *testing.T, s *testkit.Subject)) {
	t.Helper()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) { test(t, s) })
	}
}

// TestCreateAgainWithAlias repeats what succeeded, in every way of giving the content.
func TestCreateAgainWithAlias(t *testing.T) {
	onSubjects(t, func(t *testing.T, s *testkit.Subject) {
		c := s.Client(t)
		data := testkit.Unified(t, 0)
		o := lxd.CreateOptions{Aliases: []lxd.Alias{{Name: testkit.Unique("again")}}, Wait: true}
		first, err := c.Images.Create(t.Context(), bytes.NewReader(data), &o)
		require.NoError(t, err)
		testkit.DeleteAfter(t, first)
		o.Properties = map[string]string{"n": "2"}
		for name, reader := range map[string]io.Reader{"seekable": bytes.NewReader(data), "one-shot": testkit.OneShotReader{Reader: bytes.NewReader(data)}} {
			again, err := c.Images.Create(t.Context(), reader, &o)
			require.NoError(t, err, name)
			require.Equal(t, first.Fingerprint, again.Fingerprint, name)
			require.Equal(t, "2", again.Properties["n"], name)
			require.Len(t, again.Aliases, 1, name)
		}
		if s.Fake != nil {
			uploads := 0
			for _, r := range s.Fake.Requests() {
				if r.Method == http.MethodPost && r.Path == "/1.0/images" {
					uploads++
				}
			}
			require.Equal(t, 2, uploads, "the first, and the one-shot reader; the alias shows that the other is there")
		}

		// Another image may not have the alias.
		other := testkit.Unified(t, 0)
		_, err = c.Images.Create(t.Context(), bytes.NewReader(other), &o)
		require.ErrorIs(t, err, lxd.ErrExists)
		_, err = c.Images.Get(t.Context(), lxdtest.Fingerprint(other))
		require.ErrorIs(t, err, lxd.ErrNotFound, "it was not sent")
		image, err := c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(other)}, &o)
		require.ErrorIs(t, err, lxd.ErrExists)
		require.NotNil(t, image, "only its alias is missing")
		testkit.DeleteAfter(t, image)
		require.Equal(t, lxdtest.Fingerprint(other), image.Fingerprint)
	})
}

// TestQcow2IsAVirtualMachine gives no Type.
func TestQcow2IsAVirtualMachine(t *testing.T) {
	onSubjects(t, func(t *testing.T, s *testkit.Subject) {
		c := s.Client(t)
		metadata, rootfs := lxdtest.SplitImage(testkit.Unique("vm"), 1000)
		rootfs = append([]byte("QFI\xfb\x00\x00\x00\x03"), rootfs...)
		for _, oneShot := range []bool{false, true} {
			var disk io.Reader = bytes.NewReader(rootfs)
			if oneShot {
				disk = testkit.OneShotReader{Reader: disk}
			}
			image, err := c.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: disk, Wait: true})
			require.NoError(t, err)
			require.Equal(t, lxd.VirtualMachine, image.Type)
			testkit.DeleteAfter(t, image)
			_, err = c.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(rootfs), Type: lxd.Container, Wait: true})
			require.ErrorIs(t, err, lxd.ErrExists, "the existing image has another type")
			require.ErrorContains(t, err, "virtual-machine")
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		}
	})
}

// TestCompressions: what the daemons accept is not refused.
func TestCompressions(t *testing.T) {
	testkit.Parallel(t)
	plain := testkit.Unified(t, 0)
	compressed := map[string][]byte{"none": plain}
	for _, tool := range []string{"gzip", "bzip2", "xz", "lzma", "zstd"} {
		cmd := exec.CommandContext(t.Context(), tool, "-c")
		cmd.Stdin = bytes.NewReader(plain)
		out, err := cmd.Output()
		if errors.Is(err, exec.ErrNotFound) {
			continue // the others are tried
		}
		require.NoError(t, err, tool)
		compressed[tool] = out
	}
	onSubjects(t, func(t *testing.T, s *testkit.Subject) {
		c := s.Client(t)
		for name, data := range compressed {
			image, err := c.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
			if err != nil && s.Real != nil {
				require.ErrorContains(t, err, "executable file not found", "the daemon's own decoder is not installed")
				continue
			}
			require.NoError(t, err, name)
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		}
		for _, rootfs := range [][]byte{squashfs(96, 96), make([]byte, 1024), plain} {
			for _, kind := range []lxd.ImageType{lxd.Container, lxd.VirtualMachine} {
				metadata, _ := lxdtest.SplitImage(testkit.Unique("split"), 0)
				image, err := c.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Rootfs: bytes.NewReader(rootfs), Type: kind, Wait: true})
				require.NoError(t, err)
				require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			}
		}
	})
}

// TestAbsentProfileAndInstance match ErrNotFound on every daemon, and no content is
// sent.
func TestAbsentProfileAndInstance(t *testing.T) {
	onSubjects(t, func(t *testing.T, s *testkit.Subject) {
		c := s.Client(t)
		read := false
		_, err := c.Images.Create(t.Context(), io.MultiReader(bytes.NewReader(testkit.Unified(t, 0)), readFunc(func([]byte) (int, error) {
			read = true
			return 0, io.EOF
		})), &lxd.CreateOptions{Profiles: []string{"absent"}})
		require.ErrorIs(t, err, lxd.ErrNotFound)
		require.ErrorContains(t, err, `"absent"`)
		require.False(t, read)
		for _, instance := range []string{"absent", "absent/snap0"} {
			_, err = c.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{Wait: true})
			require.ErrorIs(t, err, lxd.ErrNotFound, instance)
			image, err := c.Images.CreateFromInstance(t.Context(), instance, nil)
			if err == nil {
				err = image.Wait(t.Context())
			}
			require.ErrorIs(t, err, lxd.ErrNotFound, instance)
		}
	})
}

// TestPublishedProperties are merged with those of the instance's image.
func TestPublishedProperties(t *testing.T) {
	onSubjects(t, func(t *testing.T, s *testkit.Subject) {
		c := s.Client(t)
		instance := s.AddInstance(t)
		plain, err := c.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{Wait: true})
		require.NoError(t, err)
		require.NoError(t, plain.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		if s.Real != nil {
			require.NotEmpty(t, plain.Properties["os"], "that of the instance's image")
		}
		want := map[string]string{"description": "published"}
		for name, value := range plain.Properties {
			want[name] = value
		}
		image, err := c.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{
			Properties: map[string]string{"description": "published"}, Wait: true,
		})
		require.NoError(t, err)
		testkit.DeleteAfter(t, image)
		want["description"] = "published"
		require.Equal(t, want, image.Properties)
	})
}

// TestPublishExistingContent publishes one snapshot twice in the same second.
func TestPublishExistingContent(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		now := time.Now()
		f.AddInstance("web", nil)
		var err error
		var first, second *lxd.Image
		for first == nil || first.Fingerprint != second.Fingerprint { // until both are of one second
			require.Less(t, time.Since(now), patience)
			first, err = f.Client.Images.CreateFromInstance(t.Context(), "web", &lxd.CreateFromInstanceOptions{Wait: true})
			require.NoError(t, err)
			second, err = f.Client.Images.CreateFromInstance(t.Context(), "web", &lxd.CreateFromInstanceOptions{
				Properties: map[string]string{"n": "2"}, Aliases: []lxd.Alias{{Name: "web"}}, ReuseAliases: true, Wait: true,
			})
			require.NoError(t, err)
		}
		require.Equal(t, "2", second.Properties["n"])
		require.Equal(t, []lxd.Alias{{Name: "web"}}, second.Aliases)
	})
}

// TestSameMomentLosesTheInsert has another call create the image while this one's
// operation runs, which then fails without a fingerprint.
func TestSameMomentLosesTheInsert(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		for _, o := range []lxd.CreateOptions{{Wait: true}, {}, {IfExists: lxd.ErrorIfExists, Wait: true}} {
			f.Inject(lxdtest.LoseInsert())
			data := testkit.Unified(t, 0)
			o.Aliases, o.Properties = []lxd.Alias{{Name: testkit.Unique("lost")}}, map[string]string{"n": "1"}
			image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), &o)
			if o.IfExists == lxd.ErrorIfExists {
				require.ErrorIs(t, err, lxd.ErrExists)
				continue
			}
			require.NoError(t, err)
			require.NoError(t, image.Wait(t.Context()))
			require.Equal(t, lxdtest.Fingerprint(data), image.Fingerprint)
			require.Equal(t, "1", image.Properties["n"])
			require.Len(t, image.Aliases, 1)
		}
	})
}

// TestPublicationLosesTheInsert has another call store the content at the same moment.
func TestPublicationLosesTheInsert(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		f.AddInstance("web", nil)
		f.Inject(lxdtest.LoseInsert().Times(1))
		image, err := f.Client.Images.CreateFromInstance(t.Context(), "web", &lxd.CreateFromInstanceOptions{
			Properties: map[string]string{"n": "1"}, Aliases: []lxd.Alias{{Name: "web"}}, Wait: true,
		})
		require.NoError(t, err)
		require.Equal(t, "1", image.Properties["n"])
		require.Len(t, image.Aliases, 1)
	})
}

// TestForgottenFailure has the server forget the operation that failed because the
// image exists.
func TestForgottenFailure(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, &lxdtest.Options{ForgetAfter: -1}, nil)
	data := testkit.Unified(t, 0)
	_, err := f.AddImage(data, nil)
	require.NoError(t, err)
	_, err = f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{IfExists: lxd.ErrorIfExists, Wait: true})
	require.ErrorIs(t, err, lxd.ErrExists)
	image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Properties: map[string]string{"n": "1"}, Wait: true})
	require.NoError(t, err)
	require.Equal(t, "1", image.Properties["n"])
	_, err = f.Client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{IfExists: lxd.ErrorIfExists, Wait: true})
	require.NoError(t, err, "its own image")
}

// TestAddAliasAgain succeeds for the image's own alias.
func TestAddAliasAgain(t *testing.T) {
	onSubjects(t, func(t *testing.T, s *testkit.Subject) {
		c := s.Client(t)
		image, other, name := testkit.Upload(t, c, nil), testkit.Upload(t, c, nil), testkit.Unique("own")
		for _, description := range []string{"one", "", "two"} {
			require.NoError(t, image.AddAlias(t.Context(), name, description))
		}
		alias, err := c.Aliases.Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, "two", alias.Description)
		require.ErrorIs(t, other.AddAlias(t.Context(), name, ""), lxd.ErrExists)
	})
}

// TestImportAgain repeats imports, and finds the image that exists with ErrorIfExists.
func TestImportAgain(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		source := imageServer(t)
		data := testkit.Unified(t, 0)
		at := source.Direct("image", streamstest.Direct{Content: data})
		for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaClient} {
			o := lxd.CreateFromURLOptions{Via: via, Aliases: []lxd.Alias{{Name: "again"}}, Wait: true}
			var image *lxd.Image
			for _, n := range []string{"1", "2"} {
				o.Properties = map[string]string{"n": n}
				var err error
				image, err = target.client.Images.CreateFromURL(t.Context(), at, &o)
				require.NoError(t, err)
				require.Equal(t, n, image.Properties["n"])
			}
			o.IfExists = lxd.ErrorIfExists
			_, err := target.client.Images.CreateFromURL(t.Context(), at, &o)
			require.ErrorIs(t, err, lxd.ErrExists)
			require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
		}
	})
}

// TestMissingImageOfSimplestreams matches ErrNotFound, whoever fetches it.
func TestMissingImageOfSimplestreams(t *testing.T) {
	t.Parallel()
	onImportTargets(t, func(t *testing.T, target *importTarget) {
		source := importStreams(t, tree(t, "both", nil))["http"]
		if !target.takesStreams {
			target.fake.AddRegistry("distro", source.URL+"/")
		}
		for _, o := range []lxd.CreateFromSimplestreamsOptions{{Via: lxd.ViaServer}, {AutoUpdate: true}, {}, {Via: lxd.ViaClient}} {
			o.Wait, o.AllowHTTP = true, true
			_, err := target.client.Images.CreateFromSimplestreams(t.Context(), source.URL, "missing", &o)
			require.ErrorIs(t, err, lxd.ErrNotFound)
		}
	})
}

// TestImageThatWasNotWaitedFor says so.
func TestImageThatWasNotWaitedFor(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	stall := f.Inject(lxdtest.StallImages())
	image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), nil)
	require.NoError(t, err)
	for _, call := range []func() error{
		func() error { return image.AddAlias(t.Context(), "a", "") },
		func() error { return image.SetAlias(t.Context(), "a", "") },
		func() error { return image.Update(t.Context(), nil) },
		func() error { _, err := image.Export(t.Context(), nil); return err },
		func() error { _, err := image.ExportTo(t.Context(), t.TempDir(), nil); return err },
		func() error { _, err := image.Secret(t.Context()); return err },
		func() error { _, err := image.Copy(t.Context(), f.Client.InProject("p"), nil); return err },
	} {
		err := call()
		require.ErrorIs(t, err, lxd.ErrInvalid)
		require.ErrorContains(t, err, "Image.Wait")
	}
	stall.Remove()
	require.NoError(t, image.Wait(t.Context()))
	require.NoError(t, image.AddAlias(t.Context(), "a", ""))
}

// TestDeleteReplaced deletes the image that has lost its last alias, and no other.
func TestDeleteReplaced(t *testing.T) {
	onSubjects(t, func(t *testing.T, s *testkit.Subject) {
		c := s.Client(t)
		one, two, kept := testkit.Unique("one"), testkit.Unique("two"), testkit.Unique("kept")
		replaced := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: one}, {Name: two}}})
		named := testkit.Upload(t, c, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: kept}, {Name: kept + "2"}}})
		image := testkit.Upload(t, c, &lxd.CreateOptions{
			Aliases: []lxd.Alias{{Name: one}, {Name: two}, {Name: kept}}, ReuseAliases: true, DeleteReplaced: true,
		})
		require.Len(t, image.Aliases, 3)
		_, err := c.Images.Get(t.Context(), replaced.Fingerprint)
		require.ErrorIs(t, err, lxd.ErrNotFound)
		still, err := c.Images.Get(t.Context(), named.Fingerprint)
		require.NoError(t, err)
		require.Equal(t, []lxd.Alias{{Name: kept + "2"}}, still.Aliases)
	})
}

// TestContextEndsWhileWaiting returns the Image, whose operation goes on unless
// CancelOnDone is set.
func TestContextEndsWhileWaiting(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	for _, cancelled := range []bool{false, true} {
		stall := f.Inject(lxdtest.StallImages())
		ctx, cancel := context.WithCancel(t.Context())
		image, err := f.Client.Images.Create(ctx, bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{
			Wait: true, CancelOnDone: cancelled, Progress: func(p lxd.Progress) {
				if p.Phase == lxd.PhaseServer {
					cancel()
				}
			},
		})
		require.ErrorIs(t, err, context.Canceled)
		require.NotNil(t, image)
		var asked bool
		for _, r := range f.Requests() {
			asked = asked || r.Method == http.MethodDelete && r.Path == "/1.0/operations/"+image.Operation().ID()
		}
		require.Equal(t, cancelled, asked)
		stall.Remove()
		if !cancelled {
			require.NoError(t, image.Wait(t.Context()))
		}
	}
}

// TestOptionsAgree: what is in several structs of options is the same in all.
func TestOptionsAgree(t *testing.T) {
	t.Parallel()
	all := []reflect.Type{
		reflect.TypeFor[lxd.CreateOptions](), reflect.TypeFor[lxd.CreateFromURLOptions](), reflect.TypeFor[lxd.CreateFromSimplestreamsOptions](),
		reflect.TypeFor[lxd.CreateFromInstanceOptions](), reflect.TypeFor[lxd.CopyOptions](),
	}
	everywhere := []string{"Public", "Filename", "Properties", "Profiles", "Aliases", "ReuseAliases", "DeleteReplaced", "ExpiresAt", "IfExists", "Wait", "CancelOnDone", "Progress"}
	for _, name := range everywhere {
		for _, options := range all {
			_, ok := options.FieldByName(name)
			require.True(t, ok, "%s.%s", options, name)
		}
	}
	// In a copy, nil is the source's value.
	pointers := []string{"Public", "AutoUpdate", "ExpiresAt"}
	fields := map[string]reflect.Type{}
	for _, options := range all {
		for n := range options.NumField() {
			f := options.Field(n)
			if options == reflect.TypeFor[lxd.CopyOptions]() && slices.Contains(pointers, f.Name) && f.Type.Kind() == reflect.Pointer {
				f.Type = f.Type.Elem()
			}
			if known, ok := fields[f.Name]; ok {
				require.Equal(t, known, f.Type, "%s.%s", options, f.Name)
			}
			fields[f.Name] = f.Type
		}
	}
	for _, options := range []reflect.Type{reflect.TypeFor[lxd.DeleteOptions](), reflect.TypeFor[lxd.RefreshOptions]()} {
		for _, name := range []string{"Wait", "CancelOnDone"} {
			_, ok := options.FieldByName(name)
			require.True(t, ok, "%s.%s", options, name)
		}
	}
}
