# make run: containers on overlayfuse, as a demonstration. make test: every test. make verify: the long runs of the tests that draw
# their work at random (hours). make bench: everything beside the kernel's overlayfs and fuse-overlayfs, bench-quick: the
# same with less of each, bench-copyup: the copy-up engine alone; BENCH are further arguments, such as "-only names".
# All need root and /dev/fuse.

SHELL := /bin/bash
stack := contrib/stack
binaries := overlayfuse containerd-overlayfuse-grpc
go_files = $(shell git ls-files --cached --others --exclude-standard '*.go')

.PHONY: all build run test verify bench bench-quick bench-copyup bench-transport bench-tools lint clean

all: build

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/ $(binaries:%=./cmd/%)

run: build
	$(stack)/install.sh run
	$(stack)/demo.sh

test: build
	$(stack)/install.sh test
	$(stack)/test.sh $(PACKAGES)

verify: build
	$(stack)/install.sh test
	$(stack)/verify.sh

bench-tools: build
	$(stack)/install.sh run bench
	CGO_ENABLED=0 go build -trimpath -o bin/bench ./contrib/bench

bench: bench-tools
	bin/bench all -writeback -mirror -overlayfuse bin/overlayfuse -out bench-results $(BENCH)

bench-quick: bench-tools
	bin/bench all -quick -writeback -mirror -overlayfuse bin/overlayfuse -out bench-results/quick $(BENCH)

bench-copyup: bench-tools
	bin/bench copyup -mirror -overlayfuse bin/overlayfuse -out bench-results $(BENCH)

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
