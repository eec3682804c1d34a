package cliconfig

// static returns the remotes that are built into a command line.
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

// defaultImages returns the remote "images" of a command line that has no
// configuration. LXD 5.0.2 has Incus's server there, which no longer serves LXD;
// newer versions have this one.
func defaultImages(family string) Remote {
	r := Remote{Addr: "https://images.lxd.canonical.com", Protocol: "simplestreams", Public: true}
	if family == Incus {
		r.Addr = "https://images.linuxcontainers.org"
	}
	return r
}
