package testing

import (
	"bytes"
	"os"
	"testing"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/lxdtest"
)

func TestBackup(t *testing.T) {
	server := lxdtest.NewServer(&lxdtest.Options{Dialect: lxdtest.Incus60})
	defer server.Close()
	client, err := lxd.New(server.Endpoint(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	content := lxdtest.UnifiedImage("web", 1<<20)
	if _, err := server.AddImage(content, &lxdtest.AddOptions{Aliases: []string{"web"}}); err != nil {
		t.Fatal(err)
	}
	cut := server.Inject(lxdtest.CutResponse(300_000).On("GET", "/1.0/images/*/export").Times(2))

	files, err := Backup(t.Context(), client, "web", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(files.Image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("the backup is not the image")
	}
	if cut.Fired() != 2 {
		t.Errorf("the connection broke %d times", cut.Fired())
	}
}
