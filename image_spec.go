package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/wire"
)

// imageSpec describes a new image: its attributes, filename and aliases. The
// server chooses the value of a zero field.
type imageSpec struct {
	attributes
	filename string
	aliases  []Alias
	reuse    bool
	// exact sets zero fields too; it is true for a copy.
	exact bool
}

// imageIfUploaded returns the image beside an error only if the server has it:
// then an alias or an attribute could not be set.
func imageIfUploaded(image *Image, err error) (*Image, error) {
	if err != nil && image.UploadedAt.IsZero() {
		return nil, err
	}
	return image, err
}

// checkSupported returns an error if the server would ignore a part of the spec.
func (s *imageSpec) checkSupported(server *Server) error {
	if s.setsProfiles() {
		return server.need("set the profiles of an image", "image_profiles")
	}
	return nil
}

// setsProfiles reports whether the profiles differ from the servers' default.
func (s *imageSpec) setsProfiles() bool {
	return len(s.Profiles) > 0 && !slices.Equal(s.Profiles, []string{"default"})
}

// checkProfiles returns an error that names the first profile that the client's
// project does not have.
func (c *Client) checkProfiles(ctx context.Context, names []string) error {
	for _, name := range names {
		type profile struct {
			Name string `json:"name"`
		}
		_, _, err := get(ctx, c.t, &request{method: http.MethodGet, path: path("profiles", name), query: c.query()}, func(p *profile) error {
			if p.Name != name {
				return fmt.Errorf("it is profile %.80q", p.Name)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("profile %q: %w", name, err)
		}
	}
	return nil
}

// headers returns the headers of an upload that describe the image. They never
// contain the properties: if the image's metadata has none, they crash the daemon
// (LXD 4.0 to 6.9, Incus 0.1 to 7.3). They do not contain the aliases either,
// although Incus accepts them: nobody must find the image by an alias before it has
// its properties.
func (s *imageSpec) headers(server *Server, fingerprint string) http.Header {
	h := http.Header{}
	set := func(name, value string) {
		if value == "" {
			return
		}
		for _, prefix := range server.daemon().Prefixes() {
			h.Set("X-"+prefix+"-"+name, value)
		}
	}
	if s.Public {
		set("public", "true")
	}
	set("filename", s.filename)
	set("fingerprint", fingerprint)
	set("profiles", url.Values{"profile": s.Profiles}.Encode())
	return h
}

// complete reads a new image and sets what the upload or import did not set: no
// upload contains properties, expiry or aliases, and LXD ignores its profiles. The
// aliases come last, when everything else is set.
//
// If only an alias cannot be set, it returns the image beside the error. op is the
// operation that has found or created the image; nil for none.
func (s *imageSpec) complete(ctx context.Context, m *Images, op *Operation, fingerprint string) (*Image, error) {
	c := m.client
	now, etag, err := c.Images.get(ctx, fingerprint, nil)
	if err != nil {
		return nil, err
	}
	to, differs := s.attributes.over(now.attributes(), s.exact)
	retries := c.t.retry.Begin()
	for differs {
		err := c.putAttributes(ctx, fingerprint, to, now.attributes(), etag)
		// If the response was lost, reading the image shows whether it was changed.
		// If somebody else has changed the image, the spec is applied to the result.
		repeat := maybeSeen(err) || errors.Is(err, ErrConflict)
		switch {
		case repeat:
			if err := retries.Pause(ctx, err); err != nil {
				return nil, err
			}
		case err != nil:
			var refused *Error
			if errors.As(err, &refused) && refused.StatusCode < http.StatusInternalServerError && !errors.Is(err, ErrUnavailable) && now.isNewOf(op) {
				// An image without its attributes must not remain.
				return nil, errors.Join(err, now.Delete(ctx, &DeleteOptions{Wait: true}))
			}
			return nil, err
		}
		if now, etag, err = c.Images.get(ctx, fingerprint, nil); err != nil {
			return nil, err
		}
		if !repeat {
			break
		}
		to, differs = s.attributes.over(now.attributes(), s.exact)
	}
	return now, now.assign(ctx, s.aliases, s.reuse)
}

// createdFingerprint returns the fingerprint of the image that an operation has
// created: the reported one, or if that is empty the wanted one. If they differ, it
// deletes the image and returns an error; an empty want allows any.
func (m *Images) createdFingerprint(ctx context.Context, op *Operation, reported, want string) (string, error) {
	switch {
	case reported == "":
		return want, nil
	case want != "" && reported != want:
		return "", m.deleteMismatch(ctx, op, want, reported)
	}
	if err := checkServerFingerprint(reported); err != nil {
		return "", fmt.Errorf("operation %s: %w: %w", op.ID(), ErrBadResponse, err)
	}
	return reported, nil
}

// deleteMismatch deletes an image without the wanted fingerprint, unless it
// existed before the operation, and returns a FingerprintError.
func (m *Images) deleteMismatch(ctx context.Context, op *Operation, want, got string) error {
	mismatch := &FingerprintError{Want: want, Got: got}
	if checkServerFingerprint(got) != nil {
		return mismatch // there is no such image
	}
	other, err := m.Get(ctx, got)
	if err == nil && other.isNewOf(op) {
		err = other.Delete(ctx, &DeleteOptions{Wait: true})
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return errors.Join(mismatch, err)
	}
	return mismatch
}

// isNewOf reports whether the operation has created the image, which otherwise
// existed before. It is false if the operation has no creation time.
func (i *Image) isNewOf(op *Operation) bool {
	if op == nil {
		return false
	}
	began := op.Status().CreatedAt
	return !began.IsZero() && !i.UploadedAt.Before(began)
}

// assign creates the aliases that the image does not have.
func (i *Image) assign(ctx context.Context, aliases []Alias, reuse bool) error {
	var missing []Alias
	for _, want := range aliases {
		has := slices.ContainsFunc(i.Aliases, func(a Alias) bool {
			return a.Name == want.Name && (want.Description == "" || a.Description == want.Description)
		})
		if !has {
			missing = append(missing, want)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	for _, want := range missing {
		named := slices.ContainsFunc(i.Aliases, func(a Alias) bool { return a.Name == want.Name })
		// An alias that the image already has lacks only its description.
		if err := i.client.Aliases.assign(ctx, []Alias{want}, i.Fingerprint, reuse || named); err != nil {
			return err
		}
		i.Aliases = slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == want.Name })
		i.Aliases = append(i.Aliases, Alias{Name: want.Name, Description: want.Description})
	}
	return nil
}

// image returns what is known of the image before the server has it.
func (s *imageSpec) image(c *Client, fingerprint string) *Image {
	image := &Image{Fingerprint: fingerprint, Filename: s.filename}
	s.attributes.clone().set(image)
	return image.bind(c)
}

// post makes the server fetch or create an image from a source, with the aliases in
// post. finish is called when the operation has finished.
func (m *Images) post(ctx context.Context, post *wire.ImagePost, spec *imageSpec, settle func(context.Context) error, finish func(context.Context, *Operation, error, *progress.Meter) (*Image, error)) (*Image, error) {
	c := m.client
	spec.attributes.post(post)
	post.Filename = spec.filename
	op, err := c.start(ctx, &request{method: http.MethodPost, path: path("images"), query: c.query(), body: &jsonBody{post}}, settle)
	if err != nil {
		return nil, err
	}
	image := spec.image(c, post.Source.Fingerprint)
	image.pending = newPending(op, -1, func(ctx context.Context, failure error, m *progress.Meter) (*Image, error) {
		return finish(ctx, op, failure, m)
	})
	image.pending.watched = true
	return image, nil
}

// importImage makes the server fetch or create an image, and completes it when the
// operation has finished.
func (m *Images) importImage(ctx context.Context, post *wire.ImagePost, spec *imageSpec, settle func(context.Context) error) (*Image, error) {
	if !spec.reuse {
		post.Aliases = wireAliases(spec.aliases)
	}
	return m.post(ctx, post, spec, settle, func(ctx context.Context, op *Operation, failure error, _ *progress.Meter) (*Image, error) {
		if failure != nil {
			return nil, failure
		}
		fingerprint, err := m.createdFingerprint(ctx, op, op.fingerprint(), post.Source.Fingerprint)
		if err != nil {
			return nil, err
		}
		if fingerprint == "" && len(spec.aliases) > 0 {
			alias, err := m.client.Aliases.Get(ctx, spec.aliases[0].Name)
			if err != nil {
				return nil, err
			}
			fingerprint = alias.Target
		}
		if fingerprint == "" {
			return nil, fmt.Errorf("operation %s does not contain the image's fingerprint: %w", op.ID(), ErrOutcomeUnknown)
		}
		return spec.complete(ctx, m, op, fingerprint)
	})
}
