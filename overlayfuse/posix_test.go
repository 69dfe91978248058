package overlayfuse_test

const envPosix = "OVERLAYFUSE_POSIX_MNT"
