package lxd

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestWatchNotesLittle: what a slow loop has not read yet takes little memory, and none of
// it is lost.
func TestWatchNotesLittle(t *testing.T) {
	t.Parallel()
	for name, note := range map[string]func(s *stale, n int){
		"images":  func(s *stale, n int) { s.addImage(imageKey{fingerprint: fmt.Sprint(n)}) },
		"aliases": func(s *stale, n int) { s.addAlias(aliasKey{name: fmt.Sprint(n)}, "") },
		"renamed": func(s *stale, n int) { s.addAlias(aliasKey{name: fmt.Sprint(n)}, fmt.Sprint(n-1)) },
	} {
		var s stale
		for n := range 100 * maxStale {
			note(&s, n)
			require.LessOrEqual(t, len(s.images)+len(s.aliases), maxStale, name)
			require.LessOrEqual(t, len(s.renamed), maxStale, name)
			require.True(t, s.all || len(s.images)+len(s.aliases) > n, name)
		}
		require.True(t, s.all, name)
	}
}

// TestWatchNotes: what is read again after an event.
func TestWatchNotes(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]stale{
		"/1.0/images/aff?project=web": {images: map[imageKey]bool{{"", "aff"}: true}},
		"/1.0/images/aliases/web":     {aliases: map[aliasKey]bool{{"", "web"}: true, {"", "old"}: true}, renamed: map[string]string{"web": "old"}},
		"/1.0/images":                 {all: true},
	} {
		w := watchJob{wake: make(chan struct{}, 1)}
		w.noteLifecycle("web", &Lifecycle{Action: "image-x", Source: source, Context: map[string]any{"old_name": "old"}})
		require.Equal(t, want, w.take(), source)
		require.Equal(t, stale{}, w.take())
	}
}

// TestImageOwn: a copy shares no memory that a caller can change.
func TestImageOwn(t *testing.T) {
	t.Parallel()
	image := &Image{}
	fields := reflect.ValueOf(image).Elem()
	for _, field := range reflect.VisibleFields(fields.Type()) {
		if !field.IsExported() {
			continue
		}
		switch v := fields.FieldByIndex(field.Index); v.Kind() {
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		case reflect.Map:
			v.Set(reflect.MakeMap(v.Type()))
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
		}
	}
	own := image.own()
	require.Equal(t, image, own)
	for _, field := range reflect.VisibleFields(fields.Type()) {
		switch v := fields.FieldByIndex(field.Index); v.Kind() {
		case reflect.Slice, reflect.Map, reflect.Pointer:
			require.True(t, !field.IsExported() || v.UnsafePointer() != reflect.ValueOf(own).Elem().FieldByIndex(field.Index).UnsafePointer(), field.Name)
		}
	}
}

// TestWatchRenames: an alias is renamed only if the image that has it now had it.
func TestWatchRenames(t *testing.T) {
	t.Parallel()
	image := func(fingerprint string, aliases ...string) *Image {
		i := &Image{Fingerprint: fingerprint}
		for _, name := range aliases {
			i.Aliases = append(i.Aliases, Alias{Name: name})
		}
		return i
	}
	for now, want := range map[*Image]AliasChange{
		image("a", "new"): {Name: "new", OldName: "old", From: "a", To: "a"},
		image("b", "new"): {Name: "new", To: "b"},
	} {
		w := &watchJob{synced: true, known: map[imageKey]*Image{{"", "a"}: image("a", "old"), {"", "b"}: image("b")}}
		changes := w.apply(map[imageKey]*Image{{"", "a"}: image("a"), {"", now.Fingerprint}: now}, map[string]string{"new": "old"})
		last := changes[len(changes)-1]
		require.Equal(t, now, last.Image)
		require.Equal(t, []AliasChange{want}, last.Aliases)
	}
}
