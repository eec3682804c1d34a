package lxdtest

import (
	"net/http"
)

func (s *Server) serveCreateFrom(w http.ResponseWriter, r *http.Request, project string) error {
	return fail(http.StatusBadRequest, "Invalid images JSON")
}
func (s *Server) serveRefresh(w http.ResponseWriter, r *http.Request, name string) error {
	return errNotFound
}
func (s *Server) serveRegistries(w http.ResponseWriter, r *http.Request) error { return errNotFound }
func (s *Server) serveCreateRegistry(w http.ResponseWriter, r *http.Request) error {
	return errNotFound
}
func (s *Server) serveRegistry(w http.ResponseWriter, r *http.Request, name string) error {
	return errNotFound
}
func (s *Server) serveDeleteRegistry(w http.ResponseWriter, r *http.Request, name string) error {
	return errNotFound
}

type registry struct{}
type instance struct{}
type instanceKey struct{}
