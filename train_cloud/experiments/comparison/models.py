"""What is known of the models that runs have ended with: their size, and how long they take for an action."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from train_cloud import child_process
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.checkpoint.manifest import Manifest
from train_cloud.errors import CorruptCheckpoint, InputError
from train_cloud.experiments.comparison.analysis import level_names
from train_cloud.experiments.comparison.records import Plan, Run
from train_cloud.experiments.comparison.result import Latency
from train_cloud.extras import is_here
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.snapshot import OF_THE_BLOB
from train_cloud.store import open_store

_PARALLEL = 8
_SECONDS = 600
_EXTRACTOR = "features_extractor."


def representatives(plan: Plan, runs: Sequence[Run]) -> list[str]:
    """The first run of each level that has ended: a level's models are alike."""
    found: dict[str, str] = {}
    for name, run in zip(level_names(plan), runs, strict=True):
        if run.finished:
            found.setdefault(name, run.planned.run_id)
    return list(found.values())


def parameters(root: str, run_ids: Sequence[str]) -> dict[str, int]:
    """Run id → numbers that its policy has learned, with those of its value function or critics, without the copies
    that target networks are; of its newest checkpoint. One that cannot be read is left out.
    """

    def one(run_id: str) -> int | None:
        try:
            if (manifest := newest(root, run_id)) is None:
                return None
            names = {name for name in manifest.parts if name.rpartition("/")[2] == "model"}
            parts = restore(open_store(layout.run_url(root, run_id)), manifest, parts=names).parts
        except (CorruptCheckpoint, InputError):  # the latter where it is signed, and the key is not here
            return None
        if "modules" in manifest.facts:  # a loop of the user's own
            names = {name for one in manifest.facts["modules"].values() for name in one["tensors"].values()}
            return sum(array.size for part in parts.values() for name, array in part.arrays.items() if name in names)
        return sum(_learned(part.arrays) for part in parts.values())

    with ThreadPoolExecutor(_PARALLEL) as threads:
        found = dict(zip(run_ids, threads.map(one, run_ids), strict=True))
    return {run_id: number for run_id, number in found.items() if number}


def _learned(arrays: Mapping[str, Any]) -> int:
    """Numbers that are learned. A features extractor that actor and critic share stands in SB3's policies under a name
    for each (``pi_features_extractor``, ``vf_features_extractor``): what is equal within them is one.
    """
    shared: set[tuple[str, bytes]] = set()
    count = 0
    for name, array in arrays.items():
        if not _is_learned(name):
            continue
        _, extractor, within = name.partition(_EXTRACTOR)
        if extractor:
            same = (within, np.asarray(array).tobytes())
            if same in shared:
                continue
            shared.add(same)
        count += array.size
    return count


def _is_learned(name: str) -> bool:
    if name.startswith(OF_THE_BLOB):
        return False
    owner, _, path = name.partition("|")
    # critic_target, actor_target, q_net_target, quantile_net_target: not what a network of the user's calls its own
    return owner == "policy" and not path.split(".")[0].endswith("_target")


def latencies(root: str, run_ids: Sequence[str]) -> dict[str, Latency | str]:
    """Run id → the latency of its newest model on this machine, or why there is none."""
    if not is_here("torch") or not is_here("stable_baselines3"):
        because = "it takes torch and Stable-Baselines3 here: pip install 'train-cloud[sb3]'"
        return dict.fromkeys(run_ids, because)
    try:
        done = subprocess.run(
            child_process.command("train_cloud.experiments.comparison.measure", root, *run_ids, user_code=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_SECONDS,
            env=child_process.environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"),
            text=True,
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(run_ids, f"measuring took more than {_SECONDS} seconds")
    if done.returncode != 0:
        return dict.fromkeys(run_ids, f"measuring ended with exit code {done.returncode}")
    told = json.loads(done.stdout.splitlines()[-1])
    return {run_id: _latency(run_id, told[run_id]) for run_id in run_ids}


def _latency(run_id: str, told: Mapping[str, Any]) -> Latency | str:
    if "because" in told:
        return str(told["because"])
    blocks = np.array(told["blocks"], float)
    low, high = np.percentile(np.median(blocks, axis=1), [2.5, 97.5])
    p50, p99 = np.percentile(blocks, [50, 99])
    return Latency(p50=p50, p99=p99, calls=blocks.size, p50_between=(low, high), run_id=run_id)


def newest(root: str, run_id: str) -> Manifest | None:
    """The manifest of a run's newest checkpoint; None before the first.

    :raises CorruptCheckpoint: head or manifest cannot be read
    """
    store = open_store(layout.run_url(root, run_id))
    head = read_head(store)
    return read_manifest(store, head[0].manifest) if head is not None and head[0].manifest is not None else None
