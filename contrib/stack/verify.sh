#!/bin/bash
# `make verify`: the long runs. 10 million random operations of the engine's model on five file systems, 500 power cuts of each file
# system and 267 kills of the server, 67 of them with io=writeback, and longer random runs of the mount beside a plain directory, on ext4 and xfs.
#
# VERIFY_OPS        operations of one of the model's ten seeds (1000000)
# VERIFY_CUTS       power cuts of a file system (500), VERIFY_KILLS kills (200, and a third more with io=writeback)
# VERIFY_SEEDS      seeds of the random runs of the mount (1-100)
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"
check_machine
cd "$repo_dir"
test_of() { go test -count=1 -v -timeout 12h "$@"; }
export -f test_of

# on_fs TYPE ARGUMENTS: test_of with the tests' files on a new file system, in a mount namespace of its own.
on_fs() {
	local image scratch status=0
	image=$(mktemp /var/tmp/ofs.XXXXXX) scratch=$(mktemp -d /var/tmp/ofs.XXXXXX)
	truncate -s 8G "$image"
	"mkfs.$1" -q "$image"
	# shellcheck disable=SC2016 # the inner shell expands them
	unshare --mount --propagation slave bash -ec 'mount -o loop,discard "$1" "$2"; rm "$1"; export TMPDIR=$2; shift 3; test_of "$@"' \
		on_fs "$image" "$scratch" "$@" || status=1
	rm -rf "$image" "$scratch"
	return $status
}

COPYUP_OPS=${VERIFY_OPS:-1000000} test_of -run TestModelOnFileSystems ./copyup
POWERCUT_CUTS=${VERIFY_CUTS:-500} POWERCUT_KILLS=${VERIFY_KILLS:-200} test_of ./contrib/powercut
export OVERLAYFUSE_TWIN_SEEDS=${VERIFY_SEEDS:-1-100}
test_of -run 'TestTwin' ./overlayfuse
# It shares blocks at the first write. So does btrfs, but a plain directory there is no twin for long: to punch a hole where nothing is
# leaves a file's capability, which fs/fuse takes, and rmtree meets another name first.
on_fs xfs -run 'TestTwin' ./overlayfuse
