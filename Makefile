# make run: containers on overlayfuse, as a demonstration. make test: every test. Both need root and /dev/fuse.

SHELL := /bin/bash
stack := contrib/stack
binaries := overlayfuse containerd-overlayfuse-grpc
go_files = $(shell git ls-files --cached --others --exclude-standard '*.go')

.PHONY: all build run test lint clean

all: build

build:
	CGO_ENABLED=0 go build -trimpath -o bin/ $(binaries:%=./cmd/%)

run: build
	$(stack)/install.sh run
	$(stack)/demo.sh

test: build
	$(stack)/install.sh test
	$(stack)/test.sh $(PACKAGES)

lint:
	$(stack)/install.sh lint
	@unformatted=$$(gofmt -l $(go_files)); test -z "$$unformatted" || { echo "not gofmt's: $$unformatted"; exit 1; }
	go vet ./...
	. $(stack)/env.sh && golangci-lint run ./...
	shellcheck $(stack)/*.sh .ci/run

clean:
	rm -rf bin
