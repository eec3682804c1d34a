// Package ctxerr tells why a context ended.
package ctxerr

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Of is ctx's error, wrapped together with its cause where that is another
// error; nil if ctx has not ended. Where the cause is one of own, for which the
// package that asks ends contexts itself, it is the cause alone: to its caller
// nothing was cancelled.
func Of(ctx context.Context, own ...error) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, err) || slices.ContainsFunc(own, func(e error) bool { return errors.Is(cause, e) }) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}
