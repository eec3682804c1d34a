package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMain runs the command itself if TESTDAEMONS_MAIN is set.
func TestMain(m *testing.M) {
	if os.Getenv("TESTDAEMONS_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestExitCode(t *testing.T) {
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"--", "true"}, 0},
		{[]string{"-lxd", "0", "--", "sh", "-c", "exit 7"}, 7},
		{[]string{"--", "sh", "-c", "kill -9 $$"}, 128 + 9},
		{[]string{"--", "no-such-command"}, 127},
		{[]string{}, 2},
		{[]string{"-lxd", "-1", "--", "true"}, 2},
		{[]string{"-incus", "two", "--", "true"}, 2},
		{[]string{"-incus", "0=/no/such/daemon", "-incus", "0", "--", "true"}, 0},
		{[]string{"-incus", "1=/no/such/daemon", "--", "true"}, 1},
	} {
		cmd := exec.Command(os.Args[0], test.args...)
		cmd.Env = append(os.Environ(), "TESTDAEMONS_MAIN=1")
		out, err := cmd.CombinedOutput()
		if test.want == 0 {
			require.NoError(t, err, "%s", out)
			continue
		}
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, "%q: %s", test.args, out)
		require.Equal(t, test.want, exit.ExitCode(), "%q: %s", test.args, out)
	}
}
