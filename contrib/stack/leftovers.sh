#!/bin/bash
# Tells what a run of tests left behind on the machine.
#
# usage: leftovers.sh save FILE    notes mounts, loop devices, cgroups and the sysctls that container engines change
#        leftovers.sh check FILE   exits with 1 and prints the difference when there is one
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"

state() {
	local name device
	awk '{ print "mount", $5, $1 }' /proc/self/mountinfo | sed 's/ [0-9]*$//'
	find /sys/block/ -maxdepth 1 -name 'loop*' | while read -r device; do
		[ ! -e "$device/loop/backing_file" ] || echo "loop $device $(cat "$device/loop/backing_file")"
	done
	find /sys/fs/cgroup -mindepth 2 -type d 2>/dev/null | sed 's/^/cgroup /'
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
		if difference=$(diff "$2" <(state | sort)); then
			exit 0
		fi
		[ "$try" = 6 ] || sleep 1
	done
	echo "left behind on this machine (>) or gone (<):" >&2
	grep '^[<>]' <<<"$difference" >&2
	exit 1
	;;
*) die "usage: $0 save|check FILE" ;;
esac
