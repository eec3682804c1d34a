// Package formname renames a file of a multipart form while the form streams
// through.
package formname

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"slices"
)

// maxHeader is the maximum size of the header of a part, in bytes.
const maxHeader = 64 << 10

const window = 64 << 10

// Rename returns the form r with another filename for its second file. Nothing else
// of the form changes; after that file's header the bytes pass through unparsed.
func Rename(r io.Reader, boundary, filename string) io.Reader {
	return &renamer{r: r, delimiter: []byte("--" + boundary + "\r\n"), filename: filename}
}

type renamer struct {
	r         io.Reader
	delimiter []byte
	filename  string

	parts int    // delimiters seen
	buf   []byte // read from r and not yet searched
	out   []byte // the next bytes of Read
	eof   error
	done  bool // the rest passes through unchanged
}

func (r *renamer) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if r.done {
			if len(r.buf) > 0 {
				r.out, r.buf = r.buf, nil
				break
			}
			if r.eof != nil {
				return 0, r.eof
			}
			return r.r.Read(p)
		}
		r.step()
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// step searches buf, and moves the searched bytes to out.
func (r *renamer) step() {
	at := bytes.Index(r.buf, r.delimiter)
	switch {
	case at >= 0 && r.parts == 0:
		r.parts++
		r.take(at + len(r.delimiter))
	case at >= 0:
		r.rewrite(at + len(r.delimiter))
	case r.eof != nil:
		r.done = true // not such a form: the receiver will report that
	case len(r.buf) > len(r.delimiter):
		// The kept bytes may be the beginning of a delimiter.
		r.take(len(r.buf) - len(r.delimiter))
	default:
		r.fill()
	}
}

func (r *renamer) take(n int) {
	r.out = r.buf[:n:n]
	r.buf = r.buf[n:]
}

func (r *renamer) fill() {
	if cap(r.buf)-len(r.buf) < window/16 {
		r.buf = slices.Grow(r.buf, window)
	}
	n, err := r.r.Read(r.buf[len(r.buf):cap(r.buf)])
	r.buf, r.eof = r.buf[:len(r.buf)+n], err
}

// rewrite replaces the header that begins at start.
func (r *renamer) rewrite(start int) {
	blank := []byte("\r\n\r\n")
	for {
		end := bytes.Index(r.buf[start:], blank)
		if end >= 0 {
			header := rename(r.buf[start:start+end], r.filename)
			out := make([]byte, 0, start+len(header))
			out = append(out, r.buf[:start]...)
			r.out = append(out, header...)
			r.buf, r.done = r.buf[start+end:], true
			return
		}
		if r.eof != nil || len(r.buf)-start > maxHeader {
			r.done = true
			return
		}
		r.fill()
	}
}

// rename replaces the filename in the lines of a header.
func rename(header []byte, filename string) []byte {
	lines := bytes.Split(header, []byte("\r\n"))
	for n, line := range lines {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !bytes.EqualFold(bytes.TrimSpace(name), []byte("Content-Disposition")) {
			continue
		}
		_, params, err := mime.ParseMediaType(string(bytes.TrimSpace(value)))
		if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
			continue
		}
		lines[n] = []byte("Content-Disposition: " + multipart.FileContentDisposition(params["name"], filename))
	}
	return bytes.Join(lines, []byte("\r\n"))
}
