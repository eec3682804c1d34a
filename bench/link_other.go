//go:build !linux

package main

import (
	"context"
	"errors"
)

// link is supported only on Linux.
type link struct{}

func (b *bench) links(imageFiles) []*row { return nil }

func runLink(context.Context, *job) error { return errors.ErrUnsupported }
