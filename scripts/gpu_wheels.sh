#!/usr/bin/env bash
# Fills a folder with what train-cloud needs on a machine that has Python, torch and a GPU, and no network:
# scripts/gpu_wheels.sh FOLDER [PYTHON_VERSION]. Beside torch, such images bring NumPy, pytest, TensorBoard and the like.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly folder=${1:?"usage: scripts/gpu_wheels.sh FOLDER [PYTHON_VERSION]"} version=${2:-3.12}
readonly most_mb=60
readonly packages=(
	annotated-types awscrt boto3 botocore farama-notifications filelock gymnasium jmespath obstore psutil pydantic
	rich 'ruamel.yaml' s3transfer sb3-contrib stable-baselines3 typer typing-inspection
)
readonly tags=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)

python=${PYTHON:-.venv/bin/python}
platforms=()
for tag in "${tags[@]}"; do platforms+=(--platform "$tag"); done
mkdir -p "$folder"

wheel() {
	"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
		--python-version "$version" "${platforms[@]}" -d "$folder" "$@"
}
wheel "${packages[@]}"
# pydantic asks for one version of its core.
core=$(unzip -p "$folder"/pydantic-[0-9]*.whl '*/METADATA' | sed -n 's/^Requires-Dist: \(pydantic-core==[^ ;]*\).*/\1/p')
wheel "${core:?"pydantic names no version of its core"}"
# Published as source alone: pure Python, built here.
"$python" -m pip wheel -q --disable-pip-version-check --no-deps -w "$folder" sdnotify

size=$(du -sm "$folder" | cut -f1)
if ((size > most_mb)); then
	printf '%s has %s MB, more than %s\n' "$folder" "$size" "$most_mb" >&2
	exit 1
fi
printf '%s wheels, %s MB, in %s\n' "$(find "$folder" -name '*.whl' | wc -l)" "$size" "$folder"
