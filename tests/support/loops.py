"""Loops of one's own in processes forked from this one: uninterrupted, and interrupted by the end of a process.

No store and no session: what a checkpoint has is handed from one process to the next as it is.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import pickle
import random
import runpy
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paths import TESTS

from train_cloud.generators import unseeded_follow
from train_cloud.sb3.callback import IdleHost
from train_cloud.sb3.compare import differences
from train_cloud.snapshot import Snapshot
from train_cloud.trainer import TrainingStopped, hosting

HEAD = """
import collections, copy, functools, itertools, random
import numpy as np, torch, train_cloud
from torch import nn

torch.manual_seed(1), np.random.seed(1), random.seed(1)

"""


_numbers = itertools.count()


class RecordingHost(IdleHost):
    """Keeps what would be committed, and stops where it is told to."""

    def __init__(self, total: int, stop: int | None, restored: Snapshot | None) -> None:
        super().__init__(total, restored=restored)
        self._stop, self.reached = stop, 0
        self.last: Snapshot | None = None
        self.said: tuple[bool, str] = (True, "")
        self.logged: list[tuple[int, dict[str, float]]] = []

    def stop_deadline(self) -> float | None:
        return 0.0 if self._stop is not None and self.reached >= self._stop else None

    def step(self, timesteps: int) -> None:
        self.reached = timesteps

    def submit(self, snapshot: Snapshot) -> None:
        self.last = snapshot

    def exactness(self, exact: bool, because: str) -> None:
        self.said = (exact, because)

    def outputs(self) -> Sequence[Any]:
        return [self]

    def write(self, values: dict[str, Any], excluded: Any, step: int = 0) -> None:
        self.logged.append((step, dict(values)))


@dataclass
class Ended:
    """How a process ended."""

    snapshot: Snapshot | None
    exact: bool
    because: str
    logged: list[tuple[int, dict[str, float]]]
    error: str = ""
    kind: str = ""


class SavingHost(RecordingHost):
    """Writes each checkpoint into a file, as a store would have it.

    :param at: step at which it tells so, and waits until somebody has seen it
    """

    def __init__(self, total: int, every: int, restored: Snapshot | None, path: Path, at: int, there: Any) -> None:
        super().__init__(total, None, restored)
        self.save_frequency = every
        self._path, self._at, self._there = path, at, there
        self.done = False

    def step(self, timesteps: int) -> None:
        super().step(timesteps)
        if timesteps == self._at:
            self._there.wait(60)

    def submit(self, snapshot: Snapshot) -> None:
        new = self._path.with_suffix(".new")
        new.write_bytes(pickle.dumps((snapshot, self.done)))
        new.replace(self._path)

    def finish(self, snapshot: Snapshot) -> bool:
        self.done = True
        self.submit(snapshot)
        return False


def _leave_tests_out() -> None:
    """In a child: what pytest's process has loaded of the tests would be the user's code, and a part of the state."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name not in (__name__, "__main__") and file is not None and Path(file).is_relative_to(TESTS):
            del sys.modules[name]


def _killed_child(
    script: Path, arguments: Sequence[str], total: int, every: int, path: Path, at: int, there: Any, log: Path
) -> None:
    _leave_tests_out()
    restored = pickle.loads(path.read_bytes())[0] if path.exists() else None
    host = SavingHost(total, every, restored, path, at, there)
    sys.argv = [str(script), *arguments]
    random.seed(1)  # Python seeds it anew in each process that is forked; of scripts that leave it alone
    with log.open("a") as file, contextlib.redirect_stdout(file):
        try:
            with hosting(host), unseeded_follow(1):
                runpy.run_path(str(script), run_name="__main__")
        except BaseException:
            file.write(traceback.format_exc())
            raise


def killed(
    script: Path, arguments: Sequence[str], total: int, every: int, folder: Path, kills: int, chance: random.Random
) -> tuple[Snapshot, int]:
    """A script, trained to its end through so many SIGKILLs at random moments.

    :return: what it ended with, and how often it was killed
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "checkpoint", folder / "log.txt"
    context, done = multiprocessing.get_context("fork"), 0
    while True:
        at, there = 0, context.Barrier(2)
        if done < kills:
            began = pickle.loads(path.read_bytes())[0].timesteps if path.exists() else 0
            at = began + chance.randint(
                1, max(1, (total - 1 - began) // (kills - done))
            )  # some are left for the others
        process = context.Process(
            target=_killed_child, args=(script, arguments, total, every, path, at, there, log), daemon=True
        )
        process.start()
        if at:
            there.wait(60)  # however quick the machine is, it has not gone past
            process.join(chance.random() * 0.005)
            if process.is_alive():
                process.kill()
                done += 1
        process.join(240)
        assert process.exitcode in (0, -9), log.read_text()[-2000:]
        if process.exitcode == 0:
            snapshot, over = pickle.loads(path.read_bytes())
            assert over
            return snapshot, done


@dataclass
class Pair:
    """One loop uninterrupted, and interrupted at some steps."""

    whole: Ended
    pieces: list[Ended]
    folder: Path

    @property
    def differences(self) -> list[str]:
        last = self.pieces[-1]
        assert self.whole.snapshot is not None and last.snapshot is not None, (self.whole.error, last.error)
        found = differences(self.whole.snapshot, last.snapshot, self.folder)
        logged = [entry for piece in self.pieces for entry in piece.logged]
        return found + ([] if logged == self.whole.logged else ["logged values"])

    @property
    def named(self) -> str:
        """Why it is not exact; empty where it says that it is."""
        return next((piece.because for piece in self.pieces if not piece.exact), "")


def _child(folder: str, module: str, total: int, stop: int | None, restored: bytes, pipe: Any) -> None:
    _leave_tests_out()
    sys.path.insert(0, folder)
    host = RecordingHost(total, stop, pickle.loads(restored) if restored else None)
    error = kind = ""
    try:
        with hosting(host), unseeded_follow(1):
            importlib.import_module(module).main()
    except TrainingStopped:
        pass
    except BaseException as raised:  # noqa: BLE001 - told to whoever has started the process
        error, kind = f"{raised}\n{traceback.format_exc()}", type(raised).__name__
    ended = Ended(host.last, *host.said, host.logged, error, kind)
    pipe.send_bytes(pickle.dumps(ended))
    pipe.close()


def run(folder: Path, module: str, total: int, stop: int | None = None, restored: Snapshot | None = None) -> Ended:
    """A process of its own that trains until ``stop``."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    blob = pickle.dumps(restored) if restored is not None else b""
    process = context.Process(target=_child, args=(str(folder), module, total, stop, blob, there))
    process.start()
    there.close()
    try:
        ended: Ended = pickle.loads(here.recv_bytes())
    finally:
        process.join()
    return ended


def interrupted(folder: Path, body: str, total: int = 20, at: Sequence[int] = (7, 13)) -> Pair:
    """A module with ``main``, trained both ways."""
    folder.mkdir(parents=True, exist_ok=True)
    module = f"loop_{next(_numbers)}"  # what is compared here is imported here
    (folder / f"{module}.py").write_text(HEAD + body)
    pieces: list[Ended] = []
    for stop in (*at, None):
        pieces.append(run(folder, module, total, stop, pieces[-1].snapshot if pieces else None))
        if pieces[-1].error:
            break
    return Pair(run(folder, module, total), pieces, folder)
