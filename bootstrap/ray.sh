#!/bin/bash
# ray.sh STORE: one Python and one virtual environment with the package on a node of a Ray cluster, the same on each: the
# versions that the first node has found are kept in the store, and all later ones install those.
set -Eeuo pipefail
trap 'echo "${0##*/}, line $LINENO: $BASH_COMMAND" >&2' ERR
here=$(dirname "$(readlink -f "$0")")
# lib.sh names things of a run, and here is none.
export TRAIN_CLOUD_STORE=$1 TRAIN_CLOUD_RUN_ID='' TRAIN_CLOUD_CODE_DIGEST=''
# shellcheck source=bootstrap/lib.sh
. "$here/lib.sh"
# shellcheck source=bootstrap/tools.sh
. "$here/tools.sh"
# shellcheck source=bootstrap/versions.env
. "$here/versions.env"

store=$TRAIN_CLOUD_STORE
package=$(dirname "$here")
venv=$opt/venv
device=cpu
[ ! -e /proc/driver/nvidia/version ] || device=cuda
digest=$(cd "$package" && find train_cloud pyproject.toml -name '__pycache__' -prune -o -type f -print0 | LC_ALL=C sort -z |
	xargs -0 sha256sum | sha256sum | cut -c -16)
if [ "$(cat "$venv/installed" 2>/dev/null)" = "$digest $device" ]; then
	say "$venv is complete"
	exit 0
fi
sudo mkdir -p "$opt"
sudo chown "$(id -u):$(id -g)" "$opt"

python=$(command -v python3.11 || true)
if [ -z "$python" ] || ! "$python" -c 'import ensurepip, venv'; then
	python=$opt/python/bin/python3.11
	archive=cpython-$PYTHON_VERSION+$PYTHON_RELEASE-x86_64-unknown-linux-gnu-install_only.tar.gz
	retry 120 fetch "https://github.com/astral-sh/python-build-standalone/releases/download/$PYTHON_RELEASE/${archive/+/%2B}" \
		"$PYTHON_SHA256" "$opt/$archive"
	tar -xzf "$opt/$archive" -C "$opt"
	rm "$opt/$archive"
fi

object=${store#s3://}/ray/$digest-$device.txt
key=${object#*/} bucket=${object%%/*} constraints=$opt/constraints.txt
: >"$constraints"
known=$(retry 120 aws s3api list-objects-v2 --bucket "$bucket" --prefix "$key" --query 'Contents[].[Key]' --output text)
[ "$known" = None ] || retry 60 aws s3 cp --only-show-errors "s3://$object" "$constraints"

rm -rf "$venv"
"$python" -m venv "$venv"
pip_install() { retry 300 "$venv/bin/pip" install --no-input --disable-pip-version-check -q -c "$constraints" "$@"; }
# PyPI's build of torch brings gigabytes of CUDA.
[ "$device" = cuda ] || pip_install --index-url "$TORCH_CPU_INDEX" torch
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cp -R "$package/." "$source" # a build writes into its source
pip_install "${source}[sb3,ray,search,contrib]"
if [ "$known" = None ]; then
	"$venv/bin/pip" freeze --exclude train-cloud >"$constraints"
	# Another node may have been first.
	aws s3api put-object --bucket "$bucket" --key "$key" --if-none-match '*' --body "$constraints" >/dev/null ||
		say "the versions of another node are kept: this one installs them when it is set up again"
fi
printf '%s' "$digest $device" >"$venv/installed"
