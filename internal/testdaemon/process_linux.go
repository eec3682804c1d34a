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
	done chan struct{} // closed when it has ended
}

// startProcess starts the daemon in a process group of its own, so that a
// Ctrl-C on the terminal is not for it, and so that its helpers can be killed
// with it. It is asked to stop when this process dies without a word.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The parent-death signal is sent when the thread that started the
		// process ends, so this thread has to stay for as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // How it ended is in cmd.ProcessState too.
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// terminate asks the daemon to end.
func (p *process) terminate() error {
	return ignoreGone(syscall.Kill(p.cmd.Process.Pid, syscall.SIGTERM))
}

// kill ends the daemon's whole process group.
func (p *process) kill() error {
	return ignoreGone(syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL))
}

func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}
