package testdaemon

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// fakeVariable is the environment variable that makes the fake daemon fail:
// "broken" or "mute".
const fakeVariable = "TESTDAEMON_FAKE"

// TestMain runs a fake daemon if the test binary is started with a daemon's
// arguments. It serves the few calls that Start needs, so that starting and
// stopping is tested on machines without LXD and Incus.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "--group" {
		fmt.Fprintln(os.Stderr, "fake daemon:", runFake())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

type fakeDaemon struct {
	dir         string
	certificate tls.Certificate
	pem         string
	config      map[string]string
}

func runFake() error {
	switch os.Getenv(fakeVariable) {
	case "broken":
		return errors.New("the database is broken")
	case "mute":
		select {}
	}
	dir := os.Getenv("LXD_DIR")
	f := &fakeDaemon{dir: dir, config: map[string]string{}}
	if err := f.load(); err != nil {
		return err
	}
	if address := f.config["core.https_address"]; address != "" {
		if err := f.listen(address); err != nil {
			return err
		}
	}
	socket := filepath.Join(dir, "unix.socket")
	if err := os.RemoveAll(socket); err != nil {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return http.Serve(listener, f)
}

// load reads the state that an earlier run in the same directory saved.
func (f *fakeDaemon) load() error {
	keyPath, certificatePath := filepath.Join(f.dir, "server.key"), filepath.Join(f.dir, "server.crt")
	if _, err := os.Stat(keyPath); errors.Is(err, fs.ErrNotExist) {
		certificate, key, err := newClientPair()
		if err != nil {
			return err
		}
		if err := errors.Join(os.WriteFile(certificatePath, certificate, 0o600), os.WriteFile(keyPath, key, 0o600)); err != nil {
			return err
		}
	}
	pem, err := os.ReadFile(certificatePath)
	if err != nil {
		return err
	}
	f.pem = string(pem)
	if f.certificate, err = tls.LoadX509KeyPair(certificatePath, keyPath); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(f.dir, "config"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(data, &f.config)
}

func (f *fakeDaemon) listen(address string) error {
	listener, err := tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{f.certificate}})
	if err != nil {
		return err
	}
	go http.Serve(listener, f)
	return nil
}

func (f *fakeDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "GET /1.0":
		f.respond(w, map[string]any{
			"config":      f.config,
			"environment": map[string]any{"certificate": f.pem, "server_version": "5.0.2"},
		})
	case "PATCH /1.0":
		var body struct {
			Config map[string]string `json:"config"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			f.respondError(w, http.StatusBadRequest, err.Error())
			return
		}
		if address := body.Config["core.https_address"]; address != "" {
			if err := f.listen(address); err != nil {
				f.respondError(w, http.StatusInternalServerError, err.Error())
				return
			}
		}
		for key, value := range body.Config {
			f.config[key] = value
		}
		data, err := json.Marshal(f.config)
		if err == nil {
			err = os.WriteFile(filepath.Join(f.dir, "config"), data, 0o600)
		}
		if err != nil {
			f.respondError(w, http.StatusInternalServerError, err.Error())
			return
		}
		f.respond(w, nil)
	case "POST /1.0/certificates":
		f.respond(w, nil)
	default:
		f.respondError(w, http.StatusNotFound, "not found")
	}
}

func (f *fakeDaemon) respond(w http.ResponseWriter, metadata any) {
	json.NewEncoder(w).Encode(map[string]any{"type": "sync", "status_code": 200, "metadata": metadata})
}

func (f *fakeDaemon) respondError(w http.ResponseWriter, code int, message string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"type": "error", "error_code": code, "error": message})
}
