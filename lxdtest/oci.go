package lxdtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// ociManifest is a manifest of an OCI registry, or an index of manifests.
type ociManifest struct {
	Config struct {
		Digest string `json:"digest"`
	} `json:"config"`
	Layers []struct {
		Digest string `json:"digest"`
		Size   int64  `json:"size"`
	} `json:"layers"`
	Manifests []struct {
		Digest   string `json:"digest"`
		Platform struct {
			Architecture string `json:"architecture"`
			OS           string `json:"os"`
		} `json:"platform"`
	} `json:"manifests"`
}

// ociConfig is the configuration of an OCI image.
type ociConfig struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
}

// importOCI pulls an image from an OCI registry, as Incus does with skopeo. The content
// of the new image is not that of its layers.
func (s *Server) importOCI(ctx context.Context, r *http.Request, op *operation, project string, post imagesPost, source imagesSource) (*image, error) {
	if !s.opts.Skopeo {
		return nil, daemonErrorf("Failed getting remote image info: OCI container handling requires \"skopeo\" be present on the system")
	}
	requested := source.Alias
	if requested == "" {
		requested = source.Fingerprint
	}
	skopeo, err := s.newSkopeo(source.Server, requested)
	if err != nil {
		return nil, daemonErrorf("Failed getting remote image info: %w", err)
	}
	manifest, config, err := skopeo.inspect(ctx)
	if err != nil {
		return nil, daemonErrorf("Failed getting remote image info: %w", skopeo.fatal(err))
	}
	var layers bytes.Buffer
	var size int64
	for _, layer := range manifest.Layers {
		layers.WriteString(layer.Digest)
		size += layer.Size
	}
	fingerprint := Fingerprint(layers.Bytes())
	if img := s.existing(project, fingerprint); img != nil {
		return s.useExisting(op, img, post)
	}
	s.setMetadata(op, map[string]any{"download_progress": "Retrieving OCI image from registry"})
	architecture := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[config.Architecture]
	metadata, rootfs := SplitImage(fingerprint, 0)
	u, err := s.receiveFiles(metadata, &AddOptions{Rootfs: rootfs})
	if err != nil {
		return nil, err
	}
	u.fingerprint, u.size = fingerprint, size
	img, err := s.storeDownload(ctx, r, op, u, project, post, &imageJSON{
		Properties: map[string]string{
			"architecture": architecture, "type": "oci", "id": skopeo.reference(),
			"description": skopeo.registry.Host + skopeo.registry.Path + "/" + skopeo.name + " (OCI)",
		},
		UpdateSource: s.newUpdateSource(source, requested, "container"),
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	img.created, img.architecture = config.Created, architecture
	return img, nil
}

// skopeo reads an image of a registry, with the words of that command.
type skopeo struct {
	server            *Server
	client            *http.Client
	registry          *url.URL // without the user
	user              *url.Userinfo
	name, tag, digest string
	authorization     string
}

func (s *Server) newSkopeo(registry, image string) (*skopeo, error) {
	u, err := url.Parse(registry)
	if err != nil {
		return nil, err
	}
	client, err := s.httpClient("")
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(u.Hostname()); ip.IsLoopback() {
		client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // See Options.Skopeo.
	}
	k := &skopeo{server: s, client: client, registry: u, user: u.User}
	u.User, u.Path = nil, strings.TrimSuffix(u.Path, "/")
	k.name, k.digest, _ = strings.Cut(image, "@")
	k.name, k.tag, _ = strings.Cut(k.name, ":")
	return k, nil
}

// reference returns the image as Incus names it: without a tag if it has a digest.
func (k *skopeo) reference() string {
	switch {
	case k.digest != "":
		return k.name + "@" + k.digest
	case k.tag != "":
		return k.name + ":" + k.tag
	}
	return k.name
}

// ociError is an error of a registry, in the words of skopeo.
type ociError struct {
	text string
	code int // the exit code
}

func (e *ociError) Error() string { return e.text }

// fatal returns the error of a failed command.
func (k *skopeo) fatal(err error) error {
	image := "docker://" + k.registry.Host + k.registry.Path + "/" + k.reference()
	code, text := 1, fmt.Sprintf("Error parsing image name %q: %s", image, err)
	var failed *ociError
	if errors.As(err, &failed) {
		code = failed.code
		if strings.HasPrefix(failed.text, "choosing") {
			text = "Error parsing manifest for image: " + failed.text
		}
	}
	args := image + " --no-tags"
	if k.user != nil {
		args += " --authfile=" + k.server.dir + "/images/incus_client_auth_1"
	}
	return fmt.Errorf("Failed to run: skopeo --insecure-policy inspect %s: exit status %d (time=%q level=fatal msg=%q)", //nolint:revive,staticcheck // the words of Incus
		args, code, k.server.now().Format(time.RFC3339), text)
}

// inspect returns the manifest and the configuration of the image.
func (k *skopeo) inspect(ctx context.Context) (*ociManifest, *ociConfig, error) {
	reference := k.digest
	if reference == "" {
		reference = k.tag
	}
	if reference == "" {
		reference = "latest"
	}
	var manifest ociManifest
	if err := k.get(ctx, "manifests/"+reference, reference, &manifest); err != nil {
		return nil, nil, err
	}
	if manifest.Manifests != nil {
		digest := ""
		for _, m := range manifest.Manifests {
			if m.Platform.OS == "linux" && m.Platform.Architecture == "amd64" {
				digest = m.Digest
			}
		}
		if digest == "" {
			return nil, nil, &ociError{`choosing image instance: no image found in image index for architecture "amd64", variant "", OS "linux"`, 1}
		}
		manifest = ociManifest{}
		if err := k.get(ctx, "manifests/"+digest, digest, &manifest); err != nil {
			return nil, nil, err
		}
	}
	var config ociConfig
	err := k.get(ctx, "blobs/"+manifest.Config.Digest, reference, &config)
	return &manifest, &config, err
}

// get decodes a document of the image. reference is what skopeo says that it reads.
func (k *skopeo) get(ctx context.Context, path, reference string, into any) error {
	at := *k.registry
	repository := strings.TrimPrefix(at.Path+"/"+k.name, "/")
	at.Path = "/v2/" + repository + "/" + path
	for {
		header := http.Header{}
		if k.authorization != "" {
			header.Set("Authorization", k.authorization)
		}
		res, err := k.server.request(ctx, k.client, http.MethodGet, at.String(), header, nil)
		if err != nil {
			var failed *url.Error
			if errors.As(err, &failed) {
				err = failed.Err
			}
			return fmt.Errorf("pinging container registry %s: Get \"https://%s/v2/\": %w", at.Host, at.Host, err)
		}
		defer res.Body.Close()
		switch {
		case res.StatusCode == http.StatusOK:
			return json.NewDecoder(res.Body).Decode(into)
		case res.StatusCode != http.StatusUnauthorized:
			return &ociError{fmt.Sprintf("reading manifest %s in %s/%s: manifest unknown", reference, at.Host, repository), 2}
		case k.authorization == "":
			if err := k.authorize(ctx, res.Header.Get("WWW-Authenticate"), repository); err != nil {
				return err
			}
		}
		if k.authorization == "" || res.Request.Header.Get("Authorization") != "" {
			return &ociError{fmt.Sprintf("reading manifest %s in %s/%s: unauthorized", reference, at.Host, repository), 1}
		}
	}
}

var challengeParameter = regexp.MustCompile(`([a-z]+)="([^"]*)"`)

// authorize sets the authorization that a registry asks for.
func (k *skopeo) authorize(ctx context.Context, challenge, repository string) error {
	request := &http.Request{Header: http.Header{}}
	if k.user != nil {
		password, _ := k.user.Password()
		request.SetBasicAuth(k.user.Username(), password)
	}
	if !strings.HasPrefix(challenge, "Bearer ") {
		k.authorization = request.Header.Get("Authorization")
		return nil
	}
	parameters := map[string]string{}
	for _, match := range challengeParameter.FindAllStringSubmatch(challenge, -1) {
		parameters[match[1]] = match[2]
	}
	query := url.Values{"service": {parameters["service"]}, "scope": {"repository:" + repository + ":pull"}}
	res, err := k.server.request(ctx, k.client, http.MethodGet, parameters["realm"]+"?"+query.Encode(), request.Header, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return &ociError{"unable to retrieve auth token: invalid username/password: unauthorized: incorrect username or password", 1}
	}
	var issued struct {
		Token string `json:"token"`
	}
	err = json.NewDecoder(res.Body).Decode(&issued)
	k.authorization = "Bearer " + issued.Token
	return err
}
