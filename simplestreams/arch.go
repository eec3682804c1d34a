package simplestreams

import "runtime"

// architectures maps every spelling that LXD 5.0.2 and Incus 6.0.4 know to the kernel's name, which is the one that
// daemons report.
var architectures = map[string]string{
	"i686": "i686", "i386": "i686", "i586": "i686", "386": "i686", "x86": "i686", "generic_32": "i686",
	"x86_64": "x86_64", "amd64": "x86_64", "generic_64": "x86_64",
	"armv6l": "armv6l",
	"armv7l": "armv7l", "armel": "armv7l", "armhf": "armv7l", "arm": "armv7l", "armhfp": "armv7l", "armv7": "armv7l",
	"armv7a_hardfp": "armv7l", "armv7a_vfpv3_hardfp": "armv7l",
	"armv8l":  "armv8l",
	"aarch64": "aarch64", "arm64": "aarch64", "arm64_generic": "aarch64",
	"ppc": "ppc", "powerpc": "ppc",
	"ppc64": "ppc64", "powerpc64": "ppc64",
	"ppc64le": "ppc64le", "ppc64el": "ppc64le",
	"s390x": "s390x",
	"mips":  "mips", "mipsel": "mipsel", "mipsle": "mipsel",
	"mips64": "mips64", "mips64el": "mips64el", "mips64le": "mips64el",
	"riscv32": "riscv32", "riscv64": "riscv64",
	"loongarch64": "loongarch64", "loong64": "loongarch64",
}

// personalities are the architectures that a host runs beside its own, best first.
var personalities = map[string][]string{
	"x86_64":   {"i686"},
	"aarch64":  {"armv8l", "armv7l", "armv6l"},
	"armv8l":   {"armv7l", "armv6l"},
	"armv7l":   {"armv6l"},
	"ppc64":    {"ppc"},
	"mips64":   {"mips"},
	"mips64el": {"mipsel"},
}

// ArchitectureName returns the name that LXD and Incus report for an architecture, such as "x86_64" for "amd64",
// "aarch64" for "arm64", "armv7l" for "armhf" and "ppc64le" for "ppc64el", and whether the architecture is known.
func ArchitectureName(name string) (string, bool) {
	known, ok := architectures[name]
	return known, ok
}

// localArchitecture returns the name of the architecture that this program was built for, or "" where no daemon knows it.
func localArchitecture() string { return architectures[runtime.GOARCH] }
