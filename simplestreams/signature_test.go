package simplestreams_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
	"github.com/golxd/lxd/simplestreams/signed"
)

const (
	signedIndex    = "streams/v1/index.sjson"
	signedProducts = "streams/v1/images.sjson"
)

// newSigner returns a Signer with a new key, and a Verifier that trusts it.
func newSigner(t *testing.T) (*signed.Signer, *signed.Verifier) {
	t.Helper()
	key, err := openpgp.NewEntity("", "", "images@example.net", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	require.NoError(t, err)
	var private, public bytes.Buffer
	require.NoError(t, key.SerializePrivate(&private, nil))
	require.NoError(t, key.Serialize(&public))
	signer, err := signed.NewSigner(&private, nil)
	require.NoError(t, err)
	verifier, err := signed.NewVerifier(&public)
	require.NoError(t, err)

	return signer, verifier
}

// signedTree is a server of a tree without any signature, and what its metadata files are when they are signed.
type signedTree struct {
	server   *streamstest.Server
	files    map[string][]byte
	verifier *signed.Verifier
}

func newSignedTree(t *testing.T) *signedTree {
	t.Helper()
	signer, verifier := newSigner(t)
	files := streamstest.Tree(products("lxd"), nil)
	s := &signedTree{serve(t, files), map[string][]byte{}, verifier}
	for _, path := range []string{streamstest.IndexPath, streamstest.ProductsPath} {
		inline, detached, err := signer.Sign(files[path])
		require.NoError(t, err)
		s.files[path] = files[path]
		s.files[strings.TrimSuffix(path, ".json")+".sjson"] = inline
		s.files[path+".gpg"] = detached
	}

	return s
}

// set serves these files only of the metadata files.
func (s *signedTree) set(paths ...string) {
	for path := range s.files {
		s.server.Set(path, nil)
	}
	for _, path := range paths {
		s.server.Set(path, s.files[path])
	}
}

func (s *signedTree) client(t *testing.T, change func(*simplestreams.Options)) *simplestreams.Client {
	t.Helper()
	return newClient(t, s.server, func(o *simplestreams.Options) {
		o.Verifier = s.verifier
		if change != nil {
			change(o)
		}
	})
}

// paths returns the paths of the requests since the previous call.
func (s *signedTree) paths() []string {
	paths := []string{}
	for _, request := range s.server.Requests() {
		paths = append(paths, request.Path)
	}

	return paths
}

const (
	detachedIndex    = streamstest.IndexPath + ".gpg"
	detachedProducts = streamstest.ProductsPath + ".gpg"
)

func TestSignedIndex(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ set, read []string }{
		"inline": {
			[]string{signedIndex, signedProducts},
			[]string{signedIndex, signedProducts},
		},
		"both": {
			[]string{signedIndex, signedProducts, streamstest.IndexPath, detachedIndex, streamstest.ProductsPath, detachedProducts},
			[]string{signedIndex, signedProducts},
		},
		"detached": {
			[]string{streamstest.IndexPath, detachedIndex, streamstest.ProductsPath, detachedProducts},
			[]string{signedIndex, detachedIndex, streamstest.IndexPath, signedProducts, detachedProducts, streamstest.ProductsPath},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSignedTree(t)
			s.set(test.set...)
			client := s.client(t, nil)
			image, err := client.Resolve(t.Context(), "alpine", nil)
			require.NoError(t, err)
			require.Equal(t, test.read, s.paths())
			require.Equal(t, []byte("a unified image"), readAll(t, client, image))

			s.paths()
			require.NoError(t, client.Refresh(t.Context()))
			require.Equal(t, test.read, s.paths())
			require.Len(t, all(t, client), len(all(t, client)))
		})
	}
}

// TestSignedIndexNamesSignedFiles has an index as the public servers sign it.
func TestSignedIndexNamesSignedFiles(t *testing.T) {
	t.Parallel()
	s := newSignedTree(t)
	signer, verifier := newSigner(t)
	index := bytes.ReplaceAll(s.files[streamstest.IndexPath], []byte("images.json"), []byte("images.sjson"))
	inline, _, err := signer.Sign(index)
	require.NoError(t, err)
	s.files[signedIndex] = inline
	s.files[signedProducts], _, err = signer.Sign(s.files[streamstest.ProductsPath])
	require.NoError(t, err)
	s.verifier = verifier
	s.set(signedIndex, signedProducts)
	_, err = s.client(t, nil).Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	require.Equal(t, []string{signedIndex, signedProducts}, s.paths())
}

func TestUnsignedIsRefused(t *testing.T) {
	t.Parallel()
	unsigned := []string{streamstest.IndexPath, streamstest.ProductsPath}
	other, _ := newSigner(t)
	for name, test := range map[string]struct {
		change func(t *testing.T, s *signedTree)
		names  string
	}{
		"index without signature":    {func(_ *testing.T, s *signedTree) { s.set(unsigned...) }, streamstest.IndexPath},
		"products without signature": {func(_ *testing.T, s *signedTree) { s.set(signedIndex, streamstest.ProductsPath) }, streamstest.ProductsPath},
		"plain index as .sjson": {func(_ *testing.T, s *signedTree) {
			s.files[signedIndex] = s.files[streamstest.IndexPath]
			s.set(signedIndex, signedProducts)
		}, signedIndex},
		"changed index": {func(_ *testing.T, s *signedTree) {
			s.files[signedIndex] = bytes.Replace(s.files[signedIndex], []byte("images.json"), []byte("imagez.json"), 1)
			s.set(signedIndex, signedProducts)
		}, signedIndex},
		"changed products, with right detached ones": {func(_ *testing.T, s *signedTree) {
			s.files[signedProducts] = bytes.Replace(s.files[signedProducts], []byte("Alpine"), []byte("alpine"), 1)
			s.set(signedIndex, signedProducts, streamstest.ProductsPath, detachedProducts)
		}, signedProducts},
		"more behind the index": {func(_ *testing.T, s *signedTree) {
			s.files[signedIndex] = append(s.files[signedIndex], s.files[streamstest.IndexPath]...)
			s.set(signedIndex, signedProducts)
		}, signedIndex},
		"changed detached": {func(_ *testing.T, s *signedTree) {
			s.files[streamstest.IndexPath] = append(s.files[streamstest.IndexPath], ' ')
			s.set(streamstest.IndexPath, detachedIndex, signedProducts)
		}, streamstest.IndexPath},
		"signature of another file": {func(_ *testing.T, s *signedTree) {
			s.files[detachedIndex] = s.files[detachedProducts]
			s.set(streamstest.IndexPath, detachedIndex, signedProducts)
		}, streamstest.IndexPath},
		"another key": {func(t *testing.T, s *signedTree) {
			t.Helper()
			var err error
			s.files[signedIndex], _, err = other.Sign(s.files[streamstest.IndexPath])
			require.NoError(t, err)
			s.set(signedIndex, signedProducts)
		}, signedIndex},
		"a web page": {func(_ *testing.T, s *signedTree) {
			s.set(signedIndex, signedProducts)
			s.server.Fault(signedIndex, streamstest.HTML())
		}, signedIndex},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSignedTree(t)
			test.change(t, s)
			_, err := s.client(t, nil).Resolve(t.Context(), "alpine", nil)
			require.ErrorIs(t, err, simplestreams.ErrSignature)
			var failed *simplestreams.Error
			require.ErrorAs(t, err, &failed)
			require.Equal(t, s.server.URL+"/"+test.names, failed.URL)
			require.False(t, failed.Transient())
			for _, path := range s.paths() {
				require.False(t, name == "index without signature" && path == streamstest.IndexPath, "it is not even read")
			}
			// Without a Verifier the plain files are read, as by the daemons.
			s.set(unsigned...)
			_, err = newClient(t, s.server, nil).Resolve(t.Context(), "alpine", nil)
			require.NoError(t, err)
		})
	}
}

// TestSignatureReplacedMeanwhile has a server that replaces the index and its signature between two requests.
func TestSignatureReplacedMeanwhile(t *testing.T) {
	t.Parallel()
	s := newSignedTree(t)
	s.set(streamstest.IndexPath, detachedIndex, signedProducts)
	s.server.Fault(detachedIndex, streamstest.Times(1, func(*streamstest.Server, http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(s.files[detachedProducts]) })
	}))
	_, err := s.client(t, nil).Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	require.Equal(t, []string{signedIndex, detachedIndex, streamstest.IndexPath, detachedIndex, streamstest.IndexPath, signedProducts}, s.paths())
}

// TestSignedFilesChange has a server that changes from one kind of signature to the other, and has a new image.
func TestSignedFilesChange(t *testing.T) {
	t.Parallel()
	s := newSignedTree(t)
	s.set(signedIndex, signedProducts)
	client := s.client(t, nil)
	_, err := client.Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)

	s.set(streamstest.IndexPath, detachedIndex, streamstest.ProductsPath, detachedProducts)
	s.paths()
	require.NoError(t, client.Refresh(t.Context()))
	for _, request := range s.server.Requests() {
		require.True(t, strings.HasSuffix(request.Path, ".sjson") || request.Header.Get("If-None-Match") == "", "the ETag is of another file")
	}
	require.NoError(t, client.Refresh(t.Context()))
	s.set(streamstest.IndexPath, streamstest.ProductsPath)
	require.ErrorIs(t, client.Refresh(t.Context()), simplestreams.ErrSignature)
	_, err = client.Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err, "what was verified is still there")
}

func TestSignedFilesInACache(t *testing.T) {
	t.Parallel()
	for name, paths := range map[string][]string{
		"inline":   {signedIndex, signedProducts},
		"detached": {streamstest.IndexPath, detachedIndex, streamstest.ProductsPath, detachedProducts},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSignedTree(t)
			dir := t.TempDir()
			cached := func(o *simplestreams.Options) { o.Cache = simplestreams.DirCache(dir) }

			// What a client without a Verifier has stored is not used.
			s.set(streamstest.IndexPath, streamstest.ProductsPath)
			_, err := newClient(t, s.server, cached).Resolve(t.Context(), "alpine", nil)
			require.NoError(t, err)
			_, err = s.client(t, cached).Resolve(t.Context(), "alpine", nil)
			require.ErrorIs(t, err, simplestreams.ErrSignature)

			s.set(paths...)
			_, err = s.client(t, cached).Resolve(t.Context(), "alpine", nil)
			require.NoError(t, err)
			s.paths()
			_, err = s.client(t, cached).Resolve(t.Context(), "alpine", nil)
			require.NoError(t, err)
			for _, path := range s.paths() {
				require.NotContains(t, paths, path, "it is in the cache")
			}

			// A client with other keys verifies what is in the cache.
			_, err = s.client(t, func(o *simplestreams.Options) {
				cached(o)
				_, o.Verifier = newSigner(t)
			}).Resolve(t.Context(), "alpine", nil)
			require.ErrorIs(t, err, simplestreams.ErrSignature)

			// Whoever can write to the cache cannot change the index.
			forge(t, dir)
			_, err = s.client(t, cached).Resolve(t.Context(), "alpine", nil)
			require.NoError(t, err)
			require.Subset(t, s.paths(), paths[:1], "it is downloaded again")
		})
	}
}

// forge changes all files in a cache and their stamps.
func forge(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, path := range files {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		content = bytes.Replace(content, []byte("image-downloads"), []byte("image-downloadx"), 1)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		sum := sha256.Sum256(content)
		stampPath := strings.TrimSuffix(path, ".json") + ".stamp"
		text, err := os.ReadFile(stampPath)
		require.NoError(t, err)
		var stamp map[string]any
		require.NoError(t, json.Unmarshal(text, &stamp))
		stamp["sha256"] = hex.EncodeToString(sum[:])
		text, err = json.Marshal(stamp)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(stampPath, text, 0o600))
	}
}

func TestSignedFileTooLarge(t *testing.T) {
	t.Parallel()
	s := newSignedTree(t)
	limit := int64(len(s.files[signedProducts])) - 1
	s.set(signedIndex, signedProducts)
	for _, fault := range []streamstest.Fault{nil, streamstest.NoLength()} {
		s.server.Fault(signedProducts, fault)
		_, err := s.client(t, func(o *simplestreams.Options) { o.MaxMetadataSize = limit }).Resolve(t.Context(), "alpine", nil)
		require.ErrorIs(t, err, simplestreams.ErrTooLarge)
		require.NotErrorIs(t, err, simplestreams.ErrSignature)
	}
	_, err := s.client(t, func(o *simplestreams.Options) { o.MaxMetadataSize = limit + 1 }).Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	s.server.Fault(signedProducts, streamstest.Cut(100))
	_, err = s.client(t, nil).Resolve(t.Context(), "alpine", nil)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotErrorIs(t, err, simplestreams.ErrSignature, "the connection broke")
}
