package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

func main() {
	if len(os.Args) == 2 && strings.HasPrefix(os.Args[1], "{") {
		if err := runChild(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := runBench(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func runBench() (err error) {
	size := flag.Int64("size", 512, "size of the image in MiB")
	runs := flag.Int("runs", 5, "runs of each contender")
	only := flag.String("only", "", "regular expression: measure only rows whose names match; write no file unless -out is set")
	out := flag.String("out", filepath.Join("docs", "performance.md"), "file to write")
	dir := flag.String("dir", "", "directory for the daemons and the files (default: the system's directory for temporary files)")
	budget := flag.Duration("budget", 23*time.Minute, "time after which the remaining rows have fewer runs")
	flag.Parse()
	filter, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	explicit := false
	flag.Visit(func(f *flag.Flag) { explicit = explicit || f.Name == "out" })

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	began := time.Now()
	b, err := setUp(ctx, *dir, *size<<20)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	var results []*result
	for _, r := range b.rows() {
		if !filter.MatchString(r.name) {
			continue
		}
		n := *runs
		if r.runs > 0 {
			n = n * r.runs / 5
		}
		res, err := r.measure(ctx, b, max(n, 1), began.Add(*budget))
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		results = append(results, res)
		fmt.Print(res.text())
	}
	watched := ""
	if filter.MatchString("watch") {
		if watched, err = b.watch(ctx); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		fmt.Print(watched)
	}
	if *only != "" && !explicit {
		return nil
	}
	return os.WriteFile(*out, []byte(b.report(ctx, results, watched, began)), 0o644)
}
