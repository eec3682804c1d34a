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
	fingerprint, folder := lxdtest.Fingerprint(content), t.TempDir()
	if err := run(t.Context(), []string{"export", fingerprint, folder}); err != nil {
		t.Fatal(err)
	}
	exported, err := os.ReadFile(filepath.Join(folder, fingerprint+".tar"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content, exported) {
		t.Error("what was exported is not what was uploaded")
	}
	if err := run(t.Context(), nil); err == nil {
		t.Error("no usage without arguments")
	}
}
