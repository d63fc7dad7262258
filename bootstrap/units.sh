#!/bin/bash
# The user, the state folder and the units; then they start: the watch before the training.
set -Eeuo pipefail
trap 'echo "${0##*/}, line $LINENO: $BASH_COMMAND" >&2' ERR
here=$(dirname "$0")
# shellcheck source=bootstrap/lib.sh
. "$here/lib.sh"

if ! id -u train-cloud >/dev/null 2>&1; then
	useradd --system --home-dir "$TRAIN_CLOUD_STATE_DIR" --shell /usr/sbin/nologin train-cloud
fi
state=$root$TRAIN_CLOUD_STATE_DIR
mkdir -p "$state/artifacts/tensorboard"
chown train-cloud:train-cloud "$state" "$state/artifacts" "$state/artifacts/tensorboard"

install -d "$root/etc/systemd/system"
install -m 644 "$here"/../systemd/*.service "$root/etc/systemd/system/"
systemctl daemon-reload
[ -z "${TRAIN_CLOUD_LOG_GROUP:-}" ] || systemctl start --no-block train-cloud-logs.service
systemctl start --no-block train-cloud-watch.service
systemctl start --no-block train-cloud-train.service
systemctl start --no-block train-cloud-tensorboard.service
