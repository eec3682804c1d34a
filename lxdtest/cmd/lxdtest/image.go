package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/golxd/lxd/lxdtest"
)

// imageSetting is an image of -image.
type imageSetting struct {
	opts     lxdtest.AddOptions
	metadata string // the only file of a unified image; "" for an image that is made
	rootfs   string

	seed  string // of a made image
	size  int64
	split bool
}

// made is the form of an image that is made: its properties os and release.
var (
	made     = regexp.MustCompile(`^([A-Za-z0-9-]+)/([A-Za-z0-9.-]+)$`)
	fileName = regexp.MustCompile(`\.(tar|tgz|txz|gz|xz|zst|bz2|lzma|squashfs|img|qcow2)$`)
)

// parseImage parses the text of an image: "web,web/1=debian/13 size=1000000 public".
func parseImage(text string) (imageSetting, error) {
	var image imageSetting
	aliases, spec, ok := strings.Cut(text, "=")
	if !ok {
		return image, errors.New("is not ALIAS=SPEC, such as web=debian/13")
	}
	for alias := range strings.SplitSeq(aliases, ",") {
		if alias == "" {
			return image, errors.New("an alias is empty")
		}
		image.opts.Aliases = append(image.opts.Aliases, alias)
	}
	spec, err := image.parseOptions(spec)
	if err != nil {
		return image, err
	}
	stat, err := os.Stat(spec)
	isFile := err == nil && !stat.IsDir()
	if !isFile && !fileName.MatchString(spec) {
		return image, image.parseMade(spec)
	}
	image.metadata = spec
	// A file's name can have a plus too.
	if before, after, ok := strings.Cut(spec, "+"); ok && !isFile {
		if image.metadata, image.rootfs = before, after; before == "" || after == "" {
			return image, fmt.Errorf("%q is not METADATA+ROOTFS", spec)
		}
	}
	if image.size > 0 || image.split || image.opts.VM {
		return image, errors.New("size, split and vm are for images that are made")
	}
	for _, file := range []string{image.metadata, image.rootfs} {
		if file == "" {
			continue
		}
		if stat, err := os.Stat(file); err != nil {
			return image, err
		} else if !stat.Mode().IsRegular() {
			return image, fmt.Errorf("%s is not a file", file)
		}
	}
	return image, nil
}

// parseOptions parses the words after the spec, and returns the spec.
func (i *imageSetting) parseOptions(text string) (spec string, err error) {
	words := strings.Split(text, " ")
	for len(words) > 1 {
		name, value, _ := strings.Cut(words[len(words)-1], "=")
		switch {
		case name == "public" && value == "":
			i.opts.Public = true
		case name == "vm" && value == "":
			i.opts.VM = true
		case name == "split" && value == "":
			i.split = true
		case name == "project" && value != "":
			i.opts.Project = value
		case name == "size":
			if i.size, err = strconv.ParseInt(value, 10, 64); err != nil || i.size < 1 || i.size > maxMade {
				return "", fmt.Errorf("size=%s is not a number of bytes from 1 to %d", value, maxMade)
			}
		default:
			return "", fmt.Errorf("%q is not an option: these are size=BYTES, split, vm, public and project=NAME", words[len(words)-1])
		}
		words = words[:len(words)-1]
	}
	return words[0], nil
}

// maxMade is the largest image that is made, in bytes.
const maxMade = 1 << 30

// parseMade parses the spec of an image that is made.
func (i *imageSetting) parseMade(spec string) error {
	parts := made.FindStringSubmatch(spec)
	if parts == nil {
		return fmt.Errorf("%q is neither a file nor OS/RELEASE, such as debian/13", spec)
	}
	i.seed = spec
	i.opts.Properties = map[string]string{"os": parts[1], "release": parts[2], "description": parts[1] + " " + parts[2]}
	return nil
}

// add adds the image to a server, and returns its fingerprint.
func (i *imageSetting) add(s *lxdtest.Server) (string, error) {
	opts := i.opts
	if i.metadata != "" {
		return s.AddImageFile(i.metadata, i.rootfs, &opts)
	}
	switch {
	case opts.VM:
		file, rootfs := lxdtest.VMImage(i.seed, i.size)
		opts.Rootfs = rootfs
		return s.AddImage(file, &opts)
	case i.split:
		file, rootfs := lxdtest.SplitImage(i.seed, i.size)
		opts.Rootfs = rootfs
		return s.AddImage(file, &opts)
	}
	return s.AddImage(lxdtest.UnifiedImage(i.seed, i.size), &opts)
}
