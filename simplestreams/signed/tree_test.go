package signed_test

import (
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/simplestreams"
	"github.com/golxd/lxd/simplestreams/signed"
)

// newTree returns a tree that the key signs, and its store.
func newTree(t *testing.T, key *openpgp.Entity) (*simplestreams.DirStore, *simplestreams.Tree) {
	t.Helper()
	signer, err := signed.NewSigner(private(t, key), nil)
	require.NoError(t, err)
	store, err := simplestreams.NewDirStore(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	tree, err := simplestreams.NewTree(store, &simplestreams.TreeOptions{Signer: signer})
	require.NoError(t, err)
	return store, tree
}

// TestTree reads a tree that is signed, with the key and with another one.
func TestTree(t *testing.T) {
	key, other := newKey(t, 0, packet.PubKeyAlgoEdDSA), newKey(t, 0, packet.PubKeyAlgoEdDSA)
	store, tree := newTree(t, key)
	for _, version := range []string{"20260101", "20260102"} {
		published, err := tree.Publish(t.Context(), &simplestreams.Publication{
			Aliases: []string{"debian/13"}, OS: "Debian", Release: "trixie", Architecture: "amd64", Version: version,
			Files: func(yield func(io.Reader, error) bool) { yield(strings.NewReader("\x1f\x8b"+version), nil) },
		}, nil)
		require.NoError(t, err)

		server := httptest.NewServer(simplestreams.NewHandler(store.FS()))
		defer server.Close()
		for ring, want := range map[io.Reader]error{keyring(t, key): nil, keyring(t, other): simplestreams.ErrSignature} {
			verifier, err := signed.NewVerifier(ring)
			require.NoError(t, err)
			client, err := simplestreams.New(server.URL, &simplestreams.Options{AllowHTTP: true, Verifier: verifier, TTL: time.Hour})
			require.NoError(t, err)
			defer client.Close()
			image, err := client.Resolve(t.Context(), "debian/13", nil)
			require.ErrorIs(t, err, want)
			if want == nil {
				require.Equal(t, published.Fingerprint, image.Fingerprint)
			}
		}
	}
}

// TestLargeTree: a listing of more than GnuPG verifies in one line can be signed.
func TestLargeTree(t *testing.T) {
	_, tree := newTree(t, newKey(t, 0, packet.PubKeyAlgoEdDSA))
	requirements := map[string]string{}
	for n := range 2000 {
		requirements[fmt.Sprint("requirement", n)] = "false"
	}
	_, err := tree.Publish(t.Context(), &simplestreams.Publication{
		OS: "Debian", Release: "trixie", Architecture: "amd64", Requirements: requirements,
		Files: func(yield func(io.Reader, error) bool) { yield(strings.NewReader("\x1f\x8b"), nil) },
	}, nil)
	require.NoError(t, err)
}
