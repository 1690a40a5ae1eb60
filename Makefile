# Everything starts here. Each target sets the machine up first; done once, that costs a moment.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python3
HOST := policies/hosts/demo.toml
# What the VM tier and its packages need besides; only root can install it, or run that tier.
MACHINE := $(shell [ "$$(id -u)" -ne 0 ] || echo build vm)

.PHONY: help setup demo test unit host clients attacks bench fuzz lint format locks deb vm-test vm-shell clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Debian packages and the two virtual environments (root where packages are missing)
	@packaging/setup.sh

demo: setup ## the whole thing once: messages, evidence, attacks (root)
	@packaging/anchorhold --host-file $(HOST) demo

test: ## every tier this machine can run, one closing line per tier
	@packaging/setup.sh run test clients $(MACHINE)
	@$(if $(MACHINE),packaging/deb.sh)
	@$(PYTHON) -m tests

unit: setup ## the unit tier alone: anywhere, any user
	@$(PYTHON) -m tests unit

host: setup ## the host tier alone: real sandboxes on this kernel (root)
	@$(PYTHON) -m tests host

clients: ## the clients tier alone: official SDKs in sandboxes, through the egress proxy (root)
	@packaging/setup.sh run test clients
	@$(PYTHON) -m tests clients

vm-test: deb ## the VM tier alone: a real Debian with a TPM, in QEMU (root; SUITE=trixie)
	@packaging/setup.sh run test build vm
	@$(PYTHON) -m tests.vm.image
	@$(PYTHON) -m tests vm

vm-shell: ## a shell in a fresh machine of that tier (root; SUITE=trixie, SNAPSHOT=installed)
	@packaging/setup.sh run test vm
	@$(PYTHON) -m tests.vm.shell

attacks: setup ## every attack inside a workload and outside: the table, and which layers carry (root)
	@$(PYTHON) -m tests.attacks

fuzz: setup ## random inputs for the masking and its parsers (MINUTES=10)
	@$(PYTHON) -m tests.fuzz

bench: ## figures as ratios within one run (root)
	@packaging/setup.sh run test bench
	@$(PYTHON) -m tests.bench

lint: setup ## ruff, mypy --strict, bandit, shellcheck
	@.ci/lint

format: setup ## let ruff put the code in order
	@.venv/bin/ruff check --fix . && .venv/bin/ruff format .

locks: setup ## resolve packaging/locks/*.in anew
	@packaging/lock.sh

deb: ## Debian packages in dist/SUITE (SUITE=bookworm or trixie)
	@packaging/setup.sh run test build
	@packaging/deb.sh

clean: ## remove what setup and the tests made inside the tree
	@rm -rf .runtime .venv .clients .bench .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
