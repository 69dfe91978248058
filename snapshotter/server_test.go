package snapshotter

// stopServer ends the mount server of the tests, if one was started.
func stopServer() {}
