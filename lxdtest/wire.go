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
)

// envelope is the envelope of every JSON response.
type envelope struct {
	Type       string `json:"type"`
	Status     string `json:"status"`
	StatusCode int    `json:"status_code"`
	Operation  string `json:"operation"`
	ErrorCode  int    `json:"error_code"`
	Error      string `json:"error"`
	Metadata   any    `json:"metadata"`
}

// apiError is an error with an HTTP status and the daemon's message.
type apiError struct {
	code    int
	message string
}

func (e *apiError) Error() string { return e.message }

// statusErrorf returns an apiError.
func statusErrorf(code int, format string, args ...any) error {
	return &apiError{code, fmt.Sprintf(format, args...)}
}

// daemonErrorf returns an error with a daemon's message, which may begin with a
// capital.
func daemonErrorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

var (
	errNotFound       = statusErrorf(http.StatusNotFound, "not found")
	errForbidden      = statusErrorf(http.StatusForbidden, "not authorized")
	errNoImage        = statusErrorf(http.StatusNotFound, "Image not found")
	errNotImplemented = statusErrorf(http.StatusNotImplemented, "not implemented")
	errAmbiguous      = statusErrorf(http.StatusInternalServerError, "More than one image matches")
	errNoAlias        = statusErrorf(http.StatusNotFound, "Image alias not found")
)

// writeJSON responds with one JSON value. As in the daemons, net/http sets the
// length of short responses and sends long ones in chunks.
func writeJSON(w http.ResponseWriter, code int, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	data = append(data, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// An error means that the client is gone, and there is nobody to report it
	// to.
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

// writeSync responds with metadata.
func writeSync(w http.ResponseWriter, metadata any) {
	writeJSON(w, http.StatusOK, syncEnvelope(metadata))
}

// writeEmpty responds with empty metadata, as the daemons do after a change.
func writeEmpty(w http.ResponseWriter) { writeSync(w, struct{}{}) }

// writeETag responds with metadata and its ETag.
func writeETag(w http.ResponseWriter, etag string, metadata any) {
	w.Header().Set("Etag", `"`+etag+`"`)
	writeSync(w, metadata)
}

// writeCreated responds to a request that has created something.
func writeCreated(w http.ResponseWriter, location string) {
	w.Header().Set("Location", location)
	writeJSON(w, http.StatusCreated, syncEnvelope(nil))
}

// writeError responds with an error; one that is not an apiError becomes a 500.
func writeError(w http.ResponseWriter, err error) {
	e := errorEnvelope(err)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	writeJSON(w, e.ErrorCode, e)
}

// etagOf hashes a resource, or the list of its relevant fields, as the daemons
// do.
func etagOf(value any) string {
	hash := sha256.New()
	// Strings, booleans, times and maps of strings always encode.
	_ = json.NewEncoder(hash).Encode(value)
	return hex.EncodeToString(hash.Sum(nil))
}

// checkETag compares the If-Match of a request with the ETag of the resource.
func (s *Server) checkETag(r *http.Request, etag string) error {
	want := r.Header.Get("If-Match")
	if want == "" {
		return nil
	}
	want = strings.Trim(strings.TrimPrefix(want, "W/"), `"`)
	if want != etag {
		return statusErrorf(http.StatusPreconditionFailed, s.traits.texts.etag, etag, want)
	}
	return nil
}

// maxJSON is the largest JSON body that is read, in bytes.
const maxJSON = 16 << 20

// readJSON decodes the body of a request; its errors have status 400.
func readJSON(r *http.Request, value any) error {
	data, err := io.ReadAll(io.LimitReader(r.Body, maxJSON+1))
	if err != nil {
		return statusErrorf(http.StatusBadRequest, "%v", err)
	}
	if len(data) > maxJSON {
		return statusErrorf(http.StatusBadRequest, "The request is too large")
	}
	// Unlike json.Unmarshal, a decoder reports an empty body as EOF, as the
	// daemons do.
	if err := json.NewDecoder(strings.NewReader(string(data))).Decode(value); err != nil {
		return statusErrorf(http.StatusBadRequest, "%v", err)
	}
	return nil
}
