package partfile

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// CheckName returns what is wrong with a name for an image's files in dir, or "".
func CheckName(dir, name string) string {
	if name == "." || name == ".." || strings.ContainsAny(name, "/\\\x00") || filepath.Base(name) != name {
		return "is not a plain file name"
	}
	if runtime.GOOS == "windows" {
		if why := checkWindowsName(name); why != "" {
			return why
		}
	}
	// Only the file system knows which names it accepts.
	_, err := os.Lstat(filepath.Join(dir, name+longestSuffix()))
	return badName(err)
}

// longestSuffix returns the longest suffix that is appended to a name.
func longestSuffix() string {
	longest := lockSuffix
	for _, ext := range extensions() {
		if s := metaSuffix + ext; len(s) > len(longest) {
			longest = s
		}
	}
	return longest
}

// checkWindowsName returns why Windows does not accept a name, or interprets it as
// a device, or "".
func checkWindowsName(name string) string {
	if strings.ContainsAny(name, `<>:"|?*`) {
		return `contains one of the characters <>:"|?*, which Windows does not allow`
	}
	base, _, _ := strings.Cut(name, ".")
	base = strings.ToUpper(strings.TrimRight(base, " "))
	switch base {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return "is the name of a device on Windows"
	}
	for _, device := range []string{"COM", "LPT"} {
		if number, ok := strings.CutPrefix(base, device); ok && len([]rune(number)) == 1 && strings.ContainsAny(number, "0123456789¹²³") {
			return "is the name of a device on Windows"
		}
	}
	return ""
}
