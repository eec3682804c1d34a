package lxd_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

// TestZeroValuesAndNilContexts calls each exported method of the types that send
// requests: on a zero value, on a nil pointer, and with a nil context. None panics,
// and those that return an error return an InputError.
func TestZeroValuesAndNilContexts(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	image := testkit.Upload(t, f.Client, nil)
	made, err := f.Client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), nil)
	require.NoError(t, err)
	require.NoError(t, made.Wait(t.Context()))
	secret, err := image.Secret(t.Context())
	require.NoError(t, err)
	for _, test := range []struct{ zero, null, whole any }{
		{&lxd.Client{}, nil, f.Client},
		{&lxd.Images{}, (*lxd.Images)(nil), f.Client.Images},
		{&lxd.Aliases{}, (*lxd.Aliases)(nil), f.Client.Aliases},
		{&lxd.Registries{}, (*lxd.Registries)(nil), f.Client.Registries},
		{&lxd.Image{}, (*lxd.Image)(nil), image},
		{&lxd.Operation{}, (*lxd.Operation)(nil), made.Operation()},
		{&lxd.Secret{}, (*lxd.Secret)(nil), secret},
		{&lxd.ExportedFiles{}, (*lxd.ExportedFiles)(nil), &lxd.ExportedFiles{Image: "x"}},
	} {
		callAll(t, "zero", test.zero, t.Context())
		if test.null != nil {
			callAll(t, "nil", test.null, t.Context())
		}
		before := len(f.Requests())
		callAll(t, "nil context", test.whole, nil)
		require.Len(t, f.Requests(), before, "%T sends nothing", test.whole)
	}
	for _, client := range []*lxd.Client{{}, (&lxd.Client{}).InProject("x")} {
		_, err := client.Images.Get(t.Context(), oneFingerprint)
		require.ErrorIs(t, err, lxd.ErrInvalid)
		require.ErrorIs(t, client.Close(), lxd.ErrInvalid)
		_, err = image.Copy(t.Context(), client, nil)
		require.ErrorIs(t, err, lxd.ErrInvalid)
	}
	_, err = lxd.Join(nil, "token", nil) //nolint:staticcheck // A nil context is the test.
	require.ErrorIs(t, err, lxd.ErrInvalid)
}

// callAll calls the methods of a value. Those with a context get ctx, and plausible
// other arguments; the others are called if they take none.
func callAll(t *testing.T, what string, receiver any, ctx context.Context) {
	t.Helper()
	value := reflect.ValueOf(receiver)
	called := 0
	for n := range value.NumMethod() {
		method, name := value.Method(n), fmt.Sprintf("%s %T.%s", what, receiver, value.Type().Method(n).Name)
		takesContext := method.Type().NumIn() > 0 && method.Type().In(0) == reflect.TypeFor[context.Context]()
		switch {
		case !takesContext && (method.Type().NumIn() > 0 || ctx == nil):
			continue
		case ctx == nil && value.Type().Method(n).Name == "Wait" && !waits(receiver):
			continue
		}
		var in []reflect.Value
		for i := range method.Type().NumIn() {
			in = append(in, argument(method.Type().In(i), ctx))
		}
		call := method.Call
		if method.Type().IsVariadic() {
			call = method.CallSlice
		}
		var out []reflect.Value
		require.NotPanics(t, func() { out = call(in) }, name)
		called++
		var err error
		switch last := out[len(out)-1].Interface().(type) {
		case error:
			err = last
		case iter.Seq2[lxd.Event, error]:
			for _, err = range last {
				break
			}
		case iter.Seq2[lxd.Delivery, error]:
			for _, err = range last {
				break
			}
		case iter.Seq2[lxd.ImageChange, error]:
			for _, err = range last {
				break
			}
		case iter.Seq2[*lxd.Image, error]:
			for _, err = range last {
				break
			}
		default:
			if !takesContext {
				continue // it returns no error
			}
		}
		if ctx == nil || takesContext {
			if what != "nil context" && value.Type().Method(n).Name == "Wait" && !waits(receiver) {
				continue // no operation, nothing to wait for
			}
			require.ErrorIs(t, err, lxd.ErrInvalid, name)
			testkit.ErrOf[*lxd.InputError](t, err)
		}
	}
	require.NotZero(t, called)
}

// TestNilResults: what a call returns beside an error is nil, and may be used by
// mistake.
func TestNilResults(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(*lxd.Content, *lxd.Export) error{
		"Content.Read":   func(c *lxd.Content, _ *lxd.Export) error { _, err := c.Read(make([]byte, 1)); return err },
		"Content.Seek":   func(c *lxd.Content, _ *lxd.Export) error { _, err := c.Seek(0, io.SeekStart); return err },
		"Content.Close":  func(c *lxd.Content, _ *lxd.Export) error { return c.Close() },
		"Export.Read":    func(_ *lxd.Content, e *lxd.Export) error { _, err := e.Read(make([]byte, 1)); return err },
		"Export.WriteTo": func(_ *lxd.Content, e *lxd.Export) error { _, err := e.WriteTo(io.Discard); return err },
		"Export.Next":    func(_ *lxd.Content, e *lxd.Export) error { return e.Next() },
		"Export.Files": func(_ *lxd.Content, e *lxd.Export) error {
			for _, err := range e.Files() {
				return err
			}
			return nil
		},
		"Export.Close": func(_ *lxd.Content, e *lxd.Export) error { return e.Close() },
	} {
		for _, zero := range []bool{false, true} {
			var content *lxd.Content
			var export *lxd.Export
			if zero {
				content, export = &lxd.Content{}, &lxd.Export{}
			}
			require.NotPanics(t, func() {
				err := call(content, export)
				require.ErrorIs(t, err, lxd.ErrInvalid, name)
				testkit.ErrOf[*lxd.InputError](t, err)
			}, name)
		}
	}
}

// TestValuesOfNil: a method that returns a plain value returns that of nothing.
func TestValuesOfNil(t *testing.T) {
	t.Parallel()
	var content *lxd.Content
	var export *lxd.Export
	require.Zero(t, content.Size())
	require.Equal(t, int64(-1), export.Size(), "it is unknown")
	require.False(t, export.Split())
	require.Empty(t, export.Filename())
	require.False(t, (*lxd.Server)(nil).Has("projects"))
}

// waits reports whether Wait of the value has an operation to wait for.
func waits(receiver any) bool {
	image, ok := receiver.(*lxd.Image)
	return !ok || image.Operation() != nil
}

func argument(kind reflect.Type, ctx context.Context) reflect.Value {
	switch kind {
	case reflect.TypeFor[context.Context]():
		if ctx == nil {
			return reflect.Zero(kind)
		}
		return reflect.ValueOf(ctx)
	case reflect.TypeFor[string]():
		return reflect.ValueOf(oneFingerprint)
	case reflect.TypeFor[io.Reader]():
		return reflect.ValueOf(bytes.NewReader([]byte("content")))
	case reflect.TypeFor[func(*lxd.Alias)]():
		return reflect.ValueOf(func(*lxd.Alias) {})
	case reflect.TypeFor[lxd.Alias]():
		return reflect.ValueOf(lxd.Alias{Name: "x", Target: oneFingerprint})
	}
	return reflect.Zero(kind)
}

// TestNilReaders: a nil pointer in an io.Reader is not read.
func TestNilReaders(t *testing.T) {
	t.Parallel()
	f := testkit.StartFake(t)
	for _, r := range []io.Reader{nil, (*bytes.Reader)(nil), (*os.File)(nil), (*io.LimitedReader)(nil)} {
		_, err := f.Client.Images.Create(t.Context(), r, nil)
		require.ErrorIs(t, err, lxd.ErrInvalid, "%T", r)
		if r != nil {
			_, err = f.Client.Images.Create(t.Context(), bytes.NewReader(nil), &lxd.CreateOptions{Rootfs: r})
			require.ErrorIs(t, err, lxd.ErrInvalid, "%T", r)
			require.Equal(t, "CreateOptions.Rootfs", testkit.ErrOf[*lxd.InputError](t, err).Field)
		}
	}
	require.ErrorIs(t, f.Client.Aliases.Update(t.Context(), "x", nil), lxd.ErrInvalid)
	require.Empty(t, f.Requests())
}
