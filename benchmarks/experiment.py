"""What it costs to train runs side by side: four on two cores, against half of what they take one after the other."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Figure, interval
from benchmarks.worker import ROOT

if TYPE_CHECKING:
    from benchmarks.figures import Sizes

#: Of the ideal: half of what the four runs take one after the other.
LIMIT = 1.1
_CORES = 2
_LAST_SECONDS = 3600.0


def side_by_side(folder: Path, sizes: Sizes, wanted: set[int]) -> Iterator[Figure]:
    """Both ways take turns, each in a store of its own; every process is a new one, as a person would start it."""
    timesteps = sizes.experiment[1]
    path = _write(folder, timesteps)
    _train(folder, "warm-up", path, "--parallel", str(_CORES))  # files are in memory from here on
    together, alone = [], []
    with cores(_CORES):
        for number in range(sizes.experiment[0]):
            together.append(_train(folder, f"together-{number}", path, "--parallel", str(_CORES)))
            alone.append([_train(folder, f"alone-{number}", one) for one in _files(folder, path)])
    ratios = [took / (sum(each) / _CORES) for took, each in zip(together, alone, strict=True)]
    yield Figure(
        9,
        f"PPO on CartPole-v1, {timesteps:,} steps each",
        interval(ratios),
        LIMIT,
        detail={
            "side by side, s": statistics.median(together),
            "one after the other, s": statistics.median(map(sum, alone)),
            "one run, s": statistics.median(took for each in alone for took in each),
        },
    )


def _write(folder: Path, timesteps: int) -> Path:
    run = {
        "run_id": "base",
        "algorithm": "ppo",
        "device": "cpu",
        "total_timesteps": timesteps,
        "save_frequency": max(1, timesteps // 4),
        "environment": {"id": "CartPole-v1"},
        "hyperparameters": {"n_steps": min(2048, timesteps), "policy_kwargs": {"net_arch": [64, 64]}},
        "reproducibility": {"replay": "never"},  # it would take a core that is measured
    }
    experiment = {
        "experiment": "four",
        "base": "base.yaml",
        "vary": {"rate": {"slow": {"hyperparameters.learning_rate": 1e-4}, "fast": {}}},
        "seeds": [1, 2],
    }
    (folder / "base.yaml").write_text(json.dumps(run))
    path = folder / "four.yaml"
    path.write_text(json.dumps(experiment))
    return path


def _files(folder: Path, path: Path) -> list[Path]:
    """The run file of each run, as a person would train it alone."""
    out = folder / "each"
    subprocess.run(
        [sys.executable, "-m", "train_cloud", "expand", str(path), "--out", str(out)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return sorted(out.glob("*.yaml"))


def _train(folder: Path, name: str, path: Path, *options: str) -> float:
    """:return: seconds"""
    places = ["--store", str(folder / name / "store"), "--state-dir", str(folder / name / f"state-{path.stem}")]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "train_cloud", "train", str(path), *places, *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=_LAST_SECONDS,
        check=False,
    )
    took = time.monotonic() - began
    if done.returncode != 0:
        raise RuntimeError(f"{path.name} ended with {done.returncode}: {done.stderr[-3000:]}")
    return took


@contextlib.contextmanager
def cores(count: int) -> Iterator[None]:
    """What is started meanwhile has so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
