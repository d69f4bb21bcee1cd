# The commands of the repository. Each target installs what it needs first (deploy/setup.sh; quick when nothing is
# missing). `make` alone lists them. For single commands: deploy/cargo.sh instead of cargo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test build bench sim accidents fuzz setup lint fmt clean containers deny

# Cargo with the distribution's RocksDB.
CARGO := deploy/cargo.sh

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## a whole cluster on this machine: printers, three nodes, a Web Admin; Ctrl-C ends it
	@deploy/setup.sh demo
	@$(CARGO) build --release --locked --bins
	@exec target/release/quire-demo

test: ## everything that CI runs
	@deploy/setup.sh test
	@if [ -e tests/snmpsim-setup.sh ]; then bash tests/snmpsim-setup.sh target/snmpsim-venv; fi
	$(CARGO) fmt --all --check
	@$(MAKE) --no-print-directory deny
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --doc --locked
	@# The runner comes last, so that its summary is the last line.
	@if cargo nextest --version >/dev/null 2>&1; \
		then $(CARGO) nextest run --workspace --locked; \
		else $(CARGO) test --workspace --lib --bins --tests --locked; fi

build: ## release programs: target/release/quire and target/release/quire-admin
	@deploy/setup.sh build
	$(CARGO) build --release --locked --bins

bench: ## the benchmarks, one table; BENCH="--part sweep" for a part (docs/benchmarks.md)
	@deploy/setup.sh bench
	@$(CARGO) build --release --locked --bins
	@exec target/release/quire-bench $(BENCH)

sim: ## whole clusters under virtual time from seeds, everything breaking; SIM="--seeds 1000 --from 1"
	@deploy/setup.sh build
	@$(CARGO) build --release --locked --bin quire-sim
	@exec target/release/quire-sim $(SIM)

accidents: ## real processes in network namespaces, everything breaking; ACCIDENTS="--seed 7 --minutes 60"; as root
	@deploy/setup.sh accidents
	@$(CARGO) build --release --locked --bins
	@exec target/release/quire-accidents $(ACCIDENTS)

fuzz: ## every decoder under libFuzzer, FUZZ_SECONDS (60) each
	@deploy/setup.sh fuzz
	@exec tests/fuzz/run.sh

containers: build ## the cluster of docker-compose.yml in the foreground; Ctrl-C ends it
	@exec deploy/compose/up.sh

setup: ## install what all targets need
	@deploy/setup.sh test

lint: ## formatting and clippy
	@deploy/setup.sh build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

fmt: ## format the sources
	$(CARGO) fmt --all

deny: ## licences, bans and sources of the dependencies (deny.toml), where cargo-deny is installed
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check; \
		else echo "left out: cargo deny check (cargo-deny is not installed)"; fi

clean: ## remove what was built
	$(CARGO) clean
