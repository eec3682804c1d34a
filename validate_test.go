package lxd_test

import (
	"context"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

// unreachable fails the test when a client connects.
func unreachable(t *testing.T) *lxd.Client {
	t.Helper()
	client, err := lxd.New("unix:///nowhere", &lxd.Options{Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("something was sent")
		return nil, net.ErrClosed
	}})
	require.NoError(t, err)
	return client
}

func TestBadInputIsRefusedBeforeAnythingIsSent(t *testing.T) {
	ctx, c := t.Context(), unreachable(t)
	whole := strings.Repeat("a", 64)
	data := strings.NewReader("\x00")
	create := func(r io.Reader, o lxd.CreateOptions) error {
		_, err := c.Images.Create(ctx, r, &o)
		return err
	}
	fromURL := func(url string, o lxd.CreateFromURLOptions) error {
		_, err := c.Images.CreateFromURL(ctx, url, &o)
		return err
	}
	streams := func(server, alias string, o lxd.CreateFromSimplestreamsOptions) error {
		_, err := c.Images.CreateFromSimplestreams(ctx, server, alias, &o)
		return err
	}
	instance := func(name string, o lxd.CreateFromInstanceOptions) error {
		_, err := c.Images.CreateFromInstance(ctx, name, &o)
		return err
	}
	second := func(_ any, err error) error { return err }
	alias := func(name string) []lxd.Alias { return []lxd.Alias{{Name: name}} }
	var none *lxd.Image
	stranger := &lxd.Image{Fingerprint: whole}
	_, err := lxd.New("unix:///nowhere", &lxd.Options{Token: "token\n"})
	require.Equal(t, "Options.Token", testkit.ErrOf[*lxd.InputError](t, err).Field)
	for _, test := range []struct {
		field string
		err   error
	}{
		{"fingerprint", second(c.Images.Get(ctx, ""))},
		{"fingerprint", second(c.Images.Get(ctx, "prod"))},
		{"fingerprint", second(c.Images.Get(ctx, whole+"a"))},
		{"alias", second(c.Images.GetByAlias(ctx, ""))},
		{"ref", second(c.Images.Exists(ctx, ""))},
		{"fingerprint", second(c.Images.GetWithSecret(ctx, "abc", "s"))},
		{"secret", second(c.Images.GetWithSecret(ctx, whole, ""))},
		{"image", create(nil, lxd.CreateOptions{})},
		{"image", create(nil, lxd.CreateOptions{Rootfs: data})},
		{"CreateOptions.Size", create(data, lxd.CreateOptions{Size: -1})},
		{"CreateOptions.Size", create(data, lxd.CreateOptions{Size: 2})},
		{"CreateOptions.RootfsSize", create(data, lxd.CreateOptions{Rootfs: data, RootfsSize: -1})},
		{"CreateOptions.RootfsSize", create(data, lxd.CreateOptions{RootfsSize: 1})},
		{"CreateOptions.RootfsSize", create(data, lxd.CreateOptions{Rootfs: strings.NewReader("\x00"), RootfsSize: 2})},
		{"image", create((*os.File)(nil), lxd.CreateOptions{})},
		{"CreateOptions.Rootfs", create(data, lxd.CreateOptions{Rootfs: (*os.File)(nil)})},
		{"CreateOptions.Type", create(data, lxd.CreateOptions{Type: lxd.VirtualMachine})},
		{"CreateOptions.Type", create(data, lxd.CreateOptions{Rootfs: data, Type: "jail"})},
		{"CreateOptions.IfExists", create(data, lxd.CreateOptions{IfExists: "maybe"})},
		{"CreateOptions.Fingerprint", create(data, lxd.CreateOptions{Fingerprint: "abc"})},
		{"CreateOptions.Filename", create(data, lxd.CreateOptions{Filename: "a\nb"})},
		{"CreateOptions.Profiles[1]", create(data, lxd.CreateOptions{Profiles: []string{"a", ""}})},
		{"CreateOptions.Properties", create(data, lxd.CreateOptions{Properties: map[string]string{"": "a"}})},
		{"CreateOptions.Aliases[0].Name", create(data, lxd.CreateOptions{Aliases: alias("")})},
		{"CreateOptions.Aliases[1].Name", create(data, lxd.CreateOptions{Aliases: append(alias("a"), alias("a")...)})},
		{"url", fromURL("", lxd.CreateFromURLOptions{})},
		{"url", fromURL("file:///etc/passwd", lxd.CreateFromURLOptions{})},
		{"url", fromURL("relative", lxd.CreateFromURLOptions{})},
		{"url", fromURL("http://[", lxd.CreateFromURLOptions{})},
		{"CreateFromURLOptions.Via", fromURL("http://h/x", lxd.CreateFromURLOptions{Via: "mail"})},
		{"CreateFromSimplestreamsOptions.AutoUpdate", streams("https://h", "a", lxd.CreateFromSimplestreamsOptions{Via: lxd.ViaClient, AutoUpdate: true})},
		{"CreateFromURLOptions.Fingerprint", fromURL("http://h/x", lxd.CreateFromURLOptions{Fingerprint: "xyz"})},
		{"CreateFromURLOptions.Aliases[0].Name", fromURL("http://h/x", lxd.CreateFromURLOptions{Aliases: alias("")})},
		{"server", streams("", "a", lxd.CreateFromSimplestreamsOptions{})},
		{"server", streams("images", "a", lxd.CreateFromSimplestreamsOptions{})},
		{"alias", streams("https://h", "", lxd.CreateFromSimplestreamsOptions{})},
		{"CreateFromSimplestreamsOptions.Type", streams("https://h", "a", lxd.CreateFromSimplestreamsOptions{Type: "jail"})},
		{"CreateFromSimplestreamsOptions.Certificate", streams("https://h", "a", lxd.CreateFromSimplestreamsOptions{Certificate: "no PEM"})},
		{"instance", instance("", lxd.CreateFromInstanceOptions{})},
		{"instance", instance("web/", lxd.CreateFromInstanceOptions{})},
		{"instance", instance("web/a/b", lxd.CreateFromInstanceOptions{})},
		{"CreateFromInstanceOptions.Aliases[0].Name", instance("web", lxd.CreateFromInstanceOptions{Aliases: alias("")})},
		{"CreateOptions.Rootfs", create(data, lxd.CreateOptions{Rootfs: data})},
		{"CreateOptions.DeleteReplaced", create(data, lxd.CreateOptions{DeleteReplaced: true})},
		{"CreateOptions.IfExists", create(data, lxd.CreateOptions{IfExists: "replace"})},
		{"CreateFromURLOptions.IfExists", fromURL("http://a", lxd.CreateFromURLOptions{IfExists: "replace"})},
		{"CreateFromInstanceOptions.IfExists", instance("web", lxd.CreateFromInstanceOptions{IfExists: "replace"})},
		{"CreateOptions.Filename", create(data, lxd.CreateOptions{Filename: "a "})},
		{"CreateOptions.Filename", create(data, lxd.CreateOptions{Filename: "\xff"})},
		{"CreateOptions.Profiles[0]", create(data, lxd.CreateOptions{Profiles: []string{"\xff"}})},
		{"CreateOptions.Properties", create(data, lxd.CreateOptions{Properties: map[string]string{"a\x00": ""}})},
		{`CreateOptions.Properties["a"]`, create(data, lxd.CreateOptions{Properties: map[string]string{"a": "\xff"}})},
		{"CreateOptions.ExpiresAt", create(data, lxd.CreateOptions{ExpiresAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)})},
		{"CreateOptions.Aliases[0].Name", create(data, lxd.CreateOptions{Aliases: alias("\xff")})},
		{"CreateOptions.Aliases[0].Description", create(data, lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "a", Description: "\xff"}}})},
		{"CreateFromInstanceOptions.ExpiresAt", instance("web", lxd.CreateFromInstanceOptions{ExpiresAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)})},
		{"image", create(strings.NewReader(""), lxd.CreateOptions{})},
		{"image", create(struct{ io.Reader }{strings.NewReader("")}, lxd.CreateOptions{})},
		{"image", create(strings.NewReader("<html>not found</html>"), lxd.CreateOptions{})},
		{"image", create(struct{ io.Reader }{strings.NewReader("this is no image either")}, lxd.CreateOptions{})},
		{"image", create(strings.NewReader("hsqs\x00\x00"), lxd.CreateOptions{})},
		{"image", create(strings.NewReader("QFI\xfb\x00"), lxd.CreateOptions{Rootfs: data})},
		{"CreateOptions.Rootfs", create(data, lxd.CreateOptions{Rootfs: strings.NewReader("")})},
		{"CreateOptions.Rootfs", create(data, lxd.CreateOptions{Rootfs: strings.NewReader("a list of files")})},
		{"image", none.Update(ctx, nil)},
		{"image", none.Delete(ctx, nil)},
		{"image", second(none.Refresh(ctx, nil))},
		{"image", none.AddAlias(ctx, "a", "")},
		{"image", none.DeleteAlias(ctx, "a")},
		{"image", second(none.Export(ctx, nil))},
		{"image", second(none.Copy(ctx, c, nil))},
		{"image", stranger.Update(ctx, nil)},
		{"image", stranger.SetAlias(ctx, "a", "")},
		{"image", second(stranger.ExportTo(ctx, "dir", nil))},
		{"image", second(stranger.Secret(ctx))},
		{"alias", second(c.Aliases.Get(ctx, ""))},
		{"alias", c.Aliases.Delete(ctx, "")},
		{"alias", c.Aliases.Rename(ctx, "", "a")},
		{"new alias", c.Aliases.Rename(ctx, "a", "")},
		{"Alias.Name", c.Aliases.Create(ctx, lxd.Alias{Target: whole})},
		{"Alias.Target", c.Aliases.Create(ctx, lxd.Alias{Name: "a"})},
		{"Alias.Target", c.Aliases.Set(ctx, lxd.Alias{Name: "a", Target: "not hex"})},
		{"registry", second(c.Registries.Get(ctx, ""))},
		{"Registry.Name", c.Registries.Create(ctx, lxd.Registry{})},
	} {
		require.ErrorIs(t, test.err, lxd.ErrInvalid, test.field)
		require.Equal(t, test.field, testkit.ErrOf[*lxd.InputError](t, test.err).Field)
	}

	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	f.ForgetRequests()
	for field, err := range map[string]error{
		"Alias.Name":                  image.AddAlias(ctx, "", ""),
		"alias":                       image.DeleteAlias(ctx, ""),
		"dir":                         second(image.ExportTo(ctx, "", nil)),
		"ExportToOptions.Name":        second(image.ExportTo(ctx, t.TempDir(), &lxd.ExportToOptions{Name: "../x"})),
		"ExportToOptions.Connections": second(image.ExportTo(ctx, t.TempDir(), &lxd.ExportToOptions{Connections: 65})),
		"target":                      second(image.Copy(ctx, nil, nil)),
		"CopyOptions.Mode":            second(image.Copy(ctx, c, &lxd.CopyOptions{Mode: "carry"})),
		"CopyOptions.Aliases[0].Name": second(image.Copy(ctx, c, &lxd.CopyOptions{Aliases: alias("")})),
	} {
		require.Equal(t, field, testkit.ErrOf[*lxd.InputError](t, err).Field)
	}
	require.Empty(t, f.Requests())
}
