package lxdtest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

// An upload, and the resulting image.
func Example() {
	server := lxdtest.NewServer(nil)
	defer server.Close()
	client := server.Client()

	image := lxdtest.UnifiedImage("example", 0)
	res, err := client.Post("http://lxd/1.0/images", "application/octet-stream", bytes.NewReader(image))
	if err != nil {
		panic(err)
	}
	var accepted struct{ Operation string }
	err = json.NewDecoder(res.Body).Decode(&accepted)
	_ = res.Body.Close()
	if err != nil {
		panic(err)
	}
	res, err = client.Get("http://lxd" + accepted.Operation + "/wait")
	if err != nil {
		panic(err)
	}
	_ = res.Body.Close()

	got, ok := server.Image(lxdtest.Fingerprint(image))
	fmt.Println(ok, got.Type, got.Properties["os"], len(server.Running()))
	// Output: true container lxdtest 0
}

// A download that is interrupted twice and then succeeds.
func ExampleServer_Inject() {
	server := lxdtest.NewServer(nil)
	defer server.Close()
	fingerprint, err := server.AddImage(lxdtest.UnifiedImage("example", 100_000), nil)
	if err != nil {
		panic(err)
	}
	fault := server.Inject(lxdtest.CutResponse(50_000).On("GET", "/1.0/images/*/export").Times(2))
	for range 3 {
		res, err := server.Client().Get("http://lxd/1.0/images/" + fingerprint + "/export")
		if err != nil {
			panic(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		fmt.Println(err, lxdtest.Fingerprint(body) == fingerprint)
	}
	fmt.Println("fired:", fault.Fired())
	// Output:
	// unexpected EOF false
	// unexpected EOF false
	// <nil> true
	// fired: 2
}

// A server that refuses what LXD 6.9 refuses.
func ExampleDialect() {
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.LXD69})
	defer server.Close()
	body := bytes.NewReader([]byte(`{"source": {"type": "url", "mode": "pull", "url": "https://example.com"}}`))
	res, err := server.Client().Post("http://lxd/1.0/images", "application/json", body)
	if err != nil {
		panic(err)
	}
	defer res.Body.Close()
	var refused struct{ Error string }
	if err := json.NewDecoder(res.Body).Decode(&refused); err != nil {
		panic(err)
	}
	fmt.Println(server.Dialect(), res.StatusCode, refused.Error)
	// Output: LXD 6.9 400 Image download from client-specified URL is not supported
}

// A client in a bubble of testing/synctest: the pauses between its retries pass at once, and
// the test sees exactly how long they are. Dial makes the client connect to the server in
// memory, whatever its endpoint is. The bubble ends when all of its goroutines have, so that
// both client and server must be closed.
func ExampleServer_DialContext() {
	t := new(testing.T) // in a test, its own
	synctest.Test(t, func(t *testing.T) {
		server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer server.Close()
		client, err := lxd.New(server.Endpoint(), &lxd.Options{Dial: server.DialContext, RetryTimeout: time.Hour})
		if err != nil {
			panic(err)
		}
		defer client.Close()
		busy := server.Inject(lxdtest.TooManyRequests(90 * time.Second).Times(2))

		start := time.Now()
		image, err := client.Images.Create(t.Context(), bytes.NewReader(lxdtest.UnifiedImage("example", 0)), &lxd.CreateOptions{Wait: true})
		if err != nil {
			panic(err)
		}
		fmt.Println(image.Properties["os"], "after", busy.Fired(), "refusals and", time.Since(start))
	})
	// Output: lxdtest after 2 refusals and 3m0s
}

// TestTwoServersInMemory has one server pull from another over TLS, in a bubble
// without sockets and without waiting.
func TestTwoServersInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
		defer source.Close()
		target := lxdtest.NewServer(&lxdtest.Options{InMemory: true, Dial: source.DialContext})
		defer target.Close()
		fingerprint, err := source.AddImage(lxdtest.UnifiedImage("x", 100_000), &lxdtest.AddOptions{Public: true})
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(map[string]any{"source": map[string]string{
			"type": "image", "mode": "pull", "protocol": "lxd", "server": source.URL(),
			"fingerprint": fingerprint, "certificate": string(source.Certificate()),
		}})
		if err != nil {
			t.Fatal(err)
		}
		res, err := target.Client().Post("http://lxd/1.0/images", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusAccepted {
			t.Fatal(res.Status)
		}
		for len(target.Running()) > 0 {
			time.Sleep(time.Second)
		}
		if _, ok := target.Image(fingerprint); !ok {
			t.Error("the image was not copied")
		}
	})
}
