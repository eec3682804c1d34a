package lxd

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golxd/lxd/simplestreams"
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

// checkText checks a text that a server keeps. The daemons' database ends a text at
// a NUL, and JSON cannot contain what is not UTF-8.
func checkText(field, text string) error {
	switch {
	case !utf8.ValidString(text):
		return invalid(field, "%.80q is not UTF-8", text)
	case strings.Contains(text, "\x00"):
		return invalid(field, "%.80q contains a NUL byte", text)
	}
	return nil
}

// checkFilename checks an image's filename. It is sent in a header, which does not
// keep blanks at its ends.
func checkFilename(field, name string) error {
	switch {
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return invalid(field, "contains a control character")
	case strings.Trim(name, " ") != name:
		return invalid(field, "%q begins or ends with a space", name)
	}
	return checkText(field, name)
}

func checkNames(field string, names []string) error {
	for n, name := range names {
		at := fmt.Sprintf("%s[%d]", field, n)
		if name == "" {
			return invalid(at, "is empty")
		}
		if err := checkText(at, name); err != nil {
			return err
		}
	}
	return nil
}

func checkProperties(field string, properties map[string]string) error {
	for name, value := range properties {
		if name == "" {
			return invalid(field, "has an empty name")
		}
		if err := checkText(field, name); err != nil {
			return err
		}
		if err := checkText(fmt.Sprintf("%s[%q]", field, name), value); err != nil {
			return err
		}
	}
	return nil
}

// checkExpiry checks that JSON can contain a time.
func checkExpiry(field string, at time.Time) error {
	if year := at.UTC().Year(); year > 9999 {
		return invalid(field, "is in the year %d; the last possible one is 9999", year)
	}
	return nil
}

// check returns an error for a value that is none of the constants.
func (e IfExists) check(field string) error {
	return checkOneOf(field, e, UseExisting, ErrorIfExists)
}

// checkOneOf returns an error that lists the allowed values. An empty one is the
// default.
func checkOneOf[T ~string](field string, value T, allowed ...T) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	names := make([]string, len(allowed))
	for n, v := range allowed {
		names[n] = strconv.Quote(string(v))
	}
	return invalid(field, "is %.80q, not one of %s", value, strings.Join(names, ", "))
}

func checkAlias(field, name string) error {
	if name == "" {
		return invalid(field, "is empty")
	}
	return checkText(field, name)
}

func checkAliases(field string, aliases []Alias) error {
	seen := make(map[string]bool, len(aliases))
	for i, alias := range aliases {
		if err := checkAlias(fmt.Sprintf("%s[%d].Name", field, i), alias.Name); err != nil {
			return err
		}
		if err := checkText(fmt.Sprintf("%s[%d].Description", field, i), alias.Description); err != nil {
			return err
		}
		if seen[alias.Name] {
			return invalid(fmt.Sprintf("%s[%d].Name", field, i), "%q is a duplicate", alias.Name)
		}
		seen[alias.Name] = true
	}
	return nil
}

// checkArchitecture returns the daemons' name of an architecture; "" remains "".
func checkArchitecture(field, architecture string) (string, error) {
	name, known := simplestreams.ArchitectureName(architecture)
	if !known && architecture != "" {
		return "", invalid(field, "%q is not an architecture, such as \"x86_64\" or \"aarch64\"", architecture)
	}
	return name, nil
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
