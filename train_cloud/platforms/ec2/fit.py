"""What an instance type and a folder have room for, before anything is created.

What a type has is AWS's to say (``DescribeInstanceTypes``); a table answers where AWS cannot be asked.

A worker's own disk is no part of it: checkpoints never lie there, and what does, the final model and the scalars, is
small beside any root volume if it fits into memory.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_cloud.errors import CloudError, InputError
from train_cloud.platforms.ec2.api import call, client, region_name

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class InstanceType:
    """What a training finds there.

    :ivar memory_bytes: that it may use
    :ivar gpus: how many; of a type from the table 1 where there are some
    """

    name: str
    memory_bytes: int
    gpus: int


def look_up(names: Sequence[str] | None) -> dict[str, InstanceType]:
    """What instance types have, by name.

    :param names: None: Terraform's, which are in the table; a region may lack some of them
    :raises InputError: the region has no such type, or AWS cannot be asked and the table does not know it
    """
    described = _ask(names) if names else None
    found = {}
    for name in names or DEFAULT_TYPES:
        if described is None:
            found[name] = _from_table(name)
            continue
        if name not in described:
            fix = "name a type that your region has: aws ec2 describe-instance-type-offerings"
            raise InputError("--instance-type", name, fix)
        memory, graphics = described[name]["MemoryInfo"], described[name].get("GpuInfo", {})
        gpus = sum(int(kind["Count"]) for kind in graphics.get("Gpus", ()))
        found[name] = InstanceType(name, int(memory["SizeInMiB"] * 2**20 * _USABLE), gpus)
    return found


def _ask(names: Sequence[str]) -> Mapping[str, Any] | None:
    """None where AWS cannot be asked: no region, no credentials or no right to, no network."""
    if region_name() is None:
        return None
    try:
        return describe(client("ec2"), names)
    except CloudError as error:
        log.debug("instance types are looked up in our table: %s", error)
        return None


def describe(ec2: Any, names: Sequence[str]) -> dict[str, Any]:
    """What AWS says of those of the types that the region has, by name.

    :raises CloudError: no answer
    """
    found: dict[str, Any] = {}
    more: dict[str, str] = {}
    while True:
        # By a filter: a type that the region has not would be an error for all of them.
        filters = [{"Name": "instance-type", "Values": list(names)}]
        answer = call(ec2, "describe_instance_types", Filters=filters, **more) or {}
        found |= {one["InstanceType"]: one for one in answer.get("InstanceTypes", ())}
        if not answer.get("NextToken"):
            return found
        more = {"NextToken": answer["NextToken"]}


def _from_table(name: str) -> InstanceType:
    family, _, size = name.partition(".")
    if family not in _GIB_PER_VCPU or size not in _VCPUS:
        families = ", ".join(_GIB_PER_VCPU)
        raise InputError("--instance-type", name, f"write family.size, of the families {families}")
    memory = int(_GIB_PER_VCPU[family] * _VCPUS[size] * _USABLE * 2**30)
    return InstanceType(name, memory, int(family.startswith(("g", "p"))))


def check_gpus(types: Mapping[str, InstanceType], device: str) -> None:
    """:raises InputError: the run file asks for a GPU, and a type has none"""
    for name, found in types.items():
        if device.startswith("cuda") and not found.gpus:
            raise InputError("--instance-type", name, f"it has no GPU, and the run file says device: {device}")


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
