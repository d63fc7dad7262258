#!/usr/bin/env bash
# setup.sh demo|all: makes .venv with what the demo needs, or also with what the tests and the checks need. Run by make;
# safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly venv=.venv torch_range='torch>=2.4,<3'

say() { printf 'setup: %s\n' "$*"; }

fail() {
	printf 'setup: %s\n' "$*" >&2
	exit 1
}

# Prints the first Python of at least 3.10 that can make a virtual environment; 3.11 is what the worker has.
find_python() {
	local name path without_venv=
	for name in "${PYTHON:-python3.11}" python3.11 python3 python3.12 python3.13 python3.10; do
		path=$(command -v "$name") || continue
		"$path" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
		if "$path" -c 'import ensurepip, venv' 2>/dev/null; then
			echo "$path"
			return
		fi
		without_venv=$name
	done
	if [[ -n $without_venv ]]; then
		local version
		version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
		fail "$without_venv cannot make virtual environments: apt-get install python$version-venv"
	fi
	fail 'Python 3.10 or later is needed: apt-get install python3 python3-venv'
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

# Of all these modules a few are ever imported, and Python compiles those by itself.
pip_install() { "$venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check "$@"; }

# torch comes first and alone: pip's default for Linux carries gigabytes of CUDA that a machine without a GPU never uses.
install_torch() {
	if has_gpu; then
		say 'a GPU is here: taking the default build of torch'
		pip_install "$torch_range"
	elif [[ $(uname -s) != Linux ]]; then
		pip_install "$torch_range"
	elif pip_install 'torch==2.13.0+cpu' 2>/dev/null; then
		say 'no GPU: took the CPU build of torch 2.13.0 that pip is configured to find'
	elif pip_install --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu "$torch_range" 2>/dev/null; then
		say "no GPU: took the CPU build of torch from PyTorch's own index"
	else
		say 'no GPU, and no CPU build of torch within reach: taking the default build, which is large'
		pip_install 'torch==2.13.0' || pip_install "$torch_range"
	fi
}

install_terraform() {
	if command -v terraform >/dev/null || [[ -x .tools/terraform ]]; then
		return
	fi
	# Its own last line says what to install by hand. Training and most tests do without Terraform.
	scripts/get_terraform.sh || say 'going on without Terraform: the rehearsal and the Terraform tests need it'
}

if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
	python=$(find_python)
	say "making $venv with $("$python" -V)"
	"$python" -m venv --clear "$venv"
fi
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
	install_torch
fi
if [[ ${1:-all} == demo ]]; then
	say 'installing train-cloud with what the demo needs'
	# The demo films a pendulum, which is drawn with pygame.
	pip_install -e '.[sb3,rehearsal]' 'pygame-ce>=2.4'
	install_terraform
	touch "$venv/.demo"
else
	say 'installing train-cloud, the tests and their tools'
	pip_install -e '.[sb3,rehearsal,examples,contrib,demonstrations,graphs,wandb,search,ray,dev]'
	pip_install -e '.[environments]' 2>/dev/null || say 'going on without MuJoCo, Box2D or Atari: their tests say what is missing'
	install_terraform
	touch "$venv/.demo" "$venv/.installed"
fi
say "ready: $("$venv/bin/train-cloud" --version), torch $("$venv/bin/python" -c 'import torch; print(torch.__version__)')"
