package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/golxd/lxd/simplestreams"
)

// write writes a line for each image that came or went.
func write(out io.Writer, report *simplestreams.MirrorReport) {
	for _, change := range report.Added {
		fmt.Fprintf(out, "+ %s %s (%d files, %d bytes)\n", printable(change.Product), printable(change.Version), change.Files, change.Bytes)
	}
	for _, change := range report.Removed {
		fmt.Fprintf(out, "- %s %s\n", printable(change.Product), printable(change.Version))
	}
}

// printable returns a name of a server as it is, or quoted if it could control a terminal.
func printable(name string) string {
	if quoted := strconv.Quote(name); quoted != `"`+name+`"` {
		return quoted
	}
	return name
}

// bar shows the progress of all downloads. It ignores errors: a bar that cannot be drawn
// must not end the mirror.
type bar struct{ *progressbar.ProgressBar }

func newBar(terminal *os.File) *bar {
	return &bar{progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(terminal),
		progressbar.OptionShowBytes(true),
		progressbar.OptionSetWidth(30),
		progressbar.OptionUseANSICodes(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

// show is called by one goroutine at a time.
func (b *bar) show(p simplestreams.MirrorProgress) {
	b.ChangeMax64(p.Total)
	b.Describe(fmt.Sprintf("%d of %d files", p.Files, p.TotalFiles))
	_ = b.Set64(p.Done)
}

func (b *bar) end() { _ = b.Clear() }
