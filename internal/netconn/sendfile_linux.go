package netconn

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// sendfileStep is the most that one call sends, so that progress is reported in
// steps.
const sendfileStep = 4 << 20

// sendfile sends n bytes of f from offset to c within the kernel. handled is
// false if that is not possible; then nothing was sent.
func sendfile(c net.Conn, f *os.File, offset, n int64, sent func(int)) (done int64, handled bool, err error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0, false, nil
	}
	out, err := sc.SyscallConn()
	if err != nil {
		return 0, false, nil
	}
	in, err := f.SyscallConn()
	if err != nil {
		return 0, false, nil
	}
	handled = true
	var callErr error
	controlErr := in.Control(func(infd uintptr) {
		for done < n && callErr == nil {
			step := min(n-done, sendfileStep)
			var wrote int
			writeErr := out.Write(func(outfd uintptr) bool {
				at := offset + done
				for {
					wrote, callErr = syscall.Sendfile(int(outfd), int(infd), &at, int(step))
					if !errors.Is(callErr, syscall.EINTR) {
						break
					}
				}
				return !errors.Is(callErr, syscall.EAGAIN)
			})
			switch {
			case writeErr != nil:
				callErr = writeErr
			case callErr != nil:
				if done == 0 && (errors.Is(callErr, syscall.EINVAL) || errors.Is(callErr, syscall.ENOSYS)) {
					handled = false
				}
			case wrote == 0:
				callErr = io.ErrUnexpectedEOF
			default:
				done += int64(wrote)
				if sent != nil {
					sent(wrote)
				}
			}
		}
	})
	switch {
	case controlErr != nil:
		return done, true, controlErr
	case !handled:
		return 0, false, nil
	case callErr != nil && !errors.Is(callErr, io.ErrUnexpectedEOF):
		var errno syscall.Errno
		if errors.As(callErr, &errno) {
			callErr = &net.OpError{Op: "write", Net: c.RemoteAddr().Network(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("sendfile", errno)}
		}
	}
	return done, true, callErr
}
