package testdaemon

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// StartCluster starts daemons of one family that form a cluster, and returns when
// each responds. The members listen on 127.0.0.1, 127.0.0.2 and so on, show one
// certificate and trust one client certificate.
func StartCluster(ctx context.Context, family Family, size int, opts *Options) (members []*Daemon, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, d := range members {
			err = errors.Join(err, d.Close())
		}
		members = nil
	}()
	for n := range size {
		var o Options
		if opts != nil {
			o = *opts
		}
		o.host = fmt.Sprintf("127.0.0.%d", n+1)
		d, err := Start(ctx, family, &o)
		if err != nil {
			return members, err
		}
		members = append(members, d)
	}
	first := members[0]
	if err := first.Do(ctx, "PUT", "/1.0/cluster", map[string]any{"server_name": memberName(0), "enabled": true}, nil); err != nil {
		return members, err
	}
	if err := first.readServer(ctx); err != nil {
		return members, err
	}
	for n, d := range members[1:] {
		if err := first.admit(ctx, d, memberName(n+1)); err != nil {
			return members, err
		}
	}
	for _, d := range members {
		for n := range members {
			d.members = append(d.members, memberName(n))
		}
	}
	return members, nil
}

func memberName(n int) string { return fmt.Sprintf("member%d", n+1) }

// admit makes a daemon a member of the cluster of first.
func (d *Daemon) admit(ctx context.Context, member *Daemon, name string) error {
	join := map[string]any{
		"server_name":         name,
		"enabled":             true,
		"server_address":      member.URL[len("https://"):],
		"cluster_address":     d.URL[len("https://"):],
		"cluster_certificate": string(d.ServerCertificate),
	}
	if d.TrustPassword != "" {
		join["cluster_password"] = d.TrustPassword
	} else {
		token, err := d.clusterToken(ctx, name)
		if err != nil {
			return err
		}
		join["cluster_token"] = token
	}
	if err := member.Do(ctx, "PUT", "/1.0/cluster", join, nil); err != nil {
		return err
	}
	// What the daemon had before is replaced by what the cluster has.
	member.ServerCertificate, member.TrustPassword = d.ServerCertificate, d.TrustPassword
	member.ClientCertificate, member.ClientKey = d.ClientCertificate, d.ClientKey
	member.mu.Lock()
	defer member.mu.Unlock()
	if err := member.waitUntilReady(ctx); err != nil {
		return err
	}
	return member.writeFiles()
}

// NewCluster is like [StartCluster], but fails the test if the cluster does not
// form, and closes the daemons when the test ends.
func NewCluster(tb testing.TB, family Family, size int, opts *Options) []*Daemon {
	tb.Helper()
	members, err := StartCluster(tb.Context(), family, size, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, d := range members {
			if err := d.Close(); err != nil {
				tb.Error(err)
			}
		}
	})
	return members
}
