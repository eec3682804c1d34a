package simplestreams

import "runtime"

// architectures maps every spelling that LXD 5.0.2, Incus 6.0.4 and 7.0.2 accept in a simplestreams index to the name that they
// report. Both map "arm" and the little-endian MIPS in this odd way; they differ only in loongarch64, which LXD 5.0.2 does
// not know.
var architectures = map[string]string{
	"i686": "i686", "i386": "i686", "i586": "i686", "386": "i686", "x86": "i686", "generic_32": "i686",
	"x86_64": "x86_64", "amd64": "x86_64", "generic_64": "x86_64",
	"armv6l": "armv6l", "armel": "armv6l", "arm": "armv6l",
	"armv7l": "armv7l", "armhf": "armv7l", "armhfp": "armv7l", "armv7": "armv7l",
	"armv7a_hardfp": "armv7l", "armv7a_vfpv3_hardfp": "armv7l",
	"armv8l":  "armv8l",
	"aarch64": "aarch64", "arm64": "aarch64", "arm64_generic": "aarch64",
	"ppc": "ppc", "powerpc": "ppc",
	"ppc64": "ppc64", "powerpc64": "ppc64",
	"ppc64le": "ppc64le", "ppc64el": "ppc64le",
	"s390x": "s390x",
	"mips":  "mips", "mipsel": "mips", "mipsle": "mips",
	"mips64": "mips64", "mips64el": "mips64", "mips64le": "mips64",
	"riscv32": "riscv32", "riscv64": "riscv64",
	"loongarch64": "loongarch64", "loong64": "loongarch64",
}

// personalities are the architectures that a host can run besides its own, best first.
var personalities = map[string][]string{
	"x86_64":  {"i686"},
	"aarch64": {"armv8l", "armv7l", "armv6l"},
	"armv8l":  {"armv7l", "armv6l"},
	"armv7l":  {"armv6l"},
	"ppc64":   {"ppc"},
	"mips64":  {"mips"},
}

// ArchitectureName returns the name that LXD and Incus report for an architecture, such as "x86_64" for "amd64",
// "aarch64" for "arm64", "armv7l" for "armhf" and "ppc64le" for "ppc64el", and whether the architecture is known.
func ArchitectureName(name string) (string, bool) {
	known, ok := architectures[name]
	return known, ok
}

// localArchitecture returns the daemons' name of the architecture that this program was built for, or "" if they have
// none.
func localArchitecture() string {
	if runtime.GOARCH == "arm" {
		return "armv7l" // In an index, "arm" means armv6l.
	}

	return architectures[runtime.GOARCH]
}
