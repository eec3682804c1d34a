package testdaemon

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"
)

// process is a running daemon.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has exited
}

// startProcess starts the daemon in a new process group, so that it does not get
// a Ctrl-C from the terminal, and so that its child processes can be killed with
// it. The kernel sends it SIGTERM if this process dies.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The parent-death signal is sent when the thread that started the
		// process exits, so this thread must live as long as the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // cmd.ProcessState has the result too.
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// terminate sends SIGTERM to the daemon.
func (p *process) terminate() error {
	return ignoreNoProcess(syscall.Kill(p.cmd.Process.Pid, syscall.SIGTERM))
}

// kill sends SIGKILL to the daemon's process group.
func (p *process) kill() error {
	return ignoreNoProcess(syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL))
}

func ignoreNoProcess(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}
