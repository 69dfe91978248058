# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is used by the scripts that source this
# Where the private container stack is and which versions it has. Sourced by the other scripts here.
#
# OVERLAYFUSE_STACK  the prefix (default: $XDG_CACHE_HOME/overlayfuse-stack, else /var/tmp/overlayfuse-stack).
#                    Each tool has a folder of its own there, named after its version.
# SNAPSHOTTER        overlayfuse (default); overlayfs to run the same things on the kernel's, fuse-overlayfs on that one.

containerd_version=v2.4.2
runc_version=v1.5.0
nerdctl_version=v2.1.2 # pinned with all its modules in nerdctl/go.mod
fuse_overlayfs_snapshotter_version=v2.1.7 # for comparison
golangci_version=v2.15.0
gotestsum_version=v1.13.0
debian_suite=bookworm

stack_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo_dir=$(cd "$stack_dir/../.." && pwd)
prefix=${OVERLAYFUSE_STACK:-${XDG_CACHE_HOME:-/var/tmp}/overlayfuse-stack}
export SNAPSHOTTER=${SNAPSHOTTER:-overlayfuse}

tools="containerd-$containerd_version runc-$runc_version nerdctl-$nerdctl_version"
tools="$tools golangci-lint-$golangci_version gotestsum-$gotestsum_version"
tools="$tools fuse-overlayfs-snapshotter-$fuse_overlayfs_snapshotter_version"
for tool in $tools; do
	PATH=$prefix/$tool/bin:$PATH
done
PATH=$repo_dir/bin:$PATH:/usr/sbin:/sbin
export PATH

die() {
	echo "overlayfuse stack: $*" >&2
	exit 1
}

# check_machine says what this machine lacks that no package can bring.
check_machine() {
	[ "$(id -u)" = 0 ] || die "must run as root: it mounts and starts containers"
	[ -c /dev/fuse ] || die "/dev/fuse is missing: load the fuse module (modprobe fuse)"
	grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null ||
		die "the kernel has no overlay file system (modprobe overlay): image layers need it"
	command -v go >/dev/null || die "go is missing: the stack is built with it"
}
