package testdaemon

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
)

// joinToken is the content of a join token, which is base64 of JSON.
type joinToken struct {
	ClientName  string    `json:"client_name"`
	Fingerprint string    `json:"fingerprint"`
	Addresses   []string  `json:"addresses"`
	Secret      string    `json:"secret"`
	ExpiresAt   time.Time `json:"expires_at"`
}

// JoinToken returns a new token with which one client can join, in the form that
// the commands "lxc config trust add" and "incus config trust add" print.
func (d *Daemon) JoinToken(ctx context.Context, clientName string) (string, error) {
	env, err := d.roundTrip(ctx, "POST", "/1.0/certificates", map[string]any{
		"type":  "client",
		"name":  clientName,
		"token": true,
	})
	if err != nil {
		return "", err
	}
	var op struct {
		Metadata struct {
			joinToken
			Request struct {
				Name string `json:"name"`
			} `json:"request"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(env.Metadata, &op); err != nil {
		return "", fmt.Errorf("testdaemon: decode token operation: %w", err)
	}
	token := op.Metadata.joinToken
	token.ClientName = op.Metadata.Request.Name
	data, err := json.Marshal(token)
	if err != nil {
		return "", fmt.Errorf("testdaemon: encode token: %w", err)
	}
	return base64.StdEncoding.EncodeToString(data), nil
}
