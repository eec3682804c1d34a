package lxdtest

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOperationsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, &Options{InMemory: true})
		c := newClient(t, s)
		done := c.do("POST", "/1.0/images", UnifiedImage("x", 0))
		c.wait(done)
		time.Sleep(4900 * time.Millisecond)
		require.Equal(t, 200, c.do("GET", done.Operation, nil).HTTP)
		time.Sleep(200 * time.Millisecond)
		require.Equal(t, 404, c.do("GET", done.Operation, nil).HTTP)
		require.Equal(t, 404, c.do("GET", done.Operation+"/wait", nil).HTTP)
	})
}

func TestForgetAtOnce(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true, ForgetAfter: -1})
	c := newClient(t, s)
	done := c.do("POST", "/1.0/images", []byte("bad"))
	require.Eventually(t, func() bool { return c.do("GET", done.Operation, nil).HTTP == 404 }, 30*time.Second, time.Millisecond)
}

func TestWaitTimesOut(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		synctest.Test(t, func(t *testing.T) {
			s := newTestServer(t, &Options{Dialect: d, InMemory: true})
			c := newClient(t, s)
			token := c.do("POST", "/1.0/images/"+add(t, s, "x", nil)+"/secret", nil)
			begin := time.Now()
			got := c.do("GET", token.Operation+"/wait?timeout=30", nil)
			require.Equal(t, 30*time.Second, time.Since(begin))
			require.Equal(t, 200, got.HTTP)
			if !d.traits().waitFailsAsError {
				require.EqualValues(t, statusRunning, got.field("status_code"))
			} else {
				require.Equal(t, "context deadline exceeded", got.Error)
				require.Equal(t, 500, got.ErrorCode)
			}
		})
	})
}

func TestCancelToken(t *testing.T) {
	eachDialect(t, func(t *testing.T, d Dialect) {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		c := newClient(t, s)
		token := c.do("POST", "/1.0/images/"+add(t, s, "x", nil)+"/secret", nil)
		require.Equal(t, []string{"Image download token"}, s.Tokens())
		require.Equal(t, 200, c.do("DELETE", token.Operation, nil).HTTP)
		require.Empty(t, s.Tokens())
		again := c.do("DELETE", token.Operation, nil)
		require.Equal(t, 400, again.HTTP)
		require.Equal(t, "Only running operations can be cancelled", again.Error)
		if waited := c.do("GET", token.Operation+"/wait", nil); d == LXD69 {
			require.Equal(t, "context canceled", waited.Error)
		} else {
			require.EqualValues(t, statusCancelled, waited.field("status_code"))
		}
		require.EqualValues(t, statusCancelled, c.do("GET", token.Operation, nil).field("status_code"))
		require.Equal(t, 404, c.do("DELETE", "/1.0/operations/nope", nil).HTTP)
	})
}

func TestListOfOperations(t *testing.T) {
	s := newTestServer(t, &Options{InMemory: true})
	c := newClient(t, s)
	token := c.do("POST", "/1.0/images/"+add(t, s, "x", nil)+"/secret", nil)
	failed := c.do("POST", "/1.0/images", []byte("bad"))
	c.failure(failed)
	var groups map[string][]string
	require.NoError(t, json.Unmarshal(c.do("GET", "/1.0/operations", nil).Metadata, &groups))
	require.Equal(t, map[string][]string{"running": {token.Operation}, "failure": {failed.Operation}}, groups)
}

func TestProgressIsHiddenByLXD69(t *testing.T) {
	for d, want := range map[Dialect]bool{LXD50: true, LXD69: false} {
		s := newTestServer(t, &Options{Dialect: d, InMemory: true})
		s.mu.Lock()
		op := s.addOperation("task", task{project: defaultProject, metadata: map[string]any{"download_progress": "5%", "x": "y"}}, nil)
		s.mu.Unlock()
		got := newClient(t, s).do("GET", "/1.0/operations/"+op.id, nil).field("metadata").(map[string]any)
		require.Equal(t, want, got["download_progress"] != nil)
		require.Equal(t, "y", got["x"])
	}
}
