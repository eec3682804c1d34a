package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
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

// start starts a controller, which stop stops.
func (f *fleet) start(interval time.Duration) (c *controller, stop func()) {
	conf, err := load(f.path)
	require.NoError(f, err)
	conf.Interval = interval
	c = newController(conf, slog.New(slog.NewTextHandler(f.log, nil)))
	c.settle, c.pause, c.longest, c.patience = 10*time.Millisecond, 20*time.Millisecond, 200*time.Millisecond, 2*time.Second
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

			// Nothing is there: all is brought.
			c, stop := f.start(50 * time.Millisecond)
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
			require.Equal(t, 3*float64(len(f.hosts)-1), transfers, "the first server has the images of the source, the others one transfer each")
			require.Greater(t, testutil.ToFloat64(c.metrics.bytes.WithLabelValues("host1")), 100_000.0)
			require.InDelta(t, time.Now().Unix(), testutil.ToFloat64(c.metrics.lastSuccess.WithLabelValues(f.alias)), 60)
			require.NotContains(t, f.log.String(), "level=ERROR")

			// What somebody else changes is repaired, long before the sources are asked again.
			c, stop = f.start(time.Hour)
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
			other := testkit.Upload(t, f.client[1], nil)
			require.NoError(t, f.move(1, other))
			require.Equal(t, fmt.Sprintf("host1: move alias %q from image %.12s to image %.12s\n", f.alias, other.Fingerprint, third), f.plan())
			require.Equal(t, other.Fingerprint, f.has(1))

			// One pass, as cron would make it.
			require.NoError(t, run(t.Context(), []string{"-once", f.path}, io.Discard, f.log))
			f.requireAll(third)
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
