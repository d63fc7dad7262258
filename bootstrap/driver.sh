#!/bin/bash
# driver.sh kernel | cuda | torch: where there is an NVIDIA device, its driver must answer; it must be new enough for the
# torch that is about to be downloaded, which is gigabytes; and later torch must compute on it. A run that was to have a
# GPU and quietly trains on the CPU costs more than one that fails.
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
cuda)
	# The packages come on the standard input, as `pip freeze` writes them. A driver runs what was built for any minor
	# version of its CUDA's major one ("CUDA Compatibility", NVIDIA); drivers from 590 on say "CUDA UMD Version".
	needed=$(sed -nE 's/^nvidia-cuda-runtime(-cu[0-9]+)?==([0-9]+\.[0-9]+).*/\2/p')
	known=$(nvidia-smi | sed -nE 's/.*CUDA ([A-Z]+ )?Version: *([0-9]+\.[0-9]+).*/\2/p')
	if [ -z "$needed" ] || [ -z "$known" ]; then
		say "whether the driver is new enough shows later: it knows CUDA ${known:-?}, torch needs ${needed:-?}"
	elif ((${known%%.*} < ${needed%%.*})); then
		say "the driver knows CUDA $known and torch needs $needed: use an image with a newer driver (ami_id)"
		exit 1
	else
		say "the driver knows CUDA $known, torch needs $needed"
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
