package simplestreams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/golxd/lxd/internal/partfile"
)

// DownloadToOptions configure [Client.DownloadTo].
type DownloadToOptions struct {
	// Name is the name of the files, without the extension. The default is the fingerprint. It must be a plain file name.
	// Use another name for each image: a download replaces existing files of the same name and extension, and leaves those
	// with other extensions.
	Name string

	// Sync makes the files durable (fsync) before they get their final names, and the names (fsync of the directory) before
	// DownloadTo returns, even if the files already exist. On Windows only the files are synced. The default is to leave
	// that to the system.
	Sync bool

	// Progress is called by the goroutine that called DownloadTo, after each block that was read, with the bytes of the
	// image that are in the directory so far and its total size (-1 if neither the index nor the server has it). Existing
	// content is counted while it is verified; done decreases if it turns out to be wrong. It may be nil.
	Progress func(done, total int64)
}

// Files are the paths of an image's files: Image of a unified image, Metadata and Rootfs of a split one. The others are
// empty. It can be converted to an ExportedFiles of package lxd, which verifies files without a server.
type Files struct {
	Image    string
	Metadata string // the metadata tarball
	Rootfs   string // the root filesystem, or the disk of a virtual machine
}

// copyBlock is the size in bytes of the blocks that are written to a file.
const copyBlock = 256 << 10

// DownloadTo writes the image to files in an existing directory: NAME.tar.gz for a unified image, NAME.meta.tar.xz and
// NAME.squashfs (or .qcow2, .tar.xz) for a split one; the content determines the extensions, and the server's file names
// are not used. The files get these names only when they are complete and verified, as with [Client.Open]. If they already
// exist, they are verified and nothing is downloaded; the directory may then be read-only.
//
// The files have the mode 0644, less the umask. During the download the content is in FINGERPRINT.partial, the rootfs of a
// split image in FINGERPRINT.rootfs.partial. If the call, or the process, ends early, these files remain, and the next call
// for the image and the directory resumes them, each where it ends; lxd's Image.ExportTo resumes that of a unified image,
// and vice versa. A file whose size neither the index nor a HEAD request tells starts over. Of two concurrent calls for
// one image and directory, in one process or two, one waits and finds the files of the other.
//
// Files that others can change are neither resumed nor accepted as the image: new files replace them, and their content is
// not changed. A partial file must belong to this user, have one name, and be writable by nobody else; a finished file must
// be writable by nobody else, and belong to this user, to root or to the directory's owner. (On Windows only links are
// checked; the directory's access list determines who may write.) Whoever may write to the directory can still replace
// files after they were verified: use one of your own.
//
// On Linux the space for a file is reserved before it is written, if the file system supports that: if there is not enough,
// the error wraps syscall.ENOSPC, or for a quota syscall.EDQUOT.
//
// Content that has another hash than the index says is removed, and the error is a *HashError; if it was that of an earlier
// call, it is downloaded again first. As with Open, a file that is missing, or another than the index says, makes the
// client revalidate the index when it is next used.
func (c *Client) DownloadTo(ctx context.Context, image *Image, dir string, options *DownloadToOptions) (*Files, error) {
	var set DownloadToOptions
	if options != nil {
		set = *options
	}
	first, err := c.newDownload(ctx, image, set.Progress)
	if err != nil {
		return nil, err
	}
	defer func() { _ = first.Close() }()
	if dir == "" {
		return nil, invalid("dir", `is empty; "." is the current directory`)
	}
	if set.Name == "" {
		set.Name = image.Fingerprint
	}
	why := partfile.CheckName(dir, set.Name)
	if strings.ContainsFunc(set.Name, unicode.IsControl) || !utf8.ValidString(set.Name) || strings.TrimSpace(set.Name) != set.Name {
		why = "is not a plain file name"
	}
	if why != "" {
		return nil, invalid("DownloadToOptions.Name", "%.80q %s", set.Name, why)
	}

	copied := *image
	copied.Files = slices.Clone(image.Files)
	s := &saving{client: c, image: &copied, current: first, progress: set.Progress}
	s.files = &partfile.Image{Dir: dir, Name: set.Name, Fingerprint: image.Fingerprint, Public: true, Sync: set.Sync, Verifying: s.verifying}
	s.setSizes()
	files, err := s.run(ctx)
	if err != nil {
		return nil, err
	}
	if files.Rootfs != "" {
		return &Files{Metadata: files.Image, Rootfs: files.Rootfs}, nil
	}

	return &Files{Image: files.Image}, nil
}

// saving is one call of DownloadTo.
type saving struct {
	client   *Client
	image    *Image // with the sizes that the server has told
	files    *partfile.Image
	partials []*partfile.File // of image.Files
	current  *Download        // of the current attempt
	progress func(done, total int64)
}

// verifying begins to count the bytes of existing files.
func (s *saving) verifying(int64) (count func(int)) { return s.current.count }

// setSizes sets the sizes of the files if all are known.
func (s *saving) setSizes() {
	s.files.Size = max(s.current.Size, 0)
	if s.image.Split() {
		s.files.Metadata = s.image.Files[0].Size
	}
}

func (s *saving) run(ctx context.Context) (files *partfile.Files, err error) {
	if err := s.open(ctx); err != nil {
		err = fmt.Errorf("open the partial file: %w", err)
		if ctx.Err() != nil || !s.files.MayBeThere() {
			return nil, err
		}
		// The directory may be read-only and have the files.
		files, ferr := s.files.Find(ctx)
		if files == nil {
			return nil, errors.Join(err, ferr)
		}

		return files, nil
	}
	defer func() {
		if cerr := s.partials[0].Close(); err == nil {
			err = cerr
		}
	}()

	files, err = s.files.Find(ctx)
	switch {
	case files != nil:
		for _, partial := range s.partials {
			partial.Remove()
		}
		return files, nil
	case err != nil && !errors.Is(err, partfile.ErrNotOurs): // the latter are replaced
		return nil, err
	}
	if err := s.learnSizes(); err != nil {
		return nil, err
	}
	for again := true; again; {
		files, again, err = s.attempt(ctx)
	}
	var failed *Error
	if errors.As(err, &failed) && failed.Transient() {
		err = fmt.Errorf("%w; call DownloadTo again to resume the download", err)
	}

	return files, err
}

// open opens the partial files.
func (s *saving) open(ctx context.Context) error {
	if !s.image.Split() {
		partial, err := s.files.Open(ctx)
		s.partials = []*partfile.File{partial}
		return err
	}
	metadata, rootfs, err := s.files.OpenPair(ctx)
	s.partials = []*partfile.File{metadata, rootfs}

	return err
}

// learnSizes asks the server for the sizes that the index does not have: a file of unknown size cannot be resumed.
func (s *saving) learnSizes() error {
	for n, r := range s.current.files() {
		if r.size >= 0 {
			continue
		}
		if err := r.learnSize(); err != nil {
			return err
		}
		s.image.Files[n].Size = max(r.size, 0)
	}
	s.current.setSize()
	s.setSizes()

	return nil
}

// attempt downloads what is missing and publishes the files. If content of an earlier call was wrong, it removes that and
// returns again.
func (s *saving) attempt(ctx context.Context) (files *partfile.Files, again bool, err error) {
	d, err := s.client.newDownload(ctx, s.image, s.progress)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = d.Close() }()
	s.current = d
	resumed := make([]bool, len(s.partials))
	for n, r := range d.files() {
		err := save(ctx, r, s.partials[n], &resumed[n])
		var wrong *HashError
		if !errors.As(err, &wrong) {
			if err != nil {
				return nil, false, err
			}
			continue
		}
		suspects := []int{n}
		if wrong.Expected == d.fingerprint && n > 0 {
			suspects = []int{0, 1}
		}
		for _, k := range suspects {
			again = again || resumed[k]
			if derr := s.partials[k].Begin(0); derr != nil {
				return nil, false, errors.Join(err, derr)
			}
		}

		return nil, again, err
	}
	files, err = s.partials[0].Publish(ctx)

	return files, false, err
}

// save completes the partial file with the content of r, and verifies it.
func save(ctx context.Context, r *FileReader, partial *partfile.File, resumed *bool) error {
	have, err := partial.Resume(ctx, &r.hashing, r.size)
	if err != nil {
		return err
	}
	if err := partial.Begin(have); err != nil {
		return err
	}
	*resumed = have > 0
	if have > 0 && have == r.size {
		// An earlier call ended after the last byte.
		if err := r.fail(r.verify()); err != io.EOF { //nolint:errorlint // verify returns it.
			return err
		}

		return nil
	}
	r.from = have
	if err := r.start(); err != nil {
		return err
	}
	if err := partial.Reserve(ctx, r.size-have); err != nil {
		return err
	}
	_, err = io.CopyBuffer(partial, r, make([]byte, copyBlock))

	return err
}
