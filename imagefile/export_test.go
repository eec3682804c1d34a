package imagefile

// SetMaxNames changes how many names of a tarball are kept, and returns a function that restores the number.
func SetMaxNames(n int) (restore func()) {
	before := maxNames
	maxNames = n
	return func() { maxNames = before }
}
