package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// link is a network link between the daemon and a remote client. This program passes
// packets from one network namespace to another, so that both ends use the kernel's
// TCP.
type link struct {
	RTT        time.Duration
	Bandwidth  int64   // bits per second, in each direction
	Loss       float64 // share of the packets lost in each direction
	Congestion string  // the daemon's congestion control
}

func (l link) String() string {
	s := fmt.Sprintf("%d Mbit/s, %d ms", l.Bandwidth/1e6, l.RTT.Milliseconds())
	if l.Loss > 0 {
		s += fmt.Sprintf(", %g %% lost", 100*l.Loss)
	}
	return s + ", " + l.Congestion
}

// The addresses of the two ends, and their devices.
const (
	nearAddress, farAddress = "10.213.157.1", "10.213.157.2"
	nearDevice, farDevice   = "lxdbench0", "lxdbench1"

	farPort = ":8443"
)

// openTUN creates a device whose packets are read from and written to the returned
// file. Closing the file removes the device.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, errors.Join(fmt.Errorf("create the device %s: %w", name, err), f.Close())
	}
	return f, nil
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func configure(ctx context.Context, device, own, peer string) error {
	if err := ip(ctx, "address", "add", own, "peer", peer, "dev", device); err != nil {
		return err
	}
	return ip(ctx, "link", "set", device, "up")
}

// links shows when several connections are faster. These rows must come last: from
// then on the daemon listens at the near end of the links.
func (b *bench) links(f imageFiles) []*row {
	var rows []*row
	for _, l := range []link{
		{RTT: 10 * time.Millisecond}, {RTT: 50 * time.Millisecond}, {RTT: 150 * time.Millisecond}, {RTT: 300 * time.Millisecond},
		{RTT: 150 * time.Millisecond, Congestion: "bbr"},
		{RTT: 10 * time.Millisecond, Loss: 0.001}, {RTT: 50 * time.Millisecond, Loss: 0.001},
		{RTT: 50 * time.Millisecond, Loss: 0.001, Congestion: "bbr"},
	} {
		l.Bandwidth = 200e6
		if l.Congestion == "" {
			l.Congestion = "cubic"
		}
		r := &row{
			name: fmt.Sprintf("verified export of %d MiB over a link of %s", f.size>>20, l),
			note: fmt.Sprintf("the bandwidth-delay product is %.2f MB; both ends use the kernel's TCP, in two network namespaces; the wall time does not include the start of the process",
				float64(l.Bandwidth)/8e6*l.RTT.Seconds()),
			runs: 1,
		}
		for _, connections := range []int{1, 2, 4, 8} {
			name := ours + " ExportTo"
			if connections > 1 {
				name = fmt.Sprintf("%s, %d connections", name, connections)
			}
			ready := func(ctx context.Context) error {
				return errors.Join(b.emptyOut(ctx), b.listenNear(ctx), b.ensure(b.source, f)(ctx))
			}
			export := job{Do: "exportTo", Server: b.farEndpoint(), Fingerprint: f.fingerprint, Out: b.outDir(), Workers: connections}
			r.contenders = append(r.contenders, contender{name, ready, b.across(l, export), b.emptyOut})
		}
		rows = append(rows, r)
	}
	return rows
}

// farEndpoint returns the source's endpoint at the end of a link.
func (b *bench) farEndpoint() endpoint {
	e := tlsEndpoint(b.source)
	e.URL = "https://" + nearAddress + farPort
	return e
}

// listenNear makes the source listen at the near end of the links.
func (b *bench) listenNear(ctx context.Context) (err error) {
	if b.near != nil {
		return nil
	}
	if b.near, err = openTUN(nearDevice); err != nil {
		return err
	}
	if err := configure(ctx, nearDevice, nearAddress, farAddress); err != nil {
		return err
	}
	config := map[string]any{"config": map[string]string{"core.https_address": nearAddress + farPort}}
	return b.source.Do(ctx, http.MethodPatch, "/1.0", config, nil)
}

// across returns a function that runs a job at the far end of a link. The measured
// time does not include the start of the process.
func (b *bench) across(l link, j job) func(context.Context) (sample, error) {
	return func(ctx context.Context) (s sample, err error) {
		// The kernel must not use metrics of earlier connections. Without metrics the
		// command fails.
		_ = ip(ctx, "tcp_metrics", "flush", farAddress)
		if err := ip(ctx, "route", "replace", farAddress, "dev", nearDevice, "src", nearAddress, "congctl", l.Congestion); err != nil {
			return s, err
		}
		cmd, err := (&job{Do: "link", Link: &l, Far: &j}).command(ctx, b.self)
		if err != nil {
			return s, err
		}
		cmd.ExtraFiles = []*os.File{b.near}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.Output()
		if err != nil {
			return s, err
		}
		var w work
		if err := json.Unmarshal(out, &w); err != nil {
			return s, err
		}
		return sample{wall: time.Duration(w.Seconds * float64(time.Second)), peak: w.Peak, allocated: w.Allocated}, nil
	}
}

// runLink is the process of a link: in its own network namespace it creates the far
// end, passes the packets, and runs the job in another process, which prints its
// work.
func runLink(ctx context.Context, j *job) error {
	near := os.NewFile(3, nearDevice)
	far, err := openTUN(farDevice)
	if err != nil {
		return err
	}
	if err := configure(ctx, farDevice, farAddress, nearAddress); err != nil {
		return err
	}
	go j.Link.carry(near, far)
	go j.Link.carry(far, near)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd, err := j.Far.command(ctx, self)
	if err != nil {
		return err
	}
	cmd.Stdout = os.Stdout
	return cmd.Run()
}

// carry passes packets in one direction, until a device is closed. The queue is what
// the link carries in one round trip, but at least 64 KiB; further packets are
// dropped, as in a router.
func (l link) carry(from, to *os.File) {
	type packet struct {
		data []byte
		due  time.Time
	}
	wait := make(chan packet, 1<<16)
	go func() {
		for p := range wait {
			time.Sleep(time.Until(p.due))
			_, _ = to.Write(p.data) // without a receiver the packet is lost
		}
	}()
	defer close(wait)
	perByte := float64(8*time.Second) / float64(l.Bandwidth)
	queue := max(l.RTT, time.Duration(64<<10*perByte))
	var free time.Time // when the link will have sent all packets so far
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		now := time.Now()
		if free.Before(now) {
			free = now
		}
		if rand.Float64() < l.Loss || free.Sub(now) > queue {
			continue
		}
		free = free.Add(time.Duration(float64(n) * perByte))
		wait <- packet{append([]byte(nil), buf[:n]...), free.Add(l.RTT / 2)}
	}
}
