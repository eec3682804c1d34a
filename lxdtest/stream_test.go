package lxdtest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestResolve chooses among images with the same alias as LXD 5.0.2, Incus 6.0.4 and 7.0.2 do.
func TestResolve(t *testing.T) {
	const container, vm = "container", "virtual-machine"
	type offer struct{ arch, kind string }
	for _, test := range []struct {
		offers []offer
		name   string // of the alias "x"
		kind   string
		want   offer
	}{
		{[]offer{{"amd64", vm}}, "x", "", offer{"amd64", vm}},
		{[]offer{{"amd64", vm}}, "x/amd64", "", offer{"amd64", vm}},
		{[]offer{{"amd64", vm}}, "x", container, offer{}},
		{[]offer{{"amd64", vm}, {"amd64", container}}, "x", "", offer{"amd64", container}},
		{[]offer{{"amd64", vm}, {"amd64", container}}, "x", vm, offer{"amd64", vm}},
		{[]offer{{"arm64", container}}, "x", "", offer{"arm64", container}},
		{[]offer{{"arm64", container}, {"i386", container}, {"amd64", container}}, "x", "", offer{"amd64", container}},
		{[]offer{{"arm64", container}, {"i386", container}}, "x", "", offer{"i386", container}},
		{[]offer{{"arm64", container}, {"amd64", container}}, "x/arm64", "", offer{"arm64", container}},
		{[]offer{{"amd64", vm}, {"arm64", container}}, "x", "", offer{"arm64", container}},
		{[]offer{{"arm64", container}}, "x/amd64", "", offer{}},
	} {
		var images []streamImage
		for _, offered := range test.offers {
			item := streamItem{Ftype: "lxd.tar.xz", CombinedSquashfs: offered.arch + "-" + offered.kind}
			root := streamItem{Ftype: "squashfs"}
			if offered.kind == vm {
				item = streamItem{Ftype: "lxd.tar.xz", CombinedDisk: offered.arch + "-" + offered.kind}
				root = streamItem{Ftype: "disk-kvm.img"}
			}
			images = append(images, productImages("lxd", offered.arch, streamProduct{
				Aliases: "x", Arch: offered.arch, Versions: map[string]streamVersion{"20240101": {Items: map[string]streamItem{"m": item, "r": root}}},
			})...)
		}
		require.Len(t, images, len(test.offers))
		got, err := resolve(images, imagesSource{Alias: test.name, ImageType: test.kind})
		if test.want == (offer{}) {
			require.EqualError(t, err, "The requested image couldn't be found", "%+v", test)
			continue
		}
		require.NoError(t, err, "%+v", test)
		require.Equal(t, test.want.arch+"-"+test.want.kind, got.fingerprint, "%+v", test)
	}
}
