package lxd

import (
	"slices"
	"sync"

	"github.com/golxd/lxd/internal/redact"
)

// recentSecrets are the secrets of the latest requests that started an operation:
// events report the operation too, and must not contain them.
type recentSecrets struct {
	mu     sync.Mutex
	latest []*redact.Secrets
	all    *redact.Secrets
}

// maxRecentSecrets is the number of requests whose secrets are kept.
const maxRecentSecrets = 64

func (r *recentSecrets) add(secrets *redact.Secrets) {
	if secrets == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.latest = append(r.latest, secrets); len(r.latest) > maxRecentSecrets {
		r.latest = slices.Delete(r.latest, 0, 1)
	}
	r.all = redact.Join(r.latest...)
}

func (r *recentSecrets) joined() *redact.Secrets {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all
}

// recentTokens are the IDs of the latest tokens that a client has received, so
// that none of them is mistaken for one whose response was lost.
type recentTokens struct {
	mu   sync.Mutex
	ids  [256]string
	next int
}

func (r *recentTokens) add(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids[r.next] = id
	r.next = (r.next + 1) % len(r.ids)
}

func (r *recentTokens) has(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.ids[:], id)
}
