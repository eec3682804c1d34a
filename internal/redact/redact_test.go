package redact

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestURL(t *testing.T) {
	for raw, want := range map[string]string{
		"https://host:8443/a%2Fb/c":                   "https://host:8443/a%2Fb/c",
		"https://s3cr3t:s3cr3t@host/x?s3cr3t#s3cr3t":  "https://host/x",
		"https://s3cr3t@host":                         "https://host",
		"unix:///var/lib/lxd/unix.socket":             "unix:///var/lib/lxd/unix.socket",
		"https://user:s3/cr3t@host/":                  unreadable, // a password that was not escaped
		"https://user:s3cr3t%zz@host/":                unreadable,
		"https://host:port/?s3cr3t":                   unreadable,
		"s3cr3t:s3cr3t@host:8443":                     unreadable, // its scheme is the user
		"s3cr3t@host":                                 unreadable,
		"https:///?s3cr3t":                            "https:///",
		"":                                            unreadable,
		"https://host/\x7fs3cr3t":                     unreadable,
		"socks5://s3cr3t@proxy:1080":                  "socks5://proxy:1080",
		"https://[fe80::1%25eth0]:8443/x?token=s3cr3": "https://[fe80::1%25eth0]:8443/x",
	} {
		require.Equal(t, want, URL(raw), raw)
		if u, err := url.Parse(raw); err == nil {
			require.Equal(t, want, URL(u), raw)
		}
	}
	require.Equal(t, unreadable, URL[*url.URL](nil))
}

func TestError(t *testing.T) {
	cause := errors.New("refused")
	at := func(op string, err error) error { return &url.Error{Op: op, URL: "https://h/?s3cr3t", Err: err} }
	require.Equal(t, cause, Error(at("Get", cause)))
	require.Equal(t, cause, Error(fmt.Errorf("outer: %w", at("Get", at("Head", cause)))))
	require.Equal(t, cause, Error(cause))
	require.NoError(t, Error(nil))
	_, err := url.Parse(strings.Join([]string{"https://user:s3", "cr3t@host"}, "/"))
	require.ErrorContains(t, err, "s3")
	require.Equal(t, errNotURL, Error(fmt.Errorf("outer: %w", err)))

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://host/%zz?s3cr3t")
		w.WriteHeader(http.StatusFound)
	}))
	defer server.Close()
	res, err := server.Client().Get(server.URL)
	if res != nil {
		_ = res.Body.Close()
	}
	require.ErrorContains(t, err, "s3cr3t")
	require.Equal(t, errLocation, Error(err))
}

// TestSecrets replaces a secret in every encoding that a server may use.
func TestSecrets(t *testing.T) {
	for _, secret := range []string{"s3cr3t", `p a"ss\+/&=?ü` + "\n", "dG9rZW4+/w=="} {
		data, err := json.Marshal(secret)
		require.NoError(t, err)
		for _, s := range []*Secrets{
			Hide(secret), Join(nil, Hide("other"), Hide(secret)),
			HideURL(&url.URL{Scheme: "https", Host: "h", User: url.User(secret)}),
			HideURL(&url.URL{Scheme: "https", Host: "h", User: url.UserPassword("", secret)}),
			HideURL(&url.URL{Scheme: "https", Host: "h", RawQuery: url.Values{"token": {secret}}.Encode()}),
		} {
			for _, form := range []string{
				secret, url.QueryEscape(secret), url.PathEscape(secret), url.UserPassword("u", secret).String()[2:],
				url.QueryEscape(url.PathEscape(secret)), url.QueryEscape(strconv.Quote(secret)[1 : len(strconv.Quote(secret))-1]), strconv.Quote(secret), strconv.QuoteToASCII(secret), string(data),
			} {
				text := s.Text("before " + form + " after")
				require.NotContains(t, text, form)
				require.Regexp(t, `^before "?xxxxx"? after$`, text)
			}
		}
	}
	s := HideURL("https://user-s3cr3t:pw-s3cr3t@h/x?token=query-s3cr3t&n=1")
	require.Equal(t, "xxxxx", s.Text("dXNlci1zM2NyM3Q6cHctczNjcjN0"), "the user and the password as a header has them")
	require.Equal(t, "xxxxx", s.Text("token=query-s3cr3t&n=1"))
	require.Equal(t, "1 is n", s.Text("1 is n"))
	require.Nil(t, HideURL("https://h/x"))
	require.Equal(t, "xxxxx is bad", HideURL("https://user:s3/cr3t@host").Text("https://user:s3/cr3t@host is bad"))

	// URLs whose secrets are not known.
	var none *Secrets
	for text, want := range map[string]string{
		`Get "https://u:p@h/x?sig=a%2Fb": EOF`:           `Get "https://h/x": EOF`,
		"Unable to fetch https://h/x?sig=ab: 403":        "Unable to fetch https://h/x: 403",
		"(https://h/x#f), then http://u@h; unix:///s":    "(https://h/x), then http://h; unix:///s",
		"https://u:a/b@h/x":                              unreadable,
		"no address":                                     "no address",
		"https://h/x":                                    "https://h/x",
		`\"https://h/x?y\"`:                              `\"https://h/x\"`,
		"http://h/x?a=b\nhttps://[::1]:8443/y?b=c, done": "http://h/x\nhttps://[::1]:8443/y, done",
	} {
		require.Equal(t, want, none.Text(text), text)
	}

	in := map[string]any{"a": []any{"x s3cr3t", 1.5, nil}, "b": map[string]any{"s3cr3t": true}}
	require.Equal(t, map[string]any{"a": []any{"x xxxxx", 1.5, nil}, "b": map[string]any{"xxxxx": true}}, Hide("s3cr3t").Value(in))
	require.Equal(t, "x s3cr3t", in["a"].([]any)[0], "what was given is left alone")
}

func TestSecretsOfErrors(t *testing.T) {
	s := Hide("s3cr3t")
	good := errors.New("good")
	require.Equal(t, good, s.Error(good))
	require.NoError(t, s.Error(nil))
	bad := fmt.Errorf("malformed response \"s3cr3t\": %w", io.ErrUnexpectedEOF)
	require.Equal(t, bad, (*Secrets)(nil).Error(bad))
	err := s.Error(bad)
	require.EqualError(t, err, `malformed response "xxxxx": unexpected EOF`)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Nil(t, errors.Unwrap(err))
	require.NotContains(t, fmt.Sprintf("%#v", err), "s3cr3t")
}
