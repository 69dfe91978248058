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
# Read-only snapshots of several layers: "auto" uses the kernel's overlayfs where it shows them right, "fuse" never does.
views = "auto"

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
