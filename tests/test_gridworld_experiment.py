"""The example's experiment, made small: trained, killed with all its processes, gone on with, and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from until import until

from train_cloud.config import load_experiment
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.run.session import read_sessions
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.store import open_store

FILE = Path(__file__).parents[1] / "examples" / "gridworld" / "experiment.yaml"
TOTAL = 512
SMALL = [
    "vary.architecture=[mlp_baseline, gcn]",
    "seeds=[1, 2]",
    f"total_timesteps={TOTAL}",
    "save_frequency=128",
    "environment.n_envs=2",
    "hyperparameters.n_steps=64",
    "hyperparameters.batch_size=64",
    "hyperparameters.policy_kwargs={net_arch: [16]}",
    "evaluation.every=null",
    "evaluation.episodes=1",
    "evaluation.max_steps=20",
    "evaluation.video=null",
    "preservation.last=1",
    "reproducibility.replay=never",
    "vary.pretraining.with_pretrain.pretraining.epochs=2",
]
IDS = [cell.run_id for cell in load_experiment(FILE, SMALL).cells]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def command(verb: str, folder: Path, *more: str) -> list[str]:
    changes = [word for change in SMALL for word in ("--set", change)]
    return [sys.executable, "-m", "train_cloud", verb, str(FILE), "--store", str(folder / "store"), *changes, *more]


def train(folder: Path) -> subprocess.Popen[bytes]:
    words = command("train", folder, "--parallel", "2", "--state-dir", str(folder / "state"))
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, env={**os.environ, "TRAIN_CLOUD_THREADS": "1"})


def results(folder: Path) -> dict[str, Any]:
    """``all_results.json`` but for its times."""
    found: dict[str, Any] = json.loads((folder / "store/experiments/grid/all_results.json").read_text())
    for entry in (found, *found["runs"].values()):
        for name in ("at", "created_at", "updated_at"):
            entry.pop(name, None)
    return found


def test_killed_with_all_its_processes_it_ends_and_compares_as_without(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert train(whole).wait(600) == 0

    process = train(killed)

    def amid() -> bool:
        """One run is over, and another one is in the middle."""
        assert process.poll() is None, "over before it was killed"
        heads = [read_head(open_store(layout.run_url(str(killed / "store"), run_id))) for run_id in IDS]
        over = sum(head is not None and head[0].outcome is not None for head in heads)
        states = [killed / "state" / run_id for run_id in IDS]
        return over >= 1 and any((state / "train.lock").exists() and 0 < _reached(state) < TOTAL for state in states)

    until(amid, "one run is over, and another one is in the middle")
    everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in everything:
        each.kill()
    psutil.wait_procs(everything, timeout=60)
    process.wait()
    assert train(killed).wait(600) == 0
    assert results(killed) == results(whole)
    assert set(results(killed)["runs"]) == set(IDS)
    records = [read_sessions(open_store(layout.run_url(str(killed / "store"), run_id))) for run_id in IDS]
    assert min(map(len, records)) == 1 < max(map(len, records)), "what was over was not begun again"

    out = tmp_path / "page"
    subprocess.run(command("compare", killed, "--out", str(out)), check=True, stdin=subprocess.DEVNULL, timeout=300)
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["verdict"]["winner"] is None, "two seeds name none"
    assert {"index.html", "runs.csv", "decision.png"} <= {path.name for path in out.iterdir()}


def _reached(state: Path) -> int:
    try:
        return read_timesteps(state)
    except OSError:
        return 0
