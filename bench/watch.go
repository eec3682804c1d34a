package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

const (
	watchedImages  = 100_000
	watchedSeconds = 5
	changers       = 8  // concurrent requests that change images
	changedImages  = 64 // a multiple of changers
)

// watch measures Images.Watch, and returns the section of the report.
func (b *bench) watch(ctx context.Context) (string, error) {
	var w strings.Builder
	plain, set, err := b.watchMemory(ctx)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&w, `
### Watch

Of %d watched images, each takes %d bytes of live heap, and with an ImageSet %d. They have one alias and eight properties.

%d images are changed in turn by %d concurrent requests; the lag is the time from the response to a change until Watch
yields the image with it. Watch reads an image once for several changes in short succession. All processes share the
machine; lxdtest is in the process that watches. Measured on %s; the load before, by other work, was
%s. A server that is overloaded responds late to Watch, too.

| server | changes per second wanted | made | yielded | lag median | lag 99 %% | longest lag |
|---|---|---|---|---|---|---|
`, watchedImages, plain, set, changedImages, changers, time.Now().UTC().Format("2 January 2006"), contentOf("/proc/loadavg"))
	fake := lxdtest.NewServer(nil)
	defer fake.Close()
	for _, s := range []struct{ name, url string }{{"lxdtest", fake.Endpoint()}, {"LXD, unix socket", unixEndpoint(b.source).URL}} {
		c, err := lxd.New(s.url, nil)
		if err != nil {
			return "", err
		}
		for _, rate := range []int{10, 100, 1000} {
			l, err := watchLag(ctx, c, rate)
			if err != nil {
				return "", errors.Join(err, c.Close())
			}
			at := func(percent int) string { return seconds(l.lags[(len(l.lags)-1)*percent/100]) }
			fmt.Fprintf(&w, "| %s | %d | %.0f | %.0f | %s | %s | %s |\n", s.name, rate, l.made, l.yielded, at(50), at(99), at(100))
		}
		if err := c.Close(); err != nil {
			return "", err
		}
	}
	return w.String(), nil
}

// watchMemory returns the bytes of live heap of a watched image, and of one that an
// ImageSet has, too.
func (b *bench) watchMemory(ctx context.Context) (plain, set uint64, err error) {
	socket := filepath.Join(b.dir, "watch.socket")
	stop, _, err := b.startImageServer(ctx, watchedImages, socket)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	c, err := lxd.New(socket, nil)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if plain, err = watchedBytes(ctx, c, func(lxd.ImageChange) {}); err != nil {
		return 0, 0, err
	}
	var images lxd.ImageSet
	set, err = watchedBytes(ctx, c, images.Apply)
	if found := len(images.Find(nil)); err == nil && found != watchedImages {
		err = fmt.Errorf("the set has %d images", found)
	}
	return plain, set, err
}

// watchedBytes returns the bytes of live heap of each image when all have been yielded.
func watchedBytes(ctx context.Context, c *lxd.Client, apply func(lxd.ImageChange)) (uint64, error) {
	live := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	for change, err := range c.Images.Watch(ctx, nil) {
		if err != nil {
			return 0, err
		}
		if apply(change); change.Kind == lxd.ImagesSynced {
			return (live() - before) / watchedImages, nil
		}
	}
	return 0, errors.New("the loop ended")
}

// changedImage is an image that watchLag changes.
type changedImage struct {
	fingerprint string
	made        []time.Time // of the response to each change; zero before
	yielded     int         // how many of the changes have been yielded
}

// lag is the result of watchLag.
type lag struct {
	lags          []time.Duration // sorted
	made, yielded float64         // per second
}

// watchedProperty has the number of the change that an image has had.
const watchedProperty = "watched"

// watchLag changes images rate times a second, and watches them.
func watchLag(ctx context.Context, c *lxd.Client, rate int) (*lag, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	images := map[string]*changedImage{}
	var list []*changedImage
	for n := range changedImages {
		image, err := c.Images.Create(ctx, bytes.NewReader(lxdtest.UnifiedImage(fmt.Sprintf("watch-%d", n), 0)), &lxd.CreateOptions{
			Properties: map[string]string{watchedProperty: "0"}, Wait: true,
		})
		if err != nil {
			return nil, err
		}
		changed := &changedImage{fingerprint: image.Fingerprint}
		images[image.Fingerprint], list = changed, append(list, changed)
	}
	var mu sync.Mutex // of images
	change := func(i *changedImage) error {
		mu.Lock()
		i.made = append(i.made, time.Time{})
		number := len(i.made)
		mu.Unlock()
		body := map[string]any{"properties": map[string]string{watchedProperty: strconv.Itoa(number)}}
		_, err := c.Do(ctx, http.MethodPatch, "/1.0/images/"+i.fingerprint, body, nil)
		mu.Lock()
		i.made[number-1] = time.Now()
		mu.Unlock()
		return err
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel(nil)
	l, yields, began := &lag{}, 0, time.Now()
	total := watchedSeconds * rate / changers * changers
	for event, err := range c.Images.Watch(ctx, nil) {
		switch {
		case err != nil:
			return nil, errors.Join(err, context.Cause(ctx))
		case event.Kind == lxd.ImagesSynced:
			began = time.Now()
			for w := range changers {
				workers.Go(func() {
					ticker := time.NewTicker(time.Second * changers / time.Duration(rate))
					defer ticker.Stop()
					for n := range total / changers {
						<-ticker.C
						if err := change(list[(n*changers+w)%changedImages]); err != nil {
							cancel(err)
							return
						}
					}
				})
			}
		case event.Kind == lxd.ImageChanged && images[event.Image.Fingerprint] != nil:
			now, i := time.Now(), images[event.Image.Fingerprint]
			number, err := strconv.Atoi(event.Image.Properties[watchedProperty])
			if err != nil {
				return nil, err
			}
			yields++
			mu.Lock()
			for ; i.yielded < number; i.yielded++ {
				late := time.Duration(0)
				if made := i.made[i.yielded]; !made.IsZero() {
					late = now.Sub(made)
				}
				l.lags = append(l.lags, late)
			}
			mu.Unlock()
		}
		if len(l.lags) == total {
			break
		}
	}
	took := time.Since(began).Seconds()
	slices.Sort(l.lags)
	l.made, l.yielded = float64(total)/took, float64(yields)/took
	return l, nil
}
