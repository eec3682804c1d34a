package lxd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/internal/testkit"
	"github.com/golxd/lxd/lxdtest"
	"github.com/golxd/lxd/lxdtest/streamstest"
)

// textsOf returns all texts of an error, and of each error that it wraps.
func textsOf(err error) []string {
	var texts []string
	for todo := []error{err}; len(todo) > 0; todo = todo[1:] {
		if todo[0] == nil {
			continue
		}
		texts = append(texts, todo[0].Error(), fmt.Sprintf("%v", todo[0]), fmt.Sprintf("%+v", todo[0]), fmt.Sprintf("%#v", todo[0]))
		switch e := todo[0].(type) { //nolint:errorlint // the tree is walked by hand
		case interface{ Unwrap() error }:
			todo = append(todo, e.Unwrap())
		case interface{ Unwrap() []error }:
			todo = append(todo, e.Unwrap()...)
		}
	}
	return texts
}

// parrot is a proxy before a server that repeats all that it was sent in its responses.
type parrot struct {
	next  http.RoundTripper
	squad *squad
	name  string
}

// squad are the parrots of one test.
type squad struct {
	mu      sync.Mutex
	manner  string // how they repeat it; "" for not at all
	who     string // which of them does
	begun   map[string]string
	ended   map[string]bool // the tokens whose end was refused once, and then is not
	secrets []string        // that went by
	spoken  int
}

func (s *squad) set(who, manner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.who, s.manner = who, manner
}

// manners are the kinds of response in which a parrot repeats secrets.
var manners = []string{"refusal", "forbidden", "operation", "wait", "page", "redirect", "broken"}

func (p *parrot) RoundTrip(r *http.Request) (*http.Response, error) {
	words, body := p.words(r)
	s := p.squad
	s.mu.Lock()
	manner := s.manner
	id := strings.Split(strings.TrimPrefix(r.URL.Path, "/1.0/operations/"), "/")[0]
	before, mine := s.begun[id]
	speaks := manner != "" && s.who == p.name && !passes(r, body)
	if speaks && r.Method == http.MethodDelete && strings.HasPrefix(r.URL.Path, "/1.0/operations/") {
		speaks, s.ended[id] = !s.ended[id], true
	}
	if mine || speaks {
		s.spoken++
	}
	s.mu.Unlock()
	respond := func(status int, header, value, body string) (*http.Response, error) {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		h := http.Header{"Content-Type": {"application/json"}}
		h.Set(header, value)
		return &http.Response{
			StatusCode: status, Status: http.StatusText(status), Header: h, Request: r,
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body)),
		}, nil
	}
	quote := func(text string) string { data, _ := json.Marshal(text); return string(data) }
	failure := func(status int, text string) string {
		return fmt.Sprintf(`{"type":"error","error_code":%d,"error":%s}`, status, quote(text))
	}
	state := func(id string, status int, text string) string {
		return fmt.Sprintf(`{"id":%q,"class":"task","description":%s,"status":"Failure","status_code":%d,"err":%s,"metadata":{"a_progress":%s,"b":{"c":[%s]}}}`,
			id, quote(text), status, quote(text), quote(text), quote(text))
	}
	switch {
	case mine && r.Method == http.MethodDelete:
		return respond(400, "X-A", "b", failure(400, words+before))
	case mine && manner == "wait" && strings.HasSuffix(r.URL.Path, "/wait"):
		return respond(200, "X-A", "b", failure(500, words+before))
	case mine:
		return respond(200, "X-A", "b", `{"type":"sync","metadata":`+state(id, 400, words+before)+`}`)
	case !speaks:
		return p.next.RoundTrip(r)
	}
	switch manner {
	case "forbidden":
		return respond(403, "X-LXD-OIDC-issuer", "https://provider", failure(403, words))
	case "operation", "wait":
		if r.Method == http.MethodPost && r.URL.Path != "/1.0/certificates" && r.URL.Path != "/1.0/image-registries" {
			s.mu.Lock()
			defer s.mu.Unlock()
			id := fmt.Sprintf("00000000-0000-0000-0000-%012d", len(s.begun))
			s.begun[id] = words
			return respond(202, "X-A", "b", `{"type":"async","operation":"/1.0/operations/`+id+`","metadata":`+state(id, 103, words)+`}`)
		}
	case "page":
		return respond(200, "Content-Type", "text/html; of="+url.QueryEscape(words), "<html>"+words)
	case "redirect":
		return respond(307, "Location", "https://user:"+url.QueryEscape(words)+"@elsewhere.invalid/?words="+url.QueryEscape(words), "")
	case "broken":
		if r.Body != nil {
			_ = r.Body.Close()
		}
		// As a round tripper of the caller's that asks somebody else.
		return nil, &url.Error{Op: "Post", URL: "https://collector.invalid/?key=own-s3cr3t", Err: errors.New(words)}
	}
	return respond(400, "X-A", "b", failure(400, words))
}

// passes says what reaches the server whatever the parrot is like: it tells no
// secret, or makes one.
func passes(r *http.Request, body string) bool {
	switch {
	case r.URL.Path == "/1.0", strings.HasSuffix(r.URL.Path, "/secret"), strings.Contains(body, `"mode":"push"`):
		return true
	case r.URL.Path == "/1.0/images" && r.Method == http.MethodGet:
		return false
	}
	return r.Method == http.MethodGet && r.URL.Query().Get("secret") == "" && !strings.HasSuffix(r.URL.Path, "/export")
}

// words returns all that a request contains, in the forms in which a server may write it.
func (p *parrot) words(r *http.Request) (words, body string) {
	parts := []string{strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")}
	for _, values := range r.URL.Query() {
		parts = append(parts, values...)
	}
	if secret := r.URL.Query().Get("secret"); secret != "" {
		p.keep(secret)
	}
	if r.GetBody != nil {
		reader, err := r.GetBody()
		if err == nil {
			data, _ := io.ReadAll(reader)
			_ = reader.Close()
			body = string(data)
			var value any
			_ = json.Unmarshal(data, &value)
			parts = append(parts, p.strings(value)...)
		}
	}
	all := []string{"asked for", r.URL.String(), body}
	for _, part := range parts {
		var token map[string]any
		if data, err := base64.StdEncoding.DecodeString(part); err == nil && json.Unmarshal(data, &token) == nil {
			all = append(all, p.strings(token)...)
		}
		all = append(all, part, url.QueryEscape(part), url.PathEscape(part), fmt.Sprintf("%q", part))
		if u, err := url.Parse(part); err == nil && u.User != nil {
			password, _ := u.User.Password()
			all = append(all, u.Redacted(), u.User.String(), u.User.Username(), password, u.RawQuery, u.Fragment)
			for _, values := range u.Query() {
				all = append(all, values...)
			}
		}
	}
	return strings.Join(all, " ") + " ", body
}

// strings are those in a decoded value.
func (p *parrot) strings(value any) (all []string) {
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		for _, element := range v {
			all = append(all, p.strings(element)...)
		}
	case map[string]any:
		for name, element := range v {
			if text, ok := element.(string); ok && name == "secret" {
				p.keep(text)
			}
			all = append(all, p.strings(element)...)
		}
	}
	return all
}

func (p *parrot) keep(secret string) {
	p.squad.mu.Lock()
	defer p.squad.mu.Unlock()
	p.squad.secrets = append(p.squad.secrets, secret)
}

// ear collects what the client reports.
type ear struct {
	log     *recorder
	texts   []string
	secrets []string
}

func (e *ear) tell(texts ...string) { e.texts = append(e.texts, texts...) }

func (e *ear) err(err error) { e.tell(textsOf(err)...) }

// operation collects everything of an operation.
func (e *ear) operation(t *testing.T, op *lxd.Operation) {
	t.Helper()
	if op == nil {
		return
	}
	e.tell(fmt.Sprintf("%+v", op.Status()))
	e.err(op.Wait(t.Context()))
	status, err := op.Refresh(t.Context())
	e.err(err)
	e.err(op.Cancel(t.Context()))
	e.tell(fmt.Sprintf("%+v", status), fmt.Sprintf("%+v", op.Status()))
}

// image collects everything of an image.
func (e *ear) image(t *testing.T, image *lxd.Image, err error) {
	t.Helper()
	e.err(err)
	if image != nil {
		e.operation(t, image.Operation())
		e.err(image.Wait(t.Context()))
		e.operation(t, image.Operation())
		for _, attempt := range image.Transfer().Failed {
			e.err(attempt.Err)
		}
	}
}

// check fails for each secret that was reported.
func (e *ear) check(t *testing.T) {
	t.Helper()
	require.NotEmpty(t, e.texts)
	for _, secret := range e.secrets {
		require.Greater(t, len(secret), 5)
	}
	for _, text := range append(slices.Clone(e.texts), strings.Split(e.log.String(), "\n")...) {
		for _, secret := range e.secrets {
			if strings.Contains(text, secret) {
				t.Fatalf("%q is told: %s", secret, text)
			}
		}
	}
}

func newEar(secrets ...string) *ear {
	return &ear{log: &recorder{}, secrets: append(secrets, "s3cr3t", base64.StdEncoding.EncodeToString([]byte("user-s3cr3t:password-s3cr3t")))}
}

func (e *ear) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// secretURL is a URL with secrets.
func secretURL(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	u.User, u.RawQuery = url.UserPassword("user-s3cr3t", "password-s3cr3t"), url.Values{"token": {`query-s3cr3t/+"`}}.Encode()
	return u.String()
}

// TestSecretsInResponses has each server repeat each secret that it is sent, in each
// kind of response.
func TestSecretsInResponses(t *testing.T) {
	t.Parallel()
	for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.LXD69, lxdtest.Incus60} {
		t.Run(dialect.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { secretsInResponses(t, dialect) })
		})
	}
}

func secretsInResponses(t *testing.T, dialect lxdtest.Dialect) {
	t.Helper()
	const bearer, password = "bearer-s3cr3t+/=", `password-s3cr3t "&%`
	ear := newEar()
	flock := &squad{begun: map[string]string{}, ended: map[string]bool{}}
	connect := func(name string, s *testkit.Fake, opts *lxd.Options) *lxd.Client {
		opts.ServerCertificate, opts.RetryTimeout, opts.Logger, opts.Dial = s.Certificate(), -1, ear.logger(), s.DialContext
		opts.Transport = func(next http.RoundTripper) http.RoundTripper { return &parrot{next, flock, name} }
		return testkit.NewClient(t, s.URL(), opts)
	}
	trusted := func(name string, s *testkit.Fake) *lxd.Client {
		cert, key := s.ClientCertificate()
		return connect(name, s, &lxd.Options{ClientCertificate: cert, ClientKey: key, Token: bearer})
	}
	options := lxdtest.Options{Dialect: dialect, BearerTokens: []string{bearer}}
	fleet := testkit.StartFleet(t, nil, options, options)
	source, target := fleet[0], fleet[1]
	from, to := trusted("source", source), trusted("target", target)
	_, key := source.ClientCertificate()
	ear.secrets = append(ear.secrets, strings.Split(string(key), "\n")[1])

	for _, who := range []string{"source", "target"} {
		for _, manner := range manners {
			flock.set("", "")
			before := flock.spoken
			fingerprint, err := source.AddImage(lxdtest.UnifiedImage(who+manner, 0), nil)
			require.NoError(t, err)
			image, err := from.Images.Get(t.Context(), fingerprint)
			require.NoError(t, err)
			secret, err := image.Secret(t.Context())
			require.NoError(t, err)
			ear.secrets = append(ear.secrets, secret.Value)
			read, err := from.Images.GetWithSecret(t.Context(), fingerprint, secret.Value)
			require.NoError(t, err)

			flock.set(who, manner)
			for _, c := range []*lxd.Client{from, to} {
				_, err = c.Images.All(t.Context(), nil)
				ear.err(err)
				for _, err := range c.Events(t.Context(), &lxd.EventsOptions{Types: []lxd.EventType{"none"}}) {
					ear.err(err)
					break
				}
			}
			_, err = from.Images.GetWithSecret(t.Context(), fingerprint, secret.Value)
			ear.err(err)
			export, err := read.Export(t.Context(), nil)
			ear.err(err)
			if err == nil {
				require.NoError(t, export.Close())
			}
			for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay, lxd.CopyAuto} {
				for _, wait := range []bool{false, true} {
					copied, err := image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, Wait: wait, Progress: func(p lxd.Progress) { ear.tell(p.Text) }})
					if copied == nil {
						copied = &lxd.Copied{}
					}
					ear.image(t, copied.Image, err)
					for _, attempt := range copied.Failed {
						ear.err(attempt.Err)
					}
					if there, err := to.Images.Get(t.Context(), fingerprint); err == nil {
						flock.set("", "")
						require.NoError(t, there.Delete(t.Context(), &lxd.DeleteOptions{Wait: true}))
						flock.set(who, manner)
					}
				}
			}
			for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaServer, lxd.ViaClient} {
				for _, wait := range []bool{false, true} {
					at := secretURL(t, "http://127.0.0.1:1/image")
					made, err := to.Images.CreateFromURL(t.Context(), at, &lxd.CreateFromURLOptions{Via: via, Wait: wait})
					require.True(t, made != nil || err != nil)
					ear.image(t, made, err)
					made, err = to.Images.CreateFromSimplestreams(t.Context(), at, "alpine", &lxd.CreateFromSimplestreamsOptions{Via: via, Wait: wait, AllowHTTP: true})
					require.True(t, made != nil || err != nil)
					ear.image(t, made, err)
				}
			}
			registry := lxd.Registry{Name: "r", Protocol: "simplestreams", Config: map[string]string{"url": secretURL(t, "https://127.0.0.1:1")}}
			ear.err(to.Registries.Create(t.Context(), registry))
			stranger := connect("target", target, testkit.Joiner(t))
			ear.err(stranger.TrustPassword(t.Context(), password, nil))
			token := target.NewTrustToken("x")
			data, err := base64.StdEncoding.DecodeString(token)
			require.NoError(t, err)
			var inside struct{ Secret string }
			require.NoError(t, json.Unmarshal(data, &inside))
			ear.secrets = append(ear.secrets, token, url.QueryEscape(token), inside.Secret)
			ear.err(stranger.Trust(t.Context(), token))
			ear.tell(fmt.Sprintf("%+v", secret.Operation().Status()))
			_, err = secret.Operation().Refresh(t.Context())
			ear.err(err)
			ear.tell(fmt.Sprintf("%+v", secret.Operation().Status()))
			ear.err(secret.Revoke(t.Context()))
			require.Greater(t, flock.spoken, before+5, "%s %s", who, manner)
		}
	}
	require.Contains(t, ear.log.String(), "/1.0/images") // the log was on
	ear.secrets = append(ear.secrets, flock.secrets...)
	require.Greater(t, len(flock.secrets), 2*len(manners))
	ear.check(t)
}

// TestSecretsInErrorsOfSources has the server from which an image is fetched repeat
// secrets, and the daemon that fetches it.
func TestSecretsInErrorsOfSources(t *testing.T) {
	t.Parallel()
	ear := newEar()
	elsewhere := "http://elsewhere.invalid/?signature=s3cr3t"
	var location string
	plain := streamstest.NewServer(nil)
	t.Cleanup(plain.Close)
	manners := map[string]func(http.ResponseWriter, *http.Request, string){
		"status": func(w http.ResponseWriter, _ *http.Request, words string) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = fmt.Fprintf(conn, "HTTP/1.1 403 %s\r\nContent-Length: 0\r\n\r\n", words)
				_ = conn.Close()
			}
		},
		"garbage": func(w http.ResponseWriter, _ *http.Request, words string) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = fmt.Fprintf(conn, "%s\r\n", strings.ReplaceAll(words, " ", "|"))
				_ = conn.Close()
			}
		},
		"hash": func(w http.ResponseWriter, _ *http.Request, words string) {
			w.Header().Set("LXD-Image-Hash", words)
			w.Header().Set("Incus-Image-Hash", words)
		},
		"insecure": func(w http.ResponseWriter, r *http.Request, _ string) {
			http.Redirect(w, r, elsewhere, http.StatusFound)
		},
		"no URL": func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.Header().Set("Location", "https://elsewhere/%zz?signature=s3cr3t")
			w.WriteHeader(http.StatusFound)
		},
		"announced": func(w http.ResponseWriter, r *http.Request, words string) {
			if r.URL.Query().Get("signature") != "" {
				if !strings.Contains(r.Header.Get("User-Agent"), "golxd") {
					words = "no" // to the daemon, which tells the URL itself
				}
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					_, _ = fmt.Fprintf(conn, "%s\r\n", strings.ReplaceAll(words, " ", "|"))
					_ = conn.Close()
				}
				return
			}
			for _, family := range []string{"LXD", "Incus"} {
				w.Header().Set(family+"-Image-Hash", strings.Repeat("ab", 32))
				w.Header().Set(family+"-Image-URL", location+"?signature=announced-s3cr3t")
			}
		},
		"cut": func(w http.ResponseWriter, r *http.Request, words string) {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", words)
				w.WriteHeader(http.StatusPartialContent)
				return
			}
			w.Header().Set("Content-Length", "1000000")
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(http.StatusOK)
			if r.Method == http.MethodGet {
				_, _ = w.Write(make([]byte, 100_000))
				panic(http.ErrAbortHandler)
			}
		},
	}
	for name, manner := range manners {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, password, _ := r.BasicAuth()
			query := r.URL.Query().Get("token") + r.URL.Query().Get("signature")
			manner(w, r, strings.Join([]string{user, password, query, url.QueryEscape(query), r.URL.String(), r.Header.Get("Authorization")}, " "))
		}))
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		server.StartTLS()
		t.Cleanup(server.Close)
		location = server.URL
		for _, dialect := range []lxdtest.Dialect{lxdtest.LXD50, lxdtest.Incus60} {
			roots := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
			target := testkit.StartFakeWith(t, &lxdtest.Options{Dialect: dialect, RootCAs: roots}, &lxd.Options{Logger: ear.logger(), RetryTimeout: shortRetries})
			for _, via := range []lxd.Via{lxd.ViaAuto, lxd.ViaServer, lxd.ViaClient} {
				image, err := target.Client.Images.CreateFromURL(t.Context(), secretURL(t, server.URL), &lxd.CreateFromURLOptions{Via: via, HTTPClient: server.Client()})
				ear.image(t, image, err)
				image, err = target.Client.Images.CreateFromURL(t.Context(), secretURL(t, server.URL), &lxd.CreateFromURLOptions{Via: via, HTTPClient: server.Client(), Wait: true})
				require.Error(t, err, name)
				ear.image(t, image, err)
			}
		}
	}
	ear.check(t)
}

// TestSecretsInErrorsOfProxies has a proxy repeat its user name and password.
func TestSecretsInErrorsOfProxies(t *testing.T) {
	t.Parallel()
	ear := newEar()
	for _, response := range []string{"HTTP/1.1 407 %s %s %s\r\n\r\n", "%s %s %s\r\n\r\n"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		var work sync.WaitGroup
		work.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err == nil {
					given := strings.TrimPrefix(r.Header.Get("Proxy-Authorization"), "Basic ")
					plain, _ := base64.StdEncoding.DecodeString(given)
					user, password, _ := strings.Cut(string(plain), ":")
					_, _ = fmt.Fprintf(conn, response, user, url.QueryEscape(password), given)
				}
				_ = conn.Close()
			}
		})
		proxy, err := lxd.ProxyURL("http://user-s3cr3t:password-s3cr3t@"+l.Addr().String(), "")
		require.NoError(t, err)
		client := testkit.NewClient(t, "https://127.0.0.1:1", &lxd.Options{Proxy: proxy, RetryTimeout: shortRetries, Logger: ear.logger()})
		_, err = client.Images.All(t.Context(), nil)
		testkit.ErrOf[*lxd.ProxyError](t, err)
		ear.err(err)
		for _, err := range client.Events(t.Context(), nil) {
			ear.err(err)
		}
		require.NoError(t, l.Close())
		work.Wait()
	}
	for _, proxy := range []string{
		"http://user-s3cr3t:password-s3cr3t@", "ftp://user-s3cr3t@host", "http://user-s3cr3t:s3/cr3t@host", "user-s3cr3t:%zz@host", "http://host:s3cr3t",
		"http://user-s3cr3t@:8080",
	} {
		_, err := lxd.ProxyURL(proxy, "")
		require.Error(t, err, proxy)
		ear.err(err)
		client := testkit.NewClient(t, "https://127.0.0.1:1", &lxd.Options{RetryTimeout: -1, Proxy: func(*http.Request) (*url.URL, error) { return url.Parse(proxy) }})
		_, err = client.Images.All(t.Context(), nil)
		require.ErrorContains(t, err, "proxy")
		ear.err(err)
	}
	ear.check(t)
}

// TestSecretsInAddresses: addresses with secrets are refused.
func TestSecretsInAddresses(t *testing.T) {
	t.Parallel()
	ear := newEar()
	addresses := []string{
		"https://user-s3cr3t:password-s3cr3t@host:8443", "https://user-s3cr3t@host", "https://host?token=s3cr3t", "https://host/path?token=s3cr3t", "https://host/#s3cr3t",
		"https://user:s3/cr3t@host", "https://host:s3cr3t", "https://user:s3cr3t%zz@host", "https://user-s3cr3t@", "https:///?s3cr3t",
		"http://user-s3cr3t:password-s3cr3t@host:8443/?token=s3cr3t", "http://host?token=s3cr3t", "http://user:s3/cr3t@host",
		"HTTPS://user-s3cr3t:password-s3cr3t@host", "ftp://user-s3cr3t@host", "user-s3cr3t:password-s3cr3t@host:8443", "s3cr3t@host", "s3cr3t:x@host/path",
	}
	config := "remotes:\n"
	for n, address := range addresses {
		_, err := lxd.New(address, nil)
		require.ErrorIs(t, err, lxd.ErrInvalid, address)
		ear.err(err)
		config += fmt.Sprintf("  lxd%d: {addr: %q, protocol: lxd, public: true}\n  streams%d: {addr: %q, protocol: simplestreams}\n", n, address, n, address)
		fake := testkit.StartFake(t)
		_, err = fake.Client.Images.CreateFromURL(t.Context(), address, &lxd.CreateFromURLOptions{Via: lxd.ViaServer})
		ear.err(err)
		_, err = fake.Client.Images.CreateFromSimplestreams(t.Context(), address, "x", &lxd.CreateFromSimplestreamsOptions{Via: lxd.ViaClient})
		require.Error(t, err)
		ear.err(err)
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o600))
	for n := range addresses {
		for _, name := range []string{"lxd", "streams"} {
			_, err := lxd.Remote(fmt.Sprint(name, n), &lxd.Options{ConfigDir: dir})
			testkit.ErrOf[*lxd.RemoteError](t, err)
			ear.err(err)
		}
	}
	ear.check(t)
}

// TestSecretsInEventConnections has the event connection repeat the token: in an error
// response, and in its close message.
func TestSecretsInEventConnections(t *testing.T) {
	t.Parallel()
	ear := newEar()
	for _, accepts := range []bool{false, true} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			bearer := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			if !accepts {
				w.WriteHeader(http.StatusForbidden)
				_, _ = fmt.Fprintf(w, `{"type":"error","error_code":403,"error":%q}`, bearer)
				return
			}
			conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
			if err == nil {
				_ = conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.ClosePolicyViolation, bearer))
				_ = conn.Close()
			}
		}))
		t.Cleanup(server.Close)
		asked := 0
		client := testkit.NewClient(t, server.URL, &lxd.Options{
			ServerFingerprint: fingerprintOf(server.Certificate().Raw), RetryTimeout: -1, Logger: ear.logger(),
			TokenSource: func(context.Context) (string, error) {
				if asked++; asked > 1 {
					return "", &url.Error{Op: "Post", URL: "https://provider.invalid/?key=s3cr3t", Err: errors.New("not twice")}
				}
				return "bearer-s3cr3t", nil
			},
		})
		for _, err := range client.Events(t.Context(), nil) {
			ear.err(err)
		}
	}
	ear.check(t)
}

// recorder is a slog handler that keeps every record as text.
type recorder struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// TestSecretsAreHidden drives what handles secrets, with and without failures,
// and looks for them in all errors and log records.
func TestSecretsAreHidden(t *testing.T) {
	t.Parallel()
	const bearer = "bearer-s3cr3t"
	const password = "password-s3cr3t"
	log := &recorder{}
	options := func(s *lxdtest.Server) *lxd.Options {
		cert, key := s.ClientCertificate()
		return &lxd.Options{
			ClientCertificate: cert, ClientKey: key, ServerCertificate: s.Certificate(), Token: bearer, RetryTimeout: shortRetries,
			Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}
	}
	source := lxdtest.NewServer(&lxdtest.Options{TLS: true, TrustPassword: password})
	t.Cleanup(source.Close)
	target := lxdtest.NewServer(&lxdtest.Options{TLS: true})
	t.Cleanup(target.Close)
	from, to := testkit.NewClient(t, source.URL(), options(source)), testkit.NewClient(t, target.URL(), options(target))
	_, key := source.ClientCertificate()

	var secrets, told []string
	secrets = append(secrets, bearer, password, "user-s3cr3t", "query-s3cr3t", strings.Split(string(key), "\n")[1])
	tell := func(err error) { told = append(told, textsOf(err)...) }
	faults := []*lxdtest.Fault{nil}
	for _, f := range []lxdtest.Fault{
		lxdtest.Reset(), lxdtest.HTML(), lxdtest.Status(400, "no"), lxdtest.LoseResponse(), lxdtest.EndlessJSON(),
		lxdtest.Redirect("https://elsewhere.invalid/?secret=query-s3cr3t"),
	} {
		faults = append(faults, &f)
	}
	for n, f := range faults {
		fingerprint, err := source.AddImage(lxdtest.UnifiedImage(fmt.Sprint("secrets", n), 0), nil)
		require.NoError(t, err)
		image, err := from.Images.Get(t.Context(), fingerprint)
		require.NoError(t, err)
		secret, err := image.Secret(t.Context())
		require.NoError(t, err)
		secrets = append(secrets, secret.Value)
		var injected []*lxdtest.Injection
		if f != nil {
			for _, s := range []*lxdtest.Server{source, target} {
				injected = append(injected, s.Inject(*f))
			}
		}
		_, err = from.Images.GetWithSecret(t.Context(), fingerprint, secret.Value)
		tell(err)
		for _, mode := range []lxd.CopyMode{lxd.CopyPull, lxd.CopyPush, lxd.CopyRelay} {
			_, err = image.Copy(t.Context(), to, &lxd.CopyOptions{Mode: mode, Wait: true})
			tell(err)
		}
		_, err = to.Images.CreateFromURL(t.Context(), "http://user:user-s3cr3t@127.0.0.1:1/x?token=query-s3cr3t", &lxd.CreateFromURLOptions{Via: lxd.ViaClient, Wait: true})
		require.Error(t, err)
		tell(err)
		tell(from.TrustPassword(t.Context(), password, nil))
		tell(secret.Revoke(t.Context()))
		for _, i := range injected {
			require.NotZero(t, i.Fired())
			i.Remove()
		}
	}
	_, err := lxd.New("https://user:user-s3cr3t@host:8443", nil)
	require.Error(t, err)
	tell(err)

	require.Contains(t, log.String(), "/1.0/images") // the log was on
	require.NotEmpty(t, told)
	for _, secret := range secrets {
		require.NotEmpty(t, secret)
		require.NotContains(t, log.String(), secret)
		for _, text := range told {
			require.NotContains(t, text, secret)
		}
	}
}

// TestSecretsInOperationEvents has events repeat what the request of an
// operation contained, the URL in its source's headers, and the secrets of tokens and
// connections.
func TestSecretsInOperationEvents(t *testing.T) {
	t.Parallel()
	imported := make(chan string, 1)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/1.0":
			_, _ = io.WriteString(w, `{"type":"sync","metadata":{"api_extensions":[],"auth":"trusted","environment":{"server":"lxd","server_version":"5.0.2"}}}`)
		case "/1.0/images":
			body, _ := io.ReadAll(r.Body)
			imported <- string(body)
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, `{"type":"async","metadata":{"id":"work","class":"task","status_code":103}}`)
		case "/1.0/events":
			conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			quote := func(text string) string { data, _ := json.Marshal(text); return string(data) }
			words := quote(<-imported + " as user with s3cr3t-password, from https://mirror.invalid/image?signature=s3cr3t-announced")
			for _, metadata := range []string{
				`{"id":"work","class":"task","status_code":400,"description":` + words + `,"err":` + words + `,"metadata":{"download_progress":` + words + `}}`,
				`{"id":"token","class":"token","status_code":103,"metadata":{"secret":"s3cr3t-token","request":"use s3cr3t-token"}}`,
				`{"id":"exec","class":"websocket","status_code":103,"metadata":{"fds":{"0":"s3cr3t-fd","control":"s3cr3t-control"}}}`,
			} {
				_ = conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"operation","metadata":`+metadata+`}`))
			}
			_ = conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"lifecycle","metadata":{"action":"image-created","source":"/1.0/images/aa","context":{"words":`+words+`}}}`))
			_, _, _ = conn.ReadMessage() // until the client goes
		}
	}))
	t.Cleanup(server.Close)
	client := testkit.NewClient(t, server.URL, &lxd.Options{ServerFingerprint: fingerprintOf(server.Certificate().Raw), RetryTimeout: -1})
	seen := map[string]lxd.Event{}
	for event, err := range client.Events(t.Context(), nil) {
		require.NoError(t, err)
		switch event.Type {
		case lxd.EventConnected:
			_, err := client.Images.CreateFromURL(t.Context(), "https://user:s3cr3t-password@source.invalid/image?key=s3cr3t-query", &lxd.CreateFromURLOptions{Via: lxd.ViaServer})
			require.NoError(t, err)
			continue
		case lxd.EventOperation:
			seen[event.Operation.ID] = event
		default:
			seen["lifecycle"] = event
		}
		text := fmt.Sprintf("%+v %+v", event.Operation, event.Lifecycle)
		require.NotContains(t, text, "s3cr3t")
		if len(seen) == 4 {
			break
		}
	}
	require.Contains(t, seen["work"].Operation.Error, "https://source.invalid/image", "what is no secret stays")
	require.Contains(t, seen["work"].Operation.Error, "https://mirror.invalid/image")
}
