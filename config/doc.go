// Package config is the configuration of containerd-overlayfuse-grpc: a TOML file, its defaults and its checks.
//
// What: [Default] is a complete configuration that needs no file. [Load] lays a file over it. [Example] is a commented file
// that says exactly what [Default] says.
//
// Terms: a key is the dotted name of a value in the file, as in server.socket.
//
// Errors: an unknown key or a bad value is an [*Error] that names the file, the line and the key. Nothing is ignored and
// nothing is corrected silently.
//
// Units: durations are written as Go writes them ("30s", "1m30s").
//
// What it is not: it opens, creates and contacts nothing but the file it reads. Whether a directory can be used is found out
// by the package that uses it.
package config
