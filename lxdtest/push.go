package lxdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// servePushToken creates a secret with which another server can upload an image.
// The requested attributes are stored in the token operation.
func (s *Server) servePushToken(w http.ResponseWriter, r *http.Request, project string, post imagesPost) error {
	token := task{
		description: "Image download token",
		project:     project,
		resources:   map[string][]string{"images": {"/1.0/images/" + post.Source.Fingerprint}},
		entity:      projectURL(project),
		metadata: map[string]any{
			"aliases": post.Aliases, "expires_at": post.ExpiresAt, "properties": post.Properties,
			"public": post.Public, "secret": newSecret(),
		},
		mayCancel: true,
	}
	if s.traits.storesOperations {
		token.description = "Image upload token"
		token.metadata["fingerprint"] = post.Source.Fingerprint
	}
	s.mu.Lock()
	op := s.addOperation("token", token, r)
	op.push = true
	response := s.render(op)
	s.mu.Unlock()
	writeOperation(w, response)
	return nil
}

// allowsUpload reports whether a token allows an upload of this image.
func (op *operation) allowsUpload(project, fingerprint string) bool {
	return op.push && op.project == project && len(op.resources["images"]) == 1 &&
		op.resources["images"][0] == "/1.0/images/"+fingerprint
}

// useToken consumes the token of an upload and sets the attributes stored in it,
// which replace those in the image's metadata.
func (s *Server) useToken(r *http.Request, op *operation, spec *imageSpec) error {
	s.mu.Lock()
	metadata := op.metadata
	s.consumeToken(op)
	s.mu.Unlock()
	properties, _ := metadata["properties"].(map[string]string)
	if properties == nil && len(spec.properties) > 0 {
		const reason = "assignment to entry in nil map: an upload with properties used a token that has none"
		if s.traits.nullTokenCrash {
			s.crashWith(reason)
			abort(r)
		}
		return errNullToken
	}
	spec.aliases, _ = metadata["aliases"].([]imageAliasJSON)
	spec.public, _ = metadata["public"].(bool)
	expires, _ := metadata["expires_at"].(time.Time)
	spec.expires = expires
	spec.setExpiry = true
	spec.replaceProperties = maps.Clone(properties)
	if spec.replaceProperties == nil {
		spec.replaceProperties = map[string]string{}
	}
	return nil
}

var errNullToken = daemonErrorf("Invalid token: it has no properties")

// exportPost is the body of a push.
type exportPost struct {
	Target      string           `json:"target"`
	Secret      string           `json:"secret"`
	Certificate string           `json:"certificate"`
	Aliases     []imageAliasJSON `json:"aliases"`
	Project     string           `json:"project"`
	Profiles    []string         `json:"profiles"`
}

// servePush starts an operation that uploads an image to another server.
func (s *Server) servePush(w http.ResponseWriter, r *http.Request, name string) error {
	if !s.has("images_push_relay") {
		return errNotImplemented
	}
	s.mu.Lock()
	project, err := s.imageProject(r)
	var img *image
	if err == nil {
		// Unlike elsewhere, a prefix is not accepted.
		if img = s.images[imageKey{project, name}]; img == nil {
			err = errNoImage
		}
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	var post exportPost
	if err := readJSON(r, &post); err != nil {
		return err
	}
	client, err := s.httpClient(post.Certificate)
	if err != nil {
		return err
	}
	base := strings.TrimSuffix(post.Target, "/")
	var ignored any
	if err := s.getJSON(r.Context(), client, base+"/1.0", &ignored); err != nil {
		return err
	}
	s.startTask(w, r, task{
		description: "Downloading image",
		project:     projectParam(r),
		run: func(ctx context.Context, _ *operation) error {
			return s.push(ctx, client, base, img, post)
		},
	})
	return nil
}

// push uploads an image to another server and waits for that server's operation.
func (s *Server) push(ctx context.Context, client *http.Client, base string, img *image, post exportPost) error {
	s.mu.Lock()
	files, err := openFiles(img.metadata, img.rootfs)
	header := http.Header{}
	set := func(name, value string) { header.Set(s.traits.uploadHeader+name, value) }
	set("fingerprint", img.key.fingerprint)
	set("secret", post.Secret)
	// The daemons use the fingerprint as the file name and send no properties,
	// as the token has them.
	set("filename", img.key.fingerprint)
	if len(post.Profiles) > 0 {
		set("profiles", url.Values{"profile": post.Profiles}.Encode())
	}
	kind, fingerprint, suffix := img.kind, img.key.fingerprint, img.suffix
	s.mu.Unlock()
	if err != nil {
		return err
	}
	defer func() {
		for _, file := range files {
			_ = file.Close()
		}
	}()
	at := base + "/1.0/images"
	query := ""
	if post.Project != "" {
		query = "?project=" + url.QueryEscape(post.Project)
	}
	var body io.ReadCloser = files[0]
	if len(files) == 2 {
		var contentType string
		rootfs := "rootfs"
		if kind == "virtual-machine" && !s.traits.pushesVMAsContainer {
			rootfs = "rootfs.img"
		}
		body, contentType = streamForm(files, rootfs, fingerprint, suffix)
		header.Set("Content-Type", contentType)
	} else {
		header.Set("Content-Type", "application/octet-stream")
	}
	res, err := s.request(ctx, client, http.MethodPost, at+query, header, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		return remoteError(res)
	}
	var accepted struct {
		Operation string `json:"operation"`
		Metadata  struct {
			Metadata struct {
				Secret string `json:"secret"`
			} `json:"metadata"`
		} `json:"metadata"`
	}
	if err := readJSON(&http.Request{Body: res.Body}, &accepted); err != nil {
		return err
	}
	wait := url.Values{"secret": {accepted.Metadata.Metadata.Secret}, "timeout": {"-1"}}
	return s.awaitRemote(ctx, client, base+accepted.Operation+"/wait?"+wait.Encode())
}

// awaitRemote waits for an operation of another server and returns its error, in
// whichever form that server reports it.
func (s *Server) awaitRemote(ctx context.Context, client *http.Client, at string) error {
	res, err := s.request(ctx, client, http.MethodGet, at, nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var response struct {
		ErrorCode int           `json:"error_code"`
		Error     string        `json:"error"`
		Metadata  operationJSON `json:"metadata"`
	}
	if err := readJSON(&http.Request{Body: res.Body}, &response); err != nil {
		return err
	}
	switch {
	case response.Error != "":
		return statusErrorf(response.ErrorCode, "%s", response.Error)
	case response.Metadata.Err != "":
		return errors.New(response.Metadata.Err)
	}
	return nil
}

// streamForm returns a form with the files of a split image, written while it
// is read.
func streamForm(files []*os.File, rootfs, fingerprint, suffix string) (body io.ReadCloser, contentType string) {
	out, in := io.Pipe()
	form := multipart.NewWriter(in)
	go func() {
		err := func() error {
			for i, name := range []string{"metadata", rootfs} {
				filename := fingerprint
				if i == 0 {
					filename = "meta-" + fingerprint + suffix
				}
				part, err := form.CreateFormFile(name, filename)
				if err != nil {
					return err
				}
				if _, err := io.Copy(part, files[i]); err != nil {
					return fmt.Errorf("read image: %w", err)
				}
			}
			return form.Close()
		}()
		_ = in.CloseWithError(err)
	}()
	return out, form.FormDataContentType()
}
