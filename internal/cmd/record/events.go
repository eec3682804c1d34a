package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/gorilla/websocket"

	"github.com/golxd/lxd/lxdtest"
)

// recordEvents records the events of an image from its creation to its deletion.
func (r *recorder) recordEvents(ctx context.Context) error {
	var netDialer net.Dialer
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return netDialer.DialContext(ctx, "unix", r.daemon.Socket)
	}}
	const path = "/1.0/events?type=operation,lifecycle"
	conn, response, err := dialer.DialContext(ctx, "ws://daemon"+path, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer response.Body.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return err
		}
	}

	image := lxdtest.UnifiedImage("events", 0)
	imagePath := images + "/" + lxdtest.Fingerprint(image)
	if _, err := r.operation(ctx, request{method: "POST", path: images, body: image, headers: r.headers(nil)}); err != nil {
		return err
	}
	alias := map[string]any{"name": "events", "target": lxdtest.Fingerprint(image)}
	if err := r.doAll(ctx,
		request{method: "POST", path: images + "/aliases", body: alias},
		request{method: "PUT", path: images + "/aliases/events", body: alias},
		request{method: "POST", path: images + "/aliases/events", body: map[string]any{"name": "events2"}},
		request{method: "DELETE", path: images + "/aliases/events2"},
		request{method: "PATCH", path: imagePath, body: map[string]any{"properties": map[string]string{"a": "b"}}},
	); err != nil {
		return err
	}
	if _, err := r.operation(ctx, request{method: "DELETE", path: imagePath}); err != nil {
		return err
	}
	// The events may arrive in any order, so wait for all of them.
	var lines bytes.Buffer
	missing := map[string]bool{
		"image-created": true, "image-deleted": true, "image-updated": true,
		"image-alias-created": true, "image-alias-updated": true, "image-alias-renamed": true, "image-alias-deleted": true,
		`"Downloading image"` + success: true, `"Deleting image"` + success: true,
	}
	for len(missing) > 0 {
		_, message, err := conn.ReadMessage()
		if err != nil {
			return fmt.Errorf("events still missing %v: %w", missing, err)
		}
		lines.Write(bytes.TrimSpace(message))
		lines.WriteByte('\n')
		for what := range missing {
			if hasEvent(string(message), what) {
				delete(missing, what)
			}
		}
	}
	return r.save(entry{
		File: "events.jsonl", Comment: "one event per line, as received over the WebSocket while an image was created, given an alias, changed and deleted",
		Over: overUnix, Method: "GET", Path: path, Status: response.StatusCode, ContentType: response.Header.Get("Content-Type"),
	}, lines.Bytes())
}

// success is the suffix of a description whose operation must have succeeded.
const success = " succeeded"

// hasEvent reports whether a message is an event with the action what or, if what
// ends in success, of a successful operation with that description.
func hasEvent(message, what string) bool {
	if description, found := strings.CutSuffix(what, success); found {
		return strings.Contains(message, description) && strings.Contains(message, `"status_code":200`)
	}
	return strings.Contains(message, `"`+what+`"`)
}
