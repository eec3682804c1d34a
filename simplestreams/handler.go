package simplestreams

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

// NewHandler returns a handler that serves the files of a tree, such as those of [DirStore.FS], [os.Root.FS] or an
// [embed.FS], for programs that have no web server. It answers GET and HEAD, with ranges and conditional requests; the ETag
// is made of the size and the modification time. Directories are not listed, and are not found, as are files whose path
// contains a name that begins with ".". Paths do not lead out of files; symbolic links do, if files follows them, as
// [os.DirFS] does.
//
// The files must implement [io.Seeker].
func NewHandler(files fs.FS) http.Handler { return handler{files} }

type handler struct{ files fs.FS }

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	if h.files == nil || !storePath(name) {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	file, err := openRegular(h.files, name)
	if err != nil {
		h.fail(w, err)
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		h.fail(w, err)
		return
	}
	content, ok := file.(io.ReadSeeker)
	if !ok {
		http.Error(w, "the file system cannot seek", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType(name))
	modified := info.ModTime()
	if !modified.IsZero() {
		w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, info.Size(), modified.UnixNano()))
	}
	if modified.After(time.Now()) {
		modified = time.Time{} // RFC 9110 forbids a Last-Modified in the future.
	}
	http.ServeContent(w, r, "", modified, content)
}

// fail answers for a file that cannot be opened. Why it is not open to others is not said.
func (handler) fail(w http.ResponseWriter, err error) {
	status := http.StatusNotFound
	var errno interface{ Temporary() bool }
	if errors.As(err, &errno) && errno.Temporary() {
		status = http.StatusServiceUnavailable
	}
	http.Error(w, strings.ToLower(http.StatusText(status)), status)
}

func contentType(name string) string {
	switch path.Ext(name) {
	case ".json":
		return "application/json"
	case ".sjson", ".gpg":
		return "text/plain; charset=utf-8"
	default:
		return "application/octet-stream"
	}
}
