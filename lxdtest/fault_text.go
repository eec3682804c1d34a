package lxdtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// faultForms are the faults that have a written form, each with the parameters of its
// constructor.
var faultForms = []struct {
	fault  Fault
	params string
}{
	{Refuse(), ""},
	{Reset(), ""},
	{LoseResponse(), ""},
	{CutResponse(0), "bytes"},
	{CutRequest(0), "bytes"},
	{StallHeaders(), ""},
	{Latency(0), "pause"},
	{StallResponse(0), "bytes"},
	{StallRequest(0), "bytes"},
	{HalfOpen(0), "bytes"},
	{SlowLoris(0), "pause"},
	{Corrupt(0), "bytes"},
	{ShortLength(0), "bytes"},
	{TruncateRootfs(0), "bytes"},
	{Unavailable(), ""},
	{TooManyRequests(0), "pause"},
	{Status(0, ""), "status message"},
	{EarlyResponse(0, 0, ""), "bytes status message"},
	{HTML(), ""},
	{EndlessJSON(), ""},
	{Redirect(""), "url"},
	{RateLimit(0), "bytes"},
	{RestartServer(0), "bytes"},
	{DuplicateEvents(), ""},
	{ReorderEvents(), ""},
	{DropEvents(), ""},
	{ForgetOperations(), ""},
	{StallOperations(), ""},
	{StallImages(), ""},
	{FailImages(""), "message"},
	{StallUpdates(), ""},
	{LoseInsert(), ""},
	{LoseContent(), ""},
	{CacheStreams(), ""},
	{SlowRename(0), "pause"},
}

// headerName is what net/http sends; others it drops.
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// faultJSON is the written form of a fault. Those fields are pointers whose zero value is
// a parameter too.
type faultJSON struct {
	Fault   string            `json:"fault"`
	Bytes   *int64            `json:"bytes,omitempty"`
	Pause   *string           `json:"pause,omitempty"`
	Status  *int              `json:"status,omitempty"`
	Message *string           `json:"message,omitempty"`
	URL     *string           `json:"url,omitempty"`
	Method  string            `json:"method,omitempty"`
	Path    string            `json:"path,omitempty"`
	Times   int               `json:"times,omitempty"`
	Header  map[string]string `json:"header,omitempty"`
}

// ParseFault returns the fault that a text describes, such as
//
//	cut-response bytes=1048576 method=GET path=/1.0/images/*/export times=2
//	status status=507 message="no space left" header.Retry-After=5
//	latency pause=250ms
//
// First comes the name: that of the function which returns the fault, in lower case with
// dashes. Then come all parameters of that function, in any order: bytes (an offset, a
// number of bytes or a rate), pause (as time.ParseDuration reads it; of too-many-requests
// the Retry-After), status, message and url. These may follow: method and path, as in
// Fault.On, times, as in Fault.Times, and header.NAME, as in Fault.WithHeader. A value with
// spaces or quotes is written as a Go string. What the fault does not have is refused.
// Call has no such form.
func ParseFault(text string) (Fault, error) {
	var form faultJSON
	var rest string
	seen := map[string]bool{}
	form.Fault, rest, _ = strings.Cut(strings.TrimSpace(text), " ")
	for rest = strings.TrimSpace(rest); rest != ""; rest = strings.TrimSpace(rest) {
		key, after, ok := strings.Cut(rest, "=")
		if !ok || key == "" || strings.ContainsAny(key, " \t\"") {
			return Fault{}, fmt.Errorf("lxdtest: fault %q: %q is not of the form key=value", form.Fault, rest)
		}
		var value string
		if quoted, err := strconv.QuotedPrefix(after); err == nil {
			value, _ = strconv.Unquote(quoted)
			rest = after[len(quoted):]
			if rest != "" && rest[0] != ' ' {
				return Fault{}, fmt.Errorf("lxdtest: fault %q: a space is missing after %s=%s", form.Fault, key, quoted)
			}
		} else {
			value, rest, _ = strings.Cut(after, " ")
		}
		if seen[key] {
			return Fault{}, fmt.Errorf("lxdtest: fault %q: %s is there twice", form.Fault, key)
		}
		seen[key] = true
		if err := form.set(key, value); err != nil {
			return Fault{}, fmt.Errorf("lxdtest: fault %q: %w", form.Fault, err)
		}
	}
	return form.fault()
}

// set sets a field from the text form.
func (p *faultJSON) set(key, value string) error {
	number := func() (int, error) {
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0, fmt.Errorf("%s must be a whole number, not %q", key, value)
		}
		return n, nil
	}
	if name, ok := strings.CutPrefix(key, "header."); ok {
		if p.Header == nil {
			p.Header = map[string]string{}
		}
		p.Header[name] = value
		return nil
	}
	switch key {
	case "bytes":
		n, err := number()
		p.Bytes = new(int64(n))
		return err
	case "status":
		n, err := number()
		p.Status = &n
		return err
	case "times":
		n, err := number()
		p.Times = n
		return err
	case "pause":
		p.Pause = &value
	case "message":
		p.Message = &value
	case "url":
		p.URL = &value
	case "method":
		p.Method = value
	case "path":
		p.Path = value
	default:
		return fmt.Errorf("no fault has %q; they have bytes, pause, status, message, url, method, path, times and header.NAME", key)
	}
	return nil
}

// UnmarshalJSON reads a fault from a JSON object: its name is the field "fault", the others are
// called and checked as in ParseFault. Header is an object.
//
//	{"fault": "cut-response", "bytes": 1048576, "path": "/1.0/images/*/export", "times": 2}
func (f *Fault) UnmarshalJSON(data []byte) error {
	var form faultJSON
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&form); err != nil {
		return fmt.Errorf("lxdtest: fault: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("lxdtest: fault: more than one JSON value")
	}
	fault, err := form.fault()
	if err == nil {
		*f = fault
	}
	return err
}

// fault checks the fields and returns the fault.
func (p *faultJSON) fault() (Fault, error) {
	refuse := func(format string, args ...any) (Fault, error) {
		return Fault{}, fmt.Errorf("lxdtest: fault %q: "+format, append([]any{p.Fault}, args...)...)
	}
	at := slices.IndexFunc(faultForms, func(form struct {
		fault  Fault
		params string
	}) bool {
		return form.fault.name == p.Fault
	})
	if at < 0 {
		names := make([]string, len(faultForms))
		for n, form := range faultForms {
			names[n] = form.fault.name
		}
		return refuse("no such fault; the faults are %s", strings.Join(names, ", "))
	}
	f, params := faultForms[at].fault, strings.Fields(faultForms[at].params)
	for name, given := range p.given() {
		switch {
		case given && !slices.Contains(params, name):
			return refuse("it has no %s", name)
		case !given && slices.Contains(params, name):
			return refuse("%s is missing", name)
		}
	}
	if p.Bytes != nil {
		if f.bytes = *p.Bytes; f.bytes < 0 || f.bytes == 0 && f.kind == kindRateLimit {
			return refuse("bytes must not be %d", f.bytes)
		}
	}
	if p.Pause != nil {
		var err error
		if f.pause, err = time.ParseDuration(*p.Pause); err != nil || f.pause <= 0 {
			return refuse("pause must be a time above 0 such as 250ms, not %q", *p.Pause)
		}
	}
	if p.Status != nil {
		if f.status = *p.Status; f.status < 400 || f.status > 599 {
			return refuse("status must be that of an error, 400 to 599, not %d", f.status)
		}
	}
	if p.Message != nil {
		f.message = *p.Message
	}
	if p.URL != nil {
		f.url = *p.URL
	}
	switch _, err := path.Match(p.Path, ""); {
	case (p.Method != "" || p.Path != "") && !f.onRequests():
		return refuse("it has no method and path: it does not depend on requests")
	case p.Times != 0 && (f.kind == kindRefuse || f.kind == kindRateLimit):
		return refuse("it has no times: it lasts until it is removed")
	case len(p.Header) > 0 && f.kind != kindStatus && f.kind != kindEarly:
		return refuse("it has no header")
	case p.Times < 0:
		return refuse("times must not be %d", p.Times)
	case p.Method != strings.ToUpper(p.Method):
		return refuse("method must be in capitals, not %q", p.Method)
	case p.Path != "" && p.Path[0] != '/':
		return refuse("path must begin with a slash, unlike %q", p.Path)
	case err != nil:
		return refuse("path %q: %w", p.Path, err)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Header)) {
		if !headerName.MatchString(name) {
			return refuse("%q is not the name of a header", name)
		}
		f = f.WithHeader(name, p.Header[name])
	}
	return f.On(p.Method, p.Path).Times(p.Times), nil
}

// given reports which of the parameters are set.
func (p *faultJSON) given() map[string]bool {
	return map[string]bool{
		"bytes": p.Bytes != nil, "pause": p.Pause != nil, "status": p.Status != nil, "message": p.Message != nil, "url": p.URL != nil,
	}
}

// form returns the written form of a fault.
func (f Fault) form() faultJSON {
	p := faultJSON{Fault: f.name, Method: f.method, Path: f.pattern, Times: f.times}
	for _, form := range faultForms {
		if form.fault.name != f.name {
			continue
		}
		for param := range strings.FieldsSeq(form.params) {
			switch param {
			case "bytes":
				p.Bytes = &f.bytes
			case "pause":
				p.Pause = new(f.pause.String())
			case "status":
				p.Status = &f.status
			case "message":
				p.Message = &f.message
			case "url":
				p.URL = &f.url
			}
		}
	}
	for name := range f.header {
		if p.Header == nil {
			p.Header = map[string]string{}
		}
		p.Header[name] = f.header.Get(name)
	}
	return p
}

// MarshalJSON returns the form that UnmarshalJSON reads. A Call has none.
func (f Fault) MarshalJSON() ([]byte, error) {
	if f.kind == kindCall {
		return nil, errors.New("lxdtest: a Call cannot be written as JSON")
	}
	return json.Marshal(f.form())
}

// String returns the fault in the form that ParseFault reads; of a Call, "call".
func (f Fault) String() string {
	p := f.form()
	text := p.Fault
	add := func(key, value string) {
		if value == "" || strings.ContainsAny(value, " \"`'\\") || strconv.Quote(value) != `"`+value+`"` {
			value = strconv.Quote(value)
		}
		text += " " + key + "=" + value
	}
	if p.Bytes != nil {
		add("bytes", strconv.FormatInt(*p.Bytes, 10))
	}
	if p.Pause != nil {
		add("pause", *p.Pause)
	}
	if p.Status != nil {
		add("status", strconv.Itoa(*p.Status))
	}
	if p.Message != nil {
		add("message", *p.Message)
	}
	if p.URL != nil {
		add("url", *p.URL)
	}
	if p.Method != "" {
		add("method", p.Method)
	}
	if p.Path != "" {
		add("path", p.Path)
	}
	if p.Times != 0 {
		add("times", strconv.Itoa(p.Times))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Header)) {
		add("header."+http.CanonicalHeaderKey(name), p.Header[name])
	}
	return text
}
