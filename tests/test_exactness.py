"""An interrupted run ends bit for bit where the uninterrupted one ends: real processes, real signals."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from train_cloud.artifacts.tensorboard import read_scalars
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.learn.compare import differences
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.run.session import read_sessions
from train_cloud.snapshot import Snapshot
from train_cloud.store import open_store
from train_cloud.worker.machine import pin_instructions

pytestmark = pytest.mark.slow

SMALL = {"learning_starts": 100, "batch_size": 32, "policy_kwargs": {"net_arch": [16, 16]}, "buffer_size": 5000}
PENDULUM = {"id": "Pendulum-v1"}


def sac(total: int = 700, save: int = 150, environment: dict[str, Any] | None = None, **hyperparameters: Any) -> Any:
    return {
        "algorithm": "sac",
        "seed": 3,
        "total_timesteps": total,
        "save_frequency": save,
        "environment": {**PENDULUM, **(environment or {})},
        "hyperparameters": {**SMALL, **hyperparameters},
        "callbacks": ["interrupting:InterruptAt"],
    }


RUNS: dict[str, dict[str, Any]] = {
    "plain": sac(),
    "ring laps": sac(total=900, buffer_size=200),
    "before learning starts": sac(learning_starts=600),
    "schedule": sac(learning_rate="lin_1e-3"),
    "two environments, normalised, gSDE": sac(
        environment={"n_envs": 2, "normalize": {}}, use_sde=True, sde_sample_freq=8, train_freq=16, gradient_steps=4
    ),
    "episodes": sac(total=1000, train_freq=[1, "episode"], gradient_steps=20),
    "n-step": sac(n_steps=3),
    "action noise": sac(action_noise={"ornstein-uhlenbeck": 0.2}),
    "wrapper with a state": sac(environment={"wrappers": ["interrupting:Wind"]}),
    "replayed environment": sac(environment={"id": "Unpicklable-v0", "module": "interrupting"}),
    "processes": sac(total=600, environment={"n_envs": 2, "vectorization": "subproc"}),
}


def _train(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """In a child of a warm process: exactly what the command does."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    from train_cloud.cli import main

    sys.exit(main(arguments))


@pytest.fixture(scope="module")
def warm() -> Iterator[Any]:
    """A process that has imported everything, from which each session is forked: two seconds saved a session."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"):
            patch.setenv(name, os.environ.get(name, ""))
            patch.delenv(name)
        pin_instructions()
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["torch", "stable_baselines3", "tensorboard", "train_cloud.worker.train", "train_cloud.learn.callback"]
        )
        yield context


class Rehearsed:
    """One run in one folder store."""

    def __init__(self, context: Any, folder: Path, run: dict[str, Any]) -> None:
        self.context, self.folder = context, folder
        folder.mkdir(exist_ok=True)
        self.run_file = folder / "run.yaml"
        YAML().dump({"run_id": "a-run", **run}, self.run_file)
        self.store = open_store(layout.run_url(str(folder / "store"), "a-run"))

    def session(self, interrupt: str = "", **environment: str) -> int:
        arguments = ["train", str(self.run_file), "--store", str(self.folder / "store")]
        arguments += ["--state-dir", str(self.folder / "state")]
        log = self.folder / "log.txt"
        environment = {"INTERRUPT": interrupt, "TRAIN_CLOUD_THREADS": "1", **environment}
        process = self.context.Process(target=_train, args=(arguments, environment, str(log)))
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
            process.join()
            pytest.fail(f"the session did not end: {log.read_text()[-3000:]}")
        return int(process.exitcode)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def final(self) -> Snapshot:
        read = read_head(self.store)
        assert read is not None and read[0].manifest is not None, self.log()
        assert read[0].outcome == "completed", self.log()
        return restore(self.store, read_manifest(self.store, read[0].manifest))

    def scalars(self) -> dict[str, list[tuple[int, float]]]:
        found = read_scalars(self.folder / "store/runs/a-run/artifacts/tensorboard")
        return {tag: points for tag, points in found.items() if not tag.startswith("time/")}


@pytest.fixture(scope="module")
def twins(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run of each kind, made once."""
    made: dict[str, Rehearsed] = {}

    def twin(name: str) -> Rehearsed:
        if name not in made:
            made[name] = Rehearsed(warm, tmp_path_factory.mktemp("twin") / "run", RUNS[name])
            assert made[name].session() == 0, made[name].log()
        return made[name]

    return twin


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends(
    warm: Any, twins: Any, tmp_path: Path, name: str
) -> None:
    twin = twins(name)
    run = Rehearsed(warm, tmp_path, RUNS[name])
    assert run.session("SIGTERM@237") == 75, run.log()
    assert run.session("SIGKILL@431") == -9, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
    sessions = read_sessions(run.store)
    assert [session.end and session.end["ended_by"] for session in sessions] == ["signal", None, "completed"]
    assert sessions[0].end is not None
    assert sessions[0].end["last_timestep"] == sessions[0].end["committed_timesteps"], "a stop repeats nothing"
