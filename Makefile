# The commands of the repository. Each target installs what it needs first (deploy/setup.sh; quick when nothing is
# missing). `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test build bench setup lint fmt clean containers deny env

# Linking Debian's RocksDB takes seconds, compiling the bundled one half an hour. Looked up when a recipe runs, so that
# the one that installs it sees it too. Without it Cargo compiles the bundled one.
ROCKSDB := for so in /usr/lib/$$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -dumpmachine 2>/dev/null)/librocksdb.so; do \
	if [ -e "$$so" ]; then export ROCKSDB_LIB_DIR="$$(dirname "$$so")"; fi; done;

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## a whole cluster on this machine: printers, three nodes, a Web Admin; Ctrl-C ends it
	@deploy/setup.sh demo
	@$(ROCKSDB) cargo build --release --locked --bins
	@exec target/release/quire-demo

test: ## everything that CI runs
	@deploy/setup.sh test
	@if [ -x tests/snmpsim-setup.sh ]; then tests/snmpsim-setup.sh target/snmpsim-venv; fi
	cargo fmt --all --check
	@$(MAKE) --no-print-directory deny
	$(ROCKSDB) cargo clippy --workspace --all-targets --locked -- -D warnings
	$(ROCKSDB) cargo build --workspace --bins --locked
	$(ROCKSDB) cargo test --workspace --doc --locked
	@# The runner comes last, so that its summary is the last line.
	$(ROCKSDB) if cargo nextest --version >/dev/null 2>&1; \
		then cargo nextest run --workspace --locked; \
		else cargo test --workspace --lib --bins --tests --locked; fi

build: ## release programs: target/release/quire and target/release/quire-admin
	@deploy/setup.sh build
	$(ROCKSDB) cargo build --release --locked --bins

bench: ## the benchmarks, one table
	@deploy/setup.sh bench
	@$(ROCKSDB) cargo build --release --locked --bins
	@target/release/quire-bench

containers: build ## the cluster of docker-compose.yml in the foreground; Ctrl-C ends it
	@deploy/compose/up.sh

setup: ## install what all targets need
	@deploy/setup.sh test

lint: ## formatting and clippy
	@deploy/setup.sh build
	cargo fmt --all --check
	$(ROCKSDB) cargo clippy --workspace --all-targets --locked -- -D warnings

fmt: ## format the sources
	cargo fmt --all

deny: ## licences, bans and sources of the dependencies (deny.toml), where cargo-deny is installed
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check; \
		else echo "left out: cargo deny check (cargo-deny is not installed)"; fi

env: ## what a plain cargo needs: eval "$$(make -s env)"
	@$(ROCKSDB) echo "export ROCKSDB_LIB_DIR=$${ROCKSDB_LIB_DIR:-}"

clean: ## remove what was built
	cargo clean
