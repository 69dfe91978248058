#!/bin/bash
# Installs what the stack lacks: Debian packages by apt, tools built by Go into the prefix. A second
# run finds everything there and is quick.
#
# usage: install.sh run|test|bench|lint...   (what it is needed for; test includes run)
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"

# need_packages installs the Debian packages that are not installed.
need_packages() {
	local name missing=()
	for name in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
	done
	[ ${#missing[@]} = 0 ] && return
	command -v apt-get >/dev/null || die "install these by hand, this is no Debian: ${missing[*]}"
	echo "stack: installing ${missing[*]}" >&2
	apt-get update -q >"$prefix/apt.log" 2>&1 || die "apt-get update: see $prefix/apt.log"
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" \
		>>"$prefix/apt.log" 2>&1 || die "apt-get install: see $prefix/apt.log"
}

# build NAME-VERSION COMMAND... runs COMMAND with $out set to a new folder and names it when it is
# complete: an interrupted build leaves nothing that looks ready.
build() {
	local name=$1 begin=$SECONDS
	shift
	[ -d "$prefix/$name/bin" ] && return
	echo "stack: building $name" >&2
	out=$prefix/.new-$name
	rm -rf "$out"
	mkdir -p "$out/bin"
	export out
	"$@" >"$prefix/$name.log" 2>&1 || die "building $name: see $prefix/$name.log"
	mv "$out" "$prefix/$name"
	echo "stack: built $name in $((SECONDS - begin)) s" >&2
}

# go_install builds packages at a version, outside of any module, at low priority.
go_install() {
	(cd / && GOFLAGS='' GOBIN=$out/bin nice go install -buildvcs=false -p 2 "$@")
}

build_nerdctl() {
	nice go build -C "$stack_dir/nerdctl" -buildvcs=false -p 2 -trimpath -o "$out/bin/nerdctl" \
		github.com/containerd/nerdctl/v2/cmd/nerdctl
}

need_run() {
	check_machine
	need_packages debootstrap gcc libc6-dev libseccomp-dev pkg-config
	local c=github.com/containerd/containerd/v2/cmd
	CGO_ENABLED=0 build "containerd-$containerd_version" go_install \
		"$c/containerd@$containerd_version" "$c/ctr@$containerd_version" \
		"$c/containerd-shim-runc-v2@$containerd_version"
	CGO_ENABLED=1 build "runc-$runc_version" go_install -tags seccomp \
		"github.com/opencontainers/runc@$runc_version"
	CGO_ENABLED=0 build "nerdctl-$nerdctl_version" build_nerdctl
}

need_test() {
	need_run
	need_packages acl attr btrfs-progs e2fsprogs git libcap2-bin strace systemd xfsprogs
	CGO_ENABLED=0 build "gotestsum-$gotestsum_version" go_install "gotest.tools/gotestsum@$gotestsum_version"
}

need_bench() {
	check_machine
	need_packages e2fsprogs fio fuse-overlayfs git python3 sqlite3
	CGO_ENABLED=0 build "fuse-overlayfs-snapshotter-$fuse_overlayfs_snapshotter_version" go_install \
		"github.com/containerd/fuse-overlayfs-snapshotter/v2/cmd/containerd-fuse-overlayfs-grpc@$fuse_overlayfs_snapshotter_version"
}

need_lint() {
	need_packages shellcheck
	CGO_ENABLED=0 build "golangci-lint-$golangci_version" go_install \
		"github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$golangci_version"
}

mkdir -p "$prefix"
exec 9>"$prefix/lock"
flock 9 # two runs at once build each tool once
for use in "$@"; do
	case $use in
	run | test | bench | lint) "need_$use" ;;
	*) die "usage: $0 run|test|bench|lint..." ;;
	esac
done
