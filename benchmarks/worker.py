"""The real worker as a process, on a run file of the benchmarks'."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.runtime.reproducibility import pin_instructions

ROOT = Path(__file__).parent.parent
STORE = "s3://bench"
_PATIENCE = 7200.0
_PRELOAD = ["torch", "stable_baselines3", "tensorboard", "train_cloud.runtime.train", "train_cloud.sb3.callback"]


def isolate() -> None:
    """Of this process and its children: one thread for torch, nobody's credentials, nothing beyond loopback."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "TRAIN_CLOUD_"))]:
        del os.environ[name]
    os.environ.update(
        AWS_ACCESS_KEY_ID="AKIABENCHMARK0000001",
        AWS_SECRET_ACCESS_KEY="of-nobody",
        AWS_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        NO_PROXY="127.0.0.1",
        no_proxy="127.0.0.1",
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        TRAIN_CLOUD_THREADS="1",
        PYTHONPATH=str(ROOT),
    )


def run_file(
    folder: Path,
    run_id: str,
    *,
    size: int,
    seconds: float = 0.0,
    total: int,
    every: int,
    algorithm: str = "sac",
    probe: str | None = None,
    **hyperparameters: Any,
) -> Path:
    """:param size: floats per observation
    :param seconds: that the environment waits in each step
    :param every: timesteps between checkpoints
    """
    run = {
        "run_id": run_id,
        "algorithm": algorithm,
        "policy": "MlpPolicy",
        "seed": 1,
        "device": "cpu",
        "total_timesteps": total,
        "save_frequency": every,
        "environment": {
            "id": "Table-v0",
            "module": "benchmarks.environment",
            "kwargs": {"size": size, "seconds": seconds},
        },
        "hyperparameters": hyperparameters,
        "callbacks": [f"benchmarks.probes:{probe}"] if probe else [],
        "reproducibility": {"replay": "never"},  # it would train beside what is measured, also while this is stopped
    }
    path = folder / f"{run_id}.yaml"
    path.write_text(json.dumps(run, indent=1))
    return path


@dataclass
class Worker:
    """A session of the worker that is going on."""

    process: BaseProcess | subprocess.Popen[bytes]
    state: Path
    log: Path
    started: float
    """``time.monotonic()`` right before the process was"""

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def exit_code(self) -> int | None:
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def wait(self, expected: int = 0) -> None:
        """:param expected: exit code"""
        if isinstance(self.process, subprocess.Popen):
            self.process.wait(_PATIENCE)
        else:
            self.process.join(_PATIENCE)
        code = self.exit_code()
        if code != expected:
            self.kill()
            raise RuntimeError(f"the worker ended with {code}: {self.log.read_text()[-3000:]}")

    def wait_for_steps(self, timesteps: int) -> None:
        """Until so many steps are done in this session or before."""
        path, deadline = self.state / "timesteps", time.monotonic() + _PATIENCE
        while not path.exists() or read_timesteps(self.state) < timesteps:
            if self.exit_code() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker did not get to {timesteps}: {self.log.read_text()[-3000:]}")
            time.sleep(0.002)

    def kill(self) -> None:
        if self.exit_code() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait() if isinstance(self.process, subprocess.Popen) else self.process.join()


def begin(path: Path, endpoint: str, *, fresh: bool = False, env: dict[str, str] | None = None) -> Worker:
    """Start a session.

    :param fresh: as a process of its own; otherwise it is forked from one that has imported everything
    """
    state, log = path.parent / f"{path.stem}-state", path.parent / f"{path.stem}.log"
    (state / "timesteps").unlink(missing_ok=True)
    arguments = ["train", str(path), "--store", STORE, "--state-dir", str(state)]
    environment = {"AWS_ENDPOINT_URL": endpoint, **(env or {})}
    started = time.monotonic()
    if fresh:
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "train_cloud", *arguments],
                env={**os.environ, **environment},
                stdout=out,
                stderr=out,
                cwd=ROOT,
            )
        return Worker(process, state, log, started)
    forked = _warm().Process(target=_train, args=(arguments, environment, str(log)))
    forked.start()
    return Worker(forked, state, log, started)


def in_warm_process(target: Any, *arguments: Any) -> None:
    """Call ``target`` in a process that has imported everything."""
    process = _warm().Process(target=target, args=arguments)
    process.start()
    process.join(_PATIENCE)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"{target.__name__} ended with {process.exitcode}")


def _warm() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    before = dict(os.environ)
    pin_instructions()  # as the worker does before it imports torch
    forkserver.ensure_running()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    return context


def _train(arguments: list[str], environment: dict[str, str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    from train_cloud.cli import main

    sys.exit(main(arguments))
