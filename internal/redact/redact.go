// Package redact keeps secrets out of what is written for people: errors and
// log records.
package redact

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/golxd/lxd/internal/retry"
)

// unreadable stands for a text that should be a URL and is none: any part of it
// may be the secret.
const unreadable = "(unreadable URL)"

// URL writes a URL for people: scheme, host and path. User name, password, query
// and fragment are left out, as each of them is often a token.
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
	errLocation = errors.New("it redirects to what is not a URL")
)

// Error returns what is inside of a [*url.Error], whose text holds a whole URL.
func Error(err error) error {
	var failed *url.Error
	for errors.As(err, &failed) {
		if failed.Op == "parse" {
			return errNotURL // the cause quotes what it could not read
		}
		err = failed.Err
	}
	// net/http quotes the whole header (Go 1.26).
	if err != nil && strings.HasPrefix(err.Error(), "failed to parse Location header") {
		return errLocation
	}
	return err
}

// Secrets are texts that must not be told. The nil Secrets are none.
type Secrets struct {
	values   []string
	prepare  sync.Once
	replacer *strings.Replacer
}

// shortest is the length from which on a secret is looked for: a shorter one is
// in every other word, and is only hidden within a URL.
const shortest = 4

const hidden = "xxxxx"

// Hide makes Secrets of texts, of which "" is none.
func Hide(values ...string) *Secrets {
	values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return len(v) < shortest })
	if len(values) == 0 {
		return nil
	}
	return &Secrets{values: values}
}

// HideURL makes Secrets of all that [URL] leaves out of a URL.
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

// Join makes one of several.
func Join(all ...*Secrets) *Secrets {
	var values []string
	for _, s := range all {
		if s != nil {
			values = append(values, s.values...)
		}
	}
	return Hide(values...)
}

// words replaces the secrets, in whatever form they are written.
func (s *Secrets) words(text string) string {
	if s == nil || text == "" {
		return text
	}
	s.prepare.Do(func() {
		// What is written once is often written again: a URL within another one's
		// query, JSON within a text that is quoted.
		forms := written(written(s.values))
		// Of two that begin at one place the longer one is taken.
		slices.SortFunc(forms, func(a, b string) int { return len(b) - len(a) })
		var pairs []string
		for _, form := range forms {
			pairs = append(pairs, form, hidden)
		}
		s.replacer = strings.NewReplacer(pairs...)
	})
	return s.replacer.Replace(text)
}

// written adds to texts what they are like within a URL, a quoted text and JSON.
func written(texts []string) []string {
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

// address finds URLs in a text, without the punctuation behind them.
var address = regexp.MustCompile("[A-Za-z][A-Za-z0-9+.-]*://[^\\s\"'`<>\\\\]*[^\\s\"'`<>\\\\.,:;!?)\\]}]")

// Text writes somebody else's words without the secrets, and the URLs in them as
// [URL] does, since those may hold secrets that only their author knows.
func (s *Secrets) Text(text string) string {
	text = s.words(text)
	if !strings.Contains(text, "://") {
		return text
	}
	return address.ReplaceAllStringFunc(text, func(raw string) string { return URL(raw) })
}

// Value writes a decoded JSON value without the secrets in its texts.
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

// Error returns an error whose text has none of the secrets: err itself, or else
// one that still matches what err matches, but does not lead to it.
func (s *Secrets) Error(err error) error {
	if s == nil || err == nil {
		return err
	}
	text := err.Error()
	clean := s.words(text)
	if clean == text {
		return err
	}
	return &quiet{text: clean, is: func(target error) bool { return errors.Is(err, target) }, transient: retry.Transient(err)}
}

// quiet is an error that does not tell its cause.
type quiet struct {
	text string
	is   func(target error) bool

	transient bool
}

func (e *quiet) Error() string        { return e.text }
func (e *quiet) Is(target error) bool { return e.is(target) }

// Transient is what the cause says, so that hiding a secret does not change
// whether a call is retried.
func (e *quiet) Transient() bool { return e.transient }
