package lxd_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

// TestInstanceSource: an instance of an image of the same server, and of another one
// that has it publicly or privately.
func TestInstanceSource(t *testing.T) {
	testkit.Parallel(t)
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			this := *s
			this.TLS = true
			c, twin := this.Client(t), this.Twin.TLSClient(t)
			image := testkit.Upload(t, c, nil)
			source, err := image.InstanceSource(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, &lxd.InstanceSource{Type: "image", Fingerprint: image.Fingerprint}, source)
			require.NoError(t, source.Revoke(t.Context()))
			name := createInstance(t, s, c, source)
			used, err := image.UsedBy(t.Context())
			require.NoError(t, err)
			require.Equal(t, []lxd.Instance{{Name: name, Project: "default", Type: lxd.Container, Status: "Stopped", Location: "none"}}, used)

			for _, public := range []bool{true, false} {
				far := testkit.Upload(t, twin, &lxd.CreateOptions{Public: public})
				source, err := far.InstanceSource(t.Context(), &lxd.InstanceSourceOptions{Target: c})
				require.NoError(t, err)
				require.Equal(t, public, source.Secret == "")
				name := createInstance(t, s, c, source)
				cached, err := c.Images.Get(t.Context(), far.Fingerprint)
				require.NoError(t, err)
				require.True(t, cached.Cached)
				testkit.DeleteAfter(t, cached)
				used, err := cached.UsedBy(t.Context())
				require.NoError(t, err)
				require.Equal(t, name, used[0].Name)
				require.NoError(t, source.Revoke(t.Context()))
				testkit.RequireNoTokens(t, s.Twin)
				source, err = far.InstanceSource(t.Context(), &lxd.InstanceSourceOptions{Target: c})
				require.NoError(t, err)
				require.Empty(t, source.Server, "the server has the image now")
			}

			far := testkit.Upload(t, twin, nil)
			source, err = far.InstanceSource(t.Context(), &lxd.InstanceSourceOptions{Target: c})
			require.NoError(t, err)
			require.NoError(t, source.Revoke(t.Context()))
			testkit.RequireNoTokens(t, s.Twin)
		})
	}
}

// TestInstanceSourceOfProjects: a project's image is found in projects that share it,
// and can be used nowhere else.
func TestInstanceSourceOfProjects(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			own, shared := c.InProject(s.AddProject(t)), c.InProject(s.AddSharedProject(t))
			image := testkit.Upload(t, c, nil)
			source, err := image.InstanceSource(t.Context(), &lxd.InstanceSourceOptions{Target: shared})
			require.NoError(t, err)
			require.Empty(t, source.Server)

			image = testkit.Upload(t, own, nil)
			_, err = image.InstanceSource(t.Context(), &lxd.InstanceSourceOptions{Target: c})
			require.ErrorIs(t, err, lxd.ErrUnsupported)
			require.ErrorContains(t, err, "Image.Copy")
		})
	}
}

// TestUsedByOfProjects: instances of all projects, or of those that the client may use.
func TestUsedByOfProjects(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			c := s.Client(t)
			project := s.AddSharedProject(t)
			image := testkit.Upload(t, c, nil)
			used, err := image.UsedBy(t.Context())
			require.NoError(t, err)
			require.Empty(t, used)
			source, err := image.InstanceSource(t.Context(), nil)
			require.NoError(t, err)
			first := createInstance(t, s, c, source)
			second := createInstance(t, s, c.InProject(project), source)
			other := testkit.Upload(t, c, nil)
			createInstance(t, s, c, &lxd.InstanceSource{Type: "image", Fingerprint: other.Fingerprint})

			names := map[string]string{}
			used, err = image.UsedBy(t.Context())
			require.NoError(t, err)
			for _, instance := range used {
				names[instance.Name] = instance.Project
			}
			require.Equal(t, map[string]string{first: "default", second: project}, names)

			seen, err := s.Restricted(t, project).InProject(project).Images.Get(t.Context(), image.Fingerprint)
			require.NoError(t, err)
			used, err = seen.UsedBy(t.Context())
			require.NoError(t, err)
			require.Len(t, used, 1)
			require.Equal(t, second, used[0].Name)
		})
	}
}

// TestProjects: their names, and which have images of their own.
func TestProjects(t *testing.T) {
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			own, shared := s.AddProject(t), s.AddSharedProject(t)
			projects, err := s.Client(t).Projects(t.Context())
			require.NoError(t, err)
			images := map[string]bool{}
			for _, p := range projects {
				images[p.Name] = p.OwnImages()
			}
			require.True(t, images["default"])
			require.True(t, images[own])
			require.Contains(t, images, shared)
			require.False(t, images[shared])

			projects, err = s.Restricted(t, own).Projects(t.Context())
			require.NoError(t, err)
			require.Len(t, projects, 1)
			require.Equal(t, own, projects[0].Name)
		})
	}
}
