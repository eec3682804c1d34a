package simplestreams_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/lxdtest/streamstest"
	"github.com/golxd/lxd/simplestreams"
)

func TestImageSaysWhatDaemonsSay(t *testing.T) {
	_, client := standard(t)
	image, err := client.Resolve(t.Context(), "ubuntu/noble", &simplestreams.ResolveOptions{Architecture: "amd64"})
	require.NoError(t, err)
	meta, root := []byte("metadata 20240201_07:42"), []byte("squashfs 20240201_07:42")
	folder := "images/ubuntu/noble/amd64/default/20240201_07:42/"
	require.Equal(t, &simplestreams.Image{
		Fingerprint: streamstest.Hash(meta, root),
		Product:     "ubuntu:noble:amd64:default",
		Version:     "20240201_07:42",
		Aliases: []string{
			"ubuntu/noble/default", "ubuntu/noble/default/amd64", "ubuntu/noble", "ubuntu/noble/amd64", "ubuntu/24.04", "ubuntu/24.04/amd64",
		},
		Architecture: "x86_64",
		Type:         simplestreams.Container,
		Filename:     "lxd.tar.xz",
		Size:         int64(len(meta) + len(root)),
		Properties: map[string]string{
			"architecture": "amd64", "description": "Ubuntu 24.04 LTS amd64 (release) (20240201_07:42)", "label": "release",
			"os": "Ubuntu", "release": "noble", "serial": "20240201_07:42", "type": "squashfs", "variant": "default",
			"version": "24.04", "requirements.secureboot": "false",
		},
		CreatedAt: time.Date(2024, 2, 1, 0, 0, 0, 0, time.UTC),
		ExpiresAt: time.Date(2029, 5, 31, 0, 0, 0, 0, time.UTC),
		Files: []simplestreams.File{
			{Type: "lxd.tar.xz", Path: folder + "lxd.tar.xz", Size: int64(len(meta)), SHA256: streamstest.Hash(meta)},
			{Type: "squashfs", Path: folder + "rootfs.squashfs", Size: int64(len(root)), SHA256: streamstest.Hash(root)},
		},
	}, image)
	require.True(t, image.Split())

	image, err = client.Resolve(t.Context(), "alpine", nil)
	require.NoError(t, err)
	require.False(t, image.Split())
	require.Equal(t, "tar.gz", image.Properties["type"])
	require.Equal(t, "Alpine  amd64 (20240301)", image.Properties["description"])
	require.Equal(t, "lxd_combined.tar.gz", image.Filename)
	require.Equal(t, "lxd_combined.tar.gz", image.Files[0].Type)
	require.True(t, image.ExpiresAt.IsZero())
}

func TestImagesInTheOrderOfTheDaemons(t *testing.T) {
	_, client := standard(t)
	var got []string
	for _, image := range all(t, client) {
		got = append(got, strings.Join([]string{image.Properties["os"], image.Version, image.Architecture, image.Properties["type"]}, " "))
	}
	require.Equal(t, []string{
		"Alpine 20240301 x86_64 tar.gz",
		"Appliance 20240302 x86_64 disk1.img",
		"Board 20200101 armv7l tar.gz",
		"Old 20200101 i686 tar.gz",
		"Ubuntu 20240201_07:43 aarch64 squashfs",
		"Ubuntu 20240201_07:42 x86_64 squashfs",
		"Ubuntu 20240201_07:42 x86_64 root.tar.xz",
		"Ubuntu 20240201_07:42 x86_64 disk-kvm.img",
		"Ubuntu 20240101_07:42 x86_64 squashfs",
		"Ubuntu 20240101_07:42 x86_64 root.tar.xz",
		"Ubuntu 20240101_07:42 x86_64 disk-kvm.img",
	}, got)
}

func TestImagesCanBeRangedOverAgainAndLeft(t *testing.T) {
	server, client := standard(t)
	sequence := client.Images(t.Context())
	require.Empty(t, server.Requests(), "nothing is asked before the sequence is ranged over")
	for image, err := range sequence {
		require.NoError(t, err)
		image.Properties["os"] = "changed"
		image.Aliases[0] = "changed"
		break
	}
	for image, err := range sequence {
		require.NoError(t, err)
		require.Equal(t, "Alpine", image.Properties["os"])
		require.Equal(t, "alpine/3.20", image.Aliases[0])
		break
	}
	require.Len(t, server.Requests(), 2, "the index and the products are read once")
}

func TestImagesUnderAnEndedContext(t *testing.T) {
	_, client := standard(t)
	all(t, client)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	count := 0
	for _, err := range client.Images(ctx) {
		if count++; count == 1 {
			require.NoError(t, err)
			cancel()
			continue
		}
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Equal(t, 2, count)
}

func TestAliasGoesToTheFirstProduct(t *testing.T) {
	server := serve(t, streamstest.Tree([]streamstest.Product{
		{Name: "b", OS: "Beta", Aliases: []string{"shared", "own"}, Versions: []streamstest.Version{{Serial: "20250101", Unified: []byte("beta")}}},
		{Name: "a", OS: "Alpha", Aliases: []string{"shared"}, Versions: []streamstest.Version{{Serial: "20240101", Unified: []byte("alpha")}}},
		{Name: "n", Aliases: []string{"shared"}, Versions: []streamstest.Version{{Serial: "20260101", Unified: []byte("no os")}}},
	}, nil))
	images := all(t, newClient(t, server, nil))
	require.Len(t, images, 3)
	require.Equal(t, []string{"shared", "shared/amd64"}, images[0].Aliases)
	require.Equal(t, []string{"own", "own/amd64"}, images[1].Aliases)
	require.Empty(t, images[2].Aliases)
	require.Equal(t, "a", images[0].Product)
}

func TestFamilies(t *testing.T) {
	tree := func(family string) *streamstest.Server { return serve(t, streamstest.Tree(products(family), nil)) }
	lxd, incus, both := tree("lxd"), tree("incus"), tree("both")
	for _, test := range []struct {
		server *streamstest.Server
		family simplestreams.Family
		images int
		prefix string
	}{
		{lxd, "", 11, "lxd"}, {lxd, simplestreams.LXD, 11, "lxd"}, {lxd, simplestreams.Incus, 0, ""},
		{incus, "", 11, "incus"}, {incus, simplestreams.LXD, 0, ""}, {incus, simplestreams.Incus, 11, "incus"},
		{both, "", 11, "lxd"}, {both, simplestreams.LXD, 11, "lxd"}, {both, simplestreams.Incus, 11, "incus"},
	} {
		client := newClient(t, test.server, func(o *simplestreams.Options) { o.Family = test.family })
		images := all(t, client)
		require.Len(t, images, test.images)
		for _, image := range images {
			require.True(t, strings.HasPrefix(image.Files[0].Type, test.prefix), image.Files[0].Type)
		}
		if test.images == 0 {
			_, err := client.Resolve(t.Context(), "alpine", nil)
			require.ErrorIs(t, err, simplestreams.ErrBadData)
			require.ErrorContains(t, err, "daemons only")
		}
	}
}

func TestRequirementsAreTheFamilysOwn(t *testing.T) {
	server := serve(t, streamstest.Tree(products("both"), func(all streamstest.Object) {
		product := all["alpine:3.20:amd64"].(streamstest.Object)
		product["requirements"] = map[string]string{"for": "incus"}
		product["lxd_requirements"] = map[string]string{"for": "lxd"}
	}))
	for _, family := range []simplestreams.Family{simplestreams.LXD, simplestreams.Incus} {
		client := newClient(t, server, func(o *simplestreams.Options) { o.Family = family })
		image, err := client.Resolve(t.Context(), "alpine", nil)
		require.NoError(t, err)
		require.Equal(t, string(family), image.Properties["requirements.for"])
	}
}

func TestArchitectureName(t *testing.T) {
	for name, want := range map[string]string{
		"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "i386": "i686", "386": "i686", "armhf": "armv7l", "armel": "armv6l",
		"ppc64el": "ppc64le", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64", "loong64": "loongarch64",
	} {
		got, ok := simplestreams.ArchitectureName(name)
		require.True(t, ok)
		require.Equal(t, want, got)
	}
	_, ok := simplestreams.ArchitectureName("pdp11")
	require.False(t, ok)
}
