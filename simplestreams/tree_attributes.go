package simplestreams

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// mirrorAttribute is the attribute of a product that Mirror maintains, with the address of the server.
const mirrorAttribute = "golxd_mirror"

// quoted returns a text as a JSON string.
func quoted(text string) jsontext.Value {
	value, err := jsontext.AppendQuote(nil, text)
	if err != nil {
		panic(err) // The text is valid UTF-8, which publishing.prepare has checked.
	}

	return value
}

// setMembers returns a JSON object with members set: those that it has in their places, others at the end.
func setMembers(object jsontext.Value, set []member) (jsontext.Value, error) {
	var members []member
	if len(object) > 0 {
		d := newDecoder(bytes.NewReader(object))
		if err := d.object(func(name []byte) error { return d.member(&members, name) }); err != nil {
			return nil, err
		}
	}
	for _, each := range set {
		if n := slices.IndexFunc(members, func(m member) bool { return m.name == each.name }); n >= 0 {
			members[n].value = each.value
		} else {
			members = append(members, each)
		}
	}

	return encodeMembers(members)
}

// text returns the attributes with some names that are strings.
func (p *treeProduct) text(names ...string) (map[string]string, error) {
	found := map[string]string{}
	if len(p.attributes) == 0 {
		return found, nil
	}
	d := newDecoder(bytes.NewReader(p.attributes))
	err := d.object(func(name []byte) error {
		if d.PeekKind() != '"' || !slices.Contains(names, string(name)) {
			return d.SkipValue()
		}
		key := string(name)
		value, err := d.text()
		found[key] = string(value)

		return err
	})
	if err != nil {
		return nil, fmt.Errorf("simplestreams: %w", err)
	}

	return found, nil
}

// older returns the versions beyond the newest ones, so many. Versions without a date are not counted: nobody sees them.
func (p *treeProduct) older(keep int) []string {
	serials := slices.SortedFunc(maps.Keys(p.versions), func(a, b string) int { return strings.Compare(b, a) })
	serials = slices.DeleteFunc(serials, func(serial string) bool { _, ok := created(serial); return !ok })

	return serials[min(keep, len(serials)):]
}
