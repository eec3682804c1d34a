package lxd

import (
	"context"
	"sync"
)

// keyLocks has a lock for each key that is in use. The wait for one ends with a
// context.
type keyLocks struct {
	mu   sync.Mutex
	used map[string]*keyLock
}

type keyLock struct {
	turn  chan struct{}
	users int // that have the lock or wait for it
}

// lock waits for the lock of a key. The error is that of ctx.
func (l *keyLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	k := l.used[key]
	if k == nil {
		k = &keyLock{turn: make(chan struct{}, 1)}
		if l.used == nil {
			l.used = map[string]*keyLock{}
		}
		l.used[key] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.used, key)
		}
	}
	select {
	case k.turn <- struct{}{}:
		return func() { <-k.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
