package lxdtest

import (
	"errors"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"os"
)

// serveExport sends the file of a unified image, with support for Range, or the
// two files of a split one as a form.
func (s *Server) serveExport(w http.ResponseWriter, r *http.Request, name string) error {
	s.mu.Lock()
	img, err := s.visibleImage(r, name)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	out := *img
	// The files are opened under the lock, so that they cannot be deleted before.
	files, err := openFiles(out.metadata, out.rootfs)
	lost := errors.Is(err, fs.ErrNotExist) || s.fire(kindLoseContent)
	s.mu.Unlock()
	defer closeFiles(files)
	if lost {
		return s.traits.contentMissing(out.key.fingerprint, out.metadata)
	}
	if err != nil {
		return err
	}
	if s.traits.family == "incus" {
		w.Header().Set("X-Incus-Type", "incus")
	}
	s.publishLifecycle(r, "image-retrieved", imageURL(out.key), out.key.project, nil)
	if out.rootfs != "" {
		s.exportSplit(w, r, &out, files)
		return nil
	}
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Disposition", "inline;filename="+out.key.fingerprint+out.suffix)
	// ServeContent implements Range, If-Range and Last-Modified.
	http.ServeContent(w, r, "", out.uploaded, files[0])
	return nil
}

// openFiles opens the files of an image.
func openFiles(paths ...string) (files []*os.File, err error) {
	for _, path := range paths {
		if path == "" {
			continue
		}
		file, err := os.Open(path)
		if err != nil {
			closeFiles(files)
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, file := range files {
		_ = file.Close()
	}
}

// exportSplit sends a split image as a form of unknown length. Like the daemons
// it does not report read errors: the form is completed nevertheless.
func (s *Server) exportSplit(w http.ResponseWriter, r *http.Request, img *image, files []*os.File) {
	form := multipart.NewWriter(w)
	w.Header().Set("Content-Type", form.FormDataContentType())
	// Flushing prevents net/http from setting a length, which short forms would
	// get.
	_ = http.NewResponseController(w).Flush()
	rootfs := "rootfs"
	if img.kind == "virtual-machine" {
		rootfs = "rootfs.img"
	}
	limit, cut := truncation(r)
	parts := []struct {
		name, filename string
		content        io.Reader
	}{
		{"metadata", "meta-" + img.key.fingerprint + img.suffix, files[0]},
		{rootfs, img.key.fingerprint + suffixOf(r.Context(), files[1]), files[1]},
	}
	if cut {
		parts[1].content = io.LimitReader(files[1], limit)
	}
	for _, part := range parts {
		out, err := form.CreateFormFile(part.name, part.filename)
		if err != nil {
			return
		}
		if _, err := io.CopyBuffer(onlyWriter{out}, onlyReader{part.content}, make([]byte, 256<<10)); err != nil {
			break
		}
	}
	_ = form.Close()
}
