package lxdtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// imagesPost is the body of a creation from a source.
type imagesPost struct {
	AutoUpdate  bool              `json:"auto_update"`
	Properties  map[string]string `json:"properties"`
	Public      bool              `json:"public"`
	ExpiresAt   time.Time         `json:"expires_at"`
	Profiles    []string          `json:"profiles"`
	Filename    string            `json:"filename"`
	Source      *imagesSource     `json:"source"`
	Compression string            `json:"compression_algorithm"`
	Aliases     []imageAliasJSON  `json:"aliases"`
}

// imagesSource is where an image is to come from.
type imagesSource struct {
	Alias       string `json:"alias"`
	Certificate string `json:"certificate"`
	Protocol    string `json:"protocol"`
	Server      string `json:"server"`
	ImageType   string `json:"image_type"`
	Mode        string `json:"mode"`
	Type        string `json:"type"`
	URL         string `json:"url"`
	Name        string `json:"name"`
	Fingerprint string `json:"fingerprint"`
	Secret      string `json:"secret"`
	Project     string `json:"project"`
	Registry    string `json:"image_registry"`
}

var errBadSource = fail(http.StatusInternalServerError, "Invalid images JSON")

// serveCreateFrom makes an image from the source that the JSON of a request
// names.
func (s *Server) serveCreateFrom(w http.ResponseWriter, r *http.Request, project string) error {
	if !s.trusts(r) {
		return errForbidden
	}
	var post imagesPost
	if err := readJSON(r, &post); err != nil {
		return err
	}
	source := post.Source
	if source == nil {
		// The daemons' handler fails on it and the connection with the handler.
		abort(r)
	}
	s.mu.Lock()
	err := s.checkPublic(project, post.Public)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if source.Mode == "push" {
		if !s.has("images_push_relay") {
			return errBadSource
		}
		return s.servePushToken(w, r, project, post)
	}
	var run func(ctx context.Context, op *operation) (*image, error)
	switch source.Type {
	case "image":
		run = func(ctx context.Context, op *operation) (*image, error) {
			return s.importImage(ctx, r, op, project, post)
		}
	case "url":
		if !s.traits.urlImport {
			return fail(http.StatusBadRequest, "Image download from client-specified URL is not supported")
		}
		run = func(ctx context.Context, op *operation) (*image, error) {
			return s.importURL(ctx, r, op, project, post)
		}
	case "instance", "container", "virtual-machine", "snapshot":
		prepared, err := s.preparePublish(r, source)
		if err != nil {
			return err
		}
		run = func(ctx context.Context, op *operation) (*image, error) {
			return s.publishInstance(ctx, r, op, project, post, prepared)
		}
	default:
		return errBadSource
	}
	s.startTask(w, task{
		description: "Downloading image",
		project:     projectParam(r),
		run: func(ctx context.Context, op *operation) error {
			img, err := run(ctx, op)
			if err != nil {
				return err
			}
			return s.addAliases(r, op, img, post.Aliases)
		},
	})
	return nil
}

// addAliases names an image that a creation from a source has made or found.
func (s *Server) addAliases(r *http.Request, op *operation, img *image, aliases []imageAliasJSON) error {
	for _, a := range aliases {
		key := aliasKey{img.key.project, a.Name}
		s.mu.Lock()
		switch {
		case op != nil && op.dropped:
			s.mu.Unlock()
			return errDropped
		case s.aliases[key] != nil:
			s.mu.Unlock()
			return aliasTaken(a.Name)
		}
		s.giveAliases(img, []imageAliasJSON{a})
		s.mu.Unlock()
		s.publishLifecycle(r, "image-alias-created", s.aliasURL(key), key.project, map[string]any{"target": img.key.fingerprint})
	}
	return nil
}

// httpClient returns a client for fetching from elsewhere. With a certificate,
// given as PEM, only a server that has it or was signed by it is trusted; the
// certificate is then all there is to trust, whatever its names.
func (s *Server) httpClient(certificate string) (*http.Client, error) {
	config := &tls.Config{RootCAs: s.opts.RootCAs, MinVersion: tls.VersionTLS12}
	if certificate != "" {
		block, _ := pem.Decode([]byte(certificate))
		if block == nil {
			return nil, says("Invalid certificate")
		}
		pinned, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		pool.AddCert(pinned)
		config.RootCAs = pool
		config.InsecureSkipVerify = true // VerifyConnection does it by hand.
		config.VerifyConnection = func(state tls.ConnectionState) error {
			if state.PeerCertificates[0].Equal(pinned) {
				return nil
			}
			intermediates := x509.NewCertPool()
			for _, cert := range state.PeerCertificates[1:] {
				intermediates.AddCert(cert)
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates, DNSName: state.ServerName})
			return err
		}
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:   config,
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := s.opts.Dial(ctx, network, addr)
			if err != nil {
				return nil, says("Unable to connect to: %s ([%w])", addr, err)
			}
			return c, nil
		},
	}}, nil
}

// userAgent is how the server names itself to others.
func (s *Server) userAgent() string {
	return s.familyName() + " " + s.traits.version + " (Linux; x86_64)"
}

// request sends a request on the server's own behalf.
func (s *Server) request(ctx context.Context, client *http.Client, method, target string, header http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", s.userAgent())
	return client.Do(req)
}

// fetch downloads a file into the spool.
func (s *Server) fetch(ctx context.Context, op *operation, client *http.Client, target, what string) (*upload, error) {
	s.allowCancel(op)
	res, err := s.request(ctx, client, http.MethodGet, target, nil, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, says("Unable to fetch %s: %s", target, res.Status)
	}
	return s.receiveUnified(s.watch(op, what, res))
}

// allowCancel lets an operation be cancelled, which a download can be once it
// has begun.
func (s *Server) allowCancel(op *operation) {
	if op == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	op.mayCancel = true
}

// watch returns the body of a download whose progress the operation tells, at
// every tenth part if the length is known.
func (s *Server) watch(op *operation, what string, res *http.Response) io.Reader {
	return &progressReader{Reader: res.Body, server: s, op: op, what: what, total: res.ContentLength, begin: time.Now()}
}

// progressReader tells how far a download is.
type progressReader struct {
	io.Reader
	server      *Server
	op          *operation
	what        string
	done, total int64
	tenths      int64
	begin       time.Time
}

// Read reads and tells of each tenth part.
func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.done += int64(n)
	if p.total <= 0 {
		return n, err
	}
	if tenths := p.done * 10 / p.total; tenths > p.tenths {
		p.tenths = tenths
		p.server.setProgress(p.op, p.what, tenths*10, float64(p.done)/max(time.Since(p.begin).Seconds(), 1e-6))
	}
	return n, err
}

// setProgress says how far a download is, in the daemons' words.
func (s *Server) setProgress(op *operation, what string, percent int64, speed float64) {
	text := fmt.Sprintf("%d%% (%.2fMB/s)", percent, speed/1e6)
	if what != "" {
		text = what + ": " + text
	}
	s.setMetadata(op, map[string]any{"download_progress": text})
}

// importURL does a creation from a URL: HEAD tells the fingerprint and the
// place, GET brings the image.
func (s *Server) importURL(ctx context.Context, r *http.Request, op *operation, project string, post imagesPost) (*image, error) {
	if post.Source.URL == "" {
		return nil, says("Missing URL")
	}
	client, err := s.httpClient("")
	if err != nil {
		return nil, err
	}
	prefix := s.traits.importHeader
	res, err := s.request(ctx, client, http.MethodHead, post.Source.URL, http.Header{
		http.CanonicalHeaderKey(prefix + "Server-Architectures"): {"x86_64, i686"},
		http.CanonicalHeaderKey(prefix + "Server-Version"):       {s.traits.version},
	}, nil)
	if err != nil {
		return nil, err
	}
	_ = res.Body.Close()
	// The daemons look at the headers alone, whatever the status.
	fingerprint, place := res.Header.Get(prefix+"Image-Hash"), res.Header.Get(prefix+"Image-URL")
	if fingerprint == "" {
		return nil, says("Missing %sImage-Hash header", prefix)
	}
	if place == "" {
		return nil, says("Missing %sImage-URL header", prefix)
	}
	if img := s.existing(project, fingerprint); img != nil {
		return s.adopt(op, img, post)
	}
	u, err := s.fetch(ctx, op, client, place, "")
	if err != nil {
		return nil, err
	}
	if u.fingerprint != fingerprint {
		u.discard()
		return nil, says("Hash mismatch for %q: %s != %s", place, u.fingerprint, fingerprint)
	}
	return s.keep(r, op, u, project, post, nil)
}

// existing returns the image of a project that a fingerprint or a prefix
// names, or nil.
func (s *Server) existing(project, fingerprint string) *image {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fingerprint == "" {
		return nil
	}
	img, err := s.findImage(project, fingerprint)
	if err != nil {
		return nil
	}
	return img
}

// adopt is what an import does when the image is there already: it succeeds,
// and what the request asks for is set on the image.
func (s *Server) adopt(op *operation, img *image, post imagesPost) (*image, error) {
	s.mu.Lock()
	err := s.override(img, post)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.setFinal(op, map[string]any{"fingerprint": img.key.fingerprint, "size": fmt.Sprint(img.size)})
	return img, nil
}

// aliasTaken is the failure of an operation that cannot name its image.
func aliasTaken(name string) error {
	return says("Alias already exists: %s", name)
}

// overrides tells whether a request sets anything on the image that it
// imports. If so the daemons set the file name too, even to nothing.
func (p *imagesPost) overrides() bool {
	return p.Public || p.AutoUpdate || p.Filename != "" || len(p.Properties) > 0 || len(p.Profiles) > 0
}

// override sets on an image what a request asks for; the caller holds the lock.
func (s *Server) override(img *image, post imagesPost) error {
	if post.Profiles != nil {
		if err := s.checkProfiles(img.key.project, post.Profiles); err != nil {
			return err
		}
		img.profiles = post.Profiles
	}
	if post.Public {
		img.public = true
	}
	if post.AutoUpdate {
		img.autoUpdate = true
	}
	if post.overrides() {
		img.filename = post.Filename
	}
	if !post.ExpiresAt.IsZero() {
		img.expires = post.ExpiresAt
	}
	if len(post.Properties) > 0 {
		properties := map[string]string{}
		for key, value := range img.properties {
			properties[key] = value
		}
		for key, value := range post.Properties {
			properties[key] = value
		}
		img.properties = properties
	}
	return nil
}

// keep stores a downloaded image. With info, the source's own account of the
// image counts for more than the image's metadata.
func (s *Server) keep(r *http.Request, op *operation, u *upload, project string, post imagesPost, info *imageJSON) (*image, error) {
	asked := wish{
		project: project, public: post.Public, autoUpdate: post.AutoUpdate, filename: post.Filename,
		properties: post.Properties, profiles: post.Profiles, expires: jsonTime{post.ExpiresAt},
	}
	if info != nil {
		asked.replace = info.Properties
		asked.source = info.UpdateSource
		if !post.overrides() {
			asked.filename = info.Filename
		}
		if asked.expires.IsZero() && info.ExpiresAt.Unix() > 0 {
			asked.expires = jsonTime{info.ExpiresAt}
		}
	}
	// A download of what has arrived in the meantime is no failure.
	if img := s.existing(project, u.fingerprint); img != nil {
		u.discard()
		return s.adopt(op, img, post)
	}
	if err := s.store(r, op, u, asked); err != nil {
		return nil, err
	}
	img := s.existing(project, u.fingerprint)
	if img == nil {
		return nil, errNoImage
	}
	return img, nil
}

// importImage does a creation from another image server.
func (s *Server) importImage(ctx context.Context, r *http.Request, op *operation, project string, post imagesPost) (*image, error) {
	source := *post.Source
	if s.has("image_registries") && (source.Registry != "" || source.Protocol == "simplestreams" || source.Server == "") {
		if err := s.useRegistry(&source); err != nil {
			return nil, err
		}
	}
	if source.Alias == "" && source.Fingerprint == "" {
		return nil, errors.New("must specify one of alias or fingerprint for init from image")
	}
	// An image that is here already is not looked for elsewhere.
	if source.Alias == "" {
		if img := s.existing(project, source.Fingerprint); img != nil {
			return s.adopt(op, img, post)
		}
	}
	if source.Server == "" {
		return nil, errNoImage
	}
	if source.Protocol == "simplestreams" {
		return s.importStream(ctx, r, op, project, post, source)
	}
	return s.pull(ctx, r, op, project, post, source)
}

// remoteQuery is the query of requests to the server that is pulled from.
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
		return nil, says("Failed to connect to %s %q: %w", name, source.Server, err)
	}
	asked := source.Alias
	if asked == "" {
		asked = source.Fingerprint
	}
	name := asked
	var found aliasJSON
	// The daemons look for an alias of that name first, whichever it was given as.
	if err := s.getJSON(ctx, client, base+"/1.0/images/aliases/"+url.PathEscape(asked)+remoteQuery(source, false), &found); err == nil {
		name = found.Target
	}
	if img := s.existing(project, name); img != nil {
		return s.adopt(op, img, post)
	}
	var info imageJSON
	at := base + "/1.0/images/" + url.PathEscape(name)
	if err := s.getJSON(ctx, client, at+remoteQuery(source, true), &info); err != nil {
		return nil, says("Failed getting remote image info: %w", err)
	}
	if img := s.existing(project, info.Fingerprint); img != nil {
		return s.adopt(op, img, post)
	}
	u, err := s.fetchExport(ctx, op, client, base+"/1.0/images/"+info.Fingerprint+"/export"+remoteQuery(source, true))
	if err != nil {
		return nil, err
	}
	if u.broken != nil || u.fingerprint != info.Fingerprint {
		u.discard()
		if u.broken != nil {
			return nil, u.broken
		}
		return nil, says("Image fingerprint doesn't match. Got %s expected %s", u.fingerprint, info.Fingerprint)
	}
	info.UpdateSource = nil
	if asked != info.Fingerprint {
		info.UpdateSource = &updateSource{
			Alias: asked, Certificate: source.Certificate, Protocol: source.Protocol,
			Server: source.Server,
		}
	}
	return s.keep(r, op, u, project, post, &info)
}

// fetchExport downloads an export: one file, or a form with two.
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
	return s.receive(&http.Request{Header: res.Header, Body: io.NopCloser(s.watch(op, "", res))})
}

// getJSON reads the metadata of an answer of another server.
func (s *Server) getJSON(ctx context.Context, client *http.Client, at string, value any) error {
	res, err := s.request(ctx, client, http.MethodGet, at, nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return remoteError(res)
	}
	return readJSON(&http.Request{Body: res.Body}, &struct {
		Metadata any `json:"metadata"`
	}{value})
}

// remoteError is what another server refused.
func remoteError(res *http.Response) error {
	var answer envelope
	if err := readJSON(&http.Request{Body: res.Body}, &answer); err != nil || answer.Error == "" {
		return errors.New(res.Status)
	}
	return fail(answer.ErrorCode, "%s", answer.Error)
}

// serveRefresh fetches an image again from where it came from, if that has a
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
	s.startTask(w, task{
		description: "Refreshing image",
		project:     projectParam(r),
		run: func(ctx context.Context, op *operation) error {
			fresh, err := s.refresh(ctx, r, op, img)
			if err != nil {
				code := errorEnvelope(err).ErrorCode
				return fail(code, "Failed to update image %q in project %q: %v", img.key.fingerprint, img.key.project, err)
			}
			s.setFinal(op, map[string]any{"refreshed": fresh != img})
			return nil
		},
	})
	return nil
}

var errNoSource = fail(http.StatusNotFound, "Image source not found")

// refresh does the work of serveRefresh and returns the image that is now
// current. A newer one takes over aliases and settings of the old, which goes.
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
		Protocol: source.Protocol, Server: source.Server, ImageType: img.kind, Registry: source.Registry,
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
	s.mu.Unlock()
	if err := s.deleteImage(op, img); err != nil {
		return nil, err
	}
	s.publishLifecycle(r, "image-refreshed", imageURL(fresh.key), fresh.key.project, nil)
	return fresh, nil
}
