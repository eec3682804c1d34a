package lxd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// sourceOf is a source, and what Resolve says of it.
type sourceOf struct {
	source lxd.Source
	want   string // the fingerprint that Resolve returns
	again  bool   // it can be used again
	twice  string // the fingerprint of the image; "" if it is want, "-" if it is not known
}

func writeTemp(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

// sourcesFor returns a source of each kind.
func sourcesFor(t *testing.T, s *testkit.Subject) map[string]sourceOf {
	t.Helper()
	contents := make([][]byte, 5)
	for n := range contents {
		contents[n] = testkit.Unified(t, 0)
	}
	metadata, rootfs := lxdtest.SplitImage(testkit.Unique("split"), 0)
	server := streamstest.NewServer(rollingTree(contents[3]))
	t.Cleanup(server.Close)
	far := testkit.Upload(t, s.Twin.Client(t), nil)
	name := testkit.Unique("far")
	require.NoError(t, far.AddAlias(t.Context(), name, ""))
	return map[string]sourceOf{
		"file":          {source: lxd.FromFile(writeTemp(t, "image.tar", contents[0]), nil), want: lxdtest.Fingerprint(contents[0]), again: true},
		"split file":    {source: lxd.FromFile(writeTemp(t, "meta.tar", metadata), &lxd.FromFileOptions{Rootfs: writeTemp(t, "rootfs", rootfs)}), want: lxdtest.Fingerprint(metadata, rootfs), again: true},
		"reader":        {source: lxd.FromReader(bytes.NewReader(contents[1]), nil), want: lxdtest.Fingerprint(contents[1])},
		"one-shot":      {source: lxd.FromReader(testkit.OneShotReader{Reader: bytes.NewReader(contents[2])}, nil), twice: lxdtest.Fingerprint(contents[2])},
		"known reader":  {source: lxd.FromReader(testkit.OneShotReader{Reader: bytes.NewReader(contents[4])}, &lxd.FromReaderOptions{Fingerprint: lxdtest.Fingerprint(contents[4])}), want: lxdtest.Fingerprint(contents[4])},
		"URL":           {source: lxd.FromURL(server.Direct("direct", streamstest.Direct{Content: contents[0]}), nil), want: lxdtest.Fingerprint(contents[0]), again: true},
		"simplestreams": {source: lxd.FromSimplestreams(server.URL, "rolling", &lxd.FromSimplestreamsOptions{AllowHTTP: true}), want: lxdtest.Fingerprint(contents[3]), again: true},
		"image":         {source: lxd.FromImage(far.Client(), name, nil), want: far.Fingerprint, again: true},
		"instance":      {source: lxd.FromInstance(s.AddInstance(t), nil), twice: "-"},
	}
}

// TestCreateFrom: each kind of source says what it can of its image, and creates it.
func TestCreateFrom(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			for kind, from := range sourcesFor(t, s) {
				t.Run(kind, func(t *testing.T) {
					resolved, err := from.source.Resolve(t.Context(), c)
					require.NoError(t, err)
					require.Equal(t, from.want, resolved.Fingerprint)
					name := testkit.Unique("from")
					opts := &lxd.CreateFromOptions{Aliases: []lxd.Alias{{Name: name}}, Properties: map[string]string{"made": "here"}, Wait: true}
					image, err := c.Images.CreateFrom(t.Context(), from.source, opts)
					require.NoError(t, err)
					testkit.DeleteAfter(t, image)
					if from.twice != "-" {
						require.Contains(t, []string{from.want, from.twice}, image.Fingerprint)
					}
					require.Equal(t, "here", image.Properties["made"])
					require.Len(t, image.Aliases, 1)
					require.Equal(t, name, image.Aliases[0].Name)
					if !from.again {
						return
					}
					again, err := c.Images.CreateFrom(t.Context(), from.source, opts)
					require.NoError(t, err)
					require.Equal(t, image.Fingerprint, again.Fingerprint)
					opts.IfExists = lxd.ErrorIfExists
					_, err = c.Images.CreateFrom(t.Context(), from.source, opts)
					require.ErrorIs(t, err, lxd.ErrExists)
					opts.IfExists, opts.Wait = "", false
					again, err = c.Images.CreateFrom(t.Context(), from.source, opts)
					require.NoError(t, err)
					require.NoError(t, again.Wait(t.Context()))
				})
			}
		})
	}
}

// TestSourcesSay: what Resolve says beside the fingerprint.
func TestSourcesSay(t *testing.T) {
	t.Parallel()
	f, far := testkit.StartFake(t), testkit.StartFake(t)
	ctx := t.Context()
	content := testkit.Unified(t, 0)
	server := streamstest.NewServer(rollingTree(content))
	t.Cleanup(server.Close)
	resolved, err := lxd.FromSimplestreams(server.URL, "rolling", &lxd.FromSimplestreamsOptions{AllowHTTP: true}).Resolve(ctx, f.Client)
	require.NoError(t, err)
	require.Equal(t, lxd.Container, resolved.Type)
	require.Equal(t, "x86_64", resolved.Architecture)
	require.EqualValues(t, len(content), resolved.Size)
	require.Equal(t, "Distro", resolved.Properties["os"])
	require.Contains(t, resolved.Aliases, "rolling")

	image := testkit.Upload(t, far.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web"}}, Properties: map[string]string{"os": "own"}})
	resolved, err = lxd.FromImage(far.Client, image.Fingerprint[:12], nil).Resolve(ctx, f.Client)
	require.NoError(t, err)
	require.Equal(t, &lxd.SourceImage{
		Fingerprint: image.Fingerprint, Type: lxd.Container, Architecture: image.Architecture, Properties: image.Properties, Size: image.Size, Aliases: []string{"web"},
	}, resolved)
	_, err = lxd.FromImage(far.Client, "web", &lxd.FromImageOptions{Type: lxd.VirtualMachine}).Resolve(ctx, f.Client)
	require.ErrorIs(t, err, lxd.ErrNotFound)

	reader := bytes.NewReader(append([]byte("skipped"), content...))
	_, err = reader.Seek(7, io.SeekStart)
	require.NoError(t, err)
	for range 2 { // Resolve leaves the position as it was
		resolved, err = lxd.FromReader(reader, nil).Resolve(ctx, f.Client)
		require.NoError(t, err)
		require.Equal(t, &lxd.SourceImage{Fingerprint: lxdtest.Fingerprint(content), Size: int64(len(content))}, resolved)
	}
	_, rootfs := lxdtest.SplitImage("disk", 0)
	disk := append([]byte("QFI\xfb"), rootfs...)
	metadata, _ := lxdtest.SplitImage("disk", 0)
	resolved, err = lxd.FromReader(bytes.NewReader(metadata), &lxd.FromReaderOptions{Rootfs: bytes.NewReader(disk)}).Resolve(ctx, f.Client)
	require.NoError(t, err)
	require.Equal(t, lxd.VirtualMachine, resolved.Type)
}

// TestCreateFromKeepsPublic: an option that is not set changes nothing of an image that
// the server has, whatever the source is.
func TestCreateFromKeepsPublic(t *testing.T) {
	t.Parallel()
	f, far := testkit.StartFake(t), testkit.StartFake(t)
	content := testkit.Unified(t, 0)
	for _, c := range []*lxd.Client{f.Client, far.Client} {
		_, err := c.Images.Create(t.Context(), bytes.NewReader(content), &lxd.CreateOptions{Public: c == f.Client, Wait: true})
		require.NoError(t, err)
	}
	fingerprint := lxdtest.Fingerprint(content)
	for _, source := range []lxd.Source{lxd.FromReader(bytes.NewReader(content), nil), lxd.FromImage(far.Client, fingerprint, nil)} {
		image, err := f.Client.Images.CreateFrom(t.Context(), source, &lxd.CreateFromOptions{Wait: true})
		require.NoError(t, err)
		require.True(t, image.Public, source)
	}
	image, err := far.Client.Images.CreateFrom(t.Context(), lxd.FromImage(f.Client, fingerprint, nil), &lxd.CreateFromOptions{Public: true, Wait: true})
	require.NoError(t, err)
	require.True(t, image.Public)
}

// TestCreateFromSendsNothing: a file that the server has is not sent.
func TestCreateFromSendsNothing(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	source := lxd.FromFile(writeTemp(t, "image.tar", testkit.Unified(t, 0)), nil)
	_, err := f.Client.Images.CreateFrom(t.Context(), source, &lxd.CreateFromOptions{Wait: true})
	require.NoError(t, err)
	f.ForgetRequests()
	_, err = f.Client.Images.CreateFrom(t.Context(), source, &lxd.CreateFromOptions{Wait: true})
	require.NoError(t, err)
	for _, r := range f.Requests() {
		require.Equal(t, "GET", r.Method)
	}
}

// TestCreateFromInput: what is refused before anything is sent.
func TestCreateFromInput(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	ctx := t.Context()
	update := &lxd.CreateFromOptions{AutoUpdate: true}
	file := lxd.FromFile(writeTemp(t, "image.tar", testkit.Unified(t, 0)), nil)
	for name, test := range map[string]struct {
		source lxd.Source
		opts   *lxd.CreateFromOptions
		is     error
	}{
		"nil source":            {nil, nil, lxd.ErrInvalid},
		"no path":               {lxd.FromFile("", nil), nil, lxd.ErrInvalid},
		"no file":               {lxd.FromFile(filepath.Join(t.TempDir(), "none"), nil), nil, fs.ErrNotExist},
		"no rootfs":             {lxd.FromFile(writeTemp(t, "m", []byte("x")), &lxd.FromFileOptions{Rootfs: "/nowhere"}), nil, fs.ErrNotExist},
		"text":                  {lxd.FromFile(writeTemp(t, "m", []byte("hello")), nil), nil, lxd.ErrInvalid},
		"nil reader":            {lxd.FromReader(nil, nil), nil, lxd.ErrInvalid},
		"no URL":                {lxd.FromURL("images:debian", nil), nil, lxd.ErrInvalid},
		"no server":             {lxd.FromSimplestreams("", "debian", nil), nil, lxd.ErrInvalid},
		"no alias":              {lxd.FromSimplestreams("https://localhost", "", nil), nil, lxd.ErrInvalid},
		"no client":             {lxd.FromImage(nil, "web", nil), nil, lxd.ErrInvalid},
		"no instance":           {lxd.FromInstance("", nil), nil, lxd.ErrInvalid},
		"update of a file":      {file, update, lxd.ErrInvalid},
		"update of a reader":    {lxd.FromReader(bytes.NewReader(testkit.Unified(t, 0)), nil), update, lxd.ErrInvalid},
		"update of an instance": {lxd.FromInstance("web1", nil), update, lxd.ErrInvalid},
		"alias":                 {file, &lxd.CreateFromOptions{Aliases: []lxd.Alias{{}}}, lxd.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Client.Images.CreateFrom(ctx, test.source, test.opts)
			require.ErrorIs(t, err, test.is)
			if test.source != nil {
				require.NotEmpty(t, test.source.String())
			}
		})
	}
	require.Empty(t, f.Requests())
	require.Equal(t, "URL https://host/x", lxd.FromURL("https://user:word@host/x?token=y", nil).String())
	require.NotContains(t, lxd.FromSimplestreams("https://user:word@host/x", "web", nil).String(), "word")
}

// TestOpenSource: images of remotes, and what is no name of one.
func TestOpenSource(t *testing.T) {
	t.Parallel()
	f, far := testkit.StartFake(t), testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	ctx := t.Context()
	content := testkit.Unified(t, 0)
	streams := streamstest.NewSelfSignedServer(rollingTree(content))
	t.Cleanup(streams.Close)
	image := testkit.Upload(t, far.Client, &lxd.CreateOptions{Public: true, Aliases: []lxd.Alias{{Name: "web:v1"}}})
	dir := newConfigDir(t, fmt.Sprintf(`default-remote: farm
remotes:
  farm:
    addr: %s
    protocol: lxd
    public: true
  images:
    addr: %s
    protocol: simplestreams
    public: true
`, far.Server.URL(), streams.URL))
	dir.write(t, "servercerts/farm.crt", far.Certificate())
	opts := &lxd.OpenSourceOptions{
		Options:       &lxd.Options{ConfigDir: dir.dir},
		Simplestreams: lxd.FromSimplestreamsOptions{Certificate: streams.Certificate},
	}
	for name, want := range map[string]string{
		"farm:web:v1": image.Fingerprint, "farm:" + image.Fingerprint[:12]: image.Fingerprint, image.Fingerprint: image.Fingerprint,
		"images:rolling": lxdtest.Fingerprint(content),
	} {
		source, err := lxd.OpenSource(name, opts)
		require.NoError(t, err, name)
		created, err := f.Client.Images.CreateFrom(ctx, source, &lxd.CreateFromOptions{Wait: true})
		require.NoError(t, err, name)
		require.Equal(t, want, created.Fingerprint)
		require.NoError(t, source.Close())
	}
	for _, name := range []string{"", ":web", "farm:"} {
		_, err := lxd.OpenSource(name, opts)
		require.ErrorIs(t, err, lxd.ErrInvalid, name)
	}
	_, err := lxd.OpenSource("none:web", opts)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	require.ErrorContains(t, err, "farm, images")
	source, err := lxd.OpenSource("farm:none", opts)
	require.NoError(t, err)
	_, err = source.Resolve(ctx, f.Client)
	require.ErrorIs(t, err, lxd.ErrNotFound)
	require.NotContains(t, err.Error(), "similar")
	require.NoError(t, source.Close())
	_, err = source.Resolve(ctx, f.Client)
	require.ErrorIs(t, err, lxd.ErrUnavailable)
	require.NoError(t, errors.Join((*lxd.OpenedSource)(nil).Close(), (&lxd.OpenedSource{}).Close()))
}

// TestSourcesNameWhatIsSimilar: the error for an alias that does not exist.
func TestSourcesNameWhatIsSimilar(t *testing.T) {
	t.Parallel()
	f, far := testkit.StartFake(t), testkit.StartFake(t)
	testkit.Upload(t, far.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "debian/13"}, {Name: "db"}}})
	tree := streamstest.NewServer(rollingTree(testkit.Unified(t, 0)))
	t.Cleanup(tree.Close)
	for want, source := range map[string]lxd.Source{
		"(similar: debian/13)": lxd.FromImage(far.Client, "debian/31", nil),
		"(similar: rolling)":   lxd.FromSimplestreams(tree.URL, "rolling/ia", &lxd.FromSimplestreamsOptions{AllowHTTP: true}),
	} {
		_, err := source.Resolve(t.Context(), f.Client)
		require.ErrorIs(t, err, lxd.ErrNotFound)
		require.ErrorContains(t, err, want)
		_, err = f.Client.Images.CreateFrom(t.Context(), source, &lxd.CreateFromOptions{Wait: true})
		require.ErrorIs(t, err, lxd.ErrNotFound)
		require.ErrorContains(t, err, want)
	}
}

// TestArchitectureOfStream: the architecture selects the image, in any spelling, who
// fetches it notwithstanding.
func TestArchitectureOfStream(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			contents := map[string][]byte{"amd64": testkit.Unified(t, 0), "arm64": testkit.Unified(t, 0)}
			var products []streamstest.Product
			for arch, content := range contents {
				products = append(products, streamstest.Product{
					Name: "product-" + arch, Aliases: []string{"rolling"}, Arch: arch,
					Versions: []streamstest.Version{{Serial: "20240101", Family: "both", Unified: content}},
				})
			}
			tree := streamstest.NewServer(streamstest.Tree(products, nil))
			t.Cleanup(tree.Close)
			for architecture, arch := range map[string]string{"": "amd64", "aarch64": "arm64", "arm64": "arm64", "x86_64": "amd64"} {
				for _, alias := range []string{"rolling", "rolling/" + arch} {
					for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaClient} {
						source := lxd.FromSimplestreams(tree.URL, alias, &lxd.FromSimplestreamsOptions{AllowHTTP: true, Architecture: architecture, Via: via})
						resolved, err := source.Resolve(t.Context(), c)
						require.NoError(t, err)
						require.Equal(t, lxdtest.Fingerprint(contents[arch]), resolved.Fingerprint)
						image, err := c.Images.CreateFrom(t.Context(), source, &lxd.CreateFromOptions{Wait: true})
						require.NoError(t, err, "%q of %q", architecture, alias)
						require.Equal(t, resolved.Fingerprint, image.Fingerprint)
						require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
					}
				}
			}
		})
	}
}

// TestInstanceSourceOfSources: a server fetches what it can read itself.
func TestInstanceSourceOfSources(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			this := *s
			this.TLS = true
			c := this.Client(t)
			content := testkit.Unified(t, 0)
			tree := streamstest.NewTLSServer(rollingTree(content))
			t.Cleanup(tree.Close)
			far := testkit.Upload(t, this.Twin.TLSClient(t), &lxd.CreateOptions{Public: true})
			for want, source := range map[string]lxd.Source{
				lxdtest.Fingerprint(content): lxd.FromSimplestreams(tree.URL, "rolling", &lxd.FromSimplestreamsOptions{Certificate: tree.CA, Architecture: "x86_64"}),
				far.Fingerprint:              lxd.FromImage(far.Client(), far.Fingerprint[:20], nil),
			} {
				from, err := c.Images.InstanceSource(t.Context(), source)
				require.NoError(t, err)
				require.Empty(t, from.Secret)
				require.NotEmpty(t, from.Server)
				name := createInstance(t, s, c, from)
				image, err := c.Images.Get(t.Context(), want)
				require.NoError(t, err)
				testkit.DeleteAfter(t, image)
				require.True(t, image.Cached)
				used, err := image.UsedBy(t.Context())
				require.NoError(t, err)
				require.Equal(t, name, used[0].Name)
			}
			for _, source := range []lxd.Source{
				lxd.FromFile("image.tar", nil), lxd.FromReader(bytes.NewReader(content), nil), lxd.FromURL("https://host/image", nil), lxd.FromInstance("web1", nil),
			} {
				_, err := c.Images.InstanceSource(t.Context(), source)
				require.ErrorIs(t, err, lxd.ErrUnsupported)
				require.ErrorContains(t, err, source.String())
			}
		})
	}
}

// TestInstanceSourceInput: what is refused before anything is sent.
func TestInstanceSourceInput(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	for name, source := range map[string]lxd.Source{
		"nil":          nil,
		"alias":        lxd.FromSimplestreams("https://host", "", nil),
		"server":       lxd.FromSimplestreams("host", "web", nil),
		"client":       lxd.FromImage(nil, "web", nil),
		"architecture": lxd.FromSimplestreams("https://host", "web", &lxd.FromSimplestreamsOptions{Architecture: "pdp11"}),
		"two":          lxd.FromSimplestreams("https://host", "web/amd64", &lxd.FromSimplestreamsOptions{Architecture: "arm64"}),
		"one version":  lxd.FromSimplestreams("https://host", strings.Repeat("0a", 32), &lxd.FromSimplestreamsOptions{Architecture: "arm64"}),
	} {
		_, err := f.Client.Images.InstanceSource(t.Context(), source)
		require.ErrorIs(t, err, lxd.ErrInvalid, name)
	}
	_, err := f.Client.Images.CreateFrom(t.Context(), lxd.FromFile("image.tar", nil), &lxd.CreateFromOptions{Resolved: &lxd.SourceImage{Fingerprint: "x"}})
	require.Equal(t, "CreateFromOptions.Resolved.Fingerprint", testkit.ErrOf[*lxd.InputError](t, err).Field)
	require.Empty(t, f.Requests())
}
