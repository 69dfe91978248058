#!/bin/bash
# Every test, with a check that nothing is left on the machine; gotestsum's summary is the last line.
# Called by `make test`, which has built the binaries.
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"
check_machine

# The tests' files are on a fresh ext4 in memory, where there is room for it: what others do to the machine's own disk decides no
# test then. It is mounted in a mount namespace of this run alone, and so gone at its end, whatever that is.
if [ -z "${OVERLAYFUSE_TEST_NAMESPACE-}" ]; then
	OVERLAYFUSE_TEST_NAMESPACE=1 exec unshare --mount --propagation slave "$0" "$@"
fi
before=$(mktemp /var/tmp/ofs-before.XXXXXX)
scratch=$(mktemp -d /var/tmp/ofs.XXXX)
image=
clean() {
	umount -l "$scratch" 2>/dev/null || true # it may be a plain directory
	rm -rf --one-file-system "$before" "$scratch" ${image:+"$image"}
}
trap clean EXIT
in_memory() {
	local free
	free=$(df --output=avail -B1G /dev/shm 2>/dev/null | tail -n 1) || return 0
	[ "$free" -ge 10 ] || return 0
	image=$(mktemp /dev/shm/ofs.XXXX)
	truncate -s 8G "$image"
	mkfs.ext4 -q -m 0 "$image"
	mount -o loop,discard "$image" "$scratch" || die "mount an ext4 file system from $image on $scratch failed"
	rm "$image" # it lives as long as its loop device
	image=
}
in_memory
export TMPDIR=$scratch
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
