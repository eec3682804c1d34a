package lxd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/content"
	"github.com/golxd/lxd/internal/ctxerr"
	"github.com/golxd/lxd/internal/wire"
	"github.com/golxd/lxd/simplestreams"
)

// CreateFromSimplestreamsOptions describe an image to import from a simplestreams
// server.
type CreateFromSimplestreamsOptions struct {
	Public bool
	// AutoUpdate makes the server look for newer versions of the image that the
	// alias points to. The server must fetch the image for that: if only the client
	// can, or the server already had the image from another source, the error
	// matches ErrUnsupported.
	AutoUpdate bool
	// Type selects the image if the alias has one of each type. The default is
	// Container.
	Type ImageType
	// Architecture selects the image for an architecture, in any spelling, such as
	// "aarch64" or "arm64". The default is the server's first one for which there is
	// an image, or the one in an alias such as "debian/13/arm64".
	Architecture string
	// Filename is the image's filename. By default the server chooses it, or if
	// the client fetches the image, it is the name of the metadata file.
	Filename string
	// Properties are added to those in the index, and override them.
	Properties map[string]string
	// Profiles are the default profiles of instances created from the image
	// (extension image_profiles). The default is "default".
	Profiles []string
	// Aliases are names for the image on the server. The default is none.
	Aliases []Alias
	// ReuseAliases moves aliases that point to other images to this one. Those images
	// remain, without the alias. By default such an alias is an error that matches
	// ErrExists.
	ReuseAliases bool
	// DeleteReplaced deletes the images that have lost their last alias to
	// ReuseAliases, which must be set.
	DeleteReplaced bool
	// ExpiresAt is when the server may delete the image if it is cached. The
	// default is the expiry in the index.
	ExpiresAt time.Time

	// Certificate is the certificate of the simplestreams server, or of the
	// authority that signed it, as PEM. It is needed if the system does not trust
	// it. It does not apply to registries, which have their own.
	Certificate string
	// AllowHTTP allows the client to use plain http. It does not apply to the
	// server.
	AllowHTTP bool
	// Verifier verifies the signatures of the index, as in simplestreams.Options. It needs
	// ViaClient, as no server verifies them. The default is none.
	Verifier simplestreams.Verifier

	// IfExists is what happens if the server already has the image. The default is to
	// apply the options that are set to it.
	IfExists IfExists

	Via Via
	// Cache stores the index if the client reads it. It is used for an hour, as the
	// servers' own cache is: an image that is newer is not seen before. The default is
	// none.
	Cache simplestreams.Cache
	// HTTPClient is used if the client fetches the image. It is not modified. The
	// default uses the proxy from the environment.
	HTTPClient *http.Client
	// StallTimeout is how long the simplestreams server may be silent if the client
	// fetches the image. The default is Options.StallTimeout of the client;
	// negative means no limit.
	StallTimeout time.Duration

	// Wait makes the call return when the image is complete. The default is to
	// return when the server has accepted the work; Image.Wait does the rest.
	Wait bool
	// CancelOnDone cancels the operation, if the server can cancel it, when ctx ends
	// while the call waits for it (with Wait). By default it continues; the call
	// returns the Image beside the error, with the operation.
	CancelOnDone bool

	// Progress receives the phase server, and send if the client fetches the image.
	Progress func(Progress)
}

// CreateFromSimplestreams imports an image from a simplestreams server, by an alias,
// "alias/architecture", a fingerprint or a prefix of one. The server fetches it. A
// server that allows only registries (extension image_registries) uses a registry
// with that URL. If there is none, or the server fails, the client fetches the image
// with package simplestreams, whose errors name the file. If the content does not
// match the index, the error is a [*FingerprintError]. No image remains on the server
// after an import that failed.
//
// In both cases the image has the same fingerprint, properties, expiry and aliases.
// If the server fetches it, the creation date and the architecture are those of the
// index, and the image has an UpdateSource; if the client does, they are those of the
// image's metadata. If the server already has the image, the options are applied to
// it.
//
// The two families of daemons use different items of the same index. A server uses
// those of its own family (Incus 6.0.4 ignores lxd.tar.xz); if there are none, the
// client uses those of the other family.
//
// To keep an alias up to date from the server, see [Images.Ensure] and
// [FromSimplestreams].
func (m *Images) CreateFromSimplestreams(ctx context.Context, server, alias string, opts *CreateFromSimplestreamsOptions) (*Image, error) {
	if err := m.check(ctx); err != nil {
		return nil, err
	}
	var o CreateFromSimplestreamsOptions
	if opts != nil {
		o = *opts
	}
	alias, err := o.check(server, alias)
	if err != nil {
		return nil, err
	}
	return m.createFromStream(ctx, server, alias, "", &o)
}

// createFromStream imports the image of an alias. The server must take the one with the
// fingerprint, which the client has found in the index; "" for any.
func (m *Images) createFromStream(ctx context.Context, server, alias, fingerprint string, o *CreateFromSimplestreamsOptions) (*Image, error) {
	imp := &importJob{
		images: m, via: o.Via, explains: true, fingerprint: fingerprint, cached: fingerprint != "",
		updates: o.AutoUpdate,
		spec: imageSpec{
			attributes: attributes{AutoUpdate: o.AutoUpdate, ExpiresAt: o.ExpiresAt, Profiles: o.Profiles, Properties: o.Properties, Public: o.Public}.clone(),
			filename:   o.Filename, aliases: slices.Clone(o.Aliases), reuse: o.ReuseAliases, replaced: o.DeleteReplaced, ifExists: o.IfExists,
		},
	}
	if err := imp.check("CreateFromSimplestreamsOptions"); err != nil {
		return nil, err
	}
	imp.server = func(ctx context.Context) (*Image, error) { return m.importStream(ctx, server, alias, o, imp) }
	imp.client = func(ctx context.Context) (*Image, error) {
		image, err := m.fetchStream(ctx, server, alias, o, imp)
		return image, streamError(err)
	}
	imp.resolve = func(ctx context.Context) (string, error) {
		streams, image, err := m.resolveStream(ctx, server, alias, o, true)
		var unresolved *simplestreams.ResolveError
		switch {
		case errors.As(err, &unresolved):
			return "", streamError(err)
		case err != nil:
			return "", errUnsettled // that the index cannot be read says nothing of the image
		}
		return image.Fingerprint, streams.Close()
	}
	imp.meter, imp.report = meter(PhaseServer, -1, o.Progress), o.Progress
	return imp.run(ctx, o.Wait, o.CancelOnDone)
}

// check returns the alias, with the architecture of the options, or an error if a
// server could not use it.
func (o *CreateFromSimplestreamsOptions) check(server, alias string) (string, error) {
	if _, err := checkSourceURL("server", server); err != nil {
		return "", err
	}
	if err := checkAlias("alias", alias); err != nil {
		return "", err
	}
	if o.Verifier != nil && o.Via != ViaClient {
		return "", invalid("CreateFromSimplestreamsOptions.Verifier", "needs Via: ViaClient, as no server verifies signatures")
	}
	if o.AutoUpdate && checkFullFingerprint("", alias) == nil {
		return "", invalid("CreateFromSimplestreamsOptions.AutoUpdate", "needs an alias: a fingerprint is that of a single version")
	}
	if err := checkOneOf("CreateFromSimplestreamsOptions.Type", o.Type, "", Container, VirtualMachine); err != nil {
		return "", err
	}
	if o.Certificate != "" {
		if _, err := parseCertificate([]byte(o.Certificate)); err != nil {
			return "", invalid("CreateFromSimplestreamsOptions.Certificate", "%v", err)
		}
	}
	if o.Architecture == "" {
		return alias, nil
	}
	architecture, err := checkArchitecture("CreateFromSimplestreamsOptions.Architecture", o.Architecture)
	if err != nil {
		return "", err
	}
	if checkFullFingerprint("", alias) == nil {
		return "", invalid("CreateFromSimplestreamsOptions.Architecture", "needs an alias: a fingerprint is that of a single architecture")
	}
	switch named, known := simplestreams.ArchitectureName(alias[strings.LastIndexByte(alias, '/')+1:]); {
	case !known:
		return alias + "/" + architecture, nil
	case named != architecture:
		return "", invalid("CreateFromSimplestreamsOptions.Architecture", "is %q, but the alias is %q", o.Architecture, alias)
	}
	return alias, nil
}

// importStream makes the server fetch the image.
func (m *Images) importStream(ctx context.Context, server, alias string, o *CreateFromSimplestreamsOptions, imp *importJob) (*Image, error) {
	source, err := m.streamSource(ctx, server, alias, o)
	if err != nil {
		return nil, err
	}
	if checkFullFingerprint("", alias) == nil {
		imp.fingerprint = strings.ToLower(alias) // the server must not take another
	}
	return imp.begin(ctx, source)
}

// streamSource returns the source of a request that makes the server fetch the image.
func (m *Images) streamSource(ctx context.Context, server, alias string, o *CreateFromSimplestreamsOptions) (*wire.ImageSource, error) {
	info, err := m.client.serverInfo(ctx, false)
	if err != nil {
		return nil, err
	}
	source := &wire.ImageSource{
		Type: "image", Mode: "pull", Server: server, Protocol: "simplestreams", Alias: alias, Certificate: o.Certificate, ImageType: string(o.Type),
	}
	if info.Has("image_registries") {
		registry, err := m.client.Registries.withURL(ctx, server)
		if err != nil {
			return nil, err
		}
		if registry == "" {
			return nil, fmt.Errorf("import from a simplestreams server: %w: the server allows only image registries, and has none with that URL; create one with Registries.Create", ErrUnsupported)
		}
		source.Server, source.Protocol, source.Certificate, source.ImageRegistry = "", "", "", registry
	}
	return source, m.spellArchitecture(ctx, server, source, o)
}

// spellArchitecture replaces the architecture of a name "alias/x86_64" by the
// index's spelling of it, such as amd64: the daemons know no other. If the client
// cannot find that out, the name remains as it is.
func (m *Images) spellArchitecture(ctx context.Context, server string, source *wire.ImageSource, o *CreateFromSimplestreamsOptions) error {
	slash := strings.LastIndexByte(source.Alias, '/')
	last := source.Alias[slash+1:]
	if name, known := simplestreams.ArchitectureName(last); slash < 0 || !known || name != last {
		return nil // no name of daemons, or a name as in the indexes
	}
	streams, image, err := m.resolveStream(ctx, server, source.Alias, o, true)
	if err != nil {
		return ctxerr.Of(ctx)
	}
	if alias := source.Alias[:slash+1] + image.Properties["architecture"]; slices.Contains(image.Aliases, alias) {
		source.Alias = alias
	}
	return streams.Close()
}

// streamError makes a hash error of package simplestreams a [*FingerprintError], and
// names the option that allows plain http.
func streamError(err error) error {
	var corrupt *simplestreams.HashError
	switch {
	case errors.As(err, &corrupt):
		return &FingerprintError{Want: corrupt.Expected, Got: corrupt.Actual, Err: err}
	case errors.Is(err, simplestreams.ErrInsecure):
		return fmt.Errorf("%w: set AllowHTTP to allow it", err)
	}
	return err
}

// resolveStream finds the image in the index. The caller must close the client. With
// own, it uses only the items of the server's family.
func (m *Images) resolveStream(ctx context.Context, server, alias string, o *CreateFromSimplestreamsOptions, own bool) (*simplestreams.Client, *simplestreams.Image, error) {
	info, err := m.client.serverInfo(ctx, false)
	if err != nil {
		return nil, nil, err
	}
	var first error
	versions := map[string]string{info.daemon().Name: info.Version}
	for _, family := range info.daemon().Preferred() {
		streams, err := simplestreams.New(server, &simplestreams.Options{
			Family: simplestreams.Family(family.Name), DaemonVersion: versions[family.Name], AllowHTTP: o.AllowHTTP, Certificate: o.Certificate, Verifier: o.Verifier, Cache: o.Cache, HTTPClient: o.HTTPClient,
			StallTimeout: cmp.Or(o.StallTimeout, m.client.t.stall), RetryTimeout: m.client.t.retry.Timeout, UserAgent: m.client.t.agent, Logger: m.client.t.log,
		})
		if err != nil {
			return nil, nil, err
		}
		var image *simplestreams.Image
		err = m.client.t.untilClosed(ctx, func(ctx context.Context) (err error) {
			image, err = resolveFor(ctx, streams, alias, o.Type, info.Architectures)
			return err
		})
		if err == nil {
			return streams, image, nil
		}
		_ = streams.Close()
		if first == nil {
			first = err
		}
		var unresolved *simplestreams.ResolveError
		if own || !errors.As(err, &unresolved) || errors.Is(err, ErrAmbiguous) {
			break
		}
	}
	return nil, nil, first
}

// resolveFor finds the image for a server with these architectures: one for the
// first of them, and otherwise any, as the daemons do.
func resolveFor(ctx context.Context, streams *simplestreams.Client, alias string, kind ImageType, architectures []string) (*simplestreams.Image, error) {
	if len(architectures) > 0 {
		image, err := streams.Resolve(ctx, alias, &simplestreams.ResolveOptions{Type: kind, Architecture: architectures[0]})
		if err == nil || !errors.Is(err, ErrNotFound) {
			return image, err
		}
	}
	return streams.Resolve(ctx, alias, &simplestreams.ResolveOptions{Type: kind})
}

// fetchStream makes the client fetch the image. If that is not what the index says,
// the index may be an old one from the cache: if a new one says otherwise, the image
// is fetched once more.
func (m *Images) fetchStream(ctx context.Context, server, alias string, o *CreateFromSimplestreamsOptions, imp *importJob) (*Image, error) {
	streams, image, err := m.resolveStream(ctx, server, alias, o, false)
	if err != nil {
		return nil, err
	}
	defer func() { _ = streams.Close() }()
	created, err := m.uploadStream(ctx, streams, image, imp)
	if !staleStream(err) {
		return created, err
	}
	info, ierr := m.client.serverInfo(ctx, false)
	if ierr != nil {
		return created, err
	}
	// After such an error the client of the index revalidates it.
	current, rerr := resolveFor(ctx, streams, alias, o.Type, info.Architectures)
	if rerr != nil || current.Fingerprint == image.Fingerprint && slices.Equal(current.Files, image.Files) {
		return created, err
	}
	return m.uploadStream(ctx, streams, current, imp)
}

// staleStream reports whether an error says that a file is missing, or another than
// the index says.
func staleStream(err error) bool {
	var file *simplestreams.Error
	if errors.As(err, &file) {
		return errors.Is(file, ErrNotFound) || errors.Is(file, simplestreams.ErrBadData)
	}
	var corrupt *simplestreams.HashError
	return errors.As(err, &corrupt)
}

// uploadStream uploads the image while it is downloaded.
func (m *Images) uploadStream(ctx context.Context, streams *simplestreams.Client, image *simplestreams.Image, imp *importJob) (*Image, error) {
	existing, err := m.Get(ctx, image.Fingerprint)
	if err == nil {
		return imp.useExisting(ctx, existing)
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	download, err := streams.Open(ctx, image, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = download.Close() }()
	// The index overrides the image's metadata, as in an import by a server.
	spec := imp.spec
	spec.Properties, spec.exact = maps.Clone(image.Properties), true
	maps.Copy(spec.Properties, imp.spec.Properties)
	if spec.ExpiresAt.IsZero() {
		spec.ExpiresAt = image.ExpiresAt
	}
	if spec.filename == "" && checkFilename("", image.Filename) == nil {
		spec.filename = image.Filename
	}
	body, err := streamContent(image, download, spec.filename)
	if err != nil {
		return nil, err
	}
	return imp.upload(ctx, body, image.Fingerprint, spec)
}

// streamContent returns the content of a download for an upload.
func streamContent(image *simplestreams.Image, download *simplestreams.Download, filename string) (*content.Content, error) {
	first, err := content.NewSource(download.Metadata, download.Metadata.Size())
	if err != nil {
		return nil, err
	}
	if download.Rootfs == nil {
		return content.Unified(first), nil
	}
	second, err := content.NewSource(download.Rootfs, download.Rootfs.Size())
	if err != nil {
		return nil, err
	}
	field := "rootfs"
	if image.Type == VirtualMachine {
		field = "rootfs.img"
	}
	// The server takes the image's filename from that of the rootfs.
	return content.Split(first, download.Metadata.Name(), second, field, cmp.Or(filename, download.Rootfs.Name()))
}
