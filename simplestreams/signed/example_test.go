package signed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http/httptest"
	"os"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
	"github.com/golxd/lxd/simplestreams/signed"
)

// A tree is signed, and its clients use nothing that is not.
func ExampleNewSigner() {
	defer inKeyDir()()
	ctx := context.Background()

	key, err := os.Open("images.key") // of gpg --export-secret-keys
	if err != nil {
		log.Fatal(err)
	}
	defer key.Close()
	signer, err := signed.NewSigner(key, nil) // or with the key's passphrase
	if err != nil {
		log.Fatal(err)
	}
	store, err := simplestreams.NewDirStore("images.example.net")
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	tree, err := simplestreams.NewTree(store, &simplestreams.TreeOptions{Signer: signer})
	if err != nil {
		log.Fatal(err)
	}
	_, err = tree.Publish(ctx, &simplestreams.Publication{
		Aliases: []string{"web"}, OS: "Web", Release: "1.4", Architecture: "amd64", Version: "20260101",
		Files: simplestreams.FileContents("image.tar"),
	}, nil)
	if err != nil {
		log.Fatal(err)
	}

	server := httptest.NewServer(simplestreams.NewHandler(store.FS()))
	defer server.Close()
	keyring, err := os.Open("images.gpg") // of gpg --export
	if err != nil {
		log.Fatal(err)
	}
	defer keyring.Close()
	verifier, err := signed.NewVerifier(keyring)
	if err != nil {
		log.Fatal(err)
	}
	client, err := simplestreams.New(server.URL, &simplestreams.Options{Verifier: verifier, AllowHTTP: true})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	image, err := client.Resolve(ctx, "web", nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Product, image.Version)
	// Output: web:1.4:amd64:default 20260101
}

// inKeyDir runs an example in a directory with a new key and the file of an image.
func inKeyDir() (leave func()) {
	before, err := os.Getwd()
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "signed")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.Chdir(dir); err != nil {
		log.Fatal(err)
	}
	var private, public bytes.Buffer
	key, err := openpgp.NewEntity("Images", "", "images@example.net", nil)
	if err == nil {
		err = errors.Join(key.SerializePrivate(&private, nil), key.Serialize(&public))
	}
	if err != nil {
		log.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"images.key": private.Bytes(), "images.gpg": public.Bytes(), "image.tar": lxdtest.UnifiedImage("web", 0),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			log.Fatal(err)
		}
	}

	return func() {
		_ = os.Chdir(before)
		_ = os.RemoveAll(dir)
	}
}

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
