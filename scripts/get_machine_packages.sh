#!/usr/bin/env bash
# Installs the Debian packages that `train-cloud rehearse --machine` and its tests need, where they are missing and this is root.
# Where it cannot, it says so and goes on: the rehearsal and its tests name what is missing.
set -euo pipefail
readonly needed=(systemd-container mmdebstrap dnsmasq-base iproute2 zstd podman runc libegl1 libgl1) # the last two: MuJoCo's pictures

missing=()
for package in "${needed[@]}"; do
	dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
((${#missing[@]})) || exit 0
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
	echo "machine packages: not root on Debian or Ubuntu, going on without ${missing[*]}" >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null; then
	echo "machine packages: apt-get failed, going on without ${missing[*]}" >&2
fi
