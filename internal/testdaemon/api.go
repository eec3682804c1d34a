package testdaemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Error is an error response of the daemon, or the error of a failed operation.
type Error struct {
	Method, Path string
	Code         int
	Message      string
}

// Error returns the request, the code and the daemon's message.
func (e *Error) Error() string {
	return fmt.Sprintf("testdaemon: %s %s: %d %s", e.Method, e.Path, e.Code, e.Message)
}

type envelope struct {
	Type       string          `json:"type"`
	Operation  string          `json:"operation"`
	ErrorCode  int             `json:"error_code"`
	Error      string          `json:"error"`
	Metadata   json.RawMessage `json:"metadata"`
	StatusCode int             `json:"status_code"`
}

type operation struct {
	StatusCode int             `json:"status_code"`
	Err        string          `json:"err"`
	Metadata   json.RawMessage `json:"metadata"`
}

// socketClient returns a client for a unix socket. It keeps no idle connections,
// so that none outlives a restart and no goroutine is left for a leak check.
func socketClient(path string) *http.Client {
	var dialer net.Dialer
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
	}}
}

// Do sends a request over the unix socket and, if it starts an operation, waits
// for it. A body that is an [io.Reader] is sent as application/octet-stream; any
// other non-nil body is sent as JSON. The metadata of the response, or of the
// operation if there is one, is decoded into out unless out is nil. If the
// daemon responds with an error or the operation fails, the error is an
// [*Error].
func (d *Daemon) Do(ctx context.Context, method, path string, body, out any) error {
	env, err := d.roundTrip(ctx, method, path, body)
	if err != nil {
		return err
	}
	if env.Type == "async" {
		return d.wait(ctx, method, path, env.Operation, out)
	}
	return decode(env.Metadata, out)
}

// wait waits for an operation; method and path are those of the request that
// started it.
func (d *Daemon) wait(ctx context.Context, method, path, operationPath string, out any) error {
	for {
		env, err := d.roundTrip(ctx, http.MethodGet, operationPath+"/wait?timeout=-1", nil)
		if err != nil {
			return err
		}
		var op operation
		if err := json.Unmarshal(env.Metadata, &op); err != nil {
			return fmt.Errorf("testdaemon: decode operation: %w", err)
		}
		switch {
		case op.StatusCode == http.StatusOK:
			return decode(op.Metadata, out)
		case op.StatusCode > http.StatusOK:
			return &Error{Method: method, Path: path, Code: op.StatusCode, Message: op.Err}
		}
		// A member of an LXD 5.0.2 cluster that forwards the wait to another can return early.
	}
}

func (d *Daemon) roundTrip(ctx context.Context, method, path string, body any) (*envelope, error) {
	var reader io.Reader
	contentType := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		reader, contentType = b, "application/octet-stream"
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, fmt.Errorf("testdaemon: encode request: %w", err)
		}
		reader = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://daemon"+path, reader)
	if err != nil {
		return nil, fmt.Errorf("testdaemon: %w", err)
	}
	request.Header.Set("Content-Type", contentType)
	response, err := d.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("testdaemon: %w", err)
	}
	defer response.Body.Close()
	var env envelope
	if err := json.NewDecoder(response.Body).Decode(&env); err != nil {
		return nil, fmt.Errorf("testdaemon: decode response to %s %s: %w", method, path, err)
	}
	if env.Type == "error" || response.StatusCode >= 400 {
		return nil, &Error{Method: method, Path: path, Code: env.ErrorCode, Message: env.Error}
	}
	return &env, nil
}

func decode(data json.RawMessage, out any) error {
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("testdaemon: decode metadata: %w", err)
	}
	return nil
}
