#!/bin/bash
# Makes the images of the demonstration and of the tests as OCI archives, once, in the prefix, and
# prints the archive's path.
#
# usage: image.sh debian SIZE-MIB   Debian minbase in four layers, with whiteouts, an opaque directory
#                                   and /data/big of that size: 64-byte lines that hold their own number
#        image.sh pause             a static binary in one layer, for pod sandboxes
#        image.sh debs              prints the folder of .deb files that the container tests install
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "$0")/env.sh"

umask 022 # for what goes into images
images=$prefix/images
work= # the folder in which something is being made; never left behind

begin_work() {
	work=$(mktemp -d "$prefix/.image.XXXXXX")
	trap 'rm -rf --one-file-system "$work"' EXIT
}

# minbase makes the tar of a Debian minbase tree, from the mirror that apt uses here.
minbase() {
	minbase_tar=$images/debian-$debian_suite.tar
	[ -f "$minbase_tar" ] && return
	local mirror
	# shellcheck disable=SC2016 # apt expands these
	mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
		sed -n "s/^$debian_suite //p" | head -n 1)
	echo "stack: debootstrap of $debian_suite" >&2
	# Without a mirror of apt's own the suite comes from debootstrap's default.
	debootstrap --variant=minbase "$debian_suite" "$work/debian" ${mirror:+"$mirror"} >"$prefix/debootstrap.log" 2>&1 ||
		die "debootstrap: see $prefix/debootstrap.log"
	rm -rf "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/var/lib/apt/lists/* \
		"$work"/debian/dev/* "$work"/debian/etc/resolv.conf
	tar -C "$work/debian" --numeric-owner --xattrs --xattrs-include='*' -cf "$minbase_tar.new" .
	rm -rf --one-file-system "$work/debian"
	mv "$minbase_tar.new" "$minbase_tar"
}

# layer_tree packs the folder $work/l into a layer; entries of the image belong to root.
layer_tree() {
	tar -C "$work/l" --numeric-owner --owner=0 --group=0 -cf "$1" .
	rm -rf --one-file-system "$work/l"
}

blob() { # blob FILE: moves it among the layout's blobs and sets $digest and $size
	digest=$(sha256sum <"$1" | cut -d ' ' -f 1)
	size=$(stat -c %s "$1")
	mv "$1" "$work/oci/blobs/sha256/$digest"
}

# archive NAME ENTRYPOINT-JSON LAYER-TAR... writes $images/NAME.tar with uncompressed layers.
archive() {
	local name=$1 command=$2 tar diff_ids=() layers=() digest size config
	shift 2
	join() { local IFS=,; echo "$*"; }
	mkdir -p "$work/oci/blobs/sha256"
	for tar in "$@"; do
		blob "$tar"
		diff_ids+=("\"sha256:$digest\"")
		layers+=("{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:$digest\",\"size\":$size}")
	done
	cat >"$work/config" <<-EOF
		{"architecture":"$(go env GOARCH)","os":"linux",
		"config":{"Cmd":$command,"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
		"rootfs":{"type":"layers","diff_ids":[$(join "${diff_ids[@]}")]}}
	EOF
	blob "$work/config"
	config="{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$digest\",\"size\":$size}"
	cat >"$work/manifest" <<-EOF
		{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
		"config":$config,"layers":[$(join "${layers[@]}")]}
	EOF
	blob "$work/manifest"
	cat >"$work/oci/index.json" <<-EOF
		{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
		{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$digest","size":$size,
		"annotations":{"io.containerd.image.name":"localhost/$name","org.opencontainers.image.ref.name":"latest"},
		"platform":{"architecture":"$(go env GOARCH)","os":"linux"}}]}
	EOF
	echo '{"imageLayoutVersion":"1.0.0"}' >"$work/oci/oci-layout"
	tar -C "$work/oci" -cf "$out.new" oci-layout index.json blobs
	mv "$out.new" "$out"
}

image_debian() {
	local mib=$1 l
	case $mib in '' | *[!0-9]*) die "not a size in MiB: $mib" ;; esac
	out=$images/demo-$mib.tar
	[ -f "$out" ] && return
	begin_work
	minbase
	l=$work/l
	# 1: Debian. 2: what an image's author adds, and things of Debian taken away.
	cp "$minbase_tar" "$work/1.tar"
	mkdir -p "$l/srv/app/conf.d" "$l/srv/old" "$l/usr/share" "$l/etc"
	echo 'from layer 2' >"$l/srv/app/file"
	echo 'from layer 2' >"$l/srv/app/conf.d/a"
	echo 'from layer 2' >"$l/srv/app/conf.d/b"
	echo 'from layer 2' >"$l/srv/old/gone"
	: >"$l/usr/share/.wh.zoneinfo"
	: >"$l/usr/share/.wh.common-licenses"
	: >"$l/etc/.wh.issue"
	layer_tree "$work/2.tar"
	# 3: a file and a tree removed, a directory replaced: opaque.
	mkdir -p "$l/srv/app/conf.d"
	: >"$l/srv/.wh.old"
	: >"$l/srv/app/conf.d/.wh..wh..opq"
	echo 'from layer 3' >"$l/srv/app/conf.d/c"
	echo 'from layer 3' >"$l/srv/app/file"
	layer_tree "$work/3.tar"
	# 4: the data.
	mkdir -p "$l/data"
	seq -f %063.0f 0 $((mib * 16384 - 1)) >"$l/data/big"
	layer_tree "$work/4.tar"
	archive "demo:$mib" '["bash"]' "$work/1.tar" "$work/2.tar" "$work/3.tar" "$work/4.tar"
}

image_pause() {
	out=$images/pause.tar
	[ -f "$out" ] && return
	begin_work
	mkdir "$work/l"
	CGO_ENABLED=0 go build -C "$repo_dir" -buildvcs=false -trimpath -ldflags '-s -w' -o "$work/l/pause" ./contrib/stack/pause
	layer_tree "$work/1.tar"
	archive pause:1 '["/pause"]' "$work/1.tar"
}

# image_debs fetches real packages with what they need beyond minbase, through apt, with the
# image's own package database, so that dpkg -i can install them without a network.
image_debs() {
	local packages='git sqlite3 python3 bzip2 xz-utils file less nano procps psmisc tree make patch'
	out=$images/debs-$debian_suite-$(cksum <<<"$packages" | cut -d ' ' -f 1)
	[ -d "$out" ] && return
	begin_work
	minbase
	mkdir -p "$work/debs/partial"
	tar -C "$work" -xf "$minbase_tar" ./var/lib/dpkg
	echo "stack: fetching packages for the container tests" >&2
	# apt's lists may be missing or too old for the mirror: then once more with new ones.
	fetch_debs >"$prefix/debs.log" 2>&1 || { apt-get update -q && fetch_debs; } >>"$prefix/debs.log" 2>&1 ||
		die "fetching packages: see $prefix/debs.log"
	rm -rf "$work/debs/partial" "$work/debs/lock"
	mv "$work/debs" "$out"
}

fetch_debs() {
	# shellcheck disable=SC2086 # a list
	apt-get -q -y --no-install-recommends --download-only -o APT::Sandbox::User=root \
		-o Dir::State::status="$work/var/lib/dpkg/status" -o Dir::Cache::archives="$work/debs" \
		-o Dir::State::extended_states="$work/extended" -o Dir::Etc::preferences=/dev/null \
		install $packages
}

mkdir -p "$images"
exec 9>"$images/lock"
flock 9
case "${1-}" in
debian) image_debian "${2-}" ;;
pause) image_pause ;;
debs) image_debs ;;
*) die "usage: $0 debian SIZE-MIB | pause | debs" ;;
esac
echo "$out"
