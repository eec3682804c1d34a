package lxd

import (
	"net/http"
	"strings"

	"github.com/golxd/lxd/internal/daemon"
)

// OIDCProvider is the OpenID Connect provider whose access tokens a server
// accepts, as the server describes it. It is part of an [*Error] that matches
// [ErrUnauthorized]:
//
//	var refused *lxd.Error
//	if errors.As(err, &refused) && refused.OIDC != nil {
//		// Log in with refused.OIDC.Issuer, then create a client with a TokenSource.
//	}
type OIDCProvider struct {
	Issuer   string   // its URL
	ClientID string   // to log in as
	Audience string   // that the token must be for; "" for any
	Scopes   []string // to ask for; nil if the server does not say (LXD 5.0.2, Incus 6.0.4)
}

// String returns the issuer, client ID and audience in one line.
func (p *OIDCProvider) String() string {
	s := "provider " + p.Issuer + " for the client ID " + p.ClientID
	if p.Audience != "" {
		s += " and the audience " + p.Audience
	}
	return s
}

// oidcProvider reads the headers of either family; it returns nil if there are
// none.
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

// scopes splits a list at commas and spaces; servers use either.
func scopes(list string) []string {
	if list == "" {
		return nil
	}
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}
