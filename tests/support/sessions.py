"""Sessions of a run as real processes, forked from one that has imported everything."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm_start
from paths import PYTHONPATH
from ruamel.yaml import YAML

from train_cloud import hash_seed
from train_cloud.artifacts import tensorboard
from train_cloud.artifacts.tensorboard import read_scalars
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.envs import TRIALS
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.runtime.reproducibility import PINNED, pin_instructions
from train_cloud.snapshot import Snapshot
from train_cloud.store import open_store

#: What a session imports sooner or later.
WARM = [
    "warm_start",
    "torch.utils.tensorboard",
    "tensorboard",
    "train_cloud.cli.train",
    "train_cloud.sb3.callback",
    "train_cloud.sb3.check",
    "train_cloud.sb3.export",
    "train_cloud.sb3.scalars",
    "train_cloud.store.s3",
    "train_cloud.runtime.train",
    # What the table of docs/exactness.md is made with; what is not installed is passed over.
    "sb3_contrib",
    "gymnasium.envs.classic_control",
    "mujoco",
    "Box2D",
    "ale_py",
    "cv2",
]


def _train(arguments: list[str], environment: dict[str, str], log: str, server: str) -> None:
    """In a child of a warm process: exactly what the command does.

    :param server: address of the warm process: processes of environments are forked from it too
    """
    warm_start.begin_below()
    forkserver: Any = multiprocessing.forkserver._forkserver
    forkserver._forkserver_address, forkserver.ensure_running = server, lambda: None
    multiprocessing.forkserver.ensure_running = forkserver.ensure_running
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    from train_cloud.cli import main

    sys.exit(main(arguments))


@contextlib.contextmanager
def forking(*more: str) -> Iterator[Any]:
    """A process that has imported everything, from which each session is forked: seconds saved at each. There is one at
    a time; the next one begins without what another test file's has imported.

    :param more: modules to import besides
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in PINNED:
            patch.setenv(name, "")  # so that it is as it was afterwards
            patch.delenv(name)
        pin_instructions()
        patch.setenv(hash_seed.VARIABLE, hash_seed.SEED)  # as the command sees to
        patch.setenv("PYTHONPATH", os.pathsep.join([PYTHONPATH, os.environ.get("PYTHONPATH", "")]))
        context = multiprocessing.get_context("forkserver")
        _begin_with([*WARM, *more])
        try:
            yield context
        finally:
            _begin_with(WARM)


def _begin_with(modules: list[str]) -> None:
    server: Any = multiprocessing.forkserver._forkserver
    server._stop()
    server.set_forkserver_preload(modules)


@functools.cache
def _trials() -> str:
    """Where sessions leave what trials of environments found: each environment is tried once by each of pytest's
    processes, which takes as long as a short training."""
    folder = tempfile.mkdtemp(prefix="train-cloud-trials-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def warm() -> Iterator[Any]:
    with forking() as context:
        yield context


class Rehearsed:
    """One run in one store.

    :param root: of the store; a folder below ``folder`` by default
    """

    def __init__(self, context: Any, folder: Path, run: dict[str, Any], root: str | None = None) -> None:
        self.context, self.folder = context, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.run_file = folder / "run.yaml"
        # On a quiet machine each session would have one; test_evidence.py is about them.
        YAML().dump({"run_id": "a-run", "reproducibility": {"replay": "never"}, **run}, self.run_file)
        self.root = root or str(folder / "store")
        self.store = open_store(layout.run_url(self.root, "a-run"))

    def start(self, *options: str, state: str = "state", env: dict[str, str] | None = None) -> Any:
        """Begin a session; its process.

        :param state: name of its state folder, which one process at a time may have
        """
        arguments = ["train", str(self.run_file), "--store", self.root, *options]
        arguments += ["--state-dir", str(self.folder / state)]
        environment = {"TRAIN_CLOUD_THREADS": "1", TRIALS: _trials(), **(env or {})}
        multiprocessing.forkserver.ensure_running()
        server = multiprocessing.forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
        log = str(self.folder / "log.txt")
        process = self.context.Process(target=_train, args=(arguments, environment, log, server))
        process.start()
        return process

    def session(
        self,
        interrupt: str = "",
        *,
        outside: bool = False,
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> int:
        """Train until it ends; the exit code, negative for a signal.

        :param interrupt: ``<signal>@<timesteps>``, sent by the run's own callback at that very step
        :param env: variables of the process
        :param outside: sent from here instead, a moment after that step
        """
        state = self.folder / "state"
        (state / "timesteps").unlink(missing_ok=True)
        process = self.start(*options, env={"INTERRUPT": "" if outside else interrupt, **(env or {})})
        name, _, at = interrupt.partition("@")
        deadline = time.monotonic() + 270
        while outside and process.exitcode is None and time.monotonic() < deadline:
            if (state / "timesteps").exists() and read_timesteps(state) >= int(at):
                os.kill(process.pid, getattr(signal, name))
                break
            process.join(0.005)
        process.join(270)
        if process.exitcode is None:
            process.kill()
            process.join()
            pytest.fail(f"the session did not end: {self.log()[-3000:]}")
        return int(process.exitcode)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def head(self) -> Head:
        read = read_head(self.store)
        assert read is not None, self.log()
        return read[0]

    def final(self) -> Snapshot:
        head = self.head()
        assert head.outcome == "completed" and head.manifest is not None, self.log()
        return restore(self.store, read_manifest(self.store, head.manifest))

    def scalars(self, *, shown: bool = False) -> dict[str, list[tuple[int, float]]]:
        """:param shown: without what TensorBoard hides: a fenced worker's last push may hold what its successor has
        logged too
        """
        with tempfile.TemporaryDirectory() as folder:
            tensorboard.pull(self.store, Path(folder))
            if shown:
                tensorboard.cut(Path(folder), self.head().timesteps)
            found = read_scalars(Path(folder))
        return {tag: points for tag, points in found.items() if not tag.startswith(("time/", "system/"))}
