"""What an instance type and a folder have room for, before anything is created.

A worker's own disk is no part of it: checkpoints never lie there, and what does, the final model and the scalars, is
small beside any root volume if it fits into memory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from train_cloud.errors import InputError

#: Terraform's ``instance_types``.
DEFAULT_TYPES = ("g6.xlarge", "g5.xlarge", "g4dn.xlarge")
#: GiB of memory per vCPU, the same for all sizes of a family: Amazon EC2 Instance Types, "Specifications for Amazon EC2
#: accelerated computing instances", and the same for general purpose, compute and memory optimized ones.
_GIB_PER_VCPU = {
    **dict.fromkeys(("g4dn", "g5", "g6"), 4.0),
    **dict.fromkeys(("g6e", "gr6"), 8.0),
    "p3": 7.625,
    "p4d": 12.0,
    **dict.fromkeys(("c5", "c5a", "c6a", "c6i", "c7a", "c7i"), 2.0),
    **dict.fromkeys(("m5", "m5a", "m6a", "m6i", "m7a", "m7i"), 4.0),
    **dict.fromkeys(("r5", "r5a", "r6a", "r6i", "r7a", "r7i"), 8.0),
}
_VCPUS = {"large": 2, **{f"{n}xlarge": 4 * n for n in (2, 4, 6, 8, 9, 12, 16, 18, 24, 32, 48)}, "xlarge": 4}
#: What the kernel, the hypervisor and the system's own services leave of the nominal memory.
_USABLE = 0.94


def memory_bytes(instance_type: str) -> int:
    """What a training may use of an instance's memory.

    :raises InputError: not known here
    """
    family, _, size = instance_type.partition(".")
    if family not in _GIB_PER_VCPU or size not in _VCPUS:
        families = ", ".join(_GIB_PER_VCPU)
        raise InputError("--instance-type", instance_type, f"write family.size, of the families {families}")
    return int(_GIB_PER_VCPU[family] * _VCPUS[size] * _USABLE * 2**30)


def check_store(store: str, needed: int) -> None:
    """:raises InputError: the store is a folder, which need not exist yet, on a disk with less room"""
    if "://" in store and not store.startswith("file://"):
        return
    path = Path(store.removeprefix("file://")).absolute()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if needed > free:
        fix = (
            f"checkpoints would take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free: name a larger disk or s3://"
        )
        raise InputError("--store", store, fix)
