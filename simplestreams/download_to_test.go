package simplestreams_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

// saved is an image on a server, and an empty directory.
type saved struct {
	server         *streamstest.Server
	client         *simplestreams.Client
	image          *simplestreams.Image
	metadata, root []byte
	dir            string
}

const savedUnified = "images/unified/20240101/lxd_combined.tar.gz"

// newSaved serves the split image "big" and the unified image "unified", of which ref is resolved.
func newSaved(t *testing.T, ref string, change func(*simplestreams.Options), edit func(streamstest.Object)) *saved {
	t.Helper()
	s := &saved{metadata: []byte("\xfd7zXZ\x00 metadata"), root: make([]byte, 1<<20+333), dir: t.TempDir()}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(s.root)
	copy(s.root, "hsqs")
	unified := bytes.Clone(s.root)
	copy(unified, "\x1f\x8b")
	s.server = serve(t, streamstest.Tree([]streamstest.Product{
		{Name: "big", Aliases: []string{"big"}, Versions: []streamstest.Version{{Serial: "20240101", Metadata: s.metadata, Roots: map[string][]byte{"squashfs": s.root}}}},
		{Name: "unified", Aliases: []string{"unified"}, Versions: []streamstest.Version{{Serial: "20240101", Unified: unified}}},
	}, edit))
	s.client = newClient(t, s.server, change)
	var err error
	s.image, err = s.client.Resolve(t.Context(), ref, nil)
	require.NoError(t, err)
	if ref == "unified" {
		s.metadata, s.root = unified, nil
	}
	s.server.Requests()

	return s
}

func (s *saved) to(t *testing.T, options *simplestreams.DownloadToOptions) (*simplestreams.Files, error) {
	t.Helper()
	return s.client.DownloadTo(t.Context(), s.image, s.dir, options)
}

func (s *saved) partial(kind string) string {
	return filepath.Join(s.dir, s.image.Fingerprint+kind+".partial")
}

// requireWhole checks that the directory has the image and nothing else.
func (s *saved) requireWhole(t *testing.T, files *simplestreams.Files) {
	t.Helper()
	whole := map[string][]byte{files.Metadata: s.metadata, files.Rootfs: s.root}
	if s.root == nil {
		whole = map[string][]byte{files.Image: s.metadata}
	}
	for path, content := range whole {
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(content, got), path)
	}
	require.Len(t, s.names(t), len(whole))
	exported := lxd.ExportedFiles(*files)
	require.NoError(t, exported.Verify(t.Context(), s.image.Fingerprint))
}

// names returns the sorted names in the directory.
func (s *saved) names(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	names := []string{}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}

	return names
}

// sent returns the paths and ranges of the requests since the previous call.
func (s *saved) sent() []string {
	sent := []string{}
	for _, request := range s.server.Requests() {
		line := request.Path
		if request.Method != http.MethodGet {
			line = request.Method + " " + line
		}
		if part := request.Header.Get("Range"); part != "" {
			line += " " + part
		}
		sent = append(sent, line)
	}

	return sent
}

func TestDownloadToFetchesOnce(t *testing.T) {
	t.Parallel()
	for ref, names := range map[string][]string{"big": {"web.meta.tar.xz", "web.squashfs"}, "unified": {"web.tar.gz"}} {
		s := newSaved(t, ref, nil, nil)
		var done, total int64
		options := &simplestreams.DownloadToOptions{Name: "web", Sync: true, Progress: func(d, all int64) { done, total = d, all }}
		files, err := s.to(t, options)
		require.NoError(t, err)
		require.Equal(t, names, s.names(t))
		s.requireWhole(t, files)
		require.Equal(t, s.image.Size, done)
		require.Equal(t, s.image.Size, total)
		require.Len(t, s.sent(), len(names))

		done = 0
		again, err := s.to(t, options)
		require.NoError(t, err)
		require.Equal(t, files, again)
		require.Equal(t, s.image.Size, done, "existing content is counted")
		require.Empty(t, s.sent(), "nothing is downloaded")

		// Files of these names with other content are replaced.
		last := filepath.Join(s.dir, names[len(names)-1])
		damaged, err := os.ReadFile(last)
		require.NoError(t, err)
		damaged[len(damaged)/2] ^= 1
		require.NoError(t, os.WriteFile(last, damaged, 0o600))
		again, err = s.to(t, options)
		require.NoError(t, err)
		s.requireWhole(t, again)
		require.Len(t, s.sent(), len(names))
		info, err := os.Stat(last)
		require.NoError(t, err)
		require.EqualValues(t, 0o644, info.Mode().Perm()|0o044, "less the umask")
	}
}

// TestDownloadToOfFilesCutElsewhere has the bytes of the image, divided at another place.
func TestDownloadToOfFilesCutElsewhere(t *testing.T) {
	t.Parallel()
	s := newSaved(t, "big", nil, nil)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "web.meta.tar.xz"), append(bytes.Clone(s.metadata), s.root[:4]...), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "web.img"), s.root[4:], 0o600))
	files, err := s.to(t, &simplestreams.DownloadToOptions{Name: "web"})
	require.NoError(t, err)
	require.Len(t, s.sent(), 2)
	require.NoError(t, os.Remove(filepath.Join(s.dir, "web.img")))
	s.requireWhole(t, files)
}

func TestDownloadToResumes(t *testing.T) {
	t.Parallel()
	const part = 1 << 19
	flipped := func(content []byte) []byte {
		changed := bytes.Clone(content)
		changed[5] ^= 1
		return changed
	}
	for _, test := range []struct {
		name, ref string
		metadata  func(s *saved) []byte
		root      func(s *saved) []byte
		fault     streamstest.Fault
		sent      []string
	}{
		{name: "nothing", ref: "big", sent: []string{bigMeta, bigRoot}},
		{name: "half of a unified image", ref: "unified", metadata: func(s *saved) []byte { return s.metadata[:part] }, sent: []string{savedUnified + " bytes=524288-"}},
		{name: "all of a unified image", ref: "unified", metadata: func(s *saved) []byte { return s.metadata }, sent: []string{}},
		{name: "damaged half of a unified image", ref: "unified", metadata: func(s *saved) []byte { return flipped(s.metadata[:part]) }, sent: []string{savedUnified + " bytes=524288-", savedUnified}},
		{name: "longer than the unified image", ref: "unified", metadata: func(s *saved) []byte { return append(bytes.Clone(s.metadata), 0) }, sent: []string{savedUnified}},
		{name: "half of the metadata", ref: "big", metadata: func(s *saved) []byte { return s.metadata[:8] }, sent: []string{bigMeta + " bytes=8-", bigRoot}},
		{name: "half of the rootfs", ref: "big", metadata: func(s *saved) []byte { return s.metadata }, root: func(s *saved) []byte { return s.root[:part] }, sent: []string{bigRoot + " bytes=524288-"}},
		{name: "both", ref: "big", metadata: func(s *saved) []byte { return s.metadata }, root: func(s *saved) []byte { return s.root }, sent: []string{}},
		{name: "damaged metadata", ref: "big", metadata: func(s *saved) []byte { return flipped(s.metadata) }, root: func(s *saved) []byte { return s.root }, sent: []string{bigMeta}},
		{name: "damaged rootfs", ref: "big", metadata: func(s *saved) []byte { return s.metadata }, root: func(s *saved) []byte { return flipped(s.root[:part]) }, sent: []string{bigRoot + " bytes=524288-", bigRoot}},
		{name: "without ranges", ref: "unified", metadata: func(s *saved) []byte { return s.metadata[:part] }, fault: streamstest.NoRanges(), sent: []string{savedUnified + " bytes=524288-"}},
		{name: "cut again", ref: "unified", metadata: func(s *saved) []byte { return s.metadata[:part] }, fault: streamstest.Times(1, streamstest.Cut(1000)), sent: []string{savedUnified + " bytes=524288-", savedUnified + " bytes=525288-"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSaved(t, test.ref, func(o *simplestreams.Options) { o.RetryTimeout = 0 }, nil)
			for kind, content := range map[string]func(*saved) []byte{"": test.metadata, ".rootfs": test.root} {
				if content != nil {
					require.NoError(t, os.WriteFile(s.partial(kind), content(s), 0o600))
				}
			}
			if test.fault != nil {
				s.server.Fault(savedUnified, test.fault)
			}
			files, err := s.to(t, nil)
			require.NoError(t, err)
			s.requireWhole(t, files)
			require.Equal(t, test.sent, s.sent())
		})
	}
}

// TestDownloadToWithoutHashes has only the fingerprint to find out which file is wrong.
func TestDownloadToWithoutHashes(t *testing.T) {
	t.Parallel()
	s := newSaved(t, "big", nil, func(products streamstest.Object) {
		items := products["big"].(streamstest.Object)["versions"].(streamstest.Object)["20240101"].(streamstest.Object)["items"].(streamstest.Object)
		for _, item := range items {
			delete(item.(streamstest.Object), "sha256")
		}
	})
	damaged := bytes.Clone(s.metadata)
	damaged[6] ^= 1
	require.NoError(t, os.WriteFile(s.partial(""), damaged, 0o600))
	files, err := s.to(t, nil)
	require.NoError(t, err)
	s.requireWhole(t, files)
	require.Equal(t, []string{bigRoot, bigMeta, bigRoot}, s.sent())
}

// TestDownloadToWithoutSizes resumes what the index has no sizes for, if HEAD works.
func TestDownloadToWithoutSizes(t *testing.T) {
	t.Parallel()
	withoutSizes := func(products streamstest.Object) {
		items := products["big"].(streamstest.Object)["versions"].(streamstest.Object)["20240101"].(streamstest.Object)["items"].(streamstest.Object)
		for _, item := range items {
			delete(item.(streamstest.Object), "size")
		}
	}
	for name, test := range map[string]struct {
		fault streamstest.Fault
		last  string
	}{
		"HEAD works": {nil, bigRoot + " bytes=9-"},
		"HEAD fails": {func(_ *streamstest.Server, next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					w.WriteHeader(http.StatusMethodNotAllowed)
					return
				}
				next.ServeHTTP(w, r)
			})
		}, bigRoot},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSaved(t, "big", nil, withoutSizes)
			require.NoError(t, os.WriteFile(s.partial(".rootfs"), s.root[:9], 0o600))
			if test.fault != nil {
				s.server.Fault(bigRoot, test.fault)
			}
			files, err := s.to(t, nil)
			require.NoError(t, err)
			s.requireWhole(t, files)
			require.Equal(t, []string{"HEAD " + bigMeta, "HEAD " + bigRoot, bigMeta, test.last}, s.sent())
		})
	}
}

func TestDownloadToKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]streamstest.Fault{
		"cut":     streamstest.Cut(1 << 19),
		"stalled": streamstest.Stall(1 << 19),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSaved(t, "big", func(o *simplestreams.Options) { o.StallTimeout = 500 * time.Millisecond }, nil)
			s.server.Fault(bigRoot, fault)
			_, err := s.to(t, nil)
			var failed *simplestreams.Error
			require.ErrorAs(t, err, &failed)
			require.ErrorContains(t, err, "call DownloadTo again")
			require.Equal(t, []string{filepath.Base(s.partial("")), filepath.Base(s.partial(".rootfs"))}, s.names(t))
			s.server.Fault(bigRoot, nil)
			s.sent()
			files, err := s.to(t, nil)
			require.NoError(t, err)
			s.requireWhole(t, files)
			require.Equal(t, []string{bigRoot + " bytes=524288-"}, s.sent())
		})
	}
}

// TestDownloadToFailsAndDoubts has files that are not as the index says: nothing of them stays, and the next use of the
// index revalidates it.
func TestDownloadToFailsAndDoubts(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault streamstest.Fault
		is    error
	}{
		"gone":     {streamstest.Status(http.StatusNotFound), simplestreams.ErrNotFound},
		"shorter":  {streamstest.Truncate(1000), simplestreams.ErrBadData},
		"corrupt":  {streamstest.Corrupt(1000), simplestreams.ErrBadData},
		"web page": {streamstest.HTML(), simplestreams.ErrBadData},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for ref, path := range map[string]string{"big": bigRoot, "unified": savedUnified} {
				s := newSaved(t, ref, nil, nil)
				s.server.Fault(path, test.fault)
				_, err := s.to(t, nil)
				require.ErrorIs(t, err, test.is)
				require.ErrorContains(t, err, path)
				for _, kept := range s.names(t) {
					require.Equal(t, filepath.Base(s.partial("")), kept, "the metadata is right")
					require.Equal(t, "big", ref)
				}
				s.sent()
				_, err = s.client.Resolve(t.Context(), ref, nil)
				require.NoError(t, err)
				require.Equal(t, []string{streamstest.IndexPath, streamstest.ProductsPath}, s.sent())
			}
		})
	}
}

func TestDownloadToRefuses(t *testing.T) {
	t.Parallel()
	s := newSaved(t, "big", nil, nil)
	for _, name := range []string{"..", "a/b", "/a", "a\nb", " a", "\xff", string(bytes.Repeat([]byte("a"), 300))} {
		_, err := s.to(t, &simplestreams.DownloadToOptions{Name: name})
		var input *simplestreams.InputError
		require.ErrorAs(t, err, &input, name)
		require.Equal(t, "DownloadToOptions.Name", input.Field)
	}
	_, err := s.client.DownloadTo(t.Context(), s.image, "", nil)
	require.ErrorIs(t, err, simplestreams.ErrInvalid)
	_, err = s.client.DownloadTo(t.Context(), nil, s.dir, nil)
	require.ErrorIs(t, err, simplestreams.ErrInvalid)
	_, err = s.client.DownloadTo(t.Context(), s.image, filepath.Join(s.dir, "missing"), nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	evil := *s.image
	evil.Files = []simplestreams.File{{Path: "../../etc/passwd", SHA256: s.image.Fingerprint}}
	_, err = s.client.DownloadTo(t.Context(), &evil, s.dir, nil)
	require.ErrorIs(t, err, simplestreams.ErrBadData)
	require.Empty(t, s.sent())
	require.Empty(t, s.names(t))
}

func TestDownloadToObeysContext(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(s *saved, cancel func()) func(done, total int64){
		"before": func(_ *saved, cancel func()) func(int64, int64) {
			cancel()
			return nil
		},
		"in the transfer": func(_ *saved, cancel func()) func(int64, int64) {
			return func(int64, int64) { cancel() }
		},
		"while it verifies": func(s *saved, cancel func()) func(int64, int64) {
			if err := os.WriteFile(s.partial(""), s.metadata[:1<<20], 0o600); err != nil {
				panic(err)
			}
			return func(int64, int64) { cancel() }
		},
		"in a stall": func(s *saved, cancel func()) func(int64, int64) {
			s.server.Fault(savedUnified, func(server *streamstest.Server, next http.Handler) http.Handler {
				cancel()
				return streamstest.Stall(-1)(server, next)
			})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSaved(t, "unified", nil, nil)
			stop := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			progress := start(s, func() { cancel(stop) })
			_, err := s.client.DownloadTo(ctx, s.image, s.dir, &simplestreams.DownloadToOptions{Progress: progress})
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorIs(t, err, stop)
			s.server.Fault(savedUnified, nil)
			files, err := s.to(t, nil)
			require.NoError(t, err)
			s.requireWhole(t, files)
		})
	}
}

// TestDownloadToTogether downloads an image four times at once.
func TestDownloadToTogether(t *testing.T) {
	t.Parallel()
	s := newSaved(t, "big", nil, nil)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			_, err := s.to(t, &simplestreams.DownloadToOptions{Name: "web"})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	require.Len(t, s.sent(), 2)
	s.requireWhole(t, &simplestreams.Files{Metadata: filepath.Join(s.dir, "web.meta.tar.xz"), Rootfs: filepath.Join(s.dir, "web.squashfs")})
}

// envDownloadTo makes a process of this test binary download the image big: the server's URL, and a directory.
const envDownloadTo = "SIMPLESTREAMS_TEST_DOWNLOAD_TO"

// downloadToInProcess is that process.
func downloadToInProcess(url, dir string) error {
	client, err := simplestreams.New(url, &simplestreams.Options{AllowHTTP: true})
	if err != nil {
		return err
	}
	ctx := context.Background()
	image, err := client.Resolve(ctx, "big", nil)
	if err != nil {
		return err
	}
	_, err = client.DownloadTo(ctx, image, dir, &simplestreams.DownloadToOptions{Name: "web"})

	return err
}

// TestDownloadToIsKilled kills processes while they wait for the server after some bytes, and at random moments.
func TestDownloadToIsKilled(t *testing.T) {
	t.Parallel()
	s := newSaved(t, "big", nil, nil)
	start := func() *exec.Cmd {
		child := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // this test binary
		child.Env = append(os.Environ(), envDownloadTo+"="+s.server.URL, envDownloadTo+"_DIR="+s.dir)
		child.Stderr = os.Stderr
		require.NoError(t, child.Start())

		return child
	}
	const step = 100_000
	for round := range int64(3) {
		s.server.Fault(bigRoot, streamstest.Stall(step))
		child := start()
		require.Eventually(t, func() bool {
			info, err := os.Stat(s.partial(".rootfs"))
			return err == nil && info.Size() == (round+1)*step
		}, time.Minute, time.Millisecond)
		require.NoError(t, child.Process.Kill())
		require.Error(t, child.Wait())
		require.Len(t, s.names(t), 2, "there are no final names")
		sent := s.sent()
		want := bigRoot
		if round > 0 {
			want += fmt.Sprintf(" bytes=%d-", round*step)
		}
		require.Equal(t, want, sent[len(sent)-1])
	}

	s.server.Fault(bigRoot, nil)
	killed := 0
	for range 10 {
		child := start()
		ended := make(chan error, 1)
		go func() { ended <- child.Wait() }()
		select {
		case <-time.After(time.Duration(rand.IntN(200)) * time.Millisecond): // the test is about random moments
			killed++
			_ = child.Process.Kill()
			<-ended
		case err := <-ended:
			require.NoError(t, err)
		}
		for name, content := range map[string][]byte{"web.meta.tar.xz": s.metadata, "web.squashfs": s.root} {
			got, err := os.ReadFile(filepath.Join(s.dir, name))
			require.True(t, errors.Is(err, os.ErrNotExist) || err == nil && bytes.Equal(content, got), "a file has its name only when it is whole")
		}
	}
	t.Logf("%d of 10 processes were killed", killed)
	files, err := s.to(t, &simplestreams.DownloadToOptions{Name: "web"})
	require.NoError(t, err)
	s.requireWhole(t, files)
}

// TestDownloadToWaits has another process hold the image.
func TestDownloadToWaits(t *testing.T) {
	t.Parallel()
	s := newSaved(t, "big", nil, nil)
	s.server.Fault(bigRoot, streamstest.Stall(1000))
	child := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // this test binary
	child.Env = append(os.Environ(), envDownloadTo+"="+s.server.URL, envDownloadTo+"_DIR="+s.dir)
	require.NoError(t, child.Start())
	require.Eventually(t, func() bool { return len(s.names(t)) == 2 }, time.Minute, time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := s.client.DownloadTo(ctx, s.image, s.dir, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "open the partial file")
	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	s.server.Fault(bigRoot, nil)
	files, err := s.to(t, nil)
	require.NoError(t, err, "the lock ended with the process")
	s.requireWhole(t, files)
}
