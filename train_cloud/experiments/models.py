"""What is known of the models that runs have ended with: their size, and how long they take for an action."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from train_cloud import child_process
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.checkpoint.manifest import Manifest
from train_cloud.errors import CorruptCheckpoint, ObjectMissing
from train_cloud.experiments.comparison import Latency, level_names
from train_cloud.experiments.records import Plan, Run
from train_cloud.extras import is_here
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.snapshot import OF_THE_BLOB
from train_cloud.store import ObjectStore, open_store

_MODEL = f"{layout.FINAL}model.zip"
_PARALLEL = 8
_SECONDS = 600


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
        store = open_store(layout.run_url(root, run_id))
        try:
            if (manifest := _newest(store)) is None:
                return None
            names = {name for name in manifest.parts if name.rpartition("/")[2] == "model"}
            parts = restore(store, manifest, parts=names).parts
        except CorruptCheckpoint:
            return None
        return sum(array.size for part in parts.values() for name, array in part.arrays.items() if _is_learned(name))

    with ThreadPoolExecutor(_PARALLEL) as threads:
        found = dict(zip(run_ids, threads.map(one, run_ids), strict=True))
    return {run_id: number for run_id, number in found.items() if number}


def _is_learned(name: str) -> bool:
    if name.startswith(OF_THE_BLOB):
        return False
    owner, _, path = name.partition("|")
    return owner == "policy" and "target" not in path


def latencies(root: str, run_ids: Sequence[str]) -> dict[str, Latency | str]:
    """Run id → the latency of its exported final model on this machine, or why there is none."""
    if not is_here("torch") or not is_here("stable_baselines3"):
        because = "it takes torch and Stable-Baselines3 here: pip install 'train-cloud[sb3]'"
        return dict.fromkeys(run_ids, because)
    found: dict[str, Latency | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        wanted = []
        for run_id in run_ids:
            model = _fetch(root, run_id, Path(folder))
            if isinstance(model, str):
                found[run_id] = model
            else:
                wanted.append(model)
        if wanted:
            found |= _measured(wanted, Path(folder))
    return found


def _fetch(root: str, run_id: str, folder: Path) -> dict[str, Any] | str:
    store = open_store(layout.run_url(root, run_id))
    try:
        manifest = _newest(store)
        if manifest is None:
            return "it has no checkpoint"
        if "learners" in manifest.facts:
            return "it has several learners, each with a model of its own"
        body = bytes(store.get(_MODEL).body)
    except ObjectMissing:
        return f"there is no {_MODEL}"
    except CorruptCheckpoint as error:
        return str(error)
    path = folder / f"{run_id}.zip"
    path.write_bytes(body)
    return {
        "name": run_id,
        "path": str(path),
        "algorithm": manifest.facts["algorithm"]["class"],
        "code_folder": manifest.facts.get("code_folder"),
    }


def _measured(wanted: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Latency | str]:
    file = folder / "models.json"
    file.write_text(json.dumps(list(wanted)))
    names = [each["name"] for each in wanted]
    try:
        done = subprocess.run(
            child_process.command("train_cloud.evaluate.latency", str(file), user_code=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_SECONDS,
            env=child_process.environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"),
            text=True,
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(names, f"measuring took more than {_SECONDS} seconds")
    if done.returncode != 0:
        return dict.fromkeys(names, f"measuring ended with exit code {done.returncode}")
    told = json.loads(done.stdout.splitlines()[-1])
    return {name: _latency(name, told[name]) for name in names}


def _latency(run_id: str, told: Mapping[str, Any]) -> Latency | str:
    if "because" in told:
        return str(told["because"])
    blocks = np.array(told["blocks"], float)
    low, high = np.percentile(np.median(blocks, axis=1), [2.5, 97.5])
    p50, p99 = np.percentile(blocks, [50, 99])
    return Latency(p50=p50, p99=p99, calls=blocks.size, p50_between=(low, high), run_id=run_id)


def _newest(store: ObjectStore) -> Manifest | None:
    head = read_head(store)
    return read_manifest(store, head[0].manifest) if head is not None and head[0].manifest is not None else None
