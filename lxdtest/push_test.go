package lxdtest

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPullCopies(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		source := newTestServer(t, &Options{Dialect: d, TLS: true})
		target := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, target)
		meta, root := SplitImage("x", 40_000)
		split, err := source.AddImage(meta, &AddOptions{Rootfs: root, Filename: "mine", Properties: map[string]string{"k": "v"}})
		require.NoError(t, err)
		pull := func(fingerprint, secret, certificate string) *apiResponse {
			return c.do("POST", "/1.0/images", map[string]any{"source": map[string]string{
				"type": "image", "mode": "pull", "protocol": d.Family(), "server": source.URL(),
				"fingerprint": fingerprint, "secret": secret, "certificate": certificate,
			}})
		}
		certificate := string(source.Certificate())
		require.Contains(t, strings.ToLower(c.failure(pull(split, "", certificate))), "not found")
		require.Contains(t, c.failure(pull(split, "", "")), "x509")
		token := newClient(t, source).do("POST", "/1.0/images/"+split+"/secret", nil)
		secret := token.field("metadata").(map[string]any)["secret"].(string)
		c.wait(pull(split, secret, certificate))
		img, ok := target.Image(split)
		require.True(t, ok)
		require.Equal(t, "v", img.Properties["k"])
		require.Equal(t, "mine", img.Filename)
		require.Empty(t, source.Tokens())
		// An existing image is not downloaded again.
		source.Shutdown()
		done := c.wait(pull(split, "", certificate))
		require.Equal(t, split, done.field("metadata").(map[string]any)["fingerprint"])
	})
}

// TestPullWithoutProfile pulls an image for a profile that does not exist, as it was
// tried with LXD 5.0.2, Incus 6.0.4 and 7.0.2.
func TestPullWithoutProfile(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		source := newTestServer(t, &Options{Dialect: d, TLS: true})
		target := newTestServer(t, &Options{Dialect: d, InMemory: true})
		fingerprint := add(t, source, "x", &AddOptions{Public: true})
		c := newClient(t, target)
		pulled := c.do("POST", "/1.0/images", map[string]any{
			"profiles": []string{"nothing"}, "properties": map[string]string{"a": "b"}, "filename": "f", "public": true,
			"aliases": []map[string]string{{"name": "al"}}, "expires_at": "2030-01-02T03:04:05Z",
			"source": map[string]string{
				"type": "image", "mode": "pull", "protocol": d.Family(), "server": source.URL(),
				"fingerprint": fingerprint, "certificate": string(source.Certificate()),
			},
		})
		ignored := d == LXD40 || d == LXD50
		if ignored {
			c.wait(pulled)
		} else {
			require.Equal(t, fmt.Sprintf(d.traits().texts.profile, "nothing"), c.failure(pulled))
		}
		img, ok := target.Image(fingerprint)
		require.True(t, ok, "the image stays")
		require.Equal(t, []string{"default"}, img.Profiles)
		require.True(t, img.Public)
		require.Equal(t, ignored, img.Properties["a"] == "b")
		require.Equal(t, ignored, img.Filename == "f")
		require.Equal(t, ignored, !img.ExpiresAt.IsZero())
		require.Equal(t, ignored, len(img.Aliases) == 1)
		from := c.do("GET", "/1.0/images/"+fingerprint, nil).field("update_source").(map[string]any)
		require.Equal(t, fingerprint, from["alias"])
	})
}

// pushToken requests a token from a target to upload an image.
func pushToken(t *testing.T, target *Server, fingerprint string, properties map[string]string) string {
	t.Helper()
	got := newClient(t, target).do("POST", "/1.0/images", map[string]any{
		"properties": properties, "public": true, "aliases": []map[string]string{{"name": "pushed"}},
		"source": map[string]string{"type": "image", "mode": "push", "fingerprint": fingerprint},
	})
	require.Equal(t, http.StatusAccepted, got.HTTP, got.Error)
	return got.field("metadata").(map[string]any)["secret"].(string)
}

func TestPushCopies(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		source := newTestServer(t, &Options{Dialect: d, InMemory: true})
		target := newTestServer(t, &Options{Dialect: d, TLS: true})
		if !source.has("images_push_relay") {
			require.Equal(t, 501, newClient(t, source).do("POST", "/1.0/images/"+add(t, source, "u", nil)+"/export", map[string]any{}).HTTP)
			return
		}
		c := newClient(t, source)
		meta, root := SplitImage("x", 40_000)
		split, err := source.AddImage(meta, &AddOptions{Rootfs: root})
		require.NoError(t, err)
		for _, fingerprint := range []string{add(t, source, "u", nil), split} {
			body := map[string]any{
				"target": target.URL(), "certificate": string(target.Certificate()),
				"secret": pushToken(t, target, fingerprint, map[string]string{"from": "token"}),
			}
			require.Equal(t, 404, c.do("POST", "/1.0/images/"+fingerprint[:20]+"/export", body).HTTP)
			c.wait(c.do("POST", "/1.0/images/"+fingerprint+"/export", body))
			img, ok := target.Image(fingerprint)
			require.True(t, ok)
			require.Equal(t, map[string]string{"from": "token"}, img.Properties)
			require.Equal(t, []string{"pushed"}, img.Aliases)
			require.True(t, img.Public)
			require.Empty(t, target.Tokens())
			gone := newClient(t, target)
			gone.wait(gone.do("DELETE", "/1.0/images/"+fingerprint, nil))
		}
	})
}

// TestPropertiesHeaderCrash uploads with a properties header an image whose
// metadata.yaml has no properties. Only that crashes the daemon; other ways to
// set properties are harmless.
func TestPropertiesHeaderCrash(t *testing.T) {
	for d := range dialects {
		s := newTestServer(t, &Options{Dialect: Dialect(d)})
		kept := add(t, s, "kept", nil)
		c := newClient(t, s)
		header := Dialect(d).traits().uploadHeader + "properties"
		file := imageWithMetadata(t, "architecture: x86_64\ncreation_date: 1704067200\n")
		c.upload(imageWithMetadata(t, "architecture: x86_64\ncreation_date: 1704067201\nproperties: {}\n"), header, "a=b")
		c.upload(UnifiedImage("has", 0), header, "a=b")
		c.upload(file)
		_, err := s.AddImage(imageWithMetadata(t, "architecture: x86_64\ncreation_date: 1704067202\n"), &AddOptions{Properties: map[string]string{"a": "b"}})
		require.NoError(t, err)
		require.Equal(t, 200, c.do("PATCH", "/1.0/images/"+Fingerprint(file), map[string]any{"properties": map[string]string{"a": "b"}}).HTTP)
		require.Nil(t, s.Crashed())

		c.wait(c.do("DELETE", "/1.0/images/"+Fingerprint(file), nil))
		post, err := http.NewRequestWithContext(t.Context(), "POST", "http://lxd/1.0/images", bytes.NewReader(file))
		require.NoError(t, err)
		post.Header.Set(header, "a=b")
		if res, err := c.http.Do(post); err == nil {
			// The daemons may respond before they crash.
			_ = res.Body.Close()
		}
		require.Eventually(t, func() bool { return s.Crashed() != nil }, 30*time.Second, time.Millisecond)
		require.ErrorContains(t, s.Crashed(), "nil map")
		get, err := http.NewRequestWithContext(t.Context(), "GET", "http://lxd/1.0", nil)
		require.NoError(t, err)
		// The crash closes the connections a moment after it is reported.
		require.Eventually(t, func() bool {
			res, err := c.http.Do(get)
			if err == nil {
				_ = res.Body.Close()
			}
			return err != nil
		}, 30*time.Second, time.Millisecond)
		s.Restart()
		require.Nil(t, s.Crashed())
		require.Equal(t, 200, c.do("GET", "/1.0/images/"+kept, nil).HTTP)
		require.Equal(t, 404, c.do("GET", "/1.0/images/"+Fingerprint(file), nil).HTTP)
	}
}

// imageWithMetadata returns a unified image with this metadata.yaml.
func imageWithMetadata(t *testing.T, metadata string) []byte {
	t.Helper()
	var buf bytes.Buffer
	out := tar.NewWriter(&buf)
	require.NoError(t, addFile(out, "metadata.yaml", strings.NewReader(metadata), int64(len(metadata))))
	require.NoError(t, addFile(out, "rootfs/x", strings.NewReader(""), 0))
	require.NoError(t, out.Close())
	return buf.Bytes()
}

func TestTokenWithoutPropertiesCrash(t *testing.T) {
	for d, crashes := range map[Dialect]bool{LXD50: true, LXD69: false, Incus60: true, Incus70: true} {
		s := newTestServer(t, &Options{Dialect: d})
		file := UnifiedImage("x", 0)
		prefix := d.traits().uploadHeader
		secret := pushToken(t, s, Fingerprint(file), nil)
		headers := []string{prefix + "fingerprint", Fingerprint(file), prefix + "secret", secret, prefix + "properties", "a=b"}
		c := newClient(t, s)
		if !crashes {
			require.Equal(t, errNullToken.Error(), c.failure(c.do("POST", "/1.0/images", file, headers...)))
			require.Nil(t, s.Crashed())
			continue
		}
		kept := add(t, s, "kept", nil)
		req, err := http.NewRequestWithContext(context.Background(), "GET", "http://lxd/1.0", nil)
		require.NoError(t, err)
		post, err := http.NewRequestWithContext(context.Background(), "POST", "http://lxd/1.0/images", http.NoBody)
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			post.Header.Set(headers[i], headers[i+1])
		}
		_, err = c.http.Do(post)
		require.Error(t, err)
		require.ErrorContains(t, s.Crashed(), "nil map")
		_, err = c.http.Do(req)
		require.Error(t, err)
		s.Restart()
		require.Nil(t, s.Crashed())
		require.Equal(t, 200, c.do("GET", "/1.0/images/"+kept, nil).HTTP)
		require.Empty(t, s.Tokens())
	}
}
