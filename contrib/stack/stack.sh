#!/bin/bash
# A private containerd with our snapshotter, everything of it below one folder.
#
# usage: stack.sh up DIR       starts the mount server, the snapshotter daemon and containerd
#        stack.sh daemon DIR   starts the snapshotter daemon alone (after it was killed)
#        stack.sh env DIR      prints the environment that nerdctl and ctr need, one NAME=VALUE a line
#        stack.sh down DIR     ends all that `up` and its containers started, unmounts, removes DIR
#
# With SNAPSHOTTER=overlayfs the kernel's overlayfs takes our snapshotter's place, with fuse-overlayfs that one.
# OVERLAYFUSE_IO is the way in which ours reads and writes ([mount] io). DIR must be short: it
# holds unix sockets. Only processes whose command line or environment names DIR are ended.
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"

dir=${2-}
[ -n "$dir" ] || die "usage: $0 up|daemon|env|down DIR"
case $dir in /*) ;; *) die "not an absolute path: $dir" ;; esac
[ ${#dir} -le 60 ] || die "the path is too long for the unix sockets in it: $dir"
namespace=ofs-$(basename "$dir")
snapshot_root=$dir/snapshotter

# start NAME COMMAND... runs COMMAND in a session of its own, its output in DIR/NAME.log.
start() {
	local name=$1
	shift
	OVERLAYFUSE_STACK_RUN=$dir setsid "$@" </dev/null >>"$dir/$name.log" 2>&1 9>&- &
	echo $! >"$dir/$name.pid"
}

# wait_for SECONDS WHAT COMMAND... waits until COMMAND succeeds.
wait_for() {
	local end=$((SECONDS + $1)) what=$2 log
	shift 2
	until timeout 10 "$@" >/dev/null 2>"$dir/wait.err"; do
		if [ $SECONDS -ge $end ]; then
			for log in "$dir"/*.log; do
				echo "== $log" >&2
				tail -n 20 "$log" >&2
			done
			die "$what is not ready: $(cat "$dir/wait.err")"
		fi
		sleep 0.1
	done
}

# here gives the files that contrib ships for a machine the paths of this stack.
here() {
	sed -e "s#/run/containerd-overlayfuse-grpc/containerd-overlayfuse-grpc.sock#$dir/snapshotter.sock#" \
		-e "s#/var/lib/containerd-overlayfuse-grpc#$snapshot_root#" \
		-e "s#/run/overlayfuse/control.sock#$dir/overlayfuse.sock#" \
		-e "s#linux/amd64#linux/$(go env GOARCH)#" "$repo_dir/contrib/$1"
}

write_config() {
	local imports="'$dir/conf.d/*.toml'"
	mkdir "$dir/conf.d"
	case $SNAPSHOTTER in
	overlayfuse)
		here containerd/overlayfuse.toml >"$dir/conf.d/overlayfuse.toml"
		here systemd/config.toml >"$dir/overlayfuse.toml"
		[ -z "${OVERLAYFUSE_IO-}" ] || printf '\n[mount]\nio = "%s"\n' "$OVERLAYFUSE_IO" >>"$dir/overlayfuse.toml"
		;;
	fuse-overlayfs)
		cat >"$dir/conf.d/fuse-overlayfs.toml" <<-EOF
			version = 3
			[proxy_plugins.fuse-overlayfs]
			  type = 'snapshot'
			  address = '$dir/snapshotter.sock'
			[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
			  platform = 'linux/$(go env GOARCH)'
			  snapshotter = 'fuse-overlayfs'
		EOF
		;;
	*) imports= ;;
	esac
	cat >"$dir/containerd.toml" <<-EOF
		version = 3
		root = '$dir/root'
		state = '$dir/state'
		imports = [$imports]
		disabled_plugins = ['io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.devmapper',
		  'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.blockfile', 'io.containerd.nri.v1.nri']
		[grpc]
		  address = '$dir/containerd.sock'
		[plugins.'io.containerd.internal.v1.opt']
		  path = '$dir/opt'
		[plugins.'io.containerd.cri.v1.images']
		  snapshotter = '$SNAPSHOTTER'
		[plugins.'io.containerd.cri.v1.images'.pinned_images]
		  sandbox = 'localhost/pause:1'
		[plugins.'io.containerd.cri.v1.runtime']
		  restrict_oom_score_adj = true
		  enable_unprivileged_ports = false
		  enable_unprivileged_icmp = false
		[plugins.'io.containerd.cri.v1.runtime'.cni]
		  conf_dir = '$dir/cni'
	EOF
	cat >"$dir/nerdctl.toml" <<-EOF
		address = "unix://$dir/containerd.sock"
		namespace = "$namespace"
		snapshotter = "$SNAPSHOTTER"
		cgroup_manager = "cgroupfs"
		data_root = "$dir/nerdctl"
		cni_netconfpath = "$dir/cni"
		hosts_dir = ["$dir/hosts"]
	EOF
}

start_daemon() {
	case $SNAPSHOTTER in
	overlayfuse) start daemon containerd-overlayfuse-grpc --config "$dir/overlayfuse.toml" ;;
	fuse-overlayfs) start daemon containerd-fuse-overlayfs-grpc "$dir/snapshotter.sock" "$snapshot_root" ;;
	esac
}

up() {
	check_machine
	mkdir "$dir" || die "already there: $dir"
	chmod 0711 "$dir"
	mkdir "$dir/cni" "$dir/hosts"
	# What containerd and its shims put below /run, whatever their configuration.
	[ -e /run/containerd ] || : >"$dir/made-run-containerd"
	write_config
	if [ "$SNAPSHOTTER" = overlayfuse ]; then
		start server overlayfuse serve --socket "$dir/overlayfuse.sock"
	fi
	start_daemon
	start containerd containerd --config "$dir/containerd.toml"
	wait_for 30 containerd ctr -a "$dir/containerd.sock" version
	# A proxy plugin is listed as ok even when nothing listens: ask it.
	wait_for 30 "the snapshotter $SNAPSHOTTER" ctr -a "$dir/containerd.sock" snapshots --snapshotter "$SNAPSHOTTER" ls
}

print_env() {
	echo "PATH=$PATH"
	echo "SNAPSHOTTER=$SNAPSHOTTER"
	echo "CONTAINERD_ADDRESS=$dir/containerd.sock"
	echo "CONTAINERD_NAMESPACE=$namespace"
	echo "CONTAINERD_SNAPSHOTTER=$SNAPSHOTTER"
	echo "NERDCTL_TOML=$dir/nerdctl.toml"
	case $SNAPSHOTTER in
	overlayfs) echo "SNAPSHOT_ROOT=$dir/root/io.containerd.snapshotter.v1.$SNAPSHOTTER" ;;
	*) echo "SNAPSHOT_ROOT=$snapshot_root" ;;
	esac
}

# ours PID: the process is alive and was started by this stack, or for one of its containers.
ours() {
	[ -r "/proc/$1/environ" ] || return 1
	tr '\0' '\n' 2>/dev/null <"/proc/$1/environ" | grep -Fqx "OVERLAYFUSE_STACK_RUN=$dir" && return
	tr '\0' '\n' 2>/dev/null <"/proc/$1/cmdline" | grep -Fq "$dir/"
}

# stop NAME SECONDS ends the process that start NAME began; SIGKILL when it takes too long.
stop() {
	local pid end=$((SECONDS + $2))
	[ -s "$dir/$1.pid" ] || return 0
	pid=$(cat "$dir/$1.pid")
	ours "$pid" || return 0
	kill "$pid" 2>/dev/null || return 0
	while ours "$pid"; do
		if [ $SECONDS -ge $end ]; then
			kill -KILL "$pid" 2>/dev/null || return 0
			sleep 0.5
			return 0
		fi
		sleep 0.1
	done
}

# stop_shims ends the shims of this containerd, and by that their containers.
stop_shims() {
	local proc pid signal
	for signal in TERM KILL; do
		for proc in /proc/[0-9]*; do
			pid=${proc#/proc/}
			if [ "$(cat "$proc/comm" 2>/dev/null)" = containerd-shim ] && ours "$pid"; then
				kill "-$signal" "$pid" 2>/dev/null && sleep 0.3
			fi
		done
	done
	return 0
}

# remove_containers lets runc end every container, cgroup and mount of it with it.
remove_containers() {
	local root ns id
	for ns in "$dir"/state/io.containerd.runtime.v2.task/*/; do
		ns=$(basename "$ns")
		for root in "$dir/state/io.containerd.runtime.v2.task/$ns"/*/; do
			[ -d "$root" ] || continue
			id=$(basename "$root")
			timeout 20 ctr -a "$dir/containerd.sock" -n "$ns" tasks delete -f "$id" >/dev/null 2>&1 ||
				timeout 20 runc --root "/run/containerd/runc/$ns" delete -f "$id" >/dev/null 2>&1 ||
				echo "stack: container $id could not be removed" >&2
		done
	done
}

# unmount_all unmounts what is mounted in DIR, inner mounts first; busy ones lazily.
unmount_all() {
	local point
	awk -v dir="$dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac | while read -r point; do
		point=$(printf '%b' "$point")
		umount "$point" 2>/dev/null || umount -l "$point" 2>/dev/null || echo "stack: cannot unmount $point" >&2
	done
}

down() {
	[ -d "$dir" ] || return 0
	if ! [ -f "$dir/containerd.toml" ]; then # `up` was interrupted at its begin, or it is no stack
		rmdir "$dir/cni" "$dir/hosts" 2>/dev/null || [ -z "$(ls -A "$dir")" ] || die "no stack is in $dir"
		rmdir "$dir"
		return 0
	fi
	remove_containers
	stop containerd 10
	stop_shims
	stop daemon 10
	unmount_all
	stop server 5
	unmount_all
	# containerd's namespaces are cgroups too; only empty ones go.
	find /sys/fs/cgroup -mindepth 2 -depth -type d -path "*/$namespace*" -exec rmdir {} + 2>/dev/null ||
		[ -z "$(find /sys/fs/cgroup -mindepth 2 -type d -path "*/$namespace*" -print -quit)" ] ||
		echo "stack: cgroups of $namespace remain" >&2
	rm -rf "/run/containerd/runc/$namespace"
	if [ -e "$dir/made-run-containerd" ]; then
		rm -rf --one-file-system /run/containerd
	fi
	if grep -Fq " $dir/" /proc/self/mountinfo; then
		die "still mounted below $dir; nothing was removed"
	fi
	rm -rf --one-file-system "$dir"
}

case $1 in
up) up ;;
daemon) start_daemon ;;
env) print_env ;;
down) down ;;
*) die "usage: $0 up|daemon|env|down DIR" ;;
esac
