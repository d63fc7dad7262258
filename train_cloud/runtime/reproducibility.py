"""What a result depends on besides the code: versions, instruction sets, threads. Recorded, pinned, compared."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from train_cloud import hash_seed
from train_cloud.config import variables

#: Instruction sets are fixed below what the newest machines offer, because a spot group mixes machine types and each
#: set adds up in another order. Sources: PyTorch, "Threading Environment Variables"; Intel oneMKL, "Conditional
#: Numerical Reproducibility"; oneDNN, "CPU Dispatcher Control". A value that the user sets stands.
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
_PACKAGES = ("torch", "numpy", "stable-baselines3", "sb3-contrib", "gymnasium")


def pin_instructions() -> None:
    """Call before torch is imported. Only where the machine has AVX2."""
    if "avx2" in _cpu_flags():
        for name, value in PINNED.items():
            os.environ.setdefault(name, value)


def pin_threads(recorded: Mapping[str, Any] | None, ranks: int = 1) -> None:
    """As many torch threads as the run was begun with: sums are split by thread.

    :param recorded: what :func:`describe` gave in the session that began the run; None in that session
    :param ranks: processes of the run that share this machine's cores
    """
    import torch

    there = max(1, torch.get_num_threads() // ranks)
    threads = recorded["threads"] if recorded else int(variables.number(variables.THREADS, there))
    torch.set_num_threads(threads)


def describe() -> dict[str, Any]:
    """Everything about this process that bit-for-bit equality depends on. Imports torch."""
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        **versions,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{name: os.environ.get(name) for name in PINNED},
        hash_seed.VARIABLE: hash_seed.effective(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions, each in words; empty where a result must be equal."""
    found = [
        f"{name} was {recorded.get(name)}, is {here.get(name)}"
        for name in sorted({*recorded, *here})
        if recorded.get(name) != here.get(name)
    ]
    if recorded.get(hash_seed.VARIABLE) == here.get(hash_seed.VARIABLE) == hash_seed.RANDOM:
        found.append(f"{hash_seed.VARIABLE} is not fixed: the order of sets is another one in each session")
    return found


def lock() -> str:
    """The installed distributions, one ``name==version`` a line, as pip reads them."""
    found = {
        f"{distribution.metadata['Name']}=={distribution.version}"
        for distribution in metadata.distributions()
        if distribution.metadata["Name"]
    }
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return set()  # not Linux: nothing is pinned there
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
