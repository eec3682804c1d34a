package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

func TestInstance(t *testing.T) {
	t.Parallel()
	server := lxdtest.NewServer(nil)
	t.Cleanup(server.Close)
	client, err := lxd.New(server.Endpoint(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	source := lxd.FromReader(bytes.NewReader(lxdtest.UnifiedImage("example", 0)), nil)
	for range 2 { // the second time, the image is there
		var out bytes.Buffer
		require.NoError(t, use(t.Context(), &out, client, source, map[string]any{"name": "example"}))
		require.Equal(t, "POST /1.0/instances\nPUT /1.0/instances/example/state\nPUT /1.0/instances/example/state\nDELETE /1.0/instances/example\n", out.String())
	}
	fault := server.Inject(lxdtest.Status(500, "it does not start").On("PUT", "/1.0/instances/example/state"))
	require.ErrorContains(t, use(t.Context(), new(bytes.Buffer), client, source, map[string]any{"name": "example"}), "it does not start")
	fault.Remove()
	_, err = client.Do(t.Context(), "GET", "/1.0/instances/example", nil, nil)
	require.ErrorIs(t, err, lxd.ErrNotFound, "the instance is deleted even if it does not start")
	require.ErrorIs(t, run(t.Context(), nil, ""), lxd.ErrInvalid)
}
