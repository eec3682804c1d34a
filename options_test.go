package lxd_test

import (
	"bytes"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
)

// TestOptionsAreNotModified also proves that New sends nothing.
func TestOptionsAreNotModified(t *testing.T) {
	f := testkit.StartFake(t)
	before := f.Accepted()
	var requests atomic.Int32
	opts := &lxd.Options{UserAgent: "service/1", Project: "default", Transport: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			requests.Add(1)
			return next.RoundTrip(r)
		})
	}}
	client := testkit.NewClient(t, f.Endpoint(), opts)
	opts.UserAgent, opts.Project = "changed", "changed"
	require.Equal(t, before, f.Accepted())
	testkit.Upload(t, client, nil)
	require.Positive(t, requests.Load())
	for _, r := range f.Requests() {
		require.NotContains(t, r.Query, "changed")
		require.Contains(t, r.Header.Get("User-Agent"), "service/1 golxd/")
	}
	create := &lxd.CreateOptions{Properties: map[string]string{"a": "b"}, Aliases: []lxd.Alias{{Name: "x"}}}
	image, err := client.Images.Create(t.Context(), bytes.NewReader(testkit.Unified(t, 0)), create)
	require.NoError(t, err)
	create.Properties["a"], create.Aliases[0].Name = "changed", "changed"
	require.NoError(t, image.Wait(t.Context()))
	require.Equal(t, "b", image.Properties["a"])
	require.Equal(t, "x", image.Aliases[0].Name)
}
