package lxd

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"
)

// JoinToken is a token with which a client can make a server trust it. It comes
// from the server's administrator: "lxc config trust add --name …" and "incus
// config trust add …" print one as text, "lxc auth identity create tls/…" too (LXD
// 6.9). It can be used once.
type JoinToken struct {
	ClientName  string    // the server's name for the client
	Fingerprint string    // SHA-256 of the server's certificate
	Addresses   []string  // the host:port pairs that the server listens on
	ExpiresAt   time.Time // zero for never
}

// maxToken is the longest text of a token, in bytes.
const maxToken = 64 << 10

// ParseJoinToken parses the text of a token; white space in and around it is
// ignored. The result does not contain the token's secret.
func ParseJoinToken(token string) (*JoinToken, error) {
	t, err := parseJoinToken(token)
	if err != nil {
		return nil, err
	}
	return &t.JoinToken, nil
}

// secretToken is a token with what only the server needs.
type secretToken struct {
	JoinToken

	text     string // without white space
	identity bool   // it is for an identity (LXD 6.9), not for a trusted certificate
}

// identityType is the type in the token of an identity (LXD 6.9). Those of other
// tokens have none.
const identityType = "Client certificate"

func parseJoinToken(token string) (*secretToken, error) {
	text := strings.Join(strings.Fields(token), "")
	var content struct {
		ClientName  string    `json:"client_name"`
		Fingerprint string    `json:"fingerprint"`
		Addresses   []string  `json:"addresses"`
		Secret      string    `json:"secret"`
		ExpiresAt   time.Time `json:"expires_at"`
		Type        string    `json:"type"`
	}
	switch {
	case text == "":
		return nil, invalid("token", "is empty")
	case len(text) > maxToken:
		return nil, invalid("token", "is longer than %d characters", maxToken)
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, invalid("token", "is not base64; was all of it copied?")
	}
	// The decoder's error may contain part of the secret.
	if json.Unmarshal(data, &content) != nil || content.Secret == "" {
		return nil, invalid("token", "is not a join token of a server")
	}
	fingerprint := strings.ToLower(content.Fingerprint)
	if raw, err := hex.DecodeString(fingerprint); err != nil || len(raw) != 32 {
		return nil, invalid("token", "does not contain the fingerprint of a server")
	}
	t := &secretToken{
		JoinToken: JoinToken{ClientName: content.ClientName, Fingerprint: fingerprint, Addresses: content.Addresses},
		text:      text, identity: strings.HasPrefix(content.Type, identityType),
	}
	// Servers write the year 1 for never (Incus 6.0.4).
	if content.ExpiresAt.Year() > 1970 {
		t.ExpiresAt = content.ExpiresAt
	}
	return t, nil
}
