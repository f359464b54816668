# make demo | make test | make check | make ui      (each installs what it needs into .venv)
# make test-services | make peers | make test-peers (other servers, other libraries)
PYTHON ?= python3
BIN := .venv/bin
HOME_DIR := $(CURDIR)/dagster_home
# torch is pinned to one line of releases; elsewhere in that line pip may pick a CUDA build.
INSTALLED := .venv/installed
PEERS := .venv-peers/installed

.PHONY: help setup demo test test-services test-hosts check ui clean peers test-peers
.DEFAULT_GOAL := help

help:
	@echo 'make demo    train, evaluate and release a language model, about three minutes on 2 cores'
	@echo 'make test    run the tests'
	@echo 'make test-services   run the tests on Azure, GCS, PostgreSQL and behind nginx; needs npm and nginx'
	@echo 'make test-hosts      run the tests of training on two hosts (network namespaces: root on Linux)'
	@echo 'make check   lint, types, import rules, spelling'
	@echo 'make peers   install the libraries that ours is compared and exchanges data with'
	@echo 'make test-peers   run the tests that need them'
	@echo 'make ui      open Dagster on http://127.0.0.1:3000'

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Millrace needs Python 3.11 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@# so that an activated environment knows its home; one of your own wins
	grep -q DAGSTER_HOME $(BIN)/activate || echo \
		'export DAGSTER_HOME="$${DAGSTER_HOME:-$$(dirname "$$VIRTUAL_ENV")/dagster_home}"' \
		>> $(BIN)/activate
	touch $@

demo: setup
	DAGSTER_HOME="$(HOME_DIR)" $(BIN)/dagster asset materialize -m pipelines --select group:stdlib_lm
	DAGSTER_HOME="$(HOME_DIR)" $(BIN)/python -m millrace report stdlib_lm

test: setup
	$(BIN)/python -m pytest -n 2

peers: $(PEERS)

$(PEERS): benchmarks/peers/requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

test-peers: setup peers
	$(BIN)/python -m pytest -m peers
test-services: setup
	@command -v npm >/dev/null || { echo 'npm is missing: install Node.js 20 or newer'; exit 1; }
	@PATH="$$PATH:/usr/sbin" command -v nginx >/dev/null || { echo 'nginx is missing: apt-get install nginx-light'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,azure,gcs,postgres,services]'
	test -x .venv/npm/node_modules/.bin/azurite-blob || npm install --no-audit --no-fund --prefix .venv/npm azurite@3
	$(BIN)/python -m pytest -m services -n 2

test-hosts: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,ray]'
	$(BIN)/python -m pytest -m hosts

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports
	$(BIN)/codespell

ui: setup
	DAGSTER_HOME="$(HOME_DIR)" $(BIN)/dagster dev -m pipelines -h 127.0.0.1 -p 3000

clean:
	rm -rf .venv .venv-peers dagster_home/store dagster_home/work
