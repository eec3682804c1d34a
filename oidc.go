package lxd

import (
	"net/http"
	"strings"

	"github.com/golxd/lxd/internal/daemon"
)

// OIDCProvider is what a server says of the OpenID Connect provider whose
// access tokens it takes. It comes with an [*Error] that is an
// [ErrUnauthorized]:
//
//	var refused *lxd.Error
//	if errors.As(err, &refused) && refused.OIDC != nil {
//		// Log in with refused.OIDC.Issuer, then make the client anew with a TokenSource.
//	}
type OIDCProvider struct {
	Issuer   string   // its URL
	ClientID string   // to log in as
	Audience string   // that the token has to be for; "" for any
	Scopes   []string // to ask for; nil where the server does not tell (LXD 5.0.2, Incus 6.0.4)
}

// String tells all of it in one line.
func (p *OIDCProvider) String() string {
	s := "provider " + p.Issuer + " for the client id " + p.ClientID
	if p.Audience != "" {
		s += " and the audience " + p.Audience
	}
	return s
}

// oidcProvider reads the headers of either family; nil without any.
func oidcProvider(h http.Header) *OIDCProvider {
	for _, family := range daemon.Unknown.Prefixes() {
		prefix := "X-" + family + "-OIDC-"
		p := OIDCProvider{
			Issuer:   h.Get(prefix + "issuer"),
			ClientID: h.Get(prefix + "clientid"),
			Audience: h.Get(prefix + "audience"),
			Scopes:   scopes(h.Get(prefix + "scopes")),
		}
		if p.Issuer != "" {
			return &p
		}
	}
	return nil
}

// scopes splits a list, whichever of the separators in use it has.
func scopes(list string) []string {
	if list == "" {
		return nil
	}
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}
