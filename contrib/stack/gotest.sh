#!/bin/bash
# Runs every Go test and prints go test's JSON, for gotestsum: the packages with the race detector first,
# those that mount again with io=writeback, and then the container tests, in both modes, alone, so that nothing else takes their time.
# Fails when any fails.
#
# usage: gotest.sh [PACKAGE...]     default: all
set -uo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"
cd "$repo_dir" || exit 1

e2e=./contrib/e2e
late=()
if [ $# = 0 ]; then
	late=(./overlayfuse ./overlayfuse/control ./cmd/overlayfuse ./snapshotter)
	mapfile -t packages < <(go list ./... | grep -v '/contrib/e2e$')
	containers=("$e2e")
else
	packages=("$@")
	containers=()
fi
status=0
[ ${#packages[@]} -gt 0 ] || die "go list ./... lists nothing"
go test -json -race -p 2 -count=1 -timeout 30m "${packages[@]}" || status=1
# label TEXT: the summary tells the packages of the JSON on standard input apart by their name.
label() { sed "s|\"Package\":\"\([^\"]*\)\"|\"Package\":\"\1 ($1)\"|"; }
# Not with the race detector, for time; not on the oracle, which has no modes.
late_test() {
	OVERLAYFUSE_TEST_IO=writeback OVERLAYFUSE_SYSTEMS=overlayfuse go test -json -p 2 -count=1 -timeout 30m "$@" |
		label io=writeback || status=1
}
if [ ${#late[@]} -gt 0 ]; then
	# Each system call failed with each error, on each file system: with the race detector only with one of them, and in memory.
	go test -json -count=1 -timeout 30m -run '^TestNthCallFails$' ./copyup | label "each error" || status=1
	late_test "${late[@]}"
fi
for package in "${containers[@]}"; do
	go test -json -count=1 -timeout 30m "$package" || status=1
	OVERLAYFUSE_IO=writeback go test -json -count=1 -timeout 30m "$package" | label io=writeback || status=1
done
exit $status
