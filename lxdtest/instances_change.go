package lxdtest

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
)

// instancesPost is the JSON body of a request to create an instance. The devices,
// profiles and configuration of the request are ignored.
type instancesPost struct {
	Name   string        `json:"name"`
	Type   string        `json:"type"`
	Source *imagesSource `json:"source"`
}

var instanceName = regexp.MustCompile(`^[A-Za-z0-9-]+$`)

// serveCreateInstance creates a stopped instance from an image of this server or of
// another one, or from none.
func (s *Server) serveCreateInstance(w http.ResponseWriter, r *http.Request) error {
	var post instancesPost
	if err := readJSON(r, &post); err != nil {
		return err
	}
	var source imagesSource
	if post.Source != nil {
		source = *post.Source
	}
	s.mu.Lock()
	project, err := s.imageProject(r)
	if post.Name == "" {
		for n := 1; post.Name == "" || s.instances[instanceKey{projectParam(r), post.Name}] != nil; n++ {
			post.Name = fmt.Sprintf("instance-%d", n)
		}
	}
	var local *image
	var missing error
	if err == nil && source.Type == "image" && source.Server == "" && source.Registry == "" {
		local, missing = s.instanceImage(project, source)
	}
	s.mu.Unlock()
	switch {
	case err != nil:
		return err
	case source.Type != "image" && source.Type != "none":
		return statusErrorf(http.StatusBadRequest, "Unknown source type %s", source.Type)
	case !instanceName.MatchString(post.Name):
		return statusErrorf(http.StatusBadRequest, "Invalid instance name: Name can only contain alphanumeric and hyphen characters")
	case missing != nil && !s.traits.checksInstanceLater:
		return missing
	}
	key := instanceKey{projectParam(r), post.Name}
	s.startTask(w, r, task{
		description: "Creating instance",
		project:     key.project,
		resources:   map[string][]string{"instances": {instanceURL(key)}},
		run: func(ctx context.Context, op *operation) error {
			img := local
			switch {
			case missing != nil:
				return daemonErrorf("Image not provided for instance creation")
			case source.Type == "image" && img == nil:
				var err error
				if img, err = s.importImage(ctx, r, op, project, imagesPost{Source: &source, cached: true}); err != nil {
					return err
				}
			}
			return s.addCreated(op, key, post.Type == "virtual-machine", img)
		},
	})
	return nil
}

// instanceImage returns the image of this server from which an instance is created;
// the caller holds the lock.
func (s *Server) instanceImage(project string, source imagesSource) (*image, error) {
	if source.Alias == "" {
		return s.findImage(project, source.Fingerprint)
	}
	found := s.aliases[aliasKey{project, source.Alias}]
	if found == nil {
		return nil, errNoAlias
	}
	return s.findImage(project, found.target)
}

// addCreated adds an instance that a request has created; img is nil for none.
func (s *Server) addCreated(op *operation, key instanceKey, vm bool, img *image) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case op.dropped:
		return errRestarted
	case s.instances[key] != nil:
		return daemonErrorf("Failed creating instance record: Add instance info to the database: This %q entry already exists", "instances")
	}
	created := &instance{key: key, vm: vm, content: []byte(key.name)}
	if img != nil {
		created.baseImage = img.key.fingerprint
		img.lastUsed = s.now()
	}
	s.instances[key] = created
	return nil
}

// instanceToChange returns an instance for a request that changes it.
func (s *Server) instanceToChange(r *http.Request, name string) (*instance, error) {
	s.mu.Lock()
	found := s.instances[instanceKey{projectParam(r), name}]
	s.mu.Unlock()
	switch {
	case found == nil && s.traits.checksInstanceLater:
		return nil, statusErrorf(http.StatusNotFound, s.traits.texts.instance, name, projectParam(r), errNoInstance)
	case found == nil:
		return nil, errNoInstance
	}
	return found, nil
}

// serveDeleteInstance deletes a stopped instance and its snapshots.
func (s *Server) serveDeleteInstance(w http.ResponseWriter, r *http.Request, name string) error {
	found, err := s.instanceToChange(r, name)
	if err != nil {
		return err
	}
	if found.running {
		return statusErrorf(http.StatusBadRequest, "Instance is running")
	}
	s.startInstanceTask(w, r, "Deleting instance", found, func() {
		delete(s.instances, found.key)
		for key := range s.instances {
			if key.project == found.key.project && len(key.name) > len(name) && key.name[:len(name)+1] == name+"/" {
				delete(s.instances, key)
			}
		}
	})
	return nil
}

// serveInstanceState starts or stops an instance.
func (s *Server) serveInstanceState(w http.ResponseWriter, r *http.Request, name string) error {
	var put struct {
		Action string `json:"action"`
	}
	if err := readJSON(r, &put); err != nil {
		return err
	}
	found, err := s.instanceToChange(r, name)
	if err != nil {
		return err
	}
	changed := *found
	switch put.Action {
	case "start":
		changed.running = true
	case "stop":
		changed.running = false
	case "restart":
	default:
		return statusErrorf(http.StatusBadRequest, "Unknown action: %q", put.Action)
	}
	if changed.running == found.running && put.Action != "restart" {
		return statusErrorf(http.StatusBadRequest, "The instance is already %s", map[bool]string{true: "running", false: "stopped"}[found.running])
	}
	s.startInstanceTask(w, r, map[string]string{"start": "Starting instance", "stop": "Stopping instance", "restart": "Restarting instance"}[put.Action], found, func() {
		s.instances[found.key] = &changed
	})
	return nil
}

// startInstanceTask starts the operation of a change to an instance, which fails if
// it has changed in the meantime. It calls change with the lock held.
func (s *Server) startInstanceTask(w http.ResponseWriter, r *http.Request, description string, found *instance, change func()) {
	s.startTask(w, r, task{
		description: description,
		project:     found.key.project,
		resources:   map[string][]string{"instances": {instanceURL(found.key)}},
		run: func(_ context.Context, op *operation) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			switch {
			case op.dropped:
				return errRestarted
			case s.instances[found.key] != found:
				return daemonErrorf("The instance was changed by another operation")
			}
			change()
			return nil
		},
	})
}
