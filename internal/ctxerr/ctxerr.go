// Package ctxerr tells why a context ended.
package ctxerr

import (
	"context"
	"errors"
	"fmt"
)

// Of is ctx's error, wrapped together with its cause where that is another
// error; nil if ctx has not ended.
func Of(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}
