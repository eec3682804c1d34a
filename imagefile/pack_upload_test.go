package imagefile_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
)

// TestPackUploadEnds: whatever ends the upload of an image that is packed meanwhile ends the packing, with its own error, and
// leaves no image. TestMain notices what is left of the packing.
func TestPackUploadEnds(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	endless := func() imagefile.Root { return imagefile.FromTar(&endlessTar{}, nil) }
	for _, c := range []struct {
		name  string
		root  func() imagefile.Root
		fault *lxdtest.Fault
		end   func(cancel context.CancelFunc, image io.Closer)
		want  error
	}{
		{"root fails", func() imagefile.Root {
			return imagefile.FromTar(io.MultiReader(io.LimitReader(&endlessTar{}, 1<<20), iotest.ErrReader(broken)), nil)
		}, nil, nil, broken},
		{"context", endless, nil, func(cancel context.CancelFunc, _ io.Closer) { cancel() }, context.Canceled},
		{"closed", endless, nil, func(_ context.CancelFunc, image io.Closer) { image.Close() }, io.ErrClosedPipe},
		{"cut", endless, new(lxdtest.CutRequest(300_000)), nil, nil},
		{"stalled", endless, new(lxdtest.StallRequest(300_000)), func(cancel context.CancelFunc, _ io.Closer) { cancel() }, context.Canceled},
		{"refused", endless, new(lxdtest.Status(403, "not authorized")), nil, nil},
	} {
		for _, split := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				server := lxdtest.NewServer(nil)
				defer server.Close()
				client := testkit.NewClient(t, server.Endpoint(), nil)
				if c.fault != nil {
					server.Inject(c.fault.On("POST", "/1.0/images"))
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				create := &lxd.CreateOptions{Wait: true}
				var image io.ReadCloser
				opts := withTemplates(imagefile.PackOptions{})
				if split {
					image, create.Rootfs = imagefile.NewReaders(t.Context(), c.root(), described(), opts)
				} else {
					image = imagefile.NewReader(t.Context(), c.root(), described(), opts)
				}
				closers := []io.Closer{image}
				if split {
					closers = append(closers, create.Rootfs.(io.Closer))
				}
				if c.end != nil {
					timer := time.AfterFunc(100*time.Millisecond, func() { c.end(cancel, closers[len(closers)-1]) })
					defer timer.Stop()
				}
				_, err := client.Images.Create(ctx, image, create)
				require.Error(t, err)
				if c.want != nil {
					require.ErrorIs(t, err, c.want)
				}
				for _, closer := range closers {
					require.NoError(t, closer.Close())
				}
				require.Empty(t, server.Images())
			})
		}
	}
}
