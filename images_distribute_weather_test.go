package lxd_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// inMemoryFleet calls play in a bubble, with a source that has an image of this size and
// n targets that are reachable by this client only.
func inMemoryFleet(t *testing.T, n int, size int64, play func(t *testing.T, source *lxdtest.Server, image *lxd.Image, fleet []*lxdtest.Server, targets []*lxd.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var fleet []*lxdtest.Server
		var clients []*lxd.Client
		for range n + 1 {
			server := lxdtest.NewServer(&lxdtest.Options{InMemory: true})
			defer server.Close()
			client, err := lxd.New("unix:///memory", &lxd.Options{Dial: server.DialContext})
			require.NoError(t, err)
			defer func() { require.NoError(t, client.Close()) }()
			fleet, clients = append(fleet, server), append(clients, client)
		}
		fingerprint, err := fleet[0].AddImage(lxdtest.UnifiedImage("fleet", size), nil)
		require.NoError(t, err)
		image, err := clients[0].Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		play(t, fleet[0], image, fleet[1:], clients[1:])
		for _, f := range fleet {
			require.Empty(t, f.Tokens())
		}
	})
}

// TestDistributeDryRunOfManyRelays: more than one relay sends to at once.
func TestDistributeDryRunOfManyRelays(t *testing.T) {
	t.Parallel()
	inMemoryFleet(t, 5, 1000, func(t *testing.T, _ *lxdtest.Server, image *lxd.Image, _ []*lxdtest.Server, targets []*lxd.Client) {
		deliveries, errs := distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{DryRun: true, RelayFanout: 2, Copy: lxd.CopyOptions{Mode: lxd.CopyRelay}})
		for n, d := range deliveries {
			require.NoError(t, errs[n])
			require.Equal(t, lxd.CopyRelay, d.Mode)
		}
	})
}

// TestDistributeDoesNotWaitForTheSilent: servers that accept connections and never
// respond hold nothing.
func TestDistributeDoesNotWaitForTheSilent(t *testing.T) {
	t.Parallel()
	t.Run("targets", func(t *testing.T) {
		inMemoryFleet(t, 40, 1000, func(t *testing.T, _ *lxdtest.Server, image *lxd.Image, fleet []*lxdtest.Server, targets []*lxd.Client) {
			for _, f := range fleet[:35] {
				f.Inject(lxdtest.StallHeaders().On("GET", "/1.0"))
			}
			began, served := time.Now(), 0
			for d, err := range image.Distribute(t.Context(), targets, nil) {
				if d.Index < 35 {
					require.ErrorIs(t, err, lxd.ErrUnavailable)
					continue
				}
				require.NoError(t, err)
				require.Less(t, time.Since(began), 5*time.Second)
				served++
			}
			require.Equal(t, 5, served)
		})
	})
	t.Run("source", func(t *testing.T) {
		inMemoryFleet(t, 1, 1000, func(t *testing.T, source *lxdtest.Server, image *lxd.Image, _ []*lxdtest.Server, targets []*lxd.Client) {
			_, err := image.Copy(t.Context(), targets[0], &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true})
			require.NoError(t, err)
			// Another client, which does not know the server yet.
			client, err := lxd.New("unix:///memory", &lxd.Options{Dial: source.DialContext})
			require.NoError(t, err)
			defer func() { require.NoError(t, client.Close()) }()
			image, err = client.Images.Get(t.Context(), image.Fingerprint)
			require.NoError(t, err)
			source.Inject(lxdtest.StallHeaders().On("GET", "/1.0"))
			began := time.Now()
			_, errs := distribute(t.Context(), t, image, targets, nil)
			require.NoError(t, errs[0])
			require.Less(t, time.Since(began), time.Second, "the target has the image")
		})
	})
	t.Run("source of a relay", func(t *testing.T) {
		inMemoryFleet(t, 2, 2<<20, func(t *testing.T, source *lxdtest.Server, image *lxd.Image, fleet []*lxdtest.Server, targets []*lxd.Client) {
			source.Inject(lxdtest.StallResponse(1<<20).On("GET", testkit.ExportPattern))
			for _, f := range fleet {
				f.Inject(lxdtest.EarlyResponse(100, 403, "no").On("POST", "/1.0/images"))
			}
			began := time.Now()
			_, errs := distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: lxd.CopyRelay}})
			require.ErrorIs(t, errs[0], lxd.ErrForbidden)
			require.ErrorIs(t, errs[1], lxd.ErrForbidden)
			require.Less(t, time.Since(began), 5*time.Second, "nobody reads the source any more")
		})
	})
}

// TestDistributeWaitsForItsSource: a source that is far away is not relayed from, only
// because it takes long to respond.
func TestDistributeWaitsForItsSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fleet := testkit.StartFleet(t, nil, make([]lxdtest.Options, 4)...)
		image := testkit.Upload(t, fleet[0].Client, nil)
		// It knows nothing of the server yet.
		client := testkit.NewClient(t, fleet[0].Endpoint(), &lxd.Options{Dial: fleet[0].DialContext})
		image, err := client.Images.Get(t.Context(), image.Fingerprint)
		require.NoError(t, err)
		late := fleet[0].Inject(lxdtest.Latency(1500*time.Millisecond).On("GET", "/1.0").Times(1))
		deliveries, errs := distribute(t.Context(), t, image, clientsOf(fleet[1:]), nil)
		for n, d := range deliveries {
			require.NoError(t, errs[n])
			require.Equal(t, lxd.CopyPull, d.Mode)
		}
		require.Equal(t, 1, late.Fired())
	})
}

// TestDistributeTellsThatCtxEnded to a target that waits after a transfer that failed.
func TestDistributeTellsThatCtxEnded(t *testing.T) {
	t.Parallel()
	fleet, targets := startFleet(t, 2)
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	image := testkit.Upload(t, source.Client, nil)
	broken := fleet[0].Inject(lxdtest.Status(500, "broken").On("POST", "/1.0/images"))
	later := fleet[1].Inject(lxdtest.StallHeaders().On("GET", "/1.0"))
	stalled := fleet[1].Inject(lxdtest.StallOperations())
	defer stalled.Remove()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		defer cancel()
		assert.Eventually(t, func() bool { return broken.Fired() > 0 }, 30*time.Second, time.Millisecond)
		later.Remove()
		assert.Eventually(t, func() bool { return stalled.Fired() > 0 }, 30*time.Second, time.Millisecond)
	}()
	deliveries, errs := distribute(ctx, t, image, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: lxd.CopyPull}})
	for n, err := range errs {
		require.ErrorIs(t, err, context.Canceled)
		require.NotContains(t, err.Error(), "copied from")
		require.Len(t, deliveries[n].Failed, 1)
	}
	noTokens(t, append(fleet, source)...)
}

// TestDistributeBadTargetsDoNotSpoilSources: the failures of targets do not make the
// sources useless for the others.
func TestDistributeBadTargetsDoNotSpoilSources(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyAuto, lxd.CopyPull} {
		fleet, targets := startFleet(t, 8)
		source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
		image := testkit.Upload(t, source.Client, nil)
		_, err := image.Copy(t.Context(), targets[7], &lxd.CopyOptions{Wait: true})
		require.NoError(t, err)
		for _, f := range fleet[:4] {
			f.Inject(lxdtest.Status(500, "no space left on device").On("POST", "/1.0/images"))
		}
		deliveries, errs := distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: mode}})
		for n, d := range deliveries {
			if n < 4 {
				require.Error(t, errs[n])
				require.LessOrEqual(t, len(d.Failed), 6, "2 sources with 2 modes, 2 relays")
				continue
			}
			require.NoError(t, errs[n])
			if n < 7 {
				require.Equal(t, lxd.CopyPull, d.Mode)
			}
		}
		noTokens(t, append(fleet, source)...)
	}
}

// TestDistributeProgressOfFailures: what a target that fails has received does not count.
func TestDistributeProgressOfFailures(t *testing.T) {
	t.Parallel()
	inMemoryFleet(t, 3, 4<<20, func(t *testing.T, source *lxdtest.Server, image *lxd.Image, fleet []*lxdtest.Server, targets []*lxd.Client) {
		source.Inject(lxdtest.RateLimit(1<<20).On("GET", testkit.ExportPattern))
		fleet[1].Inject(lxdtest.EarlyResponse(3<<20, 403, "no").On("POST", "/1.0/images"))
		var last lxd.DistributeProgress
		var most int64
		_, errs := distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: lxd.CopyRelay}, Progress: func(p lxd.DistributeProgress) {
			require.LessOrEqual(t, p.Bytes, p.TotalBytes)
			last, most = p, max(most, p.TotalBytes)
		}})
		require.ErrorIs(t, errs[1], lxd.ErrForbidden)
		require.Equal(t, 3*image.Size, most)
		require.Equal(t, 2*image.Size, last.Bytes)
		require.Equal(t, last.TotalBytes, last.Bytes)
		require.Equal(t, []int{3, 2, 1}, []int{last.Servers, last.Done, last.Failed})
	})
}

// TestDistributeAgain calls the same iterator twice, also at once.
func TestDistributeAgain(t *testing.T) {
	t.Parallel()
	inMemoryFleet(t, 3, 1000, func(t *testing.T, _ *lxdtest.Server, image *lxd.Image, _ []*lxdtest.Server, targets []*lxd.Client) {
		all := image.Distribute(t.Context(), targets, nil)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				n := 0
				for _, err := range all {
					n++
					require.NoError(t, err)
				}
				require.Equal(t, 3, n)
			})
		}
		wg.Wait()
	})
}

// TestDistributeLoopPanics: a loop whose body panics leaves nothing behind.
func TestDistributeLoopPanics(t *testing.T) {
	t.Parallel()
	inMemoryFleet(t, 3, 1000, func(t *testing.T, _ *lxdtest.Server, image *lxd.Image, _ []*lxdtest.Server, targets []*lxd.Client) {
		require.PanicsWithValue(t, "loop", func() {
			for range image.Distribute(t.Context(), targets, nil) {
				panic("loop")
			}
		})
	})
}

// TestDistributeUsesBadSources if there are no others: two that break for a while.
func TestDistributeUsesBadSources(t *testing.T) {
	t.Parallel()
	fleet, targets := startFleet(t, 7)
	source := testkit.StartFakeWith(t, &lxdtest.Options{TLS: true}, nil)
	image := testkit.Upload(t, source.Client, nil)
	_, err := image.Copy(t.Context(), targets[0], &lxd.CopyOptions{Wait: true})
	require.NoError(t, err)
	for _, f := range []*testkit.Fake{source, fleet[0]} {
		f.Inject(lxdtest.CutResponse(100).On("GET", testkit.ExportPattern).Times(2))
	}
	deliveries, errs := distribute(t.Context(), t, image, targets, &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: lxd.CopyPull}})
	failed := 0
	for n, err := range errs {
		if err != nil {
			failed++
			require.Len(t, deliveries[n].Failed, 2)
		}
	}
	require.LessOrEqual(t, failed, 2, "each source breaks twice")
	noTokens(t, append(fleet, source)...)
}

// TestDistributeIsComplete plays random fleets with random faults: there is one result
// for each target, nothing is left, and a target has the image if there is no error.
func TestDistributeIsComplete(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	for n := range uint64(testkit.Size(t, 12, 300)) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, n))
				defer func() {
					if t.Failed() {
						t.Logf("rand.NewPCG(%d, %d)", seed, n)
					}
				}()
				servers := make([]lxdtest.Options, 2+random.IntN(7))
				for i := range servers {
					servers[i].Dialect = []lxdtest.Dialect{lxdtest.LXD50, lxdtest.Incus60}[i%2]
				}
				fleet := testkit.StartFleet(t, nil, servers...)
				source, targets := fleet[0], clientsOf(fleet[1:])
				image := testkit.Upload(t, source.Client, &lxd.CreateOptions{Aliases: []lxd.Alias{{Name: "web"}}})
				for _, target := range targets {
					if random.IntN(5) == 0 {
						_, err := image.Copy(t.Context(), target, &lxd.CopyOptions{Mode: lxd.CopyRelay, Wait: true})
						require.NoError(t, err)
					}
				}
				var healthy []*testkit.Fake
				for _, f := range fleet {
					faults := []lxdtest.Fault{
						lxdtest.Refuse(), lxdtest.StallHeaders().On("GET", "/1.0"), lxdtest.CutResponse(100).On("GET", testkit.ExportPattern),
						lxdtest.CutRequest(100).On("POST", "/1.0/images"), lxdtest.Status(500, "no").On("POST", "/1.0/images"),
						lxdtest.StallResponse(50).On("GET", testkit.ExportPattern), lxdtest.RestartServer(100).On("POST", "/1.0/images"),
						lxdtest.LoseResponse().On("POST", "/1.0/images"), lxdtest.Unavailable(), lxdtest.DropEvents(), lxdtest.ForgetOperations(),
					}
					if random.IntN(2) == 0 {
						fault := faults[random.IntN(len(faults))]
						if random.IntN(2) == 0 {
							fault = fault.Times(1 + random.IntN(2))
						}
						defer f.Inject(fault).Remove()
					} else {
						healthy = append(healthy, f)
					}
				}
				for range random.IntN(3) {
					targets = append(targets, targets[random.IntN(len(targets))])
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // a server may pull for ever
				if random.IntN(3) == 0 {
					ctx, cancel = context.WithTimeout(t.Context(), time.Duration(random.Int64N(int64(time.Minute))))
				}
				defer cancel()
				modes := []lxd.CopyMode{lxd.CopyAuto, lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay}
				last := lxd.DistributeProgress{}
				deliveries, errs := distribute(ctx, t, image, targets, &lxd.DistributeOptions{
					Fanout: random.IntN(3), RelayFanout: random.IntN(4), DryRun: random.IntN(8) == 0,
					Copy: lxd.CopyOptions{Mode: modes[random.IntN(len(modes))], CopyAliases: true},
					Progress: func(p lxd.DistributeProgress) {
						assert.LessOrEqual(t, p.Bytes, p.TotalBytes)
						assert.GreaterOrEqual(t, p.Bytes, int64(0))
						assert.LessOrEqual(t, p.Done+p.Failed, p.Servers)
						last = p
					},
				})
				require.Equal(t, last.Servers, last.Done+last.Failed)
				require.Equal(t, last.TotalBytes, last.Bytes)
				for i, d := range deliveries {
					if errs[i] == nil {
						require.True(t, d.Image != nil || d.Mode != "")
					}
					require.LessOrEqual(t, len(d.Failed), 6, "2 sources with 2 modes, 2 relays")
				}
				noTokens(t, healthy...)
			})
		})
	}
}

// TestDistributeStalls: a transfer between servers that does not continue holds nobody, and
// is retried from another source.
func TestDistributeStalls(t *testing.T) {
	t.Parallel()
	for _, mode := range []lxd.CopyMode{lxd.CopyAuto, lxd.CopyPull, lxd.CopyPush} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				fleet := testkit.StartFleet(t, nil, make([]lxdtest.Options, 4)...)
				source := fleet[0]
				image := testkit.Upload(t, source.Client, nil)
				if mode == lxd.CopyPush {
					source.Inject(lxdtest.StallOperations().Times(1))
				} else {
					source.Inject(lxdtest.StallResponse(100).On("GET", testkit.ExportPattern).Times(1))
				}
				text := ""
				deliveries, errs := distribute(t.Context(), t, image, clientsOf(fleet[1:]), &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: mode}})
				for n, d := range deliveries {
					require.NoError(t, errs[n])
					require.NotNil(t, d.Image)
					for _, attempt := range d.Failed {
						require.ErrorIs(t, attempt.Err, lxd.ErrUnavailable)
						text += attempt.Err.Error()
					}
				}
				require.Contains(t, text, "no progress")
				noTokens(t, fleet...)
			})
		})
	}
}

func clientsOf(fleet []*testkit.Fake) (clients []*lxd.Client) {
	for _, f := range fleet {
		clients = append(clients, f.Client)
	}
	return clients
}

// TestDistributeStallHoldsNobody: while a transfer makes no progress, its source serves the
// others; it is not cancelled so soon, and completes when it continues.
func TestDistributeStallHoldsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fleet := testkit.StartFleet(t, nil, make([]lxdtest.Options, 4)...)
		image := testkit.Upload(t, fleet[0].Client, nil)
		stalled := fleet[0].Inject(lxdtest.StallResponse(100).On("GET", testkit.ExportPattern).Times(1))
		served := 0
		for d, err := range image.Distribute(t.Context(), clientsOf(fleet[1:]), &lxd.DistributeOptions{Copy: lxd.CopyOptions{Mode: lxd.CopyPull}}) {
			require.NoError(t, err)
			require.Empty(t, d.Failed)
			if served++; served == 2 {
				stalled.Release()
			}
		}
		require.Equal(t, 3, served)
	})
}
