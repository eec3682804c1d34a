package fleet_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/procmem"
	"github.com/golxd/lxd/lxdtest"
)

const (
	benchSize = 8 << 20
	benchRate = 2 << 20 // a second, of each link in each direction
)

// BenchmarkTree brings an image to n servers. It reports the wall time in proportion to
// the bound: in each of ceil(log_(f+1)(n+1)) rounds, each server that has the image sends
// it to f others, at the rate of its link.
func BenchmarkTree(b *testing.B) {
	for _, fanout := range []int{1, 2, 3} {
		for _, n := range []int{1, 2, 4, 8, 16, 32} {
			b.Run(fmt.Sprintf("fanout=%d/servers=%d", fanout, n), func(b *testing.B) {
				alone := time.Duration(float64(time.Second) * benchSize / benchRate)
				rounds := math.Ceil(math.Round(math.Log(float64(n+1))/math.Log(float64(fanout+1))*1e9) / 1e9)
				bound := time.Duration(rounds) * time.Duration(fanout) * alone
				var wall time.Duration
				for b.Loop() {
					wall += distributeTo(b, n, &lxd.DistributeOptions{Fanout: fanout, Copy: lxd.CopyOptions{Mode: lxd.CopyPull}})
				}
				wall /= time.Duration(b.N)
				b.ReportMetric(wall.Seconds()/bound.Seconds(), "of-bound")
				b.ReportMetric(wall.Seconds()/(float64(n)*alone.Seconds()), "of-n-S/B")
			})
		}
	}
}

// BenchmarkOneAfterAnother is what BenchmarkTree is compared with: a copy to each of n
// servers from the first.
func BenchmarkOneAfterAnother(b *testing.B) {
	for _, n := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("servers=%d", n), func(b *testing.B) {
			var wall time.Duration
			for b.Loop() {
				b.StopTimer()
				hosts := startHosts(b, n+1, benchRate)
				image := addImage(b, hosts, benchSize)
				b.StartTimer()
				began := time.Now()
				for _, h := range hosts[1:] {
					_, err := image.Copy(b.Context(), h.client, &lxd.CopyOptions{Mode: lxd.CopyPull, Wait: true})
					require.NoError(b, err)
				}
				wall += time.Since(began)
			}
			b.ReportMetric(wall.Seconds()/float64(b.N)/(float64(n)*benchSize/benchRate), "of-n-S/B")
		})
	}
}

// distributeTo returns how long the image takes to n servers.
func distributeTo(b *testing.B, n int, opts *lxd.DistributeOptions) time.Duration {
	b.Helper()
	b.StopTimer()
	hosts := startHosts(b, n+1, benchRate)
	image := addImage(b, hosts, benchSize)
	b.StartTimer()
	began := time.Now()
	for _, err := range image.Distribute(b.Context(), clients(hosts[1:]), opts) {
		require.NoError(b, err)
	}
	return time.Since(began)
}

// BenchmarkRelay relays an image to 8 servers in a process of its own, of which it reports
// the peak resident memory. The client's own link is not limited. It reports the wall time
// in proportion to that of the slowest of them alone; a ninth server, if there is one, is
// dead: it stops reading.
func BenchmarkRelay(b *testing.B) {
	for name, rates := range map[string][]int64{
		"alike":      {16, 16, 16, 16, 16, 16, 16, 16},
		"one slower": {16, 16, 16, 16, 16, 16, 16, 12},
		"one dead":   {16, 16, 16, 16, 16, 16, 16, 16, 0},
	} {
		b.Run(name, func(b *testing.B) {
			const size = 128 << 20
			source := startHosts(b, 1, 0)
			image := addImage(b, source, size)
			slowest := int64(math.MaxInt64)
			var hosts []*host
			for _, rate := range rates {
				h := startHosts(b, 1, rate<<20)[0]
				if rate == 0 {
					h.Inject(lxdtest.StallRequest(40<<20).On("POST", "/1.0/images"))
				} else {
					slowest = min(slowest, rate)
				}
				hosts = append(hosts, h)
			}
			alone := childRun(b, image, source[0], []*host{hosts[7]}, 1)
			for b.Loop() {
				all := childRun(b, image, source[0], hosts, 8)
				b.ReportMetric(all.Wall.Seconds()/alone.Wall.Seconds(), "of-slowest-alone")
				b.ReportMetric(float64(all.Peak)/(1<<20), "peak-MiB")
			}
		})
	}
}

const childVariable = "FLEET_TEST_CHILD"

// childJob is what a child process does: it relays an image until so many servers have it.
type childJob struct {
	Source  childHost
	Targets []childHost
	Image   string
	Until   int
}

type childHost struct {
	URL                    string
	Cert, Key, Certificate []byte
}

func (h childHost) client() (*lxd.Client, error) {
	return lxd.New(h.URL, &lxd.Options{ClientCertificate: h.Cert, ClientKey: h.Key, ServerCertificate: h.Certificate})
}

func (h *host) child() childHost {
	cert, key := h.ClientCertificate()
	return childHost{h.URL(), cert, key, h.Certificate()}
}

type childResult struct {
	Wall time.Duration
	Peak int64 // bytes of resident memory
}

// childRun relays the image in a child process, and deletes it from the targets.
func childRun(b *testing.B, image *lxd.Image, source *host, targets []*host, until int) childResult {
	b.Helper()
	job := childJob{Source: source.child(), Image: image.Fingerprint, Until: until}
	for _, h := range targets {
		job.Targets = append(job.Targets, h.child())
	}
	data, err := json.Marshal(job)
	require.NoError(b, err)
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stdin, cmd.Stderr = strings.NewReader(string(data)), os.Stderr
	out, err := cmd.Output()
	require.NoError(b, err)
	var result childResult
	require.NoError(b, json.Unmarshal(out, &result))
	for _, h := range targets {
		if existing, err := h.client.Images.Get(b.Context(), image.Fingerprint); err == nil {
			require.NoError(b, existing.Delete(b.Context(), &lxd.DeleteOptions{Wait: true}))
		}
	}
	return result
}

// runChild is the child process.
func runChild() {
	if err := relayInChild(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func relayInChild() error {
	var job childJob
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return err
	}
	source, err := job.Source.client()
	if err != nil {
		return err
	}
	var targets []*lxd.Client
	for _, h := range job.Targets {
		target, err := h.client()
		if err != nil {
			return err
		}
		targets = append(targets, target)
	}
	image, err := source.Images.Get(context.Background(), job.Image)
	if err != nil {
		return err
	}
	var result childResult
	began, served := time.Now(), 0
	for delivery, err := range image.Distribute(context.Background(), targets, &lxd.DistributeOptions{RelayFanout: 16, Copy: lxd.CopyOptions{Mode: lxd.CopyRelay}}) {
		if err != nil {
			return fmt.Errorf("%s: %w", delivery, err)
		}
		if served++; served == job.Until {
			result.Wall = time.Since(began)
			break
		}
	}
	result.Peak = procmem.Peak(os.Getpid())
	return json.NewEncoder(os.Stdout).Encode(result)
}
