package cliconfig

// static are the remotes that a command line has whatever its file says.
func static(family string) map[string]Remote {
	remotes := map[string]Remote{"local": {Addr: "unix://"}}
	if family == Incus {
		return remotes
	}
	const ubuntu = "https://cloud-images.ubuntu.com/"
	for name, path := range map[string]string{
		"ubuntu":               "releases",
		"ubuntu-daily":         "daily",
		"ubuntu-minimal":       "minimal/releases",
		"ubuntu-minimal-daily": "minimal/daily",
	} {
		remotes[name] = Remote{Addr: ubuntu + path, Protocol: "simplestreams", Public: true}
	}
	return remotes
}

// firstImages is the remote "images" of a command line that was never used.
// LXD 5.0.2 starts with the server that now is Incus's own and no longer
// serves LXD; newer ones have this.
func firstImages(family string) Remote {
	r := Remote{Addr: "https://images.lxd.canonical.com", Protocol: "simplestreams", Public: true}
	if family == Incus {
		r.Addr = "https://images.linuxcontainers.org"
	}
	return r
}
