package imagefile

import "fmt"

// Severity says what becomes of an image with a problem.
type Severity string

// The severities.
const (
	// Refused says that at least one of LXD 5.0.2, Incus 6.0.4 and Incus 7.0.2 refuses the upload.
	Refused Severity = "refused"
	// Regretted says that the daemons accept the upload, and that instances then cannot be created, or are not what was
	// meant.
	Regretted Severity = "regretted"
	// Unchecked says that a limit of this package ended the reading ([TooLarge]): what the daemons do is not known.
	Unchecked Severity = "unchecked"
)

// ProblemKind is what is wrong.
type ProblemKind string

// The kinds of problems.
const (
	Empty             ProblemKind = "empty"              // a file has no bytes
	UnknownFormat     ProblemKind = "unknown format"     // a file is neither a tarball nor a root filesystem
	Cut               ProblemKind = "cut"                // a file ends too early
	Damaged           ProblemKind = "damaged"            // a file cannot be read
	TooLarge          ProblemKind = "too large"          // a file exceeds a limit of this package
	Swapped           ProblemKind = "swapped"            // one file is given in place of the other
	NoMetadata        ProblemKind = "no metadata"        // metadata.yaml is missing
	BadMetadata       ProblemKind = "bad metadata"       // metadata.yaml is not what the daemons read
	BadArchitecture   ProblemKind = "bad architecture"   // the architecture is missing, or has no name that the daemons know
	BadCreationDate   ProblemKind = "bad creation date"  // the creation date is missing or not a number
	BadExpiryDate     ProblemKind = "bad expiry date"    // the expiry date is not a number, or is past
	NoRootfs          ProblemKind = "no rootfs"          // the root filesystem is missing
	WrongType         ProblemKind = "wrong type"         // the root filesystem is not one of the image's type
	AmbiguousRootfs   ProblemKind = "ambiguous rootfs"   // there is more than one root filesystem
	BadTemplate       ProblemKind = "bad template"       // a template that metadata.yaml names cannot be used
	EscapingPath      ProblemKind = "escaping path"      // the path of an entry is absolute or contains ".."
	EscapingLink      ProblemKind = "escaping link"      // a hard link leaves the image, or an entry is below a link that does
	DeviceNode        ProblemKind = "device node"        // the root filesystem contains a device
	DuplicateMetadata ProblemKind = "duplicate metadata" // there is more than one metadata.yaml; the first counts
)

// Part is one of the files of an image.
type Part string

// The parts.
const (
	ImagePart  Part = "image"  // the first or only file
	RootfsPart Part = "rootfs" // the second file
)

// Problem is what is wrong with an image. As an error, it says that a file cannot be read to the place that matters.
type Problem struct {
	Kind     ProblemKind
	Severity Severity
	File     Part
	// Entry is the path of the tarball's entry; empty if the problem is not one of an entry. It may be any bytes.
	Entry string
	// Offset is the place of the entry's header in the uncompressed tarball, or where reading has ended; -1 if the file is
	// meant as a whole.
	Offset int64
	// Line is the line of metadata.yaml; 0 if none is meant.
	Line int
	// Message says what is wrong and what to do.
	Message string
	// Err is the cause, such as the error of a decompressor; nil for none.
	Err error
}

// Error returns the place and the message.
func (p *Problem) Error() string {
	place := string(p.File)
	if p.Entry != "" {
		place += fmt.Sprintf(": %.200q", p.Entry)
	}
	if p.Line > 0 {
		place += fmt.Sprintf(" line %d", p.Line)
	}
	text := place + ": " + p.Message
	if p.Err != nil {
		text += fmt.Sprintf(" (%.300s)", p.Err)
	}
	return text
}

// Unwrap returns Err.
func (p *Problem) Unwrap() error { return p.Err }
