"""``hardware: auto``: what is chosen for a machine, and that a run keeps it wherever it goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed

from train_cloud.checkpoint import read_manifest
from train_cloud.cli import main
from train_cloud.config import RunFile, parse_run_file
from train_cloud.errors import InputError
from train_cloud.sb3.build import build_model
from train_cloud.sb3.compare import differences
from train_cloud.sb3.hardware import AMP, Machine, choose, completed

SMALL, LARGE, GPU = Machine(2, None), Machine(64, None), Machine(16, "NVIDIA L4")


def run_file(algorithm: str = "ppo", environment: dict[str, Any] | None = None, **hyperparameters: Any) -> RunFile:
    return parse_run_file(
        {
            "run_id": "a-run",
            "algorithm": algorithm,
            "device": "cpu",
            "hardware": "auto",
            "total_timesteps": 1000,
            "save_frequency": 1000,
            "environment": {"id": "CartPole-v1", **(environment or {})},
            "hyperparameters": hyperparameters,
        }
    )


SUBPROC = {"vectorization": "subproc"}


@pytest.mark.parametrize(
    ("given", "machine", "n_envs", "batch_size"),
    [
        (run_file(), SMALL, 8, 512),
        (run_file(), LARGE, 8, 512),
        (run_file(environment=SUBPROC), SMALL, 2, 128),
        (run_file(environment=SUBPROC), LARGE, 32, 2048),
        (run_file(environment=SUBPROC), Machine(2, "NVIDIA L4"), 2, 512),
        (run_file(environment={"n_envs": 3}), LARGE, 3, 192),
        (run_file(batch_size=100), LARGE, 8, 100),
        (run_file(n_steps=10), LARGE, 8, 80),
        (run_file(n_steps=2048, environment={**SUBPROC, "n_envs": 100}), GPU, 100, 4096),
        (run_file(n_steps=30, environment={"n_envs": 7}), GPU, 7, 210),
        (run_file("a2c"), LARGE, 8, None),
        (run_file("dqn"), LARGE, 1, 32),
        (run_file("dqn"), GPU, 1, 512),
        (run_file("dqn", batch_size=64), GPU, 1, 64),
        (run_file("sac", gradient_steps=-1), SMALL, 8, 256),
        (run_file("sac", environment=SUBPROC, gradient_steps=-1), GPU, 16, 512),
        (run_file("sac", gradient_steps=-1, train_freq=[1, "episode"]), SMALL, 1, 256),
        (run_file("sac_multiagent", gradient_steps=-1), SMALL, 1, 256),
    ],
)
def test_chosen_for_a_machine(given: RunFile, machine: Machine, n_envs: int, batch_size: int | None) -> None:
    chosen = choose(given, machine)
    assert (chosen["n_envs"], chosen["batch_size"], chosen["amp"]) == (n_envs, batch_size, False)
    assert set(chosen["because"]) == {"n_envs", "batch_size", "amp"} and chosen["because"]["amp"] == AMP
    assert json.loads(json.dumps(chosen)) == chosen
    if batch_size is not None and "n_steps" in given.hyperparameters and "batch_size" not in given.hyperparameters:
        assert given.hyperparameters["n_steps"] * n_envs % batch_size == 0


def test_what_is_known_is_not_chosen_again_and_identity_stays() -> None:
    given = run_file(environment=SUBPROC)
    known = choose(given, Machine(5, None))
    found = completed(given, known)
    assert found.environment is not None and found.environment.n_envs == 5
    assert found.hyperparameters["batch_size"] == 320 and found.chosen == known
    assert completed(found) is found
    assert found.identity() == given.identity()
    plain = parse_run_file({**given.model_dump(mode="json"), "hardware": None})
    assert completed(plain, known) is plain and plain.identity() != given.identity()


def test_a_model_is_built_with_it() -> None:
    built = build_model(run_file(n_steps=16))
    try:
        model: Any = built.model
        assert (model.n_envs, model.batch_size) == (8, 128)
    finally:
        built.close()


def test_a_script_decides_itself() -> None:
    values = {"run_id": "a-run", "entry_point": "a:main", "total_timesteps": 100, "save_frequency": 100}
    with pytest.raises(InputError) as caught:
        parse_run_file({**values, "hardware": "auto"})
    assert caught.value.field == "hardware"
    with pytest.raises(InputError) as caught:
        parse_run_file({**values, "hardware": "all"})
    assert caught.value.field == "hardware" and "auto" in caught.value.fix


def test_validate_says_what_it_would_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run_file(n_steps=32).model_dump(mode="json", exclude_defaults=True)))
    assert main(["validate", str(path)]) == 0
    assert "n_envs 8: they share one process" in (said := capsys.readouterr().out)
    assert "batch_size 256: 64 for each of 8" in said


@pytest.fixture
def one_core(warm: Any) -> Iterator[Any]:
    """From here on sessions begin on a machine of one core."""
    multiprocessing.forkserver.ensure_running()
    pid = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    before = os.sched_getaffinity(pid)

    def narrow() -> None:
        os.sched_setaffinity(pid, {min(before)})

    yield narrow
    os.sched_setaffinity(pid, before)


@pytest.mark.slow
def test_on_another_machine_it_goes_on_with_what_was_chosen(
    warm: Any, one_core: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {
        "algorithm": "ppo",
        "seed": 3,
        "device": "cpu",
        "hardware": "auto",
        "total_timesteps": 160,
        "save_frequency": 32,
        "environment": {"id": "CartPole-v1", "vectorization": "subproc"},
        "hyperparameters": {"n_steps": 16, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}},
        "callbacks": ["interrupting:InterruptAt"],
    }
    cores = len(os.sched_getaffinity(0))
    twin = Rehearsed(warm, tmp_path / "twin", run)
    assert twin.session() == 0, twin.log()
    moved = Rehearsed(warm, tmp_path / "moved", run)
    assert moved.session("SIGKILL@20") == -9, moved.log()
    assert moved.head().manifest is None, "killed before its first commit"
    one_core()
    assert moved.session("SIGTERM@70") == 75, moved.log()
    assert moved.session() == 0, moved.log()
    assert differences(moved.final(), twin.final()) == []
    assert moved.scalars() == twin.scalars()
    manifest = moved.head().manifest
    assert manifest is not None
    chosen = read_manifest(moved.store, manifest).facts["hardware"]
    assert (chosen["n_envs"], chosen["cores"], chosen["gpu"]) == (min(32, cores), cores, None)
    assert main(["status", "a-run", "--store", moved.root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hardware"] == chosen
    assert main(["status", "a-run", "--store", moved.root]) == 0
    assert f"n_envs {chosen['n_envs']}, batch_size {chosen['batch_size']}" in capsys.readouterr().out
    assert main(["validate", str(moved.run_file), "--store", moved.root, "--set", "total_timesteps=500"]) == 0
    assert f"n_envs {chosen['n_envs']}:" in capsys.readouterr().out
