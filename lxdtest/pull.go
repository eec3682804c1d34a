package lxdtest

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// remoteQuery returns the query of requests to the source of a pull.
func remoteQuery(source imagesSource, secret bool) string {
	query := url.Values{}
	if source.Project != "" {
		query.Set("project", source.Project)
	}
	if secret && source.Secret != "" {
		query.Set("secret", source.Secret)
	}
	if len(query) == 0 {
		return ""
	}
	return "?" + query.Encode()
}

// pull copies an image from another LXD or Incus.
func (s *Server) pull(ctx context.Context, r *http.Request, op *operation, project string, post imagesPost, source imagesSource) (*image, error) {
	client, err := s.httpClient(source.Certificate)
	if err != nil {
		return nil, err
	}
	base := strings.TrimSuffix(source.Server, "/")
	var remote struct {
		Public      bool `json:"public"`
		Environment struct {
			Server string `json:"server"`
		} `json:"environment"`
	}
	if err := s.getJSON(ctx, client, base+"/1.0", &remote); err != nil {
		name := "the server"
		if s.traits.family == "lxd" {
			name = "LXD server"
		}
		return nil, daemonErrorf("Failed to connect to %s %q: %w", name, source.Server, err)
	}
	requested := source.Alias
	if requested == "" {
		requested = source.Fingerprint
	}
	name := requested
	var found aliasJSON
	// The daemons try it as an alias first, even if it is a fingerprint.
	if err := s.getJSON(ctx, client, base+"/1.0/images/aliases/"+url.PathEscape(requested)+remoteQuery(source, false), &found); err == nil {
		name = found.Target
	}
	if img := s.existing(project, name); img != nil {
		return s.useExisting(op, img, post)
	}
	var info imageJSON
	at := base + "/1.0/images/" + url.PathEscape(name)
	if err := s.getJSON(ctx, client, at+remoteQuery(source, true), &info); err != nil {
		return nil, daemonErrorf("Failed getting remote image info: %w", err)
	}
	unlock, err := s.lockDownload(ctx, info.Fingerprint)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if img := s.existing(project, info.Fingerprint); img != nil {
		return s.useExisting(op, img, post)
	}
	u, err := s.fetchExport(ctx, op, client, base+"/1.0/images/"+info.Fingerprint+"/export"+remoteQuery(source, true))
	if err != nil {
		return nil, err
	}
	if u.invalid != nil || u.fingerprint != info.Fingerprint {
		u.discard()
		if u.invalid != nil {
			return nil, u.invalid
		}
		return nil, daemonErrorf("Image fingerprint doesn't match. Got %s expected %s", u.fingerprint, info.Fingerprint)
	}
	// Even a fingerprint, which has no newer image, is a source.
	info.UpdateSource = s.newUpdateSource(source, requested, info.Type)
	return s.storeDownload(ctx, r, op, u, project, post, &info)
}

// newUpdateSource returns where an image of this type was downloaded from.
func (s *Server) newUpdateSource(source imagesSource, alias, kind string) *updateSource {
	from := &updateSource{Alias: alias, Certificate: source.Certificate, Protocol: source.Protocol, Server: source.Server}
	if s.traits.imageTypeOfSource {
		from.ImageType, from.Registry = kind, &source.Registry
	}
	return from
}

// fetchExport downloads an export: one file or a form with two.
func (s *Server) fetchExport(ctx context.Context, op *operation, client *http.Client, at string) (*upload, error) {
	s.allowCancel(op)
	res, err := s.request(ctx, client, http.MethodGet, at, nil, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, remoteError(res)
	}
	return s.receive(&http.Request{Header: res.Header, Body: io.NopCloser(s.trackProgress(op, "", res))})
}

// serveRefresh starts an operation that replaces an image if its source has a
// newer one.
func (s *Server) serveRefresh(w http.ResponseWriter, r *http.Request, name string) error {
	s.mu.Lock()
	project, err := s.imageProject(r)
	var img *image
	if err == nil {
		img, err = s.findImage(project, name)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.startTask(w, r, task{
		description: "Refreshing image",
		project:     projectParam(r),
		entity:      imageURL(img.key),
		run: func(ctx context.Context, op *operation) error {
			fresh, err := s.refresh(ctx, r, op, img)
			if err != nil {
				code := errorEnvelope(err).ErrorCode
				return statusErrorf(code, s.traits.texts.refresh, img.key.fingerprint, img.key.project, s.traits.refusal(err))
			}
			s.setFinal(op, map[string]any{"refreshed": fresh != img})
			return nil
		},
	})
	return nil
}

var errNoSource = statusErrorf(http.StatusNotFound, "Image source not found")

// refresh replaces an image if its source has a newer one, and returns the
// current one. A new image gets the aliases, settings and last use of the old one,
// which is deleted.
func (s *Server) refresh(ctx context.Context, r *http.Request, op *operation, img *image) (*image, error) {
	s.mu.Lock()
	source := img.source
	post := imagesPost{AutoUpdate: img.autoUpdate, Public: img.public, Profiles: slices.Clone(img.profiles)}
	s.mu.Unlock()
	if source == nil {
		return nil, errNoSource
	}
	post.Source = &imagesSource{
		Type: "image", Mode: "pull", Alias: source.Alias, Certificate: source.Certificate,
		Protocol: source.Protocol, Server: source.Server, ImageType: img.kind,
	}
	if source.Registry != nil {
		post.Source.Registry = *source.Registry
	}
	fresh, err := s.importImage(ctx, r, op, img.key.project, post)
	if err != nil || fresh == img {
		return img, err
	}
	s.mu.Lock()
	for key, a := range s.aliases {
		if key.project == img.key.project && a.target == img.key.fingerprint {
			a.target = fresh.key.fingerprint
		}
	}
	fresh.lastUsed = img.lastUsed
	s.mu.Unlock()
	if err := s.deleteImage(op, img); err != nil {
		return nil, err
	}
	s.publishLifecycle(r, "image-refreshed", imageURL(fresh.key), fresh.key.project, nil)
	return fresh, nil
}
