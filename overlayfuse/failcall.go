package overlayfuse

// failCall, if set, is asked before each system call on a layer of those that a copy-up consists of. Its error is then that of the call,
// which is not made. It is for tests, and changes only while no file system is open.
var failCall func(call string) error

// failed is failCall's answer, nil if nobody is to be asked.
func failed(call string) error {
	if failCall == nil {
		return nil
	}
	return failCall(call)
}
