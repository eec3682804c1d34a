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
	var token struct {
		joinToken
		Request struct {
			Name string `json:"name"`
		} `json:"request"`
	}
	body := map[string]any{"type": "client", "name": clientName, "token": true}
	if err := d.startToken(ctx, "/1.0/certificates", body, &token); err != nil {
		return "", err
	}
	token.ClientName = token.Request.Name
	return encodeToken(token.joinToken)
}

// clusterToken returns a new token with which one daemon can become a member of
// this daemon's cluster, in the form that "incus cluster add" prints.
func (d *Daemon) clusterToken(ctx context.Context, serverName string) (string, error) {
	var token struct {
		Fingerprint string    `json:"fingerprint"`
		Addresses   []string  `json:"addresses"`
		Secret      string    `json:"secret"`
		ExpiresAt   time.Time `json:"expiresAt"`
	}
	if err := d.startToken(ctx, "/1.0/cluster/members", map[string]any{"server_name": serverName}, &token); err != nil {
		return "", err
	}
	return encodeToken(map[string]any{
		"server_name": serverName, "fingerprint": token.Fingerprint, "addresses": token.Addresses, "secret": token.Secret, "expires_at": token.ExpiresAt,
	})
}

// startToken sends the request that starts a token operation and decodes the
// operation's metadata into token.
func (d *Daemon) startToken(ctx context.Context, path string, body map[string]any, token any) error {
	env, err := d.roundTrip(ctx, "POST", path, body)
	if err != nil {
		return err
	}
	var op operation
	if err := json.Unmarshal(env.Metadata, &op); err != nil {
		return fmt.Errorf("testdaemon: decode token operation: %w", err)
	}
	return decode(op.Metadata, token)
}

func encodeToken(token any) (string, error) {
	data, err := json.Marshal(token)
	if err != nil {
		return "", fmt.Errorf("testdaemon: encode token: %w", err)
	}
	return base64.StdEncoding.EncodeToString(data), nil
}
