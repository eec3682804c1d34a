package main

import (
	"log/slog"

	"github.com/golxd/lxd/lxdtest"
)

// logRequest returns what logs each request.
func logRequest(logger *slog.Logger) func(*lxdtest.Request) {
	return func(r *lxdtest.Request) {
		path := r.Path
		if r.Query != "" {
			path += "?" + r.Query
		}
		logger.Info("request", "method", r.Method, "path", path, "status", r.Status(), "received", r.BodyBytes(), "sent", r.ResponseBytes(), "duration", r.Duration())
	}
}
