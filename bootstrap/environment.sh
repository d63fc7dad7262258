#!/bin/bash
# environment.sh restore DIGEST | keep: what a run's first boot has installed lies in its store for the boots after it.
# The digest says whether it fits (python.sh makes it), the checksum that it is whole: before anything is unpacked.
set -Eeuo pipefail
trap 'echo "${0##*/}, line $LINENO: $BASH_COMMAND" >&2' ERR
here=$(dirname "$0")
# shellcheck source=bootstrap/lib.sh
. "$here/lib.sh"

venv=$opt/venv
work=$(mktemp -d -p "$opt")
trap 'rm -rf "$work"' EXIT

restore() {
	local known
	known=$(retry 60 keys "env/$1/SHA256SUMS")
	[ -n "$known" ] || return 0
	retry 60 aws s3 cp --only-show-errors --recursive "s3://$bucket/$run/env/$1" "$work"
	if ! (cd "$work" && sha256sum --check --strict --quiet SHA256SUMS); then
		# Without its sums it is not there, so that what is installed now is kept in its place.
		retry 60 aws s3api delete-object --bucket "$bucket" --key "$run/env/$1/SHA256SUMS" >/dev/null
		return 1
	fi
	rm -rf "$venv"
	tar -C "$opt" -I zstd -xf "$work/environment.tar.zst"
	say "restored the environment $1"
}

keep() {
	local digest known content=(venv)
	digest=$(cat "$venv/environment" 2>/dev/null) || return 0
	known=$(retry 60 keys "env/$digest/SHA256SUMS")
	[ -z "$known" ] || return 0
	if [ -d "$opt/python" ]; then content+=(python); fi
	tar -C "$opt" --exclude=venv/installed -I 'zstd -1 -T0' -cf "$work/environment.tar.zst" "${content[@]}"
	(cd "$work" && sha256sum environment.tar.zst >SHA256SUMS)
	retry 60 aws s3 cp --only-show-errors "$work/environment.tar.zst" "s3://$bucket/$run/env/$digest/environment.tar.zst"
	create "env/$digest/SHA256SUMS" --body "$work/SHA256SUMS"
	say "kept the environment $digest, $(du -h "$work/environment.tar.zst" | cut -f 1)"
}

"$@"
