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

// wanted are the attributes that a new image is to have. Zero fields are left
// to the server.
type imageSpec struct {
	attributes
	filename string
	aliases  []Alias
	reuse    bool
	// exact makes the image like this also where a field is zero: a copy.
	exact bool
}

// outcome returns the image beside an error only where it is there: then an
// alias or an attribute is not.
func imageIfUploaded(image *Image, err error) (*Image, error) {
	if err != nil && image.UploadedAt.IsZero() {
		return nil, err
	}
	return image, err
}

// supported errors where the server would ignore what is wanted.
func (w *imageSpec) supported(server *Server) error {
	if len(w.Profiles) > 0 && !slices.Equal(w.Profiles, []string{"default"}) {
		return server.need("set the profiles of an image", "image_profiles")
	}
	return nil
}

// headers are what an upload says of the image beside its content. The
// properties are never among them: where the image's metadata has none, they end
// the whole daemon (LXD 4.0 to 6.9, Incus 0.1 to 7.3). The names are not either,
// although Incus takes them: nobody must find the image by a name before it has
// its properties.
func (w *imageSpec) headers(server *Server, fingerprint string) http.Header {
	h := http.Header{}
	set := func(name, value string) {
		if value == "" {
			return
		}
		for _, prefix := range server.daemon().Prefixes() {
			h.Set("X-"+prefix+"-"+name, value)
		}
	}
	if w.Public {
		set("public", "true")
	}
	set("filename", w.filename)
	set("fingerprint", fingerprint)
	set("profiles", url.Values{"profile": w.Profiles}.Encode())
	return h
}

// complete reads a new image and gives it the attributes that it did not get
// with the upload or import: no upload carries properties, expiry or aliases, and
// LXD ignores its profiles. The aliases come last, when all else is right.
//
// It returns the image beside an error where only an alias could not be given. op
// is the operation that has found or made it; nil for none.
func (w *imageSpec) complete(ctx context.Context, m *Images, op *Operation, fingerprint string) (*Image, error) {
	c := m.client
	now, etag, err := c.Images.get(ctx, fingerprint, nil)
	if err != nil {
		return nil, err
	}
	to, differs := w.attributes.over(now.attributes(), w.exact)
	retries := c.t.retry.Begin()
	for differs {
		err := c.putAttributes(ctx, fingerprint, to, now.attributes(), etag)
		// Where the response was lost, the image tells whether the change was made.
		// Where somebody else has changed the image, what is wanted is put over that.
		again := maybeSeen(err) || errors.Is(err, ErrConflict)
		switch {
		case again:
			if err := retries.Pause(ctx, err); err != nil {
				return nil, err
			}
		case err != nil:
			var refused *Error
			if errors.As(err, &refused) && refused.StatusCode < http.StatusInternalServerError && !errors.Is(err, ErrUnavailable) && now.isNewOf(op) {
				// An image without what was asked for is not left behind.
				return nil, errors.Join(err, now.Delete(ctx, &DeleteOptions{Wait: true}))
			}
			return nil, err
		}
		if now, etag, err = c.Images.get(ctx, fingerprint, nil); err != nil {
			return nil, err
		}
		if !again {
			break
		}
		to, differs = w.attributes.over(now.attributes(), w.exact)
	}
	return now, now.assign(ctx, w.aliases, w.reuse)
}

// made is the image that an operation has made: what is told, or where nothing
// is the wanted one. Another than the wanted one is refused; "" is any.
func (m *Images) createdFingerprint(ctx context.Context, op *Operation, told, want string) (string, error) {
	switch {
	case told == "":
		return want, nil
	case want != "" && told != want:
		return "", m.deleteMismatch(ctx, op, want, told)
	}
	if err := checkServerFingerprint(told); err != nil {
		return "", fmt.Errorf("operation %s: %w: %w", op.ID(), ErrBadResponse, err)
	}
	return told, nil
}

// refuse deletes an image that is not the one that is wanted, unless it was
// there before.
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

// isNewOf says whether the image was made by the operation, rather than there
// before. An operation that does not say when it began has made nothing.
func (i *Image) isNewOf(op *Operation) bool {
	if op == nil {
		return false
	}
	began := op.Status().CreatedAt
	return !began.IsZero() && !i.UploadedAt.Before(began)
}

// assign gives the image the aliases that it does not have.
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
		// A name that is the image's already only lacks its description.
		if err := i.client.Aliases.assign(ctx, []Alias{want}, i.Fingerprint, reuse || named); err != nil {
			return err
		}
		i.Aliases = slices.DeleteFunc(i.Aliases, func(a Alias) bool { return a.Name == want.Name })
		i.Aliases = append(i.Aliases, Alias{Name: want.Name, Description: want.Description})
	}
	return nil
}

// image is what is known of an image before the server has it.
func (w *imageSpec) image(c *Client, fingerprint string) *Image {
	image := &Image{Fingerprint: fingerprint, Filename: w.filename}
	w.attributes.clone().set(image)
	return image.bind(c)
}

// post makes the server fetch or make an image from a source, with the aliases
// that post has. finish is called when that has ended.
func (m *Images) post(ctx context.Context, post *wire.ImagePost, w *imageSpec, settle func(context.Context) error, finish func(context.Context, *Operation, error, *progress.Meter) (*Image, error)) (*Image, error) {
	c := m.client
	w.attributes.post(post)
	post.Filename = w.filename
	op, err := c.start(ctx, &request{method: http.MethodPost, path: path("images"), query: c.query(), body: &jsonBody{post}}, settle)
	if err != nil {
		return nil, err
	}
	image := w.image(c, post.Source.Fingerprint)
	image.pending = newPending(op, -1, func(ctx context.Context, failure error, m *progress.Meter) (*Image, error) {
		return finish(ctx, op, failure, m)
	})
	image.pending.watched = true
	return image, nil
}

// importImage makes the server fetch or make an image, and gives it all that is
// wanted when that has ended.
func (m *Images) importImage(ctx context.Context, post *wire.ImagePost, w *imageSpec, settle func(context.Context) error) (*Image, error) {
	if !w.reuse {
		post.Aliases = wireAliases(w.aliases)
	}
	return m.post(ctx, post, w, settle, func(ctx context.Context, op *Operation, failure error, _ *progress.Meter) (*Image, error) {
		if failure != nil {
			return nil, failure
		}
		fingerprint, err := m.createdFingerprint(ctx, op, op.fingerprint(), post.Source.Fingerprint)
		if err != nil {
			return nil, err
		}
		if fingerprint == "" && len(w.aliases) > 0 {
			alias, err := m.client.Aliases.Get(ctx, w.aliases[0].Name)
			if err != nil {
				return nil, err
			}
			fingerprint = alias.Target
		}
		if fingerprint == "" {
			return nil, fmt.Errorf("operation %s does not tell the image: %w", op.ID(), ErrOutcomeUnknown)
		}
		return w.complete(ctx, m, op, fingerprint)
	})
}
