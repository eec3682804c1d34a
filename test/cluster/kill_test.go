package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testdaemon"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// envSeed repeats the random points of an earlier run.
const envSeed = "LXD_TEST_SEED"

// killSize is the size of an image that is transferred while a member is killed.
const killSize = 8 << 20

// memberKill is a transfer during which the member that it uses is killed.
type memberKill struct {
	name string
	// within is how long after the start of the transfer the member is killed at
	// most.
	within time.Duration
	// prepare returns the transfer by a client of all members, and the fingerprint
	// of its image.
	prepare func(t *testing.T, c *lxd.Client, members []*testdaemon.Daemon) (run func(context.Context) error, fingerprint string)
	// errs are the errors that the transfer may return besides nil.
	errs []error
	// exists says that the image exists whatever the transfer returns.
	exists bool
}

// kills are the transfers. Those without errs must survive the death of a member.
var kills = []memberKill{
	{name: "upload", within: 200 * time.Millisecond, errs: []error{lxd.ErrOutcomeUnknown}, prepare: func(t *testing.T, c *lxd.Client, _ []*testdaemon.Daemon) (func(context.Context) error, string) {
		data := testkit.Unified(t, killSize)
		return func(ctx context.Context) error {
			_, err := c.Images.Create(ctx, bytes.NewReader(data), &lxd.CreateOptions{Wait: true})
			return err
		}, lxdtest.Fingerprint(data)
	}},
	{name: "one-shot upload", within: 200 * time.Millisecond, errs: []error{lxd.ErrNotReplayable, lxd.ErrOutcomeUnknown, lxd.ErrUnavailable}, prepare: func(t *testing.T, c *lxd.Client, _ []*testdaemon.Daemon) (func(context.Context) error, string) {
		data := testkit.Unified(t, killSize)
		return func(ctx context.Context) error {
			_, err := c.Images.Create(ctx, testkit.OneShotReader{Reader: bytes.NewReader(data)}, &lxd.CreateOptions{Wait: true})
			return err
		}, lxdtest.Fingerprint(data)
	}},
	{name: "export", within: 150 * time.Millisecond, exists: true, prepare: func(t *testing.T, c *lxd.Client, members []*testdaemon.Daemon) (func(context.Context) error, string) {
		data := testkit.Unified(t, killSize)
		image := uploadToAll(t, c, members, data, lxd.CreateOptions{})
		return func(ctx context.Context) error {
			export, err := image.Export(ctx, nil)
			if err != nil {
				return err
			}
			n, err := io.Copy(slowWriter{}, export)
			if err == nil && n != int64(len(data)) {
				err = fmt.Errorf("success with %d of %d bytes", n, len(data))
			}
			return errors.Join(err, export.Close())
		}, image.Fingerprint
	}},
	{name: "wait", within: 500 * time.Millisecond, errs: []error{lxd.ErrOutcomeUnknown}, prepare: func(t *testing.T, c *lxd.Client, _ []*testdaemon.Daemon) (func(context.Context) error, string) {
		data := testkit.Unified(t, 1<<20)
		image, err := c.Images.CreateFromURL(t.Context(), slowSource(t, data, func() <-chan time.Time { return time.After(20 * time.Millisecond) }), &lxd.CreateFromURLOptions{Via: lxd.ViaServer})
		require.NoError(t, err)
		return image.Wait, lxdtest.Fingerprint(data)
	}},
	{name: "copy", within: 200 * time.Millisecond, errs: []error{lxd.ErrOutcomeUnknown}, prepare: func(t *testing.T, c *lxd.Client, _ []*testdaemon.Daemon) (func(context.Context) error, string) {
		source := testkit.StartFake(t)
		fingerprint, err := source.AddImage(testkit.Unified(t, killSize), nil)
		require.NoError(t, err)
		image, err := source.Client.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		return func(ctx context.Context) error {
			_, err := image.Copy(ctx, c, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true})
			return err
		}, fingerprint
	}},
	{name: "events", within: 200 * time.Millisecond, exists: true, prepare: func(t *testing.T, c *lxd.Client, members []*testdaemon.Daemon) (func(context.Context) error, string) {
		image, err := c.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 1<<10)), &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		// The member must be connected before it is killed.
		events, connected, ended := t.Context(), make(chan struct{}), make(chan error, 1)
		go func() { ended <- eventsAfterBreak(events, c, connected) }()
		<-connected
		other := clientOf(t, members[1])
		return func(ctx context.Context) error {
			changing, cancel := context.WithCancel(ctx)
			changed := make(chan error, 1)
			go func() { changed <- changeUntil(ctx, changing, other, image.Fingerprint) }()
			var err error
			select {
			case err = <-ended:
			case <-ctx.Done():
				err = ctx.Err()
			}
			cancel()
			return errors.Join(err, <-changed)
		}, image.Fingerprint
	}},
	{name: "watch", within: 200 * time.Millisecond, exists: true, prepare: func(t *testing.T, c *lxd.Client, members []*testdaemon.Daemon) (func(context.Context) error, string) {
		image, err := c.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 1<<10)), &lxd.CreateOptions{Wait: true})
		require.NoError(t, err)
		other := clientOf(t, members[1])
		return func(ctx context.Context) error {
			// An alias that another member makes after the death is yielded.
			name, made := testkit.Unique("after"), make(chan error, 1)
			time.AfterFunc(time.Second, func() { made <- makeAlias(ctx, other, name, image.Fingerprint) })
			err := watchFor(ctx, c, name)
			return errors.Join(err, <-made)
		}, image.Fingerprint
	}},
}

// makeAlias makes an alias, however long the members elect a leader.
func makeAlias(ctx context.Context, c *lxd.Client, name, fingerprint string) error {
	for {
		err := c.Aliases.Set(ctx, lxd.Alias{Name: name, Target: fingerprint})
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// watchFor returns when an image has the alias.
func watchFor(ctx context.Context, c *lxd.Client, name string) error {
	for change, err := range c.Images.Watch(ctx, nil) {
		switch {
		case err != nil:
			return err
		case change.Image != nil && slices.ContainsFunc(change.Image.Aliases, func(a lxd.Alias) bool { return a.Name == name }):
			return nil
		}
	}
	return errors.New("the loop ended without an error")
}

// uploadToAll creates an image, and waits until each member has its content, which
// they copy among themselves after the upload. Until then a member forwards an export
// to one that has it. If a member was restarted shortly before, there may be no copy
// for long; the image is then created again. Only the daemons' database tells who has
// the content (LXD 5.0.2, Incus 6.0.4 and 7.0.2).
func uploadToAll(t *testing.T, c *lxd.Client, members []*testdaemon.Daemon, data []byte, opts lxd.CreateOptions) *lxd.Image {
	t.Helper()
	opts.Wait = true
	query := "SELECT node_id FROM images_nodes JOIN images ON images.id = image_id WHERE fingerprint = '" + lxdtest.Fingerprint(data) + "'"
	var failure error
	for began := time.Now(); ; {
		image, err := c.Images.Create(t.Context(), bytes.NewReader(data), &opts)
		require.NoError(t, err)
		for uploaded := time.Now(); time.Since(uploaded) < 5*time.Second; time.Sleep(100 * time.Millisecond) {
			var response struct{ Results []struct{ Rows [][]any } }
			// While the members elect a leader, the response is an error.
			failure = members[0].Do(t.Context(), http.MethodPost, "/internal/sql", map[string]any{"database": "global", "query": query}, &response)
			if failure == nil && len(response.Results) == 1 && len(response.Results[0].Rows) == len(members) {
				return image
			}
		}
		require.Less(t, time.Since(began), 2*time.Minute, "the members do not copy the image: %v", failure)
		require.NoError(t, image.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
	}
}

// changeUntil makes and deletes an alias over and over, until changing ends. It returns
// when there is no such alias.
func changeUntil(ctx, changing context.Context, c *lxd.Client, fingerprint string) error {
	name := testkit.Unique("event")
	for changing.Err() == nil {
		for _, err := range []error{c.Aliases.Create(changing, lxd.Alias{Name: name, Target: fingerprint}), c.Aliases.Delete(changing, name)} {
			if err != nil && changing.Err() == nil && !mayElect(err) {
				return err
			}
		}
	}
	for {
		err := c.Aliases.Delete(ctx, name)
		if err == nil || errors.Is(err, lxd.ErrNotFound) {
			return nil
		}
		if !mayElect(err) || ctx.Err() != nil {
			return err
		}
	}
}

// mayElect reports whether the members may respond so to a change while they elect a
// leader: it fails, or was made before its response was lost among them.
func mayElect(err error) bool {
	var refused *lxd.Error
	return errors.As(err, &refused) && refused.StatusCode >= http.StatusInternalServerError ||
		errors.Is(err, lxd.ErrExists) || errors.Is(err, lxd.ErrNotFound)
}

// eventsAfterBreak returns when the connection has broken and events have come on
// the next one. It closes connected when there is the first one.
func eventsAfterBreak(ctx context.Context, c *lxd.Client, connected chan<- struct{}) error {
	connections, events := 0, 0
	for event, err := range c.Events(ctx, &lxd.EventsOptions{Types: []lxd.EventType{lxd.EventLifecycle}}) {
		switch {
		case err != nil:
			return err
		case event.Type == lxd.EventConnected:
			if connections, events = connections+1, 0; connections == 1 {
				close(connected)
			}
		default:
			events++
		}
		if connections == 2 && events == 3 {
			return nil
		}
	}
	return errors.New("the loop ended without an error")
}

// slowWriter makes an export last.
type slowWriter struct{}

func (slowWriter) Write(p []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	return len(p), nil
}

// memberAway is how long a killed member does not run: longer than the others
// need to elect a leader.
const memberAway = 8 * time.Second

// TestKillMember kills the member that a client of all members uses, at a random
// point of each transfer.
func TestKillMember(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv(envSeed); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, envSeed)
	}
	t.Logf("the seed is %s=%d", envSeed, seed)
	onClusters(t, func(t *testing.T, members []*testdaemon.Daemon) {
		random := rand.New(rand.NewPCG(seed, 0))
		for round := range testkit.Size(t, 1, 10) {
			for _, k := range kills {
				delay := time.Duration(random.Int64N(int64(k.within)))
				t.Run(fmt.Sprintf("%s, round %d", k.name, round), func(t *testing.T) {
					k.play(t, members, delay)
				})
			}
		}
	})
}

func (k *memberKill) play(t *testing.T, members []*testdaemon.Daemon, delay time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	run, fingerprint := k.prepare(t, clientOf(t, members...), members)
	outcome := make(chan error, 1)
	go func() { outcome <- run(ctx) }()
	time.Sleep(delay)
	require.NoError(t, members[0].Kill())
	restarted := make(chan error, 1)
	restart := time.AfterFunc(memberAway, func() { restarted <- members[0].Restart(ctx) })
	defer restart.Stop()
	err := <-outcome
	t.Logf("killed after %v: %v", delay, err)
	require.NoError(t, <-restarted)
	require.NoError(t, ctx.Err(), "it hangs")
	if err != nil {
		require.True(t, k.allows(err), "%T: %v", err, err)
	}
	rest := clientOf(t, members[1], members[2])
	is, ierr := rest.Images.Exists(ctx, fingerprint)
	require.NoError(t, ierr)
	if err == nil || k.exists {
		require.True(t, is, "a success without the image")
	}
	if is {
		image, err := rest.Images.Get(ctx, fingerprint)
		require.NoError(t, err)
		require.NoError(t, image.Delete(ctx, &lxd.DeleteOptions{Wait: true}))
	}
}

func (k *memberKill) allows(err error) bool {
	for _, allowed := range k.errs {
		if errors.Is(err, allowed) {
			return true
		}
	}
	return false
}
