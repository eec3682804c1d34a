package testkit

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// leakPatience is how long connections that were closed may take to end.
const leakPatience = 10 * time.Second

// Run is what a TestMain passes to os.Exit. It runs the tests, and fails when
// they have left something behind: a goroutine, on Linux a file descriptor, or a
// temporary file.
func Run(m *testing.M) (code int) {
	flag.Parse()
	if fuzzing() {
		return m.Run() // the engine tidies nothing up
	}
	if err := runMoreAtOnce(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	temp, err := os.MkdirTemp("", "lxdtmp")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(temp) }()
	if err := os.Setenv("TMPDIR", temp); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	openNetwork()
	files := openFiles()
	if code = m.Run(); code != 0 {
		return code
	}
	for deadline := time.Now().Add(leakPatience); ; time.Sleep(10 * time.Millisecond) {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		leaked := leftBehind(temp, files)
		if len(leaked) == 0 {
			return 0
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "the tests have left behind:\n%s\n", strings.Join(leaked, "\n"))
			return 1
		}
	}
}

// parallelTests is how many parallel tests run at once on a machine with fewer
// processors: most of their time they wait for a timeout or a retry.
const parallelTests = 8

// runMoreAtOnce raises the default of the flag -parallel.
func runMoreAtOnce() error {
	given := runtime.GOMAXPROCS(0) >= parallelTests
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(parallelTests))
}

// fuzzing says whether this process is, or works for, the fuzzing engine.
func fuzzing() bool {
	for _, name := range []string{"test.fuzz", "test.fuzzworker"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != f.DefValue {
			return true
		}
	}
	return false
}

// openNetwork has the runtime open what it keeps open once the network was
// used.
func openNetwork() {
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		_ = l.Close()
	}
}

func leftBehind(temp string, before []string) []string {
	leaked := goroutines()
	for _, name := range openFiles() {
		if !slices.Contains(before, name) {
			leaked = append(leaked, "file descriptor "+name)
		}
	}
	entries, err := os.ReadDir(temp)
	if err != nil {
		leaked = append(leaked, err.Error())
	}
	for _, e := range entries {
		leaked = append(leaked, "temporary file "+filepath.Join(temp, e.Name()))
	}
	return leaked
}

// goroutines returns the stacks of those that no test should leave.
func goroutines() []string {
	buffer := make([]byte, 4<<20)
	buffer = buffer[:runtime.Stack(buffer, true)]
	var leaked []string
	for stack := range strings.SplitSeq(string(buffer), "\n\n") {
		switch {
		case strings.Contains(stack, ".TestMain("): // this one
		case strings.Contains(stack, "os/signal."), strings.Contains(stack, "runtime.ensureSigM"): // begun once, for ever
		default:
			leaked = append(leaked, stack)
		}
	}
	return leaked
}

// openFiles tells the open file descriptors, each with what it stands for, where
// the system lists them.
func openFiles() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil // not Linux
	}
	var files []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the descriptor of the listing itself
		}
		files = append(files, e.Name()+" "+target)
	}
	return files
}
