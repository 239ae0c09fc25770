# `make` lists the targets. Each installs or builds what it needs first; a second call finds that done.
.DEFAULT_GOAL := help
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

# Set on the command line: make run PROMPT="…" REAL=1, make build GOARCH=arm64, make fuzz FUZZTIME=1m
PROMPT ?=
REAL ?=
FUZZTIME ?= 10s
PKG ?= ./...
GOARCH ?= $(shell go env GOARCH)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
export PROMPT

BIN := bin/stromboli$(if $(filter-out $(shell go env GOHOSTARCH),$(GOARCH)),-$(GOARCH))
SHIM := cmd/stromboli/shim/stromboli-shim
DEMO := $(if $(REAL),,--demo)

GOLANGCI = $$(scripts/tool.sh golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint v2.15.0)
GOTESTSUM = $$(scripts/tool.sh gotestsum gotest.tools/gotestsum v1.13.0)

# The race detector is slow to build and to run; the end-to-end tests wait for real containers.
TEST_FLAGS := -race -shuffle=on -timeout=25m
TESTS = STROMBOLI_TEST_REQUIRE=podman scripts/with-limits.sh "$(GOTESTSUM)" --format standard-quiet --jsonfile build/test.json --

##@ Use
.PHONY: run
run: host build images ## run one prompt in a sandbox and watch it (PROMPT="…"; REAL=1 uses your Claude credentials)
	@if [ -n "$$PROMPT" ]; then \
	  exec scripts/with-limits.sh $(BIN) run --serve $(DEMO) -- "$$PROMPT"; \
	else \
	  exec scripts/with-limits.sh $(BIN) run --serve $(DEMO); \
	fi

.PHONY: serve
serve: host build images ## keep a server running on 127.0.0.1:8080 (REAL=1 uses your Claude credentials)
	@exec scripts/with-limits.sh $(BIN) serve $(DEMO)

.PHONY: setup
setup: host build images ## fetch the agent CLI and prepare the agent image

.PHONY: claude-setup
claude-setup: ## copy the Claude CLI's token into ./.claude-secrets
	@scripts/claude-setup.sh

##@ Build
.PHONY: build
build: ## build bin/stromboli (GOARCH=arm64 for another CPU)
	@mkdir -p bin build
	@CGO_ENABLED=0 GOOS=linux GOARCH=$(GOARCH) go build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $(SHIM) ./cmd/stromboli-shim
	@CGO_ENABLED=0 GOOS=linux GOARCH=$(GOARCH) go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)' -o $(BIN) ./cmd/stromboli
	@echo "built $(BIN) $(VERSION)"

.PHONY: build-agent-image
build-agent-image: host build images ## build the image that agents work in

.PHONY: build-server-image
build-server-image: host build ## build the image of the server in a container
	@scripts/server-image.sh

.PHONY: build-images
build-images: build-agent-image build-server-image ## build all images

.PHONY: clean
clean: ## remove what was built (caches outside the clone stay)
	@rm -rf bin build coverage.html coverage.out $(SHIM)

##@ Check
.PHONY: test
test: host-test build images ## run all tests, end-to-end ones with real containers included
	@$(TESTS) $(TEST_FLAGS) $(PKG)

.PHONY: test-podman5
test-podman5: host-test build images ## run engine and end-to-end tests against Debian trixie's Podman 5, in a root of its own
	@scripts/podman5.sh

.PHONY: test-short
test-short: build ## run the tests that need no containers
	@STROMBOLI_TEST_REQUIRE= go test -short -shuffle=on -timeout=5m $(PKG)

.PHONY: test-coverage
test-coverage: host-test build images ## run all tests and write coverage.html
	@$(TESTS) $(TEST_FLAGS) -coverprofile=coverage.out -coverpkg=./... $(PKG)
	@go tool cover -html=coverage.out -o coverage.html
	@go tool cover -func=coverage.out | tail -1

.PHONY: lint
lint: ## check style and look for common mistakes
	@"$(GOLANGCI)" run $(PKG)
	@if command -v shellcheck > /dev/null; then shellcheck -x scripts/*.sh .ci/run; fi
	@p=$$(scripts/promtool.sh); if [ -n "$$p" ]; then "$$p" check rules deployments/prometheus/alerts.yml && "$$p" test rules deployments/prometheus/alerts_test.yml; fi

.PHONY: fmt
fmt: ## format the code
	@"$(GOLANGCI)" fmt $(PKG)

.PHONY: api-check
api-check: ## check that the API's documents are taken by generators and break no client of the last release
	@scripts/api-check.sh

.PHONY: docs-swagger
docs-swagger: ## write the API's documents anew, from its routes and types
	@go test ./internal/api -run '^TestDocuments$$' -update

.PHONY: docs-config
docs-config: ## write the tables of docs/CONFIGURATION.md anew, from the comments of internal/config
	@go test ./internal/config -run '^TestManual$$' -update

.PHONY: fuzz
fuzz: build ## run each fuzz target for FUZZTIME (10s), as many at a time as there are CPUs
	@scripts/fuzz.sh $(FUZZTIME) $(PKG)

.PHONY: bench
bench: host build images ## measure the start of a run against bare claude and podman run; writes build/bench.json
	@mkdir -p build
	@scripts/with-limits.sh $(BIN) bench --out build/bench.json

.PHONY: dev
dev: host build images ## serve, and again after each change of a source file (REAL=1 uses your Claude credentials)
	@exec scripts/dev.sh $(DEMO)

# Steps of the targets above.
.PHONY: host host-test images
host:
	@scripts/ensure-host.sh run
host-test:
	@scripts/ensure-host.sh test
images: build
	@scripts/with-limits.sh $(BIN) setup --image

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
