#!/bin/bash
# `make run`: containers on overlayfuse snapshots, step by step, with what each step cost.
#
# BIG_MIB sets the size of the image's data file (1024). SNAPSHOTTER=overlayfs shows the same on the kernel's
# overlayfs, where the open copies the whole file.
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"
check_machine

mib=${BIG_MIB:-1024}
failed=0
dir=$(mktemp -u "${DEMO_DIR:-/var/tmp/ofs-run.XXXXXX}")

clean_up() {
	local status=$?
	trap '' INT TERM HUP
	trap - EXIT
	"$stack_dir/stack.sh" down "$dir" || status=1
	[ $status = 0 ] || echo "make run: not complete (exit status $status)" >&2
	exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() { printf '\n== %s\n' "$*"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f s", b - a }'; }
kib() { du -sk "$1" | cut -f 1; }

# expect WHAT COMMAND... prints whether what we promise holds; the kernel's overlayfs may differ.
expect() {
	local what=$1
	shift
	if "$@"; then
		echo "   ok: $what"
	else
		echo "   NOT so: $what"
		failed=1
	fi
}

# try SECONDS COMMAND...: nothing here may hang. In the foreground, so that control-C reaches the command.
try() { timeout --foreground --kill-after=5 "$@"; }

say "the image: Debian in four layers, with whiteouts, an opaque directory and /data/big of $mib MiB"
image=$("$stack_dir/image.sh" debian "$mib")
echo "   $image: $(du -m "$image" | cut -f 1) MiB"

say "a private containerd with the snapshotter $SNAPSHOTTER, in $dir"
"$stack_dir/stack.sh" up "$dir"
while IFS='=' read -r name value; do
	export "$name=$value"
done < <("$stack_dir/stack.sh" env "$dir")
mkdir "$dir/tmp"
begin=$(now)
try 300 nerdctl --snapshotter "$SNAPSHOTTER" load --quiet -i "$image"
echo "   loaded and unpacked in $(since "$begin")"

say "nerdctl --snapshotter $SNAPSHOTTER run"
# The container's first process opens the big file for reading before anybody writes, and reads it when told.
line=$((mib * 8192)) # the middle
begin=$(now)
try 60 nerdctl --snapshotter "$SNAPSHOTTER" run -d --name demo --net none --tmpfs /run "localhost/demo:$mib" \
	bash -c "exec 3</data/big; touch /run/ready; until [ -e /run/go ]; do sleep 0.1; done
	dd bs=64 skip=$line count=1 <&3 >/run/seen 2>/dev/null; touch /run/done; sleep infinity" >/dev/null
echo "   started in $(since "$begin")"
in_demo() { try 120 nerdctl exec demo "$@"; }
wait_in_demo() {
	# shellcheck disable=SC2016 # for the shell in the container
	in_demo timeout 30 bash -c 'until [ -e "$1" ]; do sleep 0.1; done' wait "$1"
}
wait_in_demo /run/ready
snapshot=$(find "$SNAPSHOT_ROOT/snapshots" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort -n | tail -n 1)
upper=$SNAPSHOT_ROOT/snapshots/$snapshot/fs
in_demo grep ' / ' /proc/mounts | sed -E 's/^(.{100}).*/\1.../; s/^/   root: /'
echo "   removed by layers 2 and 3: $(in_demo bash -c 'ls -d /srv/old /usr/share/zoneinfo /etc/issue 2>/dev/null | wc -l') of 3 still there"
echo "   /srv/app/conf.d (opaque in layer 3): $(in_demo ls /srv/app/conf.d | tr '\n' ' ')"
expect "whiteouts and the opaque directory hold" [ "$(in_demo bash -c 'ls -d /srv/old /usr/share/zoneinfo /etc/issue 2>/dev/null; ls /srv/app/conf.d')" = c ]

say "open /data/big for writing, and write nothing"
before=$(kib "$upper")
begin=$(now)
in_demo bash -c 'exec 4<>/data/big; exec 4>&-'
after=$(kib "$upper")
echo "   $(since "$begin"); upper before: $before KiB, after: $after KiB"
expect "the open copied nothing" [ $((after - before)) -le 64 ]

say "chmod, chown and touch of it"
in_demo bash -c 'chmod 640 /data/big; chown 1:1 /data/big; touch -d 2001-01-01 /data/big'
after=$(kib "$upper")
echo "   upper: $after KiB; $(in_demo stat -c '%A %u:%g %s bytes %y' /data/big)"
expect "no data was copied" [ $((after - before)) -le 64 ]

say "the first write: one line in the middle"
mark=$(printf 'written-by-the-demonstration-%034d' 7)
begin=$(now)
in_demo bash -c "echo '$mark' | dd of=/data/big bs=64 seek=$line conv=notrunc status=none"
echo "   $(since "$begin"); upper: $(kib "$upper") KiB"
expect "only the block that was written was copied" [ $(($(kib "$upper") - before)) -le 128 ]
in_demo touch /run/go
wait_in_demo /run/done
seen=$(in_demo cat /run/seen)
echo "   the reader that had the file open before sees: $seen"
expect "the earlier reader sees the write" [ "$seen" = "$mark" ]

say "nerdctl commit"
begin=$(now)
sum=$(in_demo sha256sum /data/big)
try 600 nerdctl --snapshotter "$SNAPSHOTTER" commit demo localhost/committed:1 >/dev/null
echo "   committed in $(since "$begin") (with a checksum of the file)"

say "a container from the committed image"
begin=$(now)
again=$(try 300 nerdctl --snapshotter "$SNAPSHOTTER" run --rm --net none localhost/committed:1 bash -c \
	"sha256sum /data/big; dd if=/data/big bs=64 skip=$line count=1 status=none; stat -c '%a %u:%g' /data/big")
echo "   ran in $(since "$begin"):"
printf '%s\n' "$again" | sed 's/^/   /'
expect "it reads the same data, with the same owner and mode" [ "$again" = "$sum
$mark
640 1:1" ]

say "clean up"
try 60 nerdctl rm -f demo >/dev/null
[ $failed = 0 ] || die "on $SNAPSHOTTER not everything holds: see NOT above"
echo "   all of it holds"
