// Package testing is a program to be tested, and its tests without a daemon: see
// docs/testing.md.
package testing

import (
	"context"

	"github.com/golxd/lxd"
)

// Backup writes the image of an alias into a directory.
func Backup(ctx context.Context, client *lxd.Client, alias, dir string) (*lxd.ExportedFiles, error) {
	image, err := client.Images.GetByAlias(ctx, alias)
	if err != nil {
		return nil, err
	}
	return image.ExportTo(ctx, dir, nil)
}
