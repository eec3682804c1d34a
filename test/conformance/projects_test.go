package conformance_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

// TestUnknownProject: each call says which project does not exist.
func TestUnknownProject(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			here := testkit.Upload(t, s.Client(t), nil)
			c := s.Client(t).InProject("no-such-project")
			for name, call := range map[string]func() error{
				"All":    func() error { _, err := c.Images.All(ctx, nil); return err },
				"Get":    func() error { _, err := c.Images.Get(ctx, here.Fingerprint); return err },
				"Exists": func() error { _, err := c.Images.Exists(ctx, here.Fingerprint); return err },
				"Exists with an alias": func() error {
					_, err := c.Images.Exists(ctx, "a/b")
					return err
				},
				"GetByAlias":     func() error { _, err := c.Images.GetByAlias(ctx, "x"); return err },
				"Aliases.All":    func() error { _, err := c.Aliases.All(ctx); return err },
				"Aliases.Create": func() error { return c.Aliases.Create(ctx, lxd.Alias{Name: "x", Target: here.Fingerprint}) },
				"Aliases.Set":    func() error { return c.Aliases.Set(ctx, lxd.Alias{Name: "x", Target: here.Fingerprint}) },
				"Aliases.Delete": func() error { return c.Aliases.Delete(ctx, "x") },
				"Create": func() error {
					_, err := c.Images.Create(ctx, bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Wait: true})
					return err
				},
				"Create with an alias": func() error {
					_, err := c.Images.Create(ctx, bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Wait: true, Aliases: []lxd.Alias{{Name: "x"}}})
					return err
				},
			} {
				err := call()
				require.ErrorIs(t, err, lxd.ErrProjectNotFound, name)
				require.ErrorIs(t, err, lxd.ErrNotFound, name)
				require.ErrorContains(t, err, `there is no project "no-such-project"`, name)
			}
			// What does not exist in a project that does.
			there := s.Client(t).InProject(s.AddProject(t))
			_, err := there.Images.Get(ctx, here.Fingerprint)
			require.ErrorIs(t, err, lxd.ErrNotFound)
			require.NotErrorIs(t, err, lxd.ErrProjectNotFound)
			exists, err := there.Images.Exists(ctx, here.Fingerprint)
			require.NoError(t, err)
			require.False(t, exists)
		})
	}
}

// TestRestrictedCertificate: a client that is trusted for another project only is
// told so.
func TestRestrictedCertificate(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			own, other := s.AddProject(t), s.AddProject(t)
			image := testkit.Upload(t, s.Client(t).InProject(other), nil)
			c := s.Restricted(t, own)
			testkit.Upload(t, c.InProject(own), nil)
			content := testkit.Unified(t, 0)
			for _, project := range []string{"", other} {
				_, err := c.InProject(project).Images.Create(ctx, bytes.NewReader(content), &lxd.CreateOptions{Wait: true})
				require.ErrorIs(t, err, lxd.ErrForbidden)
				require.ErrorContains(t, err, "the server trusts this client, but it may not use project")
				require.ErrorContains(t, err, "see Client.InProject")
				require.NotContains(t, err.Error(), "set a client certificate")
			}
			_, err := c.InProject(other).Images.Exists(ctx, image.Fingerprint)
			require.ErrorIs(t, err, lxd.ErrForbidden)
			require.ErrorContains(t, err, other)
		})
	}
}

// TestSharedImages: in a project that shares the images of the default one, all
// calls stay in that project. A restricted client may make no other.
func TestSharedImages(t *testing.T) {
	t.Parallel()
	for _, s := range testkit.Subjects(t) {
		t.Run(s.Column, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			shared := s.AddSharedProject(t)
			image := testkit.Upload(t, s.Client(t), nil)
			name := testkit.Unique("shared")
			require.NoError(t, image.AddAlias(ctx, name, ""))
			c := s.Restricted(t, shared).InProject(shared)
			read, err := c.Images.GetByAlias(ctx, name)
			require.NoError(t, err)
			require.Equal(t, shared, read.Client().Project())
			export, err := read.Export(ctx, nil)
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, export)
			require.NoError(t, err)
			require.NoError(t, export.Close())

			// A client that may use both: its view of the image is that of its project.
			both := s.TLSClient(t).InProject(shared)
			read, err = both.Images.Get(ctx, image.Fingerprint)
			require.NoError(t, err)
			read.Properties["changed"] = "yes"
			require.NoError(t, read.Update(ctx, nil))
			require.NoError(t, read.AddAlias(ctx, name+"-2", ""))
			require.NoError(t, read.DeleteAlias(ctx, name+"-2"))
			require.NoError(t, read.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
			made, err := both.Images.Create(ctx, bytes.NewReader(testkit.Unified(t, 0)), &lxd.CreateOptions{Wait: true, Aliases: []lxd.Alias{{Name: name + "-3"}}})
			require.NoError(t, err)
			require.Equal(t, shared, made.Client().Project())
			testkit.DeleteAfter(t, made)
			copied, err := made.Copy(ctx, s.Twin.TLSClient(t), &lxd.CopyOptions{Wait: true})
			require.NoError(t, err)
			testkit.DeleteAfter(t, copied.Image)
		})
	}
}
