package lxd_test

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// TestMissingThings: what an operation needs and does not find is an ErrNotFound with a
// hint, whether or not the daemon sends a code.
func TestMissingThings(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		c := s.Client(t)
		instance := s.AddInstance(t)
		image := testkit.Upload(t, c, nil)
		none := testkit.Unique("absent")
		publish := func(name string) error {
			_, err := c.Images.CreateFromInstance(t.Context(), name, &lxd.CreateFromInstanceOptions{Wait: true})
			return err
		}
		refresh := func() error {
			_, err := image.Refresh(t.Context(), &lxd.RefreshOptions{Wait: true})
			return err
		}
		for name, err := range map[string]error{
			"instance": publish(none),
			"snapshot": publish(instance + "/" + none),
			"source":   refresh(),
		} {
			require.ErrorIs(t, err, lxd.ErrNotFound, "%s: %s", s.Column, name)
			require.False(t, lxd.IsTransient(err))
		}
	}
}

// TestLostResponses: a change whose response was lost, and the same call once more,
// succeed when the server has the wanted state.
func TestLostResponses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := testkit.StartFakeWith(t, &lxdtest.Options{InMemory: true}, &lxd.Options{RetryTimeout: -1})
		image := testkit.Upload(t, f.Client, nil)
		lose := func(method, pattern string) {
			t.Helper()
			f.Inject(lxdtest.LoseResponse().On(method, pattern).Times(1))
		}
		stale := *image

		lose("PUT", "/1.0/images/*")
		image.Properties = map[string]string{"a": "b"}
		require.NoError(t, image.Update(t.Context(), nil))
		stale.Properties = map[string]string{"a": "b"}
		require.NoError(t, stale.Update(t.Context(), nil), "the same change once more")
		require.Equal(t, "b", stale.Properties["a"])
		stale.Public = true
		require.NoError(t, stale.Update(t.Context(), nil))
		image.Properties = map[string]string{"a": "c"}
		require.ErrorIs(t, image.Update(t.Context(), nil), lxd.ErrConflict, "another change")

		lose("POST", "/1.0/images/aliases")
		require.NoError(t, image.AddAlias(t.Context(), "one", "text"))
		require.NoError(t, image.AddAlias(t.Context(), "one", "text"))
		require.NoError(t, image.AddAlias(t.Context(), "one", "other"), "only the description differs")
		other := testkit.Upload(t, f.Client, nil)
		require.ErrorIs(t, other.AddAlias(t.Context(), "one", "text"), lxd.ErrExists)

		lose("POST", "/1.0/images/aliases/one")
		require.NoError(t, f.Client.Aliases.Rename(t.Context(), "one", "two"))
		_, err := f.Client.Aliases.Get(t.Context(), "two")
		require.NoError(t, err)
		require.ErrorIs(t, f.Client.Aliases.Rename(t.Context(), "one", "two"), lxd.ErrNotFound)
		f.Inject(lxdtest.Reset().On("POST", "/1.0/images/aliases/two").Times(1)) // before it is renamed
		require.ErrorIs(t, f.Client.Aliases.Rename(t.Context(), "two", "three"), lxd.ErrUnavailable)

		lose("PUT", "/1.0/images/aliases/two")
		require.NoError(t, f.Client.Aliases.Update(t.Context(), "two", func(alias *lxd.Alias) { alias.Description = "new" }))
		lose("PUT", "/1.0/images/aliases/two")
		require.NoError(t, other.SetAlias(t.Context(), "two", ""))
		f.Inject(lxdtest.Reset().On("PUT", "/1.0/images/aliases/two").Times(1)) // before it is changed
		require.ErrorIs(t, image.SetAlias(t.Context(), "two", ""), lxd.ErrUnavailable)
		require.Equal(t, map[string]string{"two": other.Fingerprint}, f.Aliases())
		lose("DELETE", "/1.0/images/aliases/two")
		require.NoError(t, f.Client.Aliases.Delete(t.Context(), "two"))
		require.ErrorIs(t, f.Client.Aliases.Delete(t.Context(), "two"), lxd.ErrNotFound)

		f.Inject(lxdtest.Reset().On("DELETE", "/1.0/images/*").Times(1)) // before it is deleted
		require.ErrorIs(t, image.Delete(t.Context(), nil), lxd.ErrUnavailable)
		lose("DELETE", "/1.0/images/*")
		require.NoError(t, image.Delete(t.Context(), nil))
		require.ErrorIs(t, image.Delete(t.Context(), nil), lxd.ErrNotFound)

		secret, err := other.Secret(t.Context())
		require.NoError(t, err)
		require.NoError(t, secret.Operation().Cancel(t.Context()))
		require.NoError(t, secret.Operation().Cancel(t.Context()), "again")
	})
}

// TestTransientOperations: only a code of the server says that an operation may succeed
// later.
func TestTransientOperations(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]bool{400: false, 401: false, 404: false, 500: false, 429: true, 502: true, 503: true, 504: true} {
		err := &lxd.OperationError{StatusCode: code, Message: "m", Hint: "do this"}
		require.Equal(t, want, lxd.IsTransient(err), code)
		require.ErrorContains(t, err, "do this")
	}
}

// TestFailedOperationsHaveHints: what an operation cannot do on its own account, the
// error says how to do otherwise.
func TestFailedOperationsHaveHints(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			c := s.Client(t)
			metadata, rootfs := lxdtest.SplitImage(testkit.Unique("hint"), 1000)
			_, err := c.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(metadata)}, &lxd.CreateOptions{Wait: true})
			require.Contains(t, testkit.ErrOf[*lxd.OperationError](t, err).Hint, "CreateOptions.Rootfs", "a metadata tarball alone")
			image, err := c.Images.Create(t.Context(), bytes.NewReader(metadata), &lxd.CreateOptions{Wait: true, Rootfs: bytes.NewReader(rootfs)})
			require.NoError(t, err)
			testkit.DeleteAfter(t, image)

			for _, bad := range []struct {
				hint  string
				files []string
			}{
				{"must have the architecture", []string{"metadata.yaml", "creation_date: 1700000000", "rootfs/", ""}},
				{"x86_64", []string{"metadata.yaml", "architecture: vax\ncreation_date: 1700000000", "rootfs/", ""}},
				{"creation_date", []string{"metadata.yaml", "architecture: x86_64", "rootfs/", ""}},
				{"not valid YAML", []string{"metadata.yaml", "\tx: [", "rootfs/", ""}},
				{"metadata.yaml at its top", []string{"rootfs/", ""}},
			} {
				// Of a reader that is not seekable, Create looks at the first bytes alone.
				content := testkit.OneShotReader{Reader: bytes.NewReader(tarball(t, bad.files...))}
				_, err := c.Images.Create(t.Context(), content, &lxd.CreateOptions{Wait: true})
				require.Contains(t, testkit.ErrOf[*lxd.OperationError](t, err).Hint, bad.hint)
			}

			source := streamstest.NewServer(map[string][]byte{"image": []byte("no image")})
			t.Cleanup(source.Close)
			_, err = c.Images.CreateFromURL(t.Context(), source.URL+"/image", &lxd.CreateFromURLOptions{Via: lxd.ViaServer, Wait: true})
			if refused := (*lxd.Error)(nil); errors.As(err, &refused) {
				require.ErrorContains(t, refused, "not supported", "LXD 6.9 starts no operation")
				return
			}
			require.Contains(t, testkit.ErrOf[*lxd.OperationError](t, err).Hint, "ViaClient")
		})
	}
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	image := testkit.Upload(t, source.Client, nil)
	source.Inject(lxdtest.Status(http.StatusInternalServerError, "no way").On("GET", "/1.0/images/*/export"))
	_, err := image.Copy(t.Context(), testkit.StartFake(t).Client, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
	require.ErrorContains(t, err, "the target must be able to connect to "+source.URL())

	target := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	for _, fault := range []lxdtest.Fault{
		lxdtest.Status(http.StatusInternalServerError, "no way").On("POST", "/1.0/images").Times(1),
		lxdtest.Reset().On("POST", "/1.0/images"),
	} {
		stalled := source.Inject(lxdtest.StallOperations().Times(1))
		copied, err := image.Copy(t.Context(), target.Client, &lxd.CopyOptions{Mode: lxd.CopyPush})
		require.NoError(t, err)
		target.Inject(fault) // now that it has the token
		stalled.Release()
		require.ErrorContains(t, copied.Wait(t.Context()), "the source must be able to connect to "+target.URL())
	}

	running := testkit.StartFake(t)
	running.AddInstance("busy", &lxdtest.InstanceOptions{Running: true})
	_, err = running.Client.Images.CreateFromInstance(t.Context(), "busy", &lxd.CreateFromInstanceOptions{Wait: true})
	require.ErrorContains(t, err, "stop it")
}

// TestCancelledByAnother: an import that another client has cancelled matches
// ErrCancelled, whether it is awaited before that or after the daemon has let it fail.
func TestCancelledByAnother(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		if strings.Contains(s.Column, "6.9") {
			continue // it fetches from no URL
		}
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			for _, awaited := range []bool{false, true} {
				reached := make(chan struct{}, 1)
				source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					for _, family := range []string{"LXD", "Incus"} {
						w.Header().Set(family+"-Image-Hash", oneFingerprint)
						w.Header().Set(family+"-Image-URL", "http://"+r.Host+"/image")
					}
					if r.Method == http.MethodHead {
						return
					}
					w.Header().Set("Content-Length", "1000000")
					_, _ = w.Write(make([]byte, 1000))
					w.(http.Flusher).Flush()
					reached <- struct{}{}
					<-r.Context().Done()
				}))
				t.Cleanup(source.Close)
				image, err := s.Client(t).Images.CreateFromURL(t.Context(), source.URL, &lxd.CreateFromURLOptions{Via: lxd.ViaServer})
				require.NoError(t, err)
				operation := image.Operation()
				<-reached
				ended := make(chan error, 1)
				if awaited {
					go func() { ended <- operation.Wait(t.Context()) }()
				}
				operations, err := s.Client(t).Operations(t.Context())
				require.NoError(t, err)
				n := slices.IndexFunc(operations, func(op *lxd.Operation) bool { return op.ID() == operation.ID() })
				other := operations[n]
				require.Eventually(t, func() bool { return other.Cancel(t.Context()) == nil }, exportWait, exportTick)
				if awaited {
					require.ErrorIs(t, <-ended, lxd.ErrCancelled)
				}
				require.Eventually(t, func() bool {
					status, err := other.Refresh(t.Context())
					return errors.Is(err, lxd.ErrNotFound) || status.Error != ""
				}, exportWait, exportTick)
				err = image.Wait(t.Context())
				require.ErrorIs(t, err, lxd.ErrCancelled)
				require.Empty(t, testkit.ErrOf[*lxd.OperationError](t, err).Hint)
				again, err := s.Client(t).Operations(t.Context())
				require.NoError(t, err)
				if n := slices.IndexFunc(again, func(op *lxd.Operation) bool { return op.ID() == operation.ID() }); n >= 0 {
					require.NoError(t, again[n].Cancel(t.Context()), "it is cancelled")
				}
			}
		})
	}
}
