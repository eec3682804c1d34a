//go:build unix

package imagefile_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/imagefile"
)

// BenchmarkPack packs the directory in the environment variable ROOT, by default the sources of Go, in turns with tar and
// the compressor's program with its default number of threads. It reports the times as ratios to theirs: less than 1 is
// faster.
func BenchmarkPack(b *testing.B) {
	root := os.Getenv("ROOT")
	if root == "" {
		goroot, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
		require.NoError(b, err)
		root = filepath.Join(strings.TrimSpace(string(goroot)), "src")
	}
	for _, c := range []struct {
		compression imagefile.Compression
		program     string
	}{{imagefile.None, "cat"}, {imagefile.Gzip, "gzip"}, {imagefile.Zstd, "zstd"}} {
		b.Run(string(c.compression), func(b *testing.B) {
			var ours, theirs cost
			for b.Loop() {
				var info *imagefile.Info
				ours.add(syscall.RUSAGE_SELF, func() {
					var err error
					info, err = imagefile.Pack(b.Context(), io.Discard, nil, imagefile.FromDir(root, nil), described(), withTemplates(imagefile.PackOptions{Compression: c.compression}))
					require.NoError(b, err)
				})
				theirs.add(syscall.RUSAGE_CHILDREN, func() {
					command := exec.CommandContext(b.Context(), "sh", "-c", `tar --create --sort=name --numeric-owner --xattrs --directory "$1" . | "$2" -c | sha256sum`, "sh", root, c.program)
					if c.program == "cat" {
						command.Args[2] = `tar --create --sort=name --numeric-owner --xattrs --directory "$1" . | sha256sum`
					}
					require.NoError(b, command.Run())
				})
				b.SetBytes(info.Size)
			}
			b.ReportMetric(ours.wall.Seconds()/theirs.wall.Seconds(), "wall/tar")
			b.ReportMetric(ours.cpu.Seconds()/theirs.cpu.Seconds(), "cpu/tar")
		})
	}
}

// cost is the time that something has taken.
type cost struct{ wall, cpu time.Duration }

func (c *cost) add(who int, do func()) {
	before, start := cpuTime(who), time.Now()
	do()
	c.wall += time.Since(start)
	c.cpu += cpuTime(who) - before
}

func cpuTime(who int) time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(who, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
