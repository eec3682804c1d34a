package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/simplestreams"
)

// ImageType is the type of the instances that an image is for: [Container] or
// [VirtualMachine].
type ImageType = simplestreams.ImageType

// The image types.
const (
	Container      = simplestreams.Container
	VirtualMachine = simplestreams.VirtualMachine
)

// Image is an image on a server. The fields have the values that the server
// reported when the image was read. AutoUpdate, ExpiresAt, Profiles, Properties
// and Public can be changed and sent to the server with Update; the server sets
// the others.
//
// The methods of an Image are safe for concurrent use, unless its fields are
// changed at the same time.
type Image struct {
	Aliases      []Alias   `json:"aliases"`
	Architecture string    `json:"architecture"` // such as "x86_64"
	AutoUpdate   bool      `json:"auto_update"`
	Cached       bool      `json:"cached"`
	CreatedAt    time.Time `json:"created_at"`   // zero: unknown
	ExpiresAt    time.Time `json:"expires_at"`   // zero: never
	Filename     string    `json:"filename"`     // the last path element of the server's; it may be empty
	Fingerprint  string    `json:"fingerprint"`  // SHA-256 of the content, 64 hexadecimal digits
	LastUsedAt   time.Time `json:"last_used_at"` // zero: never
	// Profiles are the default profiles of instances created from the image.
	Profiles []string `json:"profiles"`
	// Project is the project that has the image. For a client of a project that
	// shares the images of the default project (features.images=false) it is
	// "default", and Client().Project() is the client's.
	Project      string            `json:"project"`
	Properties   map[string]string `json:"properties"`
	Public       bool              `json:"public"`
	Size         int64             `json:"size"` // bytes
	Type         ImageType         `json:"type"`
	UpdateSource *UpdateSource     `json:"update_source,omitempty"` // nil: none
	UploadedAt   time.Time         `json:"uploaded_at"`

	// ReleaseCodename and ReleaseTitle are set by servers with the extension
	// image_extended_metadata (LXD 6.9), for images of a simplestreams server.
	ReleaseCodename string `json:"release_codename,omitempty"`
	ReleaseTitle    string `json:"release_title,omitempty"`
	// Locations are the names of the cluster members that have the image
	// (extension image_locations: Incus 7); "none" is a server that is not
	// clustered.
	Locations []string `json:"locations,omitempty"`
	// AccessEntitlements are those of the requested entitlements that the client
	// has: see [ListOptions] and [Images.GetWithEntitlements].
	AccessEntitlements []string `json:"access_entitlements,omitempty"`

	client  *Client
	secret  string   // the secret that the image was read with; "" for none
	read    uint64   // the sum of the attributes when the image was read
	fixed   fixed    // the sums of the other fields then; zero if it was not read yet
	pending *pending // work under way; nil for none
	// transfer is the importJob or Copied of the call that created the image; nil if
	// none did.
	transfer interface{ transferred() Transfer }
}

// Transfer says how the content of an image came to its server.
type Transfer struct {
	// Way is who has fetched an imported image, "server" or "client" (see [Via]), or
	// the mode of a copy, "pull", "push" or "relay" (see [CopyMode]). It is empty for an
	// upload, and if the client found out that the server had the image.
	Way string
	// Failed are the ways that ViaAuto or CopyAuto tried or ruled out before, and why.
	Failed []TransferAttempt
}

// TransferAttempt is a way that failed, or could not be tried.
type TransferAttempt struct {
	Way string
	Err error
}

// Transfer returns how the image that this call of Create…, CreateFrom or Copy returned
// came to the server. Without Wait it is final only after Image.Wait. Of an image that
// was read from the server it is zero.
func (i *Image) Transfer() Transfer {
	if i == nil || i.transfer == nil {
		return Transfer{}
	}
	return i.transfer.transferred()
}

// UpdateSource is the source from which a server updates an image.
type UpdateSource struct {
	Alias       string    `json:"alias"`
	Certificate string    `json:"certificate"` // of the source, PEM
	Protocol    string    `json:"protocol"`    // lxd, incus or simplestreams
	Server      string    `json:"server"`      // URL
	ImageType   ImageType `json:"image_type"`
	// ImageRegistry is the name of a registry. Servers with the extension
	// image_registries set it instead of Server and Protocol.
	ImageRegistry string `json:"image_registry,omitempty"`
}

// bind sets the client of a decoded image, and normalizes its fields.
func (i *Image) bind(c *Client) *Image {
	for _, t := range []*time.Time{&i.CreatedAt, &i.ExpiresAt, &i.LastUsedAt, &i.UploadedAt} {
		// Both the Unix epoch and the year 1 mean never.
		if t.Unix() == 0 || t.Year() <= 1 {
			*t = time.Time{}
		}
	}
	if i.Properties == nil {
		i.Properties = map[string]string{}
	}
	if i.Type == "" {
		i.Type = Container
	}
	i.Filename = lastElement(i.Filename)
	i.client = c
	if i.Project == "" {
		i.Project = c.Project()
	}
	i.read, i.fixed = i.attributes().sum(), i.fixedFields()
	return i
}

// checkResponse checks that a response is an image, and has the requested
// fingerprint or prefix of one; "" allows any.
func (i *Image) checkResponse(want string) error {
	i.Fingerprint = strings.ToLower(i.Fingerprint)
	if err := checkServerFingerprint(i.Fingerprint); err != nil {
		return fmt.Errorf("it is not an image: %w", err)
	}
	if !strings.HasPrefix(i.Fingerprint, strings.ToLower(want)) {
		return fmt.Errorf("it is image %s, not %s", i.Fingerprint, strings.ToLower(want))
	}
	return nil
}

// Client returns the client that the image's methods use. Its project is the one
// that the image was read or created in; with ListOptions.AllProjects, that of the
// image.
func (i *Image) Client() *Client {
	if i == nil {
		return nil
	}
	return i.client
}

// replace replaces all fields by those of the image with, which was read later.
// It keeps the pending work and the transfer.
func (i *Image) replace(with *Image) {
	work, transfer := i.pending, i.transfer
	*i = *with
	i.pending, i.transfer = work, transfer
}

// check returns an error if the image does not come from a server.
func (i *Image) check() error {
	if i == nil || i.client == nil {
		return invalid("image", "does not come from a client; use Images.Get")
	}
	return checkFingerprint("Image.Fingerprint", i.Fingerprint)
}

// checkExists returns an error if the image does not come from a server, or if the
// server may not have it yet: the call that creates it was not waited for.
func (i *Image) checkExists() error {
	if err := i.check(); err != nil {
		return err
	}
	if i.pending != nil && i.UploadedAt.IsZero() {
		return invalid("image", "%.12s may not exist yet: call Image.Wait first, or set Wait in the options of the call that creates it", i.Fingerprint)
	}
	return nil
}

// UpdateOptions has no options yet.
type UpdateOptions struct{}

// Update sends what was changed of AutoUpdate, ExpiresAt, Profiles, Properties and
// Public since this Image was read, then reads the image again. A zero ExpiresAt
// means never; nil Profiles leave the profiles unchanged; a property without a value
// is removed. A change of another field is an [*InputError].
//
// If the image was changed on the server since this Image was read, nothing is sent
// and the error matches [ErrConflict], unless the image already is as requested. See
// [Images.Update], which then reads it again and repeats the change. The updates of
// one Client, and of those that InProject returns, wait for each other, so that none
// is lost.
//
// Other clients may change the image in the same moment: the daemons compare the
// ETag and write in two steps (LXD 5.0.2, 6.9, Incus 6.0.4, 7.0.2), and each of two
// such writes may overwrite the other. If the image that is read again does not have
// the change, the error matches ErrConflict. A write that the server completes after
// that can still overwrite it unseen.
func (i *Image) Update(ctx context.Context, _ *UpdateOptions) error {
	if err := i.checkExists(); err != nil {
		return err
	}
	if err := checkContext(ctx); err != nil {
		return err
	}
	if err := i.checkChanges(); err != nil {
		return err
	}
	unlock, err := i.client.t.updates.lock(ctx, i.Fingerprint)
	if err != nil {
		return i.client.t.connectionError(ctx, &request{method: http.MethodPut, path: path("images", i.Fingerprint)}, err)
	}
	defer unlock()
	// The servers' ETag covers neither profiles nor expiry (LXD 5.0.2, Incus
	// 6.0.4), so the attributes are compared too.
	now, etag, err := i.client.Images.get(ctx, i.Fingerprint, nil)
	if err != nil {
		return err
	}
	to, from := i.attributes(), now.attributes()
	if to.matches(from) {
		i.replace(now)
		return nil
	}
	if now.read != i.read {
		return i.conflict("the image was changed by somebody else")
	}
	err = i.client.changeAttributes(ctx, i.Fingerprint, to, from, etag)
	if err != nil && !errors.Is(err, ErrConflict) && !maybeSeen(err) {
		return i.explainProfiles(ctx, to, from, err)
	}
	now, _, gerr := i.client.Images.get(ctx, i.Fingerprint, nil)
	switch {
	case gerr != nil && err == nil:
		// The image was changed; only reading it again failed.
		i.read = to.sum()
		return nil
	case gerr != nil:
		return err
	case err != nil && !to.matches(now.attributes()):
		return err
	case err == nil && !now.attributes().hasChanges(from, to):
		return i.conflict("the change was overwritten by that of somebody else in the same moment")
	}
	i.replace(now)
	return nil
}

// explainProfiles makes an error match ErrNotFound if a new profile does not exist: no
// daemon says so with a status (LXD 5.0.2, Incus 6.0.4, 7.0.2).
func (i *Image) explainProfiles(ctx context.Context, to, from attributes, err error) error {
	if to.Profiles == nil || sameNames(to.Profiles, from.Profiles) {
		return err
	}
	if missing := i.client.checkProfiles(ctx, to.Profiles); errors.Is(missing, ErrNotFound) {
		return fmt.Errorf("%w (%w)", missing, err)
	}
	return err
}

// conflict returns an ErrConflict.
func (i *Image) conflict(message string) error {
	return &Error{
		StatusCode: http.StatusPreconditionFailed, Method: http.MethodPut, Path: path("images", i.Fingerprint),
		Message: message, Hint: "read it again, and repeat the change",
	}
}

// checkChanges returns an error for changes that Update does not send.
func (i *Image) checkChanges() error {
	for name := range i.Properties {
		if name == "" {
			return invalid("Image.Properties", "has an empty name")
		}
	}
	switch now := i.fixedFields(); {
	case i.fixed == (fixed{}):
		return nil // it was not read from a server yet
	case now.aliases != i.fixed.aliases:
		return invalid("Image.Aliases", "was changed, which Update does not send; use AddAlias, SetAlias or DeleteAlias")
	case now.filename != i.fixed.filename:
		return invalid("Image.Filename", "was changed, but the server sets it")
	case now != i.fixed:
		return invalid("Image", "was changed in a field that the server sets; Update sends AutoUpdate, ExpiresAt, Profiles, Properties and Public")
	}
	return nil
}

// DeleteOptions are the options of [Image.Delete].
type DeleteOptions struct {
	// Wait makes Delete return when the image is deleted. The default is to return
	// when the server has accepted the work.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while Delete waits for it (with Wait). By default it continues.
	CancelOnDone bool
}

// Delete removes the image and its aliases from the server, even if instances use it: see
// [Image.UsedBy].
func (i *Image) Delete(ctx context.Context, opts *DeleteOptions) error {
	if err := i.check(); err != nil {
		return err
	}
	op, err := i.client.start(ctx, &request{method: http.MethodDelete, path: path("images", i.Fingerprint), query: i.client.query()}, i.settleDeletion)
	if errors.Is(err, errDeletedBefore) {
		return nil
	}
	if err != nil {
		return err
	}
	if i.pending != nil {
		i.pending.release(ctx) // nobody can wait for it any more
	}
	i.pending = newPending(op, -1, func(ctx context.Context, failure error, _ *progress.Meter) (*Image, error) {
		if failure != nil && i.settleDeletion(ctx) == nil {
			// It was gone before (LXD 4.0), or somebody else has deleted it meanwhile.
			failure = fmt.Errorf("image %s: %w: %w", i.Fingerprint, ErrNotFound, failure)
		}
		return nil, failure
	})
	if opts == nil || !opts.Wait {
		return nil
	}
	_, err = i.pending.waitInCall(ctx, i, nil, opts.CancelOnDone)
	return err
}

// settleDeletion determines the outcome of a deletion whose operation the server
// has forgotten.
func (i *Image) settleDeletion(ctx context.Context) error {
	_, err := i.client.Images.Get(ctx, i.Fingerprint)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return errUnsettled
}
