# The tools are pinned only here; .ci/run uses these targets.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.9.0
ACTIONLINT    := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
GORELEASE     := golang.org/x/exp/cmd/gorelease@v0.0.0-20261113113407-e3970619a1a4

# The packages with tests that use real daemons, and how many daemons to start.
INTEGRATION ?= . ./test/conformance ./test/concurrency ./test/clients ./test/cluster ./test/ensure ./test/kill ./test/soak ./internal/testdaemon ./lxdtest/streamstest ./simplestreams ./imagefile ./examples/instance
DAEMONS     ?= -lxd 2 -incus 2
TESTFLAGS   ?= -race -count=1
BENCH       ?= .
BENCHFLAGS  ?=
FUZZTIME    ?= 10s

.PHONY: fmt fmt-check lint lint-ci test cover bench gobench integration integration-packages fuzz vuln api release-notes envelopes

fmt:
	gofmt -w .

fmt-check:
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted, run 'make fmt':"; echo "$$files"; exit 1; fi

lint:
	go run $(GOLANGCI_LINT) run ./...

# Checks the scripts of the gate and the workflows. Needs shellcheck.
lint-ci:
	shellcheck -x .ci/* examples/testing/*.sh
	go run $(ACTIONLINT)
	go run $(ACTIONLINT) examples/testing/workflow.yml

test:
	go test -race ./...

# How much of the package lxd its own tests and the suites run, without daemons.
cover:
	go test -coverpkg=. -coverprofile=coverage.out . ./test/...
	go tool cover -func=coverage.out | tail -n 1

# Measures against curl, lxc and pylxd on real daemons, and writes
# docs/performance.md. Needs Linux, root, and the daemons installed.
bench:
	go run ./bench $(BENCHFLAGS)

# The Go benchmarks: they need no daemon, and are comparable with benchstat.
gobench:
	go test -run='^$$' -bench='$(BENCH)' -benchmem $(BENCHFLAGS) .

# Needs Linux, root, and the daemons installed; see CONTRIBUTING.md. One package
# after the other (-p 1): they share the daemons, and look at what is left there.
# examples/fleet is a module of its own.
integration:
	go run ./internal/cmd/testdaemons $(DAEMONS) -- \
		sh -c 'go test -p 1 $(TESTFLAGS) $(INTEGRATION) && go test -C examples/fleet $(TESTFLAGS)'

integration-packages:
	@echo $(INTEGRATION)

# Runs every fuzz target in turn, each for FUZZTIME.
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

# Lists the API changes since the last release before this commit and, if VERSION
# is set, checks that it is a version that may have these changes. Reads the last
# release from the module proxy.
api:
	@set -e; \
	if [ "$$(git rev-parse --is-shallow-repository)" != false ]; then \
		echo "this needs a complete clone: the last release is found by its tag" >&2; exit 1; \
	fi; \
	base=$$(git describe --tags --abbrev=0 --match='v[0-9]*' HEAD^ 2>/dev/null || true); \
	if [ -z "$$base" ]; then \
		echo "there is no release before this commit, so no API to compare with"; exit 0; \
	fi; \
	go run $(GORELEASE) -base="$$base" $(if $(VERSION),-version="$(VERSION)")

# Prints the text of VERSION in CHANGELOG.md. The package must have that version.
release-notes:
	@grep -q '^const Version = "$(VERSION:v%=%)"$$' client.go || \
		{ echo "client.go: Version is not $(VERSION:v%=%)" >&2; exit 1; }
	@awk '/^## |^\[.*\]: /{on = ($$2 == "[$(VERSION:v%=%)]"); next} on {print; if (NF) found = 1} \
		END {if (!found) {print "CHANGELOG.md: nothing under [$(VERSION:v%=%)]" >"/dev/stderr"; exit 1}}' CHANGELOG.md

# Records testdata/envelopes again from real daemons.
envelopes:
	go run ./internal/cmd/testdaemons -lxd 1 -incus 1 -- go run ./internal/cmd/record testdata/envelopes
