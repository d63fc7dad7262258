#!/bin/bash
# torch.sh PYPROJECT: the requirements on torch, one a line: the package's, and the user's own, which count from the first
# download on, because it is gigabytes.
set -Eeuo pipefail
trap 'echo "${0##*/}, line $LINENO: $BASH_COMMAND" >&2' ERR
# shellcheck source=bootstrap/lib.sh
. "$(dirname "$0")/lib.sh"

sed -nE 's/^ *"(torch[^"]*)",?$/\1/p' "$1"
own=$opt/code/user/requirements.txt
if [ -e "$own" ]; then sed -nE '/ --/d; s/^(torch *[=<>~!][^#\\]*[^# \\]).*/\1/p' "$own"; fi
