"""``train-cloud record``: an expert, a run's model and a person play the run file's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import PYTHONPATH
from sessions import Rehearsed

from train_cloud.cli import main
from train_cloud.envs.demonstrations import Demonstrations, read

REACH = {"id": "Reach-v0", "module": "demonstrating"}


def run_file(folder: Path, **changed: Any) -> str:
    values = {
        "run_id": "recorded",
        "algorithm": "ppo",
        "total_timesteps": 100,
        "save_frequency": 50,
        "environment": {"id": "CartPole-v1"},
        **changed,
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(values))
    return str(path)


def record(path: str, out: Path, *options: str) -> int:
    return main(["record", path, "--out", str(out), *options])


def seen(found: Demonstrations) -> np.ndarray[Any, Any]:
    assert isinstance(found.observations, np.ndarray)
    return found.observations


def test_the_same_seed_records_the_same_bytes(tmp_path: Path, capfd: Any) -> None:
    path = run_file(tmp_path)
    options = ("--expert", "demonstrating:Wanders", "--episodes", "3", "--seed")
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        np.random.seed(len(name))
        np.random.random(ord(name))  # what came before makes no difference
        assert record(path, tmp_path / f"{name}.npz", *options, seed) == 0
    a, b, c = ((tmp_path / f"{name}.npz").read_bytes() for name in "abc")
    assert a == b != c
    said = capfd.readouterr().out
    assert "steps, 3 episodes" in said and "on average" in said
    found = read(tmp_path / "a.npz", "it")
    assert found.environment == {"id": "CartPole-v1", "kwargs": {}} and len(found.starts) == 3


def test_what_is_recorded_is_what_the_environment_gives(tmp_path: Path) -> None:
    """With the run file's wrappers, and neither normalised nor stacked; a folder is a Minari dataset."""
    section = {"id": "CartPole-v1", "normalize": True, "frame_stack": 2, "wrappers": ["demonstrating:Doubled"]}
    path = run_file(tmp_path, environment=section)
    for name in ("a.npz", "folder"):
        assert record(path, tmp_path / name, "--expert", "demonstrating:halved", "--episodes", "2") == 0
    file, folder = (read(tmp_path / name, "it") for name in ("a.npz", "folder"))
    assert seen(file).shape[1:] == (4,) and len(file) == 1000, "the expert is good"
    assert np.array_equal(seen(file), seen(folder)) and np.array_equal(file.actions, folder.actions)
    assert file.environment is not None and folder.environment is not None
    assert file.environment["id"] == folder.environment["id"]
    import gymnasium

    first, _ = gymnasium.make("CartPole-v1").reset(seed=0)
    assert np.array_equal(seen(file)[0], 2 * first)


def test_only_successes_are_kept(tmp_path: Path, capfd: Any) -> None:
    section = {**REACH, "kwargs": {"actions": "discrete"}}
    path = run_file(tmp_path, environment=section, evaluation={"success": "length <= 2"})
    assert record(path, tmp_path / "a.npz", "--expert", "demonstrating:reach", "--episodes", "12", "--successful") == 0
    assert "12 episodes of " in capfd.readouterr().out
    assert all(episode.stop - episode.start <= 2 for episode in read(tmp_path / "a.npz", "it").episodes)


@pytest.mark.slow
def test_a_runs_model_plays(warm: Any, tmp_path: Path) -> None:
    values = {
        "algorithm": "sac",
        "seed": 1,
        "total_timesteps": 60,
        "save_frequency": 30,
        "environment": {**REACH, "normalize": {}, "frame_stack": 2},
        "hyperparameters": {"buffer_size": 100, "learning_starts": 10, "policy_kwargs": {"net_arch": [8]}},
    }
    run = Rehearsed(warm, tmp_path / "run", values)
    assert run.session() == 0, run.log()
    for number in (1, 2):
        out = tmp_path / f"{number}.npz"
        options = ("--run", "a-run", "--store", run.root, "--episodes", "5", "--seed", "3")
        assert record(str(run.run_file), out, *options) == 0
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    found = read(tmp_path / "1.npz", "it")
    assert seen(found).shape[1:] == (2,) and len(found.starts) == 5
    assert (found.terminations | found.truncations)[[*(found.starts[1:] - 1), -1]].all(), "whole episodes"
    drawn = ("--run", "a-run", "--store", run.root, "--episodes", "5", "--seed", "3", "--stochastic", "--at", "30")
    assert record(str(run.run_file), tmp_path / "3.npz", *drawn) == 0
    assert not np.array_equal(read(tmp_path / "3.npz", "it").actions[:3], found.actions[:3])


@pytest.mark.slow
@pytest.mark.parametrize(("held", "action"), [("d", 1), (None, 0)])
def test_a_person_plays(tmp_path: Path, held: str | None, action: int) -> None:
    """SDL's dummy driver has no screen; the key is pressed by an event like the one that a keyboard makes."""
    path = run_file(tmp_path, environment={"id": "CartPole-v1", "wrappers": ["demonstrating:Pressed"]})
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"a": 0, "d": 1, "": 0}))
    command = ["record", path, "--keyboard", "--keys", str(keys), "--episodes", "2", "--out", str(tmp_path / "a.npz")]
    variables = {**os.environ, "PYTHONPATH": PYTHONPATH, "SDL_VIDEODRIVER": "dummy", "PRESSED": held or ""}
    done = subprocess.run(
        [sys.executable, "-m", "train_cloud", *command], env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "a.npz", "it")
    assert len(found.starts) == 2 and not np.array_equal(seen(found)[0], seen(found)[found.starts[1]])
    # The first steps may come before the event.
    assert set(found.actions[found.starts[1] :].tolist()) == {action}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "--expert: None: say who plays: one of --run, --expert and --keyboard"),
        (("--keyboard", "--expert", "demonstrating:balance"), "say who plays"),
        (("--expert", "demonstrating:nobody"), "demonstrating has no nobody"),
        (("--expert", "no_such_module:f"), "there is no module no_such_module"),
        (("--expert", "demonstrating:REACHES"), "name a function"),
        (("--expert", "demonstrating:Reach"), "making it with the environment raises|calling it raises"),
        (("--expert", "demonstrating:swing"), "calling it raises ValueError"),
        (("--expert", "demonstrating:wrong"), "it gives 7, which is not in Discrete(2)"),
        (("--expert", "demonstrating:balance", "--successful"), "nothing says whether an episode is one"),
        (("--run", "a-run"), "--store: None: say where the run is kept"),
        (("--run", "a-run", "--store", "."), "it has no checkpoint"),
        (("--keyboard",), "the environment does not say which keys it has"),
        (("--keyboard", "--keys", "none.json"), "--keys: 'none.json': name a JSON file"),
        (("--expert", "demonstrating:balance", "--set", "environment.id=None-v0"), "environment.id: 'None-v0'"),
    ],
)
def test_bad_rows_are_one_line_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, options: tuple[str, ...], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAIN_CLOUD_STORE", raising=False)
    assert record(run_file(tmp_path), tmp_path / "a.npz", *options, "--episodes", "1") == 64
    said = capfd.readouterr().err
    assert any(each in said for each in why.split("|")) and said.count("\n") == 1, said
    assert not (tmp_path / "a.npz").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "a.npz").write_bytes(b"mine")
    assert record(run_file(tmp_path), tmp_path / "a.npz", "--expert", "demonstrating:balance") == 64
    assert "--out" in capfd.readouterr().err and (tmp_path / "a.npz").read_bytes() == b"mine"
    script = {"environment": None, "algorithm": None, "entry_point": "a.script:main"}
    assert record(run_file(tmp_path, **script), tmp_path / "b.npz", "--expert", "demonstrating:balance") == 64
    assert "a script makes its own" in capfd.readouterr().err
