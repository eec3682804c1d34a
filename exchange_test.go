package lxd

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/internal/stall"
)

// TestResponseBeforeTheEndOfTheBody has the response come before the end of the
// body: what is read of it after that takes as long as the caller likes.
func TestResponseBeforeTheEndOfTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, watch := stall.New(t.Context(), time.Minute)
		defer watch.Close()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://unix/1.0/images", strings.NewReader("content"))
		require.NoError(t, err)
		exchange, req := newExchange(watch, req)
		exchange.responded()
		require.NoError(t, req.Body.Close())
		time.Sleep(time.Hour)
		require.NoError(t, ctx.Err())
	})
}
