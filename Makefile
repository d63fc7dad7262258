# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv first, with what it needs, if it is not there.
SHELL := /bin/bash
STAMP := .venv/.installed
DEMO_STAMP := .venv/.demo
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.tools:$(PATH)
# The project's own plugin: what each test file took and the dearest tests, printed at the end.
# Three processes for two cores, since tests wait a lot; most files stay in one of them (tests/conftest.py).
PROCESSES := $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores + cores / 2)))
PYTEST := PYTHONPATH=tests:tests/support $(BIN)/python -m pytest -p minutes -n $(PROCESSES)
SHELL_SCRIPTS = $(wildcard scripts/*.sh bootstrap/*.sh train_cloud/rehearsal/machine/*.sh train_cloud/rehearsal/sagemaker/*.sh .ci/run)

.PHONY: demo test test-quick test-failed test-full prove-foreign chaos bench bench-large check format clean help
help:
	@echo 'make demo       the whole life of a run on this machine, in a few minutes, without an AWS account'
	@echo 'make test       the test suite, as CI runs it'
	@echo 'make test-quick the fast tests and a few of the telling ones, in a few minutes'
	@echo 'make test-failed what failed last, once more, one by one'
	@echo 'make test-full  also what does not fit into the time that CI has; writes docs/exactness.md'
	@echo 'make prove-foreign prove of environments from PyPI that no test was written with; writes docs/exactness.md (an hour)'
	@echo 'make chaos      trainings killed N=200 times at random moments, of SEED=…; each ends as if nothing had happened'
	@echo 'make bench      what train-cloud costs, against stock: docs/benchmarks.md (half an hour on a quiet machine)'
	@echo 'make bench-large the same with 1M rows of 1080 floats; says what memory and disk it lacks'
	@echo 'make check      format, lint, types, shell, Terraform, GitHub workflows'
	@echo 'make format     write the format that `make check` asks for'
	@echo 'make clean      remove .venv, .tools and caches'

$(STAMP): pyproject.toml scripts/setup.sh
	@scripts/setup.sh all

$(DEMO_STAMP): pyproject.toml scripts/setup.sh
	@scripts/setup.sh demo

demo: $(DEMO_STAMP)
	@$(BIN)/train-cloud rehearse examples/pendulum_sac.yaml

test: $(STAMP)
	@$(PYTEST) -m 'not full'

# What is fast, of some files one test in so many (ONE_IN), and of the slow ones QUICK: tests/conftest.py.
test-quick: $(STAMP)
	@$(PYTEST) -m 'quick and not full'

# Once more, and each by itself: for whoever wants to know whether a test fails always or only on a busy machine.
test-failed: $(STAMP)
	@PYTHONPATH=tests:tests/support $(BIN)/python -m pytest -p minutes --last-failed --last-failed-no-failures none

test-full: $(STAMP)
	@$(PYTEST)
	@$(BIN)/python tests/exactness.py --again

# Each package in a virtual environment of its own, below build/foreign; ONLY=TEXT tries some.
ONLY ?=
prove-foreign: $(STAMP)
	@PYTHONPATH=tests:tests/support $(BIN)/python tests/foreign_environments.py --only '$(ONLY)'

N ?= 200
SEED ?=
chaos: $(STAMP)
	@TRAIN_CLOUD_CHAOS_KILLS=$(N) TRAIN_CLOUD_CHAOS_SEED=$(SEED) PYTHONPATH=tests:tests/support \
		$(BIN)/python -m pytest -q -s --tb=short tests/test_chaos.py

bench: $(STAMP)
	@$(BIN)/python -m benchmarks

bench-large: $(STAMP)
	@$(BIN)/python -m benchmarks --large

check: $(STAMP)
	ruff check .
	ruff format --check .
	mypy
	shellcheck -x $(SHELL_SCRIPTS)
	shfmt -d $(SHELL_SCRIPTS)
	$(BIN)/python scripts/document_api.py --check
	check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema -q --builtin-schema vendor.dependabot .github/dependabot.yml
	zizmor --offline --quiet .github
	if command -v actionlint >/dev/null; then actionlint; fi # CI has it: its package on PyPI fetches it from GitHub
	scripts/check_terraform.sh

format: $(STAMP)
	ruff check --fix .
	ruff format .
	shfmt -w $(SHELL_SCRIPTS)
	terraform fmt -recursive terraform

clean:
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
