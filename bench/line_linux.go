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

// line is a network between the daemon and a client that is far away. Packets
// go from one network namespace through this program to another, so that both
// ends are the kernel's own TCP.
type line struct {
	RTT        time.Duration
	Bandwidth  int64   // bits per second, in each direction
	Loss       float64 // share of the packets that is lost in each direction
	Congestion string  // control of the daemon's side
}

func (l line) String() string {
	s := fmt.Sprintf("%d Mbit/s, %d ms", l.Bandwidth/1e6, l.RTT.Milliseconds())
	if l.Loss > 0 {
		s += fmt.Sprintf(", %g %% lost", 100*l.Loss)
	}
	return s + ", " + l.Congestion
}

// Addresses of the two ends, and the devices that have them.
const (
	nearAddress, farAddress = "10.213.157.1", "10.213.157.2"
	nearDevice, farDevice   = "lxdbench0", "lxdbench1"

	farPort = ":8443"
)

// openTUN makes a device whose packets are read from and written to the file.
// It goes with the file.
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
		return nil, errors.Join(fmt.Errorf("make the device %s: %w", name, err), f.Close())
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

// lines show where several connections pay. They come last, as the daemon
// listens at their near end from then on.
func (b *bench) lines(f imageFiles) []*row {
	var rows []*row
	for _, l := range []line{
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
			name: fmt.Sprintf("verified export of %d MiB over a line of %s", f.size>>20, l),
			note: fmt.Sprintf("bandwidth times delay is %.2f MB; both ends are the kernel's TCP, in two network namespaces; wall time of the job alone",
				float64(l.Bandwidth)/8e6*l.RTT.Seconds()),
			runs: 1,
		}
		for _, connections := range []int{1, 2, 4, 8} {
			name := ours + " ExportTo"
			if connections > 1 {
				name = fmt.Sprintf("%s, %d connections", name, connections)
			}
			ready := func(ctx context.Context) error {
				return errors.Join(b.fresh(ctx), b.far(ctx), b.with(b.source, f)(ctx))
			}
			export := job{Do: "exportTo", Server: b.farEndpoint(), Fingerprint: f.fingerprint, Out: b.outFolder(), Workers: connections}
			r.contenders = append(r.contenders, contender{name, ready, b.across(l, export), b.fresh})
		}
		rows = append(rows, r)
	}
	return rows
}

// farEndpoint is the source as it is reached over a line.
func (b *bench) farEndpoint() endpoint {
	e := tlsEndpoint(b.source)
	e.URL = "https://" + nearAddress + farPort
	return e
}

// far has the source listen at the near end of the lines.
func (b *bench) far(ctx context.Context) (err error) {
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

// across runs a job at the far end of a line. The time is that of the job alone.
func (b *bench) across(l line, j job) func(context.Context) (sample, error) {
	return func(ctx context.Context) (s sample, err error) {
		// Each run has connections that know nothing of those before.
		_ = ip(ctx, "tcp_metrics", "flush", farAddress) // it fails where there are none
		if err := ip(ctx, "route", "replace", farAddress, "dev", nearDevice, "src", nearAddress, "congctl", l.Congestion); err != nil {
			return s, err
		}
		cmd, err := (&job{Do: "line", Line: &l, Far: &j}).command(ctx, b.self)
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

// runLine is the process of one line: in a network namespace of its own it
// makes the far end, moves the packets, and has another process do the job,
// which tells of its work.
func runLine(ctx context.Context, j *job) error {
	near := os.NewFile(3, nearDevice)
	far, err := openTUN(farDevice)
	if err != nil {
		return err
	}
	if err := configure(ctx, farDevice, farAddress, nearAddress); err != nil {
		return err
	}
	go j.Line.carry(near, far)
	go j.Line.carry(far, near)
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

// carry moves packets in one direction, until a device is gone. What waits for
// its turn on the line is at most what the line carries in one round trip, or
// 64 KiB; what comes then is lost, as in a router.
func (l line) carry(from, to *os.File) {
	type packet struct {
		data []byte
		due  time.Time
	}
	wait := make(chan packet, 1<<16)
	go func() {
		for p := range wait {
			time.Sleep(time.Until(p.due))
			_, _ = to.Write(p.data) // a packet for nobody is lost
		}
	}()
	defer close(wait)
	perByte := float64(8*time.Second) / float64(l.Bandwidth)
	queue := max(l.RTT, time.Duration(64<<10*perByte))
	var free time.Time // when the line has sent all that came so far
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
