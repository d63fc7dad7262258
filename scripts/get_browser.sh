#!/usr/bin/env bash
# Installs Chromium, in which the tests look at the report page, where it is missing and this is root on Debian or Ubuntu.
# Where it cannot, it says so and goes on: the tests name what is missing.
set -euo pipefail

command -v chromium >/dev/null && exit 0
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
	echo 'browser: not root on Debian or Ubuntu, going on without chromium' >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null; then
	echo 'browser: apt-get failed, going on without chromium' >&2
fi
