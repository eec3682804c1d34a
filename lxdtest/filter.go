package lxdtest

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
)

// clause is one comparison of a filter.
type clause struct {
	or     bool // joined to the previous clauses by or, not by and
	negate bool
	field  string
	equal  bool
	value  string
	regex  *regexp.Regexp
}

func badFilter(why string) error { return daemonErrorf("Invalid filter: %s", why) }

// parseFilter parses a filter as the daemons do and returns a function that
// reports whether an image matches it. A value is a regular expression that
// must match the whole field, ignoring case; LXD 4.0.13 compares it literally.
func (s *Server) parseFilter(text string) (func(imageJSON) (bool, error), error) {
	words, err := filterWords(text)
	if err != nil {
		return nil, err
	}
	var clauses []clause
	for i := 0; i < len(words); {
		var c clause
		if len(clauses) > 0 {
			switch strings.ToLower(words[i]) {
			case "and":
			case "or":
				c.or = true
			default:
				return nil, badFilter("invalid logical operator " + strconv.Quote(words[i]))
			}
			i++
		}
		if i < len(words) && strings.EqualFold(words[i], "not") {
			c.negate = true
			i++
		}
		switch len(words) - i {
		case 0:
			return nil, badFilter("incomplete filter")
		case 1:
			return nil, badFilter("clause has no operator")
		case 2:
			return nil, badFilter("clause has no value")
		}
		c.field, c.value = words[i], words[i+2]
		switch strings.ToLower(words[i+1]) {
		case "eq":
			c.equal = true
		case "ne":
		default:
			if s.traits.typedFilter {
				return nil, daemonErrorf("Unsupported operation")
			}
			// LXD 5.0.2 accepts an unknown operator and matches nothing.
			c.value, c.equal = "\x00", true
		}
		if s.traits.literalFilter {
			c.regex = regexp.MustCompile("^" + regexp.QuoteMeta(c.value) + "$")
		} else if c.regex, err = regexp.Compile("(?i)^(?:" + c.value + ")$"); err != nil {
			// An invalid expression is compared literally.
			c.regex = regexp.MustCompile("(?i)^" + regexp.QuoteMeta(c.value) + "$")
		}
		clauses = append(clauses, c)
		i += 3
	}
	return func(img imageJSON) (bool, error) {
		if len(clauses) == 0 {
			return true, nil
		}
		fields, err := fieldsOf(img)
		if err != nil {
			return false, err
		}
		result := true
		for i, c := range clauses {
			ok, err := s.matchClause(c, fields)
			if err != nil {
				return false, err
			}
			switch {
			case i == 0:
				result = ok
			case c.or:
				result = result || ok
			default:
				result = result && ok
			}
		}
		return result, nil
	}, nil
}

// fieldsOf returns the fields of an image by their names in filters.
func fieldsOf(img imageJSON) (map[string]any, error) {
	data, err := json.Marshal(img)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	return fields, json.Unmarshal(data, &fields)
}

// matchClause compares one field.
func (s *Server) matchClause(c clause, fields map[string]any) (bool, error) {
	first, rest, deep := strings.Cut(c.field, ".")
	value, known := fields[first]
	if inner, ok := value.(map[string]any); ok && deep {
		if value, known = inner[rest]; !known {
			value, known = "", true
		}
	}
	if !known && s.traits.typedFilter {
		return false, daemonErrorf("Invalid type %q for field %q", "invalid", c.field)
	}
	equal := false
	switch value := value.(type) {
	case string:
		equal = c.regex.MatchString(value)
	case bool:
		equal = s.traits.typedFilter && strconv.FormatBool(value) == c.value
	case float64:
		equal = s.traits.typedFilter && strconv.FormatFloat(value, 'f', -1, 64) == c.value
	}
	if !c.equal {
		equal = !equal
	}
	return equal != c.negate, nil
}

// filterWords splits a filter at spaces. Only a value that contains a space can
// be quoted: the daemons look for the closing quote in a later word.
func filterWords(text string) ([]string, error) {
	var words []string
	fields := strings.Fields(text)
	for i := 0; i < len(fields); i++ {
		word := fields[i]
		quoted, ok := strings.CutPrefix(word, `"`)
		if !ok {
			words = append(words, word)
			continue
		}
		closed := false
		for i++; i < len(fields); i++ {
			quoted += " " + fields[i]
			if inner, ok := strings.CutSuffix(quoted, `"`); ok {
				quoted, closed = inner, true
				break
			}
		}
		if !closed {
			return nil, badFilter("unterminated quote")
		}
		words = append(words, quoted)
	}
	return words, nil
}
