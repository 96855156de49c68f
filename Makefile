# Each target first installs what it needs. On a new machine with Rust and Python 3, no other setup is necessary.

PLAYERS ?= 100
FOR ?= 600
SEED ?= 1
NODES ?= 1
SEEDS ?= 20000
# The programs are not started with `cargo run`: it would rebuild the dependencies with the features of one package.
TARGET = $(or $(CARGO_TARGET_DIR),target)
GARAGE = $(TARGET)/debug/garage
# deploy/local/install.sh also keeps its downloads here, so that neither `cargo clean` nor a new clone repeats them.
CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/garage
DENY = $(CACHE)/bin/cargo-deny
MDBOOK = $(or $(shell command -v mdbook),$(CACHE)/bin/mdbook)

.DEFAULT_GOAL := help
.PHONY: help demo test chaos soak outages bench images lint audit docs install

help: ## Lists the targets.
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: install ## Starts a local Garage and lets PLAYERS=100 bots play on it.
	cargo build --workspace
	$(GARAGE) demo --players $(PLAYERS)

test: ## Runs all tests, on real servers.
	@deploy/local/install.sh --tests
	@# The end-to-end tests start the workers' programs, so these are built first.
	cargo build --workspace
	cargo test --workspace

chaos: ## Injects random faults while bots play: for FOR=600 seconds, with SEED=1, on NODES=1 NATS nodes (or 3).
	@deploy/local/install.sh --tests
	cargo build --workspace
	GARAGE_CHAOS_FOR=$(FOR) GARAGE_CHAOS_SEED=$(SEED) GARAGE_CHAOS_NODES=$(NODES) \
		cargo test --workspace --test e2e -- --nocapture chaos

soak: ## Runs the simulation (SEEDS=20000) and chaos (FOR=600, NODES=1) with fresh seeds from the clock, and prints them.
	@deploy/local/install.sh --tests
	cargo build --workspace
	@seed=$$(date +%s%N); failed=0; \
	run() { echo "soak: $$*"; env -u SEED "$$@" || failed=1; }; \
	run FIRST=$$seed SEEDS=$(SEEDS) cargo test --workspace --test simulation -- --nocapture; \
	run GARAGE_CHAOS_FOR=$(FOR) GARAGE_CHAOS_SEED=$$seed GARAGE_CHAOS_NODES=$(NODES) \
		cargo test --workspace --test e2e -- --nocapture chaos; \
	exit $$failed

outages: ## Walks 18 outages of NATS, Redis, MySQL and Kubernetes, and prints what players and operators see.
	@deploy/local/install.sh --tests
	cargo build --workspace
	cargo test --workspace --test e2e -- --ignored --nocapture outage_table::table

bench: install ## Measures the log, a gateway and a director, each beside the machine's own limit.
	@# A debug build is much slower than the release build that you deploy.
	cargo build --release --workspace
	$(TARGET)/release/garage bench log
	$(TARGET)/release/garage bench gateway
	$(TARGET)/release/garage bench director

images: ## Builds the OCI images of the workers into target/images, without a base image.
	@deploy/local/install.sh --images
	deploy/images/build.sh

lint: ## Checks formatting, clippy and rustdoc. Every warning is an error.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

audit: ## Checks the licences and sources of all dependencies, banned crates, and known vulnerabilities.
	@[ -x "$(DENY)" ] || cargo install cargo-deny --locked --version 0.20.2 --root $(CACHE)
	$(DENY) check bans licenses sources
	@# The database of vulnerabilities is a Git repository, which not every network can reach.
	@if $(DENY) fetch db; then $(DENY) check --disable-fetch advisories; else \
		echo "audit: the database of vulnerabilities cannot be fetched, so they are not checked" >&2; fi

docs: ## Builds the documentation as a book into target/book.
	@[ -x "$(MDBOOK)" ] || cargo install mdbook --locked --version 0.5.4 --no-default-features --features search --root $(CACHE)
	rm -rf $(TARGET)/book-src $(TARGET)/book
	mkdir -p $(TARGET)/book-src
	@# The book is built from a copy of the tracked files, so that its links are the same as on a code host.
	git ls-files -z | xargs -0 cp --parents --target-directory=$(TARGET)/book-src
	cp deploy/docs/book.toml $(TARGET)/book-src
	@# SUMMARY.md moves to the root, so its links change: ../../README.md to README.md, api.md to deploy/docs/api.md.
	sed -e 's#](\.\./\.\./#](#;t' -e 's#](#](deploy/docs/#' deploy/docs/SUMMARY.md > $(TARGET)/book-src/SUMMARY.md
	$(MDBOOK) build $(TARGET)/book-src

install: ## Installs nats-server, Redis and MariaDB where they are missing.
	@deploy/local/install.sh
