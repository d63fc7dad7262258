"""Replays beside the training: a clean run is proved, hidden state is found, and nobody notices that there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from sessions import Rehearsed
from test_prove import line

from train_cloud.report.status import exactness_in_words, run_status
from train_cloud.run.session import read_sessions
from train_cloud.runtime import replay
from train_cloud.runtime.replay import cores_here, memory_left, no_room

OFF = {"learning_starts": 40, "batch_size": 16, "buffer_size": 400, "policy_kwargs": {"net_arch": [8]}}
ALWAYS: dict[str, Any] = {"reproducibility": {"replay": "always"}, "callbacks": ["hidden:WaitsForReplay"]}
CONTINUOUS = {"id": "Line-v0", "module": "hidden", "kwargs": {"continuous": True}, "state": "pickle"}
CLEAN: dict[str, dict[str, Any]] = {
    "sac": {**line(**ALWAYS), "algorithm": "sac", "environment": CONTINUOUS, "hyperparameters": OFF},
    "dqn": {**line(**ALWAYS), "algorithm": "dqn", "hyperparameters": OFF},
    "several agents": {
        **line(**ALWAYS),
        "algorithm": "sac_multiagent",
        "environment": {"id": "several_agents:walkers"},
        "hyperparameters": OFF,
    },
    "ppo in a script": {
        **{"seed": 3, "total_timesteps": 600, "save_frequency": 150, "entry_point": "hidden:script"},
        "reproducibility": {"replay": "always"},
    },
}


def train(run: Rehearsed, interrupt: str = "", options: tuple[str, ...] = (), **env: str) -> int:
    """A session with callbacks that wait for a commit."""
    head = run.folder / "store" / "runs" / "a-run" / "head.json"
    return run.session(interrupt, options=options, env={"HEAD_FILE": str(head), **env})


@pytest.mark.slow
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_run_is_proved(warm: Any, tmp_path: Path, name: str) -> None:
    run = Rehearsed(warm, tmp_path / "run", CLEAN[name])
    assert train(run) == 0, run.log()
    progress = read_sessions(run.store)[0].progress
    assert progress is not None and progress["exact_evidence"] == "proved", run.log()
    assert progress["replay"].startswith("steps 15") and progress["replay"].endswith("the same in a fresh process")
    facts = run.final().facts
    assert (facts["exact"], facts["exact_evidence"]) == (True, "proved")
    assert 150 <= facts["proof"]["from"] < 160  # DQN trains at every fourth step
    assert exactness_in_words(run_status(run.root, "a-run")) == "proved"
    assert not (run.folder / "state" / "replay").exists()


@pytest.mark.slow
def test_a_proof_holds_for_the_next_session_on_the_same_kind_of_machine(warm: Any, tmp_path: Path) -> None:
    run = Rehearsed(
        warm, tmp_path, line(**{**ALWAYS, "callbacks": ["hidden:WaitsForReplay", "interrupting:InterruptAt"]})
    )
    assert train(run, "SIGTERM@505") == 75, run.log()
    assert train(run, options=("--set", "total_timesteps=900")) == 0, run.log()
    said = [(record.progress or {})["replay"] for record in read_sessions(run.store)]
    assert said[0].startswith("steps 150 to ") and said[1] == "proved in session 1", said
    assert run.final().facts["exact_evidence"] == "proved"


@pytest.mark.slow
def test_a_replay_finds_what_the_process_alone_has(warm: Any, tmp_path: Path) -> None:
    run = Rehearsed(warm, tmp_path / "run", line("count", **ALWAYS))
    assert train(run) == 0, run.log()
    status = run_status(run.root, "a-run")
    assert (status.exact, status.exact_evidence) == (False, "no")
    words = exactness_in_words(status)
    assert words.startswith("no, because session 1: since step ")
    assert words.endswith(
        "the environment's reward differs from what a fresh process computed from the checkpoint at 150"
    )
    facts = run.final().facts
    assert not facts["exact"] and facts["exact_evidence"] == "no" and "proof" not in facts


@pytest.mark.slow
def test_a_replay_writes_nothing_elsewhere_and_says_what_it_would_have_written(warm: Any, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere.txt"
    run = Rehearsed(
        warm, tmp_path / "run", line(**{**ALWAYS, "callbacks": ["hidden:WritesOutside", "hidden:WaitsForReplay"]})
    )
    assert train(run, WRITES_TO=str(out)) == 0, run.log()
    progress = read_sessions(run.store)[0].progress
    assert progress is not None and progress["replay"] == f"none, because the run's code writes to {out}"
    assert (progress["exact"], progress["exact_evidence"]) == (True, "not contradicted")
    written = out.read_text().split()
    assert len(written) == 12 and len({*written}) == 1, "of the training alone"


@pytest.mark.slow
def test_a_stop_ends_the_replay_at_once(warm: Any, tmp_path: Path) -> None:
    run = Rehearsed(warm, tmp_path / "run", line(**ALWAYS))
    digests = run.folder / "state" / "replay" / "digests"
    assert train(run, STOP_IN_REPLAY=str(digests)) == 75, run.log()
    end = read_sessions(run.store)[0].end
    assert end is not None and end["ended_by"] == "signal"
    left = [
        process.pid for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])
    ]
    assert not left and not digests.exists()


def test_it_takes_an_idle_core_and_memory_for_a_second_training(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < cores_here() <= (os.cpu_count() or 1) and 0 < memory_left() <= psutil.virtual_memory().total
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.3, 0.3, 0.3))
    assert no_room(10_000, 0) == f"there is no core beside torch's 10000: {cores_here():g} in all"
    assert no_room(10_000, 4) == f"there is no core beside 10000 of torch and 4 environments: {cores_here():g} in all"
    assert no_room(0, 0) is None
    monkeypatch.setattr(psutil, "getloadavg", lambda: (500.0, 1.0, 1.0))
    assert no_room(0, 0) == f"no core is idle: load 500.0 on {cores_here():g}"
    assert no_room(0, 0, cores=False) is None
    monkeypatch.setattr(replay, "_SPARE_BYTES", 1 << 60)
    told = no_room(0, 0, cores=False)
    assert told is not None and told.startswith("memory does not hold a second training: ")


def test_the_folder_of_a_replay_shows_the_working_folder(tmp_path: Path) -> None:
    folder, work = tmp_path / "folder", tmp_path / "folder" / ".train-cloud" / "a-run" / "replay" / "work"
    for name, size in (("small/deep/one", 10), ("large/two", 100 << 20), ("three", 10), ("store/runs/a", 5)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    (folder / "link").symlink_to("three")
    work.parent.mkdir(parents=True)
    replay._lay_out(folder, work, (folder / ".train-cloud" / "a-run", folder / "store"))
    assert sorted(path.name for path in work.iterdir()) == ["large", "link", "small", "three"]
    assert [path.name for path in sorted(work.iterdir()) if path.is_symlink()] == ["large", "link"]
    assert (work / "large" / "two").stat().st_size == 100 << 20 and (work / "small" / "deep" / "one").is_file()


GUARDED = """
import os, sys
from pathlib import Path
from train_cloud.runtime.replay import _Guard
own, other = map(Path, sys.argv[1:])
guard = _Guard(own)
sys.addaudithook(guard)
(own / "a").write_text("fine"); (own / "d").mkdir(); (own / "a").rename(own / "b"); (own / "b").unlink()
open(os.devnull, "w").close(); other.read_text()
for act in (lambda: other.write_text("x"), lambda: other.unlink(), lambda: other.with_name("new").mkdir(),
            lambda: other.rename(own / "c"), lambda: os.open(other, os.O_RDWR), lambda: other.open("a")):
    try:
        act()
    except PermissionError:
        continue
    sys.exit("written")
print(guard.refused)
"""


def test_a_guarded_process_changes_nothing_elsewhere(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("as it was")
    (tmp_path / "own").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, str(tmp_path / "own"), str(other)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(other)), done.stderr
    assert other.read_text() == "as it was" and sorted(path.name for path in tmp_path.iterdir()) == ["other", "own"]
