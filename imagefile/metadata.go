package imagefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/golxd/lxd/simplestreams"
)

// maxMetadata limits the size of metadata.yaml. Those of public images have a few KiB.
const maxMetadata = 1 << 20

// parseMetadata reads a metadata.yaml as the daemons do. What is wrong is reported, and left out of the result, which is
// nil if nothing can be read.
func parseMetadata(data []byte, now time.Time, report func(Problem)) *Metadata {
	bad := func(kind ProblemKind, severity Severity, line int, err error, format string, args ...any) {
		report(Problem{Kind: kind, Severity: severity, Line: line, Err: err, Message: fmt.Sprintf(format, args...)})
	}
	var document yaml.Node
	switch err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&document); {
	case errors.Is(err, io.EOF):
		bad(BadMetadata, Refused, 0, nil, "the file is empty; it needs architecture and creation_date")
		return nil
	case err != nil:
		bad(BadMetadata, Refused, 0, err, "the file is not YAML")
		return nil
	}
	var fields struct {
		Architecture yaml.Node `yaml:"architecture"`
		CreationDate yaml.Node `yaml:"creation_date"`
		ExpiryDate   yaml.Node `yaml:"expiry_date"`
		Properties   yaml.Node `yaml:"properties"`
		Templates    yaml.Node `yaml:"templates"`
	}
	if err := document.Decode(&fields); err != nil {
		// Incus 7.0.2 alone refuses a field that is there twice.
		bad(BadMetadata, Refused, 0, err, "the file is not a mapping with each field once")
		return nil
	}
	m := &Metadata{}

	var architecture string
	line := fields.Architecture.Line
	if err := fields.Architecture.Decode(&architecture); err != nil {
		bad(BadArchitecture, Refused, line, err, "the architecture is not a text; write one such as x86_64 or aarch64")
	}
	name, known := simplestreams.ArchitectureName(architecture)
	switch {
	case known:
		m.Architecture = name
		if name == "loongarch64" {
			bad(BadArchitecture, Refused, line, nil, "LXD 5.0.2 does not know the architecture loongarch64; Incus does")
		}
	case architecture == "":
		bad(BadArchitecture, Refused, line, nil, "architecture is missing; write one such as x86_64 or aarch64")
	default:
		m.Architecture = architecture
		bad(BadArchitecture, Refused, line, nil, "the daemons do not know the architecture %.100q; write one such as x86_64 or aarch64", architecture)
	}

	m.CreatedAt = decodeDate(&fields.CreationDate, "creation_date", BadCreationDate, bad)
	if m.CreatedAt.IsZero() && fields.CreationDate.IsZero() {
		bad(BadCreationDate, Refused, 0, nil, "creation_date is missing; write seconds since 1970, as by date +%%s")
	}
	m.ExpiresAt = decodeDate(&fields.ExpiryDate, "expiry_date", BadExpiryDate, bad)
	if !m.ExpiresAt.IsZero() && m.ExpiresAt.Unix() > 0 && m.ExpiresAt.Before(now) {
		bad(BadExpiryDate, Regretted, fields.ExpiryDate.Line, nil, "the image has expired on %s; the daemons delete expired images that are cached", m.ExpiresAt.Format(time.DateOnly))
	}

	if err := fields.Properties.Decode(&m.Properties); err != nil {
		bad(BadMetadata, Refused, fields.Properties.Line, err, "properties is not a mapping of texts")
		m.Properties = nil
	}
	if err := fields.Templates.Decode(&m.Templates); err != nil {
		bad(BadMetadata, Refused, fields.Templates.Line, err, "templates is not a mapping of paths to when, create_only, template and properties")
		m.Templates = nil
	}
	for _, target := range sortedKeys(m.Templates) {
		template := m.Templates[target]
		if !path.IsAbs(target) {
			bad(BadTemplate, Regretted, fields.Templates.Line, nil, "the path %.100q of a template is not absolute", target)
		}
		if template.Template == "" || strings.Contains("/"+template.Template+"/", "/../") {
			bad(BadTemplate, Regretted, fields.Templates.Line, nil, "the template of %.100q is %.100q, which is no file in the directory templates", target, template.Template)
		}
		if len(template.When) == 0 {
			bad(BadTemplate, Regretted, fields.Templates.Line, nil, "the template of %.100q has no when, and is never written; use create, copy, start or rename", target)
		}
		for _, when := range template.When {
			if !slices.Contains([]string{"create", "copy", "start", "rename"}, when) {
				bad(BadTemplate, Regretted, fields.Templates.Line, nil, "the template of %.100q is never written at %.100q; use create, copy, start or rename", target, when)
			}
		}
	}
	return m
}

// decodeDate reads a date, which is the zero time if the field is missing, 0 or wrong.
func decodeDate(field *yaml.Node, name string, kind ProblemKind, bad func(ProblemKind, Severity, int, error, string, ...any)) time.Time {
	var seconds int64
	if err := field.Decode(&seconds); err != nil {
		bad(kind, Refused, field.Line, err, "%s is not a number; write seconds since 1970, as by date +%%s, without quotation marks", name)
		return time.Time{}
	}
	if exact := 0.0; field.Decode(&exact) == nil && exact != math.Trunc(exact) {
		bad(kind, Refused, field.Line, nil, "%s is not a whole number, which Incus 7.0.2 refuses; write seconds since 1970, as by date +%%s", name)
	}
	if seconds == 0 {
		if kind == BadCreationDate && !field.IsZero() {
			bad(kind, Refused, field.Line, nil, "%s is 0, which the daemons read as missing; write seconds since 1970, as by date +%%s", name)
		}
		return time.Time{}
	}
	switch {
	case seconds > maxSeconds:
		bad(kind, Refused, field.Line, nil, "%s is %d, which is after the year 9999; write seconds since 1970, not milliseconds", name, seconds)
	case seconds < 0:
		bad(kind, Regretted, field.Line, nil, "%s is %d, which is before 1970; write seconds since 1970, as by date +%%s", name, seconds)
	}
	return time.Unix(seconds, 0).UTC()
}

// maxSeconds is the end of the year 9999. LXD 5.0.2, Incus 6.0.4 and Incus 7.0.2 store a later date and then cannot read it.
const maxSeconds = 253402300799
