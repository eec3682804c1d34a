package simplestreams

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"reflect"
	"time"
)

// mirrorPath is the file with the state of mirrors.
const mirrorPath = "streams/v1/golxd.mirror.json"

// maxMirrorStates is how many states are kept: one for each set of upstreams and selections that a tree mirrors.
const maxMirrorStates = 32

// mirrorStates are the states by the hash of the upstreams and selections.
type mirrorStates map[string]*mirrorState

// mirrorState is what the upstreams and the tree were after a Mirror without failures.
type mirrorState struct {
	Saved     time.Time          `json:"saved"`
	Index     string             `json:"index"` // the hash of the tree's index
	Upstreams []upstreamMetadata `json:"upstreams"`
	Kept      int                `json:"kept"`
}

// key returns the key of the state of this mirror.
func (m *mirror) key() (string, error) {
	type upstream struct {
		URL, DaemonVersion string
		Family             Family
		Verified           bool
		Select             []Selection
	}
	key := struct {
		AllFormats bool
		Upstreams  []upstream
	}{AllFormats: m.options.AllFormats}
	for _, u := range m.upstreams {
		key.Upstreams = append(key.Upstreams, upstream{
			u.url(), u.client.options.DaemonVersion, u.client.options.Family, u.client.options.Verifier != nil, u.selections,
		})
	}
	text, err := json.Marshal(key)
	sum := sha256.Sum256(text)

	return hex.EncodeToString(sum[:16]), err
}

func (t *Tree) loadMirrorStates(ctx context.Context) (states mirrorStates, tag string, err error) {
	content, tag, err := t.store.Load(ctx, mirrorPath)
	if errors.Is(err, fs.ErrNotExist) {
		return mirrorStates{}, "", nil
	}
	if err != nil {
		return nil, "", treeError(mirrorPath, err)
	}
	if json.Unmarshal(content, &states) != nil || states == nil {
		states = mirrorStates{} // It only saves time.
	}
	maps.DeleteFunc(states, func(_ string, state *mirrorState) bool { return state == nil })

	return states, tag, nil
}

// loadState returns the state that this mirror has saved, or nil if there is none, or somebody else has changed the tree
// since.
func (m *mirror) loadState(ctx context.Context) (*mirrorState, error) {
	key, err := m.key()
	if err != nil {
		return nil, err
	}
	states, _, err := m.tree.loadMirrorStates(ctx)
	if err != nil {
		return nil, err
	}
	state := states[key]
	if state == nil || len(state.Upstreams) != len(m.upstreams) {
		return nil, nil
	}
	index, err := m.tree.loadIndex(ctx)
	if err != nil || index.hash != state.Index {
		return nil, err
	}

	return state, nil
}

// saveState saves the state after a mirror without failures.
func (m *mirror) saveState(ctx context.Context, report *MirrorReport) error {
	key, err := m.key()
	if err != nil {
		return err
	}
	index, err := m.tree.loadIndex(ctx)
	if err != nil {
		return err
	}
	state := &mirrorState{Saved: m.tree.now(), Index: index.hash, Kept: report.Kept + len(report.Added)}
	for _, u := range m.upstreams {
		state.Upstreams = append(state.Upstreams, u.metadata)
	}

	return again(ctx, func() error {
		states, tag, err := m.tree.loadMirrorStates(ctx)
		if err != nil {
			return err
		}
		if known := states[key]; known != nil {
			same := *known
			same.Saved = state.Saved
			if reflect.DeepEqual(&same, state) {
				return nil
			}
		}
		states[key] = state
		for len(states) > maxMirrorStates {
			oldest := key
			for k := range states {
				if states[k].Saved.Before(states[oldest].Saved) {
					oldest = k
				}
			}
			delete(states, oldest)
		}
		content, err := json.Marshal(states)
		if err != nil {
			return err
		}
		if err := m.tree.store.Swap(ctx, mirrorPath, content, tag); err != nil {
			return treeError(mirrorPath, err)
		}

		return nil
	})
}
