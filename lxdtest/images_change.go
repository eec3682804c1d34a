package lxdtest

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"time"
)

// imagePut is the body of PUT and PATCH.
type imagePut struct {
	AutoUpdate *bool             `json:"auto_update"`
	Properties map[string]string `json:"properties"`
	Public     *bool             `json:"public"`
	ExpiresAt  time.Time         `json:"expires_at"`
	Profiles   []string          `json:"profiles"`
}

// servePutImage replaces the changeable attributes of an image.
func (s *Server) servePutImage(w http.ResponseWriter, r *http.Request, name string) error {
	return s.changeImage(w, r, name, func(img *image, _ imagePut, put imagePut) error {
		profiles := put.Profiles
		if profiles == nil {
			profiles = []string{"default"}
		}
		if err := s.checkProfiles(img.key.project, profiles); err != nil {
			return statusErrorf(s.traits.badProfile, "%v", err)
		}
		img.public = put.Public != nil && *put.Public
		img.autoUpdate = put.AutoUpdate != nil && *put.AutoUpdate
		img.properties = withoutEmpty(put.Properties)
		img.profiles = profiles
		if !put.ExpiresAt.IsZero() {
			img.expires = put.ExpiresAt
		}
		return nil
	})
}

// servePatchImage changes the attributes that are in the body; like the daemons
// it ignores expiry and profiles. Like them it writes what the others were when it
// checked If-Match, even if they have been changed since (LXD 5.0.2, Incus 6.0.4 and
// 7.0.2).
func (s *Server) servePatchImage(w http.ResponseWriter, r *http.Request, name string) error {
	return s.changeImage(w, r, name, func(img *image, before, put imagePut) error {
		img.public = *cmp.Or(put.Public, before.Public)
		img.autoUpdate = *cmp.Or(put.AutoUpdate, before.AutoUpdate)
		properties := maps.Clone(before.Properties)
		maps.Copy(properties, put.Properties)
		img.properties = withoutEmpty(properties)
		return nil
	})
}

// changeImage is the common part of PUT and PATCH. change gets the attributes that the
// image had before a stall.
func (s *Server) changeImage(w http.ResponseWriter, r *http.Request, name string, change func(img *image, before, put imagePut) error) error {
	s.mu.Lock()
	project, err := s.imageProject(r)
	var img *image
	if err == nil {
		img, err = s.findImage(project, name)
	}
	if err == nil {
		err = s.checkETag(r, imageETag(img))
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	// The body is read without the lock: it may never arrive.
	var put imagePut
	if err := readJSON(r, &put); err != nil {
		return err
	}
	s.mu.Lock()
	if s.images[img.key] == img {
		err = s.checkETag(r, imageETag(img))
	}
	before := imagePut{AutoUpdate: new(img.autoUpdate), Properties: img.properties, Public: new(img.public)}
	if stall := s.fireFault(kindStallUpdate); stall != nil && err == nil {
		s.mu.Unlock()
		if !stall.wait(r.Context()) {
			return r.Context().Err()
		}
		s.mu.Lock()
	}
	if s.images[img.key] != img {
		err = errNoImage
	}
	if err == nil {
		err = s.checkPublic(project, put.Public != nil && *put.Public)
	}
	if err == nil {
		err = change(img, before, put)
	}
	key := img.key
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.publishLifecycle(r, "image-updated", imageURL(key), key.project, nil)
	writeEmpty(w)
	return nil
}

// checkPublic refuses public images where the dialect does not allow them; the
// caller holds the lock.
func (s *Server) checkPublic(project string, public bool) error {
	if public && !s.traits.publicAnywhere && project != defaultProject {
		return statusErrorf(http.StatusBadRequest, "Images can only be public in the default project")
	}
	return nil
}

// withoutEmpty copies a map without its empty values: setting a property to ""
// deletes it.
func withoutEmpty(properties map[string]string) map[string]string {
	kept := map[string]string{}
	for key, value := range properties {
		if value != "" {
			kept[key] = value
		}
	}
	return kept
}

// serveDeleteImage deletes an image in the background.
func (s *Server) serveDeleteImage(w http.ResponseWriter, r *http.Request, name string) error {
	s.mu.Lock()
	project, err := s.imageProject(r)
	var img *image
	if err == nil {
		img, err = s.findImage(project, name)
	}
	s.mu.Unlock()
	key := imageKey{project, name}
	switch {
	case img != nil:
		key = img.key
	case !errors.Is(err, errNoImage):
		return err
	case s.traits.hidesMissing:
		return statusErrorf(http.StatusNotFound, "Failed checking project %q image feature: %v", project, err)
	case !s.traits.deletesLater:
		return err
	}
	s.startTask(w, r, task{
		description: "Deleting image",
		project:     projectParam(r),
		resources:   map[string][]string{"images": {"/1.0/images/" + key.fingerprint}},
		entity:      imageURL(key),
		run: func(_ context.Context, op *operation) error {
			if err := s.deleteImage(op, img); err != nil {
				return err
			}
			s.publishLifecycle(r, "image-deleted", imageURL(key), key.project, nil)
			return nil
		},
	})
	return nil
}

// deleteImage removes an image with its aliases and files.
func (s *Server) deleteImage(op *operation, img *image) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op != nil && op.dropped {
		return errRestarted
	}
	if img == nil || s.images[img.key] != img {
		return errNoImage
	}
	delete(s.images, img.key)
	maps.DeleteFunc(s.aliases, func(key aliasKey, a *alias) bool {
		return key.project == img.key.project && a.target == img.key.fingerprint
	})
	s.release(img)
	return nil
}
