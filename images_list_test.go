package lxd_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestEachIsNotSentAgain: a retry would yield the same images again.
func TestEachIsNotSentAgain(t *testing.T) {
	t.Parallel()
	for _, images := range []int{0, 1} {
		var requests atomic.Int64
		c := testkit.NewClient(t, "unix:///nowhere", &lxd.Options{RetryTimeout: shortRetries, Transport: func(http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				requests.Add(1)
				cut := io.MultiReader(strings.NewReader(`{"type":"sync","metadata":[`+strings.Repeat(element["Images.Each"]+",", images)), iotest.ErrReader(io.ErrUnexpectedEOF))
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(cut), Request: req}, nil
			})
		}})
		n, err := lists["Images.Each"](t.Context(), c)
		require.Equal(t, images, n)
		require.ErrorIs(t, err, lxd.ErrUnavailable)
		if images == 0 {
			require.Greater(t, requests.Load(), int64(1))
		} else {
			require.EqualValues(t, 1, requests.Load())
		}
	}
}

// TestListsReportTrust: a list of only the public images is not returned as the whole.
func TestListsReportTrust(t *testing.T) {
	t.Parallel()
	public := `{"type":"sync","metadata":[{"fingerprint":"` + oneFingerprint + `","public":true}]}`
	private := `{"type":"sync","metadata":[{"fingerprint":"` + oneFingerprint + `"}]}`
	for name, test := range map[string]struct {
		list, auth string
		publicOnly bool
		forbidden  bool
	}{
		"public images of one that does not trust":   {public, "untrusted", false, true},
		"none of one that does not trust":            {`{"type":"sync","metadata":[]}`, "untrusted", false, true},
		"public images of one that trusts":           {public, "trusted", false, false},
		"a private one":                              {private, "untrusted", false, false},
		"public images, which is what was asked for": {public, "untrusted", true, false},
	} {
		var demanded, asked atomic.Bool
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/1.0" {
				asked.Store(true)
				_, _ = io.WriteString(w, `{"type":"sync","metadata":{"auth":"`+test.auth+`"}}`)
				return
			}
			demanded.Store(r.Header.Get("X-LXD-authenticated") == "true" && r.Header.Get("X-Incus-authenticated") == "true")
			_, _ = io.WriteString(w, test.list)
		}))
		c := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw), PublicOnly: test.publicOnly})
		for _, list := range []string{"Images.All", "Images.Each"} {
			_, err := lists[list](t.Context(), c)
			if test.forbidden {
				require.ErrorIs(t, err, lxd.ErrForbidden, name)
			} else {
				require.NoError(t, err, name)
			}
			require.Equal(t, !test.publicOnly, demanded.Load(), name)
			require.Equal(t, !test.publicOnly && test.list != private, asked.Load(), name)
		}
		server.Close()
	}
}

// TestListFilters: the server filters by what its filter language can express, and the
// client by the rest.
func TestListFilters(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	for name, test := range map[string]struct {
		opts   lxd.ListOptions
		filter string   // that the server gets
		want   []string // by their property "name"
	}{
		"all":                {lxd.ListOptions{}, "", []string{"a", "b", "vm"}},
		"architecture":       {lxd.ListOptions{Architecture: "x86_64"}, "architecture eq x86_64", []string{"a", "b", "vm"}},
		"other architecture": {lxd.ListOptions{Architecture: "aarch64"}, "architecture eq aarch64", nil},
		"type":               {lxd.ListOptions{Type: lxd.VirtualMachine}, "type eq virtual-machine", []string{"vm"}},
		"public":             {lxd.ListOptions{Public: &yes}, "", []string{"b"}},
		"private":            {lxd.ListOptions{Public: &no}, "", []string{"a", "vm"}},
		"cached":             {lxd.ListOptions{Cached: &yes}, "", nil},
		"with updates":       {lxd.ListOptions{AutoUpdate: &yes}, "", nil},
		"without updates":    {lxd.ListOptions{AutoUpdate: &no}, "", []string{"a", "b", "vm"}},
		"property":           {lxd.ListOptions{Properties: map[string]string{"name": "a"}}, "properties.name eq a", []string{"a"}},
		"properties":         {lxd.ListOptions{Properties: map[string]string{"name": "a", "like": "1.0"}}, "properties.name eq a", []string{"a"}},
		"no pattern":         {lxd.ListOptions{Properties: map[string]string{"like": "1.0"}}, "", []string{"a"}},
		"spaces":             {lxd.ListOptions{Properties: map[string]string{"name": "a b"}}, `properties.name eq "a b"`, nil},
		"quotes":             {lxd.ListOptions{Properties: map[string]string{"odd": `say "x"`}}, "", []string{"b"}},
		"odd name":           {lxd.ListOptions{Properties: map[string]string{"an odd name": "1"}}, "", []string{"b"}},
		"own filter":         {lxd.ListOptions{Filter: "properties.name ne a", Type: lxd.Container}, "type eq container and properties.name ne a", []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFake(t)
			add := func(rootfs bool, name string, public bool, properties map[string]string) {
				properties["name"] = name
				opts := &lxd.CreateOptions{Public: public, Properties: properties, Wait: true}
				data := testkit.Unified(t, 0)
				if rootfs {
					var disk []byte
					data, disk = lxdtest.VMImage(name, 0)
					opts.Rootfs, opts.Type = bytes.NewReader(disk), lxd.VirtualMachine
				}
				_, err := f.Client.Images.Create(t.Context(), bytes.NewReader(data), opts)
				require.NoError(t, err)
			}
			add(false, "a", false, map[string]string{"like": "1.0", "odd": "say x"})
			add(false, "b", true, map[string]string{"like": "1x0", "odd": `say "x"`, "an odd name": "1"})
			add(true, "vm", false, map[string]string{"like": "2"})
			f.ForgetRequests()
			images, err := f.Client.Images.All(t.Context(), &test.opts)
			require.NoError(t, err)
			var each []*lxd.Image
			for image, err := range f.Client.Images.Each(t.Context(), &test.opts) {
				require.NoError(t, err)
				each = append(each, image)
			}
			for _, list := range [][]*lxd.Image{images, each} {
				var names []string
				for _, image := range list {
					names = append(names, image.Properties["name"])
				}
				require.ElementsMatch(t, test.want, names)
			}
			for _, r := range f.Requests() {
				query, err := url.ParseQuery(r.Query)
				require.NoError(t, err)
				require.Equal(t, test.filter, query.Get("filter"))
			}
		})
	}
}

// TestListOfOddValues: whatever a daemon makes of a value in a filter, the image is
// found.
func TestListOfOddValues(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			c := s.Client(t).InProject(s.AddProject(t))
			for _, value := range []string{"a b", "x  y", " x", "x ", "x\u00a0y", "x\u2028y", "x\u3000y", "22.04", "and", "x and y", "not x", "(x)", "Ä"} {
				image := testkit.Upload(t, c, nil)
				image.Properties["odd"] = value
				require.NoError(t, image.Update(t.Context(), nil), "%q", value)
				images, err := c.Images.All(t.Context(), &lxd.ListOptions{Properties: map[string]string{"odd": value}})
				require.NoError(t, err, "%q", value)
				require.Equal(t, []string{image.Fingerprint}, testkit.Fingerprints(images), "%q", value)
			}
		})
	}
}

func TestListOfAllProjects(t *testing.T) {
	t.Parallel()
	eachDialect(t, func(t *testing.T, f *testkit.Fake) {
		f.AddProject("other", true)
		here, there := testkit.Upload(t, f.Client, nil), testkit.Upload(t, f.Client.InProject("other"), nil)
		f.ForgetRequests()
		images, err := f.Client.Images.All(t.Context(), &lxd.ListOptions{AllProjects: true})
		if f.Dialect() == lxdtest.LXD50 {
			require.ErrorIs(t, err, lxd.ErrUnsupported)
			require.ErrorContains(t, err, "images_all_projects")
			require.Empty(t, f.Requests(), "it is not asked for what it does not know")
		} else {
			require.NoError(t, err)
			require.ElementsMatch(t, []string{here.Fingerprint, there.Fingerprint}, testkit.Fingerprints(images))
			for _, image := range images {
				require.Equal(t, image.Project, image.Client().Project())
			}
		}
		images, err = f.Client.InProject("other").Images.All(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, []string{there.Fingerprint}, testkit.Fingerprints(images))
	})
}

// TestEachIsRangedOverAgain lists again, with the options as they were.
func TestEachIsRangedOverAgain(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	one := testkit.Upload(t, f.Client, &lxd.CreateOptions{Properties: map[string]string{"mark": "1"}})
	testkit.Upload(t, f.Client, nil)
	opts := &lxd.ListOptions{Properties: map[string]string{"mark": "1"}}
	each := f.Client.Images.Each(t.Context(), opts)
	opts.Properties["mark"] = "2"
	for range 2 {
		n := 0
		for image, err := range each {
			require.NoError(t, err)
			require.Equal(t, one.Fingerprint, image.Fingerprint)
			n++
		}
		require.Equal(t, 1, n)
	}
	for range each {
		break // which ends the request
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for image, err := range f.Client.Images.Each(ctx, nil) {
		require.Nil(t, image)
		require.ErrorIs(t, err, context.Canceled)
	}
}

// TestEntitlements asks for entitlements with clients that have fine-grained
// permissions and with others.
func TestEntitlements(t *testing.T) {
	t.Parallel()
	asked := []string{"can_view", "can_delete"}
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus70} {
		t.Run(dialect.String(), func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, TLS: true, BearerTokens: []string{"bearer"}}, nil)
			image := testkit.Upload(t, f.Client, nil)
			c := f.Client
			if dialect == lxdtest.LXD69 {
				c = testkit.NewClient(t, f.URL(), &lxd.Options{Token: "bearer", ServerCertificate: f.Certificate()})
			}
			for name, list := range map[string]func(*lxd.Client, []string) ([]*lxd.Image, error){
				"Get": func(c *lxd.Client, asked []string) ([]*lxd.Image, error) {
					image, err := c.Images.GetWithEntitlements(t.Context(), image.Fingerprint, asked...)
					return []*lxd.Image{image}, err
				},
				"All": func(c *lxd.Client, asked []string) ([]*lxd.Image, error) {
					return c.Images.All(t.Context(), &lxd.ListOptions{AccessEntitlements: asked})
				},
				"Each": func(c *lxd.Client, asked []string) (images []*lxd.Image, err error) {
					for image, err := range c.Images.Each(t.Context(), &lxd.ListOptions{AccessEntitlements: asked}) {
						if err != nil {
							return nil, err
						}
						images = append(images, image)
					}
					return images, nil
				},
			} {
				for _, wrong := range []string{"", "can_view,can_edit"} {
					_, err := list(c, []string{wrong})
					require.ErrorIs(t, err, lxd.ErrInvalid, name)
				}
				without, err := list(c, nil)
				require.NoError(t, err, name)
				require.Empty(t, without[0].AccessEntitlements, name)
				with, err := list(c, asked)
				if dialect != lxdtest.LXD69 {
					require.ErrorIs(t, err, lxd.ErrUnsupported, name)
					require.ErrorContains(t, err, "entities_with_entitlements", name)
					continue
				}
				require.NoError(t, err, name)
				require.Equal(t, asked, with[0].AccessEntitlements, name)
				_, err = list(c, []string{"admin"})
				require.ErrorContains(t, err, `Requested entitlement "admin" is not valid`, name)
				_, err = list(f.Client, asked)
				require.ErrorContains(t, err, "fine-grained", name)
			}
		})
	}
}
