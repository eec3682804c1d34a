package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/internal/unixsock"
	"github.com/golxd/lxd/lxdtest"
)

// envCommand makes the test program this command, and envParent a parent of it.
const (
	envCommand = "LXDTEST_TEST_COMMAND"
	envParent  = "LXDTEST_TEST_PARENT"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envParent) != "":
		beParent()
	case os.Getenv(envCommand) != "":
		main()
	}
	os.Exit(testkit.Run(m))
}

// beParent runs the command as a child, until it is killed or the child ends.
func beParent() {
	_ = os.Unsetenv(envParent)
	child := exec.Command(os.Args[0], os.Args[1:]...)
	child.Env = append(os.Environ(), envCommand+"=1")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	_ = child.Run()
	os.Exit(1)
}

// process is a run of the command.
type process struct {
	*testing.T
	ready   fleet
	stderr  *bytes.Buffer // to be read when it has ended
	stop    func()
	code    chan int
	control *http.Client
}

// start runs the command in this process, and waits until it serves.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{T: t, stderr: &bytes.Buffer{}, stop: cancel, code: make(chan int, 1)}
	stdout, w := io.Pipe()
	go func() {
		code := run(ctx, args, w, p.stderr)
		_ = w.Close()
		p.code <- code
	}()
	t.Cleanup(func() { p.end() })
	p.read(stdout)
	return p
}

// read reads the line that says that it serves.
func (p *process) read(stdout io.Reader) {
	p.Helper()
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		p.stop()
		<-p.code
		p.code <- 0
		require.NoError(p, err, p.stderr.String())
	}
	require.NoError(p, json.Unmarshal(line, &p.ready))
	p.control = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if p.ready.Control.Socket == "" {
				return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(p.ready.Control.URL, "http://"))
			}
			return (&net.Dialer{}).DialContext(ctx, "unix", p.ready.Control.Socket)
		},
	}}
}

// end ends the command, if it has not, and returns its exit code.
func (p *process) end() int {
	p.stop()
	code := <-p.code
	p.code <- code
	return code
}

// call calls the control socket and returns the status; into may be nil.
func (p *process) call(method, path, body string, into any) int {
	p.Helper()
	status, data := p.raw(method, path, body)
	if into != nil {
		require.NoError(p, json.Unmarshal(data, into), "%s", data)
	}
	return status
}

func (p *process) raw(method, path, body string) (int, []byte) {
	p.Helper()
	req, err := http.NewRequestWithContext(p.Context(), method, "http://lxdtest"+path, strings.NewReader(body))
	require.NoError(p, err)
	res, err := p.control.Do(req)
	require.NoError(p, err)
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	require.NoError(p, err)
	return res.StatusCode, data
}

// client returns a client of a server.
func (p *process) client(s *server) *lxd.Client {
	p.Helper()
	return testkit.NewClient(p.T, "unix://"+s.Socket, nil)
}

// shortDir returns a directory whose path is short enough for sockets in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := unixsock.TempDir("", "new/lxd50/"+serverSocket)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// TestFleet runs several dialects at once. The remotes in the configuration directories
// reach each, and all have what the flags add.
func TestFleet(t *testing.T) {
	t.Parallel()
	p := start(t, "-dialect", "lxd50,lxd-5.0", "-dialect", "incus70", "-dialect", "old=lxd40",
		"-image", "web,web/1=debian/13", "-image", "old:db=alpine/3.22", "-project", "other", "-profile", "old:small")
	require.Equal(t, os.Getpid(), p.ready.PID)
	names := []string{"lxd50", "lxd50-2", "incus70", "old"}
	require.Len(t, p.ready.Servers, len(names))
	var web string
	for n, s := range p.ready.Servers {
		require.Equal(t, names[n], s.Name)
		require.Equal(t, filepath.Join(p.ready.Dir, s.Name, "unix.socket"), s.Socket)
		c, err := lxd.Remote(s.Name, &lxd.Options{Family: lxd.Family(s.Family), ConfigDir: s.Conf})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		require.Equal(t, s.URL, c.Endpoint())
		require.True(t, testkit.Trusted(t, c))
		info, err := c.Server(t.Context())
		require.NoError(t, err)
		require.Equal(t, s.Version, info.Version)

		image, err := c.Images.GetByAlias(t.Context(), "web")
		require.NoError(t, err)
		require.Len(t, image.Aliases, 2)
		require.Equal(t, "debian", image.Properties["os"])
		require.Equal(t, "13", image.Properties["release"])
		require.Contains(t, []string{"", web}, web, "the same image on all")
		web = image.Fingerprint
		exists, err := c.Images.Exists(t.Context(), "db")
		require.NoError(t, err)
		require.Equal(t, s.Name == "old", exists)

		var projects, profiles []string
		_, err = c.Do(t.Context(), "GET", "/1.0/projects", nil, &projects)
		require.NoError(t, err)
		require.Contains(t, projects, "/1.0/projects/other")
		_, err = c.Do(t.Context(), "GET", "/1.0/profiles", nil, &profiles)
		require.NoError(t, err)
		require.Len(t, profiles, map[bool]int{true: 2, false: 1}[s.Name == "old"])
	}
	remotes, err := lxd.Remotes(&lxd.RemotesOptions{Family: lxd.LXD, ConfigDir: p.ready.Servers[0].Conf})
	require.NoError(t, err)
	require.Subset(t, testkit.RemoteNames(remotes), []string{"lxd50", "lxd50-2", "old"})
	require.NotContains(t, testkit.RemoteNames(remotes), "incus70")
	require.Equal(t, 0, p.end())
	require.NoDirExists(t, p.ready.Dir)
}

// TestBadFlags: each is refused in words before anything is made.
func TestBadFlags(t *testing.T) {
	t.Parallel()
	file, dir := filepath.Join(t.TempDir(), "image.tar"), filepath.Join(t.TempDir(), "dir.tar")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(file, lxdtest.UnifiedImage("x", 0), 0o600))
	for words, args := range map[string][]string{
		"the dialects are lxd40":      {"-dialect", "lxd5"},
		"called \"A\"":                {"-dialect", "A=lxd50"},
		"has another meaning":         {"-dialect", "local=lxd50"},
		"two servers are called":      {"-dialect", "a=lxd50,a=lxd40"},
		"neither host:port nor none":  {"-tls", "8443"},
		"cannot have one address":     {"-tls", ":8443", "-dialect", "lxd50,lxd40"},
		"cannot have one socket":      {"-socket", "x", "-dialect", "lxd50,lxd40"},
		"is not ALIAS=SPEC":           {"-image", "debian/13"},
		"an alias is empty":           {"-image", "a,=debian/13"},
		"neither a file nor":          {"-image", "a=debian"},
		"13.tar.xz: ":                 {"-image", "a=debian/13.tar.xz"},
		"\"small\" is not an option":  {"-image", "a=debian/13 small"},
		"not a number of bytes":       {"-image", "a=debian/13 size=1MB"},
		"for images that are made":    {"-image", "a=" + file + " split"},
		"is not a file":               {"-image", "a=" + dir},
		"\".\" is neither":            {"-image", "a=."},
		"is not METADATA+ROOTFS":      {"-image", "a=+" + file},
		"\"lxd40\" is not a server":   {"-image", "lxd40:a=debian/13"},
		"is not a name":               {"-project", "none:web"},
		"\"a/b\": is not a name":      {"-profile", "a/b"},
		"the faults are refuse":       {"-fault", "lxd50:cut"},
		"bytes is missing":            {"-fault", "cut-response"},
		"unexpected argument \"lxd\"": {"lxd"},
		"not defined: -dialects":      {"-dialects", "lxd50"},
	} {
		var stdout, stderr bytes.Buffer
		require.Equal(t, 2, run(t.Context(), args, &stdout, &stderr), args)
		require.Contains(t, stderr.String(), words, args)
		require.Equal(t, 1, strings.Count(stderr.String(), "lxdtest: "))
		require.Empty(t, stdout.String())
	}
	var stdout, stderr bytes.Buffer
	require.Equal(t, 1, run(t.Context(), []string{"-dir", file}, &stdout, &stderr))
	require.Contains(t, stderr.String(), filepath.Join(file, marker)+": ")
	require.Equal(t, 0, run(t.Context(), []string{"-help"}, &stdout, &stderr))
	require.Contains(t, stderr.String(), "-trust-password")
}

// TestFlagsAreDocumented: the package comment and docs/testing.md have each flag and call.
func TestFlagsAreDocumented(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	page, err := os.ReadFile("../../../docs/testing.md")
	require.NoError(t, err)
	var help bytes.Buffer
	require.Equal(t, 0, run(t.Context(), []string{"-h"}, io.Discard, &help))
	flags := 0
	for line := range strings.Lines(help.String()) {
		if name, ok := strings.CutPrefix(line, "  -"); ok {
			require.Contains(t, string(data), "\n//	-"+strings.Fields(name)[0])
			require.Contains(t, string(page), "`-"+strings.Fields(name)[0])
			flags++
		}
	}
	require.Greater(t, flags, 10)
	for call := range calls {
		method, action, _ := strings.Cut(call, " ")
		require.Contains(t, string(data), strings.TrimSuffix("\n//	"+method+" /NAME/"+action, "/")+" ")
		require.Contains(t, string(page), action)
	}
}

// TestOneServer has its addresses and sizes from flags.
func TestOneServer(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	p := start(t, "-socket", filepath.Join(dir, "s"), "-tls", "none", "-control", "127.0.0.1:0", "-trust-password", "sesame",
		"-fault", "lxd50:status status=507 message=\"no space\" path=/1.0/images times=1", "-log",
		"-image", "big=debian/13 size=100000 public", "-image", "split=debian/12 split", "-image", "vm=debian/12 vm")
	s := p.ready.Servers[0]
	require.Equal(t, filepath.Join(dir, "s"), s.Socket)
	require.Empty(t, s.URL)
	require.Empty(t, s.ServerCertificate)
	require.Empty(t, p.ready.Control.Socket)
	c, err := lxd.Remote("lxd50", &lxd.Options{Family: lxd.LXD, ConfigDir: s.Conf})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	require.Equal(t, "unix://"+s.Socket, c.Endpoint())
	_, err = c.Images.All(t.Context(), nil)
	require.ErrorContains(t, err, "no space")
	images, err := c.Images.All(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, images, 3)
	for _, image := range images {
		switch image.Aliases[0].Name {
		case "big":
			require.True(t, image.Public)
			require.Greater(t, image.Size, int64(90_000))
		case "vm":
			require.Equal(t, lxd.VirtualMachine, image.Type)
		}
	}
	require.Equal(t, 0, p.end())
	require.Empty(t, testkit.FilesIn(t, dir))
	log := p.stderr.String()
	require.Contains(t, log, "server=lxd50 method=GET path=")
	require.Contains(t, log, "status=507")
}

// TestImageFiles adds images of files.
func TestImageFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unified := lxdtest.UnifiedImage("unified", 50_000)
	meta, root := lxdtest.SplitImage("split", 0)
	vmMeta, disk := lxdtest.VMImage("vm", 0)
	for name, content := range map[string][]byte{"u.tar": unified, "m.tar": meta, "r.tar": root, "vm.tar": vmMeta, "d.img": disk, "bad.tar": []byte("bad"), "u+1.tar": unified} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	p := start(t, "-image", "u="+in("u.tar"), "-image", "s="+in("m.tar")+"+"+in("r.tar"), "-image", "vm="+in("vm.tar")+"+"+in("d.img"))
	c := p.client(p.ready.Servers[0])
	for alias, files := range map[string][][]byte{"u": {unified}, "s": {meta, root}, "vm": {vmMeta, disk}} {
		image, err := c.Images.GetByAlias(t.Context(), alias)
		require.NoError(t, err)
		require.Equal(t, lxdtest.Fingerprint(files...), image.Fingerprint)
		require.Equal(t, alias == "vm", image.Type == lxd.VirtualMachine)
	}
	require.Equal(t, 0, p.end())
	image, err := parseImage("plus=" + in("u+1.tar"))
	require.NoError(t, err)
	require.Equal(t, in("u+1.tar"), image.metadata)
	require.Empty(t, image.rootfs)
	var stderr bytes.Buffer
	require.Equal(t, 1, run(t.Context(), []string{"-image", "a=" + in("bad.tar")}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), `image ["a"]`)
}

// TestRelativePaths: clients get paths that they can use anywhere.
func TestRelativePaths(t *testing.T) {
	dir := shortDir(t)
	t.Chdir(dir)
	p := start(t, "-dir", "d", "-socket", "s", "-control", "c", "-tls", "none")
	require.Equal(t, filepath.Join(dir, "s"), p.ready.Servers[0].Socket)
	require.Equal(t, filepath.Join(dir, "c"), p.ready.Control.Socket)
	require.Equal(t, filepath.Join(dir, "d", "lxc"), p.ready.Servers[0].Conf)
	require.Equal(t, 0, p.end())
}

// TestImageLikeDirectory: what is made is made where a directory has the same path.
func TestImageLikeDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.MkdirAll("debian/13", 0o700))
	image, err := parseImage("web=debian/13")
	require.NoError(t, err)
	require.Equal(t, "debian/13", image.seed)
}

// TestDirectory uses a directory again, and leaves what is not its own.
func TestDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "new")
	p := start(t, "-dir", dir)
	var stderr bytes.Buffer
	require.Equal(t, 1, run(t.Context(), []string{"-dir", dir, "-dialect", "incus60"}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), "is in use")
	require.Equal(t, 0, p.end())
	require.NoDirExists(t, dir)

	// What a process that was killed has left.
	own := filepath.Join(dir, "file")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "lxd69", "left"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, marker), []byte("lxd69\n../outside\n"), 0o600))
	outside := filepath.Join(filepath.Dir(dir), "outside")
	for _, name := range []string{own, outside} {
		require.NoError(t, os.WriteFile(name, []byte("x"), 0o600))
	}
	p = start(t, "-dir", dir)
	require.NoDirExists(t, filepath.Join(dir, "lxd69"))
	require.Equal(t, 0, p.end())
	require.Equal(t, []string{own}, testkit.FilesIn(t, dir))
	require.FileExists(t, outside)

	// Somebody else's.
	require.NoError(t, os.Mkdir(filepath.Join(dir, "lxc"), 0o700))
	stderr.Reset()
	require.Equal(t, 1, run(t.Context(), []string{"-dir", dir}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), `a file "lxc" of something else`)
	require.DirExists(t, filepath.Join(dir, "lxc"))
	stderr.Reset()
	require.Equal(t, 1, run(t.Context(), []string{"-dir", own}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), filepath.Join(own, marker)+": ")
	stderr.Reset()
	require.Equal(t, 1, run(t.Context(), []string{"-dir", filepath.Join(dir, strings.Repeat("long", 30))}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), "is too long")
	require.Len(t, testkit.FilesIn(t, dir), 2)
}

// TestAddressInUse: a failure at the start leaves nothing.
func TestAddressInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	parent := shortDir(t)
	for _, flag := range []string{"-tls", "-control"} {
		var stderr bytes.Buffer
		require.Equal(t, 1, run(t.Context(), []string{"-dir", filepath.Join(parent, "x"), flag, l.Addr().String()}, io.Discard, &stderr))
		require.Contains(t, stderr.String(), l.Addr().String())
		require.Empty(t, testkit.FilesIn(t, parent))
	}
}

// command starts the command as a process, and returns it and its standard output.
func command(t *testing.T, env string, args ...string) (*exec.Cmd, *process) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), env+"=1")
	// Wait must not close the pipe: it ends with the last process that has it.
	stdout, w, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdout = w
	require.NoError(t, cmd.Start())
	require.NoError(t, w.Close())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	p := &process{T: t, stderr: &bytes.Buffer{}, stop: func() {}, code: make(chan int, 2)}
	p.read(stdout)
	t.Cleanup(func() { _ = stdout.Close() })
	go func() {
		_, _ = io.Copy(io.Discard, stdout)
		p.code <- 0
	}()
	return cmd, p
}

// TestKilled: a process that was killed does not hinder the next one with the same flags.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	args := []string{"-dir", filepath.Join(dir, "new"), "-socket", filepath.Join(dir, "s"), "-control", filepath.Join(dir, "c")}
	cmd, p := command(t, envCommand, args...)
	require.NoError(t, cmd.Process.Kill())
	<-p.code
	_ = cmd.Wait()
	p = start(t, args...)
	require.Equal(t, 200, p.call("GET", "/lxd50", "", nil))
	_, err := p.client(p.ready.Servers[0]).Images.All(t.Context(), nil)
	require.NoError(t, err)

	var stderr bytes.Buffer
	require.Equal(t, 1, run(t.Context(), []string{"-control", filepath.Join(dir, "c")}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), "is the socket of a server that is running")
	require.Equal(t, 200, p.call("GET", "/lxd50", "", nil))
	stderr.Reset()
	require.Equal(t, 1, run(t.Context(), []string{"-control", filepath.Join(dir, strings.Repeat("c", 100))}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), "bytes, and some systems accept no more than 100")
	require.Equal(t, 0, p.end())
	require.Equal(t, []string{p.ready.Dir}, testkit.FilesIn(t, dir), "which the second one has not made")
}

// TestSignals: SIGTERM and SIGINT end it with code 0, and nothing is left. It holds a
// connection and a call of the control socket meanwhile.
func TestSignals(t *testing.T) {
	t.Parallel()
	signals := []os.Signal{syscall.SIGTERM, os.Interrupt}
	if runtime.GOOS == "windows" {
		signals = nil // a process cannot send them there
	}
	for _, signal := range signals {
		cmd, p := command(t, envCommand, "-image", "web=debian/13")
		var images []map[string]any
		require.Equal(t, 200, p.call("GET", "/lxd50/images", "", &images))
		require.Len(t, images, 1)
		c, err := net.Dial("unix", p.ready.Servers[0].Socket)
		require.NoError(t, err)
		waiting, err := net.Dial("unix", p.ready.Control.Socket)
		require.NoError(t, err)
		_, err = io.WriteString(waiting, "GET /lxd50/wait HTTP/1.1\r\nHost: x\r\n\r\n")
		require.NoError(t, err)
		require.NoError(t, cmd.Process.Signal(signal))
		<-p.code
		require.NoError(t, cmd.Wait())
		require.NoDirExists(t, p.ready.Dir)
		_ = c.Close()
		_ = waiting.Close()
	}
}

// TestWithParent: it ends when its parent is killed, and nothing is left.
func TestWithParent(t *testing.T) {
	t.Parallel()
	cmd, p := command(t, envParent, "-with-parent")
	require.NotEqual(t, cmd.Process.Pid, p.ready.PID)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	<-p.code // the orphan has ended
	require.NoDirExists(t, p.ready.Dir)
}

// TestClosedOutput: without a reader of its standard output the command ends, without one of
// its log it serves, and in the end nothing is left.
func TestClosedOutput(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "new")
	closed := func() *os.File {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		require.NoError(t, r.Close())
		t.Cleanup(func() { _ = w.Close() })
		return w
	}
	cmd := exec.Command(os.Args[0], "-dir", dir)
	cmd.Env = append(os.Environ(), envCommand+"=1")
	cmd.Stdout = closed()
	_ = cmd.Run()
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
	require.NoDirExists(t, dir)

	cmd = exec.Command(os.Args[0], "-dir", dir, "-log")
	cmd.Env = append(os.Environ(), envCommand+"=1")
	cmd.Stderr = closed()
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	p := &process{T: t, stderr: &bytes.Buffer{}, stop: func() {}}
	p.read(stdout)
	c := p.client(p.ready.Servers[0])
	for range 2 {
		_, err := c.Images.All(t.Context(), nil)
		require.NoError(t, err)
	}
	require.Equal(t, 200, p.call("POST", "/stop", "", nil))
	require.NoError(t, cmd.Wait())
	require.NoDirExists(t, dir)
}
