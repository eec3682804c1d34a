package redact

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// hostile are pieces of texts that a server may send up to the limit of a response.
var hostile = map[string]string{
	"letters":       "a",
	"schemes":       "a://",
	"short URLs":    "a://b ",
	"URLs":          "https://user:password@host/path?token=secret ",
	"punctuation":   "a://.......... ",
	"colons":        ":",
	"nested":        "a:b:c://",
	"one long URL":  "a://b/../",
	"secret begins": "hunte",
	"secrets":       "hunter2-",
	"brackets":      "a://[",
}

// BenchmarkHostileText redacts texts of 16 MiB.
func BenchmarkHostileText(b *testing.B) {
	secrets := Hide("hunter2", "https://user:pass@host/?a=b", strings.Repeat("hunte", 100))
	for name, piece := range hostile {
		text := strings.Repeat(piece, 16<<20/len(piece))
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				secrets.Text(text)
			}
		})
	}
}

// urlPattern says what a URL in a text is.
var urlPattern = regexp.MustCompile("[A-Za-z][A-Za-z0-9+.-]*://[^\\s\"'`<>\\\\]*[^\\s\"'`<>\\\\.,:;!?)\\]}]")

// FuzzText: Text finds exactly the URLs of the pattern.
func FuzzText(f *testing.F) {
	for _, piece := range hostile {
		f.Add(piece, piece)
	}
	for _, s := range []string{"", "x", " ", "1+a://b.", "://b", "-://b", "a://", "a://.", "a://é)", "\"a://b\"", "a://b.://c", "a://.b://c", "a://b\xff,", "\va://b\v", "a://b a://c"} {
		f.Add(s, s)
		f.Add("https://u:p@h/x", s)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		for _, text := range []string{one, one + two, two + "://" + one, one + " " + two + "." + one} {
			want := urlPattern.ReplaceAllStringFunc(text, func(raw string) string { return URL(raw) })
			require.Equal(t, want, (*Secrets)(nil).Text(text), "%q", text)
		}
	})
}
