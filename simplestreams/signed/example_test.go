package signed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
	"github.com/golxd/lxd/simplestreams/signed"
)

// The index of a server is used only if the operator's key has signed it.
func ExampleNewVerifier() {
	// "gpg --export" writes such a keyring; this key is that of the package's tests.
	keyring, err := os.Open("testdata/gpg.pub")
	if err != nil {
		log.Fatal(err)
	}
	defer keyring.Close()
	verifier, err := signed.NewVerifier(keyring)
	if err != nil {
		log.Fatal(err)
	}

	// A server whose index is signed, and then changed.
	index, err := os.ReadFile("testdata/gpg.sjson")
	if err != nil {
		log.Fatal(err)
	}
	index = bytes.Replace(index, []byte("index:1.0"), []byte("index:6.6"), 1)
	server := streamstest.NewTLSServer(map[string][]byte{"streams/v1/index.sjson": index})
	defer server.Close()

	client, err := simplestreams.New(server.URL, &simplestreams.Options{Certificate: server.CA, Verifier: verifier})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	_, err = client.Resolve(context.Background(), "debian/12", nil)
	fmt.Println(errors.Is(err, simplestreams.ErrSignature))
	// Output: true
}
