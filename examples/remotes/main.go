// Command remotes uses the remotes of the user's own lxc or incus command line:
//
//	remotes                        lists its remotes
//	remotes NAME                   lists the images of a remote
//	remotes -family incus NAME     the same with the configuration of incus
//	remotes -join TOKEN DIRECTORY  creates a key pair in the directory, and joins
//	                               the server of the token
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"text/tabwriter"

	"github.com/golxd/lxd"
	"github.com/golxd/lxd/simplestreams"
)

func main() {
	family := flag.String("family", "", `whose configuration: "lxd" or "incus" (default: LXD's if there is one)`)
	config := flag.String("config", "", "directory of the configuration (default: the command line's own)")
	token := flag.String("join", "", "token of a server to join")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case *token != "":
		err = join(ctx, os.Stdout, *token, flag.Arg(0))
	case flag.NArg() == 0:
		err = list(os.Stdout, &lxd.RemotesOptions{Family: lxd.Family(*family), ConfigDir: *config})
	default:
		err = images(ctx, os.Stdout, flag.Arg(0), &lxd.Options{Family: lxd.Family(*family), ConfigDir: *config})
	}
	if err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "remotes:", err)
		os.Exit(1)
	}
}

func list(out io.Writer, opts *lxd.RemotesOptions) error {
	remotes, err := lxd.Remotes(opts)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range remotes {
		mark := ""
		if r.Default {
			mark = "default"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", r.Name, r.Protocol, r.Address, mark)
	}
	return table.Flush()
}

func images(ctx context.Context, out io.Writer, name string, opts *lxd.Options) error {
	client, err := lxd.Remote(name, opts)
	var remote *lxd.RemoteError
	if errors.As(err, &remote) && remote.Info != nil && remote.Info.Protocol == lxd.SimplestreamsProtocol {
		return streamImages(ctx, out, remote.Info.Address)
	}
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	for image, err := range client.Images.Each(ctx, nil) {
		if err != nil {
			return err
		}
		fmt.Fprintln(out, image.Fingerprint, image.Properties["description"])
	}
	return nil
}

// streamImages lists the images of a simplestreams server.
func streamImages(ctx context.Context, out io.Writer, address string) error {
	client, err := simplestreams.New(address, nil)
	if err != nil {
		return err
	}
	for image, err := range client.Images(ctx) {
		if err != nil {
			return err
		}
		fmt.Fprintln(out, image.Fingerprint, image.Aliases)
	}
	return nil
}

// join joins the server of a token, and stores in dir what is needed to connect
// again: the key pair and the server's certificate.
func join(ctx context.Context, out io.Writer, token, dir string) error {
	if dir == "" {
		return errors.New("the directory for the key pair is missing")
	}
	cert, key, err := lxd.NewKeyPair(nil)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// Store the key first: the token can be used only once.
	for name, data := range map[string][]byte{"client.crt": cert, "client.key": key} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	client, err := lxd.Join(ctx, token, &lxd.Options{ClientCertificate: cert, ClientKey: key})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	server, err := client.Server(ctx)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "server.crt"), []byte(server.Certificate), 0o600); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s %s at %s now trusts this client.\n", server.Family, server.Version, client.Endpoint())
	return nil
}
