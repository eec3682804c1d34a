package lxd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
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
)

func startRegistry(t *testing.T, opts ociregistry.Options) *ociregistry.Registry {
	t.Helper()
	r := ociregistry.New(opts)
	t.Cleanup(r.Close)
	return r
}

// pulls says whether the daemon can pull OCI images.
func pulls(t *testing.T, c *lxd.Client) bool {
	t.Helper()
	server, err := c.Server(t.Context())
	require.NoError(t, err)
	return server.Has("instance_oci")
}

// pullers returns the subjects that can pull OCI images.
func pullers(t *testing.T) []*testkit.Subject {
	t.Helper()
	all := slices.DeleteFunc(testkit.Subjects(t), func(s *testkit.Subject) bool { return !pulls(t, s.Client(t)) })
	require.NotEmpty(t, all)
	return all
}

// trustingRegistry returns options with which Resolve trusts the registry's certificate.
func trustingRegistry(r *ociregistry.Registry) *lxd.FromOCIOptions {
	return &lxd.FromOCIOptions{HTTPClient: r.Client()}
}

// TestFromOCI: an image of a registry, and what becomes of it.
func TestFromOCI(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c, ctx := s.Client(t), t.Context()
			r := startRegistry(t, ociregistry.Options{})
			name := testkit.Unique("demo/app")
			want := r.Add(name, "v1", "amd64", name, "two")
			source := lxd.FromOCI(r.URL, name+":v1", trustingRegistry(r))
			require.Equal(t, `"`+name+`:v1" of `+r.URL, source.String())
			var progress []string
			opts := &lxd.CreateFromOptions{
				AutoUpdate: true, Filename: "app.oci", Properties: map[string]string{"made": "here"}, Aliases: []lxd.Alias{{Name: name}}, Wait: true,
				Progress: func(p lxd.Progress) { progress = append(progress, p.Phase) },
			}
			if !pulls(t, c) {
				_, err := source.Resolve(ctx, c)
				require.ErrorIs(t, err, lxd.ErrUnsupported)
				_, err = c.Images.CreateFrom(ctx, source, opts)
				require.ErrorIs(t, err, lxd.ErrUnsupported)
				require.ErrorContains(t, err, `"instance_oci"`)
				require.Empty(t, r.Requests())
				return
			}
			resolved, err := source.Resolve(ctx, c)
			require.NoError(t, err)
			require.Equal(t, want.Fingerprint(), resolved.Fingerprint)
			require.Equal(t, lxd.Container, resolved.Type)

			image, err := c.Images.CreateFrom(ctx, source, opts)
			require.NoError(t, err)
			testkit.DeleteAfter(t, image)
			require.Equal(t, want.Fingerprint(), image.Fingerprint)
			require.Equal(t, resolved.Size, image.Size)
			require.Equal(t, lxd.Container, image.Type)
			require.Equal(t, "x86_64", image.Architecture)
			require.Equal(t, map[string]string{
				"architecture": "x86_64", "description": strings.TrimPrefix(r.URL, "https://") + "/" + name + " (OCI)", "id": name + ":v1", "type": "oci", "made": "here",
			}, image.Properties)
			require.True(t, image.CreatedAt.Equal(ociregistry.Created), image.CreatedAt)
			require.Equal(t, "app.oci", image.Filename)
			require.Equal(t, &lxd.UpdateSource{Alias: name + ":v1", Protocol: lxd.OCIProtocol, Server: r.URL}, image.UpdateSource)
			require.True(t, image.AutoUpdate)
			require.Equal(t, lxd.PhaseServer, progress[0])
			require.Equal(t, string(lxd.ViaServer), image.Transfer().Way)

			opts.IfExists = lxd.ErrorIfExists
			_, err = c.Images.CreateFrom(ctx, source, opts)
			require.ErrorIs(t, err, lxd.ErrExists)
			opts.IfExists, opts.Wait = "", false
			again, err := c.Images.CreateFrom(ctx, source, opts)
			require.NoError(t, err)
			require.NoError(t, again.Wait(ctx))
			require.Equal(t, image.Fingerprint, again.Fingerprint)

			changed := r.Add(name, "v1", "amd64", name, "two", "three")
			refreshed, err := image.Refresh(ctx, &lxd.RefreshOptions{Wait: true})
			require.NoError(t, err)
			require.Equal(t, changed.Fingerprint(), refreshed.Fingerprint)
			testkit.DeleteAfter(t, refreshed)
		})
	}
}

// TestInstanceSourceOfOCI: the server pulls the image for an instance.
func TestInstanceSourceOfOCI(t *testing.T) {
	for _, s := range pullers(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			r := startRegistry(t, ociregistry.Options{})
			name := testkit.Unique("demo/app")
			want := r.Add(name, "v1", "amd64", name)
			from, err := c.Images.InstanceSource(t.Context(), lxd.FromOCI(r.URL+"/", name+":v1", nil))
			require.NoError(t, err)
			require.Equal(t, &lxd.InstanceSource{Type: "image", Mode: "pull", Protocol: lxd.OCIProtocol, Server: r.URL, Alias: name + ":v1"}, from)
			instance := createInstance(t, s, c, from)
			image, err := c.Images.Get(t.Context(), want.Fingerprint())
			require.NoError(t, err)
			testkit.DeleteAfter(t, image)
			require.True(t, image.Cached)
			used, err := image.UsedBy(t.Context())
			require.NoError(t, err)
			require.Equal(t, instance, used[0].Name)
		})
	}
	c := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.LXD50}, nil).Client
	_, err := c.Images.InstanceSource(t.Context(), lxd.FromOCI("https://localhost", "app", nil))
	require.ErrorIs(t, err, lxd.ErrUnsupported)
}

// TestEnsureOCIPublic: an image that everybody can read must not show the credentials of
// its registry.
func TestEnsureOCIPublic(t *testing.T) {
	t.Parallel()
	for _, s := range pullers(t) {
		if s.Fake == nil {
			continue
		}
		r := startRegistry(t, ociregistry.Options{Username: "me", Password: "pass-word"})
		r.Add("app", "v1", "amd64", "one")
		opts := trustingRegistry(r)
		opts.Username, opts.Password = "me", "pass-word"
		_, err := s.Client(t).Images.Ensure(t.Context(), lxd.FromOCI(r.URL, "app:v1", opts), &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: "web"}}, Public: new(true)})
		require.Equal(t, "CreateFromOptions.Public", testkit.ErrOf[*lxd.InputError](t, err).Field)
		require.NotContains(t, err.Error(), "pass-word")
	}
}

// TestEnsureOCI: the second call changes nothing, and pulls nothing.
func TestEnsureOCI(t *testing.T) {
	r := startRegistry(t, ociregistry.Options{})
	for _, s := range pullers(t) {
		t.Run(s.Column, func(t *testing.T) {
			c, ctx := s.Client(t), t.Context()
			name := testkit.Unique("ensured")
			want := r.Add(name, "latest", "amd64", name)
			known, unknown := lxd.FromOCI(r.URL, name, trustingRegistry(r)), lxd.FromOCI(r.URL, name, nil)
			opts := &lxd.EnsureOptions{Aliases: []lxd.Alias{{Name: name}}}
			done, err := c.Images.Ensure(ctx, known, opts)
			require.NoError(t, err)
			testkit.DeleteAfter(t, done.Image)
			require.Equal(t, want.Fingerprint(), done.Image.Fingerprint)
			done, err = c.Images.Ensure(ctx, known, opts)
			require.NoError(t, err)
			require.Empty(t, done.Changes)

			// This client does not trust the registry's certificate: it does not know
			// what the server will find.
			resolved, err := unknown.Resolve(ctx, c)
			require.NoError(t, err)
			require.Equal(t, &lxd.SourceImage{Type: lxd.Container}, resolved)
			done, err = c.Images.Ensure(ctx, unknown, opts)
			require.NoError(t, err)
			require.Equal(t, want.Fingerprint(), done.Image.Fingerprint)
			_, err = c.Images.CreateFrom(ctx, unknown, &lxd.CreateFromOptions{IfExists: lxd.ErrorIfExists})
			require.ErrorIs(t, err, lxd.ErrUnsupported)
			images, err := c.Images.All(ctx, &lxd.ListOptions{Properties: map[string]string{"id": name}})
			require.NoError(t, err)
			require.Len(t, images, 1)

			done, err = c.Images.Ensure(ctx, lxd.FromOCI(r.URL, name+":none", trustingRegistry(r)), opts)
			require.ErrorIs(t, err, lxd.ErrNotFound)
			require.ErrorContains(t, err, "still has image")
			require.Equal(t, want.Fingerprint(), done.Image.Fingerprint)
		})
	}
}

// TestOCIReferences: tags, digests, and registries with a path.
func TestOCIReferences(t *testing.T) {
	r := startRegistry(t, ociregistry.Options{})
	for _, s := range pullers(t) {
		t.Run(s.Column, func(t *testing.T) {
			c, ctx := s.Client(t), t.Context()
			name := testkit.Unique("ref")
			first := r.Add("team/"+name, "v1", "amd64", name)
			other := r.Add("team/"+name, "arm", "arm64", name, "arm")
			index := r.AddIndex("team/"+name, "multi", map[string]ociregistry.Image{"amd64": first, "arm64": other})
			r.Add("team/"+name, "latest", "amd64", name, "latest")
			for reference, want := range map[string]ociregistry.Image{
				name + ":multi": first, name + ":arm": other, name + "@" + first.Digest: first, name + ":arm@" + first.Digest: first, name + "@" + index: first,
			} {
				source := lxd.FromOCI(r.URL+"/team/", reference, trustingRegistry(r))
				resolved, err := source.Resolve(ctx, c)
				require.NoError(t, err)
				require.Equal(t, want.Fingerprint(), resolved.Fingerprint, reference)
				image, err := c.Images.CreateFrom(ctx, source, &lxd.CreateFromOptions{Wait: true})
				require.NoError(t, err)
				require.Equal(t, want.Fingerprint(), image.Fingerprint, reference)
				require.Equal(t, r.URL+"/team", image.UpdateSource.Server)
				require.Equal(t, reference, image.UpdateSource.Alias)
				if want.Digest == other.Digest {
					require.Equal(t, "aarch64", image.Architecture)
				}
				require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
			}
			r.AddIndex("team/"+name, "foreign", map[string]ociregistry.Image{"arm64": other})
			source := lxd.FromOCI(r.URL, "team/"+name+":foreign", trustingRegistry(r))
			_, err := source.Resolve(ctx, c)
			require.ErrorIs(t, err, lxd.ErrNotFound)
			require.ErrorContains(t, err, "for x86_64; it exists for linux/arm64")
			_, err = c.Images.CreateFrom(ctx, source, &lxd.CreateFromOptions{Wait: true})
			require.ErrorIs(t, err, lxd.ErrNotFound)
		})
	}
}

// TestOCICredentials: registries that want a password, and those that issue tokens.
func TestOCICredentials(t *testing.T) {
	const username, password = "joe", `s3cr:et/%"\é`
	for _, s := range pullers(t) {
		for kind, opts := range map[string]ociregistry.Options{
			"basic":         {Username: username, Password: password},
			"token":         {Username: username, Password: password, Tokens: true},
			"token for all": {Tokens: true},
			"no registry":   {},
		} {
			t.Run(s.Column+"/"+kind, func(t *testing.T) {
				c, ctx := s.Client(t), t.Context()
				r := startRegistry(t, opts)
				name := testkit.Unique("unauthorized")
				want := r.Add(name, "v1", "amd64", name)
				create := func(url, username, password string) error {
					o := trustingRegistry(r)
					o.Username, o.Password = username, password
					source := lxd.FromOCI(url, name+":v1", o)
					resolved, rerr := source.Resolve(ctx, c)
					image, err := c.Images.CreateFrom(ctx, source, &lxd.CreateFromOptions{Wait: true})
					for _, text := range []error{err, rerr} {
						if text != nil {
							require.NotContains(t, text.Error(), "s3cr")
							require.NotContains(t, text.Error(), "wrong")
						}
					}
					require.NotContains(t, source.String(), "s3cr")
					if err != nil {
						if rerr != nil {
							require.ErrorIs(t, rerr, lxd.ErrUnauthorized)
						}
						return err
					}
					require.NoError(t, rerr)
					require.Equal(t, want.Fingerprint(), resolved.Fingerprint)
					require.Equal(t, want.Fingerprint(), image.Fingerprint)
					return image.Delete(ctx, &lxd.DeleteOptions{Wait: true})
				}
				withUser := func(username, password string) string {
					u, err := url.Parse(r.URL)
					require.NoError(t, err)
					u.User = url.UserPassword(username, password)
					return u.String()
				}
				if kind == "no registry" {
					r.Close()
					err := create(r.URL, "", "")
					require.Equal(t, 400, testkit.ErrOf[*lxd.OperationError](t, err).StatusCode)
					require.ErrorContains(t, err, "the server must be able to connect to the registry")
					require.NotErrorIs(t, err, lxd.ErrUnauthorized)
					return
				}
				if opts.Username == "" {
					require.NoError(t, create(r.URL, "", ""))
					return
				}
				require.NoError(t, create(r.URL, username, password))
				require.NoError(t, create(withUser(username, password), "", ""))
				require.ErrorIs(t, create(r.URL, username, "wrong-word"), lxd.ErrUnauthorized)
				require.ErrorIs(t, create(withUser(username, "wrong-word"), "", ""), lxd.ErrUnauthorized)
				require.ErrorIs(t, create(r.URL, "", ""), lxd.ErrUnauthorized)
			})
		}
	}
}

// TestOCIErrors: what a registry does not have.
func TestOCIErrors(t *testing.T) {
	r := startRegistry(t, ociregistry.Options{})
	for _, s := range pullers(t) {
		t.Run(s.Column, func(t *testing.T) {
			c, ctx := s.Client(t), t.Context()
			name := testkit.Unique("errors")
			r.Add(name, "v1", "amd64", name)
			for _, reference := range []string{name + ":none", name, "no-" + name + ":v1", name + "@sha256:" + strings.Repeat("0", 64)} {
				source := lxd.FromOCI(r.URL, reference, trustingRegistry(r))
				_, err := source.Resolve(ctx, c)
				require.ErrorIs(t, err, lxd.ErrNotFound, reference)
				_, err = c.Images.CreateFrom(ctx, source, &lxd.CreateFromOptions{Wait: true})
				require.ErrorIs(t, err, lxd.ErrNotFound, reference)
				require.ErrorContains(t, err, source.String())
			}
		})
	}
}

// withoutSkopeo returns a program that runs a daemon which does not find skopeo.
func withoutSkopeo(t *testing.T, binary string) string {
	t.Helper()
	// In the tree of .ci/incus7 the daemon sees the tree's own.
	skopeo := filepath.Join(filepath.Dir(binary), "usr/bin/skopeo")
	if _, err := os.Stat(skopeo); err != nil {
		skopeo, err = exec.LookPath("skopeo")
		require.NoError(t, err)
	}
	program := writeTemp(t, "incusd", fmt.Appendf(nil, `#!/bin/sh
set -e
if [ -z "$UNSHARED" ]; then
	UNSHARED=yes exec unshare --mount --propagation private "$0" "$@"
fi
mount --bind /dev/null '%s'
exec '%s' "$@"
`, skopeo, binary))
	require.NoError(t, os.Chmod(program, 0o700))
	return program
}

// TestOCIWithoutSkopeo: a server that has the extension, but not the command.
func TestOCIWithoutSkopeo(t *testing.T) {
	f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus70}, nil)
	clients := []*lxd.Client{f.Client}
	for _, s := range pullers(t) {
		if s.Real != nil {
			d := testdaemon.New(t, s.Real.Family, &testdaemon.Options{Binary: withoutSkopeo(t, s.Real.Binary)})
			clients = append(clients, (&testkit.Subject{Real: d}).Client(t))
		}
	}
	r := startRegistry(t, ociregistry.Options{})
	r.Add("demo/app", "v1", "amd64", "one")
	for _, c := range clients {
		_, err := c.Images.CreateFrom(t.Context(), lxd.FromOCI(r.URL, "demo/app:v1", trustingRegistry(r)), &lxd.CreateFromOptions{Wait: true})
		require.ErrorIs(t, err, lxd.ErrUnsupported)
		require.ErrorContains(t, err, `OCI container handling requires "skopeo" be present on the system`)
		require.Equal(t, "Downloading image", testkit.ErrOf[*lxd.OperationError](t, err).Description)
	}
	require.Empty(t, r.Requests())
}

// TestOCIInput: what is refused before anything is sent.
func TestOCIInput(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus70, Skopeo: true}, nil)
	const registry, digest = "https://docker.io", "@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	for name, test := range map[string]struct {
		field, registry, image string
		opts                   lxd.FromOCIOptions
		from                   lxd.CreateFromOptions
	}{
		"no registry":         {field: "registry", image: "nginx"},
		"no URL":              {field: "registry", registry: "docker.io", image: "nginx"},
		"malformed URL":       {field: "registry", registry: "https://joe:s3cret%@docker.io", image: "nginx"},
		"http":                {field: "registry", registry: "http://docker.io", image: "nginx"},
		"query":               {field: "registry", registry: registry + "?key=s3cret", image: "nginx"},
		"no image":            {field: "image", registry: registry},
		"upper case":          {field: "image", registry: registry, image: "Nginx"},
		"space":               {field: "image", registry: registry, image: "nginx:1 0"},
		"two tags":            {field: "image", registry: registry, image: "nginx:1:2"},
		"no tag":              {field: "image", registry: registry, image: "nginx:"},
		"option":              {field: "image", registry: registry, image: "--authfile=x"},
		"short digest":        {field: "image", registry: registry, image: "nginx@sha256:0123"},
		"slashes":             {field: "image", registry: registry, image: "a//b"},
		"colon":               {field: "FromOCIOptions.Username", registry: registry, image: "nginx", opts: lxd.FromOCIOptions{Username: "a:b", Password: "s3cret"}},
		"password alone":      {field: "FromOCIOptions.Username", registry: registry, image: "nginx", opts: lxd.FromOCIOptions{Password: "s3cret"}},
		"two users":           {field: "FromOCIOptions.Username", registry: "https://joe:s3cret@docker.io", image: "nginx", opts: lxd.FromOCIOptions{Username: "ann"}},
		"public password":     {field: "CreateFromOptions.Public", registry: "https://joe:s3cret@docker.io", image: "nginx", from: lxd.CreateFromOptions{Public: true}},
		"update of a digest":  {field: "CreateFromOptions.AutoUpdate", registry: registry, image: "nginx" + digest, from: lxd.CreateFromOptions{AutoUpdate: true}},
		"alias without name":  {field: "CreateFromOptions.Aliases[0].Name", registry: registry, image: "nginx", from: lxd.CreateFromOptions{Aliases: []lxd.Alias{{}}}},
		"deletes and no move": {field: "CreateFromOptions.DeleteReplaced", registry: registry, image: "nginx", from: lxd.CreateFromOptions{DeleteReplaced: true}},
	} {
		t.Run(name, func(t *testing.T) {
			source := lxd.FromOCI(test.registry, test.image, &test.opts)
			_, err := f.Client.Images.CreateFrom(t.Context(), source, &test.from)
			require.Equal(t, test.field, testkit.ErrOf[*lxd.InputError](t, err).Field)
			require.NotContains(t, err.Error(), "s3cret")
			require.NotContains(t, source.String(), "s3cret")
			if test.from.Aliases == nil && !test.from.Public && !test.from.AutoUpdate && !test.from.DeleteReplaced {
				_, err = source.Resolve(t.Context(), f.Client)
				require.Equal(t, test.field, testkit.ErrOf[*lxd.InputError](t, err).Field)
			}
		})
	}
	for _, r := range f.Requests() {
		require.Equal(t, "GET", r.Method)
	}
	_, err := lxd.FromOCI(registry, "nginx", nil).Resolve(t.Context(), nil)
	require.ErrorIs(t, err, lxd.ErrInvalid)
}

// oddRegistry responds as it is told.
func oddRegistry(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	r := httptest.NewTLSServer(handler)
	t.Cleanup(r.Close)
	return r
}

// TestOCIOddRegistries: what Resolve makes of other responses.
func TestOCIOddRegistries(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus70, Skopeo: true}, nil)
	body := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) }
	}
	challenge := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", text)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	for name, handler := range map[string]http.HandlerFunc{
		"web page":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>word</html>")) },
		"no layers":    body(map[string]any{"schemaVersion": 1}),
		"too large":    body(map[string]any{"annotations": strings.Repeat("x", 5<<20), "layers": []any{map[string]any{"digest": "sha256:1"}}}),
		"plain realm":  challenge(`Bearer realm="http://127.0.0.1/token"`),
		"no realm":     challenge(`Bearer`),
		"no challenge": challenge(``),
		"plain redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		"hangs up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := oddRegistry(t, handler)
			resolved, err := lxd.FromOCI(r.URL, "nginx", &lxd.FromOCIOptions{HTTPClient: r.Client()}).Resolve(t.Context(), f.Client)
			require.NoError(t, err)
			require.Equal(t, &lxd.SourceImage{Type: lxd.Container}, resolved)
		})
	}
	t.Run("bad request", func(t *testing.T) {
		t.Parallel()
		r := oddRegistry(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) })
		_, err := lxd.FromOCI(r.URL, "nginx", &lxd.FromOCIOptions{HTTPClient: r.Client()}).Resolve(t.Context(), f.Client)
		require.Equal(t, http.StatusBadRequest, testkit.ErrOf[*lxd.SourceError](t, err).StatusCode)
	})
	t.Run("busy", func(t *testing.T) {
		t.Parallel()
		var requests int
		r := oddRegistry(t, func(w http.ResponseWriter, _ *http.Request) {
			if requests++; requests < 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"layers": []any{map[string]any{"digest": "sha256:1", "size": 7}}})
		})
		resolved, err := lxd.FromOCI(r.URL, "nginx", &lxd.FromOCIOptions{HTTPClient: r.Client()}).Resolve(t.Context(), f.Client)
		require.NoError(t, err)
		require.Equal(t, lxdtest.Fingerprint([]byte("sha256:1")), resolved.Fingerprint)
		require.EqualValues(t, 7, resolved.Size)
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		r := oddRegistry(t, func(_ http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done()
		})
		began := time.Now()
		_, err := lxd.FromOCI(r.URL, "nginx", &lxd.FromOCIOptions{HTTPClient: r.Client()}).Resolve(ctx, f.Client)
		require.ErrorIs(t, err, context.Canceled)
		require.Less(t, time.Since(began), patience)
	})
}

// TestOCICredentialsAreNotGivenAway: they are sent when they are asked for, and not to a
// server without https.
func TestOCICredentialsAreNotGivenAway(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus70, Skopeo: true}, nil)
	plain := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s is requested", r.URL) }))
	t.Cleanup(plain.Close)
	var authorizations []string
	r := oddRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		authorizations = append(authorizations, r.Header.Get("Authorization"))
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+plain.URL+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	source := lxd.FromOCI(r.URL, "nginx", &lxd.FromOCIOptions{Username: "joe", Password: "s3cret", HTTPClient: r.Client()})
	resolved, err := source.Resolve(t.Context(), f.Client)
	require.NoError(t, err)
	require.Empty(t, resolved.Fingerprint)
	require.Equal(t, []string{""}, authorizations)
}

// TestOCIDockerHub: the registry of docker.io has another name, and so have its images.
func TestOCIDockerHub(t *testing.T) {
	t.Parallel()
	f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: lxdtest.Incus70, Skopeo: true}, nil)
	var asked []string
	client := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.URL.String())
		w := httptest.NewRecorder()
		w.WriteHeader(http.StatusNotFound)
		res := w.Result()
		res.Request = r
		return res, nil
	})}
	for _, image := range []string{"nginx", "grafana/grafana:12"} {
		_, err := lxd.FromOCI("https://docker.io", image, &lxd.FromOCIOptions{HTTPClient: client}).Resolve(t.Context(), f.Client)
		require.ErrorIs(t, err, lxd.ErrNotFound)
		require.ErrorContains(t, err, `"`+image+`" of https://docker.io`)
	}
	require.Equal(t, []string{
		"https://registry-1.docker.io/v2/library/nginx/manifests/latest", "https://registry-1.docker.io/v2/grafana/grafana/manifests/12",
	}, asked)
}

// TestSecretsOfRegistries has the server and the registry repeat the credentials.
func TestSecretsOfRegistries(t *testing.T) {
	t.Parallel()
	ear := newEar()
	flock := &squad{begun: map[string]string{}, ended: map[string]bool{}}
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.Incus70, TLS: true, Skopeo: true})
	t.Cleanup(server.Close)
	cert, key := server.ClientCertificate()
	c := testkit.NewClient(t, server.URL(), &lxd.Options{
		ClientCertificate: cert, ClientKey: key, ServerCertificate: server.Certificate(), RetryTimeout: -1, Logger: ear.logger(),
		Transport: func(next http.RoundTripper) http.RoundTripper { return &parrot{next, flock, "server"} },
	})
	var manner func(w http.ResponseWriter, words string)
	registry := oddRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		user, password, _ := r.BasicAuth()
		manner(w, strings.Join([]string{user, password, r.Header.Get("Authorization")}, " "))
	})
	in := func(w http.ResponseWriter, text string) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, _ = conn.Write([]byte(text))
			_ = conn.Close()
		}
	}
	source := lxd.FromOCI(registry.URL, "nginx", &lxd.FromOCIOptions{Username: "user-s3cr3t", Password: "password-s3cr3t", HTTPClient: registry.Client()})
	ear.tell(source.String())
	for name, respond := range map[string]func(w http.ResponseWriter, words string){
		"status": func(w http.ResponseWriter, words string) {
			in(w, "HTTP/1.1 400 "+words+"\r\nContent-Length: 0\r\n\r\n")
		},
		"refusal": func(w http.ResponseWriter, words string) {
			in(w, "HTTP/1.1 401 "+words+"\r\nContent-Length: 0\r\n\r\n")
		},
		"garbage": func(w http.ResponseWriter, words string) { in(w, words+"\r\n") },
		"page":    func(w http.ResponseWriter, words string) { _, _ = w.Write([]byte(words)) },
		"redirect": func(w http.ResponseWriter, words string) {
			in(w, "HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/?"+url.QueryEscape(words)+"\r\n\r\n")
		},
		"missing": func(w http.ResponseWriter, words string) {
			in(w, "HTTP/1.1 404 "+words+"\r\nContent-Length: 0\r\n\r\n")
		},
	} {
		manner = respond
		_, err := source.Resolve(t.Context(), c)
		if name == "status" || name == "refusal" || name == "missing" {
			require.Error(t, err, name)
		}
		ear.err(err)
	}
	for _, manner := range manners {
		flock.set("server", manner)
		for _, wait := range []bool{false, true} {
			before := flock.spoken
			image, err := c.Images.CreateFrom(t.Context(), source, &lxd.CreateFromOptions{Wait: wait, Progress: func(p lxd.Progress) { ear.tell(p.Text) }})
			ear.image(t, image, err)
			require.Greater(t, flock.spoken, before, manner)
		}
	}
	require.Contains(t, ear.log.String(), "/1.0/images") // the log was on
	ear.check(t)
}
