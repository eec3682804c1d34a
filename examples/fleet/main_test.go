package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// asProgram makes the test's executable the program itself.
const asProgram = "FLEET_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(testkit.Run(m))
}

// patience is the longest that a test waits for a condition.
const patience = 60 * time.Second

// fleet is a file with servers, and one alias of which the source is a file.
type fleet struct {
	*testing.T

	path   string // of the file
	source string // the path of the image
	alias  string
	hosts  []*testkit.Subject
	client []*lxd.Client // of the test
	log    *journal
}

// fakes are a server of each dialect.
func fakes(t *testing.T) []*testkit.Subject {
	var hosts []*testkit.Subject
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.Incus60, lxdtest.LXD69, lxdtest.Incus70, lxdtest.LXD40} {
		server := lxdtest.NewServer(&lxdtest.Options{Dialect: dialect, TLS: true})
		t.Cleanup(server.Close)
		hosts = append(hosts, &testkit.Subject{Family: lxd.Family(dialect.Family()), Fake: server})
	}
	return hosts
}

// reals are the real daemons that the environment names.
func reals(t *testing.T) []*testkit.Subject {
	lxds, incuses, err := testdaemon.FromEnv()
	require.NoError(t, err)
	var hosts []*testkit.Subject
	for _, d := range slices.Concat(lxds, incuses) {
		hosts = append(hosts, &testkit.Subject{Family: lxd.Family(d.Family), Real: d})
	}
	return hosts
}

// newFleet writes the file. The lines of extra are added to the alias.
func newFleet(t *testing.T, hosts []*testkit.Subject, extra ...string) *fleet {
	dir := t.TempDir()
	f := &fleet{T: t, path: filepath.Join(dir, "fleet.yaml"), source: filepath.Join(dir, "image.tar"), alias: testkit.Unique("fleet"), hosts: hosts, log: newJournal()}
	text := "servers:\n"
	for n, host := range hosts {
		f.client = append(f.client, host.TLSClient(t))
		text += fmt.Sprintf("  - {name: host%d, url: %q, server_certificate: %[1]d.pem, client_certificate: %[1]d.crt, client_key: %[1]d.key}\n", n, f.client[n].Endpoint())
		var server, cert, key []byte
		if host.Fake != nil {
			server = host.Fake.Certificate()
			cert, key = host.Fake.ClientCertificate()
		} else {
			server, cert, key = host.Real.ServerCertificate, host.Real.ClientCertificate, host.Real.ClientKey
		}
		for ending, data := range map[string][]byte{"pem": server, "crt": cert, "key": key} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.%s", n, ending)), data, 0o600))
		}
	}
	text += fmt.Sprintf("aliases:\n  - name: %s\n    source: ./image.tar\n", f.alias)
	for _, line := range extra {
		text += "    " + line + "\n"
	}
	require.NoError(t, os.WriteFile(f.path, []byte(text), 0o600))
	t.Cleanup(f.clear)
	return f
}

// clear deletes what the fleet has left on the real daemons.
func (f *fleet) clear() {
	for n, host := range f.hosts {
		if host.Real == nil {
			continue
		}
		for _, image := range f.images(n) {
			require.NoError(f, image.Delete(context.Background(), &lxd.DeleteOptions{Wait: true}))
		}
	}
}

// images are those that the program has brought to a host.
func (f *fleet) images(host int) []*lxd.Image {
	name, value := (&alias{Name: f.alias}).mark()
	images, err := f.client[host].Images.All(context.Background(), &lxd.ListOptions{Properties: map[string]string{name: value}})
	require.NoError(f, err)
	return images
}

// publish makes a new image the source, and returns its fingerprint.
func (f *fleet) publish(size int64) string {
	content := testkit.Unified(f.T, size)
	require.NoError(f, os.WriteFile(f.source+".new", content, 0o600))
	require.NoError(f, os.Rename(f.source+".new", f.source))
	return lxdtest.Fingerprint(content)
}

// has returns the fingerprint of the alias on a host; "" if it has none.
func (f *fleet) has(host int) string {
	alias, err := f.client[host].Aliases.Get(f.Context(), f.alias)
	if errors.Is(err, lxd.ErrNotFound) {
		return ""
	}
	require.NoError(f, err)
	return alias.Target
}

// requireAll requires that these hosts, or all, have the image.
func (f *fleet) requireAll(fingerprint string, hosts ...int) {
	f.Helper()
	for n := range f.hosts {
		if len(hosts) == 0 || slices.Contains(hosts, n) {
			require.Equal(f, fingerprint, f.has(n), "host%d", n)
		}
	}
}

// allHave reports whether all hosts have the image.
func (f *fleet) allHave(fingerprint string) bool {
	for n := range f.hosts {
		if f.has(n) != fingerprint {
			return false
		}
	}
	return true
}

// start starts a controller, which stop stops. It takes a server for one that is down if
// that does not respond within the time reach.
func (f *fleet) start(interval, reach time.Duration) (c *controller, stop func()) {
	conf, err := load(f.path)
	require.NoError(f, err)
	conf.Interval = interval
	c = newController(conf, slog.New(slog.NewTextHandler(f.log, nil)))
	c.settle, c.pause, c.longest, c.patience = 10*time.Millisecond, 20*time.Millisecond, 200*time.Millisecond, reach
	ctx, cancel := context.WithCancel(f.Context())
	var running sync.WaitGroup
	running.Go(func() { c.run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		conf.close()
	})
	f.Cleanup(stop)
	return c, stop
}

// await waits until the condition holds. It is checked whenever the program logs
// something, as it does at the end of each pass.
func (f *fleet) await(what string, condition func() bool) {
	f.Helper()
	timeout := time.After(patience)
	for {
		logged := f.log.next()
		if condition() {
			return
		}
		select {
		case <-logged:
		case <-timeout:
			require.Fail(f, what, f.log.String())
		}
	}
}

// journal is a log that can be waited for.
type journal struct {
	mu     sync.Mutex
	text   bytes.Buffer
	logged chan struct{} // closed at the next line
}

func newJournal() *journal { return &journal{logged: make(chan struct{})} }

func (j *journal) Write(line []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.logged)
	j.logged = make(chan struct{})
	return j.text.Write(line)
}

func (j *journal) next() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.logged
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// TestFleet: all servers have what the source has, whatever somebody else does to them.
func TestFleet(t *testing.T) {
	t.Parallel()
	fleets := map[string]func(*testing.T) []*testkit.Subject{"lxdtest": fakes}
	if len(reals(t)) > 0 {
		fleets["real"] = reals
	}
	for name, hosts := range fleets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, hosts(t), "public: true", "properties: {team: web}", "keep: 2")
			first := f.publish(100_000)

			// A dry run changes nothing.
			plan := f.plan()
			for n := range f.hosts {
				require.Contains(t, plan, fmt.Sprintf("host%d: ", n))
			}
			f.requireAll("")

			// Nothing is there but the image without its attributes on one server: all is
			// brought.
			file, err := os.Open(f.source)
			require.NoError(t, err)
			defer file.Close()
			_, err = f.client[1].Images.Create(t.Context(), file, &lxd.CreateOptions{Wait: true})
			require.NoError(t, err)
			c, stop := f.start(50*time.Millisecond, patience)
			f.await("the first image", func() bool { return f.allHave(first) })
			for n, client := range f.client {
				image, err := client.Images.Get(t.Context(), first)
				require.NoError(t, err)
				require.True(t, image.Public, "host%d", n)
				require.Equal(t, "web", image.Properties["team"], "host%d", n)
			}

			// New versions of the source are rolled out; the newest two images remain.
			second := f.publish(0)
			f.await("the second image", func() bool { return f.allHave(second) })
			third := f.publish(0)
			f.await("the third image, and one more", func() bool {
				for n := range f.hosts {
					if images := testkit.Fingerprints(f.images(n)); len(images) != 2 || !slices.Contains(images, third) || !slices.Contains(images, second) {
						return false
					}
				}
				return f.allHave(third)
			})
			require.Eventually(t, func() bool { return inStep(c, c.Servers...) }, patience, 5*time.Millisecond, "the metric follows the events")
			stop()
			transfers := 0.0
			for _, s := range c.Servers {
				for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay} {
					transfers += testutil.ToFloat64(c.metrics.transfers.WithLabelValues(s.Name, string(mode)))
				}
				require.Equal(t, 1.0, testutil.ToFloat64(c.metrics.up.WithLabelValues(s.Name)))
			}
			require.Equal(t, 3*float64(len(f.hosts)-1)-1, transfers, "the first server has the images of the source, the others one transfer each")
			require.Greater(t, testutil.ToFloat64(c.metrics.bytes.WithLabelValues("host2")), 100_000.0)
			require.InDelta(t, time.Now().Unix(), testutil.ToFloat64(c.metrics.lastSuccess.WithLabelValues(f.alias)), 60)
			require.NotContains(t, f.log.String(), "level=ERROR")

			// What somebody else changes is repaired, long before the sources are asked again.
			c, stop = f.start(time.Hour, patience)
			require.Eventually(t, func() bool { return inStep(c, c.Servers...) }, patience, 5*time.Millisecond)
			for n, client := range f.client {
				other := testkit.Upload(t, client, nil)
				require.NoError(t, f.move(n, other))
				f.await(fmt.Sprintf("the alias of host%d", n), func() bool { return f.allHave(third) })
				image, err := client.Images.Get(t.Context(), third)
				require.NoError(t, err)
				require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
				f.await(fmt.Sprintf("the image of host%d", n), func() bool { return f.allHave(third) })
			}
			stop()

			// The plan of a fleet in step is empty; one alias moved is one line.
			require.Empty(t, f.plan())

			// An attribute that somebody else has changed would be repaired.
			changed, err := f.client[1].Images.GetByAlias(t.Context(), f.alias)
			require.NoError(t, err)
			changed.Public = false
			require.NoError(t, changed.Update(t.Context(), nil))
			require.Equal(t, fmt.Sprintf("host1: update image %.12s\n", changed.Fingerprint), f.plan())
			changed.Public = true
			require.NoError(t, changed.Update(t.Context(), nil))
			other := testkit.Upload(t, f.client[1], nil)
			require.NoError(t, f.move(1, other))
			require.Equal(t, fmt.Sprintf("host1: move alias %q from image %.12s to image %.12s\n", f.alias, other.Fingerprint, third), f.plan())
			require.Equal(t, other.Fingerprint, f.has(1))

			// So is one image for each host that is to go; what has a name remains.
			image, err := f.client[2].Images.Get(t.Context(), second)
			require.NoError(t, err)
			require.NoError(t, image.AddAlias(t.Context(), testkit.Unique("kept"), ""))
			text, err := os.ReadFile(f.path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(f.path, bytes.Replace(text, []byte("keep: 2"), []byte("keep: 1"), 1), 0o600))
			plan = f.plan()
			for n := range f.hosts {
				require.Equal(t, n != 2, strings.Contains(plan, fmt.Sprintf("host%d: delete image %.12s: ", n, second)), plan)
				require.Len(t, f.images(n), 2)
			}

			// One pass, as cron would make it.
			require.NoError(t, run(t.Context(), []string{"-once", f.path}, io.Discard, f.log))
			f.requireAll(third)
			for n := range f.hosts {
				want := []string{third}
				if n == 2 {
					want = append(want, second)
				}
				require.ElementsMatch(t, want, testkit.Fingerprints(f.images(n)))
			}
			for _, host := range f.hosts {
				testkit.RequireNoTokens(t, host)
			}
		})
	}
}

// plan returns the output of a dry run.
func (f *fleet) plan() string {
	var out bytes.Buffer
	require.NoError(f, run(f.Context(), []string{"-dry-run", f.path}, &out, f.log), "%s", f.log)
	return out.String()
}

// move moves the alias by hand.
func (f *fleet) move(host int, image *lxd.Image) error {
	return f.client[host].Aliases.Set(f.Context(), lxd.Alias{Name: f.alias, Target: image.Fingerprint})
}

// inStep reports whether the watches of the servers have told that they are in step.
func inStep(c *controller, servers ...*server) bool {
	return !slices.ContainsFunc(servers, func(s *server) bool { return c.inStep(s) < len(c.Aliases) })
}

// TestServerReturns: a server that is down does not hold the others, and catches up when
// it returns, whether it is down at the start or when there is a new image.
func TestServerReturns(t *testing.T) {
	t.Parallel()
	for _, down := range []int{0, 2} { // the first one gets the image of the source
		t.Run(fmt.Sprintf("host%d", down), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, fakes(t)[:3])
			others := slices.DeleteFunc([]int{0, 1, 2}, func(n int) bool { return n == down })
			othersHave := func(fingerprint string) func() bool {
				return func() bool {
					return !slices.ContainsFunc(others, func(n int) bool { return f.has(n) != fingerprint })
				}
			}
			first := f.publish(0)
			server := f.hosts[down].Fake
			server.Shutdown()
			c, stop := f.start(100*time.Millisecond, 5*time.Second)
			s := c.Servers[down]
			f.await("the first image on the others", othersHave(first))
			f.await("a failure", func() bool { return testutil.ToFloat64(c.metrics.failures.WithLabelValues(s.Name, "connect")) > 0 })
			require.Zero(t, testutil.ToFloat64(c.metrics.up.WithLabelValues(s.Name)))
			require.Zero(t, testutil.ToFloat64(c.metrics.lastSuccess.WithLabelValues(f.alias)))
			server.Restart()
			f.await("the first image on all", func() bool { return f.allHave(first) })
			require.Eventually(t, func() bool { return inStep(c, c.Servers...) }, patience, 5*time.Millisecond)

			server.Shutdown()
			second := f.publish(0)
			f.await("the second image on the others", othersHave(second))
			server.Restart()
			f.await("the second image on all", func() bool { return f.allHave(second) })
			stop()
			require.Contains(t, f.log.String(), "level=ERROR msg=failed server="+s.Name)
			for n, server := range c.Servers {
				if n != down {
					require.NotContains(t, f.log.String(), "level=ERROR msg=failed server="+server.Name)
				}
			}
		})
	}
}

// TestRestarts: any server may restart in the middle of a transfer.
func TestRestarts(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fakes(t))
	first := f.publish(1_000_000)
	f.hosts[0].Fake.Inject(lxdtest.RestartServer(500_000).On("POST", "/1.0/images").Times(1))
	source := f.hosts[0].Fake.Inject(lxdtest.RestartServer(0).On("GET", "/1.0/images/*/export").Times(1))
	target := f.hosts[3].Fake.Inject(lxdtest.RestartServer(0).On("POST", "/1.0/images").Times(1))
	_, stop := f.start(time.Hour, patience)
	f.await("the image", func() bool { return f.allHave(first) && source.Fired() == 1 && target.Fired() == 1 })
	stop()
	for _, host := range f.hosts {
		require.Empty(t, host.Fake.Tokens())
	}
}

// TestSourceLost: what the servers have remains, and is repaired, while the source cannot
// be read.
func TestSourceLost(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fakes(t)[:3], "keep: 1")
	first := f.publish(0)
	require.NoError(t, run(t.Context(), []string{"-once", f.path}, io.Discard, f.log))
	require.NoError(t, os.Remove(f.source))
	require.EqualError(t, run(t.Context(), []string{"-once", f.path}, io.Discard, f.log), "failed; the log says why")
	f.requireAll(first)

	// A program that has not seen the source repairs by what the servers have.
	image, err := f.client[0].Images.Get(t.Context(), first)
	require.NoError(t, err)
	require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
	c, stop := f.start(50*time.Millisecond, patience)
	f.await("the image on the first server", func() bool { return f.allHave(first) })
	f.await("a failure", func() bool { return testutil.ToFloat64(c.metrics.failures.WithLabelValues("host0", "ensure")) > 0 })
	require.Zero(t, testutil.ToFloat64(c.metrics.lastSuccess.WithLabelValues(f.alias)))
	second := f.publish(0)
	f.await("the second image", func() bool { return f.allHave(second) })
	stop()
}

// TestOnce: one pass brings the image to all servers that respond, and fails if one does
// not.
func TestOnce(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fakes(t)[:3])
	fingerprint := f.publish(0)
	f.hosts[1].Fake.Distrust()
	require.EqualError(t, run(t.Context(), []string{"-once", f.path}, io.Discard, f.log), "failed; the log says why")
	require.Contains(t, f.log.String(), `server=host1 step=connect error="the server does not trust this client"`)
	f.requireAll(fingerprint, 0, 2)
	require.Empty(t, f.hosts[1].Fake.Images())
}

// program starts the program as a process.
func (f *fleet) program(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(f.Context(), os.Args[0], append(args, f.path)...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stderr = f.log
	require.NoError(f, cmd.Start())
	return cmd
}

// TestKilled: a program that is killed in the middle of a transfer leaves nothing that
// stops the next one; SIGTERM ends it soon, with what it has begun.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, fakes(t)[:3])
			fingerprint := f.publish(1_000_000)
			stalled := f.hosts[0].Fake.Inject(lxdtest.StallResponse(1000).On("GET", "/1.0/images/*/export"))
			cmd := f.program("-listen", "127.0.0.1:0")
			require.Eventually(t, func() bool { return stalled.Fired() > 0 }, patience, 5*time.Millisecond, "a transfer: %s", f.log)
			metrics := regexp.MustCompile(`url=(\S+)`).FindStringSubmatch(f.log.String())
			require.NotNil(t, metrics, f.log)
			res, err := http.Get(metrics[1])
			require.NoError(t, err)
			defer res.Body.Close()
			text, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			require.Contains(t, string(text), "\n"+`fleet_server_up{server="host2"} 1`+"\n")
			require.Contains(t, string(text), "\n"+`fleet_aliases_in_step{server="host2"} 0`+"\n")

			began := time.Now()
			require.NoError(t, cmd.Process.Signal(signal))
			err = cmd.Wait()
			if signal == syscall.SIGTERM {
				require.NoError(t, err, "%s", f.log)
				require.Less(t, time.Since(began), patience)
				for _, host := range f.hosts {
					require.Empty(t, host.Fake.Tokens())
				}
			}
			stalled.Remove()
			require.NoError(t, run(t.Context(), []string{"-once", f.path}, io.Discard, f.log), "%s", f.log)
			f.requireAll(fingerprint)
		})
	}
}

// TestBadFile: the error names the line, and all that is wrong.
func TestBadFile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want []string
	}{
		{"servers: 7", []string{"line 1", "cannot unmarshal"}},
		{"servers: []\naliases: []\ninterval: -1s", []string{"interval is not positive", "servers is empty", "aliases is empty"}},
		{"servers:\n  - name: a\n    adress: https://a", []string{"line 3", "adress"}},
		{"servers:\n  - name: a\n    url: https://a\n  - name: a\n    url: ftp://b\n  - {}", []string{
			":4: servers a: the name is a duplicate", "ftp", ":6: servers : name is missing", "it needs either remote or url", "aliases is empty",
		}},
		{"servers: [{name: a, url: https://a, client_key: none.key}]", []string{":1: servers a: ", "none.key"}},
		{"servers: [{name: a, remote: no-such-remote}]", []string{":1: servers a: ", "no-such-remote"}},
		{"aliases:\n- name: a\n- name: b\n  source: no-such-remote:b\n- name: c\n  source: ./c\n  keep: -1\n- name: d\n  source: ./d\n  type: disk", []string{
			"servers is empty", ":2: aliases a: source is missing", ":3: aliases b: ", "no-such-remote", ":5: aliases c: ", "Keep", ":8: aliases d: ", "Type",
		}},
	} {
		path := filepath.Join(t.TempDir(), "fleet.yaml")
		require.NoError(t, os.WriteFile(path, []byte(test.text), 0o600))
		err := run(t.Context(), []string{path}, io.Discard, io.Discard)
		require.Error(t, err)
		require.ErrorContains(t, err, path)
		for _, want := range test.want {
			require.ErrorContains(t, err, want)
		}
	}
	require.ErrorContains(t, run(t.Context(), nil, io.Discard, io.Discard), "usage")
	require.ErrorIs(t, run(t.Context(), []string{"missing.yaml"}, io.Discard, io.Discard), os.ErrNotExist)
}

// TestTrustLost: what a server has is not known any more when it does not trust the
// program, and known again when it does.
func TestTrustLost(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fakes(t)[:3])
	first := f.publish(0)
	c, stop := f.start(100*time.Millisecond, patience)
	f.await("the first image", func() bool { return f.allHave(first) })
	require.Eventually(t, func() bool { return inStep(c, c.Servers...) }, patience, 5*time.Millisecond)

	server := f.hosts[1].Fake
	cert, _ := server.ClientCertificate()
	server.Distrust()
	server.Restart()
	f.await("the end of the watch", func() bool {
		return testutil.ToFloat64(c.metrics.failures.WithLabelValues("host1", "watch")) > 0 && c.inStep(c.Servers[1]) == 0
	})
	require.NoError(t, server.Trust("again", cert))
	second := f.publish(0)
	f.await("the second image", func() bool { return f.allHave(second) })
	require.Eventually(t, func() bool { return inStep(c, c.Servers...) }, patience, 5*time.Millisecond)
	stop()
}

// TestSeedFails: another server gets the image of the source if the first one cannot take
// it.
func TestSeedFails(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fakes(t)[:3])
	fingerprint := f.publish(0)
	full := f.hosts[0].Fake.Inject(lxdtest.Status(507, "no space left on device").On("POST", "/1.0/images"))
	c, stop := f.start(time.Hour, patience)
	f.await("the image on the others", func() bool { return f.has(1) == fingerprint && f.has(2) == fingerprint })
	// These are more passes than the changes on the others cause.
	f.await("retries", func() bool {
		return testutil.ToFloat64(c.metrics.failures.WithLabelValues("host0", "distribute")) > 8
	})
	f.requireAll("", 0)
	full.Remove()
	f.await("the image on all", func() bool { return f.allHave(fingerprint) })
	stop()
}

// TestRemotes: servers and sources are also remotes of the command line.
func TestRemotes(t *testing.T) {
	hosts, dir := fakes(t)[:2], t.TempDir()
	t.Setenv("LXD_CONF", dir)
	cert, key := testkit.NewKeyPair(t, nil)
	files := map[string][]byte{"client.crt": cert, "client.key": key}
	remotes := "remotes:\n"
	for n, host := range hosts {
		name := fmt.Sprintf("remote%d", n)
		require.NoError(t, host.Fake.Trust(name, cert))
		files["servercerts/"+name+".crt"] = host.Fake.Certificate()
		remotes += fmt.Sprintf("  %s: {addr: %q, protocol: lxd}\n", name, host.Fake.URL())
	}
	files["config.yml"] = []byte(remotes)
	files["fleet.yaml"] = []byte(`
servers: [{name: a, remote: remote0}, {name: b, remote: remote1}]
aliases: [{name: web, source: "remote0:build"}]
`)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "servercerts"), 0o700))
	for name, data := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	fingerprint, err := hosts[0].Fake.AddImage(testkit.Unified(t, 0), &lxdtest.AddOptions{Aliases: []string{"build"}})
	require.NoError(t, err)
	require.NoError(t, run(t.Context(), []string{"-once", filepath.Join(dir, "fleet.yaml")}, io.Discard, io.Discard))
	require.Equal(t, map[string]string{"build": fingerprint, "web": fingerprint}, hosts[0].Fake.Aliases())
	require.Equal(t, map[string]string{"web": fingerprint}, hosts[1].Fake.Aliases())
}
