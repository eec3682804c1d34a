//go:build clients

package clients_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/golxd/lxd/lxdtest"
)

// These tests run other clients against the command lxdtest, and the examples of
// docs/testing.md.

// envIncus7 is the path of the incus command of Incus 7. The default is "incus".
const envIncus7 = "LXD_TEST_INCUS7"

// build builds the command, and returns a program's environment in which it is found.
func build(t *testing.T) (bin string, env []string) {
	t.Helper()
	dir := t.TempDir()
	bin = filepath.Join(dir, "lxdtest")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "github.com/golxd/lxd/lxdtest/cmd/lxdtest").CombinedOutput()
	require.NoError(t, err, "%s", out)
	// A bundle in the environment would override pylxd's verify argument.
	return bin, slices.Clip(append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "REQUESTS_CA_BUNDLE=", "CURL_CA_BUNDLE="))
}

// ready is the line that the command prints.
type ready struct {
	Servers []struct {
		Socket, URL, Conf string
		ServerCertificate string `json:"server_certificate"`
		ClientCertificate string `json:"client_certificate"`
		ClientKey         string `json:"client_key"`
	}
	Dir string
}

// serve runs the command until the end of the test.
func serve(t *testing.T, bin string, args ...string) *ready {
	t.Helper()
	cmd := exec.Command(bin, append(args, "-with-parent")...)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(t, cmd.Start())
	var line ready
	err = json.NewDecoder(stdout).Decode(&line)
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		require.NoError(t, cmd.Wait(), stderr.String())
		require.NoDirExists(t, line.Dir)
	})
	require.NoError(t, err, stderr.String())
	return &line
}

// TestLxdtest does the image work of the lxc and incus commands on the servers of the
// command, which they find in its configuration directory; copies go between two servers.
func TestLxdtest(t *testing.T) {
	bin, env := build(t)
	incus7 := os.Getenv(envIncus7)
	if incus7 == "" {
		incus7 = "incus"
	}
	for d, client := range map[lxdtest.Dialect]string{
		lxdtest.LXD40: "lxc", lxdtest.LXD50: "lxc", lxdtest.LXD69: "lxc", lxdtest.Incus60: "incus", lxdtest.Incus70: incus7,
	} {
		t.Run(d.Name(), func(t *testing.T) {
			t.Parallel()
			line := serve(t, bin, "-dialect", "one="+d.Name()+",two="+d.Name(), "-image", "one:web=debian/13 size=100000",
				"-image", "one:split=debian/12 split", "-image", "one:vm=alpine/3.22 vm", "-project", "other")
			conf := line.Servers[0].Conf
			c := &commands{t, client, append(env, "LXD_CONF="+conf, "INCUS_CONF="+conf), t.TempDir()}

			require.Contains(t, c.run("remote", "list", "--format", "csv"), "one (current)")
			require.Contains(t, c.run("info"), d.Version())
			require.Equal(t, 3, strings.Count(c.run("image", "list", "--format", "csv"), "\n"))
			require.Empty(t, c.run("image", "list", "two:", "--format", "csv"))
			require.Equal(t, "debian\n", c.run("image", "get-property", "web", "os"))

			unified := lxdtest.UnifiedImage("unified", 50_000)
			c.run("image", "import", c.file("u.tar", unified), "two:", "--alias", "mine", "release=7")
			require.Contains(t, c.run("image", "info", "two:mine"), lxdtest.Fingerprint(unified))
			c.run("image", "alias", "create", "two:a/b", lxdtest.Fingerprint(unified))
			c.run("image", "set-property", "two:mine", "k", "v")
			require.Contains(t, c.run("image", "show", "two:a/b"), "k: v")
			c.run("image", "export", "two:mine", c.dir+"/back")
			back, err := os.ReadFile(c.dir + "/back.tar")
			require.NoError(t, err)
			require.True(t, bytes.Equal(unified, back))
			c.fails("Error: ", "image", "show", "two:none")

			// Push is not for virtual machines, and LXD 4.0 has no push.
			for mode, name := range map[string]string{"pull": "vm", "push": "split", "relay": "web"} {
				if mode == "push" && d == lxdtest.LXD40 {
					continue
				}
				c.run("image", "copy", "one:"+name, "two:", "--mode", mode, "--copy-aliases")
				require.Contains(t, c.run("image", "list", "two:", "--format", "csv"), name)
				c.run("image", "delete", "two:"+name)
			}
			c.run("image", "copy", "one:web", "two:", "--target-project", "other", "--alias", "there")
			require.Contains(t, c.run("image", "list", "two:", "--project", "other", "--format", "csv"), "there")
			if d != lxdtest.LXD69 { // its operations do not name the instance as this lxc expects
				c.run("init", "web", "c1")
				c.run("publish", "c1", "--alias", "published")
				require.Contains(t, c.run("image", "list", "--format", "csv"), "published")
				c.run("delete", "c1")
			}
			c.run("image", "delete", "two:mine")
			require.Empty(t, c.run("image", "list", "two:", "--format", "csv"))
		})
	}
}

// TestExamples runs the examples of docs/testing.md that are not in Go as they are.
func TestExamples(t *testing.T) {
	_, env := build(t)
	for name, program := range map[string]string{"test_lxc.sh": "bash", "test_pylxd.py": "/usr/bin/python3"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			example, err := filepath.Abs("../../examples/testing/" + name)
			require.NoError(t, err)
			cmd := exec.CommandContext(t.Context(), program, example)
			temp, err := os.MkdirTemp("", "t") // short enough for sockets
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, os.Remove(temp), "it is not empty") })
			cmd.Env, cmd.Dir, cmd.WaitDelay = append(env, "TMPDIR="+temp), t.TempDir(), time.Minute
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Regexp(t, `(?i)\bok\n$`, string(out))
		})
	}
}

// TestExampleCalls runs the calls of the control socket on docs/testing.md.
func TestExampleCalls(t *testing.T) {
	bin, env := build(t)
	cmd := exec.CommandContext(t.Context(), "bash", "../../examples/testing/control.sh", serve(t, bin).Dir)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "GET /1.0/images 200\n")
	require.Contains(t, string(out), `{"id":3}`)
}

// TestExampleWorkflow runs the steps of the workflow on docs/testing.md as a runner of
// GitHub does, except that the module is this one.
func TestExampleWorkflow(t *testing.T) {
	data, err := os.ReadFile("../../examples/testing/workflow.yml")
	require.NoError(t, err)
	var workflow struct {
		Jobs map[string]struct {
			Steps []struct{ Name, Uses, Run, If string }
		}
	}
	require.NoError(t, yaml.Unmarshal(data, &workflow))
	temp := t.TempDir()
	bin, variables := filepath.Join(temp, "bin"), filepath.Join(temp, "variables")
	require.NoError(t, os.WriteFile(variables, nil, 0o600))
	env := slices.Clip(append(os.Environ(), "RUNNER_TEMP="+temp, "GITHUB_ENV="+variables, "GOBIN="+bin, "PATH="+bin+":"+os.Getenv("PATH")))
	ran := 0
	for _, step := range workflow.Jobs["test"].Steps {
		if step.Uses != "" {
			continue
		}
		cmd := exec.CommandContext(t.Context(), "bash", "-e", "-c", strings.ReplaceAll(step.Run, "@latest", ""))
		set, err := os.ReadFile(variables)
		require.NoError(t, err)
		cmd.Env = append(env, strings.Split(string(set), "\n")...)
		// What a step leaves in the background has its standard output too, so that it is
		// not a pipe.
		out, err := os.Create(filepath.Join(temp, "out"))
		require.NoError(t, err)
		cmd.Stdout, cmd.Stderr = out, out
		err = cmd.Run()
		require.NoError(t, out.Close())
		text, readErr := os.ReadFile(out.Name())
		require.NoError(t, readErr)
		require.NoError(t, err, "%s: %s", step.Name, text)
		ran++
		if _, line, ok := strings.Cut(string(text), `"pid":`); ok {
			pid := 0
			require.NoError(t, json.NewDecoder(strings.NewReader(strings.TrimSuffix(strings.TrimSpace(line), "}"))).Decode(&pid))
			daemon, err := os.FindProcess(pid)
			require.NoError(t, err)
			// A runner kills what is left at the end of a job.
			t.Cleanup(func() { _ = daemon.Signal(os.Interrupt) })
		}
	}
	require.Equal(t, 4, ran)
	log, err := os.ReadFile(filepath.Join(temp, "lxdtest.log"))
	require.NoError(t, err)
	require.Contains(t, string(log), "path=/1.0/images/aliases/web status=200")
}
