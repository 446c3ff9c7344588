# The doors of the project. Each calls a chore of xtask; `cargo xtask <chore> --help` tells more.
.PHONY: build demo test fuzz bench lab lint clean help

help:
	@echo "make demo   a VM from a client's certificate to the guest's shell"
	@echo "make test   all tests; those with guests in the lab if this machine cannot boot them"
	@echo "make fuzz   devices, loaders and decoders against what nobody should send"
	@echo "make bench  start-up, memory, disks and NICs, beside other hypervisors; devices of the host; load; decisions of policy"
	@echo "make lab    a shell in the emulated host"
	@echo "make build  the ostler program;  make lint  format and clippy;  make clean"

build:
	cargo build --release --package ostler

demo:
	cargo xtask demo

test:
	cargo xtask test

fuzz:
	cargo xtask fuzz

bench:
	cargo xtask bench

lab:
	cargo xtask lab

lint:
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --release --workspace --all-targets --features ostler/lab -- -D warnings

clean:
	cargo clean
