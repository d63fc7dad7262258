#!/bin/bash
# The order of a boot, every boot: is this the code, is there a run to serve, then driver, Python, units.
# Run by train-cloud-bootstrap.service.
set -Eeuo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=bootstrap/lib.sh
. "$here/lib.sh"
# shellcheck source=bootstrap/ending.sh
. "$here/ending.sh"
mkdir -p "${log%/*}"
# The log outlives a time-out's SIGTERM, which every process of the unit gets: it has to take down what follows.
exec > >(trap '' TERM && exec tee -a "$log") 2>&1
guard

retry 120 begin_boot
verify_code
leave_if_over
bash "$here/launched.sh" || say "what was launched is not kept beside the checkpoints"
bash "$here/driver.sh" kernel
bash "$here/python.sh"
bash "$here/driver.sh" torch
# Before the training, so that the first notice finds it done.
bash "$here/environment.sh" keep || say "the environment is not kept: the next boot installs again"
bash "$here/units.sh"
retry 60 create "$boot-ready"
say "ready after $SECONDS s"
retry 60 aws s3 cp --only-show-errors "$log" "s3://$bucket/$run/logs/boot-${boot#boots/}.log" || say "its log is not kept"
