package imagefile

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/golxd/lxd/simplestreams"
)

// setMetadata checks the metadata of the image, and makes metadata.yaml of it. Fields of former, the metadata.yaml that is
// replaced, which Metadata does not have, are kept.
func (p *packer) setMetadata(m *Metadata, former []byte) error {
	bad := func(format string, args ...any) error {
		return &InputError{Field: "metadata", Problem: fmt.Sprintf(format, args...)}
	}
	written := *m
	name, known := simplestreams.ArchitectureName(m.Architecture)
	if m.Architecture == "" {
		return bad("has no Architecture; the daemons know names such as x86_64 or aarch64")
	}
	if !known {
		return bad("has the architecture %q; the daemons know names such as x86_64 or aarch64", m.Architecture)
	}
	written.Architecture = name
	if m.CreatedAt.IsZero() {
		written.CreatedAt = p.opts.ModTime
		if p.opts.ModTime.IsZero() {
			written.CreatedAt = time.Now()
		}
	}
	for key, value := range m.Properties {
		if !utf8.ValidString(key + value) {
			return bad("has the property %q, which is not UTF-8", key)
		}
	}
	data, err := written.marshal(former)
	if err != nil {
		return bad("cannot be written: %v", err)
	}
	if len(data) > maxMetadata {
		return bad("has %d bytes; %d are allowed", len(data), maxMetadata)
	}
	// The rules are those of Check. An architecture that only LXD does not know, and an expiry that is past, may be meant.
	var problem *Problem
	parseMetadata(data, written.CreatedAt, func(found Problem) {
		if problem == nil && found.Kind != BadArchitecture && (found.Kind != BadExpiryDate || found.Severity == Refused) {
			problem = &found
		}
	})
	if problem != nil {
		return bad("is not right: %s", problem.Message)
	}
	p.metadata, p.created = data, written.CreatedAt
	return nil
}

// checkTemplates checks the files of templates, and that those are there that metadata.yaml names, if it is known.
func (p *packer) checkTemplates(named map[string]Template) error {
	for _, file := range sortedKeys(p.opts.TemplateFiles) {
		if file == "" || strings.Contains(file, "\x00") || path.IsAbs(file) || path.Clean(file) != file || strings.HasPrefix(file, "../") || file == ".." || file == "." {
			return &InputError{Field: "TemplateFiles", Problem: fmt.Sprintf("has %q, which is no name of a file in the directory templates", file)}
		}
	}
	for _, target := range sortedKeys(named) {
		file := named[target].Template
		if _, ok := p.opts.TemplateFiles[file]; !ok {
			return &InputError{Field: "TemplateFiles", Problem: fmt.Sprintf("does not have %q, which the template of %s needs", file, target)}
		}
	}
	return nil
}

// marshal returns metadata.yaml, with the other fields of former.
func (m *Metadata) marshal(former []byte) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(former, &document); err != nil {
		return nil, err
	}
	if len(document.Content) == 0 {
		document = yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.MappingNode}}}
	}
	mapping := document.Content[0]
	if mapping.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("metadata.yaml is not a mapping")
	}
	set := func(key string, value any, keep bool) error {
		at := 0
		for at < len(mapping.Content) && mapping.Content[at].Value != key {
			at += 2
		}
		if !keep {
			mapping.Content = append(mapping.Content[:at], mapping.Content[min(at+2, len(mapping.Content)):]...)
			return nil
		}
		if at == len(mapping.Content) {
			mapping.Content = append(mapping.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, nil)
		}
		mapping.Content[at+1] = &yaml.Node{}
		return mapping.Content[at+1].Encode(value)
	}
	properties := m.Properties
	if properties == nil {
		properties = map[string]string{}
	}
	if err := cmp.Or(
		set("architecture", m.Architecture, true),
		set("creation_date", m.CreatedAt.Unix(), true),
		set("expiry_date", m.ExpiresAt.Unix(), !m.ExpiresAt.IsZero()),
	); err != nil {
		return nil, err
	}
	was := &Metadata{}
	if len(former) > 0 {
		was = parseMetadata(former, m.CreatedAt, func(Problem) {})
	}
	if len(former) == 0 || !maps.Equal(was.Properties, m.Properties) {
		if err := set("properties", properties, true); err != nil {
			return nil, err
		}
	}
	if !maps.EqualFunc(was.Templates, m.Templates, func(a, b Template) bool { return reflect.DeepEqual(a, b) }) {
		if err := set("templates", m.Templates, len(m.Templates) > 0); err != nil {
			return nil, err
		}
	}
	data, err := yaml.Marshal(&document)
	if err == nil && yaml.Unmarshal(data, new(yaml.Node)) != nil {
		err = errors.New("a field that changes has an anchor, to which an alias elsewhere in metadata.yaml refers")
	}
	return data, err
}
