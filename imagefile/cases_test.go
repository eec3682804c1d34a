package imagefile_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "embed"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/lxdtest"
)

// squashfs is an image of a directory with etc/hostname, made by mksquashfs 4.5.1 -comp gzip -all-root -mkfs-time 0
// -all-time 0.
//
//go:embed testdata/rootfs.squashfs
var squashfs []byte

// good is the metadata.yaml of a good image. Its seed makes an image of its own.
const good = "architecture: x86_64\ncreation_date: 1704067200\nproperties:\n  os: Test\n"

// entry is an entry of a tarball: by default a file.
type entry struct {
	name    string
	content string
	kind    byte
	link    string
	major   int64
}

var root = []entry{{name: "rootfs/", kind: tar.TypeDir}, {name: "rootfs/etc/", kind: tar.TypeDir}, {name: "rootfs/etc/hostname", content: "test\n"}}

// tarball returns an archive of entries.
func tarball(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	out := tar.NewWriter(&buf)
	for _, e := range entries {
		header := &tar.Header{Name: e.name, Mode: 0o755, Size: int64(len(e.content)), Typeflag: e.kind, Linkname: e.link, Devmajor: e.major, ModTime: time.Unix(1704067200, 0)}
		if e.kind == 0 {
			header.Typeflag = tar.TypeReg
		}
		require.NoError(t, out.WriteHeader(header))
		_, err := out.Write([]byte(e.content))
		require.NoError(t, err)
	}
	require.NoError(t, out.Close())
	return buf.Bytes()
}

// unified returns an image with this metadata.yaml, a root filesystem, and more entries.
func unified(t testing.TB, metadata string, more ...entry) []byte {
	t.Helper()
	return tarball(t, append(append([]entry{{name: "metadata.yaml", content: metadata}}, root...), more...)...)
}

func gzipped(t testing.TB, data []byte) []byte {
	return through(t, data, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
}

func throughXZ(t testing.TB, data []byte) []byte {
	return through(t, data, func(w io.Writer) (io.WriteCloser, error) { return xz.WriterConfig{DictCap: 1 << 16}.NewWriter(w) })
}

func throughLZMA(t testing.TB, data []byte) []byte {
	return through(t, data, func(w io.Writer) (io.WriteCloser, error) { return lzma.WriterConfig{DictCap: 1 << 16}.NewWriter(w) })
}

// through returns data as a compressor writes it.
func through(t testing.TB, data []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var buf bytes.Buffer
	out, err := open(&buf)
	require.NoError(t, err)
	_, err = out.Write(data)
	require.NoError(t, err)
	require.NoError(t, out.Close())
	return buf.Bytes()
}

// flipped returns data with another byte.
func flipped(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 0xff
	return data
}

// rawDisk is a disk with the signature of a boot record.
func rawDisk() []byte {
	disk := make([]byte, 1<<20)
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}

// imageCase is an image, and what is wrong with it.
type imageCase struct {
	name          string
	image, rootfs []byte
	vm            bool // uploaded as a virtual machine's
	expected
}

// expected is what Check says of an image, and what the daemons do.
type expected struct {
	kinds     []imagefile.ProblemKind
	refusedBy string // the daemons that refuse the upload: "all", or a part of their names
	text      string // of the refusal by all of them
	unusable  bool   // no container can be created, though the upload is accepted
}

// problems are the cases that are not those of a good image.
var problems = map[string]expected{
	"absolute metadata":        {kinds: kinds(imagefile.EscapingPath, imagefile.NoMetadata), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"dot slash slash":          {kinds: kinds(imagefile.NoMetadata), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"upper case":               {kinds: kinds(imagefile.NoMetadata), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"in a directory":           {kinds: kinds(imagefile.NoMetadata), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"metadata twice":           {kinds: kinds(imagefile.DuplicateMetadata)},
	"metadata a link":          {kinds: kinds(imagefile.BadMetadata), refusedBy: "all", text: "EOF"},
	"no metadata":              {kinds: kinds(imagefile.NoMetadata), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"metadata alone":           {kinds: kinds(imagefile.NoRootfs), refusedBy: "all", text: "Invalid instance type"},
	"rootfs without slash":     {kinds: kinds(imagefile.NoRootfs), refusedBy: "all", text: "Invalid instance type"},
	"rootfs a link":            {kinds: kinds(imagefile.NoRootfs), refusedBy: "all", text: "Invalid instance type"},
	"unified squashfs":         {kinds: kinds(imagefile.NoRootfs), refusedBy: "all", text: "Invalid instance type"},
	"both roots":               {kinds: kinds(imagefile.AmbiguousRootfs)},
	"disk as container":        {kinds: kinds(imagefile.WrongType), unusable: true},
	"compressed disk":          {kinds: kinds(imagefile.UnknownFormat), unusable: true},
	"tar as vm":                {kinds: kinds(imagefile.WrongType)},
	"swapped":                  {kinds: kinds(imagefile.Swapped), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"swapped squashfs":         {kinds: kinds(imagefile.Swapped), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"swapped disk":             {kinds: kinds(imagefile.Swapped, imagefile.WrongType), refusedBy: "all"},
	"squashfs alone":           {kinds: kinds(imagefile.NoMetadata), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"split with unified":       {kinds: kinds(imagefile.AmbiguousRootfs)},
	"split text":               {kinds: kinds(imagefile.UnknownFormat), unusable: true},
	"split empty":              {kinds: kinds(imagefile.Empty), unusable: true},
	"text":                     {kinds: kinds(imagefile.UnknownFormat), refusedBy: "all", text: "Unsupported compression"},
	"empty":                    {kinds: kinds(imagefile.Empty), refusedBy: "all", text: "EOF"},
	"empty tar":                {kinds: kinds(imagefile.UnknownFormat), refusedBy: "all", text: "Unsupported compression"},
	"gzip of zeros":            {kinds: kinds(imagefile.UnknownFormat), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"gzip of a disk":           {kinds: kinds(imagefile.NoMetadata), refusedBy: "all", text: "invalid tar header"},
	"raw disk alone":           {kinds: kinds(imagefile.NoMetadata), refusedBy: "all", text: "Unsupported compression"},
	"damaged gzip":             {kinds: kinds(imagefile.Damaged), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"damaged header":           {kinds: kinds(imagefile.Damaged), refusedBy: "all", text: "invalid tar header"},
	"xz with three zeros":      {kinds: kinds(imagefile.Damaged), unusable: true},
	"xz with junk":             {kinds: kinds(imagefile.Cut), unusable: true},
	"split xz with junk":       {kinds: kinds(imagefile.Cut), unusable: true},
	"cut split xz":             {kinds: kinds(imagefile.Cut), unusable: true},
	"xz metadata with junk":    {kinds: kinds(imagefile.Cut), unusable: true},
	"squashfs less one byte":   {kinds: kinds(imagefile.Cut), unusable: true},
	"cut xz":                   {kinds: kinds(imagefile.Cut), unusable: true},
	"xz of text":               {kinds: kinds(imagefile.Cut), refusedBy: "all", text: "unexpected EOF"},
	"start of xz":              {kinds: kinds(imagefile.Cut), refusedBy: "all", text: "Metadata tarball is missing metadata.yaml"},
	"gzip of text":             {kinds: kinds(imagefile.Cut), refusedBy: "all", text: "unexpected EOF"},
	"cut gzip":                 {kinds: kinds(imagefile.Cut), unusable: true},
	"cut tar":                  {kinds: kinds(imagefile.Cut), unusable: true},
	"cut split tar":            {kinds: kinds(imagefile.Cut)},
	"cut squashfs":             {kinds: kinds(imagefile.Cut), unusable: true},
	"cut disk":                 {kinds: kinds(imagefile.Cut)},
	"cut in the metadata":      {kinds: kinds(imagefile.Cut), refusedBy: "all", text: "unexpected EOF"},
	"no end of archive":        {kinds: kinds(imagefile.Cut)},
	"architecture unknown":     {kinds: kinds(imagefile.BadArchitecture), refusedBy: "all", text: "Architecture isn't supported: x86-64"},
	"architecture upper case":  {kinds: kinds(imagefile.BadArchitecture), refusedBy: "all", text: "Architecture isn't supported: X86_64"},
	"architecture loongarch64": {kinds: kinds(imagefile.BadArchitecture), refusedBy: "LXD", text: "Architecture isn't supported: loongarch64", unusable: true},
	"architecture foreign":     {unusable: true},
	"no architecture":          {kinds: kinds(imagefile.BadArchitecture), refusedBy: "all", text: "Architecture isn't supported: "},
	"no date":                  {kinds: kinds(imagefile.BadCreationDate), refusedBy: "all", text: "Missing creation date"},
	"date 0":                   {kinds: kinds(imagefile.BadCreationDate), refusedBy: "all", text: "Missing creation date"},
	"negative date":            {kinds: kinds(imagefile.BadCreationDate)},
	"date in the year 10000":   {kinds: kinds(imagefile.BadCreationDate), refusedBy: "all", text: "cannot parse"},
	"expiry in milliseconds":   {kinds: kinds(imagefile.BadExpiryDate), refusedBy: "all", text: "cannot parse"},
	"date text":                {kinds: kinds(imagefile.BadCreationDate), refusedBy: "all", text: "into int64"},
	"date quoted":              {kinds: kinds(imagefile.BadCreationDate), refusedBy: "all", text: "into int64"},
	"date float":               {kinds: kinds(imagefile.BadCreationDate), refusedBy: "Incus 7", text: "into int64"},
	"expired":                  {kinds: kinds(imagefile.BadExpiryDate)},
	"expiry text":              {kinds: kinds(imagefile.BadExpiryDate), refusedBy: "all", text: "into int64"},
	"property a list":          {kinds: kinds(imagefile.BadMetadata), refusedBy: "all", text: "into string"},
	"duplicate field":          {kinds: kinds(imagefile.BadMetadata), refusedBy: "Incus 7", text: "already defined"},
	"no yaml":                  {kinds: kinds(imagefile.BadMetadata), refusedBy: "all", text: "did not find expected node content"},
	"empty metadata":           {kinds: kinds(imagefile.BadMetadata), refusedBy: "all", text: "EOF"},
	"metadata a list":          {kinds: kinds(imagefile.BadMetadata), refusedBy: "all", text: "seq into"},
	"metadata in Latin 1":      {kinds: kinds(imagefile.BadMetadata), refusedBy: "all", text: "invalid trailing UTF-8 octet"},
	"tab":                      {kinds: kinds(imagefile.BadMetadata), refusedBy: "all", text: "cannot start any token"},
	"template absent":          {kinds: kinds(imagefile.BadTemplate)},
	"template escapes":         {kinds: kinds(imagefile.BadTemplate, imagefile.BadTemplate)},
	"template relative":        {kinds: kinds(imagefile.BadTemplate)},
	"template when":            {kinds: kinds(imagefile.BadTemplate)},
	"template without when":    {kinds: kinds(imagefile.BadTemplate)},
	"escaping file":            {kinds: kinds(imagefile.EscapingPath), unusable: true},
	"absolute file":            {kinds: kinds(imagefile.EscapingPath)},
	"escaping hard link":       {kinds: kinds(imagefile.EscapingLink), unusable: true},
	"absolute hard link":       {kinds: kinds(imagefile.EscapingLink), unusable: true},
	"through a link":           {kinds: kinds(imagefile.EscapingLink), unusable: true},
	"device":                   {kinds: kinds(imagefile.DeviceNode)},
	"block device":             {kinds: kinds(imagefile.DeviceNode)},
	"device in dev":            {kinds: kinds(imagefile.DeviceNode)},
}

func kinds(list ...imagefile.ProblemKind) []imagefile.ProblemKind { return list }

// imageCases returns good and bad images.
func imageCases(t testing.TB) []imageCase {
	t.Helper()
	_, disk := lxdtest.VMImage("", 0)
	metadata := func(text string) []byte { return tarball(t, entry{name: "metadata.yaml", content: text}) }
	rootTar := tarball(t, entry{name: "./", kind: tar.TypeDir}, entry{name: "./etc/", kind: tar.TypeDir}, entry{name: "./etc/hostname", content: "test\n"})
	big := gzipped(t, unified(t, good, entry{name: "rootfs/big", content: string(lxdtest.UnifiedImage("big", 200_000))}))
	plain := unified(t, good, entry{name: "rootfs/big", content: string(lxdtest.UnifiedImage("big", 200_000))})
	templates := good + "templates:\n  /etc/hostname:\n    when: [create]\n    template: hostname.tpl\n"
	list := []imageCase{
		{name: "unified", image: unified(t, good)},
		{name: "unified gzip", image: big},
		{name: "dot slash", image: tarball(t, entry{name: "./", kind: tar.TypeDir}, entry{name: "./metadata.yaml", content: good}, entry{name: "./rootfs/", kind: tar.TypeDir}, entry{name: "./rootfs/x", content: "x"})},
		{name: "dot slash slash", image: tarball(t, entry{name: ".//metadata.yaml", content: good}, entry{name: "rootfs/", kind: tar.TypeDir})},
		{name: "absolute metadata", image: tarball(t, entry{name: "/metadata.yaml", content: good}, entry{name: "rootfs/", kind: tar.TypeDir})},
		{name: "upper case", image: tarball(t, entry{name: "Metadata.yaml", content: good}, entry{name: "rootfs/", kind: tar.TypeDir})},
		{name: "in a directory", image: tarball(t, entry{name: "image/metadata.yaml", content: good}, entry{name: "image/rootfs/", kind: tar.TypeDir})},
		{name: "metadata last", image: tarball(t, append(append([]entry{}, root...), entry{name: "metadata.yaml", content: good})...)},
		{name: "metadata twice", image: unified(t, good, entry{name: "metadata.yaml", content: "architecture: aarch64\ncreation_date: 5\n"})},
		{name: "metadata a link", image: tarball(t, append([]entry{{name: "metadata.yaml", kind: tar.TypeSymlink, link: "m"}, {name: "m", content: good}}, root...)...)},
		{name: "no metadata", image: tarball(t, root...)},
		{name: "metadata alone", image: metadata(good)},
		{name: "rootfs without slash", image: tarball(t, entry{name: "metadata.yaml", content: good}, entry{name: "rootfs", kind: tar.TypeReg, content: "x"})},
		{name: "rootfs a link", image: tarball(t, entry{name: "metadata.yaml", content: good}, entry{name: "rootfs", kind: tar.TypeSymlink, link: "/etc"})},
		{name: "unified vm", image: tarball(t, entry{name: "metadata.yaml", content: good}, entry{name: "rootfs.img", content: string(disk)}), vm: true},
		{name: "unified vm dot slash", image: tarball(t, entry{name: "./metadata.yaml", content: good}, entry{name: "./rootfs.img", content: string(disk)}), vm: true},
		{name: "unified vm raw", image: tarball(t, entry{name: "metadata.yaml", content: good}, entry{name: "rootfs.img", content: string(rawDisk())}), vm: true},
		{name: "both roots", image: unified(t, good, entry{name: "rootfs.img", content: string(disk)})},
		{name: "unified squashfs", image: tarball(t, entry{name: "metadata.yaml", content: good}, entry{name: "rootfs.squashfs", content: "hsqs"})},
		{name: "split tar", image: metadata(good), rootfs: rootTar},
		{name: "split squashfs", image: metadata(good), rootfs: squashfs},
		{name: "split vm", image: metadata(good), rootfs: disk, vm: true},
		{name: "split vm raw", image: metadata(good), rootfs: rawDisk(), vm: true},
		{name: "disk as container", image: metadata(good), rootfs: disk},
		{name: "compressed disk", image: metadata(good), rootfs: gzipped(t, disk)},
		{name: "tar as vm", image: metadata(good), rootfs: rootTar, vm: true},
		{name: "swapped", image: rootTar, rootfs: metadata(good)},
		{name: "swapped squashfs", image: squashfs, rootfs: metadata(good)},
		{name: "swapped disk", image: disk, rootfs: metadata(good), vm: true},
		{name: "squashfs alone", image: squashfs},
		{name: "split with unified", image: unified(t, good), rootfs: rootTar},
		{name: "split text", image: metadata(good), rootfs: []byte("this is not a file system\n")},
		{name: "split empty", image: metadata(good), rootfs: []byte{}},
		{name: "text", image: []byte("architecture: x86_64\ncreation_date: 1704067200\n")},
		{name: "empty", image: []byte{}},
		{name: "empty tar", image: tarball(t)},
		{name: "gzip of zeros", image: gzipped(t, make([]byte, 4096))},
		{name: "gzip of a disk", image: gzipped(t, disk)},
		{name: "raw disk alone", image: rawDisk()},
		{name: "damaged gzip", image: flipped(big, 12)},
		{name: "damaged header", image: flipped(plain, 2*512)},
		{name: "xz", image: throughXZ(t, plain)},
		{name: "xz with zeros", image: append(throughXZ(t, unified(t, good+"  seed: zeros\n")), make([]byte, 512)...)},
		{name: "xz with three zeros", image: append(throughXZ(t, unified(t, good)), 0, 0, 0)},
		{name: "xz with junk", image: append(throughXZ(t, unified(t, good)), "junk"...)},
		{name: "split xz with zeros", image: metadata(good), rootfs: append(throughXZ(t, rootTar), make([]byte, 4)...)},
		{name: "split xz with junk", image: metadata(good), rootfs: append(throughXZ(t, rootTar), '\n')},
		{name: "cut split xz", image: metadata(good), rootfs: throughXZ(t, rootTar)[:100]},
		{name: "xz metadata with junk", image: append(throughXZ(t, metadata(good)), "junk"...), rootfs: rootTar},
		{name: "squashfs with junk", image: metadata(good), rootfs: append(bytes.Clone(squashfs), "junk"...)},
		{name: "squashfs without padding", image: metadata(good), rootfs: squashfs[:0xf9]},
		{name: "squashfs less one byte", image: metadata(good), rootfs: squashfs[:0xf8]},
		{name: "cut xz", image: throughXZ(t, plain)[:100_000]},
		{name: "xz of text", image: throughXZ(t, []byte("architecture: x86_64\n"))},
		{name: "start of xz", image: []byte("\xfd7zXZ\x00")},
		{name: "lzma", image: throughLZMA(t, plain)},
		{name: "gzip of text", image: gzipped(t, []byte("architecture: x86_64\ncreation_date: 1704067200\n"))},
		{name: "cut gzip", image: big[:len(big)/2]},
		{name: "cut tar", image: plain[:len(plain)/2]},
		{name: "cut split tar", image: metadata(good), rootfs: rootTar[:1024+100]},
		{name: "cut squashfs", image: metadata(good), rootfs: squashfs[:200]},
		{name: "cut disk", image: metadata(good), rootfs: disk[:1600], vm: true},
		{name: "cut in the metadata", image: unified(t, good)[:512+10]},
		{name: "no end of archive", image: plain[:len(plain)-1024]},
		{name: "architecture alias", image: unified(t, "architecture: amd64\ncreation_date: 1704067200\n")},
		{name: "architecture generic_32", image: unified(t, "architecture: generic_32\ncreation_date: 1704067200\n")},
		{name: "architecture foreign", image: unified(t, "architecture: arm64\ncreation_date: 1704067200\n")},
		{name: "architecture unknown", image: unified(t, "architecture: x86-64\ncreation_date: 1704067200\n")},
		{name: "architecture upper case", image: unified(t, "architecture: X86_64\ncreation_date: 1704067200\n")},
		{name: "architecture loongarch64", image: unified(t, "architecture: loongarch64\ncreation_date: 1704067200\n")},
		{name: "no architecture", image: unified(t, "creation_date: 1704067200\n")},
		{name: "no date", image: unified(t, "architecture: x86_64\n")},
		{name: "date 0", image: unified(t, "architecture: x86_64\ncreation_date: 0\n")},
		{name: "negative date", image: unified(t, "architecture: x86_64\ncreation_date: -5\n")},
		{name: "date in the year 10000", image: unified(t, "architecture: x86_64\ncreation_date: 253402300800\n")},
		{name: "date text", image: unified(t, "architecture: x86_64\ncreation_date: 2024-01-01\n")},
		{name: "date quoted", image: unified(t, "architecture: x86_64\ncreation_date: \"1704067200\"\n")},
		{name: "date float", image: unified(t, "architecture: x86_64\ncreation_date: 1704067200.5\n")},
		{name: "date whole float", image: unified(t, "architecture: x86_64\ncreation_date: 1704067200.0\n")},
		{name: "expired", image: unified(t, good+"expiry_date: 1704067201\n")},
		{name: "expiry in milliseconds", image: unified(t, good+"expiry_date: 1704067200000\n")},
		{name: "expiry text", image: unified(t, good+"expiry_date: never\n")},
		{name: "no properties", image: unified(t, "architecture: x86_64\ncreation_date: 1704067200\n")},
		{name: "property a number", image: unified(t, good+"  release: 1\n  yes: true\n")},
		{name: "property a float", image: unified(t, good+"  release: 24.10\n")},
		{name: "property null", image: unified(t, good+"  release:\n")},
		{name: "property a list", image: unified(t, good+"  release: [1, 2]\n")},
		{name: "unknown field", image: unified(t, good+"colour: red\n")},
		{name: "duplicate field", image: unified(t, good+"architecture: x86_64\n")},
		{name: "no yaml", image: unified(t, "architecture: [\n")},
		{name: "json", image: unified(t, `{"architecture": "x86_64", "creation_date": 1704067200}`)},
		{name: "empty metadata", image: unified(t, "")},
		{name: "metadata a list", image: unified(t, "- architecture\n")},
		{name: "two documents", image: unified(t, good+"---\nfoo: [\n")},
		{name: "metadata in Latin 1", image: unified(t, good+"  name: \xe9t\xe9\n")},
		{name: "tab", image: unified(t, "architecture: x86_64\ncreation_date: 1704067200\nproperties:\n\tos: x\n")},
		{name: "templates", image: unified(t, templates, entry{name: "templates/", kind: tar.TypeDir}, entry{name: "templates/hostname.tpl", content: "{{ container.name }}\n"})},
		{name: "template absent", image: unified(t, templates)},
		{name: "template relative", image: unified(t, strings.Replace(templates, "/etc", "etc", 1), entry{name: "templates/hostname.tpl", content: "x"})},
		{name: "template escapes", image: unified(t, good+"templates:\n  /etc/hostname:\n    when: [create]\n    template: ../../x\n")},
		{name: "template without when", image: unified(t, good+"templates:\n  /etc/hostname:\n    template: hostname.tpl\n", entry{name: "templates/hostname.tpl", content: "x"})},
		{name: "template when", image: unified(t, good+"templates:\n  /etc/hostname:\n    when: [never]\n    template: hostname.tpl\n", entry{name: "templates/hostname.tpl", content: "x"})},
		{name: "escaping file", image: unified(t, good, entry{name: "rootfs/../../escaped", content: "x"})},
		{name: "absolute file", image: unified(t, good, entry{name: "/escaped-absolute", content: "x"})},
		{name: "escaping hard link", image: unified(t, good, entry{name: "rootfs/link", kind: tar.TypeLink, link: "../../../../etc/hostname"})},
		{name: "absolute hard link", image: unified(t, good, entry{name: "rootfs/link", kind: tar.TypeLink, link: "/etc/hostname"})},
		{name: "symbolic links", image: unified(t, good, entry{name: "rootfs/a", kind: tar.TypeSymlink, link: "/etc/hostname"}, entry{name: "rootfs/b", kind: tar.TypeSymlink, link: "../../../etc"})},
		{name: "through a link", image: unified(t, good, entry{name: "rootfs/a", kind: tar.TypeSymlink, link: "/tmp"}, entry{name: "rootfs/a/imagefile-through-a-link", content: "x"})},
		{name: "device", image: unified(t, good, entry{name: "rootfs/null", kind: tar.TypeChar, major: 1})},
		{name: "block device", image: unified(t, good, entry{name: "rootfs/loop", kind: tar.TypeBlock, major: 7})},
		{name: "device in dev", image: unified(t, good, entry{name: "rootfs/dev/", kind: tar.TypeDir}, entry{name: "rootfs/dev/null", kind: tar.TypeChar, major: 1})},
		{name: "fifo", image: unified(t, good, entry{name: "rootfs/fifo", kind: tar.TypeFifo})},
		{name: "name not UTF-8", image: unified(t, good, entry{name: "rootfs/\xff\xfe", content: "x"})},
		{name: "other files", image: unified(t, good, entry{name: "README", content: "x"})},
	}
	seen := 0
	for n := range list {
		want, ok := problems[list[n].name]
		if list[n].expected = want; ok {
			seen++
		}
	}
	require.Equal(t, len(problems), seen, "every row of problems is a case")
	return list
}
