package testdaemon

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// unmountBelow unmounts everything below dir, the innermost mounts first. A
// killed daemon leaves its tmpfs mounts behind.
func unmountBelow(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("testdaemon: list mounts: %w", err)
	}
	for _, path := range slices.Backward(mountsBelow(string(table), dir)) {
		err := syscall.Unmount(path, syscall.MNT_DETACH)
		// EINVAL: it was detached together with a mount above it.
		if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("testdaemon: unmount %s: %w", path, err)
		}
	}
	return nil
}

// mountsBelow returns the mount points below dir in a mountinfo table, in the
// order in which they were mounted.
func mountsBelow(table, dir string) []string {
	var paths []string
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if path := unescapeMount(fields[4]); strings.HasPrefix(path, dir+"/") {
			paths = append(paths, path)
		}
	}
	return paths
}

// unescapeMount decodes the kernel's octal escapes for space, tab, newline and
// backslash.
func unescapeMount(path string) string {
	var out strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '\\' && i+3 < len(path) {
			if code, err := strconv.ParseUint(path[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		out.WriteByte(path[i])
	}
	return out.String()
}
