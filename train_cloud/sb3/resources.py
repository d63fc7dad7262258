"""The device and the memory that a training needs, and whether they are here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from train_cloud.config import RunFile
from train_cloud.errors import InputError
from train_cloud.sb3.algorithms import load_algorithm

#: Where Linux lists what is on the PCI bus (Linux, Documentation/ABI/testing/sysfs-bus-pci).
PCI = Path("/sys/bus/pci/devices")


def gpu_present() -> bool:
    """Whether this machine has a display controller (class 03) of NVIDIA's, whatever torch makes of it."""
    for device in PCI.glob("*") if PCI.is_dir() else ():
        with contextlib.suppress(OSError):
            if (device / "vendor").read_text().strip().lower() == "0x10de":
                kind = device / "class"
                if not kind.exists() or kind.read_text().startswith("0x03"):
                    return True
    return False


def check_device(device: str) -> None:
    """:raises InputError: a GPU is asked for and torch has none; none is asked for and the one here cannot be used"""
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError("device", device, f"torch finds {count} GPUs here: use auto or cpu")
    if device == "auto" and not torch.cuda.is_available() and gpu_present():
        fix = f"torch {torch.__version__} cannot use the NVIDIA GPU here, and would train on the CPU"
        raise InputError("device", device, f"{fix}: mend the driver, install torch with CUDA, or set device: cpu")


def buffer_bytes(model: BaseAlgorithm, transitions: int | None = None) -> int:
    """Memory that the replay or rollout buffer takes once it is full.

    :param transitions: of a buffer of this size instead of the model's own
    """
    learners: Mapping[str, BaseAlgorithm] = getattr(model, "learners", {})
    if learners:
        return sum(buffer_bytes(learner, transitions) for learner in learners.values())
    buffer: Any = getattr(model, "replay_buffer", None) or getattr(model, "rollout_buffer", None)
    if buffer is None:
        return 0
    own = buffer.buffer_size * buffer.n_envs
    arrays = [
        array
        for value in vars(buffer).values()
        for array in (value.values() if isinstance(value, dict) else [value])
        if isinstance(array, np.ndarray) and len(array) in (buffer.buffer_size, own)  # a rollout's are flattened
    ]
    infos = sum(array.size for array in arrays if array.dtype.hasobject)  # hindsight has an empty dict for each row
    total = sum(array.nbytes for array in arrays) + infos * sys.getsizeof({})
    return total if transitions is None else total * transitions // own


def check_memory(run_file: RunFile, buffer: int, there: int, where: str, *, beside: int) -> None:
    """NumPy gets a buffer's memory page by page as it fills: too much of it ends the training after hours, not now.

    :param buffer: bytes of the full buffer
    :param there: bytes that a training may use
    :param beside: bytes that it takes without the buffer
    :raises InputError: ``where`` has less
    """
    if buffer + beside <= there:
        return
    argument = "n_steps" if issubclass(load_algorithm(run_file), OnPolicyAlgorithm) else "buffer_size"
    takes = f"the buffer would take {buffer / 2**30:.1f} GiB, all else {beside / 2**30:.1f}"
    value = run_file.hyperparameters.get(argument, "the default")
    fix = f"{takes}; {where} has {there / 2**30:.1f} for them: give less"
    raise InputError(f"hyperparameters.{argument}", value, fix)
