package config

// Example is a commented file that says what Default says.
const Example = `# Configuration of containerd-overlayfuse-grpc. Every value below is the default.

# Snapshots and their metadata. The file system must have trusted extended attributes (ext4, xfs, btrfs, tmpfs).
# containerd's proxy plugin should export the same path as "root".
root = "/var/lib/containerd-overlayfuse-grpc"

# Unix socket of the snapshots service: the "address" of containerd's proxy plugin.
address = "/run/containerd-overlayfuse-grpc/containerd-overlayfuse-grpc.sock"

# Show each snapshot's upper directory as the label containerd.io/snapshot/overlay.upperdir (BuildKit uses it).
upperdir_label = false

# Measuring the disk usage of an active snapshot walks its files. A measurement is answered again for this long,
# and for at least twenty times as long as it took. "0s": as rarely as the second rule allows.
usage_ttl = "10s"

[log]
# trace, debug, info, warn, error, fatal or panic
level = "info"
# text or json
format = "text"

[mount]
# Options of every container's mount, as after "overlayfuse -o", one per element, for instance ["noacl"].
options = []
# Which files the kernel reads, writes and maps by itself, at their file system's speed: "auto" where it can (Linux 6.9 and
# CAP_SYS_ADMIN), and elsewhere it is "writeback"; "passthrough" must be able to, or no container starts; "cached" none. Every reader
# sees every write in each.
# "writeback": none either, but a write stays in memory until the file is closed, synced or old, and opening and closing a file that
# exists asks the mount server nothing. A full disk is told at close or fsync then, and a mount server that is killed loses what an
# open file was written lately, which it does not with the others. sharing has no effect.
io = "auto"
# Which files of an image use one page cache for all containers, and what that gives up until a file is opened by somebody else:
#   "none"    nothing is shared: every container has its own copy in memory of what it reads, and nothing is given up
#   "exec"    programs and shared libraries; who had one open when it was first written in place maps it as it was, and its locks
#             are not those of who opens it later; read(2) sees the write
#   "mapped"  the same for files of every kind; each read(2) of a file of the image is a request to the mount server then
#   "all"     whatever is opened for reading; a descriptor that was opened before the first write never shows it
# The label containerd.io/snapshot/overlayfuse.sharing on a snapshot comes before this.
sharing = "exec"
# Read-only snapshots of several layers: "auto" uses the kernel's overlayfs where it shows them right, "fuse" never does.
views = "auto"

# The copy-up engine is set by options, too: options = ["partial_above=1M", "complete_rate=0"]. Sizes are bytes, or have K, M or G
# (1024 times each); a time or rate of 0 turns the thing off. They hold for the next mount of a container. Each with its default:
#   partial_above=128K     a lower file of more bytes is copied at a write only where it is written, a smaller one as a whole
#   upper_cache=256M       how much that uppers have in the page cache, beside the mount's own, may stay there before drop_after
#   drop_after=10s         and how long it may stay at most
#   stream=16M             how much of a file of the image that is overwritten from one end to the other begins to go to the disk at a time
#                          (not with drop_after=0)
#   settle_after=45s       how long a file whose last block has arrived rests before it is made durable and plain
#   complete_above=50      percentage of a partial file that must be there for a hot one to be completed
#   complete_hot=10s       how long a file must be written again and again to be hot
#   complete_rate=64M      bytes per second that completions copy, of all mounts of the server with the same settings together
#   complete_workers=2     files of these that are completed at a time

[commit]
# Files of which a container changed owner, mode, times or name alone have no data of their own. "complete": a commit copies it.
# "keep": they stay so, marked as the kernel's overlayfs does (metacopy); commits are fast and layers small, and whoever
# mounts such a layer needs this snapshotter, or metacopy=on. "auto": "keep", unless upperdir_label = true shows the
# directory to readers that know nothing of it. Files with some data of their own are always completed.
metacopy = "auto"

[server]
# Control socket of the mount server, "overlayfuse serve". It is a process of its own: the mounts live in it,
# and go on while this daemon is stopped, killed or replaced.
socket = "/run/overlayfuse/control.sock"
# Start the mount server when nothing listens there; it then logs to SOCKET.log. Turn it off where a service manager runs
# the mount server.
autostart = true
# Its command line; empty: ["overlayfuse", "serve", "--socket", SOCKET].
command = []
# How long it may take to answer after its start.
start_timeout = "10s"
`
