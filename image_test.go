package lxd_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestImageOfAServer: fields that servers omit, or write in two forms.
func TestImageOfAServer(t *testing.T) {
	t.Parallel()
	get := func(fields string) *lxd.Image {
		t.Helper()
		image, err := clientOf(t, canned{200, text(`{"type":"sync","metadata":{"fingerprint":"` + oneFingerprint + `"` + fields + `}}`)}).Images.Get(t.Context(), oneFingerprint)
		require.NoError(t, err)
		return image
	}
	image := get(`,"created_at":"1970-01-01T00:00:00Z","expires_at":"0001-01-01T00:00:00Z","last_used_at":"1970-01-01T01:00:00+01:00","uploaded_at":"2024-05-06T07:08:09Z"`)
	require.Zero(t, image.CreatedAt)
	require.Zero(t, image.ExpiresAt)
	require.Zero(t, image.LastUsedAt)
	require.Equal(t, time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), image.UploadedAt)
	require.NotNil(t, image.Properties, "they can be set")
	require.Equal(t, lxd.Container, image.Type)
	require.Equal(t, "default", image.Project)

	for sent, want := range map[string]string{"a.tar.gz": "a.tar.gz", "../../etc/cron.d/x": "x", `C:\\x\\y`: "y", "..": "", "/": "", `a\u0000b`: ""} {
		require.Equal(t, want, get(`,"filename":"`+sent+`"`).Filename, sent)
	}

	image = get(`,"project":"other","type":"virtual-machine"`)
	require.Equal(t, lxd.VirtualMachine, image.Type)
	require.Equal(t, "other", image.Project)
	require.Equal(t, "default", image.Client().Project(), "its methods stay in the client's project, which may share the other's images")
}

func TestUpdateImage(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		f.AddProfile("small")
		image := testkit.Upload(t, f.Client, &lxd.CreateOptions{Properties: map[string]string{"old": "1"}, Aliases: []lxd.Alias{{Name: "kept"}}})
		expires := time.Date(2034, 5, 6, 0, 0, 0, 0, time.UTC)
		delete(image.Properties, "old")
		image.Properties["new"] = "2"
		image.Public, image.AutoUpdate, image.Profiles, image.ExpiresAt = true, true, []string{"small"}, expires
		require.NoError(t, image.Update(t.Context(), nil))
		read, err := f.Client.Images.Get(t.Context(), image.Fingerprint)
		require.NoError(t, err)
		for _, i := range []*lxd.Image{image, read} {
			require.NotContains(t, i.Properties, "old")
			require.Equal(t, "2", i.Properties["new"])
			require.True(t, i.Public)
			require.True(t, i.AutoUpdate)
			require.Equal(t, []string{"small"}, i.Profiles)
			require.True(t, i.ExpiresAt.Equal(expires))
			require.Equal(t, []lxd.Alias{{Name: "kept"}}, i.Aliases)
		}
		image.Properties["new"] = "3"
		require.NoError(t, image.Update(t.Context(), nil), "it may be changed again")

		f.ForgetRequests()
		read.Properties["new"] = "mine"
		require.ErrorIs(t, read.Update(t.Context(), nil), lxd.ErrConflict, "it was read before the last change")
		require.Empty(t, changesAt(f))
		image.Properties[""] = "x"
		require.Equal(t, "Image.Properties", testkit.ErrOf[*lxd.InputError](t, image.Update(t.Context(), nil)).Field)
		require.Empty(t, changesAt(f))
	})
}

// TestUpdateImageThatCannotBeReadAgain succeeds, as the image was changed.
func TestUpdateImageThatCannotBeReadAgain(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	fingerprint, err := f.AddImage(testkit.Unified(t, 0), nil)
	require.NoError(t, err)
	c := between(t, f, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		res, err := next.RoundTrip(req)
		if err == nil && req.Method == http.MethodPut {
			f.Inject(lxdtest.Status(http.StatusInternalServerError, "no").On(http.MethodGet, "/1.0/images/*").Times(1))
		}
		return res, err
	})
	image, err := c.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	for _, value := range []string{"one", "two"} { // the second time the image is compared with what was sent
		image.Properties["key"] = value
		require.NoError(t, image.Update(t.Context(), nil))
		is, _ := f.Image(fingerprint)
		require.Equal(t, value, is.Properties["key"])
	}
}

func TestDeleteImage(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]*lxdtest.Fault{
		"at once":             nil,
		"lost response":       new(lxdtest.LoseResponse().On(http.MethodDelete, "/1.0/images/*").Times(1)),
		"forgotten operation": new(lxdtest.ForgetOperations()),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachDialect(t, func(t *testing.T, f *testkit.Fake) {
				fingerprint, err := f.AddImage(testkit.Unified(t, 0), &lxdtest.AddOptions{Aliases: []string{"name"}})
				require.NoError(t, err)
				image, err := f.Client.Images.Get(t.Context(), fingerprint)
				require.NoError(t, err)
				if fault != nil {
					injected := f.Inject(*fault)
					defer func() { require.NotZero(t, injected.Fired()) }()
				}
				require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
				require.Empty(t, f.Images())
				require.Empty(t, f.Aliases())
				require.ErrorIs(t, image.Delete(t.Context(), nil), lxd.ErrNotFound)
			})
		})
	}
}

// TestForgottenDeletion: the server has forgotten the operation, and has the image.
func TestForgottenDeletion(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	const operation = `{"type": "async", "status": "Operation created", "status_code": 100, "operation": "/1.0/operations/%[1]s",
		"metadata": {"id": "%[1]s", "class": "task", "status": "Running", "status_code": 103}}`
	c := between(t, f, func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		if req.Method != http.MethodDelete {
			return next.RoundTrip(req)
		}
		w := httptest.NewRecorder()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_, _ = fmt.Fprintf(w, operation, "00000000-0000-4000-8000-000000000000")
		return w.Result(), nil
	})
	image, err := c.Images.Get(t.Context(), image.Fingerprint)
	require.NoError(t, err)
	require.ErrorIs(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}), lxd.ErrOutcomeUnknown)
}

// TestDeleteImageBeforeItsUploadIsWaitedFor: nothing of the upload remains to be done.
func TestDeleteImageBeforeItsUploadIsWaitedFor(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image, err := f.Client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "never"}}})
	require.NoError(t, err)
	require.NoError(t, image.Operation().Wait(t.Context()))
	require.NoError(t, image.Delete(t.Context(), nil))
	require.NoError(t, image.Wait(t.Context()))
	require.Empty(t, f.Images())
	require.Empty(t, f.Aliases())
}

func TestRefreshNeedsItsExtension(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, &lxdtest.Options{WithoutExtensions: []string{"image_force_refresh"}}, nil)
	image := testkit.Upload(t, f.Client, nil)
	f.ForgetRequests()
	_, err := image.Refresh(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrUnsupported)
	require.ErrorContains(t, err, "image_force_refresh")
	require.Empty(t, changesAt(f))
}

// TestImageAliases: Image.Aliases is kept up to date.
func TestImageAliases(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		one, two := testkit.Upload(t, f.Client, nil), testkit.Upload(t, f.Client, nil)
		require.NoError(t, one.AddAlias(t.Context(), "name", "first"))
		require.Equal(t, []lxd.Alias{{Name: "name", Description: "first"}}, one.Aliases)

		require.ErrorIs(t, two.AddAlias(t.Context(), "name", ""), lxd.ErrExists)
		require.Empty(t, two.Aliases)
		require.ErrorIs(t, two.DeleteAlias(t.Context(), "name"), lxd.ErrConflict, "it is another image's")
		require.ErrorIs(t, two.DeleteAlias(t.Context(), "none"), lxd.ErrNotFound)
		require.Equal(t, map[string]string{"name": one.Fingerprint}, f.Aliases())

		require.NoError(t, one.SetAlias(t.Context(), "name", "second"))
		require.Equal(t, []lxd.Alias{{Name: "name", Description: "second"}}, one.Aliases, "and not twice")
		require.NoError(t, two.SetAlias(t.Context(), "name", "moved"))
		require.Equal(t, []lxd.Alias{{Name: "name", Description: "moved"}}, two.Aliases)
		require.Equal(t, map[string]string{"name": two.Fingerprint}, f.Aliases())
		require.NoError(t, two.DeleteAlias(t.Context(), "name"))
		require.Empty(t, two.Aliases)
		require.Empty(t, f.Aliases())
	})
}

// TestImageReadsItsContentThroughItsOwnProject: even if it is from a list of all
// projects.
func TestImageReadsItsContentThroughItsOwnProject(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus60}, nil)
	f.AddProject("other", true)
	data := testkit.Unified(t, 0)
	_, err := f.Client.InProject("other").Images.Create(t.Context(), bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	images, err := f.Client.Images.All(t.Context(), &lxd.ListOptions{AllProjects: true})
	require.NoError(t, err)
	require.Len(t, images, 1)
	export, err := images[0].Export(t.Context(), nil)
	require.NoError(t, err)
	got, err := io.ReadAll(export)
	require.NoError(t, err)
	require.NoError(t, export.Close())
	require.True(t, bytes.Equal(data, got))
}
