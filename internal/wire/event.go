package wire

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Event is one message of the event stream.
type Event struct {
	Type      string         `json:"type"`
	Timestamp time.Time      `json:"timestamp"`
	Metadata  jsontext.Value `json:"metadata"`
	Location  string         `json:"location"`
	Project   string         `json:"project"`
}
