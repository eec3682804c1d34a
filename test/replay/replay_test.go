// Package replay_test serves the recorded responses of real daemons to the client.
package replay_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd"
)

var update = flag.Bool("update", false, "write docs/replay.md anew")

const (
	doc  = "../../docs/replay.md"
	none = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
)

// call is the client's call that gets a recorded response.
type call struct {
	name string
	run  func(ctx context.Context, p *player, c *lxd.Client) (any, error)
	// as is the request that gets the response, if that is not the recorded one.
	as func(*http.Request) bool
	// absent are the requests for the image that the call creates.
	absent func(*http.Request) bool
	// goesOn says that the call goes on with requests that were not recorded.
	goesOn bool
}

// uncalled are the recordings that no call of the client gets, and why.
var uncalled = map[string]string{
	"aliases":             "Aliases.All asks for the aliases, not for their URLs",
	"join-token-accepted": "the client does not create join tokens",
}

// calls are the calls by recording. An operation's accepted and wait are one
// call each, without and with Wait.
var calls = map[string]call{
	"server":                  {name: "Server", run: server},
	"server-tls":              {name: "Server", run: server},
	"server-untrusted":        {name: "Server", run: server},
	"images":                  {name: "Images.All", run: all(nil)},
	"images-empty":            {name: "Images.All", run: all(nil)},
	"images-filtered":         {name: "Images.All, Filter", run: all(&lxd.ListOptions{Filter: "public eq true"})},
	"images-filter-bad":       {name: "Images.All, Filter", run: all(&lxd.ListOptions{Filter: "public eq"})},
	"images-all-projects":     {name: "Images.All, AllProjects", run: all(&lxd.ListOptions{AllProjects: true})},
	"images-project":          {name: "Images.All in a project", run: allIn("copies")},
	"project-not-found":       {name: "Images.All in a project", run: allIn("nothing")},
	"images-untrusted":        {name: "Images.All", run: all(nil)},
	"images-untrusted-strict": {name: "Images.All", run: all(nil)},
	"images-urls":             {name: "Images.Get with a prefix", run: getAmbiguous},
	"image-prefix-ambiguous":  {name: "Images.Get with a prefix", run: getAmbiguous},
	"image":                   {name: "Images.Get", run: getNamed("unified")},
	"image-prefix":            {name: "Images.Get with a prefix", run: getPrefix},
	"image-not-found":         {name: "Images.Get", run: get(none)},
	"image-untrusted":         {name: "Images.Get", run: getNamed("split")},
	"image-copied":            {name: "Images.Get in a project", run: getRecorded},
	"image-published":         {name: "Images.Get", run: getRecorded},
	"image-url":               {name: "Images.Get", run: getRecorded},
	"image-updated":           {name: "Image.Update", run: updateExpiry},
	"image-update-stale":      {name: "Image.Update", run: updateExpiry},
	"image-patched":           {name: "Image.Update", run: updatePublic},
	"path-not-found":          {name: "Images.Get", run: get(none), as: is(http.MethodGet, "/1.0/images/"+none)},
	"export-not-found":        {name: "Image.Export", run: export, as: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/export") }},
	"method-not-allowed":      {name: "Image.Delete", run: deleteImage("vm", false), as: func(r *http.Request) bool { return r.Method == http.MethodDelete }},
	"delete-not-found":        {name: "Image.Delete", run: deleteImage("vm", false)},
	"delete-untrusted":        {name: "Image.Delete", run: deleteImage("split", false)},
	"bad-json":                {name: "Images.Create", run: create("unified", nil, false)},
	"bad-source":              {name: "Images.Create", run: create("unified", nil, false)},

	"upload-accepted":                   {name: "Images.Create", run: create("unified", uploaded, false)},
	"upload-wait":                       {name: "Images.Create, Wait", run: create("unified", uploaded, true)},
	"upload-split-accepted":             {name: "Images.Create", run: create("split", nil, false)},
	"upload-split-wait":                 {name: "Images.Create, Wait", run: create("split", nil, true)},
	"upload-vm-accepted":                {name: "Images.Create", run: create("vm", nil, false)},
	"upload-vm-wait":                    {name: "Images.Create, Wait", run: create("vm", nil, true)},
	"upload-duplicate-accepted":         {name: "Images.Create", run: create("unified", nil, false)},
	"upload-duplicate-wait":             {name: "Images.Create, Wait", run: create("unified", nil, true)},
	"upload-wrong-fingerprint-accepted": {name: "Images.Create, Fingerprint", run: create("other", &lxd.CreateOptions{Fingerprint: none}, false)},
	"upload-wrong-fingerprint-wait":     {name: "Images.Create, Fingerprint, Wait", run: create("other", &lxd.CreateOptions{Fingerprint: none}, true)},
	"upload-not-an-image-accepted":      {name: "Images.Create", run: createText(false)},
	"upload-not-an-image-wait":          {name: "Images.Create, Wait", run: createText(true)},
	"profile-not-found":                 {name: "Images.Create, Profiles", run: create("profile", &lxd.CreateOptions{Profiles: []string{"nothing"}}, false), goesOn: true},
	"profile-not-found-wait":            {name: "Images.Create, Profiles, then Operation.Wait", run: waitForProfile, goesOn: true},

	"instance-not-found":         {name: "Images.CreateFromInstance", run: fromInstance("nothing", false)},
	"instance-not-found-wait":    {name: "Images.CreateFromInstance, Wait", run: fromInstance("nothing", true), goesOn: true},
	"publish-accepted":           {name: "Images.CreateFromInstance", run: fromInstance("web1", false)},
	"publish-wait":               {name: "Images.CreateFromInstance, Wait", run: fromInstance("web1", true)},
	"url-accepted":               {name: "Images.CreateFromURL", run: fromURL(false)},
	"url-wait":                   {name: "Images.CreateFromURL, Wait", run: fromURL(true)},
	"url-cancel-accepted":        {name: "Images.CreateFromURL", run: fromURL(false)},
	"copy-accepted":              {name: "Image.Copy, CopyPull", run: copyPull(false), absent: inCopies},
	"copy-wait":                  {name: "Image.Copy, CopyPull, then Operation.Wait", run: copyPull(true), absent: inCopies},
	"refresh-accepted":           {name: "Image.Refresh", run: refresh("copies", false)},
	"refresh-wait":               {name: "Image.Refresh, Wait", run: refresh("copies", true)},
	"refresh-no-source-accepted": {name: "Image.Refresh", run: refresh("", false)},
	"refresh-no-source-wait":     {name: "Image.Refresh, Wait", run: refresh("", true)},
	"delete-accepted":            {name: "Image.Delete", run: deleteImage("vm", false)},
	"delete-wait":                {name: "Image.Delete, Wait", run: deleteImage("vm", true)},
	"secret-accepted":            {name: "Image.Secret", run: secret},
	"push-accepted":              {name: "Image.Copy, CopyPush", run: copyPush, absent: getsImage, goesOn: true},
	"trust-wrong-password":       {name: "Client.TrustPassword, or Trust", run: trust},

	"aliases-empty":        {name: "Aliases.All", run: allAliases},
	"aliases-recursion":    {name: "Aliases.All", run: allAliases},
	"alias":                {name: "Aliases.Get", run: getAlias("unified")},
	"alias-escaped":        {name: "Aliases.Get", run: getAlias("split/a b?")},
	"alias-not-found":      {name: "Aliases.Get", run: getAlias("nothing")},
	"alias-created":        {name: "Aliases.Create", run: createAlias("unified", "unified")},
	"alias-created-again":  {name: "Aliases.Create", run: createAlias("unified", "unified")},
	"alias-created-slash":  {name: "Aliases.Create", run: createAlias("split/a b?", "split")},
	"alias-created-vm":     {name: "Aliases.Create", run: createAlias("vm", "vm")},
	"alias-conflict":       {name: "Aliases.Create", run: createAlias("unified", "split")},
	"alias-unknown-target": {name: "Aliases.Create", run: createAlias("x", "")},
	"alias-updated":        {name: "Aliases.Update", run: updateAlias},
	"alias-update-stale":   {name: "Aliases.Update", run: updateAlias},
	"alias-renamed": {name: "Aliases.Rename", run: func(ctx context.Context, _ *player, c *lxd.Client) (any, error) {
		return "done", c.Aliases.Rename(ctx, "unified", "renamed")
	}},
	"alias-deleted": {name: "Aliases.Delete", run: func(ctx context.Context, _ *player, c *lxd.Client) (any, error) {
		return "done", c.Aliases.Delete(ctx, "renamed")
	}},

	"operations":                {name: "Client.Operations", run: operations},
	"operations-empty":          {name: "Client.Operations", run: operations},
	"operations-running":        {name: "Client.Operations", run: operations},
	"operations-untrusted":      {name: "Client.Operations", run: operations},
	"operation-success":         {name: "Operation.Refresh", run: refreshOperation},
	"operation-failure":         {name: "Operation.Refresh", run: refreshOperation},
	"operation-running":         {name: "Operation.Refresh", run: refreshOperation},
	"operation-token":           {name: "Operation.Refresh", run: refreshOperation},
	"operation-not-found":       {name: "Operation.Refresh", run: refreshOperation},
	"operation-cancel-finished": {name: "Operation.Cancel", run: cancel},
	"operation-cancelled":       {name: "Operation.Cancel", run: cancel},
	"token-cancelled":           {name: "Operation.Cancel", run: cancel},
	"operation-wait-not-found":  {name: "Operation.Wait", run: wait},
	"operation-wait-cancelled":  {name: "Operation.Cancel, then Wait", run: cancelAndWait},
	"token-wait-cancelled":      {name: "Operation.Wait", run: wait},
	"token-wait-timeout":        {name: "Operation.Wait", run: waitShortly},
	"wait-timeout":              {name: "Operation.Wait", run: waitShortly},
	"events":                    {name: "Client.Events", run: events},
}

// is matches a request.
func is(method, path string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == method && r.URL.Path == path }
}

func getsImage(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/1.0/images/")
}

func inCopies(r *http.Request) bool { return getsImage(r) && r.URL.Query().Get("project") == "copies" }

func server(ctx context.Context, _ *player, c *lxd.Client) (any, error) { return c.Server(ctx) }

func all(opts *lxd.ListOptions) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, _ *player, c *lxd.Client) (any, error) { return c.Images.All(ctx, opts) }
}

func allIn(project string) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, _ *player, c *lxd.Client) (any, error) {
		return c.InProject(project).Images.All(ctx, nil)
	}
}

func get(fingerprint string) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, _ *player, c *lxd.Client) (any, error) {
		return c.Images.Get(ctx, fingerprint)
	}
}

func getNamed(name string) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, p *player, c *lxd.Client) (any, error) {
		return c.Images.Get(ctx, p.fingerprint(name))
	}
}

func getPrefix(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	return c.Images.Get(ctx, p.fingerprint("unified")[:12])
}

// getAmbiguous gets the image of the prefix that was recorded as ambiguous.
func getAmbiguous(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	r, _ := p.find("image-prefix-ambiguous")
	return c.Images.Get(ctx, strings.TrimPrefix(r.Path, "/1.0/images/"))
}

// getRecorded gets the image in the path of the recorded request.
func getRecorded(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	name, project, _ := strings.Cut(strings.TrimPrefix(p.replayed.Path, "/1.0/images/"), "?project=")
	return c.InProject(project).Images.Get(ctx, name)
}

// updateExpiry sends a PUT.
func updateExpiry(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	p.beforeUpdate(`"expires_at":"2030-`, `"expires_at":"2031-`)
	image := p.image(c, p.fingerprint("unified"))
	image.ExpiresAt = image.ExpiresAt.AddDate(-1, 0, 0)
	return image, image.Update(ctx, nil)
}

// updatePublic sends a PATCH.
func updatePublic(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	p.beforeUpdate(`"public":true`, `"public":false`)
	image := p.image(c, p.fingerprint("unified"))
	image.Public = true
	return image, image.Update(ctx, nil)
}

func export(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	export, err := p.image(c, p.fingerprint("unified")).Export(ctx, nil)
	if err == nil {
		_ = export.Close()
	}
	return "Export", err
}

func deleteImage(name string, wait bool) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, p *player, c *lxd.Client) (any, error) {
		return "done", p.image(c, p.fingerprint(name)).Delete(ctx, &lxd.DeleteOptions{Wait: wait})
	}
}

// uploaded describes the image of the recording upload.
var uploaded = &lxd.CreateOptions{Public: true, Filename: "unified.tar.gz", Properties: map[string]string{"label": "a b", "os": "lxdtest"}}

func create(name string, opts *lxd.CreateOptions, wait bool) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, p *player, c *lxd.Client) (any, error) {
		var o lxd.CreateOptions
		if opts != nil {
			o = *opts
		}
		o.Wait = wait
		if p.uploads[name] != nil {
			return c.Images.Create(ctx, p.upload(name), &o)
		}
		o.Rootfs = p.upload(name + ".rootfs")
		if name == "vm" {
			o.Type = lxd.VirtualMachine
		}
		return c.Images.Create(ctx, p.upload(name+".metadata"), &o)
	}
}

// waitForProfile waits for the operation alone: what the client does after it on
// LXD, which ignores an upload's profiles, was not recorded.
func waitForProfile(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	image, err := c.Images.Create(ctx, p.upload("profile"), &lxd.CreateOptions{Profiles: []string{"nothing"}})
	if err != nil {
		return nil, err
	}
	return image.Operation(), image.Operation().Wait(ctx)
}

func createText(wait bool) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, _ *player, c *lxd.Client) (any, error) {
		return c.Images.Create(ctx, strings.NewReader("no tarball"), &lxd.CreateOptions{Wait: wait})
	}
}

func fromInstance(name string, wait bool) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, _ *player, c *lxd.Client) (any, error) {
		return c.Images.CreateFromInstance(ctx, name, &lxd.CreateFromInstanceOptions{Properties: map[string]string{"from": name}, Wait: wait})
	}
}

func fromURL(wait bool) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, _ *player, c *lxd.Client) (any, error) {
		return c.Images.CreateFromURL(ctx, "http://images.example/image", &lxd.CreateFromURLOptions{
			Via: lxd.ViaServer, AutoUpdate: true, Properties: map[string]string{"from": "url"}, Wait: wait,
		})
	}
}

// copyPull starts a copy, and waits for the operation alone: the recorded copy has
// other attributes than one by the client, which changes them after it.
func copyPull(wait bool) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, p *player, c *lxd.Client) (any, error) {
		copied, err := p.image(c, p.fingerprint("unified")).Copy(ctx, c.InProject("copies"), &lxd.CopyOptions{Mode: lxd.CopyPull})
		switch {
		case err != nil:
			return nil, err
		case wait:
			return copied.Operation(), copied.Operation().Wait(ctx)
		}
		return copied.Image, nil
	}
}

// copyPush copies to the daemon itself, which has no recorded response to the
// request that pushes.
func copyPush(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	copied, err := p.image(c, p.fingerprint("unified")).Copy(ctx, c, &lxd.CopyOptions{Mode: lxd.CopyPush, IfExists: lxd.ErrorIfExists, Wait: true})
	return copied, err
}

func refresh(project string, wait bool) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, p *player, c *lxd.Client) (any, error) {
		image := p.image(c.InProject(project), p.fingerprint("unified"))
		_, err := image.Refresh(ctx, &lxd.RefreshOptions{Wait: wait})
		if err != nil {
			return nil, err
		}
		return image.Operation(), nil
	}
}

func secret(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	secret, err := p.image(c, p.fingerprint("unified")).Secret(ctx)
	if err != nil {
		return nil, err
	}
	return fmt.Sprintf("Secret of %d characters", len(secret.Value)), nil
}

// trust uses a password where the daemon accepts one, and otherwise a token.
func trust(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	err := c.TrustPassword(ctx, "wrong", nil)
	if !errors.Is(err, lxd.ErrUnsupported) {
		return "trusted", err
	}
	data, jerr := json.Marshal(map[string]any{"client_name": "joiner", "fingerprint": hex.EncodeToString(p.certificate[:]), "addresses": []string{"127.0.0.1:8443"}, "secret": "wrong", "expires_at": time.Now().Add(time.Hour)})
	require.NoError(p.t, jerr)
	return "trusted", c.Trust(ctx, base64.StdEncoding.EncodeToString(data))
}

func allAliases(ctx context.Context, _ *player, c *lxd.Client) (any, error) {
	return c.Aliases.All(ctx)
}

func getAlias(name string) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, _ *player, c *lxd.Client) (any, error) { return c.Aliases.Get(ctx, name) }
}

func createAlias(name, target string) func(context.Context, *player, *lxd.Client) (any, error) {
	return func(ctx context.Context, p *player, c *lxd.Client) (any, error) {
		fingerprint := none
		if target != "" {
			fingerprint = p.fingerprint(target)
		}
		return "done", c.Aliases.Create(ctx, lxd.Alias{Name: name, Description: "what " + name + " is", Target: fingerprint})
	}
}

func updateAlias(ctx context.Context, _ *player, c *lxd.Client) (any, error) {
	return "done", c.Aliases.Update(ctx, "unified", func(a *lxd.Alias) { a.Description = "changed" })
}

func operations(ctx context.Context, _ *player, c *lxd.Client) (any, error) { return c.Operations(ctx) }

func refreshOperation(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	return p.operation(c).Refresh(ctx)
}

func cancel(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	return "done", p.operation(c).Cancel(ctx)
}

func wait(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	return "done", p.operation(c).Wait(ctx)
}

func cancelAndWait(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	op := p.operation(c)
	if err := op.Cancel(ctx); err != nil {
		return nil, err
	}
	return "done", op.Wait(ctx)
}

// waitShortly waits for an operation that does not end.
func waitShortly(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	op := p.operation(c)
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	return "done", op.Wait(ctx)
}

func events(ctx context.Context, p *player, c *lxd.Client) (any, error) {
	wanted := strings.Count(string(p.body(p.t, "events.jsonl")), "\n")
	seen := map[string]int{}
	for event, err := range c.Events(ctx, nil) {
		if err != nil {
			return nil, err
		}
		switch {
		case event.Operation != nil:
			seen["operation "+event.Operation.Status]++
		case event.Lifecycle != nil:
			seen[event.Lifecycle.Action]++
		default:
			continue
		}
		if wanted--; wanted == 0 {
			break
		}
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		parts = append(parts, fmt.Sprintf("%d %s", seen[name], name))
	}
	return strings.Join(parts, ", "), nil
}

// sentinels are the errors that the table names.
var sentinels = []struct {
	name string
	err  error
}{
	{"ErrInvalid", lxd.ErrInvalid},
	{"ErrNotFound", lxd.ErrNotFound},
	{"ErrProjectNotFound", lxd.ErrProjectNotFound},
	{"ErrExists", lxd.ErrExists},
	{"ErrConflict", lxd.ErrConflict},
	{"ErrAmbiguous", lxd.ErrAmbiguous},
	{"ErrUnauthorized", lxd.ErrUnauthorized},
	{"ErrForbidden", lxd.ErrForbidden},
	{"ErrUnsupported", lxd.ErrUnsupported},
	{"ErrUnavailable", lxd.ErrUnavailable},
	{"ErrBadResponse", lxd.ErrBadResponse},
	{"ErrCancelled", lxd.ErrCancelled},
	{"ErrOutcomeUnknown", lxd.ErrOutcomeUnknown},
	{"context.DeadlineExceeded", context.DeadlineExceeded},
}

// outcome describes what a call has returned.
func outcome(value any, err error) string {
	if err != nil {
		var parts []string
		for _, s := range sentinels {
			if errors.Is(err, s.err) {
				parts = append(parts, s.name)
			}
		}
		var refused *lxd.Error
		var failed *lxd.OperationError
		var mismatch *lxd.FingerprintError
		var untrusted *lxd.TrustError
		switch {
		case errors.As(err, &untrusted):
			parts = append(parts, "TrustError")
		case errors.As(err, &mismatch):
			parts = append(parts, "FingerprintError")
		case errors.As(err, &failed):
			parts = append(parts, fmt.Sprintf("OperationError %d", failed.StatusCode))
		case errors.As(err, &refused):
			parts = append(parts, fmt.Sprintf("Error %d", refused.StatusCode))
		}
		return strings.Join(parts, ", ")
	}
	switch v := value.(type) {
	case string:
		return v
	case *lxd.Server:
		return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s, %d extensions", v.Family, v.Version, map[bool]string{true: "trusted", false: "untrusted"}[v.Trusted], len(v.Extensions))), " ")
	case *lxd.Image:
		return describe(v)
	case []*lxd.Image:
		return count(len(v), "image", "images")
	case lxd.Alias:
		return fmt.Sprintf("Alias of a %s", v.Type)
	case []lxd.Alias:
		return count(len(v), "alias", "aliases")
	case []*lxd.Operation:
		return count(len(v), "operation", "operations")
	case *lxd.Operation:
		return describeStatus(v.Status())
	case lxd.OperationStatus:
		return describeStatus(v)
	}
	return fmt.Sprintf("%T", value)
}

// count is a number of things: "1 image", "2 images".
func count(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

func describe(i *lxd.Image) string {
	if i.UploadedAt.IsZero() {
		return "Image, pending"
	}
	text := "Image"
	for _, part := range []struct {
		set  bool
		text string
	}{
		{true, string(i.Type)}, {true, count(len(i.Properties), "property", "properties")},
		{i.Public, "public"}, {i.AutoUpdate, "auto-update"}, {i.Cached, "cached"}, {!i.ExpiresAt.IsZero(), "expires"},
		{len(i.Aliases) > 0, count(len(i.Aliases), "alias", "aliases")}, {i.UpdateSource != nil, "update source"},
		{len(i.Locations) > 0, fmt.Sprintf("locations %v", i.Locations)},
	} {
		if part.set {
			text += ", " + part.text
		}
	}
	return text
}

func describeStatus(s lxd.OperationStatus) string {
	text := fmt.Sprintf("OperationStatus %s %d", s.Status, s.StatusCode)
	if refreshed, ok := s.Metadata["refreshed"]; ok {
		text += fmt.Sprintf(", refreshed %v", refreshed)
	}
	return text
}

// play replays a recording and returns what the client makes of it, or "" if the
// daemon has no such recording.
func play(t *testing.T, d *daemon, name string) string {
	t.Helper()
	call := calls[name]
	p := &player{daemon: d, t: t, as: call.as, absent: call.absent}
	if p.replayed, p.at = d.find(name); p.replayed == nil {
		return ""
	}
	if started := strings.TrimSuffix(name, "-wait"); started != name {
		// The response to the wait follows the one that started the operation.
		for _, start := range []string{started + "-accepted", started} {
			if r, at := d.find(start); r != nil {
				p.started, p.at = r, at
			}
		}
	}
	value, err := call.run(t.Context(), p, p.client())
	p.mu.Lock()
	defer p.mu.Unlock()
	text := outcome(value, err)
	if !p.served {
		text += " (not requested)"
	}
	require.NotEmpty(t, text, err)
	if !call.goesOn {
		require.Empty(t, p.unknown, "requests that were not recorded; the outcome is %s: %v", text, err)
	}
	return text
}

// TestReplay serves every recorded response of every daemon to the call of the
// client that gets it, and compares what the client makes of it with the table in
// docs/replay.md.
func TestReplay(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(recordings, "*", "index.json"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(dirs), 8)
	var daemons []*daemon
	var rows []string
	for _, dir := range dirs {
		d := readDaemon(t, filepath.Base(filepath.Dir(dir)))
		daemons = append(daemons, d)
		for n := range d.index {
			if name := d.index[n].name(); !slices.Contains(rows, name) {
				rows = append(rows, name)
			}
		}
	}
	slices.Sort(rows)
	cells := map[[2]string]string{}
	for _, d := range daemons {
		t.Run(d.title, func(t *testing.T) {
			for _, row := range rows {
				if uncalled[row] != "" {
					continue
				}
				require.NotNil(t, calls[row].run, "no call for recording %s", row)
				t.Run(row, func(t *testing.T) { cells[[2]string{d.title, row}] = play(t, d, row) })
			}
		})
	}
	for row := range calls {
		require.Contains(t, rows, row)
	}
	if t.Failed() {
		return
	}
	text := page(daemons, rows, cells)
	if *update {
		require.NoError(t, os.WriteFile(doc, []byte(text), 0o644))
		return
	}
	was, err := os.ReadFile(doc)
	require.NoError(t, err)
	require.Equal(t, string(was), text, "run with -update, and read what has changed")
}

// page is the table in Markdown.
func page(daemons []*daemon, rows []string, cells map[[2]string]string) string {
	var b strings.Builder
	b.WriteString("# What the client makes of recorded responses\n\n" +
		"Written by `go test ./test/replay -update`, and checked by it otherwise. Each row is a recorded response of\n" +
		"[testdata/envelopes](../testdata/envelopes/README.md), which is served to the call of the client that gets it; what the\n" +
		"call requests besides is served from the same recordings. A cell is what the call returns: a value, or the sentinels that\n" +
		"its error matches and the error's type and code. *Not requested*: the call does without the\n" +
		"request, as it refuses before, or as an earlier response has told enough. An empty cell: not recorded. Of a push, what\n" +
		"follows the token was not recorded, and is answered with 404.\n\n| recording | call |")
	for _, d := range daemons {
		b.WriteString(" " + d.title + " |")
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(daemons)) + "\n")
	for _, row := range rows {
		if why := uncalled[row]; why != "" {
			b.WriteString("| " + row + " | none: " + why + " |" + strings.Repeat(" |", len(daemons)) + "\n")
			continue
		}
		b.WriteString("| " + row + " | " + calls[row].name + " |")
		for _, d := range daemons {
			b.WriteString(" " + strings.TrimSpace(cells[[2]string{d.title, row}]) + " |")
		}
		b.WriteString("\n")
	}
	return strings.ReplaceAll(b.String(), "|  |", "| |")
}
