// Package concurrency_test has many callers make, and delete, one image at the same
// moment.
package concurrency_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// way is a way to make an image; make returns the image that one caller made.
type way struct {
	name string
	make func(t *testing.T, s *suite, aliases []lxd.Alias) (*lxd.Image, error)
}

var ways = []way{
	{"create", func(t *testing.T, s *suite, aliases []lxd.Alias) (*lxd.Image, error) {
		return s.client.Images.Create(t.Context(), bytes.NewReader(s.data), &lxd.CreateOptions{Aliases: aliases, Properties: properties, Wait: true})
	}},
	{"create from a one-shot reader", func(t *testing.T, s *suite, aliases []lxd.Alias) (*lxd.Image, error) {
		return s.client.Images.Create(t.Context(), testkit.OneShotReader{Reader: bytes.NewReader(s.data)}, &lxd.CreateOptions{Aliases: aliases, Properties: properties, Wait: true})
	}},
	{"import by the server", func(t *testing.T, s *suite, aliases []lxd.Alias) (*lxd.Image, error) {
		return testkit.ImageOf(s.client.Images.CreateFromURL(t.Context(), s.url, &lxd.CreateFromURLOptions{Aliases: aliases, Properties: properties, Wait: true}))
	}},
	{"import by the client", func(t *testing.T, s *suite, aliases []lxd.Alias) (*lxd.Image, error) {
		return testkit.ImageOf(s.client.Images.CreateFromURL(t.Context(), s.url, &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Aliases: aliases, Properties: properties, Wait: true}))
	}},
	{"relay", func(t *testing.T, s *suite, aliases []lxd.Alias) (*lxd.Image, error) {
		copied, err := s.source.Copy(t.Context(), s.client, &lxd.CopyOptions{Mode: lxd.CopyRelay, Aliases: aliases, Properties: properties, Wait: true})
		if err != nil {
			return nil, err
		}
		return copied.Image, nil
	}},
}

var properties = map[string]string{"os": "concurrent"}

// suite is one daemon, and one content that its callers make images of.
type suite struct {
	client *lxd.Client
	data   []byte
	url    string
	source *lxd.Image // on another daemon
}

// sizes are the numbers of callers.
func sizes(t *testing.T) []int {
	t.Helper()
	if testkit.Size(t, 0, 1) == 0 {
		return []int{8}
	}
	return []int{8, 32}
}

// TestConcurrency has callers make one image in one way, in all ways, and delete it.
// All succeed, there is one image with one alias, and nothing is left.
func TestConcurrency(t *testing.T) {
	rounds := testkit.Size(t, 1, 3)
	aliased := []bool{true, false}[:testkit.Size(t, 1, 2)]
	mixed := way{"all ways", nil}
	for _, s := range subjects(t) {
		t.Run(s.name, func(t *testing.T) {
			for _, w := range append(slices.Clone(ways), mixed) {
				for _, callers := range sizes(t) {
					for _, alias := range aliased {
						t.Run(fmt.Sprintf("%s, %d callers, alias %t", w.name, callers, alias), func(t *testing.T) {
							for range rounds {
								s.round(t, w, callers, alias)
							}
						})
					}
				}
			}
		})
	}
}

// subject is a daemon, over the unix socket or TLS.
type subject struct {
	*testkit.Subject
	name string
}

func subjects(t *testing.T) []subject {
	t.Helper()
	var list []subject
	for _, s := range testkit.Subjects(t) {
		over := *s
		over.TLS = true
		list = append(list, subject{s, s.Column + " unix"}, subject{&over, s.Column + " TLS"})
	}
	return list
}

func (s subject) round(t *testing.T, w way, callers int, alias bool) {
	t.Helper()
	u := &suite{client: s.Client(t), data: testkit.Unified(t, 100_000)}
	fingerprint := lxdtest.Fingerprint(u.data)
	u.url = serve(t, u.data)
	twin := s.Twin.Client(t)
	var err error
	u.source, err = twin.Images.Create(t.Context(), bytes.NewReader(u.data), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	testkit.DeleteAfter(t, u.source)
	before := s.state(t)
	var aliases []lxd.Alias
	if alias {
		aliases = []lxd.Alias{{Name: testkit.Unique("concurrent"), Description: "of all"}}
	}
	images := make([]*lxd.Image, callers)
	errs := together(callers, func(n int) (err error) {
		create := w.make
		if create == nil {
			create = ways[n%len(ways)].make
		}
		images[n], err = create(t, u, aliases)
		return err
	})
	requireNone(t, errs)
	for _, image := range images {
		require.Equal(t, fingerprint, image.Fingerprint)
		require.ElementsMatch(t, aliases, image.Aliases)
		if w.make != nil && w.name != "relay" {
			require.Equal(t, "concurrent", image.Properties["os"])
		}
	}
	image, err := u.client.Images.Get(t.Context(), fingerprint)
	require.NoError(t, err)
	require.ElementsMatch(t, aliases, image.Aliases)
	require.Equal(t, "concurrent", image.Properties["os"])

	errs = together(callers, func(n int) error { return images[n].Delete(t.Context(), &lxd.DeleteOptions{Wait: true}) })
	errs = slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, lxd.ErrNotFound) })
	requireNone(t, errs)
	require.Equal(t, before, s.state(t))
	testkit.RequireNoTokens(t, s.Subject)
	testkit.RequireNoTokens(t, s.Twin)
}

// TestConcurrentPublish has callers publish one snapshot.
func TestConcurrentPublish(t *testing.T) {
	for _, s := range subjects(t) {
		t.Run(s.name, func(t *testing.T) {
			instance := s.AddInstance(t) + "/snap0"
			client := s.Client(t)
			for _, callers := range sizes(t) {
				for range testkit.Size(t, 1, 2) {
					before := s.state(t)
					images := make([]*lxd.Image, callers)
					errs := together(callers, func(n int) (err error) {
						images[n], err = client.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{Properties: properties, Compression: "none", Wait: true})
						return err
					})
					requireNone(t, errs)
					alias := lxd.Alias{Name: testkit.Unique("published")}
					named := make([]*lxd.Image, callers)
					errs = together(callers, func(n int) (err error) {
						named[n], err = client.Images.CreateFromInstance(t.Context(), instance, &lxd.CreateFromInstanceOptions{
							Properties: properties, Aliases: []lxd.Alias{alias}, ReuseAliases: true, Compression: "none", Wait: true,
						})
						return err
					})
					requireNone(t, errs)
					images = append(images, named...)
					for _, image := range images {
						require.Equal(t, "concurrent", image.Properties["os"])
					}
					_, err := client.Images.GetByAlias(t.Context(), alias.Name)
					require.NoError(t, err)
					errs = together(len(images), func(n int) error { return images[n].Delete(t.Context(), &lxd.DeleteOptions{Wait: true}) })
					errs = slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, lxd.ErrNotFound) })
					requireNone(t, errs)
					require.Equal(t, before, s.state(t))
				}
			}
		})
	}
}

// state is what a round must leave as it was: images, aliases, running operations,
// and on a real daemon the files of images.
func (s subject) state(t *testing.T) []string {
	t.Helper()
	client := s.Client(t)
	images, err := client.Images.All(t.Context(), nil)
	require.NoError(t, err)
	list := testkit.Fingerprints(images)
	aliases, err := client.Aliases.All(t.Context())
	require.NoError(t, err)
	for _, a := range aliases {
		list = append(list, a.Name)
	}
	operations, err := client.Operations(t.Context())
	require.NoError(t, err)
	for _, op := range operations {
		if status := op.Status(); !status.Done() {
			list = append(list, status.Description)
		}
	}
	if s.Real != nil {
		files, err := os.ReadDir(filepath.Join(s.Real.Dir, "images"))
		require.NoError(t, err)
		for _, f := range files {
			list = append(list, f.Name())
		}
	}
	slices.Sort(list)
	return list
}

// together calls do for 0 to n-1, all at the same moment, and returns the errors.
func together(n int, do func(int) error) []error {
	errs, start := make([]error, n), make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			<-start
			errs[i] = do(i)
		})
	}
	close(start)
	all.Wait()
	return errs
}

// requireNone fails if a caller failed, and tells how many did.
func requireNone(t *testing.T, errs []error) {
	t.Helper()
	total := len(errs)
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	require.Empty(t, errs, "%d of %d", len(errs), total)
}

// serve serves content with the headers that the daemons ask for.
func serve(t *testing.T, data []byte) string {
	t.Helper()
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, family := range []string{"LXD", "Incus"} {
			w.Header().Set(family+"-Image-Hash", lxdtest.Fingerprint(data))
			w.Header().Set(family+"-Image-URL", server.URL+"/image")
		}
		http.ServeContent(w, r, "image", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(server.Close)
	return server.URL
}
