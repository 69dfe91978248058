#!/bin/bash
# Tells what a run of tests left behind on the machine.
#
# usage: leftovers.sh save FILE    notes mounts, loop devices, containers' cgroups, what container engines make of
#                                  folders, and the sysctls that they change
#        leftovers.sh check FILE   exits with 1 and prints what is new, if anything is
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"

state() {
	local name device
	awk '{ print "mount", $5, $1 }' /proc/self/mountinfo | sed 's/ [0-9]*$//'
	find /sys/block/ -maxdepth 1 -name 'loop*' | while read -r device; do
		[ ! -e "$device/loop/backing_file" ] || echo "loop $device $(cat "$device/loop/backing_file")"
	done
	find /sys/fs/cgroup -mindepth 2 -maxdepth 2 \( -name 'ofs-*' -o -name default -o -name k8s.io \) -printf 'cgroup %p\n'
	for name in net/ipv4/ip_forward kernel/panic kernel/panic_on_oops vm/overcommit_memory net/ipv4/ping_group_range; do
		echo "sysctl $name $(cat "/proc/sys/$name")"
	done
	for name in /run/containerd /run/runc /run/nerdctl /var/lib/containerd /var/lib/nerdctl /etc/cni /opt/containerd; do
		[ -e "$name" ] && echo "path $name"
	done
	return 0
}

case "${1-}" in
save) state | sort >"$2" ;;
check)
	for try in 1 2 3 4 5 6; do
		new=$(state | sort | comm -13 "$2" -)
		[ -n "$new" ] || exit 0
		[ "$try" = 6 ] || sleep 1
	done
	echo "left behind on this machine:" >&2
	echo "$new" >&2
	exit 1
	;;
*) die "usage: $0 save|check FILE" ;;
esac
