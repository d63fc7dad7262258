#!/usr/bin/env bash
# What train-cloud does on a GPU: scripts/gpu.sh OUT [cuda|cpu] [PART…]. Needs Python with torch, pytest and NumPy, and no
# network: what is missing comes from the wheels beside it (scripts/gpu_wheels.sh WHEELS, then WHEELS=… here).
# Each part runs by itself, with a limit of its own, 8 minutes in all; OUT gets results.json, a file for each part, and
# log.txt. Then `python -m benchmarks.gpu take --out OUT` writes benchmarks/gpu.json and docs/gpu.md.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=$(realpath -m "${1:?"usage: scripts/gpu.sh OUT [cuda|cpu] [PART…]"}")
readonly out device=${2:-cuda} wheels=${WHEELS:-.wheels}
readonly python=${PYTHON:-python3} wanted=("${@:3}")
# Name and seconds of each part, 480 in all.
readonly parts=(machine:25 consistency:25 stall:40 speed:110 precision:40 tests:100 determinism:140)
for name in "${wanted[@]}"; do
	if [[ " ${parts[*]} " != *" $name:"* ]]; then
		printf 'there is no part %s; there are: %s\n' "$name" "${parts[*]%:*}" >&2
		exit 2
	fi
done
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir -p "$out"
: >"$out/log.txt"

say() { printf '%s gpu: %s\n' "$(date +%T)" "$*" | tee -a "$out/log.txt"; }

if compgen -G "$wheels/*.whl" >/dev/null; then
	"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl \
		>>"$out/log.txt" 2>&1 || say 'the wheels cannot be installed'
fi
export PYTHONPATH=$PWD:$PWD/tests:$PWD/tests/support:$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1

failed=()
for part in "${parts[@]}"; do
	name=${part%:*} seconds=${part#*:}
	if ((${#wanted[@]})) && [[ $name != machine && " ${wanted[*]} " != *" $name "* ]]; then continue; fi
	say "$name, at most $seconds s"
	echo '{"failed": "it did not begin: see the log"}' >"$out/$name.json"
	if ! timeout --kill-after=10 "$seconds" "$python" -m benchmarks.gpu "$name" --device "$device" --out "$out" \
		>>"$out/log.txt" 2>&1; then
		failed+=("$name")
		say "$name FAILED"
		tail -n 15 "$out/log.txt"
	fi
done
"$python" -m benchmarks.gpu summary --out "$out"

if ((${#failed[@]})); then
	say "failed: ${failed[*]}"
	exit 1
fi
say 'every part passed'
