// Package signed verifies and makes the OpenPGP signatures of simplestreams servers. It is a package of its own so that
// programs that need neither do not link an OpenPGP implementation.
//
//	verifier, err := signed.NewVerifier(keyring) // the operator's public key, from gpg --export
//	client, err := simplestreams.New("https://images.example.net", &simplestreams.Options{Verifier: verifier})
//
// # What a signature says
//
// That the owner of a key has made the index, and so the hashes of all images. It is then of no matter who serves them: a
// mirror, or a server whose certificate was stolen, cannot change an image. A signature does not say that an index is the
// newest one: whoever controls the server can serve an older one that was signed.
package signed
