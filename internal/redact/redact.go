// Package redact removes secrets from texts for people: errors and log records.
package redact

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/golxd/lxd/internal/retry"
)

// unreadable replaces a text that should be a URL but is not: any part of it may be
// the secret.
const unreadable = "(unreadable URL)"

// URL returns a URL for people: scheme, host and path. It omits user name, password,
// query and fragment, each of which is often a token.
func URL[T string | *url.URL](of T) string {
	u := parse(of)
	if u == nil || u.Scheme == "" || u.Opaque != "" || (u.Host == "" && !strings.HasPrefix(u.Path, "/")) {
		return unreadable
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

func parse[T string | *url.URL](of T) *url.URL {
	switch v := any(of).(type) {
	case *url.URL:
		return v
	case string:
		if u, err := url.Parse(v); err == nil {
			return u
		}
	}
	return nil
}

var (
	errNotURL   = errors.New("it is not a URL")
	errLocation = errors.New("it redirects to an invalid URL")
)

// Error returns the cause of a [*url.Error], whose text contains a whole URL.
func Error(err error) error {
	var failed *url.Error
	for errors.As(err, &failed) {
		if failed.Op == "parse" {
			return errNotURL // the cause quotes the text
		}
		err = failed.Err
	}
	// net/http quotes the whole header (Go 1.26).
	if err != nil && strings.HasPrefix(err.Error(), "failed to parse Location header") {
		return errLocation
	}
	return err
}

// Secrets are texts that must not be shown. Nil Secrets are empty.
type Secrets struct {
	values   []string
	prepare  sync.Once
	replacer *strings.Replacer
}

// shortest is the length of the shortest secret that is replaced in a text: a shorter
// one is part of many words, and is only omitted from URLs.
const shortest = 4

const hidden = "xxxxx"

// Hide returns Secrets for texts; it ignores empty ones.
func Hide(values ...string) *Secrets {
	values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return len(v) < shortest })
	if len(values) == 0 {
		return nil
	}
	return &Secrets{values: values}
}

// HideURL returns Secrets for everything that [URL] omits from a URL.
func HideURL[T string | *url.URL](of T) *Secrets {
	u := parse(of)
	if u == nil {
		raw, _ := any(of).(string)
		return Hide(raw)
	}
	values := []string{u.RawQuery, u.Fragment, u.Opaque}
	for _, list := range u.Query() {
		values = append(values, list...)
	}
	if u.User != nil {
		password, _ := u.User.Password()
		values = append(values, u.User.Username(), password, base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	return Hide(values...)
}

// Join combines several Secrets.
func Join(all ...*Secrets) *Secrets {
	var values []string
	for _, s := range all {
		if s != nil {
			values = append(values, s.values...)
		}
	}
	return Hide(values...)
}

// replace replaces the secrets in any of their encodings.
func (s *Secrets) replace(text string) string {
	if s == nil || text == "" {
		return text
	}
	s.prepare.Do(func() {
		// Texts are often encoded twice: a URL in another URL's query, JSON in a
		// quoted text.
		forms := encodings(encodings(s.values))
		// The replacer prefers the first of the forms that match: the longest.
		slices.SortFunc(forms, func(a, b string) int { return len(b) - len(a) })
		var pairs []string
		for _, form := range forms {
			pairs = append(pairs, form, hidden)
		}
		s.replacer = strings.NewReplacer(pairs...)
	})
	return s.replacer.Replace(text)
}

// encodings returns texts, and how they are encoded in a URL, a quoted text and JSON.
func encodings(texts []string) []string {
	var all []string
	for _, text := range texts {
		quoted, ascii := strconv.Quote(text), strconv.QuoteToASCII(text)
		all = append(all, text, url.QueryEscape(text), url.PathEscape(text), url.User(text).String(), quoted[1:len(quoted)-1], ascii[1:len(ascii)-1])
		if data, err := json.Marshal(text); err == nil {
			all = append(all, string(data[1:len(data)-1]))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Text returns a text without the secrets, and with its URLs as [URL] writes them:
// those of another program may contain secrets that this one does not know.
func (s *Secrets) Text(text string) string {
	text = s.replace(text)
	var b strings.Builder
	for {
		start, end := nextURL(text)
		if end == 0 {
			break
		}
		b.WriteString(text[:start])
		b.WriteString(URL(text[start:end]))
		text = text[end:]
	}
	if b.Len() == 0 {
		return text
	}
	b.WriteString(text)
	return b.String()
}

// nextURL returns where the first URL in a text begins and ends, without the
// punctuation after it; 0, 0 if there is none. It takes the place of a regular
// expression, which needs seconds for the 16 MiB that a server may send.
func nextURL(text string) (start, end int) {
	for from := 0; ; {
		mark := strings.Index(text[from:], "://")
		if mark < 0 {
			return 0, 0
		}
		mark += from
		start = mark
		for i := mark - 1; i >= from && isScheme[text[i]]; i-- {
			if isLetter(text[i]) {
				start = i
			}
		}
		end = mark + len("://")
		for i := end; start < mark && i < len(text) && !endsURL[text[i]]; i++ {
			if !isPunctuation[text[i]] {
				end = i + 1
			}
		}
		from = mark + len("://")
		if end > from {
			return start, end
		}
	}
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// The bytes that may be in a scheme, that end a URL, and that are not its last one.
var (
	isScheme      = setOf("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+.-")
	endsURL       = setOf("\t\n\f\r \"'`<>\\")
	isPunctuation = setOf(".,:;!?)]}")
)

func setOf(chars string) (set [256]bool) {
	for _, c := range []byte(chars) {
		set[c] = true
	}
	return set
}

// Value returns a decoded JSON value without the secrets in its strings.
func (s *Secrets) Value(value any) any {
	switch v := value.(type) {
	case string:
		return s.Text(v)
	case []any:
		list := make([]any, len(v))
		for i, element := range v {
			list[i] = s.Value(element)
		}
		return list
	case map[string]any:
		m := make(map[string]any, len(v))
		for name, element := range v {
			m[s.Text(name)] = s.Value(element)
		}
		return m
	}
	return value
}

// Error returns an error whose text contains none of the secrets: err itself, or else
// one that matches what err matches, but does not unwrap to it.
func (s *Secrets) Error(err error) error {
	if s == nil || err == nil {
		return err
	}
	text := err.Error()
	clean := s.replace(text)
	if clean == text {
		return err
	}
	return &redactedError{text: clean, is: func(target error) bool { return errors.Is(err, target) }, transient: retry.Transient(err)}
}

// redactedError is an error that hides its cause.
type redactedError struct {
	text string
	is   func(target error) bool

	transient bool
}

func (e *redactedError) Error() string        { return e.text }
func (e *redactedError) Is(target error) bool { return e.is(target) }

// Transient returns that of the cause, so that hiding a secret does not change
// whether a call is retried.
func (e *redactedError) Transient() bool { return e.transient }
