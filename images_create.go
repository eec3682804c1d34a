package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/progress"
	"github.com/golxd/lxd/internal/wire"
)

// IfExists says what creating an image does where the server has it already.
type IfExists string

const (
	// UseExisting makes it a success that gives the image that is there. Its
	// attributes stay as they are, but it gets the aliases. This is the default.
	UseExisting IfExists = ""
	// ErrorIfExists makes it an [ErrExists].
	ErrorIfExists IfExists = "error"
)

// Phases of a transfer, as Progress tells them.
const (
	PhaseHash    = "hash"    // the client reads and hashes
	PhaseSend    = "send"    // the client sends
	PhaseServer  = "server"  // the server works
	PhaseReceive = "receive" // the client receives
	PhaseVerify  = "verify"  // the client hashes files that are on its disk
)

// Progress tells how far a transfer is. It is reported at most ten times a
// second and once at the end, never by two goroutines at once; what is reported
// to must return soon. A phase that is over sooner than that may not be reported
// at all, and the last that is reported of a phase may be less than all of it.
type Progress struct {
	Phase   string // one of the Phase constants
	Done    int64  // bytes, -1 where unknown
	Total   int64  // bytes, -1 where unknown
	Percent int    // of the phase, from 0 to 100, -1 where unknown
	// Text is what the server says of its own work, such as
	// "rootfs: 45% (12.00MB/s)"; only in the phase server, and often empty.
	Text string
}

// meter starts to report to a user's function.
func meter(phase string, total int64, report func(Progress)) *progress.Meter {
	if report == nil {
		return nil
	}
	return progress.Start(phase, total, func(s progress.State) { report(Progress(s)) })
}

// CreateOptions describe an image to upload.
type CreateOptions struct {
	// Rootfs makes it a split image: its second file, a squashfs, a tarball, or
	// the disk of a virtual machine. The first file is then the metadata
	// tarball.
	Rootfs io.Reader
	// Type says what Rootfs is. Default: Container. A unified image tells
	// itself.
	Type ImageType

	// Size and RootfsSize are the lengths in bytes of readers that are not
	// seekable, if known. A reader that holds more is an [ErrBodyChanged], one
	// that holds less an io.ErrUnexpectedEOF. Default: 0, unknown; the body is
	// then sent in chunks.
	Size       int64
	RootfsSize int64

	// Public lets everybody who reaches the server read the image. Default:
	// those whom the server trusts.
	Public bool
	// Filename is what the image's file is called. Default: the base name if
	// the reader (of a split image: Rootfs) is an *os.File, else none.
	Filename string
	// Properties are put over those in the image's own metadata.
	Properties map[string]string
	// Profiles are what instances of the image get. Default: "default".
	Profiles []string
	// Aliases are names for the image; Target and Type are ignored. That they
	// are free is seen to before anything is sent. One that stands for this very
	// image is free if Fingerprint or Dedupe tells that beforehand.
	Aliases []Alias
	// ReuseAliases moves aliases here that stand for other images. Default:
	// they are an ErrExists.
	ReuseAliases bool
	// ExpiresAt is when the server may delete the image if it is cached.
	// Default: as the image's own metadata says.
	ExpiresAt time.Time

	// Fingerprint is the SHA-256 that the content must have. The server
	// verifies it, and nothing is sent if the server has the image.
	Fingerprint string
	// Verify hashes the content while it is sent, and compares with what the
	// server has. It needs no Fingerprint.
	Verify bool
	// Dedupe hashes seekable content before anything is sent, so that nothing
	// is sent if the server has the image.
	Dedupe   bool
	IfExists IfExists

	// Wait returns when the image is there with all its attributes. Default:
	// when the server has received the content; Image.Wait does the rest.
	Wait bool

	// Progress is told of the phases hash (with Dedupe), send and server.
	Progress func(Progress)
}

// Create uploads an image from a reader: a unified tarball, or with
// [CreateOptions.Rootfs] a split image. It begins where the reader stands. A
// reader that is also an [io.Seeker] is sent with its length, and again if the
// connection breaks; a file is sent by the kernel where that is possible.
//
// Without Wait, the Image has its fingerprint and what the options say, and
// Image.Wait completes it. Where an image was made but an alias could not be,
// both the Image and the error are given.
func (m *Images) Create(ctx context.Context, image io.Reader, opts *CreateOptions) (*Image, error) {
	var o CreateOptions
	if opts != nil {
		o = *opts
	}
	if err := o.check(image); err != nil {
		return nil, err
	}
	body, err := o.content(image)
	if err != nil {
		return nil, err
	}
	u := &upload{
		images: m, content: body, fingerprint: strings.ToLower(o.Fingerprint), ifExists: o.IfExists,
		verify: o.Verify,
		// A one-shot reader tells its fingerprint now or never, and it is what
		// decides the outcome where the server forgets the operation.
		hash: o.Verify || (o.Fingerprint == "" && (!o.Wait || !body.Replayable())),
		want: wanted{
			public: o.Public, filename: o.filename(image), properties: maps.Clone(o.Properties), profiles: slices.Clone(o.Profiles),
			expiresAt: o.ExpiresAt, aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases,
		},
	}
	first := PhaseSend
	if o.Dedupe {
		first = PhaseHash
	}
	u.meter = meter(first, body.Size(), o.Progress)
	defer u.meter.Stop()
	if o.Dedupe && u.fingerprint == "" && body.Replayable() {
		if u.fingerprint, err = body.HashAhead(ctx, u.meter.Counter()); err != nil {
			return nil, fmt.Errorf("read the image: %w", err)
		}
	}
	return u.run(ctx, o.Wait)
}

func (o *CreateOptions) check(image io.Reader) error {
	switch {
	case isNil(image) && o.Rootfs != nil:
		return invalid("image", "is nil; a rootfs needs its metadata tarball")
	case isNil(image):
		return invalid("image", "is nil")
	case o.Rootfs != nil && isNil(o.Rootfs):
		return invalid("CreateOptions.Rootfs", "is a nil *os.File")
	case o.Size < 0:
		return invalid("CreateOptions.Size", "is negative")
	case o.RootfsSize < 0:
		return invalid("CreateOptions.RootfsSize", "is negative")
	case o.Rootfs == nil && o.RootfsSize > 0:
		return invalid("CreateOptions.RootfsSize", "is set without Rootfs")
	case o.Rootfs == nil && o.Type == VirtualMachine:
		return invalid("CreateOptions.Type", "is set without Rootfs; a unified image tells its type itself")
	case o.Type != "" && o.Type != Container && o.Type != VirtualMachine:
		return invalid("CreateOptions.Type", "is %q, not %q or %q", o.Type, Container, VirtualMachine)
	case o.IfExists != UseExisting && o.IfExists != ErrorIfExists:
		return invalid("CreateOptions.IfExists", "is %q", o.IfExists)
	}
	if o.Fingerprint != "" {
		if err := checkFullFingerprint("CreateOptions.Fingerprint", o.Fingerprint); err != nil {
			return err
		}
	}
	if err := checkFilename("CreateOptions.Filename", o.Filename); err != nil {
		return err
	}
	if err := checkNames("CreateOptions.Profiles", o.Profiles); err != nil {
		return err
	}
	if _, ok := o.Properties[""]; ok {
		return invalid("CreateOptions.Properties", "has an empty name")
	}
	return checkAliases("CreateOptions.Aliases", o.Aliases)
}

// isNil says whether there is no reader, or the file of an os.Open that failed.
func isNil(r io.Reader) bool {
	f, isFile := r.(*os.File)
	return r == nil || isFile && f == nil
}

func checkFullFingerprint(field, fingerprint string) error {
	if err := checkFingerprint(field, fingerprint); err != nil {
		return err
	}
	if len(fingerprint) != 64 {
		return invalid(field, "has %d digits, not the 64 of a whole SHA-256", len(fingerprint))
	}
	return nil
}

func checkFilename(field, name string) error {
	if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return invalid(field, "holds a control character")
	}
	return nil
}

func checkNames(field string, names []string) error {
	for n, name := range names {
		if name == "" {
			return invalid(fmt.Sprintf("%s[%d]", field, n), "is empty")
		}
	}
	return nil
}

// filename is the given one, or that of the file that names the image.
func (o *CreateOptions) filename(image io.Reader) string {
	if o.Filename != "" {
		return o.Filename
	}
	if o.Rootfs != nil {
		return fileBase(o.Rootfs)
	}
	return fileBase(image)
}

func fileBase(r io.Reader) string {
	if f, ok := r.(*os.File); ok {
		if base := filepath.Base(f.Name()); checkFilename("", base) == nil {
			return base
		}
	}
	return ""
}

func (o *CreateOptions) content(image io.Reader) (*content.Content, error) {
	source := func(r io.Reader, field string, size int64) (*content.Source, error) {
		if size == 0 {
			size = -1
		}
		s, err := content.NewSource(r, size)
		if err != nil {
			return nil, err
		}
		if size >= 0 && s.Size() != size {
			return nil, invalid(field, "is %d, but the reader holds %d bytes", size, s.Size())
		}
		return s, nil
	}
	first, err := source(image, "CreateOptions.Size", o.Size)
	if err != nil {
		return nil, err
	}
	if o.Rootfs == nil {
		return content.Unified(first), nil
	}
	second, err := source(o.Rootfs, "CreateOptions.RootfsSize", o.RootfsSize)
	if err != nil {
		return nil, err
	}
	field, name := "rootfs", cmp.Or(o.filename(image), "rootfs")
	if o.Type == VirtualMachine {
		field, name = "rootfs.img", cmp.Or(o.filename(image), "rootfs.img")
	}
	return content.Split(first, cmp.Or(fileBase(image), "metadata"), second, field, name)
}

// wanted are the attributes that a new image is to have. Zero fields are left
// to the server.
type wanted struct {
	public     bool
	autoUpdate bool
	filename   string
	properties map[string]string
	profiles   []string
	expiresAt  time.Time
	aliases    []Alias
	reuse      bool
	// exact makes the image like this also where a field is zero: a copy.
	exact bool
}

// upload is one sending of an image to a server.
type upload struct {
	images      *Images
	content     *content.Content
	fingerprint string // known beforehand, or ""
	ifExists    IfExists
	hash        bool // compute the fingerprint while sending
	verify      bool // and compare it
	adopt       bool // give an image that is there already all that is wanted, not the aliases alone
	want        wanted
	meter       *progress.Meter

	body *content.Body // the last sending
}

func (u *upload) run(ctx context.Context, wait bool) (*Image, error) {
	c := u.images.client
	if u.fingerprint != "" {
		existing, err := u.images.Get(ctx, u.fingerprint)
		if err == nil {
			return u.existing(ctx, existing)
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	if !u.want.reuse {
		if err := c.Aliases.checkFree(ctx, u.want.aliases, u.fingerprint); err != nil {
			return nil, err
		}
	}
	server, err := c.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := u.want.supported(server); err != nil {
		return nil, err
	}
	u.meter.Phase(PhaseSend, 0, u.content.Size())
	hash := u.hash
	req := &request{
		method: http.MethodPost, path: path("images"), query: c.query(), header: u.want.headers(server, u.fingerprint), upload: u.content, repeatable: true,
		body: content.Options{Sent: u.meter.Counter(), Hash: hash},
		opened: func(b *content.Body) {
			if u.body != nil {
				u.body.Discard()
			}
			u.body = b
			u.meter.Phase(PhaseSend, 0, u.content.Size())
		},
	}
	op, err := c.start(ctx, req, u.settle)
	if err != nil {
		if u.body != nil {
			u.body.Discard()
		}
		if errors.Is(err, ErrUnavailable) && ctx.Err() == nil && !u.content.Replayable() && u.content.Used() {
			err = fmt.Errorf("%w: %w", ErrNotReplayable, err)
		}
		return nil, err
	}
	image := u.want.image(c, u.fingerprint)
	image.Size = max(u.content.SourceSize(), 0)
	if hash {
		sum, err := u.body.Fingerprint(ctx)
		if err != nil {
			u.body.Discard()
			return nil, fmt.Errorf("hash the image: %w", err)
		}
		image.Fingerprint = sum
	}
	image.op, image.finish = op, u.finish
	if !wait {
		return image, nil
	}
	u.meter.Phase(PhaseServer, 0, u.content.Size())
	if err := image.Wait(ctx); err != nil {
		if image.Fingerprint != "" && !image.UploadedAt.IsZero() {
			return image, err // it is there; an alias is not
		}
		return nil, err
	}
	u.meter.Phase(PhaseServer, image.Size, image.Size)
	return image, nil
}

// existing is the outcome where the server has the image.
func (u *upload) existing(ctx context.Context, image *Image) (*Image, error) {
	if u.ifExists == ErrorIfExists {
		return nil, fmt.Errorf("image %s: %w", image.Fingerprint, ErrExists)
	}
	give := func() error { return image.assign(ctx, u.want.aliases, u.want.reuse) }
	if u.adopt {
		give = func() error { return u.want.complete(ctx, image, image.Fingerprint) }
	}
	if err := give(); err != nil {
		return nil, err
	}
	u.meter.Phase(PhaseSend, image.Size, image.Size)
	return image, nil
}

// supported errors where the server would ignore what is wanted.
func (w *wanted) supported(server *Server) error {
	if len(w.profiles) > 0 && !slices.Equal(w.profiles, []string{"default"}) {
		return server.need("set the profiles of an image", "image_profiles")
	}
	return nil
}

// headers are what an upload says of the image beside its content.
func (w *wanted) headers(server *Server, fingerprint string) http.Header {
	h := http.Header{}
	set := func(name, value string) {
		if value == "" {
			return
		}
		for _, prefix := range server.headers() {
			h.Set(prefix+name, value)
		}
	}
	if w.public {
		set("public", "true")
	}
	set("filename", w.filename)
	set("fingerprint", fingerprint)
	properties := url.Values{}
	for name, value := range w.properties {
		properties.Set(name, value)
	}
	set("properties", properties.Encode())
	set("profiles", url.Values{"profile": w.profiles}.Encode())
	if server.Has("image_import_alias") && !w.reuse {
		names := url.Values{}
		for _, a := range w.aliases {
			names.Add("alias", a.Name)
		}
		set("aliases", names.Encode())
	}
	return h
}

// settle looks for the image whose operation the server has forgotten.
func (u *upload) settle(ctx context.Context) error {
	fingerprint, err := u.contentFingerprint(ctx)
	if err != nil {
		return errUnsettled
	}
	_, err = u.images.Get(ctx, fingerprint)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("the server has neither the operation nor image %s any more: %w", fingerprint, ErrOutcomeUnknown)
	}
	return err
}

// contentFingerprint is what was sent.
func (u *upload) contentFingerprint(ctx context.Context) (string, error) {
	switch {
	case u.hash && u.body != nil:
		return u.body.Fingerprint(ctx)
	case u.fingerprint != "":
		return u.fingerprint, nil
	case u.content.Replayable():
		return u.content.HashAhead(ctx, nil)
	}
	return "", errUnsettled
}

// finish does what is left once the operation has ended.
func (u *upload) finish(ctx context.Context, image *Image) error {
	c := u.images.client
	status := image.op.Status()
	told, _ := status.Metadata["fingerprint"].(string)
	_, failure := image.op.result()
	if failure != nil {
		return u.failed(ctx, image, told, failure)
	}
	if told == "" {
		// The operation was forgotten.
		var err error
		if told, err = u.contentFingerprint(ctx); err != nil {
			return err
		}
	}
	if u.verify {
		sum, err := u.body.Fingerprint(ctx)
		if err != nil {
			return err
		}
		if sum != told {
			corrupt := (&Image{Fingerprint: told}).adopt(c)
			return errors.Join(&FingerprintError{Want: sum, Got: told}, corrupt.Delete(ctx, &DeleteOptions{Wait: true}))
		}
	}
	return u.want.complete(ctx, image, told)
}

// failed tells the image that is already there from a failure.
func (u *upload) failed(ctx context.Context, image *Image, told string, failure error) error {
	if told != "" && !errors.Is(failure, ErrCancelled) {
		existing, err := u.images.Get(ctx, told)
		if err == nil {
			existing, err = u.existing(ctx, existing)
			if err != nil {
				return err
			}
			image.replace(existing)
			return nil
		}
	}
	if u.fingerprint != "" && (u.hash || u.content.Replayable()) {
		// The server says that the fingerprint is not right in words only.
		got, err := u.sentFingerprint(ctx)
		if err == nil && got != u.fingerprint {
			return &FingerprintError{Want: u.fingerprint, Got: got, Err: failure}
		}
	}
	return failure
}

func (u *upload) sentFingerprint(ctx context.Context) (string, error) {
	if u.hash {
		return u.body.Fingerprint(ctx)
	}
	return u.content.HashAhead(ctx, nil)
}

// complete reads a new image and gives it the attributes that the server did
// not take with the upload or import: LXD ignores profiles and aliases there,
// and no upload carries an expiry.
func (w *wanted) complete(ctx context.Context, image *Image, fingerprint string) error {
	c := image.client
	now, etag, err := c.Images.get(ctx, fingerprint, nil)
	if err != nil {
		return err
	}
	if to, differs := w.over(now.state()); differs {
		if err := c.putImage(ctx, fingerprint, to, now.state(), etag); err != nil {
			var refused *Error
			if errors.As(err, &refused) && refused.StatusCode < http.StatusInternalServerError && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrUnavailable) && now.isNewOf(image.op) {
				// An image without what was asked for is not left behind.
				return errors.Join(err, now.Delete(ctx, &DeleteOptions{Wait: true}))
			}
			return err
		}
		if now, err = c.Images.Get(ctx, fingerprint); err != nil {
			return err
		}
	}
	err = now.assign(ctx, w.aliases, w.reuse)
	image.replace(now)
	return err
}

// isNewOf says whether the image was made by the operation, rather than there
// before.
func (i *Image) isNewOf(op *Operation) bool {
	return op != nil && !i.UploadedAt.Before(op.Status().CreatedAt)
}

// over gives the state with the wanted attributes put over it.
func (w *wanted) over(is imageState) (to imageState, differs bool) {
	to = is
	if w.public {
		to.public = true
	}
	if w.autoUpdate {
		to.autoUpdate = true
	}
	if (w.exact || !w.expiresAt.IsZero()) && !w.expiresAt.Truncate(time.Second).Equal(is.expiresAt.Truncate(time.Second)) {
		to.expiresAt = w.expiresAt
	}
	if (len(w.profiles) > 0 || (w.exact && w.profiles != nil)) && !slices.Equal(slices.Sorted(slices.Values(w.profiles)), slices.Sorted(slices.Values(is.profiles))) {
		to.profiles = w.profiles
	}
	switch {
	case w.exact:
		to.properties = w.properties
	case len(w.properties) > 0:
		to.properties = maps.Clone(is.properties)
		if to.properties == nil {
			to.properties = map[string]string{}
		}
		maps.Copy(to.properties, w.properties)
	}
	return to, !to.equal(is)
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
func (w *wanted) image(c *Client, fingerprint string) *Image {
	return (&Image{
		Fingerprint: fingerprint, Public: w.public, AutoUpdate: w.autoUpdate, Filename: w.filename,
		Properties: maps.Clone(w.properties), Profiles: slices.Clone(w.profiles), ExpiresAt: w.expiresAt,
	}).adopt(c)
}

// post makes the server fetch or make an image from a source, with the aliases
// that post has. The image has the operation, and is not finished by it.
func (m *Images) post(ctx context.Context, post *wire.ImagePost, w *wanted, settle func(context.Context) error) (*Image, error) {
	c := m.client
	post.Public, post.AutoUpdate, post.Filename, post.ExpiresAt = w.public, w.autoUpdate, w.filename, w.expiresAt
	post.Properties, post.Profiles = w.properties, w.profiles
	op, err := c.start(ctx, &request{method: http.MethodPost, path: path("images"), query: c.query(), json: post}, settle)
	if err != nil {
		return nil, err
	}
	image := w.image(c, post.Source.Fingerprint)
	image.op = op
	return image, nil
}

// importImage makes the server fetch or make an image, and gives it all that is
// wanted when that has ended.
func (m *Images) importImage(ctx context.Context, post *wire.ImagePost, w *wanted, settle func(context.Context) error) (*Image, error) {
	if !w.reuse {
		post.Aliases = wireAliases(w.aliases)
	}
	image, err := m.post(ctx, post, w, settle)
	if err != nil {
		return nil, err
	}
	op := image.op
	image.finish = func(ctx context.Context, image *Image) error {
		if _, err := op.result(); err != nil {
			return err
		}
		fingerprint, _ := op.Status().Metadata["fingerprint"].(string)
		if fingerprint == "" {
			fingerprint = image.Fingerprint
		}
		if fingerprint == "" && len(w.aliases) > 0 {
			alias, err := m.client.Aliases.Get(ctx, w.aliases[0].Name)
			if err != nil {
				return err
			}
			fingerprint = alias.Target
		}
		if fingerprint == "" {
			return fmt.Errorf("operation %s does not tell the image: %w", op.ID(), ErrOutcomeUnknown)
		}
		return w.complete(ctx, image, fingerprint)
	}
	return image, nil
}
