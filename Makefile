# Each target installs what it lacks first; on a fresh machine with Rust and python3 there is no other set-up.

PLAYERS ?= 100
FOR ?= 600
SEED ?= 1
NODES ?= 1
# Not `cargo run`: with one package's features only, it would build the dependencies once more.
TARGET = $(or $(CARGO_TARGET_DIR),target)
GARAGE = $(TARGET)/debug/garage

.DEFAULT_GOAL := help
.PHONY: help demo test chaos bench images lint install

help: ## This list.
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: install ## Starts a local Garage and lets PLAYERS=100 bots play on it.
	cargo build --workspace
	$(GARAGE) demo --players $(PLAYERS)

test: ## Runs all tests, on real servers.
	@deploy/local/install.sh --tests
	@# The binaries first: end-to-end tests run those of the workers.
	cargo build --workspace
	cargo test --workspace

chaos: ## Lets everything fail for FOR=600 seconds, by the seed SEED=1, on NODES=1 of NATS (or 3), while players play.
	@deploy/local/install.sh --tests
	cargo build --workspace
	GARAGE_CHAOS_FOR=$(FOR) GARAGE_CHAOS_SEED=$(SEED) GARAGE_CHAOS_NODES=$(NODES) \
		cargo test --workspace --test e2e -- --nocapture chaos

bench: install ## Measures the log, a gateway and a director, each beside the machine's own limit in the same run.
	@# As it is deployed: a debug build would measure the compiler's haste.
	cargo build --release --workspace
	$(TARGET)/release/garage bench log
	$(TARGET)/release/garage bench gateway
	$(TARGET)/release/garage bench director

images: ## Builds the workers' OCI images into target/images, from nothing but the programs.
	@deploy/local/install.sh --images
	deploy/images/build.sh

lint: ## Formatting, clippy and documentation; every warning is an error.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

install: ## nats-server, Redis and MariaDB, where they are missing.
	@deploy/local/install.sh
