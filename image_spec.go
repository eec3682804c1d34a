package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
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
	replaced bool // delete an image all of whose aliases were moved
	ifExists IfExists
	kind     ImageType // "" for any
	// exact sets zero fields too; it is true for a copy.
	exact bool
}

// check returns an error if a server could not keep the spec as it is. options is
// the name of the struct whose fields it comes from.
func (s *imageSpec) check(options string) error {
	if err := checkFilename(options+".Filename", s.filename); err != nil {
		return err
	}
	if err := checkNames(options+".Profiles", s.Profiles); err != nil {
		return err
	}
	if err := checkProperties(options+".Properties", s.Properties); err != nil {
		return err
	}
	if err := checkExpiry(options+".ExpiresAt", s.ExpiresAt); err != nil {
		return err
	}
	if err := s.ifExists.check(options + ".IfExists"); err != nil {
		return err
	}
	if s.replaced && !s.reuse {
		return invalid(options+".DeleteReplaced", "is set without ReuseAliases, which moves the aliases of other images")
	}
	return checkAliases(options+".Aliases", s.aliases)
}

// checkTarget returns an error, before any content is moved, if the server would
// refuse the image because of its profiles or aliases. fingerprint is that of the
// image, "" if it is unknown; it is then determined by find if an alias exists. If
// find returns "" too, the alias is checked when the image exists.
func (s *imageSpec) checkTarget(ctx context.Context, c *Client, fingerprint string, find func() (string, error)) error {
	if s.setsProfiles() {
		if err := c.checkProfiles(ctx, s.Profiles); err != nil {
			return err
		}
	}
	if s.reuse {
		return nil
	}
	return c.Aliases.checkFree(ctx, s.aliases, fingerprint, find)
}

// checkProfiles returns an error that matches ErrNotFound if a profile does not
// exist. That this client may not read it is no error: it may still use it.
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
		if err != nil && !errors.Is(err, ErrForbidden) {
			return fmt.Errorf("profile %q: %w", name, err)
		}
	}
	return nil
}

// useExisting applies the spec to an image that the server already has.
func (s *imageSpec) useExisting(ctx context.Context, m *Images, existing *Image) (*Image, error) {
	if s.ifExists == ErrorIfExists {
		return nil, fmt.Errorf("image %s: %w", existing.Fingerprint, ErrExists)
	}
	if err := s.checkType(existing); err != nil {
		return nil, err
	}
	return s.complete(ctx, m, nil, existing.Fingerprint)
}

// checkType returns an error if the image has another type than the wanted one: the
// fingerprint does not depend on it.
func (s *imageSpec) checkType(existing *Image) error {
	if s.kind == "" || existing.Type == s.kind {
		return nil
	}
	return fmt.Errorf("image %s has type %q, not %q: %w: delete it to create the other", existing.Fingerprint, existing.Type, s.kind, ErrExists)
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
			if perr := retries.Pause(ctx, err); perr != nil {
				if now, _, err = c.Images.get(ctx, fingerprint, nil); err != nil {
					return nil, perr
				}
				if _, differs = s.attributes.over(now.attributes(), s.exact); differs {
					return nil, perr
				}
				return now, s.assign(ctx, now)
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
	return now, s.assign(ctx, now)
}

// assign gives the image its aliases. It then deletes the images that have lost
// their last alias to it, if that is wanted.
func (s *imageSpec) assign(ctx context.Context, image *Image) error {
	var replaced []string
	for _, want := range s.aliases {
		if !s.replaced {
			break
		}
		alias, err := image.client.Aliases.Get(ctx, want.Name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("alias %q: %w", want.Name, err)
		}
		if err == nil && alias.Target != image.Fingerprint && !slices.Contains(replaced, alias.Target) {
			replaced = append(replaced, alias.Target)
		}
	}
	if err := image.assign(ctx, s.aliases, s.reuse); err != nil {
		return err
	}
	for _, fingerprint := range replaced {
		old, err := image.client.Images.Get(ctx, fingerprint)
		if err == nil && len(old.Aliases) == 0 {
			err = old.Delete(ctx, &DeleteOptions{Wait: true})
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("delete the replaced image %.12s: %w", fingerprint, err)
		}
	}
	return nil
}

// settleImage determines the outcome of an operation that the server has forgotten,
// and which should have created the image: nil if the server has it, and sends its
// content. A daemon that was killed may have the image without: Incus 7.0.2 records
// an image that it has downloaded before it renames the file, and serves it for ever
// as one that exists.
func (m *Images) settleImage(ctx context.Context, fingerprint string) error {
	image, err := m.Get(ctx, fingerprint)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("the server has forgotten the operation, and has no image %s: %w", fingerprint, ErrOutcomeUnknown)
	}
	if err != nil {
		return err
	}
	export, err := image.Export(ctx, nil)
	if err == nil {
		return export.Close()
	}
	var refused *Error
	var other *FingerprintError
	if errors.As(err, &refused) || errors.As(err, &other) {
		// The cause is not wrapped: its 404 is not that of an image.
		return fmt.Errorf("the server has forgotten the operation, and has image %s, but does not send its content (%s): if that lasts, delete the image before you create it again: %w", fingerprint, err.Error(), ErrOutcomeUnknown)
	}
	return err
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
		others := slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == want.Name })
		i.setAliases(append(others, Alias{Name: want.Name, Description: want.Description}))
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
	body := &jsonBody{post}
	if post.Source.Type == "instance" || post.Source.Type == "snapshot" {
		// On LXD they replace those of the instance's image (5.0.2), even if there are
		// none. Set later, they are merged with them, as on Incus.
		body = &jsonBody{wire.InstancePost{ImagePost: post}}
	}
	op, err := c.start(ctx, &request{method: http.MethodPost, path: path("images"), query: c.query(), body: body}, settle)
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

var fullFingerprint = regexp.MustCompile(`\b[0-9a-f]{64}\b`)

// fingerprintIn returns the fingerprint in the error of a publication whose content
// exists already; "" for none. Only that text contains it (LXD 5.0.2, Incus 6.0.4 and
// 7.0.2), whatever its other words are.
func fingerprintIn(failure error) string {
	return fullFingerprint.FindString(failure.Error())
}

// existing returns the server's image with a full fingerprint; nil if it has none,
// or that cannot be determined.
func (m *Images) existing(ctx context.Context, fingerprint string) *Image {
	if checkServerFingerprint(fingerprint) != nil {
		return nil
	}
	image, err := m.Get(ctx, fingerprint)
	if err != nil {
		return nil
	}
	return image
}

// importImage makes the server fetch or create an image, and completes it when the
// operation has finished. The server gets no aliases: if one could not be created, it
// would depend on the server whether the image remains.
func (m *Images) importImage(ctx context.Context, post *wire.ImagePost, spec *imageSpec, settle func(context.Context) error) (*Image, error) {
	return m.post(ctx, post, spec, settle, func(ctx context.Context, op *Operation, failure error, _ *progress.Meter) (*Image, error) {
		if failure != nil {
			existing := m.existing(ctx, cmp.Or(op.fingerprint(), post.Source.Fingerprint, fingerprintIn(failure)))
			if existing == nil || errors.Is(failure, ErrCancelled) {
				return nil, failure
			}
			if existing.isNewOf(op) && spec.ifExists != ErrorIfExists {
				return spec.complete(ctx, m, op, existing.Fingerprint)
			}
			return spec.useExisting(ctx, m, existing)
		}
		fingerprint, err := m.createdFingerprint(ctx, op, op.fingerprint(), post.Source.Fingerprint)
		if err != nil {
			return nil, err
		}
		if fingerprint == "" {
			return nil, fmt.Errorf("operation %s does not contain the image's fingerprint: %w", op.ID(), ErrOutcomeUnknown)
		}
		return spec.complete(ctx, m, op, fingerprint)
	})
}
