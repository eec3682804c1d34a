// Package wire reads and writes the JSON of the LXD and Incus APIs.
package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The types of a response.
const (
	TypeSync  = "sync"
	TypeAsync = "async"
	TypeError = "error"
)

// Envelope is the object that wraps every response of a daemon but an exported image.
type Envelope struct {
	Type       string
	Status     string
	StatusCode int
	Operation  string
	ErrorCode  int
	Error      string
}

// ErrNotEnvelope says that a response is not an envelope, so most likely not from
// an LXD or Incus daemon.
var ErrNotEnvelope = errors.New("not a response of the LXD API")

// decodeOptions accept what the daemons' own decoder accepts.
var decodeOptions = json.JoinOptions(
	jsontext.AllowDuplicateNames(true),
	jsontext.AllowInvalidUTF8(true),
)

// ElementFunc receives the elements of a metadata array one after another. It
// must read exactly one value from the decoder.
type ElementFunc func(*jsontext.Decoder) error

// GroupedFunc is an ElementFunc for metadata that is an object of arrays, such
// as the operations by their status.
type GroupedFunc func(*jsontext.Decoder) error

// Decode reads one envelope from r. The metadata is decoded in the same pass,
// straight from r, into metadata: a pointer, an [ElementFunc], a [GroupedFunc],
// a *jsontext.Value to keep whatever it is, or nil to ignore it. Unless it is kept or
// ignored, metadata must be present and not null: no daemon sends null for an empty
// list (LXD 4.0.13 to 6.9, Incus 6.0.0 to 7.3).
// The metadata of an error response is not decoded if the envelope's type comes
// first, as it does from all daemons.
func Decode(r io.Reader, metadata any) (*Envelope, error) {
	dec := jsontext.NewDecoder(r, decodeOptions)
	tok, err := dec.ReadToken()
	if err != nil {
		return nil, notEnvelope(err)
	}
	if tok.Kind() != '{' {
		return nil, fmt.Errorf("%w: it starts with %s", ErrNotEnvelope, tok.Kind())
	}
	env := &Envelope{}
	_, found := metadata.(*jsontext.Value)
	found = found || metadata == nil
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, notEnvelope(err)
		}
		switch name.String() {
		case "type":
			err = json.UnmarshalDecode(dec, &env.Type)
		case "status":
			err = json.UnmarshalDecode(dec, &env.Status)
		case "status_code":
			err = json.UnmarshalDecode(dec, &env.StatusCode)
		case "operation":
			err = json.UnmarshalDecode(dec, &env.Operation)
		case "error_code":
			err = json.UnmarshalDecode(dec, &env.ErrorCode)
		case "error":
			err = json.UnmarshalDecode(dec, &env.Error)
		case "metadata":
			if metadata == nil || env.Type == TypeError || dec.PeekKind() == 'n' {
				err = dec.SkipValue()
			} else {
				found = true
				err = decodeMetadata(dec, metadata)
			}
		default:
			err = dec.SkipValue()
		}
		if err != nil {
			return nil, notEnvelope(err)
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, notEnvelope(err)
	}
	switch env.Type {
	case TypeError:
		return env, nil
	case TypeSync, TypeAsync:
		if !found {
			return nil, fmt.Errorf("%w: it has no metadata", ErrNotEnvelope)
		}
		return env, nil
	default:
		return nil, fmt.Errorf("%w: its type is %.80q", ErrNotEnvelope, env.Type)
	}
}

func decodeMetadata(dec *jsontext.Decoder, metadata any) error {
	switch each := metadata.(type) {
	case ElementFunc:
		return decodeArray(dec, each)
	case GroupedFunc:
		return decodeGroups(dec, ElementFunc(each))
	}
	return json.UnmarshalDecode(dec, metadata)
}

func decodeArray(dec *jsontext.Decoder, each ElementFunc) error {
	if err := begin(dec, '['); err != nil {
		return err
	}
	for dec.PeekKind() != ']' {
		if err := each(dec); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

func decodeGroups(dec *jsontext.Decoder, each ElementFunc) error {
	if err := begin(dec, '{'); err != nil {
		return err
	}
	for dec.PeekKind() != '}' {
		if _, err := dec.ReadToken(); err != nil { // the group's name
			return err
		}
		if err := decodeArray(dec, each); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// begin reads the start of an array or object.
func begin(dec *jsontext.Decoder, kind jsontext.Kind) error {
	tok, err := dec.ReadToken()
	if err != nil {
		return err
	}
	if tok.Kind() != kind {
		return fmt.Errorf("%w: the metadata has a %s instead of a %s", ErrNotEnvelope, tok.Kind(), kind)
	}
	return nil
}

// notEnvelope returns an ErrNotEnvelope for malformed JSON, and an error of the
// reader unchanged.
func notEnvelope(err error) error {
	var syntactic *jsontext.SyntacticError
	var semantic *json.SemanticError
	switch {
	case errors.As(err, &syntactic):
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrNotEnvelope, err)
	case errors.As(err, &semantic):
		return fmt.Errorf("%w: %w", ErrNotEnvelope, err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it is empty", ErrNotEnvelope)
	}
	return err
}

// UnmarshalElement reads one array element in an [ElementFunc].
func UnmarshalElement(dec *jsontext.Decoder, v any) error {
	return json.UnmarshalDecode(dec, v)
}

// Unmarshal decodes one JSON value as leniently as Decode does.
func Unmarshal(data []byte, v any) error {
	return json.UnmarshalRead(bytes.NewReader(data), v, decodeOptions)
}

// Marshal encodes a request. Nil maps and slices are encoded as {} and [], because
// null can crash a daemon: LXD 5.0.2, Incus 6.0.4 and 7.0.2 crash on a push token
// whose properties are null.
func Marshal(v any) ([]byte, error) {
	return json.Marshal(v)
}
