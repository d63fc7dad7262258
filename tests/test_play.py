"""The program that goes with each model, played by somebody who has no train-cloud; and evaluate, by any name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from sessions import Rehearsed

from train_cloud.cli import main
from train_cloud.operations.export import export

pytestmark = pytest.mark.slow

MINE = """\
import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 20}
    observation_space = gymnasium.spaces.Box(-9, 9, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length, render_mode=None):
        self.length, self.render_mode = length, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = np.zeros(2, np.float32)
        self.steps = 0
        return self.at.copy(), {}

    def step(self, action):
        self.at[0] += action - 0.5
        self.steps += 1
        return self.at.copy(), 1.0, self.steps >= self.length, False, {}

    def render(self):
        picture = np.zeros((32, 33, 3), np.uint8)
        picture[:, self.steps] = 255
        return picture


class Doubled(gymnasium.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


gymnasium.register("Walk-v0", "mine:Walk")
"""
RUN: dict[str, Any] = {
    "algorithm": "ppo",
    "total_timesteps": 100,
    "save_frequency": 50,
    "environment": {
        "id": "Walk-v0", "module": "mine", "kwargs": {"length": 7}, "wrappers": ["mine:Doubled"],
        "frame_stack": 2, "normalize": {},
    },
    "hyperparameters": {"n_steps": 50, "batch_size": 50, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}},
    "code": {"folder": "code"},
}  # fmt: skip


@pytest.fixture(scope="module")
def done(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    folder = tmp_path_factory.mktemp("walk")
    (folder / "code").mkdir()
    (folder / "code" / "mine.py").write_text(MINE)
    run = Rehearsed(warm, folder, RUN)
    assert run.session() == 0, run.log()
    return run


@pytest.fixture(scope="module")
def exported(done: Rehearsed) -> Path:
    return export(done.root, "a-run", out=done.folder / "final")


def play(exported: Path, where: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | more
    return subprocess.run(
        [sys.executable, str(exported / "play.py"), *arguments],
        cwd=where, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_an_environment_of_ones_own_is_played_and_filmed(exported: Path, tmp_path: Path) -> None:
    played = play(exported, tmp_path, "2", "--film", "walk.mp4")
    assert played.returncode == 0, played.stderr
    assert played.stdout.splitlines() == [
        "episode 1: return 14.00 in 7 steps",
        "episode 2: return 14.00 in 7 steps",
        "walk.mp4: 15 frames",
    ]
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "walk.mp4"))
    assert next(reader)["size"] == (32, 32)
    frames = list(reader)
    assert len(frames) == 15 and len(set(frames)) > 7


def test_the_code_lies_elsewhere(done: Rehearsed, exported: Path, tmp_path: Path) -> None:
    shutil.move(done.folder / "code", tmp_path / "moved")
    try:
        refused = play(exported, tmp_path)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == (
            "play.py: there is no module mine here: install it, or name the folder of the run's code with --code DIR, "
            f"which lay in {done.folder / 'code'}\n"
        )
        played = play(exported, tmp_path, "1", "--code", "moved")
        assert played.stdout == "episode 1: return 14.00 in 7 steps\n", played.stderr
    finally:
        shutil.move(tmp_path / "moved", done.folder / "code")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--render"], "there is no screen here (DISPLAY is not set): film it with --film FILE.mp4"),
        (["--film", "x.gif"], "--film: give a name that ends in .mp4"),
        (["--film", "nowhere/x.mp4"], "--film: there is no folder"),
        (["--film", "x.mp4"], "a film needs imageio-ffmpeg: pip install imageio-ffmpeg"),
        (["--render", "--film", "x.mp4"], "not allowed with argument"),
        (["--env", "Nothing-v0"], "Name the module that registers it before the id"),
        (["--env", "MountainCar-v0", "three"], "invalid int value"),
    ],
)
def test_what_it_cannot_do_is_one_line(exported: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    more = {}
    if "imageio" in said:
        (tmp_path / "imageio_ffmpeg.py").write_text("raise ModuleNotFoundError('none', name='imageio_ffmpeg')\n")
        more = {"PYTHONPATH": str(tmp_path)}
    done = play(exported, tmp_path, *arguments, **more)
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["id", "url", "file", "plain file"])
def test_evaluate_takes_a_run_by_any_name(
    done: Rehearsed, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = {"id": "a-run", "url": f"{done.root}/runs/a-run", "file": str(done.run_file), "plain file": "my run"}[name]
    if name == "plain file":
        text = done.run_file.read_text().replace("folder: code", f"folder: {done.folder / 'code'}")
        (tmp_path / "my run").write_text(text)
    store = [] if name == "url" else ["--store", done.root]
    assert main(["evaluate", run, *store, "--at", "50", "--set", "evaluation.episodes=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["timesteps"] == 50 and found["overall"]["returns"]["mean"] == 14.0
    assert (tmp_path / "evaluation" / "eval_results.json").exists()


def test_evaluate_without_its_code_says_how(
    done: Rehearsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.move(done.folder / "code", tmp_path / "moved")
    try:
        assert main(["evaluate", "a-run", "--store", done.root]) == 64
        assert "code.folder: 'code': name an existing folder" in capsys.readouterr().err
        assert main(["evaluate", "a-run", "--store", done.root, "--set", "code.folder=moved"]) == 0
    finally:
        shutil.move(tmp_path / "moved", done.folder / "code")
