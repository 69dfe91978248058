// Package kubernetes holds manifests, and tests of them.
package kubernetes
