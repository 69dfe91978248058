#!/bin/bash
# `make verify`: the long runs. 10 million random operations of the engine's model on five file systems, 500 power cuts of each file
# system and 200 kills of the server, and longer random runs of the mount beside the kernel's overlayfs and a plain directory.
#
# VERIFY_OPS        operations of one of the model's ten seeds (1000000)
# VERIFY_CUTS       power cuts of a file system (500), VERIFY_KILLS kills (200)
# VERIFY_SEEDS      seeds of the random runs of the mount (1-100)
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"
check_machine
cd "$repo_dir"
test_of() { go test -count=1 -v -timeout 12h "$@"; }

COPYUP_OPS=${VERIFY_OPS:-1000000} test_of -run TestModelOnFileSystems ./copyup
POWERCUT_CUTS=${VERIFY_CUTS:-500} POWERCUT_KILLS=${VERIFY_KILLS:-200} test_of ./contrib/powercut
OVERLAYFUSE_TWIN_SEEDS=${VERIFY_SEEDS:-1-100} test_of -run 'TestTwin' ./overlayfuse
