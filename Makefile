# The tools are pinned here and nowhere else; .ci/run uses these targets.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.9.0

# What has tests that use the real daemons, and how many of each to start.
INTEGRATION ?= . ./internal/testdaemon ./internal/streamstest ./simplestreams
DAEMONS     ?= -lxd 2 -incus 2
TESTFLAGS   ?= -race -count=1
BENCH       ?= .
BENCHFLAGS  ?=
FUZZTIME    ?= 10s

.PHONY: fmt fmt-check lint test bench gobench integration fuzz vuln envelopes

fmt:
	gofmt -w .

fmt-check:
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted, run 'make fmt':"; echo "$$files"; exit 1; fi

lint:
	go run $(GOLANGCI_LINT) run ./...

test:
	go test -race ./...

# Measures against curl, lxc and pylxd on real daemons, and writes
# docs/performance.md. Needs Linux, root, and the daemons installed.
bench:
	go run ./bench $(BENCHFLAGS)

# What needs no daemon, comparable with benchstat.
gobench:
	go test -run='^$$' -bench='$(BENCH)' -benchmem $(BENCHFLAGS) .

# Needs Linux, root, and the daemons installed; see CONTRIBUTING.md.
integration:
	go run ./internal/cmd/testdaemons $(DAEMONS) -- go test $(TESTFLAGS) $(INTEGRATION)

# Every fuzz target in turn, each for FUZZTIME.
fuzz:
	@set -e; for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "== $$package $$target"; \
			go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) $$package; \
		done; \
	done

# Reads the Go vulnerability database over the network.
vuln:
	go run $(GOVULNCHECK) ./...

# Records testdata/envelopes anew from real daemons.
envelopes:
	go run ./internal/cmd/testdaemons -lxd 1 -incus 1 -- go run ./internal/cmd/record testdata/envelopes
