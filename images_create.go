package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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
	// seekable, if known. So much is read and no more: a connection may stay
	// open behind it. A reader that gives more together with the last byte is
	// an [ErrBodyChanged], one that holds less an io.ErrUnexpectedEOF. Default: 0,
	// unknown; the body is then sent in chunks.
	Size       int64
	RootfsSize int64

	// Public lets everybody who reaches the server read the image. Default:
	// those whom the server trusts.
	Public bool
	// Filename is what the image's file is called. Default: the base name if
	// the reader (of a split image: Rootfs) is an *os.File, else none.
	Filename string
	// Properties are put over those in the image's own metadata, when the server
	// has the content and before the image gets its aliases.
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
	// verifies it, and nothing is sent if the server has the image. Where the
	// server makes another image all the same, as behind a proxy that drops
	// headers, that image is deleted, and the error is a [*FingerprintError].
	Fingerprint string
	// Verify hashes the content while it is sent, and compares with what the
	// server has. It needs no Fingerprint.
	Verify bool
	// Dedupe hashes seekable content before anything is sent, so that nothing
	// is sent if the server has the image.
	Dedupe   bool
	IfExists IfExists

	// Wait returns when the image is there with all its attributes. Default:
	// when the server has received the content; Image.Wait does the rest, which
	// without it is not done: Properties, ExpiresAt, Aliases and, on LXD,
	// Profiles.
	Wait bool

	// Progress is told of the phases hash (with Dedupe), send and server.
	Progress func(Progress)
}

// Create uploads an image from a reader: a unified tarball, or with
// [CreateOptions.Rootfs] a split image. It begins where the reader stands. A
// reader that is also an [io.Seeker] is sent with its length, and again if the
// connection breaks; a file is sent by the kernel where that is possible. It is
// not read any more when Create has returned, unless ctx has ended while a Read
// of it blocked: that is then the last one, and the reader must be left alone
// until it returns. A server's refusal, too, is returned when the Read that
// goes on has ended.
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
		// A one-shot reader tells its fingerprint now or never, and it is what
		// decides the outcome where the server forgets the operation.
		hash: o.Verify || (o.Fingerprint == "" && (!o.Wait || !body.Replayable())),
		want: wanted{
			attributes: attributes{ExpiresAt: o.ExpiresAt, Profiles: o.Profiles, Properties: o.Properties, Public: o.Public}.clone(),
			filename:   o.filename(image), aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases,
		},
	}
	first := PhaseSend
	if o.Dedupe {
		first = PhaseHash
	}
	u.meter, u.report = meter(first, body.Size(), o.Progress), o.Progress
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
	attributes
	filename string
	aliases  []Alias
	reuse    bool
	// exact makes the image like this also where a field is zero: a copy.
	exact bool
}

// upload is one sending of an image to a server.
type upload struct {
	images      *Images
	content     *content.Content
	fingerprint string // known beforehand, or ""
	ifExists    IfExists
	hash        bool // compute the fingerprint while sending, and hold the server to it
	adopt       bool // give an image that is there already all that is wanted, not the aliases alone
	want        wanted
	meter       *progress.Meter
	report      func(Progress) // for a later Image.Wait; nil for none

	body *content.Body // the last sending
	sent int           // how often it was opened
	// When the first sending began, and when the server accepted the last.
	began, accepted time.Time
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
				u.body.Discard(ctx)
			}
			if u.sent++; u.sent == 1 {
				u.began = time.Now()
			}
			u.body = b
			u.meter.Phase(PhaseSend, 0, u.content.Size())
		},
	}
	op, err := c.start(ctx, req, u.settle)
	if err != nil {
		if u.body != nil {
			u.body.Discard(ctx)
		}
		if errors.Is(err, ErrUnavailable) && ctx.Err() == nil && !u.content.Replayable() && u.content.Used() {
			err = fmt.Errorf("%w: %w", ErrNotReplayable, err)
		}
		return nil, err
	}
	u.accepted = time.Now()
	if u.body != nil {
		u.body.Finish(ctx)
	}
	image := u.want.image(c, u.fingerprint)
	image.Size = max(u.content.SourceSize(), 0)
	if hash {
		sum, err := u.body.Fingerprint(ctx)
		if err != nil {
			u.body.Discard(ctx)
			return nil, fmt.Errorf("hash the image: %w", err)
		}
		image.Fingerprint = sum
	}
	image.pending = newPending(op, u.content.SourceSize(), func(ctx context.Context, failure error, _ *progress.Meter) (*Image, error) {
		return u.finish(ctx, op, failure)
	})
	image.pending.report = u.report
	if !wait {
		return image, nil
	}
	return outcome(image, image.pending.wait(ctx, image, u.meter))
}

// outcome returns the image beside an error only where it is there: then an
// alias or an attribute is not.
func outcome(image *Image, err error) (*Image, error) {
	if err != nil && image.UploadedAt.IsZero() {
		return nil, err
	}
	return image, err
}

// existing is the outcome where the server has the image.
func (u *upload) existing(ctx context.Context, image *Image) (*Image, error) {
	if u.ifExists == ErrorIfExists {
		return nil, fmt.Errorf("image %s: %w", image.Fingerprint, ErrExists)
	}
	err := error(nil)
	if u.adopt {
		image, err = u.want.complete(ctx, u.images, nil, image.Fingerprint)
	} else {
		err = image.assign(ctx, u.want.aliases, u.want.reuse)
	}
	if err != nil {
		return nil, err
	}
	u.meter.Phase(PhaseSend, image.Size, image.Size)
	return image, nil
}

// supported errors where the server would ignore what is wanted.
func (w *wanted) supported(server *Server) error {
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
	if w.Public {
		set("public", "true")
	}
	set("filename", w.filename)
	set("fingerprint", fingerprint)
	set("profiles", url.Values{"profile": w.Profiles}.Encode())
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
func (u *upload) finish(ctx context.Context, op *Operation, failure error) (*Image, error) {
	told := op.fingerprint()
	if failure != nil {
		return u.failed(ctx, op, told, failure)
	}
	want := u.fingerprint
	if u.hash || told == "" {
		// Where it tells nothing, it was forgotten most likely.
		sum, err := u.contentFingerprint(ctx)
		if err != nil {
			return nil, err
		}
		told, want = cmp.Or(told, sum), cmp.Or(want, sum)
		if told == want {
			want = sum
		}
	}
	told, err := u.images.made(ctx, op, told, want)
	if err != nil {
		return nil, err
	}
	return u.want.complete(ctx, u.images, op, told)
}

// failed tells the image that is already there from a failure.
func (u *upload) failed(ctx context.Context, op *Operation, told string, failure error) (*Image, error) {
	want := u.fingerprint
	if u.hash && want == "" && told != "" {
		var err error
		if want, err = u.body.Fingerprint(ctx); err != nil {
			return nil, err
		}
	}
	if want != "" && told != "" && told != want {
		return nil, &FingerprintError{Want: want, Got: told, Err: failure}
	}
	if told != "" && !errors.Is(failure, ErrCancelled) {
		existing, err := u.images.Get(ctx, told)
		if err == nil && u.made(existing, op) {
			return u.want.complete(ctx, u.images, op, told)
		}
		if err == nil {
			return u.existing(ctx, existing)
		}
	}
	if u.fingerprint != "" && (u.hash || u.content.Replayable()) {
		// The server says that the fingerprint is not right in words only.
		got, err := u.sentFingerprint(ctx)
		if err == nil && got != u.fingerprint {
			return nil, &FingerprintError{Want: u.fingerprint, Got: got, Err: failure}
		}
	}
	return nil, failure
}

// made says whether an earlier sending, whose response was lost, has made the
// image that op found there. The server's clock decides, which op tells.
func (u *upload) made(existing *Image, op *Operation) bool {
	return u.sent > 1 && !existing.UploadedAt.Before(op.Status().CreatedAt.Add(-u.accepted.Sub(u.began)))
}

func (u *upload) sentFingerprint(ctx context.Context) (string, error) {
	if u.hash {
		return u.body.Fingerprint(ctx)
	}
	return u.content.HashAhead(ctx, nil)
}

// complete reads a new image and gives it the attributes that it did not get
// with the upload or import: no upload carries properties, expiry or aliases, and
// LXD ignores its profiles. The aliases come last, when all else is right.
//
// It returns the image beside an error where only an alias could not be given. op
// is the operation that has found or made it; nil for none.
func (w *wanted) complete(ctx context.Context, m *Images, op *Operation, fingerprint string) (*Image, error) {
	c := m.client
	now, etag, err := c.Images.get(ctx, fingerprint, nil)
	if err != nil {
		return nil, err
	}
	to, differs := w.attributes.over(now.attributes(), w.exact)
	retries := c.t.retry.Begin()
	for differs {
		err := c.putAttributes(ctx, fingerprint, to, now.attributes(), etag)
		lost := maybeSeen(err)
		switch {
		case lost:
			// The image tells whether the change was made.
			if err := retries.Pause(ctx, err); err != nil {
				return nil, err
			}
		case err != nil:
			var refused *Error
			if errors.As(err, &refused) && refused.StatusCode < http.StatusInternalServerError && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrUnavailable) && now.isNewOf(op) {
				// An image without what was asked for is not left behind.
				return nil, errors.Join(err, now.Delete(ctx, &DeleteOptions{Wait: true}))
			}
			return nil, err
		}
		if now, etag, err = c.Images.get(ctx, fingerprint, nil); err != nil {
			return nil, err
		}
		if !lost {
			break
		}
		to, differs = w.attributes.over(now.attributes(), w.exact)
	}
	return now, now.assign(ctx, w.aliases, w.reuse)
}

// made is the image that an operation has made: what is told, or where nothing
// is the wanted one. Another than the wanted one is refused; "" is any.
func (m *Images) made(ctx context.Context, op *Operation, told, want string) (string, error) {
	switch {
	case told == "":
		return want, nil
	case want != "" && told != want:
		return "", m.refuse(ctx, op, want, told)
	}
	if err := holdFingerprint(told); err != nil {
		return "", fmt.Errorf("operation %s: %w: %w", op.ID(), ErrBadResponse, err)
	}
	return told, nil
}

// refuse deletes an image that is not the one that is wanted, unless it was
// there before.
func (m *Images) refuse(ctx context.Context, op *Operation, want, got string) error {
	mismatch := &FingerprintError{Want: want, Got: got}
	if holdFingerprint(got) != nil {
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
func (w *wanted) image(c *Client, fingerprint string) *Image {
	image := &Image{Fingerprint: fingerprint, Filename: w.filename}
	w.attributes.clone().set(image)
	return image.adopt(c)
}

// post makes the server fetch or make an image from a source, with the aliases
// that post has. finish is called when that has ended.
func (m *Images) post(ctx context.Context, post *wire.ImagePost, w *wanted, settle func(context.Context) error, finish func(context.Context, *Operation, error, *progress.Meter) (*Image, error)) (*Image, error) {
	c := m.client
	w.attributes.post(post)
	post.Filename = w.filename
	op, err := c.start(ctx, &request{method: http.MethodPost, path: path("images"), query: c.query(), json: post}, settle)
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
func (m *Images) importImage(ctx context.Context, post *wire.ImagePost, w *wanted, settle func(context.Context) error) (*Image, error) {
	if !w.reuse {
		post.Aliases = wireAliases(w.aliases)
	}
	return m.post(ctx, post, w, settle, func(ctx context.Context, op *Operation, failure error, _ *progress.Meter) (*Image, error) {
		if failure != nil {
			return nil, failure
		}
		fingerprint, err := m.made(ctx, op, op.fingerprint(), post.Source.Fingerprint)
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
