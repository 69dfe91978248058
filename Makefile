# make run: containers on overlayfuse, as a demonstration. make test: every test. make verify: the long runs of the tests that draw
# their work at random (hours). make bench: the copy-up engine beside the kernel's overlayfs and fuse-overlayfs; BENCH are further
# arguments, such as "-quick". All need root and /dev/fuse.

SHELL := /bin/bash
stack := contrib/stack
binaries := overlayfuse containerd-overlayfuse-grpc
go_files = $(shell git ls-files --cached --others --exclude-standard '*.go')

.PHONY: all build run test verify bench bench-transport lint clean

all: build

build:
	CGO_ENABLED=0 go build -trimpath -o bin/ $(binaries:%=./cmd/%)

run: build
	$(stack)/install.sh run
	$(stack)/demo.sh

test: build
	$(stack)/install.sh test
	$(stack)/test.sh $(PACKAGES)

verify: build
	$(stack)/install.sh test
	$(stack)/verify.sh

bench: build
	$(stack)/install.sh bench
	go run ./contrib/bench copyup -overlayfuse bin/overlayfuse -out bench-results $(BENCH)

# What one FUSE round trip costs with each way of serving; BENCH are further arguments, such as "-rounds 9".
bench-transport:
	go run ./contrib/bench transport $(BENCH)

lint:
	$(stack)/install.sh lint
	@unformatted=$$(gofmt -l $(go_files)); test -z "$$unformatted" || { echo "not gofmt's: $$unformatted"; exit 1; }
	go vet ./...
	. $(stack)/env.sh && golangci-lint run ./...
	shellcheck $(stack)/*.sh .ci/run

clean:
	rm -rf bin
