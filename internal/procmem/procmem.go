// Package procmem reads how much memory a process has used, for benchmarks.
package procmem

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Peak returns the peak resident set size of a process in bytes; 0 if it is unknown, as
// on other systems than Linux.
func Peak(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err == nil {
				return kib << 10
			}
		}
	}
	return 0
}
