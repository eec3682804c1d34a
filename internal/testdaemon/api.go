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

// Error is the daemon's refusal of a request, or the failure of an operation.
type Error struct {
	Method, Path string
	Code         int
	Message      string
}

// Error tells the request, the code and the daemon's own words.
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

// socketClient talks to a unix socket. It keeps no connection, so that it
// never holds one across a restart, and leaves no goroutine to a leak check.
func socketClient(path string) *http.Client {
	var dialer net.Dialer
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
	}}
}

// Do sends one request over the unix socket and waits for the operation where
// the daemon started one. A body that is an [io.Reader] is sent as it is, as
// application/octet-stream; any other that is not nil is sent as JSON. The
// answer's metadata (the operation's, where there is one) is decoded into out
// unless that is nil. A refusal is an [*Error].
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

// wait waits for an operation; method and path are those that started it.
func (d *Daemon) wait(ctx context.Context, method, path, operationPath string, out any) error {
	env, err := d.roundTrip(ctx, http.MethodGet, operationPath+"/wait?timeout=-1", nil)
	if err != nil {
		return err
	}
	var op operation
	if err := json.Unmarshal(env.Metadata, &op); err != nil {
		return fmt.Errorf("testdaemon: decode operation: %w", err)
	}
	if op.StatusCode != http.StatusOK {
		return &Error{Method: method, Path: path, Code: op.StatusCode, Message: op.Err}
	}
	return decode(op.Metadata, out)
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
		return nil, fmt.Errorf("testdaemon: decode answer to %s %s: %w", method, path, err)
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
