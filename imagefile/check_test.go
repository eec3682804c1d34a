package imagefile_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/imagefile"
	"github.com/golxd/lxd/lxdtest"
)

// second returns the reader of a second file, nil if there is none.
func second(rootfs []byte) io.Reader {
	if rootfs == nil {
		return nil
	}
	return bytes.NewReader(rootfs)
}

func (c *imageCase) check(t *testing.T) *imagefile.Report {
	t.Helper()
	opts := &imagefile.CheckOptions{}
	if c.rootfs != nil {
		opts.Type = imagefile.Container
		if c.vm {
			opts.Type = imagefile.VirtualMachine
		}
	}
	report, err := imagefile.Check(t.Context(), bytes.NewReader(c.image), second(c.rootfs), opts)
	require.NoError(t, err)
	return report
}

// TestCheck: Check finds what is expected, and calls refused what a daemon refuses. TestDaemons compares the same table
// with the daemons.
func TestCheck(t *testing.T) {
	t.Parallel()
	for _, c := range imageCases(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			report := c.check(t)
			var found []imagefile.ProblemKind
			for _, p := range report.Problems {
				found = append(found, p.Kind)
				require.NotEmpty(t, p.Message)
				require.NotEmpty(t, p.File)
			}
			require.Equal(t, c.kinds, found, "%v", report.Problems)
			if c.refusedBy != "" {
				require.Error(t, report.Err())
			} else {
				require.NoError(t, report.Err())
			}
			files := [][]byte{c.image}
			if c.rootfs != nil {
				files = append(files, c.rootfs)
			}
			if len(c.kinds) == 0 {
				require.Equal(t, lxdtest.Fingerprint(files...), report.Info.Fingerprint)
			}
		})
	}
}
