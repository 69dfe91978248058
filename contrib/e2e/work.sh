#!/bin/bash
# What people do in a container, on a Debian root file system; run in a container by tree_test.go. It must do the same
# each time: fixed dates, names and contents.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.invalid GIT_AUTHOR_DATE='2020-02-02T02:02:02Z'
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.invalid GIT_COMMITTER_DATE='2020-02-02T02:02:02Z'
step() { echo "step: $*"; }

step dpkg
# before who pre-depends on them
dpkg -i /debs/libpython3.11-minimal*.deb /debs/libssl3*.deb /debs/libexpat1*.deb /debs/python3.11-minimal*.deb
dpkg -i /debs/python3-minimal*.deb
dpkg -i /debs/*.deb
dpkg --purge nano
dpkg --audit

step tar
mkdir -p /srv/tar/out
tar -C / --xattrs --acls -cf /srv/tar/usr.tar usr/bin usr/lib/git-core etc
tar -C /srv/tar/out --xattrs --acls -xpf /srv/tar/usr.tar
rm /srv/tar/usr.tar
rm -r /srv/tar/out/usr/lib

step git
mkdir /srv/git
cd /srv/git
git init -q -b main origin
cd origin
for i in 1 2 3 4 5 6 7 8; do
	mkdir -p "d$i/e"
	seq "$i" 2000 >"d$i/e/file"
	ln -s "../d$i" "d$i/link"
	git add .
	git commit -q -m "commit $i"
done
git mv d1 moved
git rm -q -r d2
git commit -q -m 'move and remove'
cd ..
git clone -q origin clone
git clone -q --no-local origin copy
git -C copy gc -q
git -C clone checkout -q -b work HEAD~3
git -C clone merge -q main
git -C clone status --porcelain
git -C clone fsck --strict

step sqlite3
mkdir /srv/sqlite
sqlite3 /srv/sqlite/db >/dev/null <<-'EOF'
	PRAGMA journal_mode=wal;
	CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
	WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
	INSERT INTO t SELECT i, printf('value %d', i * 7) FROM n;
	DELETE FROM t WHERE i % 3 = 0;
	PRAGMA wal_checkpoint(TRUNCATE);
	PRAGMA journal_mode=delete;
	UPDATE t SET v = v || '!' WHERE i % 5 = 0;
	VACUUM;
EOF
[ "$(sqlite3 /srv/sqlite/db 'PRAGMA integrity_check')" = ok ]

step python3
python3 - <<-'EOF'
	import fcntl, mmap, os
	os.makedirs("/srv/py/a/b")
	with open("/srv/py/map", "wb+") as f:
	    f.truncate(1 << 20)
	    with mmap.mmap(f.fileno(), 0) as m:
	        for i in range(0, 1 << 20, 4096):
	            m[i:i+8] = b"%08d" % i
	        m.flush()
	# a file of a lower layer through a shared mapping
	with open("/srv/app/conf.d/c", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
	    m[0:4] = b"FROM"
	for i in range(300):
	    with open(f"/srv/py/a/f{i}", "w") as f:
	        f.write(str(i) * 100)
	for i in range(0, 300, 2):
	    os.rename(f"/srv/py/a/f{i}", f"/srv/py/a/b/g{i}")
	for i in range(0, 300, 6):
	    os.link(f"/srv/py/a/b/g{i}", f"/srv/py/a/link{i}")
	os.symlink("nowhere", "/srv/py/dangling")
	os.mkfifo("/srv/py/fifo", 0o640)
	os.setxattr("/srv/py/map", "user.colour", b"red")
	os.setxattr("/etc/debian_version", "user.from", b"lower")
	with open("/srv/py/lock", "w") as f:
	    fcntl.flock(f, fcntl.LOCK_EX)
	    fcntl.lockf(f, fcntl.LOCK_EX)
	fd = os.open("/srv/py/gone", os.O_RDWR | os.O_CREAT)
	os.unlink("/srv/py/gone")
	os.write(fd, b"x" * 100000)
	assert os.fstat(fd).st_nlink == 0 and os.pread(fd, 3, 99997) == b"xxx"
EOF

step files of the image
mv /usr/share/pam /srv/pam-moved
cp -a /etc /srv/etc-copy
chown -R 1000:1000 /usr/share/bash-completion /srv/etc-copy/alternatives
chmod -R g+w /usr/share/debconf
chmod u+s /usr/bin/tree
chown 1000 /usr/bin/tree # which takes the bit away again
ln /usr/bin/less /srv/less-link
echo appended >>/etc/profile
sed -i s/root/ROOT/ /etc/issue.net
truncate -s 100 /etc/services 2>/dev/null || truncate -s 100 /etc/bash.bashrc
rm /etc/debconf.conf && mkdir /etc/debconf.conf && touch /etc/debconf.conf/x
rm -rf /srv/app/conf.d && mkdir /srv/app/conf.d && touch /srv/app/conf.d/z
mknod -m 600 /srv/null c 1 3
dd if=/dev/zero of=/data/big bs=1 seek=1000 count=100 conv=notrunc status=none
fallocate -p -o 65536 -l 65536 /data/big
useradd -m tester
ldconfig

step find
: >/srv/found # find may meet it, or not, otherwise
find / -xdev \( -path /debs -o -path /proc -o -path /sys -o -path /dev -o -path /run \) -prune -o -print | sort >/srv/found
find / -xdev -name '*.md5sums' -newer /etc/passwd -print | sort
find /usr/lib/x86_64-linux-gnu -type f -path '*/gconv/*' -delete

step rm
rm -rf /usr/share
[ ! -e /usr/share ]
mkdir /usr/share
touch /usr/share/after
