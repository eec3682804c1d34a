package lxd_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// startFleet starts n servers that can connect to each other.
func startFleet(t *testing.T, n int, dialects ...lxdtest.Dialect) (fleet []*testkit.Fake, targets []*lxd.Client) {
	t.Helper()
	if len(dialects) == 0 {
		dialects = []lxdtest.Dialect{lxdtest.LXD50}
	}
	for i := range n {
		f := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true, Dialect: dialects[i%len(dialects)]}, nil)
		fleet, targets = append(fleet, f), append(targets, f.Client)
	}
	return fleet, targets
}

// distribute returns the deliveries and errors by the index of the target.
func distribute(ctx context.Context, t *testing.T, image *lxd.Image, targets []*lxd.Client, opts *lxd.DistributeOptions) ([]lxd.Delivery, []error) {
	t.Helper()
	deliveries, errs := make([]lxd.Delivery, len(targets)), make([]error, len(targets))
	seen := make([]bool, len(targets))
	for d, err := range image.Distribute(ctx, targets, opts) {
		require.Same(t, targets[d.Index], d.Target)
		require.False(t, seen[d.Index], "a second result for target %d", d.Index)
		seen[d.Index], deliveries[d.Index], errs[d.Index] = true, d, err
	}
	require.NotContains(t, seen, false)
	return deliveries, errs
}

// noTokens requires that no token is left.
func noTokens(t *testing.T, fleet ...*testkit.Fake) {
	t.Helper()
	for n, f := range fleet {
		require.Empty(t, f.Tokens(), "server %d", n)
	}
}

func exports(f *testkit.Fake) int {
	n := 0
	for _, r := range f.Requests() {
		if r.Method == http.MethodGet && strings.HasSuffix(r.Path, "/export") {
			n++
		}
	}
	return n
}

func TestDistribute(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyAuto, lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay} {
		t.Run("mode "+string(mode), func(t *testing.T) {
			t.Parallel()
			fleet, targets := startFleet(t, 8)
			source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
			image := testkit.Upload(t, source.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web"}}, Properties: map[string]string{"os": "x"}})
			source.ForgetRequests()
			opts := &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: mode, CopyAliases: true}}
			deliveries, errs := distribute(t.Context(), t, image, targets, opts)
			sources := map[*lxd.Client]int{}
			for n, d := range deliveries {
				require.NoError(t, errs[n])
				require.Equal(t, image.Properties, d.Image.Properties)
				require.Equal(t, "web", d.Image.Aliases[0].Name)
				require.Same(t, d.Target, d.Image.Client())
				require.Equal(t, image.Size, d.Bytes)
				require.Positive(t, d.Took)
				require.Empty(t, d.Failed)
				sources[d.Source]++
				if mode == lxd.CopyAuto {
					require.Equal(t, lxd.CopyPull, d.Mode)
				} else {
					require.Equal(t, mode, d.Mode)
				}
			}
			if mode == lxd.CopyRelay {
				require.Equal(t, 1, exports(source), "read once")
				require.Equal(t, map[*lxd.Client]int{source.Client: 8}, sources)
			} else {
				require.Less(t, sources[source.Client], 8, "the others send, too")
				require.Greater(t, len(sources), 2)
			}
			noTokens(t, append(fleet, source)...)

			deliveries, errs = distribute(t.Context(), t, image, targets, opts)
			for n, d := range deliveries {
				require.NoError(t, errs[n])
				require.Empty(t, d.Mode)
				require.Nil(t, d.Source)
				require.Zero(t, d.Bytes)
				require.NotNil(t, d.Image)
			}
		})
	}
}

// TestDistributeMixesWays between servers of which some cannot connect to others.
func TestDistributeMixesWays(t *testing.T) {
	t.Parallel()
	fleet, targets := startFleet(t, 6, lxdtest.LXD50, lxdtest.Incus60)
	local := testkit.StartFake(t) // cannot be pulled from or pushed to
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	image := testkit.Upload(t, source.Client, nil)
	deliveries, errs := distribute(t.Context(), t, image, append(targets, local.Client, source.Client), nil)
	for n, d := range deliveries {
		require.NoError(t, errs[n])
		require.NotNil(t, d.Image)
	}
	require.Empty(t, deliveries[7].Mode, "it has it")
	noTokens(t, append(fleet, source, local)...)
}

func TestDistributeRefuses(t *testing.T) {
	t.Parallel()
	source := testkit.StartFake(t)
	image := testkit.Upload(t, source.Client, nil)
	source.ForgetRequests()
	yes := true
	for name, test := range map[string]struct {
		targets []*lxd.Client
		opts    *lxd.DistributeOptions
		says    string
	}{
		"nil target":     {[]*lxd.Client{source.Client, nil}, nil, "targets[1]"},
		"zero target":    {[]*lxd.Client{{}}, nil, "targets[0]"},
		"mode":           {nil, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: "tree"}}, "CopyOptions.Mode"},
		"progress":       {nil, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Progress: func(lxd.Progress) {}}}, "DistributeOptions.Copy.Progress"},
		"auto-update":    {nil, &lxd.DistributeOptions{Copy: lxd.CopyOptions{AutoUpdate: &yes}}, "DistributeOptions.Copy.AutoUpdate"},
		"fanout":         {nil, &lxd.DistributeOptions{Fanout: -1}, "DistributeOptions.Fanout"},
		"relay's fanout": {nil, &lxd.DistributeOptions{RelayFanout: -1}, "DistributeOptions.RelayFanout"},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			for d, err := range image.Distribute(t.Context(), test.targets, test.opts) {
				calls++
				require.Zero(t, d)
				require.ErrorIs(t, err, lxd.ErrInvalid)
				require.ErrorContains(t, err, test.says)
			}
			require.Equal(t, 1, calls)
		})
	}
	for range image.Distribute(t.Context(), nil, nil) {
		t.Fatal("there is no target")
	}
	require.Empty(t, source.Requests())
}

// TestDistributeFailures gives each target a reason of its own to fail; the others get
// the image.
func TestDistributeFailures(t *testing.T) {
	t.Parallel()
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	image := testkit.Upload(t, source.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web"}}})
	fleet, targets := startFleet(t, 6)
	cert, key := fleet[0].ClientCertificate()
	down := testkit.NewClient(t, "https://127.0.0.1:1", &lxd.Options{ClientCertificate: cert, ClientKey: key, ServerCertificate: fleet[0].Certificate(), RetryTimeout: time.Millisecond})
	testkit.Upload(t, fleet[1].Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web"}}})
	full := fleet[2].Inject(lxdtest.FailImages("write: no space left on device"))
	targets = []*lxd.Client{
		down, targets[1], targets[2], targets[3].InProject("missing"), targets[4], targets[4], targets[5], source.Client,
	}
	deliveries, errs := distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{CopyAliases: true}})
	require.ErrorIs(t, errs[0], lxd.ErrUnavailable)
	require.ErrorIs(t, errs[1], lxd.ErrExists)
	require.ErrorContains(t, errs[2], "no space left on device")
	require.NotEmpty(t, deliveries[2].Failed)
	require.Positive(t, full.Fired())
	require.ErrorIs(t, errs[3], lxd.ErrProjectNotFound)
	for _, n := range []int{0, 1, 2, 3} {
		require.Nil(t, deliveries[n].Image)
	}
	for _, n := range []int{4, 5, 6, 7} {
		require.NoError(t, errs[n])
		require.NotNil(t, deliveries[n].Image)
	}
	served, same := deliveries[4], deliveries[5]
	if served.SameAs != nil { // the other one had a response first
		served, same = same, served
	}
	require.Nil(t, served.SameAs)
	require.Same(t, served.Target, same.SameAs)
	require.Same(t, served.Image, same.Image)
	require.Equal(t, image.Size, served.Bytes)
	require.Zero(t, same.Bytes)
	require.Empty(t, deliveries[7].Mode)
	noTokens(t, append(fleet, source)...)

	full.Remove()
	deliveries, errs = distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{CopyAliases: true, ReuseAliases: true}})
	require.NoError(t, errors.Join(errs[1], errs[2]))
	require.NotEmpty(t, deliveries[2].Mode)
	require.Empty(t, deliveries[4].Mode)
}

func TestDistributeDryRun(t *testing.T) {
	t.Parallel()
	fleet, targets := startFleet(t, 4)
	image := testkit.Upload(t, fleet[0].Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web"}}})
	other := testkit.Upload(t, fleet[1].Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web"}}})
	for _, f := range fleet {
		f.ForgetRequests()
	}
	for _, mode := range []lxd.CopyMode{lxd.CopyAuto, lxd.CopyRelay} {
		deliveries, errs := distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{DryRun: true, Copy: lxd.CopyOptions{Mode: mode, CopyAliases: true}})
		require.NoError(t, errs[0])
		require.Empty(t, deliveries[0].Mode)
		require.NotNil(t, deliveries[0].Image)
		require.ErrorIs(t, errs[1], lxd.ErrExists)
		for _, n := range []int{2, 3} {
			require.NoError(t, errs[n])
			require.NotEmpty(t, deliveries[n].Mode)
			require.Same(t, fleet[0].Client, deliveries[n].Source)
			require.Nil(t, deliveries[n].Image)
		}
	}
	for _, f := range fleet {
		require.Empty(t, changesAt(f))
	}
	require.NotNil(t, other)
}

// TestDistributeDryRunIsTrue: what the servers rule out themselves is not planned.
func TestDistributeDryRunIsTrue(t *testing.T) {
	t.Parallel()
	_, targets := startFleet(t, 2, lxdtest.LXD50, lxdtest.Incus60)
	for _, listens := range []bool{true, false} {
		source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: listens}, nil)
		image := testkit.Upload(t, source.Client, nil)
		for mode, want := range map[lxd.CopyMode][2]lxd.CopyMode{
			lxd.CopyAuto:  {lxd.CopyPush, lxd.CopyRelay},
			lxd.CopyPull:  {"", ""},
			lxd.CopyPush:  {lxd.CopyPush, ""},
			lxd.CopyRelay: {lxd.CopyRelay, lxd.CopyRelay},
		} {
			if listens && (mode == lxd.CopyAuto || mode == lxd.CopyPull) {
				want = [2]lxd.CopyMode{lxd.CopyPull, lxd.CopyPull}
			}
			opts := &lxd.DistributeOptions{DryRun: true, Copy: lxd.CopyOptions{Mode: mode}}
			planned, perrs := distribute(t.Context(), t, image, targets, opts)
			for n := range targets {
				require.Equal(t, want[n], planned[n].Mode, "%q listens %t", mode, listens)
				require.Nil(t, planned[n].Image)
				require.Equal(t, want[n] == "", perrs[n] != nil)
				if perrs[n] != nil {
					require.ErrorIs(t, perrs[n], lxd.ErrUnsupported)
					require.NotEmpty(t, planned[n].Failed)
				}
			}
		}
	}
}

func TestDistributeChecksArchitecture(t *testing.T) {
	t.Parallel()
	fleet, targets := startFleet(t, 2)
	arm := bytes.ReplaceAll(testkit.Unified(t, 0), []byte("x86_64"), []byte("armv7l"))
	image, err := fleet[0].Client.Images.Create(t.Context(), bytes.NewReader(arm), &lxd.CreateOptions{Wait: true})
	require.NoError(t, err)
	require.Equal(t, "armv7l", image.Architecture)
	_, errs := distribute(t.Context(), t, image, targets[1:], nil)
	require.ErrorIs(t, errs[0], lxd.ErrUnsupported)
	require.ErrorContains(t, errs[0], "armv7l")
	_, errs = distribute(t.Context(), t, image, targets[1:], &lxd.DistributeOptions{AnyArchitecture: true})
	require.NoError(t, errs[0])
}

// TestDistributeSourceDies while it sends: the others take it from each other.
func TestDistributeSourceDies(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyAuto, lxd.CopyPull, lxd.CopyRelay} {
		fleet, targets := startFleet(t, 5)
		source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, &lxd.Options{RetryTimeout: 100 * time.Millisecond})
		image := testkit.Upload(t, source.Client, nil)
		// One server has the image already.
		_, err := image.Copy(t.Context(), targets[0], &lxd.CopyOptions{Wait: true})
		require.NoError(t, err)
		source.Inject(lxdtest.CutResponse(100).On("GET", testkit.ExportPattern))
		deliveries, errs := distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: mode}})
		for n, d := range deliveries {
			require.NoError(t, errs[n], "%s %d", mode, n)
			require.NotNil(t, d.Image)
			if n > 0 && mode != lxd.CopyAuto {
				require.NotSame(t, source.Client, d.Source)
			}
		}
		noTokens(t, append(fleet, source)...)
	}
}

// TestDistributeEnds when ctx ends, or the loop is left, in the middle.
func TestDistributeEnds(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyAuto, lxd.CopyPush, lxd.CopyRelay} {
		for _, leave := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				fleet := testkit.StartFleet(t, nil, make([]lxdtest.Options, 5)...)
				source, targets := fleet[0], clientsOf(fleet[1:])
				image := testkit.Upload(t, source.Client, nil)
				_, err := image.Copy(t.Context(), targets[0], &lxd.CopyOptions{Wait: true})
				require.NoError(t, err)
				stalled := source.Inject(lxdtest.StallResponse(100).On("GET", testkit.ExportPattern))
				for _, f := range fleet[1:] {
					f.Inject(lxdtest.StallOperations())
				}
				ctx, cancel := context.WithCancel(t.Context())
				results := 0
				var began time.Time
				for d, err := range image.Distribute(ctx, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: mode}}) {
					results++
					if d.Index == 0 { // it had the image
						require.NoError(t, err)
						began = time.Now()
						if leave {
							break
						}
						cancel()
						continue
					}
					require.ErrorIs(t, err, context.Canceled, "%s %s", mode, d)
				}
				require.Less(t, time.Since(began), 5*time.Second) // not a stall's timeout
				if !leave {
					require.Equal(t, 4, results)
				}
				cancel()
				stalled.Remove()
				noTokens(t, fleet...)
			})
		}
	}
}

func TestDistributeProgress(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyAuto, lxd.CopyRelay} {
		fleet, targets := startFleet(t, 4)
		image := testkit.Upload(t, fleet[0].Client, nil)
		var last lxd.DistributeProgress
		var running atomic.Int32
		_, errs := distribute(t.Context(), t, image, append(slices.Clone(targets), targets[1]), &lxd.DistributeOptions{
			Copy: lxd.CopyOptions{Mode: mode}, Progress: func(p lxd.DistributeProgress) {
				require.EqualValues(t, 1, running.Add(1))
				defer running.Add(-1)
				require.GreaterOrEqual(t, p.Bytes, last.Bytes)
				require.LessOrEqual(t, p.Bytes, p.TotalBytes)
				require.NotNil(t, p.Target)
				last = p
			},
		})
		require.NoError(t, errors.Join(errs...))
		require.Equal(t, 4, last.Servers)
		require.Equal(t, 4, last.Done)
		require.Zero(t, last.Failed)
		require.Equal(t, 3*image.Size, last.Bytes)
		require.Equal(t, last.TotalBytes, last.Bytes)
	}
}

// TestDistributeAmongAll brings an image to all kinds of servers at once: those of
// lxdtest, and, if the environment names them, the real daemons.
func TestDistributeAmongAll(t *testing.T) {
	testkit.Parallel(t)
	subjects := testkit.Subjects(t)
	for _, realOnes := range []bool{false, true} {
		var targets []*lxd.Client
		for _, s := range subjects {
			if (s.Real != nil) == realOnes {
				targets = append(targets, s.TLSClient(t), s.Client(t), s.Twin.Client(t)) // two ways to the first
			}
		}
		if len(targets) == 0 {
			continue
		}
		for _, mode := range []lxd.CopyMode{lxd.CopyAuto, lxd.CopyPull, lxd.CopyRelay} {
			for _, split := range []bool{false, true} {
				image := testkit.CopySource(t, targets[0], split)
				deliveries, errs := distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: mode, CopyAliases: true}})
				for n, d := range deliveries {
					require.NoError(t, errs[n], "%s to %s", mode, targets[n].Endpoint())
					testkit.DeleteAfter(t, d.Image)
					testkit.RequireCopy(t, image, &lxd.Copied{Image: d.Image, Mode: d.Mode})
					switch {
					case n < 2:
						require.Empty(t, d.Mode, "the source")
					case n%3 != 2:
						require.True(t, d.SameAs == targets[n/3*3] || d.SameAs == targets[n/3*3+1] || d.SameAs == nil)
					default:
						require.Nil(t, d.SameAs)
						require.NotEmpty(t, d.Mode)
					}
				}
				for n := 0; n < len(targets); n += 3 {
					require.NotEqual(t, deliveries[n].SameAs == nil, deliveries[n+1].SameAs == nil)
				}
			}
		}
	}
	for _, s := range subjects {
		testkit.RequireNoTokens(t, s)
		testkit.RequireNoTokens(t, s.Twin)
	}
}

// TestRelayLeavesOneBehind: a target that reads nothing for a while does not hold the
// others, and gets the image in the end.
func TestRelayLeavesOneBehind(t *testing.T) {
	t.Parallel()
	for _, split := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			fleet := testkit.StartFleet(t, nil, make([]lxdtest.Options, 4)...)
			source, targets := fleet[0], clientsOf(fleet[1:])
			const size = 24 << 20 // more than the window
			add := func() (string, error) { return source.AddImage(lxdtest.UnifiedImage("behind", size), nil) }
			if split {
				add = func() (string, error) {
					metadata, rootfs := lxdtest.SplitImage("behind", size)
					return source.AddImage(metadata, &lxdtest.AddOptions{Rootfs: rootfs})
				}
			}
			fingerprint, err := add()
			require.NoError(t, err)
			image, err := source.Client.Images.Get(t.Context(), fingerprint)
			require.NoError(t, err)
			source.ForgetRequests()
			stalled := fleet[2].Inject(lxdtest.StallRequest(100_000).On("POST", "/1.0/images").Times(1))
			served := 0
			for d, err := range image.Distribute(t.Context(), targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: lxd.CopyRelay}}) {
				require.NoError(t, err)
				require.Equal(t, image.Fingerprint, d.Image.Fingerprint)
				if served++; served == 2 {
					stalled.Release()
				}
				require.Equal(t, served == 3, d.Index == 1)
			}
			require.Equal(t, 3, served)
			require.Equal(t, 2, exports(source))
			noTokens(t, fleet...)
		})
	}
}
