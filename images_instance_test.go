package lxd_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

func TestCreateFromInstance(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		f.AddProfile("small")
		f.AddInstance("web", nil)
		f.AddInstance("web/first", nil)
		expires := time.Date(2033, 1, 1, 0, 0, 0, 0, time.UTC)
		for instance, kind := range map[string]string{"web": "instance", "web/first": "snapshot"} {
			for wait, phase := range map[bool]string{true: "waited for", false: "not waited for"} {
				f.ForgetRequests()
				alias := testkit.Unique("published")
				image, err := f.Client.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{
					Public: true, Filename: "web.tar.gz", Properties: map[string]string{"description": instance}, Profiles: []string{"small"},
					Aliases: []lxd.Alias{{Name: alias, Description: "of it"}}, ExpiresAt: expires, Compression: "none", Wait: wait,
				})
				require.NoError(t, err, phase)
				require.NoError(t, image.Wait(t.Context()), phase)
				require.Len(t, image.Fingerprint, 64)
				read, err := f.Client.Images.Get(t.Context(), image.Fingerprint)
				require.NoError(t, err)
				for _, i := range []*lxd.Image{image, read} {
					require.True(t, i.Public, phase)
					require.Equal(t, "web.tar.gz", i.Filename, phase)
					require.Equal(t, instance, i.Properties["description"], phase)
					require.Equal(t, []string{"small"}, i.Profiles, phase)
					require.Equal(t, []lxd.Alias{{Name: alias, Description: "of it"}}, i.Aliases, phase)
					require.True(t, i.ExpiresAt.Equal(expires), phase)
				}
				var posted struct {
					Compression string `json:"compression_algorithm"`
					Source      struct{ Type, Name string }
				}
				for _, r := range f.Requests() {
					if r.Method == http.MethodPost && r.Path == "/1.0/images" {
						require.NoError(t, json.Unmarshal(r.Text(), &posted))
						require.NotContains(t, string(r.Text()), `"properties"`, "LXD 5.0.2 would drop those of the instance's image")
					}
				}
				require.Equal(t, "none", posted.Compression)
				require.Equal(t, kind, posted.Source.Type)
				require.Equal(t, instance, posted.Source.Name)
				require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			}
		}
	})
}

// TestCreateFromInstanceThatCannotBePublished leaves neither an image nor a
// name.
func TestCreateFromInstanceThatCannotBePublished(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		f.AddInstance("running", &lxdtest.InstanceOptions{Running: true})
		for _, instance := range []string{"running", "none", "running/none"} {
			for wait, phase := range map[bool]string{true: "waited for", false: "not waited for"} {
				image, err := f.Client.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{Aliases: []lxd.Alias{{Name: "never"}}, Wait: wait})
				if err == nil {
					err = image.Wait(t.Context())
				}
				require.Error(t, err, "%s, %s", instance, phase)
				require.Empty(t, f.Images())
				require.Empty(t, f.Aliases())
			}
		}
	})
}

// TestCreateFromInstanceNeedsExtensions: nothing is sent to a server that would
// ignore an option.
func TestCreateFromInstanceNeedsExtensions(t *testing.T) {
	t.Parallel()
	for extension, opts := range map[string]lxd.CreateFromInstanceOptions{
		"image_compression_algorithm": {Compression: "none"},
		"images_expiry":               {ExpiresAt: time.Date(2033, 1, 1, 0, 0, 0, 0, time.UTC)},
		"image_profiles":              {Profiles: []string{"small"}},
	} {
		t.Run(extension, func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFakeWith(t, &lxdtest.Options{WithoutExtensions: []string{extension}}, nil)
			f.AddInstance("web", nil)
			f.AddProfile("small")
			_, err := f.Client.Images.CreateFromInstance(t.Context(), "web", &opts)
			require.ErrorIs(t, err, lxd.ErrUnsupported)
			require.ErrorContains(t, err, extension)
			require.Empty(t, changesAt(f))
			_, err = f.Client.Images.CreateFromInstance(t.Context(), "web", &lxd.CreateFromInstanceOptions{Wait: true})
			require.NoError(t, err, "only a set option needs its extension")
		})
	}
}

func TestCreateFromInstanceSplit(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD40, lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60, lxdtest.Incus70} {
		t.Run(dialect.String(), func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect}, nil)
			f.AddInstance("web", nil)
			f.AddInstance("vm", &lxdtest.InstanceOptions{VM: true})
			for instance, kind := range map[string]lxd.ImageType{"web": lxd.Container, "vm": lxd.VirtualMachine} {
				f.ForgetRequests()
				image, err := f.Client.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{
					Split: true, Filename: "it", Aliases: []lxd.Alias{{Name: instance}}, Wait: true,
				})
				if dialect != lxdtest.Incus70 {
					require.ErrorIs(t, err, lxd.ErrUnsupported)
					require.ErrorContains(t, err, "instance_publish_split")
					require.Nil(t, image)
					for _, r := range f.Requests() {
						require.Equal(t, http.MethodGet, r.Method)
					}
					continue
				}
				require.NoError(t, err)
				require.Equal(t, kind, image.Type)
				require.Equal(t, "it", image.Filename)
				require.Equal(t, []lxd.Alias{{Name: instance}}, image.Aliases)
				files, err := image.ExportTo(t.Context(), t.TempDir(), nil)
				require.NoError(t, err)
				require.NotEmpty(t, files.Rootfs)

				whole, err := f.Client.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{Wait: true})
				require.NoError(t, err)
				require.NotEqual(t, image.Fingerprint, whole.Fingerprint)
				files, err = whole.ExportTo(t.Context(), t.TempDir(), nil)
				require.NoError(t, err)
				require.Empty(t, files.Rootfs)
			}
		})
	}
}
