// Package ctxerr returns why a context has ended.
package ctxerr

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Of returns ctx's error, wrapped together with its cause if that is another
// error; nil if ctx has not ended. own are the causes with which the calling
// package itself ends contexts: if the cause is one of them, Of returns only the
// cause, as the package's caller has not cancelled anything.
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
