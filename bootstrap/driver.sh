#!/bin/bash
# driver.sh kernel | torch: where there is an NVIDIA device, its driver must answer, and later torch must compute on it.
# A run that was to have a GPU and quietly trains on the CPU costs more than one that fails.
set -Eeuo pipefail
trap 'echo "${0##*/}, line $LINENO: $BASH_COMMAND" >&2' ERR
# shellcheck source=bootstrap/lib.sh
. "$(dirname "$0")/lib.sh"

if ! nvidia_present; then
	say "no NVIDIA device: training on the CPU"
	exit 0
fi
case $1 in
kernel)
	if ! command -v nvidia-smi || ! retry 120 nvidia-smi -L; then
		say "there is an NVIDIA device and no driver that answers: use an image with NVIDIA's driver (ami_id)"
		exit 1
	fi
	;;
torch)
	# 2 · 2 · 256 in each of 256 · 256 places.
	"$opt/venv/bin/python" -c '
import torch
a = torch.full((256, 256), 2.0, device="cuda")
assert (a @ a).sum().item() == 2 * 2 * 256 * 256 * 256, "wrong result"
print("torch", torch.__version__, "computes on", torch.cuda.get_device_name())'
	;;
esac
