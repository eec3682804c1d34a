package lxd

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// checkServerFingerprint checks that a fingerprint in a response is a full SHA-256.
func checkServerFingerprint(fingerprint string) error {
	if checkFullFingerprint("", fingerprint) != nil {
		return fmt.Errorf("its fingerprint is %.80q, not a SHA-256", fingerprint)
	}
	return nil
}

// isNil reports whether r is nil or a nil pointer, such as the *os.File that a failed
// os.Open returns.
func isNil(r io.Reader) bool {
	if r == nil {
		return true
	}
	v := reflect.ValueOf(r)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

// checkContext returns an error for a nil context.
func checkContext(ctx context.Context) error {
	if ctx == nil {
		return invalid("ctx", "is nil")
	}
	return nil
}

// check returns an error for a nil ctx, and for a client that is not from New,
// Remote or Join.
func (c *Client) check(ctx context.Context) error {
	if err := c.checkMade(); err != nil {
		return err
	}
	return checkContext(ctx)
}

// checkMade returns an error for a client that no function of this package has
// returned.
func (c *Client) checkMade() error {
	if c == nil || c.t == nil {
		return invalid("client", "is not from New, Remote or Join")
	}
	return nil
}

func (m *Images) check(ctx context.Context) error {
	if m == nil {
		return (*Client)(nil).check(ctx)
	}
	return m.client.check(ctx)
}

func (a *Aliases) check(ctx context.Context) error {
	if a == nil {
		return (*Client)(nil).check(ctx)
	}
	return a.client.check(ctx)
}

func (r *Registries) check(ctx context.Context) error {
	if r == nil {
		return (*Client)(nil).check(ctx)
	}
	return r.client.check(ctx)
}

func (o *Operation) check(ctx context.Context) error {
	if o == nil || o.client == nil {
		return invalid("operation", "does not come from a client")
	}
	return checkContext(ctx)
}

func (s *Secret) check(ctx context.Context) error {
	if s == nil || s.op == nil {
		return invalid("secret", "does not come from Image.Secret")
	}
	return s.op.check(ctx)
}

func checkFullFingerprint(field, fingerprint string) error {
	if err := checkFingerprint(field, fingerprint); err != nil {
		return err
	}
	if len(fingerprint) != 64 {
		return invalid(field, "has %d digits, not the 64 of a full SHA-256", len(fingerprint))
	}
	return nil
}

func checkFilename(field, name string) error {
	if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return invalid(field, "contains a control character")
	}
	return nil
}

func checkNames(field string, names []string) error {
	for n, name := range names {
		if name == "" {
			return invalid(fmt.Sprintf("%s[%d]", field, n), "is empty")
		}
	}
	return nil
}

func checkAlias(field, name string) error {
	if name == "" {
		return invalid(field, "is empty")
	}
	return nil
}

func checkAliases(field string, aliases []Alias) error {
	seen := make(map[string]bool, len(aliases))
	for i, alias := range aliases {
		if err := checkAlias(fmt.Sprintf("%s[%d].Name", field, i), alias.Name); err != nil {
			return err
		}
		if seen[alias.Name] {
			return invalid(fmt.Sprintf("%s[%d].Name", field, i), "%q is a duplicate", alias.Name)
		}
		seen[alias.Name] = true
	}
	return nil
}

func checkFingerprint(field, fingerprint string) error {
	if fingerprint == "" {
		return invalid(field, "is empty")
	}
	if len(fingerprint) > 64 {
		return invalid(field, "is longer than the 64 digits of a SHA-256")
	}
	for _, r := range fingerprint {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') && (r < 'A' || r > 'F') {
			return invalid(field, "%q is not hexadecimal; for an alias use GetByAlias", fingerprint)
		}
	}
	return nil
}
