//go:build !linux

package main

import (
	"context"
	"errors"
)

// line needs Linux.
type line struct{}

func (b *bench) lines(imageFiles) []*row { return nil }

func runLine(context.Context, *job) error { return errors.ErrUnsupported }
