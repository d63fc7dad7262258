"""An environment's trial is remembered as long as the code that it tried is the same, and not a byte longer."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed

from train_cloud.checkpoint import read_manifest
from train_cloud.envs import TRIALS
from train_cloud.envs.known import recall, record, share, shared
from train_cloud.envs.trial import Choice

CHOICE = Choice("pickle", True, "restored in mid-episode")
ASKED = {"environment": {"id": "Own-v0", "kwargs": {"size": 3}}, "code": {"digest": None}, "env": {}}
ENVIRONMENT = """
import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv

class Counted(PendulumEnv):
    def __init__(self, count):
        super().__init__()
        with open(count, "a") as file:
            file.write("made\\n")

gymnasium.register("Counted-v0", Counted, max_episode_steps=200)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """On Python's path: an installed package, the environment's own package, and a module that it needs."""
    (tmp_path / "tools-1.0.dist-info").mkdir()
    (tmp_path / "tools-1.0.dist-info" / "RECORD").write_text("tools.py,sha256=abc,10\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "environment.py").write_text("import own_needed\n")
    (tmp_path / "own_package" / "level_two.py").write_text("walls = 3\n")  # imported when somebody gets there
    (tmp_path / "own_needed.py").write_text("gravity = 9.81\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("own_package.environment")
    yield tmp_path
    for name in ("own_package", "own_package.environment", "own_needed"):
        sys.modules.pop(name, None)


def test_what_was_found_is_found_again(folder: Path) -> None:
    recorded = record(CHOICE, ASKED, ["own_package.environment"])
    assert "own_needed" in recorded["modules"] and "own_package" in recorded["packages"]
    assert recall(recorded, ASKED) == CHOICE
    for name in ("own_package", "own_package.environment", "own_needed"):
        sys.modules.pop(name)
    assert recall(recorded, ASKED) == CHOICE, "in a process that has imported nothing of it yet"
    assert recall(None, ASKED) is None


def test_runs_of_an_experiment_leave_it_to_each_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = record(CHOICE, ASKED, ["own_package.environment"])
    share(recorded)
    assert shared(ASKED) is None, "a run alone has nobody to share it with"
    monkeypatch.setenv(TRIALS, str(folder / "trials"))
    assert shared(ASKED) is None
    share(recorded)
    assert shared(ASKED) == recorded and recall(shared(ASKED), ASKED) == CHOICE
    assert shared({**ASKED, "env": {"A": "b"}}) is None
    (folder / "own_needed.py").write_text("gravity = 1.62\n")
    sys.modules.pop("own_needed")
    assert recall(shared(ASKED), ASKED) is None, "what has changed since is tried again"
    next((folder / "trials").iterdir()).write_text("{")
    assert shared(ASKED) is None


def _write(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("changed = True\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "the environment": _write("own_package/environment.py"),
    "a module of its package that is imported later": _write("own_package/level_two.py"),
    "a new module in its package": _write("own_package/level_three.py"),
    "a module that it needs": _write("own_needed.py"),
    "a module that is gone": lambda folder: (folder / "own_needed.py").unlink(),
    "an installed package": _write("tools-1.0.dist-info/RECORD"),
    "an installed package's version": lambda folder: (folder / "tools-1.0.dist-info").rename(
        folder / "tools-1.1.dist-info"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("imported", [True, False])
def test_what_has_changed_is_tried_again(folder: Path, change: str, imported: bool) -> None:
    recorded = record(CHOICE, ASKED, ["own_package.environment"])
    if not imported:
        for name in ("own_package", "own_package.environment", "own_needed"):
            sys.modules.pop(name)
    CHANGES[change](folder)
    importlib.invalidate_caches()
    assert recall(recorded, ASKED) is None


def test_another_question_or_another_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = record(CHOICE, ASKED, ["own_package.environment"])
    assert recall(recorded, {**ASKED, "env": {"LEVEL": "2"}}) is None
    assert recall({**recorded, "provider": "of a later version"}, ASKED) is None
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    assert recall(recorded, ASKED) is None


def test_a_source_that_cannot_be_found_is_tried_each_time(folder: Path) -> None:
    recorded = record(CHOICE, ASKED, ["nowhere.environment"])
    assert recorded["packages"] == {"nowhere": None}
    assert recall(recorded, ASKED) is None


@pytest.mark.slow
def test_a_resumed_session_makes_the_training_s_environments_alone(warm: Any, tmp_path: Path) -> None:
    code, count = tmp_path / "code", tmp_path / "count"
    code.mkdir()
    (code / "own_environment.py").write_text(ENVIRONMENT)
    run = Rehearsed(
        warm,
        tmp_path,
        {
            "algorithm": "ppo",
            "policy": "MlpPolicy",
            "seed": 1,
            "device": "cpu",
            "total_timesteps": 256,
            "save_frequency": 64,
            "environment": {"id": "Counted-v0", "module": "own_environment", "kwargs": {"count": str(count)}},
            "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 1},
            "callbacks": ["interrupting:InterruptAt"],
            "code": {"folder": str(code)},
        },
    )
    assert run.session("SIGTERM@100", env={TRIALS: ""}) == 75, run.log()
    assert len(count.read_text().splitlines()) >= 3, "two for the trial, one to train"
    count.unlink()
    assert run.session(env={TRIALS: ""}) == 0, run.log()
    assert count.read_text().splitlines() == ["made"]
    head = run.head()
    assert head.manifest is not None and read_manifest(run.store, head.manifest).facts["exact"] is True
