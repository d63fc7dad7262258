"""Whatever callbacks, algorithms, policies and buffers hold is in a checkpoint, or named: each kind in a training that
is stopped and gone on with in a fresh process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import holding
import pytest
from sessions import forking

from train_cloud.sb3.callback import IdleHost
from train_cloud.snapshot import Part, Rows

STOP_AT, TOTAL = 75, 200


class Memory(IdleHost):
    """Keeps what it would commit."""

    save_frequency = 32

    def __init__(self, restored: Any, stop_at: int | None) -> None:
        super().__init__(TOTAL, restored=restored)
        self.stop_at = stop_at
        self.timesteps = 0
        self.kept: bytes | None = None
        self.because = ""

    def stop_deadline(self) -> float | None:
        return time.monotonic() + 3600 if self.stop_at is not None and self.timesteps >= self.stop_at else None

    def step(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def submit(self, snapshot: Any) -> None:
        parts = {name: Part(dict(part.arrays), part.blob) for name, part in snapshot.parts.items()}
        streams = {}
        for name, rows in snapshot.streams.items():
            before = pickle.loads(self.kept).streams[name].chunks if self.kept and rows.first else []
            chunks = [(first, {key: column.copy() for key, column in chunk.items()}) for first, chunk in rows.chunks]
            streams[name] = Rows(0, rows.last, rows.capacity, [*before, *chunks], rows.successors)
        self.kept = pickle.dumps(replace(snapshot, parts=parts, streams=streams))

    def exactness(self, exact: bool, because: str) -> None:
        self.because = because


def stretch(name: str, stop_at: int | None, begin: str | None, out: str) -> None:
    """In a process of its own: train from ``begin``, or from the start, to ``stop_at``, or to the end."""
    from train_cloud.envs.make import FAILURES

    os.environ["HOLDING"] = str(Path(out).parent)
    try:
        found = _stretch(name, stop_at, begin)
    except FAILURES:  # the parent tells it
        found = {"failed": traceback.format_exc()}
    Path(out).write_bytes(pickle.dumps(found))


def _stretch(name: str, stop_at: int | None, begin: str | None) -> dict[str, Any]:
    import torch
    from stable_baselines3.common.logger import Logger

    from train_cloud.envs.trial import Choice
    from train_cloud.sb3 import vectorized
    from train_cloud.sb3.callback import learn
    from train_cloud.trainer import TrainingStopped

    torch.set_num_threads(1)
    # These environments are pickled; to try that would take longer than all the rest.
    vars(vectorized)["choose_for"] = lambda *_, **__: Choice("pickle", True, "")
    torch.manual_seed(0 if begin is None else 1)  # what is made before the model has a seed is another one each time
    restored = pickle.loads(pickle.loads(Path(begin).read_bytes())["state"]) if begin else None
    program = holding.PROGRAMS.get(name) or holding.NAMED[name][0]
    model, callbacks = program()
    model.set_logger(Logger(None, []))
    host: Any = Memory(restored, stop_at)
    with contextlib.suppress(TrainingStopped):
        learn(model, host, callbacks, Choice("pickle", True, ""))
    buffer = vars(getattr(model, "replay_buffer", None) or model)
    arrays = b"".join(value.tobytes() for _, value in sorted(buffer.items()) if hasattr(value, "tobytes"))
    return {"state": host.kept, "because": host.because, "buffer": hashlib.sha256(arrays).hexdigest()}


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    with forking("tqdm", "test_objects") as found:
        yield found


def trained(context: Any, folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Uninterrupted, to the stop, and from there to the end."""
    found: dict[str, dict[str, Any]] = {}
    started: dict[str, Any] = {}
    for part, stop_at, begin in (("whole", None, None), ("first", STOP_AT, None), ("second", None, "first")):
        if part == "second":
            started["first"].join(120)
        out = None if begin is None else str(folder / begin)
        started[part] = context.Process(target=stretch, args=(name, stop_at, out, str(folder / part)))
        started[part].start()
    for part, process in started.items():
        process.join(120)
        assert process.exitcode == 0, process.exitcode
        found[part] = pickle.loads((folder / part).read_bytes())
        assert "failed" not in found[part], found[part]["failed"]
        found[part]["snapshot"] = pickle.loads(found[part]["state"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", holding.PROGRAMS)
def test_what_is_held_is_kept(context: Any, tmp_path: Path, name: str) -> None:
    from train_cloud.sb3.compare import differences

    found = trained(context, tmp_path, name)
    whole, first, second = (found[part]["snapshot"] for part in ("whole", "first", "second"))
    assert STOP_AT <= first.timesteps < TOTAL <= second.timesteps
    # The rows of both are on their way to a store in other pieces; of the whole buffer there is a digest.
    told = differences(replace(whole, streams={}), replace(second, streams={}))
    assert not told, "\n".join(told[:12])
    assert found["whole"]["buffer"] == found["second"]["buffer"]
    for part in found.values():
        assert part["because"] == ""
        assert part["snapshot"].facts["exact"] and "not_kept" not in part["snapshot"].facts


@pytest.mark.slow
@pytest.mark.parametrize("name", holding.NAMED)
def test_what_is_not_kept_is_named(context: Any, tmp_path: Path, name: str) -> None:
    found = trained(context, tmp_path, name)
    paths = holding.NAMED[name][1]
    for part in found.values():
        facts = part["snapshot"].facts
        assert not facts["exact"]
        told = [entry.split(":")[0] for entry in facts["not_kept"]]
        assert sorted(told) == sorted(paths), facts["not_kept"]
        assert facts["exact_because"].startswith("not kept: ") and all(path in part["because"] for path in paths)
