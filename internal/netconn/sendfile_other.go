//go:build !linux

package netconn

import (
	"net"
	"os"
)

// sendfile is implemented only for Linux, on which the daemons run.
func sendfile(net.Conn, *os.File, int64, int64, func(int)) (done int64, handled bool, err error) {
	return 0, false, nil
}
