package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"regexp"
	"strings"

	"github.com/golxd/lxd/internal/testdaemon"
)

const (
	neutralAddress     = "127.0.0.1:8443"
	neutralCertificate = `-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n`
	neutralHex         = "0000000000000000000000000000000000000000000000000000000000000000"
)

// neutralizer replaces secrets and values that depend on the machine in the text
// of a response; everything else is kept byte for byte.
type neutralizer struct {
	plain  *strings.Replacer
	byName []replacement
}

type replacement struct {
	pattern *regexp.Regexp
	with    []byte
}

func newNeutralizer(d *testdaemon.Daemon) (*neutralizer, error) {
	block, _ := pem.Decode(d.ServerCertificate)
	if block == nil {
		return nil, errors.New("the server's certificate is not PEM")
	}
	sum := sha256.Sum256(block.Bytes)
	certificate, err := json.Marshal(string(d.ServerCertificate))
	if err != nil {
		return nil, err
	}
	n := &neutralizer{plain: strings.NewReplacer(
		strings.Trim(string(certificate), `"`), neutralCertificate,
		hex.EncodeToString(sum[:]), neutralHex,
		strings.TrimPrefix(d.URL, "https://"), neutralAddress,
		d.Dir, "/var/lib/"+string(d.Family),
	)}
	for name, value := range map[string]string{
		"server_name":    `"host"`,
		"kernel_version": `"6.1.0"`,
		"server_pid":     `1`,
		"secret":         `"` + neutralHex + `"`,
	} {
		n.byName = append(n.byName, replacement{
			regexp.MustCompile(`("` + name + `":\s*)("[^"]*"|[0-9]+)`), []byte("${1}" + value),
		})
	}
	return n, nil
}

// add adds a value to replace from now on.
func (n *neutralizer) add(value, with string) {
	n.byName = append(n.byName, replacement{regexp.MustCompile(regexp.QuoteMeta(value)), []byte(with)})
}

func (n *neutralizer) apply(data []byte) []byte {
	data = []byte(n.plain.Replace(string(data)))
	for _, r := range n.byName {
		data = r.pattern.ReplaceAll(data, r.with)
	}
	return bytes.Clone(data)
}
