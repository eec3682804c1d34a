package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/lxdtest"
)

const images = "/1.0/images"

// recordAll makes all recordings. Later parts use what earlier ones created.
func (r *recorder) recordAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for _, part := range []func(context.Context) error{
		r.waitUntilQuiet,
		r.recordServer,
		r.recordUploads,
		r.recordAliases,
		r.recordImages,
		r.recordRefusals,
		r.recordUntrusted,
		r.recordTokens,
		r.recordCopy,
		r.recordURLImport,
		r.recordPublish,
		r.recordEvents,
		r.recordDelete,
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// doAll records requests that do not depend on each other's responses.
func (r *recorder) doAll(ctx context.Context, requests ...request) error {
	for _, q := range requests {
		if _, err := r.do(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

func (r *recorder) recordServer(ctx context.Context) error {
	return r.doAll(ctx,
		request{name: "server", comment: "a trusted client", path: "/1.0"},
		request{name: "server-tls", comment: "a client with a trusted certificate", over: overTLS, path: "/1.0"},
		request{name: "server-untrusted", comment: "a client without a certificate", over: overUntrusted, path: "/1.0"},
		request{name: "images-empty", comment: "no image yet", path: images + "?recursion=1"},
		request{name: "operations-empty", comment: "no operation yet", path: "/1.0/operations?recursion=1"},
	)
}

// The uploaded images; their bytes are the same in every recording.
var (
	unified              = lxdtest.UnifiedImage("unified", 0)
	splitMeta, splitRoot = lxdtest.SplitImage("split", 0)
	vmMeta, vmDisk       = lxdtest.VMImage("vm", 0)
	unifiedFingerprint   = lxdtest.Fingerprint(unified)
	unknownFingerprint   = strings.Repeat("f", 64)
)

func (r *recorder) recordUploads(ctx context.Context) error {
	accepted, err := r.do(ctx, request{
		name: "upload-accepted", comment: "a unified image", method: "POST", path: images, body: unified,
		headers: r.headers(map[string]string{
			"-public": "1", "-filename": "unified.tar.gz", "-properties": "label=a+b&os=lxdtest", "-profiles": "profile=default",
		}),
	})
	if err != nil {
		return err
	}
	if err := r.doAll(ctx,
		request{name: "upload-wait", comment: "the upload succeeded", path: accepted.Operation + "/wait?timeout=20"},
		request{name: "operation-success", comment: "the operation of an upload that succeeded", path: accepted.Operation},
		request{name: "operation-cancel-finished", comment: "cancelling a finished operation", method: "DELETE", path: accepted.Operation},
		request{name: "operations", comment: "the finished operation is still listed", path: "/1.0/operations?recursion=1"},
	); err != nil {
		return err
	}
	for _, kind := range []struct {
		name, part     string
		metadata, root []byte
	}{{"upload-split", "rootfs", splitMeta, splitRoot}, {"upload-vm", "rootfs.img", vmMeta, vmDisk}} {
		body, contentType, err := splitBody(kind.metadata, kind.part, kind.root)
		if err != nil {
			return err
		}
		headers := r.headers(nil)
		headers["Content-Type"] = contentType
		if _, err := r.operation(ctx, request{
			name: kind.name, comment: "metadata and " + kind.part, method: "POST", path: images, body: body, headers: headers,
		}); err != nil {
			return err
		}
	}
	wrong := r.headers(map[string]string{"-fingerprint": unknownFingerprint})
	failures := []request{
		{name: "upload-duplicate", comment: "the same content again", body: unified, headers: r.headers(nil)},
		{name: "upload-wrong-fingerprint", comment: "another fingerprint announced", body: lxdtest.UnifiedImage("other", 0), headers: wrong},
		{name: "upload-not-an-image", comment: "a body that is no tarball", body: []byte("no tarball"), headers: r.headers(nil)},
	}
	for _, q := range failures {
		q.method, q.path = "POST", images
		if _, err := r.operation(ctx, q); err != nil {
			return err
		}
	}
	duplicate := failures[0]
	duplicate.name, duplicate.method, duplicate.path = "", "POST", images
	failed, err := r.do(ctx, duplicate)
	if err != nil {
		return err
	}
	if _, err := r.do(ctx, request{path: failed.Operation + "/wait?timeout=20"}); err != nil {
		return err
	}
	return r.doAll(ctx, request{name: "operation-failure", comment: "the operation of an upload that failed", path: failed.Operation})
}

// splitBody returns the body of the upload of a split image.
func splitBody(metadata []byte, rootPart string, root []byte) (body []byte, contentType string, err error) {
	var out bytes.Buffer
	form := multipart.NewWriter(&out)
	for _, part := range []struct {
		name string
		data []byte
	}{{"metadata", metadata}, {rootPart, root}} {
		header := textproto.MIMEHeader{}
		header.Set("Content-Disposition", fmt.Sprintf("form-data; name=%q; filename=%q", part.name, part.name))
		header.Set("Content-Type", "application/octet-stream")
		w, err := form.CreatePart(header)
		if err != nil {
			return nil, "", err
		}
		if _, err := w.Write(part.data); err != nil {
			return nil, "", err
		}
	}
	if err := form.Close(); err != nil {
		return nil, "", err
	}
	return out.Bytes(), form.FormDataContentType(), nil
}

func (r *recorder) recordAliases(ctx context.Context) error {
	alias := func(name, target string) map[string]any {
		return map[string]any{"name": name, "target": target, "description": "what " + name + " is"}
	}
	const aliases = images + "/aliases"
	return r.doAll(ctx,
		request{name: "aliases-empty", comment: "no alias yet", path: aliases},
		request{name: "alias-created", comment: "a new alias", method: "POST", path: aliases, body: alias("unified", unifiedFingerprint)},
		request{name: "alias-conflict", comment: "an alias that exists", method: "POST", path: aliases, body: alias("unified", unifiedFingerprint)},
		request{name: "alias-unknown-target", comment: "an alias for an image that does not exist", method: "POST", path: aliases, body: alias("x", unknownFingerprint)},
		request{name: "alias-created-slash", comment: "a name to be escaped", method: "POST", path: aliases, body: alias("split/a b?", lxdtest.Fingerprint(splitMeta, splitRoot))},
		request{name: "alias-created-vm", comment: "an alias for a virtual machine", method: "POST", path: aliases, body: alias("vm", lxdtest.Fingerprint(vmMeta, vmDisk))},
		request{name: "aliases", comment: "the URLs of all aliases", path: aliases},
		request{name: "aliases-recursion", comment: "all aliases", path: aliases + "?recursion=1"},
		request{name: "alias", comment: "one alias", path: aliases + "/unified"},
		request{name: "alias-escaped", comment: "one alias with an escaped name", path: aliases + "/split%2Fa%20b%3F"},
		request{name: "alias-not-found", comment: "no such alias", path: aliases + "/nothing"},
		request{name: "alias-updated", comment: "the same target again", method: "PUT", path: aliases + "/unified", body: map[string]any{"target": unifiedFingerprint, "description": "changed"}},
		request{name: "alias-update-stale", comment: "a stale ETag", method: "PUT", path: aliases + "/unified", headers: map[string]string{"If-Match": "stale"}, body: map[string]any{"target": unifiedFingerprint}},
		request{name: "alias-renamed", comment: "another name", method: "POST", path: aliases + "/unified", body: map[string]any{"name": "renamed"}},
		request{name: "alias-deleted", comment: "an alias deleted", method: "DELETE", path: aliases + "/renamed"},
		request{name: "alias-created-again", comment: "for the lists that follow", method: "POST", path: aliases, body: alias("unified", unifiedFingerprint)},
	)
}

func (r *recorder) recordImages(ctx context.Context) error {
	update := map[string]any{
		"public": true, "auto_update": false, "profiles": []string{"default"},
		"properties": map[string]string{"os": "lxdtest", "label": "a b"}, "expires_at": "2030-01-02T03:04:05Z",
	}
	path := images + "/" + unifiedFingerprint
	return r.doAll(ctx,
		request{name: "image-updated", comment: "properties and expiry changed", method: "PUT", path: path, body: update},
		request{name: "image-update-stale", comment: "a stale ETag", method: "PUT", path: path, headers: map[string]string{"If-Match": "stale"}, body: update},
		request{name: "image-patched", comment: "one property added", method: "PATCH", path: path, body: map[string]any{"properties": map[string]string{"patched": "yes"}}},
		request{name: "images", comment: "unified, split and virtual machine, with aliases, profiles and expiry", path: images + "?recursion=1"},
		request{name: "images-urls", comment: "the URLs of all images", path: images},
		request{name: "images-filtered", comment: "a filter", path: images + "?recursion=1&filter=public+eq+true"},
		request{name: "images-filter-bad", comment: "a filter that does not parse", path: images + "?recursion=1&filter=public+eq"},
		request{name: "image", comment: "one image", path: path},
		request{name: "image-prefix", comment: "one image by the first 12 characters of its fingerprint", path: path[:len(images)+13]},
		request{name: "image-not-found", comment: "no such image", path: images + "/" + unknownFingerprint},
		request{name: "export-not-found", comment: "no such image", path: images + "/" + unknownFingerprint + "/export"},
	)
}

func (r *recorder) recordRefusals(ctx context.Context) error {
	first, second := sharedPrefix()
	for _, image := range [][]byte{first, second} {
		if _, err := r.operation(ctx, request{method: "POST", path: images, body: image, headers: r.headers(nil)}); err != nil {
			return err
		}
	}
	for _, q := range []request{
		{name: "profile-not-found", comment: "an upload with a profile that does not exist", body: lxdtest.UnifiedImage("profile", 0), headers: r.headers(map[string]string{"-profiles": "profile=nothing"})},
		{name: "instance-not-found", comment: "publishing an instance that does not exist", body: map[string]any{"source": map[string]any{"type": "instance", "name": "nothing"}}},
	} {
		q.method, q.path = "POST", images
		if err := r.attempt(ctx, q); err != nil {
			return err
		}
	}
	return r.doAll(ctx,
		request{name: "image-prefix-ambiguous", comment: "a prefix of two fingerprints", path: images + "/" + lxdtest.Fingerprint(first)[:2]},
		request{name: "bad-json", comment: "a body that is not JSON", method: "POST", path: images, headers: map[string]string{"Content-Type": "application/json"}, body: []byte("{")},
		request{name: "bad-source", comment: "an unknown type of source", method: "POST", path: images, body: map[string]any{"source": map[string]any{"type": "nothing"}}},
		request{name: "path-not-found", comment: "no such endpoint", path: "/1.0/nothing"},
		request{name: "method-not-allowed", comment: "no such method", method: "DELETE", path: images},
		request{name: "operation-not-found", comment: "an operation that the server has forgotten", path: "/1.0/operations/00000000-0000-0000-0000-000000000000"},
		request{name: "operation-wait-not-found", comment: "an operation that the server has forgotten", path: "/1.0/operations/00000000-0000-0000-0000-000000000000/wait?timeout=1"},
		request{name: "project-not-found", comment: "no such project", path: images + "?recursion=1&project=nothing"},
	)
}

// sharedPrefix returns two images whose fingerprints begin with the same two
// characters.
func sharedPrefix() (first, second []byte) {
	seen := map[string][]byte{}
	for i := 0; ; i++ {
		image := lxdtest.UnifiedImage(fmt.Sprintf("prefix %d", i), 0)
		prefix := lxdtest.Fingerprint(image)[:2]
		if other, found := seen[prefix]; found {
			return other, image
		}
		seen[prefix] = image
	}
}

func (r *recorder) recordUntrusted(ctx context.Context) error {
	strict := map[string]string{"X-LXD-authenticated": "true"}
	if r.daemon.Family == testdaemon.Incus {
		strict = map[string]string{"X-Incus-authenticated": "true"}
	}
	private := images + "/" + lxdtest.Fingerprint(splitMeta, splitRoot)
	return r.doAll(ctx,
		request{name: "images-untrusted", comment: "only the public image", over: overUntrusted, path: images + "?recursion=1"},
		request{name: "images-untrusted-strict", comment: "with the header that requests an error", over: overUntrusted, path: images + "?recursion=1", headers: strict},
		request{name: "image-untrusted", comment: "a private image", over: overUntrusted, path: private},
		request{name: "delete-untrusted", comment: "a client without a certificate", over: overUntrusted, method: "DELETE", path: private},
		request{name: "operations-untrusted", comment: "a client without a certificate", over: overUntrusted, path: "/1.0/operations"},
		request{name: "trust-wrong-password", comment: "joining with a wrong password or token", over: overUntrusted, method: "POST", path: "/1.0/certificates", body: map[string]any{"type": "client", "password": "wrong", "trust_token": "wrong"}},
	)
}

func (r *recorder) recordTokens(ctx context.Context) error {
	secret, err := r.do(ctx, request{name: "secret-accepted", comment: "a secret for an image", method: "POST", path: images + "/" + unifiedFingerprint + "/secret"})
	if err != nil {
		return err
	}
	push, err := r.do(ctx, request{
		name: "push-accepted", comment: "a token for an upload by another server", method: "POST", path: images,
		body: map[string]any{
			"source":     map[string]any{"type": "image", "mode": "push", "fingerprint": unknownFingerprint},
			"properties": map[string]string{},
		},
	})
	if err != nil {
		return err
	}
	join, err := r.do(ctx, request{name: "join-token-accepted", comment: "a token for a new client", method: "POST", path: "/1.0/certificates", body: map[string]any{"type": "client", "name": "joiner", "token": true}})
	if err != nil {
		return err
	}
	return r.doAll(ctx,
		request{name: "operation-token", comment: "the operation of a secret", path: secret.Operation},
		request{name: "token-wait-timeout", comment: "a token runs until it is used: the wait timed out", path: secret.Operation + "/wait?timeout=1"},
		request{name: "token-cancelled", comment: "cancelling a token", method: "DELETE", path: secret.Operation},
		request{name: "token-wait-cancelled", comment: "waiting for a cancelled token", path: secret.Operation + "/wait?timeout=1"},
		request{method: "DELETE", path: push.Operation},
		request{method: "DELETE", path: join.Operation},
	)
}

// recordCopy makes the server copy one of its images into another project, which
// is the simplest way to create an image with an update source.
func (r *recorder) recordCopy(ctx context.Context) error {
	const project = "copies"
	if err := r.daemon.CreateProject(ctx, project); err != nil {
		return err
	}
	path := images + "/" + unifiedFingerprint
	if _, err := r.operation(ctx, request{
		name: "copy", comment: "a pull from another server", method: "POST", path: images + "?project=" + project,
		body: map[string]any{
			"source": map[string]any{
				"type": "image", "mode": "pull", "protocol": string(r.daemon.Family),
				"server": r.daemon.URL, "alias": "unified", "certificate": string(r.daemon.ServerCertificate),
			},
			"auto_update": true,
		},
	}); err != nil {
		return err
	}
	if err := r.doAll(ctx,
		request{name: "image-copied", comment: "an image with an update source", path: path + "?project=" + project},
		request{name: "images-project", comment: "the images of one project", path: images + "?recursion=1&project=" + project},
		request{name: "images-all-projects", comment: "the images of all projects", path: images + "?recursion=1&all-projects=true"},
	); err != nil {
		return err
	}
	if _, err := r.operation(ctx, request{name: "refresh", comment: "an image that is up to date", method: "POST", path: path + "/refresh?project=" + project}); err != nil {
		return err
	}
	_, err := r.operation(ctx, request{name: "refresh-no-source", comment: "an image without a source to refresh from", method: "POST", path: path + "/refresh"})
	return err
}

func (r *recorder) recordPublish(ctx context.Context) error {
	if err := r.daemon.CreateInstance(ctx, "web1", unifiedFingerprint); err != nil {
		return err
	}
	published, err := r.operation(ctx, request{
		name: "publish", comment: "an image from an instance", method: "POST", path: images,
		body: map[string]any{"source": map[string]any{"type": "instance", "name": "web1"}, "properties": map[string]string{"from": "web1"}},
	})
	if err != nil {
		return err
	}
	if published.status != http.StatusOK {
		return fmt.Errorf("publish: %s", published.Metadata)
	}
	var op struct {
		Metadata struct {
			Fingerprint string `json:"fingerprint"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(published.Metadata, &op); err != nil {
		return err
	}
	return r.doAll(ctx, request{name: "image-published", comment: "the image of an instance", path: images + "/" + op.Metadata.Fingerprint})
}

func (r *recorder) recordDelete(ctx context.Context) error {
	path := images + "/" + lxdtest.Fingerprint(vmMeta, vmDisk)
	if _, err := r.operation(ctx, request{name: "delete", comment: "an image deleted", method: "DELETE", path: path}); err != nil {
		return err
	}
	return r.doAll(ctx, request{name: "delete-not-found", comment: "no such image", method: "DELETE", path: path})
}
