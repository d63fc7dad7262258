#!/bin/bash
# One Python 3.11 and one virtual environment with the package in it; from the second boot of a run on with the versions
# of the first, because other versions compute other results. Kept in the store and restored from there (environment.sh).
set -Eeuo pipefail
trap 'echo "${0##*/}, line $LINENO: $BASH_COMMAND" >&2' ERR
here=$(dirname "$0")
# shellcheck source=bootstrap/lib.sh
. "$here/lib.sh"
# shellcheck source=bootstrap/tools.sh
. "$here/tools.sh"
# shellcheck source=bootstrap/versions.env
. "$here/versions.env"

device=cpu
if nvidia_present; then device=cuda; fi
venv=$opt/venv
stamp="$TRAIN_CLOUD_CODE_DIGEST $device"
if [ "$(cat "$venv/installed" 2>/dev/null)" = "$stamp" ]; then
	say "$venv is complete"
	exit 0
fi

python=$(command -v python3.11 || true)
if [ -n "$python" ] && "$python" -c 'import ensurepip, venv'; then
	version=$("$python" -VV)
else
	python=$opt/python/bin/python3.11
	version=$PYTHON_SHA256
fi

# A build writes into its source; the verified code stays as it is.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cp -R "$opt/code/package/." "$source"
lock=env/$TRAIN_CLOUD_CODE_DIGEST-$device.txt
constraints=$source/constraints.txt
: >"$constraints"

# Everything that an installation depends on.
digest() {
	local machine
	machine=$(uname -m) && machine="$machine $(getconf GNU_LIBC_VERSION)"
	printf '%s\n' "$stamp" "$python" "$version" "$machine" | cat - "$constraints" | sha256sum | cut -c -64
}

known=$(retry 60 keys "$lock")
if [ -n "$known" ]; then
	retry 60 aws s3 cp --only-show-errors "s3://$bucket/$run/$lock" "$constraints"
	found=$(digest)
	[ "$device" = cpu ] || bash "$here/driver.sh" cuda <"$constraints"
	if ! bash "$here/environment.sh" restore "$found"; then
		say "what was kept cannot be restored: installing again"
		rm -rf "$venv"
	fi
	if [ "$(cat "$venv/environment" 2>/dev/null)" = "$found" ]; then
		printf '%s' "$stamp" >"$venv/installed"
		exit 0
	fi
fi

if [ "$python" = "$opt/python/bin/python3.11" ] && [ ! -x "$python" ]; then
	archive=cpython-$PYTHON_VERSION+$PYTHON_RELEASE-x86_64-unknown-linux-gnu-install_only.tar.gz
	retry 120 fetch "https://github.com/astral-sh/python-build-standalone/releases/download/$PYTHON_RELEASE/${archive/+/%2B}" \
		"$PYTHON_SHA256" "$opt/$archive"
	tar -xzf "$opt/$archive" -C "$opt"
	rm "$opt/$archive"
fi
say "Python: $("$python" -V) at $python"
rm -rf "$venv"
"$python" -m venv "$venv"

pip_install() { retry 60 "$venv/bin/pip" install --no-input --disable-pip-version-check -q -c "$constraints" "$@"; }
wanted=$(bash "$here/torch.sh" "$source/pyproject.toml")
mapfile -t torch <<<"$wanted"
if [ "$device" = cpu ]; then
	# PyPI's build brings gigabytes of CUDA.
	pip_install --index-url "$TORCH_CPU_INDEX" "${torch[@]}"
elif [ -z "$known" ]; then
	# What pip would install, from the index's descriptions alone.
	pip_install --dry-run --report "$source/report.json" "${torch[@]}"
	python3 -c 'import json, sys
for each in json.load(open(sys.argv[1]))["install"]:
    print("{name}=={version}".format(**each["metadata"]))' "$source/report.json" | bash "$here/driver.sh" cuda
fi
pip_install "${source}[sb3]" "${torch[@]}"
# What the run file asks for: extras of the package, and the user's own requirements. Where it is not in order (64), train
# says so in the run's outcome.
wanted=$("$venv/bin/train-cloud" requirements "$root$TRAIN_CLOUD_RUN_FILE") || [ $? = 64 ]
if [ -n "$wanted" ]; then
	mapfile -t wanted <<<"$wanted"
	pip_install "${wanted[@]}"
fi
if [ -z "$known" ]; then
	"$venv/bin/pip" freeze --exclude train-cloud >"$constraints"
	# Another machine of this run may have been first: then its versions count from the next boot on.
	create "$lock" --body "$constraints" || retry 60 keys "$lock"
fi
digest >"$venv/environment"
printf '%s' "$stamp" >"$venv/installed"
