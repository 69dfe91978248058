package fstool

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var metaOps = map[string]op{
	"stat":   {"PATH FIELD...", func(_ *process, a []string) (string, error) { return stat(unix.AT_FDCWD, a[0], 0, a[1:]) }},
	"fstat":  {"FD FIELD...", (*process).fstat},
	"statfs": {"PATH FIELD...", statfs},
	"chmod":  {"PATH MODE", chmod},
	"chown":  {"PATH UID GID", chown},
	"utimes": {"PATH ATIME MTIME", utimes},
	"fchmod": {"FD MODE", (*process).fchmod},
	"fchown": {"FD UID GID", (*process).fchown},
	"umask":  {"MODE", umask},
	"access": {"PATH MODE", access},
	"sleep":  {"MILLISECONDS", sleep},
	"same":   {"PATH PATH", same},
}

// stat returns the asked fields of statx, separated by spaces.
func stat(dirfd int, path string, how int, fields []string) (string, error) {
	var st unix.Statx_t
	how |= unix.AT_SYMLINK_NOFOLLOW
	if err := unix.Statx(dirfd, path, how, unix.STATX_BASIC_STATS|unix.STATX_BTIME|unix.STATX_MNT_ID, &st); err != nil {
		return "", err
	}
	out := make([]string, len(fields))
	for i, f := range fields {
		switch f {
		case "ino":
			out[i] = fmt.Sprint(st.Ino)
		case "dev":
			out[i] = fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
		case "mode":
			out[i] = fmt.Sprintf("%04o", st.Mode&0o7777)
		case "type":
			out[i] = typeName(uint32(st.Mode))
		case "nlink":
			out[i] = fmt.Sprint(st.Nlink)
		case "uid":
			out[i] = fmt.Sprint(st.Uid)
		case "gid":
			out[i] = fmt.Sprint(st.Gid)
		case "size":
			out[i] = fmt.Sprint(st.Size)
		case "blocks":
			out[i] = fmt.Sprint(st.Blocks)
		case "rdev":
			out[i] = fmt.Sprintf("%d:%d", st.Rdev_major, st.Rdev_minor)
		case "atime":
			out[i] = stamp(st.Atime)
		case "mtime":
			out[i] = stamp(st.Mtime)
		case "ctime":
			out[i] = stamp(st.Ctime)
		case "btime":
			if st.Mask&unix.STATX_BTIME == 0 {
				out[i] = "none"
			} else {
				out[i] = stamp(st.Btime)
			}
		default:
			return "", badRequest("unknown field " + f)
		}
	}
	return strings.Join(out, " "), nil
}

func stamp(t unix.StatxTimestamp) string {
	if t.Nsec == 0 {
		return fmt.Sprint(t.Sec)
	}
	return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec)
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	default:
		return fmt.Sprintf("%o", mode&unix.S_IFMT)
	}
}

func (p *process) fstat(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	return stat(fd, "", unix.AT_EMPTY_PATH, a[1:])
}

// same answers "yes" when both names are one inode of one device.
func same(_ *process, a []string) (string, error) {
	one, err := stat(unix.AT_FDCWD, a[0], 0, []string{"dev", "ino"})
	if err != nil {
		return "", err
	}
	two, err := stat(unix.AT_FDCWD, a[1], 0, []string{"dev", "ino"})
	if err != nil {
		return "", err
	}
	if one == two {
		return "yes", nil
	}
	return "no", nil
}

func statfs(_ *process, a []string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(a[0], &st); err != nil {
		return "", err
	}
	out := make([]string, 0, len(a)-1)
	for _, f := range a[1:] {
		switch f {
		case "bsize":
			out = append(out, fmt.Sprint(st.Bsize))
		case "blocks":
			out = append(out, fmt.Sprint(st.Blocks))
		case "files":
			out = append(out, fmt.Sprint(st.Files))
		case "namelen":
			out = append(out, fmt.Sprint(st.Namelen))
		case "free":
			out = append(out, fmt.Sprint(st.Bavail > 0 && st.Bavail <= st.Blocks))
		case "flags":
			out = append(out, mountFlags(st.Flags))
		default:
			return "", badRequest("unknown field " + f)
		}
	}
	return strings.Join(out, " "), nil
}

func mountFlags(f int64) string {
	var out []string
	for _, known := range []struct {
		bit  int64
		name string
	}{
		{unix.ST_RDONLY, "ro"}, {unix.ST_NOSUID, "nosuid"}, {unix.ST_NODEV, "nodev"}, {unix.ST_NOEXEC, "noexec"},
		{unix.ST_NOATIME, "noatime"}, {unix.ST_NODIRATIME, "nodiratime"}, {unix.ST_RELATIME, "relatime"},
	} {
		if f&known.bit != 0 {
			out = append(out, known.name)
		}
	}
	return strings.Join(out, ",")
}

func chmod(_ *process, a []string) (string, error) {
	mode, err := octal(a[1])
	if err != nil {
		return "", err
	}
	return "", unix.Chmod(a[0], mode)
}

func chown(_ *process, a []string) (string, error) {
	ids, err := numbers(a[1], a[2])
	if err != nil {
		return "", err
	}
	return "", unix.Lchown(a[0], int(ids[0]), int(ids[1]))
}

func (p *process) fchmod(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	mode, err := octal(a[1])
	if err != nil {
		return "", err
	}
	return "", unix.Fchmod(fd, mode)
}

func (p *process) fchown(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	ids, err := numbers(a[1], a[2])
	if err != nil {
		return "", err
	}
	return "", unix.Fchown(fd, int(ids[0]), int(ids[1]))
}

// utimes sets times to seconds, or "now", or "omit".
func utimes(_ *process, a []string) (string, error) {
	ts := make([]unix.Timespec, 2)
	for i, w := range a[1:3] {
		switch w {
		case "now":
			ts[i].Nsec = unix.UTIME_NOW
		case "omit":
			ts[i].Nsec = unix.UTIME_OMIT
		default:
			n, err := number(w)
			if err != nil {
				return "", err
			}
			ts[i].Sec = n
		}
	}
	return "", unix.UtimesNanoAt(unix.AT_FDCWD, a[0], ts, unix.AT_SYMLINK_NOFOLLOW)
}

func umask(_ *process, a []string) (string, error) {
	mode, err := octal(a[0])
	if err != nil {
		return "", err
	}
	unix.Umask(int(mode))
	return "", nil
}

func access(_ *process, a []string) (string, error) {
	mode, err := octal(a[1])
	if err != nil {
		return "", err
	}
	return "", unix.Access(a[0], mode)
}

func sleep(_ *process, a []string) (string, error) {
	n, err := number(a[0])
	if err != nil {
		return "", err
	}
	time.Sleep(time.Duration(n) * time.Millisecond)
	return "", nil
}
