package lxdtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// envelope is the frame of every JSON answer.
type envelope struct {
	Type       string `json:"type"`
	Status     string `json:"status"`
	StatusCode int    `json:"status_code"`
	Operation  string `json:"operation"`
	ErrorCode  int    `json:"error_code"`
	Error      string `json:"error"`
	Metadata   any    `json:"metadata"`
}

// apiError is a refusal: the HTTP status and the daemon's words.
type apiError struct {
	code    int
	message string
}

func (e *apiError) Error() string { return e.message }

func statusErrorf(code int, format string, args ...any) error {
	return &apiError{code, fmt.Sprintf(format, args...)}
}

// says is an error in the daemons' own words, which begin with a capital.
func daemonErrorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

var (
	errNotFound  = statusErrorf(http.StatusNotFound, "not found")
	errForbidden = statusErrorf(http.StatusForbidden, "not authorized")
	errNoImage   = statusErrorf(http.StatusNotFound, "Image not found")
	errNoAlias   = statusErrorf(http.StatusNotFound, "Image alias not found")
)

// writeJSON answers with one JSON value. As with the daemons, short answers
// tell their length and long ones come in chunks.
func writeJSON(w http.ResponseWriter, code int, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	data = append(data, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// A client that has gone away is its own affair.
	_, _ = w.Write(data)
}

func syncEnvelope(metadata any) envelope {
	return envelope{Type: "sync", Status: "Success", StatusCode: 200, Metadata: metadata}
}

func errorEnvelope(err error) envelope {
	code := http.StatusInternalServerError
	var refused *apiError
	if errors.As(err, &refused) {
		code = refused.code
	}
	return envelope{Type: "error", ErrorCode: code, Error: err.Error()}
}

// writeSync answers with metadata.
func writeSync(w http.ResponseWriter, metadata any) {
	writeJSON(w, http.StatusOK, syncEnvelope(metadata))
}

// writeEmpty answers a change with the empty metadata of the daemons.
func writeEmpty(w http.ResponseWriter) { writeSync(w, struct{}{}) }

// writeETag answers with metadata under an ETag.
func writeETag(w http.ResponseWriter, etag string, metadata any) {
	// The daemons write the header this way, not in its canonical form.
	w.Header()["Etag"] = []string{`"` + etag + `"`}
	writeSync(w, metadata)
}

// writeCreated answers a creation that is done.
func writeCreated(w http.ResponseWriter, location string) {
	w.Header().Set("Location", location)
	writeJSON(w, http.StatusCreated, syncEnvelope(nil))
}

// writeError answers with an error; one that is not an apiError is a 500.
func writeError(w http.ResponseWriter, err error) {
	e := errorEnvelope(err)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	writeJSON(w, e.ErrorCode, e)
}

// etagOf hashes a resource, or the list of what counts in it, as the daemons do.
func etagOf(value any) string {
	hash := sha256.New()
	// Strings, booleans, times and maps of strings always encode.
	_ = json.NewEncoder(hash).Encode(value)
	return hex.EncodeToString(hash.Sum(nil))
}

// checkETag compares the If-Match of a request with the ETag of the resource.
func checkETag(r *http.Request, etag string) error {
	want := r.Header.Get("If-Match")
	if want == "" {
		return nil
	}
	want = strings.Trim(strings.TrimPrefix(want, "W/"), `"`)
	if want != etag {
		return statusErrorf(http.StatusPreconditionFailed, "ETag doesn't match: %s vs %s", etag, want)
	}
	return nil
}

// maxJSON bounds the JSON that is read from a request.
const maxJSON = 16 << 20

// readJSON decodes the body of a request; what is wrong with it is a 400.
func readJSON(r *http.Request, value any) error {
	data, err := io.ReadAll(io.LimitReader(r.Body, maxJSON+1))
	if err != nil {
		return statusErrorf(http.StatusBadRequest, "%v", err)
	}
	if len(data) > maxJSON {
		return statusErrorf(http.StatusBadRequest, "The request is too large")
	}
	// The decoder's error on an empty body is EOF, as the daemons have it.
	if err := json.NewDecoder(strings.NewReader(string(data))).Decode(value); err != nil {
		return statusErrorf(http.StatusBadRequest, "%v", err)
	}
	return nil
}

// jsonTime is a time in a request, where zero means that none was given.
type jsonTime struct{ time.Time }
