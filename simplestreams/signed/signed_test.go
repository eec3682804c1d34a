package signed_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/stretchr/testify/require"

	"github.com/golxd/lxd/simplestreams"
	"github.com/golxd/lxd/simplestreams/signed"
)

var (
	_ simplestreams.Verifier = (*signed.Verifier)(nil)
	_ simplestreams.Signer   = (*signed.Signer)(nil)
)

// document has lines that an inline document must escape.
const document = "{\n \"a\": \"b\",\n- \"c\": 1,\n-----BEGIN PGP SIGNATURE-----\n\n}\n"

// newKey returns a new key. A lifetime of 0 is for ever.
func newKey(t *testing.T, lifetime time.Duration, algorithm packet.PublicKeyAlgorithm) *openpgp.Entity {
	t.Helper()
	key, err := openpgp.NewEntity("Image server", "", "images@example.net", &packet.Config{
		Algorithm: algorithm, RSABits: 1024, MinRSABits: 1024, KeyLifetimeSecs: uint32(lifetime.Seconds()),
	})
	require.NoError(t, err)

	return key
}

// keyring returns the public keys, binary.
func keyring(t *testing.T, keys ...*openpgp.Entity) io.Reader {
	t.Helper()
	var ring bytes.Buffer
	for _, key := range keys {
		require.NoError(t, key.Serialize(&ring))
	}

	return &ring
}

// private returns the private key, binary.
func private(t *testing.T, key *openpgp.Entity) io.Reader {
	t.Helper()
	var ring bytes.Buffer
	require.NoError(t, key.SerializePrivateWithoutSigning(&ring, nil))

	return &ring
}

func armored(t *testing.T, kind string, content io.Reader) string {
	t.Helper()
	var text bytes.Buffer
	w, err := armor.Encode(&text, kind, nil)
	require.NoError(t, err)
	_, err = io.Copy(w, content)
	require.NoError(t, err)
	require.NoError(t, w.Close())

	return text.String() + "\n"
}

// verify verifies both kinds of signatures, and returns the error of each.
func verify(t *testing.T, ring io.Reader, inline, detached []byte) (inlineErr, detachedErr error) {
	t.Helper()
	verifier, err := signed.NewVerifier(ring)
	require.NoError(t, err)
	got, inlineErr := verifier.VerifyInline(inline)
	if inlineErr == nil {
		require.Equal(t, strings.TrimSuffix(document, "\n"), strings.TrimSuffix(string(got), "\n"))
	} else {
		require.Nil(t, got)
	}

	return inlineErr, verifier.VerifyDetached([]byte(document), detached)
}

// sign signs the document with the key.
func sign(t *testing.T, key *openpgp.Entity) (inline, detached []byte) {
	t.Helper()
	signer, err := signed.NewSigner(private(t, key), nil)
	require.NoError(t, err)
	inline, detached, err = signer.Sign([]byte(document))
	require.NoError(t, err)

	return inline, detached
}

func TestSignAndVerify(t *testing.T) {
	t.Parallel()
	key, other := newKey(t, 0, packet.PubKeyAlgoEdDSA), newKey(t, 0, packet.PubKeyAlgoEdDSA)
	inline, detached := sign(t, key)
	for name, ring := range map[string]io.Reader{
		"binary":         keyring(t, key),
		"two keys":       keyring(t, other, key),
		"armored":        strings.NewReader("\n" + armored(t, "PGP PUBLIC KEY BLOCK", keyring(t, key))),
		"armored blocks": strings.NewReader(armored(t, "PGP PUBLIC KEY BLOCK", keyring(t, other)) + armored(t, "PGP PUBLIC KEY BLOCK", keyring(t, key))),
	} {
		first, second := verify(t, ring, inline, detached)
		require.NoError(t, first, name)
		require.NoError(t, second, name)
	}
	first, second := verify(t, keyring(t, other), inline, detached)
	require.ErrorContains(t, first, "unknown")
	require.ErrorContains(t, second, "unknown")
}

func TestTampered(t *testing.T) {
	t.Parallel()
	key := newKey(t, 0, packet.PubKeyAlgoEdDSA)
	inline, detached := sign(t, key)
	another, _ := sign(t, newKey(t, 0, packet.PubKeyAlgoEdDSA))
	text := string(inline)
	end := "-----BEGIN PGP SIGNATURE-----\n"
	verifier, err := signed.NewVerifier(keyring(t, key))
	require.NoError(t, err)
	for name, changed := range map[string]string{
		"a byte":                strings.Replace(text, `"b"`, `"B"`, 1),
		"a line more":           strings.Replace(text, "{\n", "{\n\n", 1),
		"a line less":           strings.Replace(text, " \"a\": \"b\",\n", "", 1),
		"an end too early":      strings.Replace(text, "- "+end, end, 1),
		"before":                "{}\n" + text,
		"an empty line before":  "\n" + text,
		"behind":                text + "{}\n",
		"a second document":     text + text,
		"one of another key":    text + string(another),
		"another header":        strings.Replace(text, "Hash: ", "NotDashEscaped: ", 1),
		"no signature":          text[:strings.LastIndex(text, end)],
		"an empty signature":    text[:strings.LastIndex(text, end)] + end + "\n-----END PGP SIGNATURE-----\n",
		"not signed":            document,
		"nothing":               "",
		"a signature of itself": string(detached),
	} {
		got, err := verifier.VerifyInline([]byte(changed))
		require.Error(t, err, name)
		require.Nil(t, got, name)
	}
	// White space at the ends of lines is not signed, and not returned.
	got, err := verifier.VerifyInline([]byte(strings.ReplaceAll(text, "\n", " \t\r\n")))
	if err == nil {
		require.Equal(t, strings.TrimSuffix(document, "\n"), strings.TrimSuffix(string(got), "\n"))
	}
	got, err = verifier.VerifyInline([]byte(strings.Replace(text, "{\n", "{ \t\n", 1)))
	require.NoError(t, err)
	require.Equal(t, strings.TrimSuffix(document, "\n"), strings.TrimSuffix(string(got), "\n"))

	require.Error(t, verifier.VerifyDetached([]byte(document+" "), detached))
	require.Error(t, verifier.VerifyDetached(nil, detached))
	require.Error(t, verifier.VerifyDetached([]byte(document), nil))
	require.Error(t, verifier.VerifyDetached([]byte(document), detached[:len(detached)/2]))
	require.Error(t, verifier.VerifyDetached([]byte(document), inline))
}

func TestKeysThatAreNotValid(t *testing.T) {
	t.Parallel()
	t.Run("expired", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			key := newKey(t, time.Hour, packet.PubKeyAlgoEdDSA)
			inline, detached := sign(t, key)
			first, second := verify(t, keyring(t, key), inline, detached)
			require.NoError(t, first)
			require.NoError(t, second)
			signer, err := signed.NewSigner(private(t, key), nil)
			require.NoError(t, err)

			time.Sleep(2 * time.Hour)
			first, second = verify(t, keyring(t, key), inline, detached)
			require.ErrorContains(t, first, "expired")
			require.ErrorContains(t, second, "expired")
			_, _, err = signer.Sign([]byte(document))
			require.ErrorContains(t, err, "expired")
			_, err = signed.NewSigner(private(t, key), nil)
			require.ErrorContains(t, err, "expired")
		})
	})
	t.Run("not yet valid", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			later := func() time.Time { return time.Now().Add(time.Hour) }
			key, err := openpgp.NewEntity("", "", "later@example.net", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: later})
			require.NoError(t, err)
			var signature bytes.Buffer
			require.NoError(t, openpgp.DetachSign(&signature, []*openpgp.Entity{key}, strings.NewReader(document), &packet.Config{Time: later}))
			verifier, err := signed.NewVerifier(keyring(t, key))
			require.NoError(t, err)
			require.Error(t, verifier.VerifyDetached([]byte(document), signature.Bytes()))
		})
	})
	for name, reason := range map[string]packet.ReasonForRevocation{"compromised": packet.KeyCompromised, "retired": packet.KeyRetired} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				key := newKey(t, 0, packet.PubKeyAlgoEdDSA)
				inline, detached := sign(t, key)
				time.Sleep(time.Hour)
				require.NoError(t, key.Revoke(reason, "", nil))
				time.Sleep(time.Hour)
				first, second := verify(t, keyring(t, key), inline, detached)
				require.ErrorContains(t, first, "revoked")
				require.ErrorContains(t, second, "revoked")
				_, err := signed.NewSigner(private(t, key), nil)
				require.ErrorContains(t, err, "revoked")
			})
		})
	}
	t.Run("short", func(t *testing.T) {
		t.Parallel()
		key := newKey(t, 0, packet.PubKeyAlgoRSA)
		weak := &packet.Config{MinRSABits: 1024}
		var signature bytes.Buffer
		require.NoError(t, openpgp.DetachSign(&signature, []*openpgp.Entity{key}, strings.NewReader(document), weak))
		verifier, err := signed.NewVerifier(keyring(t, key))
		require.NoError(t, err)
		require.Error(t, verifier.VerifyDetached([]byte(document), signature.Bytes()))
		_, err = signed.NewSigner(private(t, key), nil)
		require.ErrorContains(t, err, "cannot sign")
	})
}

// TestSignaturesOfGnuPG verifies what gpg 2.2.40 has made.
func TestSignaturesOfGnuPG(t *testing.T) {
	t.Parallel()
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		return content
	}
	verifier, err := signed.NewVerifier(bytes.NewReader(read("gpg.pub")))
	require.NoError(t, err)
	text := read("gpg.json")
	got, err := verifier.VerifyInline(read("gpg.sjson"))
	require.NoError(t, err)
	require.Equal(t, strings.TrimSuffix(string(text), "\n"), string(got))
	require.NoError(t, verifier.VerifyDetached(text, read("gpg.json.gpg")), "binary")
	require.NoError(t, verifier.VerifyDetached(text, read("gpg.json.asc")), "armored")

	_, err = verifier.VerifyInline(read("sha1.sjson"))
	require.ErrorContains(t, err, "SHA-1")
	require.ErrorContains(t, verifier.VerifyDetached(text, read("sha1.json.gpg")), "SHA-1")
}

// TestGnuPGVerifies has gpgv verify what a Signer has made.
func TestGnuPGVerifies(t *testing.T) {
	t.Parallel()
	gpgv, err := exec.LookPath("gpgv")
	if err != nil {
		t.Skip("there is no gpgv")
	}
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	key := newKey(t, 0, packet.PubKeyAlgoEdDSA)
	ring, err := io.ReadAll(keyring(t, key))
	require.NoError(t, err)
	pub := write("keys.gpg", ring)
	signer, err := signed.NewSigner(private(t, key), nil)
	require.NoError(t, err)
	longest := strings.Repeat("a", 19994) + "\n"
	for _, text := range []string{document, "{}", "", longest, "1", "2", "3", "4", "5", "6", "7", "8"} { // signatures differ in length
		inline, detached, err := signer.Sign([]byte(text))
		require.NoError(t, err)
		sjson := write("index.sjson", inline)
		for _, args := range [][]string{{sjson}, {write("index.json.gpg", detached), write("index.json", []byte(text))}} {
			out, err := exec.CommandContext(t.Context(), gpgv, append([]string{"--homedir", dir, "--keyring", pub}, args...)...).CombinedOutput()
			require.NoError(t, err, string(out))
		}
		changed := write("index.sjson", bytes.Replace(inline, []byte("\n\n"), []byte("\n\n-"), 1))
		require.Error(t, exec.CommandContext(t.Context(), gpgv, "--homedir", dir, "--keyring", pub, changed).Run())
	}
	_, _, err = signer.Sign([]byte("a" + longest))
	require.ErrorContains(t, err, "19996 bytes")
}

func TestPassphrase(t *testing.T) {
	t.Parallel()
	key := newKey(t, 0, packet.PubKeyAlgoEdDSA)
	public := armored(t, "PGP PUBLIC KEY BLOCK", keyring(t, key))
	require.NoError(t, key.EncryptPrivateKeys([]byte("secret"), nil))
	locked := armored(t, "PGP PRIVATE KEY BLOCK", private(t, key))
	signer, err := signed.NewSigner(strings.NewReader(locked), []byte("secret"))
	require.NoError(t, err)
	inline, detached, err := signer.Sign([]byte(document))
	require.NoError(t, err)
	first, second := verify(t, strings.NewReader(public), inline, detached)
	require.NoError(t, first)
	require.NoError(t, second)
	for _, wrong := range []string{"", "other"} {
		_, err = signed.NewSigner(strings.NewReader(locked), []byte(wrong))
		require.ErrorContains(t, err, "passphrase")
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestBadKeys(t *testing.T) {
	t.Parallel()
	one, two := newKey(t, 0, packet.PubKeyAlgoEdDSA), newKey(t, 0, packet.PubKeyAlgoEdDSA)
	for name, ring := range map[string]io.Reader{
		"empty":     strings.NewReader(""),
		"text":      strings.NewReader("no keys"),
		"truncated": strings.NewReader(armored(t, "PGP PUBLIC KEY BLOCK", keyring(t, one))[:200]),
		"keybox":    strings.NewReader("\x00\x00\x00 \x01\x01\x00\x02KBXf"),
	} {
		_, err := signed.NewVerifier(ring)
		require.ErrorContains(t, err, "read the keyring", name)
		_, err = signed.NewSigner(ring, nil)
		require.ErrorContains(t, err, "read the key", name)
	}
	_, err := signed.NewSigner(keyring(t, one, two), nil)
	require.ErrorContains(t, err, "there are 2")
	_, err = signed.NewSigner(keyring(t, one), nil)
	require.ErrorContains(t, err, "private part")
	_, err = new(signed.Verifier).VerifyInline([]byte("-----BEGIN PGP SIGNED MESSAGE-----"))
	require.Error(t, err)
	require.Error(t, new(signed.Verifier).VerifyDetached(nil, nil))
	_, _, err = new(signed.Signer).Sign(nil)
	require.Error(t, err)
}
