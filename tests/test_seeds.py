"""Several seeds of one run file: a run each, one after the other, and how the group stands."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from train_cloud.cli import main
from train_cloud.config import load_run_file
from train_cloud.report.experiment import experiments
from train_cloud.report.status import RunStatus, run_status
from train_cloud.run.cost import cost
from train_cloud.runtime.heartbeat import read_timesteps


def write(folder: Path, **changed: Any) -> Path:
    values: dict[str, Any] = {
        "run_id": "sweep",
        "algorithm": "sac",
        "total_timesteps": 420,
        "save_frequency": 210,
        "seeds": [1, 2],
        "environment": {"id": "Pendulum-v1"},
        "hyperparameters": {"learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}},
        **changed,
    }
    path = folder / "sweep.yaml"
    YAML().dump(values, path)
    return path


def test_expand_writes_a_run_file_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "code").mkdir()
    path = write(tmp_path, code={"folder": "code"}, experiment="gamma")
    assert main(["expand", str(path), "--out", str(tmp_path / "each"), "--set", "total_timesteps=500"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"each/sweep-s{seed}.yaml") for seed in (1, 2)]
    one = load_run_file(tmp_path / "each/sweep-s2.yaml")
    assert (one.run_id, one.seed, one.seeds, one.experiment) == ("sweep-s2", 2, None, "gamma")
    assert (one.total_timesteps, one.code.folder) == (500, tmp_path / "code")
    assert main(["expand", str(path), "--out", str(tmp_path / "each"), "--set", "total_timesteps=500"]) == 0
    assert main(["expand", str(path), "--out", str(tmp_path / "each")]) == 64
    assert main(["expand", str(tmp_path / "each/sweep-s2.yaml")]) == 64
    assert "seeds: None: add it" in capsys.readouterr().err


def test_validate_and_rehearse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    assert main(["validate", str(path)]) == 0
    assert "seeds         1, 2: a run for each" in capsys.readouterr().out
    assert main(["rehearse", str(path), "--out", str(tmp_path / "out")]) == 64
    assert "seeds: [1, 2]: several runs: train-cloud expand" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_worker_trains_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = write(tmp_path)
    monkeypatch.setenv("TRAIN_CLOUD_AUTOSCALING_GROUP", "group")
    monkeypatch.setenv("TRAIN_CLOUD_RUN_ID", "sweep")
    store = str(tmp_path / "store")
    assert main(["train", str(path), "--store", store, "--state-dir", str(tmp_path / "state")]) == 64
    assert "train-cloud expand" in capsys.readouterr().err
    found = run_status(store, "sweep")
    assert found.state == "failed" and "train-cloud expand" in str(found.reason)


@pytest.mark.slow
def test_one_after_the_other_and_on_after_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, store, state = write(tmp_path), tmp_path / "store", tmp_path / "state"
    command = [
        sys.executable,
        "-m",
        "train_cloud",
        "train",
        str(path),
        "--store",
        str(store),
        "--state-dir",
        str(state),
    ]
    environment = {**os.environ, "TRAIN_CLOUD_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (state / "sweep-s1/timesteps").exists() and read_timesteps(state / "sweep-s1") > 20:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    stopped = run_status(str(store), "sweep-s1")
    assert (stopped.state, stopped.experiment) == ("interrupted", "sweep") and stopped.committed_timesteps > 0
    assert main(["status", str(path), "--store", str(store), "--json"]) == 0
    assert [run["run_id"] for run in json.loads(capsys.readouterr().out)] == ["sweep-s1"]

    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    runs = [run_status(str(store), f"sweep-s{seed}") for seed in (1, 2)]
    assert [run.state for run in runs] == ["completed", "completed"]
    (group,) = experiments(runs)
    assert (group.completed, list(group.returns)) == (2, ["sweep-s1", "sweep-s2"])
    assert main(["status", "--store", str(store)]) == 0
    assert "experiment sweep: 2 of 2 runs completed, training return -" in capsys.readouterr().out
    assert main(["status", str(path), "--store", str(store)]) == 0
    assert "± " in capsys.readouterr().out
    assert main(["export", str(path), "--store", str(store)]) == 64
    assert "name one of its runs" in capsys.readouterr().err

    again = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert again.returncode == 0
    assert again.stderr.count("is completed") == 2


def status(run_id: str, experiment: str | None, reached: float | None, state: str = "completed") -> RunStatus:
    nothing = {name: None for name, field in RunStatus.model_fields.items() if field.is_required()}
    values = {"url": "", "timesteps": 1, "committed_timesteps": 1, "attempts": 0, "sessions": [], "cost": cost([])}
    values |= {"interruptions": 0, "repeated_timesteps": 0}
    return RunStatus.model_validate(
        {**nothing, **values, "run_id": run_id, "experiment": experiment, "episode_return": reached, "state": state}
    )


def test_mean_and_interval() -> None:
    values = [10.0, 12.0, 17.0]
    runs = [status(f"a-s{seed}", "a", value) for seed, value in enumerate(values)]
    runs += [status("b-s1", "b", 5.0), status("b-s2", "b", None, "running"), status("alone", None, 3.0)]
    first, second = experiments(runs)
    # scipy.stats.t.ppf(0.975, 2) is 4.302653
    assert (first.experiment, first.mean) == ("a", 13.0)
    assert first.interval == pytest.approx(4.302653 * statistics.stdev(values) / 3**0.5, rel=1e-4)
    assert (second.completed, second.mean, second.interval) == (1, 5.0, None)
    many = [status(f"c-s{seed}", "c", float(seed)) for seed in range(100)]
    (third,) = experiments(many)
    assert third.interval == pytest.approx(1.96 * statistics.stdev(range(100)) / 10, rel=1e-3)


def test_levels_have_no_common_mean() -> None:
    (group,) = experiments([status(f"x-{level}-s1", "x", 1.0) for level in ("slow", "fast")])
    assert (group.mean, group.interval, len(group.returns)) == (None, None, 2)
