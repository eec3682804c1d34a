package lxd_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// eachDialect runs a test on a server of each dialect.
func eachDialect(t *testing.T, test func(t *testing.T, f *testkit.Fake)) {
	t.Helper()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		t.Run(dialect.String(), func(t *testing.T) {
			t.Parallel()
			test(t, testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect}, nil))
		})
	}
}

func TestGetImage(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		f.AddProject("other", true)
		there := f.Client.InProject("other")
		image := testkit.Upload(t, there, &lxd.CreateOptions{Properties: map[string]string{"mark": "here"}})
		for name, asked := range map[string]string{
			"fingerprint": image.Fingerprint,
			"upper case":  strings.ToUpper(image.Fingerprint),
			"prefix":      image.Fingerprint[:12],
		} {
			read, err := there.Images.Get(t.Context(), asked)
			require.NoError(t, err, name)
			require.Equal(t, image.Fingerprint, read.Fingerprint, name)
			require.Equal(t, "here", read.Properties["mark"], name)
			require.Equal(t, "other", read.Project, name)
		}
		_, err := f.Client.Images.Get(t.Context(), image.Fingerprint)
		require.ErrorIs(t, err, lxd.ErrNotFound, "it is in another project")
		_, err = there.Images.Get(t.Context(), strings.Repeat("0", 12))
		require.ErrorIs(t, err, lxd.ErrNotFound)
	})
}

// TestAmbiguousPrefix: a prefix of two images, or one that is too short for the
// server, is distinguished from a server error.
func TestAmbiguousPrefix(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		byDigit := map[string]int{}
		for n := range 17 { // of which two begin alike
			fingerprint, err := f.AddImage(lxdtest.UnifiedImage(fmt.Sprint("prefix", n), 0), nil)
			require.NoError(t, err)
			byDigit[fingerprint[:1]]++
		}
		for digit, images := range byDigit {
			image, err := f.Client.Images.Get(t.Context(), digit)
			switch {
			case images == 1:
				require.NoError(t, err)
				require.True(t, strings.HasPrefix(image.Fingerprint, digit))
			default:
				require.ErrorIs(t, err, lxd.ErrAmbiguous)
				require.NotEmpty(t, testkit.ErrOf[*lxd.Error](t, err).Hint)
			}
		}
		one := f.Images()[0].Fingerprint
		f.Inject(lxdtest.Status(http.StatusInternalServerError, "the database is broken").On(http.MethodGet, "/1.0/images/*"))
		for _, asked := range []string{one, one[:20]} {
			_, err := f.Client.Images.Get(t.Context(), asked)
			requireKinds(t, err)
			require.ErrorContains(t, err, "the database is broken")
		}
	})
}

func TestGetImageByAlias(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		image := testkit.Upload(t, f.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "by/alias #1"}}})
		read, err := f.Client.Images.GetByAlias(t.Context(), "by/alias #1")
		require.NoError(t, err)
		require.Equal(t, image.Fingerprint, read.Fingerprint)
		_, err = f.Client.Images.GetByAlias(t.Context(), image.Fingerprint)
		require.ErrorIs(t, err, lxd.ErrNotFound, "a fingerprint is no alias")
	})
}

// TestImageExists looks for a fingerprint, its prefix, and an alias, which may
// look like a prefix.
func TestImageExists(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		image := testkit.Upload(t, f.Client, nil)
		alias := "ace"
		if strings.HasPrefix(image.Fingerprint, alias) {
			alias = "bad"
		}
		require.NoError(t, image.AddAlias(t.Context(), alias, ""))
		for asked, want := range map[string]bool{
			image.Fingerprint:       true,
			image.Fingerprint[:12]:  true,
			alias:                   true,
			alias + "d":             false,
			strings.Repeat("f", 64): false,
			"no such alias":         false,
		} {
			exists, err := f.Client.Images.Exists(t.Context(), asked)
			require.NoError(t, err, asked)
			require.Equal(t, want, exists, asked)
		}
		// A server that does not say is not one without the image.
		for _, path := range []string{"/1.0/images/*", "/1.0/images/aliases/*"} {
			broken := f.Inject(lxdtest.Status(http.StatusForbidden, "not for you").On(http.MethodGet, path))
			for _, asked := range []string{image.Fingerprint, "no such alias"} {
				fired := broken.Fired()
				exists, err := f.Client.Images.Exists(t.Context(), asked)
				if broken.Fired() > fired {
					require.ErrorIs(t, err, lxd.ErrForbidden, asked)
					require.False(t, exists)
				} else {
					require.NoError(t, err)
				}
			}
			broken.Remove()
		}
	})
}

// TestShortPrefix: a prefix that LXD 6.9 refuses, and other daemons do not.
func TestShortPrefix(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			c := s.Client(t).InProject(s.AddProject(t))
			image := testkit.Upload(t, c, nil)
			prefix := image.Fingerprint[:6]
			none := "000000"
			if prefix == none {
				none = "111111"
			}
			for _, asked := range []string{prefix, strings.ToUpper(prefix)} {
				read, err := c.Images.Get(t.Context(), asked)
				require.NoError(t, err)
				require.Equal(t, image.Fingerprint, read.Fingerprint)
				exists, err := c.Images.Exists(t.Context(), asked)
				require.NoError(t, err)
				require.True(t, exists)
			}
			_, err := c.Images.Get(t.Context(), none)
			require.ErrorIs(t, err, lxd.ErrNotFound)
			exists, err := c.Images.Exists(t.Context(), none)
			require.NoError(t, err)
			require.False(t, exists)
			for _, asked := range []string{prefix, none, "web"} {
				_, err = c.InProject("no-such-project").Images.Exists(t.Context(), asked)
				require.ErrorIs(t, err, lxd.ErrProjectNotFound, asked)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		c := f.Client
		metadata, disk := lxdtest.VMImage("resolve", 0)
		vm, err := f.AddImage(metadata, &lxdtest.AddOptions{Rootfs: disk, VM: true, Aliases: []string{"web"}})
		require.NoError(t, err)
		var container string // begins with the same digit
		for n := 0; container == "" || container[0] != vm[0]; n++ {
			container = lxdtest.Fingerprint(lxdtest.UnifiedImage(fmt.Sprint("resolve", n), 0))
			if container[0] == vm[0] {
				_, err = f.AddImage(lxdtest.UnifiedImage(fmt.Sprint("resolve", n), 0), nil)
				require.NoError(t, err)
			}
		}
		// An alias that is the beginning of another image's fingerprint.
		image, err := c.Images.Get(t.Context(), vm)
		require.NoError(t, err)
		require.NoError(t, image.AddAlias(t.Context(), container[:8], ""))
		for _, test := range []struct {
			ref  string
			opts *lxd.ResolveOptions
			want string
			err  error
		}{
			{"web", nil, vm, nil},
			{vm, nil, vm, nil},
			{vm[:14], nil, vm, nil},
			{strings.ToUpper(container), nil, container, nil},
			{container[:8], nil, vm, nil},
			{container[:10], nil, container, nil},
			{"web", &lxd.ResolveOptions{Type: lxd.VirtualMachine, Architecture: "amd64"}, vm, nil},
			{"web", &lxd.ResolveOptions{Type: lxd.Container}, "", lxd.ErrNotFound},
			{"web", &lxd.ResolveOptions{Architecture: "arm64"}, "", lxd.ErrNotFound},
			{vm[:1], nil, "", lxd.ErrAmbiguous},
			{vm[:1], &lxd.ResolveOptions{Type: lxd.Container}, container, nil},
			{vm[:1], &lxd.ResolveOptions{Type: lxd.VirtualMachine, Architecture: "x86_64"}, vm, nil},
			{vm[:1], &lxd.ResolveOptions{Architecture: "x86_64"}, "", lxd.ErrAmbiguous},
			{vm[:1], &lxd.ResolveOptions{Architecture: "riscv64"}, "", lxd.ErrNotFound},
			{"missing", nil, "", lxd.ErrNotFound},
			{"a/b c", nil, "", lxd.ErrNotFound},
			{strings.Repeat("0", 64), nil, "", lxd.ErrNotFound},
			{strings.Repeat("0", 65), nil, "", lxd.ErrNotFound},
		} {
			image, err := c.Images.Resolve(t.Context(), test.ref, test.opts)
			if test.err != nil {
				require.ErrorIs(t, err, test.err, "%v", test)
				require.Nil(t, image)
				continue
			}
			require.NoError(t, err, "%v", test)
			require.Equal(t, test.want, image.Fingerprint, "%v", test)
		}
		require.NoError(t, c.Images.Delete(t.Context(), "web", &lxd.DeleteOptions{Wait: true}))
		require.ErrorIs(t, c.Images.Delete(t.Context(), "web", nil), lxd.ErrNotFound)
		require.Len(t, f.Images(), 1)
	})
}
