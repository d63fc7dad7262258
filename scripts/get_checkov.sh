#!/usr/bin/env bash
# Puts a pinned checkov into .tools/checkov, an environment of its own, and prints where its program is. Needs PyPI the
# first time only.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly home=$PWD/.tools/checkov pins=scripts/checkov.txt

if ! cmp -s "$pins" "$home/installed"; then
	rm -rf "$home"
	.venv/bin/python -m venv "$home"
	# --no-deps: every version stands in the file, and pip has nothing to resolve.
	if ! "$home/bin/pip" install -q --no-compile --disable-pip-version-check --no-deps -r "$pins" >&2; then
		echo 'checkov: its packages cannot be installed: PyPI and Python 3.11 or later are needed' >&2
		exit 1
	fi
	cp "$pins" "$home/installed"
fi
echo "$home/bin/checkov"
