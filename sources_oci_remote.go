package lxd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"time"

	"github.com/golxd/lxd/internal/ctxerr"
)

// ociRemote returns the source that is an image of a remote of protocol oci.
func ociRemote(remote *RemoteInfo, image string, opts *FromOCIOptions) Source {
	s := &ociSource{registry: remote.Address, image: image, opts: *opts}
	u, err := url.Parse(remote.Address)
	switch {
	case err != nil: // the source says so
	case opts.Username != "":
		u.User = nil
		s.registry = u.String()
	case remote.CredentialsHelper != "":
		s.credentials = func(ctx context.Context) (*url.Userinfo, error) {
			user, err := helperCredentials(ctx, remote.CredentialsHelper, u.Host)
			if err != nil {
				err = &RemoteError{Name: remote.Name, Info: remote, Err: err}
			}
			return user, err
		}
	}
	return s
}

// helperCredentials returns the credentials that a helper has for a host. Its output is
// in no error: it may contain them.
func helperCredentials(ctx context.Context, helper, host string) (*url.Userinfo, error) {
	cmd := exec.CommandContext(ctx, helper, "get")
	cmd.Stdin = strings.NewReader(host)
	var out bytes.Buffer
	cmd.Stdout = &out
	cmd.WaitDelay = helperDelay
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctxerr.Of(ctx)
		}
		return nil, fmt.Errorf("credentials helper %q for %s: %w", helper, host, err)
	}
	var found struct {
		Username string `json:"Username"`
		Secret   string `json:"Secret"`
	}
	if json.Unmarshal(out.Bytes(), &found) != nil || found.Username == "" {
		return nil, fmt.Errorf("credentials helper %q for %s: %w", helper, host, errHelperOutput)
	}
	return url.UserPassword(found.Username, found.Secret), nil
}

// helperDelay is how long what a killed helper has started may keep its output open.
const helperDelay = 100 * time.Millisecond

var errHelperOutput = errors.New(`its output is not JSON with "Username" and "Secret"`)
