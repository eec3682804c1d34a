package testdaemon

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMountsBelow(t *testing.T) {
	table := `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 0:35 / /tmp/lxd-1/shmounts rw,relatime shared:2 - tmpfs tmpfs rw
41 22 0:36 / /tmp/lxd-12/devlxd rw,relatime shared:3 - tmpfs tmpfs rw
42 40 0:37 / /tmp/lxd-1/shmounts/a\040b\134c rw,relatime - tmpfs tmpfs rw
short line
43 22 0:38 / /tmp/lxd-1 rw,relatime - tmpfs tmpfs rw
`
	require.Equal(t,
		[]string{"/tmp/lxd-1/shmounts", `/tmp/lxd-1/shmounts/a b\c`},
		mountsBelow(table, "/tmp/lxd-1"))
}
