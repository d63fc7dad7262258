"""Processes of ours in a folder whose names are those of modules that they need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed

from train_cloud import child_process

#: Of the standard library, of what we depend on, and what stands in many people's folders.
NAMES = ("contextlib", "gym", "numpy", "random", "runpy", "signal", "stable_baselines3", "torch", "types", "wandb")
TAKEN = "raise RuntimeError('taken from the folder that it runs in')\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working directory in which every other name is a module."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(TAKEN)
    return folder


def ran(folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("user_code", [False, True])
def test_a_child_does_not_look_where_it_runs(hostile: Path, user_code: bool) -> None:
    done = ran(hostile, *child_process.command("train_cloud", "--version", user_code=user_code))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith("train-cloud ")


def test_python_m_train_cloud_is_the_command(tmp_path: Path) -> None:
    for name in set(NAMES) - {"contextlib", "runpy", "signal", "types"}:  # those `python -m` itself imports
        (tmp_path / f"{name}.py").write_text(TAKEN)
    (tmp_path / "run.yaml").write_text("run_id: x\n")
    done = ran(tmp_path, sys.executable, "-m", "train_cloud", "requirements", "run.yaml")
    assert (done.returncode, "Traceback" in done.stderr) == (64, False), done.stderr


def test_what_was_asked_for_stays_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``PYTHONPATH=.`` makes a user's environment importable; what is ours alone does not look there all the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(tmp_path) in child_process.command("a.module", user_code=True)[2]
    assert f"{str(tmp_path)!r}," not in child_process.command("a.module")[2]


def test_the_code_folder_reaches_what_the_users_code_starts_and_no_child_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    before = list(sys.path)
    with child_process.code_on_path(tmp_path):
        assert sys.path[0] == str(tmp_path)
        assert os.environ["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/elsewhere"
        assert child_process.environment(ONE="1")["PYTHONPATH"] == "/elsewhere"
        assert child_process.environment(ONE="1")["ONE"] == "1"
        with child_process.starting_workers():
            assert os.environ["PYTHONPATH"] == "/elsewhere"
        assert str(tmp_path) in os.environ["PYTHONPATH"]
    assert (sys.path, os.environ["PYTHONPATH"]) == (before, "/elsewhere")
    with child_process.code_on_path(None):
        assert sys.path == before


@pytest.mark.slow
def test_a_run_in_such_a_folder_is_exported_and_evaluated(hostile: Path) -> None:
    """Kept models, the evaluation and the environments' processes, each a child; the code folder has a ``gym/`` too, as
    everybody's who races F1TENTH cars, and names of the standard library's.
    """
    code = hostile / "code"
    (code / "gym" / "f110_gym").mkdir(parents=True)
    (code / "types.py").write_text(TAKEN)
    (code / "mine.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=20)\n"
    )
    (hostile / "run.yaml").write_text(
        "run_id: hostile\nalgorithm: ppo\ntotal_timesteps: 200\nsave_frequency: 50\ncode: {folder: code}\n"
        "environment: {id: Mine-v0, module: mine, vectorization: subproc}\n"
        "hyperparameters: {n_steps: 50, batch_size: 50, n_epochs: 1, policy_kwargs: {net_arch: [8]}}\n"
        "artifacts: {sync_seconds: 0.2}\nevaluation: {every: 200, episodes: 1}\n"
    )
    command = str(Path(sys.executable).with_name("train-cloud"))
    done = ran(hostile, command, "train", "run.yaml", "--store", "store", TRAIN_CLOUD_THREADS="1")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    run = hostile / "store" / "runs" / "hostile"
    artifacts = run / "artifacts"
    assert (artifacts / "final_model.zip").exists()
    keeping = child_process.command("train_cloud.runtime.kept_models", "--final", str(run), "again")
    done = ran(hostile, *keeping)  # as the trainer starts it, whatever it had time for above
    assert (done.returncode, done.stderr) == (0, "")
    for kept in ("again", str(artifacts)):
        assert (hostile / kept / "checkpoints" / "checkpoint_200.zip").exists()
    assert len(json.loads((artifacts / "eval_results.json").read_text())["evaluations"]) == 1


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_is_named_and_tried_again(
    warm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from train_cloud.cli import main

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(
        "import os\n"
        "from stable_baselines3.common.callbacks import BaseCallback\n"
        "import train_cloud\n\n\n"
        "class InTheWay(BaseCallback):\n"
        "    def _on_training_start(self):\n"
        "        there = train_cloud.artifact_folder() / 'checkpoints' / '.checkpoint_50.zip.unfinished'\n"
        "        there.mkdir(parents=True) if 'IN_THE_WAY' in os.environ else there.rmdir()\n\n"
        "    def _on_step(self):\n        return True\n"
    )
    settings: dict[str, Any] = {
        "algorithm": "ppo",
        "total_timesteps": 100,
        "save_frequency": 50,
        "environment": {"id": "CartPole-v1"},
        "hyperparameters": {"n_steps": 50, "batch_size": 50, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}},
        "callbacks": ["mine:InTheWay"],
        "code": {"folder": "code"},
    }
    run = Rehearsed(warm, tmp_path, settings)
    assert run.session(env={"IN_THE_WAY": "1"}) == 0, run.log()
    assert main(["status", "a-run", "--store", run.root]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not exported: the models of 50 timesteps, because" in said
    home = tmp_path / "home"
    assert main(["pull", "a-run", "--store", run.root, "--out", str(home)]) == 0
    assert "exported here, as no session could: checkpoints/checkpoint_50.zip" in capsys.readouterr().out
    assert {path.name for path in (home / "checkpoints").iterdir()} == {"checkpoint_50.zip", "checkpoint_100.zip"}
    (home / "checkpoints" / "checkpoint_50.zip").unlink()
    (home / "checkpoints" / ".checkpoint_50.zip.unfinished").mkdir()
    assert main(["pull", "a-run", "--store", run.root, "--out", str(home)]) == 0
    assert "not exported: the models of 50 timesteps, because IsADirectoryError" in capsys.readouterr().err
    assert run.session(options=("--set", "total_timesteps=150")) == 0, run.log()
    assert main(["status", "a-run", "--store", run.root]) == 0
    assert "not exported" not in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "store" / "runs" / "a-run" / "artifacts" / "checkpoints").iterdir()}
    assert names == {f"checkpoint_{at}.zip" for at in (50, 100, 150)}
