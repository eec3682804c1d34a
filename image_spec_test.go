package lxd_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// bareImage is an image whose metadata.yaml has no properties: its only file, or
// those of a split one.
func bareImage(t *testing.T, split bool) (image, rootfs []byte) {
	t.Helper()
	file := func(names map[string]string) []byte {
		var buf bytes.Buffer
		out := tar.NewWriter(&buf)
		for name, content := range names {
			require.NoError(t, out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Format: tar.FormatUSTAR}))
			_, err := out.Write([]byte(content))
			require.NoError(t, err)
		}
		require.NoError(t, out.Close())
		return buf.Bytes()
	}
	metadata := map[string]string{"metadata.yaml": "architecture: x86_64\ncreation_date: 1704067200\n"}
	if split {
		return file(metadata), file(map[string]string{"seed": testkit.Unique("bare")})
	}
	metadata["rootfs/seed"] = testkit.Unique("bare")
	return file(metadata), nil
}

// bareWays are the calls that create an image with properties from one whose
// metadata.yaml has none.
var bareWays = map[string]func(t *testing.T, s *testkit.Subject, n int, want map[string]string) (*lxd.Image, error){
	"create": func(t *testing.T, s *testkit.Subject, n int, want map[string]string) (*lxd.Image, error) {
		image, rootfs := bareImage(t, n%2 == 1)
		o := &lxd.CreateOptions{Properties: want, Wait: true}
		if rootfs != nil {
			o.Rootfs = bytes.NewReader(rootfs)
		}
		return s.Client(t).Images.Create(t.Context(), bytes.NewReader(image), o)
	},
	"create, not waited": func(t *testing.T, s *testkit.Subject, _ int, want map[string]string) (*lxd.Image, error) {
		data, _ := bareImage(t, false)
		image, err := s.Client(t).Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Properties: want})
		if err == nil {
			err = image.Wait(t.Context())
		}
		return image, err
	},
	"URL by the client": func(t *testing.T, s *testkit.Subject, _ int, want map[string]string) (*lxd.Image, error) {
		data, _ := bareImage(t, false)
		web := imageServer(t)
		web.Set("bare.tar", data)
		return s.Client(t).Images.CreateFromURL(t.Context(), web.URL+"/bare.tar", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Properties: want, Wait: true})
	},
	"simplestreams by the client": func(t *testing.T, s *testkit.Subject, _ int, want map[string]string) (*lxd.Image, error) {
		data, _ := bareImage(t, false)
		streams := streamstest.NewServer(streamstest.Tree([]streamstest.Product{{
			Name: "bare", Aliases: []string{"bare"}, OS: "Bare", Release: "1", Versions: []streamstest.Version{{Serial: "20240101", Family: "both", Unified: data}},
		}}, nil))
		t.Cleanup(streams.Close)
		return s.Client(t).Images.CreateFromSimplestreams(t.Context(), streams.URL, "bare", &lxd.CreateFromSimplestreamsOptions{
			Via: lxd.ViaClient, AllowHTTP: true, Properties: want, Wait: true,
		})
	},
	"relay": func(t *testing.T, s *testkit.Subject, n int, want map[string]string) (*lxd.Image, error) {
		return copyBare(t, s, lxd.CopyRelay, n, want)
	},
	"pull": func(t *testing.T, s *testkit.Subject, n int, want map[string]string) (*lxd.Image, error) {
		return copyBare(t, s, lxd.CopyPull, n, want)
	},
	"push": func(t *testing.T, s *testkit.Subject, n int, want map[string]string) (*lxd.Image, error) {
		return copyBare(t, s, lxd.CopyPush, n, want)
	},
}

// copyBare copies an image that got its properties at the source, or gets them
// by the copy.
func copyBare(t *testing.T, s *testkit.Subject, mode lxd.CopyMode, n int, want map[string]string) (*lxd.Image, error) {
	t.Helper()
	data, rootfs := bareImage(t, n%2 == 1)
	o := &lxd.CreateOptions{Wait: true}
	if rootfs != nil {
		o.Rootfs = bytes.NewReader(rootfs)
	}
	image, err := s.Twin.Client(t).Images.Create(t.Context(), bytes.NewReader(data), o)
	require.NoError(t, err)
	testkit.DeleteAfter(t, image)
	copied := &lxd.CopyOptions{Mode: mode, Properties: want, Wait: true}
	if n%4 < 2 {
		image.Properties, copied.Properties = want, nil
		require.NoError(t, image.Update(t.Context(), nil))
	}
	got, err := image.Copy(t.Context(), s.Client(t), copied)
	if err != nil {
		return nil, err
	}
	return got.Image, nil
}

// TestPropertiesOfBareImages sets properties of images whose metadata.yaml has
// none, which crashes every daemon if the upload itself contains them.
func TestPropertiesOfBareImages(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		for name, way := range bareWays {
			t.Run(s.Column+"/"+name, func(t *testing.T) {
				for n := range testkit.Size(t, 4, 25) {
					want := map[string]string{"os": "none", "with space": fmt.Sprintf("a & b = %d", n)}
					image, err := way(t, s, n, want)
					if info, _ := s.Client(t).Server(t.Context()); name == "push" && !info.Has("images_push_relay") {
						require.ErrorIs(t, err, lxd.ErrUnsupported)
						return
					}
					require.NoError(t, err)
					testkit.DeleteAfter(t, image)
					read, err := s.Client(t).Images.Get(t.Context(), image.Fingerprint)
					require.NoError(t, err)
					for property, value := range want {
						require.Equal(t, value, read.Properties[property])
						require.Equal(t, value, image.Properties[property])
					}
				}
			})
		}
		testkit.RequireNoTokens(t, s)
		for _, side := range []*testkit.Subject{s, s.Twin} {
			if side.Fake != nil {
				require.Nil(t, side.Fake.Crashed())
			}
		}
	}
}

// TestLargeProperties sets properties that are too large for a header.
func TestLargeProperties(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		size := 2 << 20
		if strings.Contains(s.Column, "Incus 7") {
			size = 512 << 10 // it responds 400 to a PUT of 2 MiB (7.0.2)
		}
		large := map[string]string{"large": strings.Repeat("x", size)}
		image := testkit.Upload(t, s.Client(t), &lxd.CreateOptions{Properties: large})
		require.Equal(t, large["large"], image.Properties["large"])
		copied, err := image.Copy(t.Context(), s.Twin.Client(t), &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true})
		require.NoError(t, err)
		testkit.DeleteAfter(t, copied.Image)
		require.Equal(t, image.Properties, copied.Properties)
	}
}

// TestPropertiesComeBeforeNames: nobody finds an image by its name before it has its
// properties.
func TestPropertiesComeBeforeNames(t *testing.T) {
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		source, target := testkit.StartFake(t), testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect}, nil)
		want := map[string]string{"os": "none"}
		data, _ := bareImage(t, false)
		web := imageServer(t)
		web.Set("bare.tar", data)
		image := testkit.Upload(t, source.Client, nil)
		for name, create := range map[string]func(ctx context.Context, alias []lxd.Alias) (*lxd.Image, error){
			"create": func(ctx context.Context, alias []lxd.Alias) (*lxd.Image, error) {
				return target.Client.Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Properties: want, Aliases: alias, Wait: true})
			},
			"import": func(ctx context.Context, alias []lxd.Alias) (*lxd.Image, error) {
				return target.Client.Images.CreateFromURL(ctx, web.URL+"/bare.tar", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Properties: want, Aliases: alias, Wait: true})
			},
			"relay": func(ctx context.Context, alias []lxd.Alias) (*lxd.Image, error) {
				copied, err := image.Copy(ctx, target.Client, &lxd.CopyOptions{Mode: lxd.CopyRelay, Properties: want, Aliases: alias, Wait: true})
				if err != nil {
					return nil, err
				}
				return copied.Image, nil
			},
		} {
			target.ForgetRequests()
			alias := testkit.Unique("named")
			made, err := create(t.Context(), []lxd.Alias{{Name: alias}})
			require.NoError(t, err, name)
			put, named := -1, -1
			for n, r := range target.Requests() {
				switch {
				case r.Method == http.MethodPost && r.Path == "/1.0/images":
					for header := range r.Header {
						require.False(t, strings.HasSuffix(strings.ToLower(header), "-properties"), "%s: %s", name, header)
						require.False(t, strings.HasSuffix(strings.ToLower(header), "-aliases"), "%s: %s", name, header)
					}
				case r.Method == http.MethodPut && r.Path == "/1.0/images/"+made.Fingerprint:
					put = n
				case r.Method == http.MethodPost && r.Path == "/1.0/images/aliases":
					named = n
				}
			}
			require.Positive(t, put, name)
			require.Greater(t, named, put, name)
			require.Equal(t, "none", made.Properties["os"], name)
			require.Equal(t, []lxd.Alias{{Name: alias}}, made.Aliases, name)
			require.NoError(t, made.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
			require.Nil(t, target.Crashed())

			// What cannot have its properties has no name, and is not left behind.
			refused := target.Inject(lxdtest.Status(400, "no").On("PUT", "/1.0/images/*"))
			_, err = create(t.Context(), []lxd.Alias{{Name: alias}})
			refused.Remove()
			require.ErrorContains(t, err, "no", name)
			require.Empty(t, target.Images(), name)
			require.Empty(t, target.Aliases(), name)
		}
	}
}

// TestLostResponsesKeepProperties loses the response of each request in turn that
// an upload with properties makes.
func TestLostResponsesKeepProperties(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		for _, ifExists := range []lxd.IfExists{lxd.UseExisting, lxd.ErrorIfExists} {
			for _, lost := range []struct {
				fault   lxdtest.Fault
				timeout time.Duration
			}{
				{lxdtest.LoseResponse().On("POST", "/1.0/images"), 0},
				{lxdtest.LoseResponse().On("PUT", "/1.0/images/*"), 0},
				{lxdtest.LoseResponse().On("PUT", "/1.0/images/*"), -1},
				{lxdtest.Reset().On("PUT", "/1.0/images/*"), 0},
			} {
				synctest.Test(t, func(t *testing.T) {
					fault := lost.fault
					f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, InMemory: true}, &lxd.Options{RetryTimeout: lost.timeout})
					injected := f.Inject(fault.Times(1))
					data, _ := bareImage(t, false)
					image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{
						Properties: map[string]string{"a": "b"}, Aliases: []lxd.Alias{{Name: "named"}}, IfExists: ifExists, Wait: true,
					})
					require.NoError(t, err, "%s: %s", dialect, fault)
					require.Equal(t, 1, injected.Fired())
					require.Equal(t, map[string]string{"a": "b"}, image.Properties)
					read, err := f.Client.Images.GetByAlias(t.Context(), "named")
					require.NoError(t, err)
					require.Equal(t, map[string]string{"a": "b"}, read.Properties)
					require.False(t, slices.ContainsFunc(f.Requests(), func(r *lxdtest.Request) bool {
						return r.Method == http.MethodDelete
					}))
				})
			}
		}
	}
}

// TestPropertiesBesideAnotherWriter has somebody else change a new image before
// it gets its attributes: both changes are made.
func TestPropertiesBesideAnotherWriter(t *testing.T) {
	t.Parallel()
	from, to := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil), testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	source := testkit.Upload(t, from.Client, &lxd.CreateOptions{Properties: map[string]string{"os": "changed"}, ExpiresAt: time.Now().Add(time.Hour)})
	for name, create := range map[string]func(*lxd.Client) (*lxd.Image, error){
		"upload": func(c *lxd.Client) (*lxd.Image, error) {
			return c.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{
				Wait: true, Properties: map[string]string{"os": "changed"}, Aliases: []lxd.Alias{{Name: testkit.Unique("beside")}},
			})
		},
		"copy": func(c *lxd.Client) (*lxd.Image, error) {
			copied, err := source.Copy(t.Context(), c, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true, Aliases: []lxd.Alias{{Name: testkit.Unique("beside")}}})
			if err != nil {
				return nil, err
			}
			return copied.Image, nil
		},
	} {
		changes := 0
		client := rewriting(t, "unix://"+to.Socket(), func(req *http.Request) {
			fingerprint, found := strings.CutPrefix(req.URL.Path, "/1.0/images/")
			if found && req.Method == http.MethodPut && changes < 2 {
				changes++
				image, err := to.Client.Images.Get(t.Context(), fingerprint)
				require.NoError(t, err)
				image.Properties["theirs"] = strconv.Itoa(changes)
				require.NoError(t, image.Update(t.Context(), nil))
			}
		}, nil)
		image, err := create(client)
		require.NoError(t, err, name)
		require.Equal(t, 2, changes, name)
		require.Equal(t, "changed", image.Properties["os"], name)
		require.Len(t, image.Aliases, 1, name)
		if name == "upload" {
			require.Equal(t, "2", image.Properties["theirs"], name)
		}
	}
}
