package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/golxd/lxd/internal/testdaemon"
)

// usualSocketLimit is the largest socket buffer that Linux lets an unprivileged
// process set, unless net.core.wmem_max is raised.
const usualSocketLimit = 212992

// The contenders' names.
const (
	ours       = "golxd/lxd"
	curlWaits  = "curl, and curl for the wait"
	curlBlind  = "curl (verifies nothing)"
	curlShort  = "curl"
	lxcCommand = "lxc"
	pylxdName  = "pylxd"
)

// rows returns all rows in the order of the report.
func (b *bench) rows() []*row {
	both := []bool{false, true}
	rows := []*row{b.list(), b.first(false), b.first(true), b.many(), b.ensureNothing(), b.ensureStreams(), b.creates()}
	small := len(rows)
	for _, tls := range both {
		rows = append(rows, b.upload(tls))
	}
	rows = append(rows, b.uploadHashed())
	for _, tls := range both {
		rows = append(rows, b.uploadSplit(tls))
	}
	for _, tls := range both {
		rows = append(rows, b.export(tls))
	}
	for _, tls := range both {
		rows = append(rows, b.exportSplit(tls))
	}
	if b.lxc != "" {
		for _, f := range []imageFiles{b.unified, b.split} {
			for _, tls := range both {
				rows = append(rows, b.relay(f, tls))
			}
		}
	}
	for _, f := range b.bySize {
		rows = append(rows, b.memory(f))
	}
	rows = append(rows, b.importURL(b.bySize[1]))
	for _, r := range rows[small:] {
		r.touch = 2 * b.size
	}
	return append(rows, b.links(b.bySize[0])...)
}

func over(tls bool) string {
	if tls {
		return "TLS"
	}
	return "unix socket"
}

func endpointOf(d *testdaemon.Daemon, tls bool) endpoint {
	if tls {
		return tlsEndpoint(d)
	}
	return unixEndpoint(d)
}

func (b *bench) remotes(tls bool) (source, target string) {
	if tls {
		return sourceTLS, targetTLS
	}
	return sourceUnix, targetUnix
}

func (b *bench) upload(tls bool) *row {
	e, f, gone := endpointOf(b.source, tls), b.unified, remove(b.source, b.unified.fingerprint)
	r := &row{name: "upload, " + over(tls), note: "until the image exists; in this time the daemon hashes it again"}
	r.contenders = append(r.contenders, contender{ours, gone, b.own(job{Do: "create", Server: e, Image: f.image, Wait: true}), nil})
	if !tls {
		usual := e
		usual.SocketBuffer = usualSocketLimit
		r.contenders = append(r.contenders, contender{ours + ", usual socket limit", gone, b.own(job{Do: "create", Server: usual, Image: f.image, Wait: true}), nil})
	}
	r.contenders = append(r.contenders, contender{ours + ", with Progress", gone, b.own(job{Do: "create", Server: e, Image: f.image, Wait: true, Progress: true}), nil})
	r.contenders = append(r.contenders, contender{curlWaits, gone, func(ctx context.Context) (sample, error) { return b.curlUpload(ctx, e, f) }, nil})
	if b.lxc != "" {
		remote, _ := b.remotes(tls)
		r.contenders = append(r.contenders, contender{lxcCommand, gone, b.lxcRun("image", "import", f.image, remote+":"), nil})
	}
	if b.python != "" && !tls {
		r.contenders = append(r.contenders, contender{pylxdName, gone, b.pylxd(b.source, tls, fmt.Sprintf("client.images.create(open(%q, 'rb'))", f.image)), nil})
	}
	if !tls {
		r.targets = []target{{against: curlWaits, what: cpuTime, most: 0.4}, {against: curlWaits, what: wallTime, most: 1}}
	} else {
		r.targets = []target{{against: curlWaits, what: wallTime, most: 1}}
	}
	return r
}

// uploadHashed shows the cost of the client's own hash.
func (b *bench) uploadHashed() *row {
	e, f, gone := unixEndpoint(b.source), b.unified, remove(b.source, b.unified.fingerprint)
	const plain = ours + ", Fingerprint given"
	return &row{
		name: "upload without Wait, unix socket", note: "until the daemon has received the content; without Fingerprint the client hashes it while sending",
		contenders: []contender{
			{ours + ", hashing", gone, b.own(job{Do: "create", Server: e, Image: f.image}), settle(b.source)},
			{plain, gone, b.own(job{Do: "create", Server: e, Image: f.image, Fingerprint: f.fingerprint}), settle(b.source)},
		},
	}
}

func (b *bench) uploadSplit(tls bool) *row {
	e, f, gone := endpointOf(b.source, tls), b.split, remove(b.source, b.split.fingerprint)
	r := &row{name: "upload of a split image, " + over(tls)}
	r.contenders = []contender{
		{ours, gone, b.own(job{Do: "create", Server: e, Image: f.image, Rootfs: f.rootfs, Wait: true}), nil},
		{curlWaits, gone, func(ctx context.Context) (sample, error) { return b.curlUpload(ctx, e, f) }, nil},
	}
	if b.lxc != "" {
		remote, _ := b.remotes(tls)
		r.contenders = append(r.contenders, contender{lxcCommand, gone, b.lxcRun("image", "import", f.image, f.rootfs, remote+":"), nil})
	}
	r.targets = []target{{against: curlWaits, what: wallTime, most: 1}}
	if !tls {
		r.targets = append(r.targets, target{against: curlWaits, what: cpuTime, most: 0.4})
	}
	return r
}

// prepared returns a function that uploads the image to the source, unless it exists,
// and empties the directory for downloads.
func (b *bench) prepared(f imageFiles) func(context.Context) error {
	with := b.ensure(b.source, f)
	return func(ctx context.Context) error {
		if err := b.emptyOut(ctx); err != nil {
			return err
		}
		return with(ctx)
	}
}

func (b *bench) export(tls bool) *row {
	e, f := endpointOf(b.source, tls), b.unified
	ready := b.prepared(f)
	r := &row{name: "verified export, " + over(tls), note: "to a file"}
	r.contenders = []contender{
		{ours + " ExportTo", ready, b.own(job{Do: "exportTo", Server: e, Fingerprint: f.fingerprint, Out: b.outDir()}), b.emptyOut},
		{ours + " Export and io.Copy", ready, b.own(job{Do: "export", Server: e, Fingerprint: f.fingerprint, Out: filepath.Join(b.outDir(), "own")}), b.emptyOut},
		{ours + " ExportTo, with Progress", ready, b.own(job{Do: "exportTo", Server: e, Fingerprint: f.fingerprint, Out: b.outDir(), Progress: true}), b.emptyOut},
		{curlBlind, ready, b.curlExport(e, f.fingerprint), b.emptyOut},
	}
	r.targets = []target{{against: curlBlind, what: wallTime, most: 0.9}}
	if tls {
		r.targets[0].most = 0.85
	} else {
		// Which of daemon, client and hash is the slowest differs from run to run, by
		// more than the margin of the target.
		r.runs = 15
		r.note += "; daemon, client and hash share the cores, and on virtual machines of the same kind medians from 0.8 to 1.2 of curl's wall time were measured"
	}
	b.exportPeers(r, ready, f, tls)
	return r
}

func (b *bench) exportPeers(r *row, ready func(context.Context) error, f imageFiles, tls bool) {
	if b.lxc != "" {
		remote, _ := b.remotes(tls)
		r.contenders = append(r.contenders, contender{lxcCommand, ready, b.lxcRun("image", "export", remote+":"+f.fingerprint, filepath.Join(b.outDir(), "lxc")), b.emptyOut})
		r.targets = append(r.targets, target{against: lxcCommand, what: wallTime, most: 0.5})
	}
	if b.python != "" && !tls && f.rootfs == "" {
		program := fmt.Sprintf("shutil.copyfileobj(client.images.get(%q).export(), open(%q, 'wb'))", f.fingerprint, filepath.Join(b.outDir(), "pylxd"))
		r.contenders = append(r.contenders, contender{pylxdName, ready, b.pylxd(b.source, tls, program), b.emptyOut})
	}
}

func (b *bench) exportSplit(tls bool) *row {
	e, f := endpointOf(b.source, tls), b.split
	ready := b.prepared(f)
	r := &row{name: "verified export of a split image, " + over(tls), note: "to two files; curl writes one multipart form"}
	r.contenders = []contender{
		{ours + " ExportTo", ready, b.own(job{Do: "exportTo", Server: e, Fingerprint: f.fingerprint, Out: b.outDir()}), b.emptyOut},
		{curlBlind, ready, b.curlExport(e, f.fingerprint), b.emptyOut},
	}
	b.exportPeers(r, ready, f, tls)
	return r
}

func (b *bench) relay(f imageFiles, tls bool) *row {
	kind := ""
	if f.rootfs != "" {
		kind = " of a split image"
	}
	there, gone := b.ensure(b.source, f), remove(b.target, f.fingerprint)
	ready := func(ctx context.Context) error {
		if err := there(ctx); err != nil {
			return err
		}
		return gone(ctx)
	}
	from, to := b.remotes(tls)
	return &row{
		name: "relay copy" + kind + ", " + over(tls), note: "between two daemons through the client", runs: 4,
		contenders: []contender{
			{ours, ready, b.own(job{Do: "copy", Server: endpointOf(b.source, tls), Target: endpointOf(b.target, tls), Fingerprint: f.fingerprint}), gone},
			{lxcCommand, ready, b.lxcRun("image", "copy", from+":"+f.fingerprint, to+":", "--mode", "relay"), gone},
		},
		targets: []target{{against: lxcCommand, what: wallTime, most: 0.7}},
	}
}

func (b *bench) first(tls bool) *row {
	e := endpointOf(b.source, tls)
	f, ready := b.smallOne()
	r := &row{name: "connect and read one image, " + over(tls), note: "including the start of the process", runs: 15}
	r.contenders = []contender{
		{ours, ready, b.own(job{Do: "get", Server: e, Fingerprint: f.fingerprint}), nil},
		{curlShort, ready, b.curlGet(e, f.fingerprint, 1), nil},
	}
	if b.lxc != "" {
		remote, _ := b.remotes(tls)
		r.contenders = append(r.contenders, contender{lxcCommand, ready, b.lxcRun("image", "show", remote+":"+f.fingerprint), nil})
	}
	if b.python != "" {
		r.contenders = append(r.contenders, contender{pylxdName, ready, b.pylxd(b.source, tls, fmt.Sprintf("client.images.get(%q)", f.fingerprint)), nil})
	}
	return r
}

// smallOne returns a small image, and a function that uploads it to the source.
func (b *bench) smallOne() (imageFiles, func(context.Context) error) {
	f := imageFiles{image: b.small[0]}
	err := f.sum()
	with := b.ensure(b.source, f)
	return f, func(ctx context.Context) error {
		if err != nil {
			return err
		}
		return with(ctx)
	}
}

func (b *bench) many() *row {
	e := tlsEndpoint(b.source)
	f, ready := b.smallOne()
	const times = 200
	r := &row{name: fmt.Sprintf("one image read %d times, TLS", times), note: "on one connection"}
	r.contenders = []contender{
		{ours, ready, b.own(job{Do: "getMany", Server: e, Fingerprint: f.fingerprint, Count: times}), nil},
		{curlShort, ready, b.curlGet(e, f.fingerprint, times), nil},
	}
	if b.python != "" {
		program := fmt.Sprintf("for n in range(%d): client.images.get(%q)", times, f.fingerprint)
		r.contenders = append(r.contenders, contender{pylxdName, ready, b.pylxd(b.source, true, program), nil})
	}
	return r
}

func (b *bench) creates() *row {
	e, none := tlsEndpoint(b.source), empty(b.source)
	r := &row{name: fmt.Sprintf("%d small images created, TLS", len(b.small)), note: "each with Wait", runs: 2}
	for _, workers := range []int{1, 8} {
		name := fmt.Sprintf("%s, %d at a time", ours, workers)
		r.contenders = append(r.contenders, contender{name, none, b.own(job{Do: "createMany", Server: e, Images: b.small, Workers: workers}), none})
	}
	if b.python != "" {
		program := fmt.Sprintf("for path in %q.split(): client.images.create(open(path, 'rb'))", strings.Join(b.small, " "))
		r.contenders = append(r.contenders, contender{pylxdName, none, b.pylxd(b.source, true, program), none})
	}
	return r
}

func (b *bench) list() *row {
	e := endpoint{URL: "unix://" + b.listSocket, raw: b.listSocket}
	const twoPasses = "encoding/json in two passes"
	return &row{
		name: fmt.Sprintf("list of %d images, unix socket", b.listLength),
		note: fmt.Sprintf("a prepared response of %.1f MB; curl only receives it", float64(b.listBytes)/1e6),
		runs: 9,
		contenders: []contender{
			{ours + " Each", nil, b.own(job{Do: "each", Server: e, Count: b.listLength}), nil},
			{ours + " All", nil, b.own(job{Do: "all", Server: e, Count: b.listLength}), nil},
			{twoPasses, nil, b.own(job{Do: "twoPasses", Server: endpoint{URL: b.listSocket}, Count: b.listLength}), nil},
			{curlShort, nil, func(ctx context.Context) (sample, error) {
				s, _, err := b.curl(ctx, e, "/1.0/images?recursion=1", "--output", "/dev/null")
				return s, err
			}, nil},
		},
		targets: []target{
			{what: peakMiB, most: 24}, {against: twoPasses, what: wallTime, most: 0.5}, {against: twoPasses, what: allocated, most: 0.3},
			{who: 1, against: twoPasses, what: wallTime, most: 0.5}, {who: 1, against: twoPasses, what: allocated, most: 0.45},
		},
	}
}

// memory shows the peak memory of one transfer of each kind.
func (b *bench) memory(f imageFiles) *row {
	e, t := tlsEndpoint(b.source), tlsEndpoint(b.target)
	gone := remove(b.source, f.fingerprint)
	ready := b.prepared(f)
	r := &row{name: fmt.Sprintf("memory for %d MiB, TLS", f.size>>20), runs: 1}
	r.contenders = []contender{
		{ours + " upload", gone, b.own(job{Do: "create", Server: e, Image: f.image, Wait: true}), nil},
		{ours + " hashed upload", gone, b.own(job{Do: "create", Server: e, Image: f.image}), settle(b.source)},
		{ours + " ExportTo", ready, b.own(job{Do: "exportTo", Server: e, Fingerprint: f.fingerprint, Out: b.outDir()}), b.emptyOut},
		{ours + " relay copy", ready, b.own(job{Do: "copy", Server: e, Target: t, Fingerprint: f.fingerprint}), remove(b.target, f.fingerprint)},
		{curlWaits, gone, func(ctx context.Context) (sample, error) { return b.curlUpload(ctx, e, f) }, nil},
		{curlBlind, ready, b.curlExport(e, f.fingerprint), b.emptyOut},
	}
	// Compare each transfer with curl's in the same direction.
	for n, against := range []string{curlWaits, curlWaits, curlBlind, curlWaits} {
		r.targets = append(r.targets,
			target{who: n, what: peakMiB, most: 32},
			target{who: n, against: against, more: true, what: peakMiB, most: 16})
	}
	return r
}
