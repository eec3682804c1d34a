package lxd

import (
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/wire"
)

// changed are attributes that differ from the zero value in one field. A new
// field without a case here fails.
func changed(t *testing.T, field string) attributes {
	t.Helper()
	var a attributes
	switch v := reflect.ValueOf(&a).Elem().FieldByName(field); v.Interface().(type) {
	case bool:
		v.SetBool(true)
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000, 0).UTC()))
	case []string:
		v.Set(reflect.ValueOf([]string{"one"}))
	case map[string]string:
		v.Set(reflect.ValueOf(map[string]string{"name": "value"}))
	default:
		require.Fail(t, "no value for the field", field)
	}
	return a
}

// TestAttributesForgetNone changes one field after the other, and sees that each
// function of attributes.go knows it.
func TestAttributesForgetNone(t *testing.T) {
	t.Parallel()
	kind := reflect.TypeFor[attributes]()
	require.Equal(t, kind.NumField(), reflect.TypeFor[wire.ImagePut]().NumField(), "what can be sent, and nothing else")
	for n := range kind.NumField() {
		name := kind.Field(n).Name
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := changed(t, name)
			field := func(v any) any { return reflect.Indirect(reflect.ValueOf(v)).FieldByName(name).Interface() }

			image := &Image{}
			a.set(image)
			require.Equal(t, field(a), field(image), "set")
			require.Equal(t, a, image.attributes())

			require.True(t, a.equal(changed(t, name)))
			require.False(t, a.equal(attributes{}))
			require.NotEqual(t, attributes{}.sum(), a.sum())
			require.Equal(t, a.sum(), a.clone().sum())

			for _, exact := range []bool{false, true} {
				to, differs := a.over(attributes{}, exact)
				require.True(t, differs)
				require.Equal(t, field(a), field(to))
				_, differs = a.over(a.clone(), exact)
				require.False(t, differs)
			}
			to, differs := attributes{}.over(a, false)
			require.False(t, differs, "what is not asked for stays")
			require.Equal(t, a, to)

			require.Equal(t, field(a), field(a.put(attributes{})), "put")
			post := &wire.ImagePost{}
			a.post(post)
			require.Equal(t, field(a), field(post), "post")
		})
	}
}

func TestAttributesAreCloned(t *testing.T) {
	t.Parallel()
	a := attributes{Profiles: []string{"a"}, Properties: map[string]string{"k": "v"}}
	b := a.clone()
	a.Profiles[0], a.Properties["k"] = "other", "other"
	require.Equal(t, attributes{Profiles: []string{"a"}, Properties: map[string]string{"k": "v"}}, b)
}

func TestAttributesPutKeepsAndClears(t *testing.T) {
	t.Parallel()
	is := attributes{ExpiresAt: time.Unix(1_700_000_000, 0), Profiles: []string{"one"}}
	put := attributes{}.put(is)
	require.Equal(t, is.Profiles, put.Profiles, "nil would be the default profile")
	require.EqualValues(t, 0, put.ExpiresAt.Unix(), "the zero time would keep the date")
	require.True(t, attributes{}.put(attributes{}).ExpiresAt.IsZero())
	require.Empty(t, attributes{Profiles: []string{}}.put(is).Profiles)

	to, differs := attributes{Properties: map[string]string{}, Profiles: []string{}}.over(attributes{
		ExpiresAt: is.ExpiresAt, Profiles: is.Profiles, Properties: map[string]string{"k": "v"},
	}, true)
	require.True(t, differs)
	require.Equal(t, attributes{Properties: map[string]string{}, Profiles: []string{}}, to)

	to, differs = attributes{Properties: map[string]string{"b": "2"}, Profiles: []string{"y", "x"}}.over(attributes{
		Profiles: []string{"x", "y"}, Properties: map[string]string{"a": "1"},
	}, false)
	require.True(t, differs)
	require.Equal(t, map[string]string{"a": "1", "b": "2"}, to.Properties)
	require.Equal(t, []string{"x", "y"}, to.Profiles, "their order does not matter")
}
