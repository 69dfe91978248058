#!/bin/bash
# Every test, with a check that nothing is left on the machine; gotestsum's summary is the last line.
# Called by `make test`, which has built the binaries.
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"
check_machine
before=$(mktemp /var/tmp/ofs-before.XXXXXX)
trap 'rm -f "$before"' EXIT
"$stack_dir/leftovers.sh" save "$before"

# The check runs within the wrapped command, so that what it says stands above the summary.
all() {
	local status=0
	"$stack_dir/gotest.sh" "$@" || status=1
	"$stack_dir/leftovers.sh" check "$before" || status=1
	return $status
}
export -f all
export before stack_dir
cd "$repo_dir"
gotestsum --format pkgname --hide-summary=skipped --raw-command -- bash -c 'all "$@"' all "$@"
