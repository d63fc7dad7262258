#!/usr/bin/env bash
# What train-cloud does on a GPU: scripts/gpu.sh OUT [cuda|cpu]. Needs Python with torch, pytest and NumPy, and no
# network: what is missing comes from the wheels beside it (scripts/gpu_wheels.sh WHEELS, then WHEELS=… here).
# Each part runs by itself, with a limit of its own; OUT gets results.json, a file for each part, and log.txt.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=$(realpath -m "${1:?"usage: scripts/gpu.sh OUT [cuda|cpu]"}")
readonly out device=${2:-cuda} wheels=${WHEELS:-.wheels}
readonly python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir -p "$out"
: >"$out/log.txt"

say() { printf '%s gpu: %s\n' "$(date +%T)" "$*" | tee -a "$out/log.txt"; }

if compgen -G "$wheels/*.whl" >/dev/null; then
	"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl \
		>>"$out/log.txt" 2>&1 || say 'the wheels cannot be installed'
fi
export PYTHONPATH=$PWD:$PWD/tests:$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1

failed=()
part() { # part NAME SECONDS
	say "$1, at most $2 s"
	if ! timeout --kill-after=10 "$2" "$python" -m benchmarks.gpu "$1" --device "$device" --out "$out" \
		>>"$out/log.txt" 2>&1; then
		failed+=("$1")
		say "$1 FAILED"
		tail -n 15 "$out/log.txt"
	fi
}
part machine 60
part consistency 60
part tests 200
part determinism 220
part stall 60
part speed 120
part precision 60
"$python" -m benchmarks.gpu summary --out "$out"

if ((${#failed[@]})); then
	say "failed: ${failed[*]}"
	exit 1
fi
say 'every part passed'
