package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/golxd/lxd/lxdtest"
)

func TestUploadAndExport(t *testing.T) {
	server := lxdtest.NewServer(nil)
	defer server.Close()
	t.Setenv("LXD_SOCKET", server.Socket())
	content := lxdtest.UnifiedImage("progress", 1<<20)
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"upload", path}); err != nil {
		t.Fatal(err)
	}
	fingerprint, dir := lxdtest.Fingerprint(content), t.TempDir()
	if err := run(t.Context(), []string{"export", fingerprint, dir}); err != nil {
		t.Fatal(err)
	}
	exported, err := os.ReadFile(filepath.Join(dir, fingerprint+".tar"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content, exported) {
		t.Error("the exported content differs from the uploaded content")
	}
	if err := run(t.Context(), nil); err == nil {
		t.Error("no usage error without arguments")
	}
}
