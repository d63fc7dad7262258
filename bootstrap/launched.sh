#!/bin/bash
# A copy of what was launched, kept beside the checkpoints: `terraform destroy` removes its own objects, run file and code
# among them, also where the checkpoints stay. Written once; nothing on the worker reads it.
set -Eeuo pipefail
trap 'echo "${0##*/}, line $LINENO: $BASH_COMMAND" >&2' ERR
# shellcheck source=bootstrap/lib.sh
. "$(dirname "$0")/lib.sh"

known=$(retry 60 keys launched/)

# keep NAME FILE
keep() { grep -qxF "launched/$1" <<<"$known" || create "launched/$1" --body "$2"; }

archive=code-$TRAIN_CLOUD_CODE_DIGEST.tar.gz
packed=$(mktemp)
trap 'rm -f "$packed"' EXIT
grep -qxF "launched/$archive" <<<"$known" || tar -C "$opt/code" -czf "$packed" .
keep "$archive" "$packed"
keep overrides.json "$root$TRAIN_CLOUD_OVERRIDES"
keep run.yaml "$root$TRAIN_CLOUD_RUN_FILE"
