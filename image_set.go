package lxd

import (
	"cmp"
	"slices"
	"strings"
	"sync"
)

// ImageSet has the images that one loop over [Images.Watch] has yielded, so that they are
// found in memory while the loop runs:
//
//	var set lxd.ImageSet
//	for change, err := range client.Images.Watch(ctx, nil) {
//		if err != nil { … }
//		set.Apply(change)
//	}
//
// The zero value is an empty set. Its methods are safe for concurrent use, and return
// images that are the caller's. It is as current as the loop; a new loop needs a new set.
// It needs about as much memory as Watch itself.
type ImageSet struct {
	mu      sync.RWMutex
	images  map[imageKey]*Image
	aliases map[aliasKey]*Image
	project string // of the image that was applied last
	synced  bool
}

// Apply makes a change that Watch has yielded.
func (s *ImageSet) Apply(change ImageChange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	image := change.any()
	if image == nil {
		s.synced = s.synced || change.Kind == ImagesSynced
		return
	}
	if s.images == nil {
		s.images, s.aliases = map[imageKey]*Image{}, map[aliasKey]*Image{}
	}
	s.project = image.Project
	key := imageKey{image.Project, image.Fingerprint}
	remove := func(name string) {
		// Another image may have got the alias before.
		if had := s.aliases[aliasKey{key.project, name}]; had != nil && had.Fingerprint == key.fingerprint {
			delete(s.aliases, aliasKey{key.project, name})
		}
	}
	for _, alias := range change.Aliases {
		remove(alias.OldName)
		if alias.To == "" {
			remove(alias.Name) // one that was moved stays until its new image is applied
		}
	}
	if change.Image == nil {
		delete(s.images, key)
		return
	}
	image = image.own()
	s.images[key] = image
	for _, alias := range image.Aliases {
		s.aliases[aliasKey{key.project, alias.Name}] = image
	}
}

// Synced reports whether all images that were there when the loop began have been
// applied. Before, an image that is not found may exist.
func (s *ImageSet) Synced() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.synced
}

// Get returns an image by its whole fingerprint; nil if there is none. project is the
// Image.Project; it may be "" if the loop watches one project.
func (s *ImageSet) Get(project, fingerprint string) *Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.images[imageKey{cmp.Or(project, s.project), strings.ToLower(fingerprint)}].own()
}

// GetByAlias returns the image that an alias points to; nil if there is none. project is
// that of Get.
func (s *ImageSet) GetByAlias(project, alias string) *Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.aliases[aliasKey{cmp.Or(project, s.project), alias}].own()
}

// Find returns the images that match, such as those with a property, in the order of
// their projects and fingerprints; nil matches all. match must neither change the image
// nor use the set.
func (s *ImageSet) Find(match func(*Image) bool) []*Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := []*Image{}
	for _, image := range s.images {
		if match == nil || match(image) {
			found = append(found, image.own())
		}
	}
	slices.SortFunc(found, func(a, b *Image) int {
		return cmp.Or(strings.Compare(a.Project, b.Project), strings.Compare(a.Fingerprint, b.Fingerprint))
	})
	return found
}
