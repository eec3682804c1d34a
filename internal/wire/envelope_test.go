package wire

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/stretchr/testify/require"
)

// TestRecordedEnvelopes decodes recorded responses of real daemons.
func TestRecordedEnvelopes(t *testing.T) {
	seen := map[string]int{}
	root := filepath.Join("..", "..", "testdata", "envelopes")
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".json" || entry.Name() == "index.json" {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		var metadata any
		env, err := Decode(iotest.OneByteReader(file), &metadata)
		if errors.Is(err, ErrNotEnvelope) && strings.HasPrefix(entry.Name(), "alias-") {
			// Creating or renaming an alias returns no metadata.
			_, err = file.Seek(0, io.SeekStart)
			require.NoError(t, err)
			env, err = Decode(file, nil)
		}
		require.NoError(t, err, path)
		seen[env.Type]++
		switch env.Type {
		case TypeError:
			require.NotEmpty(t, env.Error, path)
			require.NotZero(t, env.ErrorCode, path)
		case TypeAsync:
			require.True(t, strings.HasPrefix(env.Operation, "/1.0/operations/"), path)
			require.NotNil(t, metadata, path)
		}
		return nil
	}))
	require.Greater(t, seen[TypeSync], 10)
	require.Greater(t, seen[TypeAsync], 2)
	require.Greater(t, seen[TypeError], 5)
}

func TestDecode(t *testing.T) {
	for name, test := range map[string]struct {
		in   string
		want error
	}{
		"empty":            {"", ErrNotEnvelope},
		"a page":           {"<html></html>", ErrNotEnvelope},
		"another document": {`{"hello": "world"}`, ErrNotEnvelope},
		"a list":           {`[]`, ErrNotEnvelope},
		"another type":     {`{"type": "sync", "status_code": "x"}`, ErrNotEnvelope},
		"another metadata": {`{"type": "sync", "metadata": {"a": 1}}`, ErrNotEnvelope},
		"cut":              {`{"type": "sync", "metadata": ["a"`, io.ErrUnexpectedEOF},
		"cut in a name":    {`{"type": "sync", "meta`, io.ErrUnexpectedEOF},
		"good":             {`{"unknown": {"a": [1]}, "type": "sync", "type": "sync", "metadata": ["a"]}`, nil},
		"null":             {`{"type": "sync", "metadata": null}`, ErrNotEnvelope},
		"no metadata":      {`{"type": "sync"}`, ErrNotEnvelope},
		"null in an error": {`{"metadata": null, "type": "error"}`, nil},
		"an error":         {`{"type": "error", "metadata": {"not": "decoded"}}`, nil},
	} {
		var list []string
		_, err := Decode(strings.NewReader(test.in), &list)
		if test.want == nil {
			require.NoError(t, err, name)
			continue
		}
		require.ErrorIs(t, err, test.want, name)
		require.False(t, err == io.EOF, name) //nolint:errorlint // only the bare io.EOF is wrong
	}
	broken := errors.New("the wire is cut")
	_, err := Decode(iotest.ErrReader(broken), nil)
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, ErrNotEnvelope)
}

func TestDecodeElements(t *testing.T) {
	stop := errors.New("stop")
	for name, test := range map[string]struct {
		in   string
		want []int
		err  error
	}{
		"all":         {`{"type": "sync", "metadata": [1, 2, 3]}`, []int{1, 2, 3}, nil},
		"none":        {`{"type": "sync", "metadata": []}`, nil, nil},
		"null":        {`{"type": "sync", "metadata": null}`, nil, ErrNotEnvelope},
		"stopped":     {`{"type": "sync", "metadata": [1, 9, 3]}`, []int{1}, stop},
		"not a list":  {`{"type": "sync", "metadata": {}}`, nil, ErrNotEnvelope},
		"wrong value": {`{"type": "sync", "metadata": [1, "a"]}`, []int{1}, ErrNotEnvelope},
	} {
		var got []int
		_, err := Decode(strings.NewReader(test.in), ElementFunc(func(dec *jsontext.Decoder) error {
			var n int
			if err := UnmarshalElement(dec, &n); err != nil {
				return err
			}
			if n == 9 {
				return stop
			}
			got = append(got, n)
			return nil
		}))
		require.Equal(t, test.want, got, name)
		if test.err == nil {
			require.NoError(t, err, name)
			continue
		}
		require.ErrorIs(t, err, test.err, name)
	}
}

func TestDecodeGroups(t *testing.T) {
	for name, test := range map[string]struct {
		in   string
		want []int
		err  error
	}{
		"all":           {`{"type": "sync", "metadata": {"a": [1, 2], "b": [], "c": [3]}}`, []int{1, 2, 3}, nil},
		"none":          {`{"type": "sync", "metadata": {}}`, nil, nil},
		"a list":        {`{"type": "sync", "metadata": [1]}`, nil, ErrNotEnvelope},
		"a group alone": {`{"type": "sync", "metadata": {"a": 1}}`, nil, ErrNotEnvelope},
		"cut":           {`{"type": "sync", "metadata": {"a": [1`, nil, io.ErrUnexpectedEOF},
	} {
		var got []int
		_, err := Decode(strings.NewReader(test.in), GroupedFunc(func(dec *jsontext.Decoder) error {
			var n int
			if err := UnmarshalElement(dec, &n); err != nil {
				return err
			}
			got = append(got, n)
			return nil
		}))
		if test.err == nil {
			require.NoError(t, err, name)
			require.Equal(t, test.want, got, name)
			continue
		}
		require.ErrorIs(t, err, test.err, name)
	}
}

// TestMarshalNeverNull guards against a request that crashes daemons: see Marshal.
func TestMarshalNeverNull(t *testing.T) {
	data, err := Marshal(&ImagePost{Source: &ImageSource{Mode: "push"}})
	require.NoError(t, err)
	require.Contains(t, string(data), `"properties":{}`)
	require.NotContains(t, string(data), "null")
}
