package simplestreams

import "errors"

// errDeleted says that a file is being deleted, or is deleted.
var errDeleted = errors.New("the file was deleted, as nothing listed it")
