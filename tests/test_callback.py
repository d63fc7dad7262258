"""The callback in one process, against a writer that reads rows as late as it is allowed to."""

from __future__ import annotations

import contextlib
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from train_cloud.checkpoint.format import pack, unpack
from train_cloud.envs.trial import Choice
from train_cloud.sb3 import callback
from train_cloud.sb3.callback import Checkpoints, IdleHost
from train_cloud.snapshot import Array, Part, Rows, Snapshot
from train_cloud.trainer import TrainingStopped

torch.set_num_threads(1)


class Late(IdleHost):
    """A host whose commits are written only when somebody waits for them.

    :param stop_at: asks to stop at once when that many timesteps are done
    """

    seconds_per_byte = 0.0

    def __init__(self, total: int, save_frequency: int | None, stop_at: int | None = None) -> None:
        super().__init__(total)
        self.save_frequency, self.stop_at = save_frequency, stop_at
        self.waiting: Snapshot | None = None
        self.written: dict[int, Snapshot] = {}
        self.timesteps = 0

    def stop_deadline(self) -> float | None:
        return time.monotonic() if self.stop_at is not None and self.timesteps >= self.stop_at else None

    def commit_seconds(self, new_bytes: int) -> float:
        return 1.0 + self.seconds_per_byte * new_bytes

    def settle(self) -> None:
        if self.waiting is not None:
            self.written[self.waiting.timesteps] = _written(self.waiting)
        self.waiting = None

    def submit(self, snapshot: Snapshot) -> None:
        self.settle()
        self.waiting = snapshot

    def step(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def exactness(self, exact: bool, because: str) -> None:
        assert exact, because


def _written(snapshot: Snapshot) -> Snapshot:
    """As it comes out of a store: copies, through bytes."""
    parts = {name: unpack(pack(part), name) for name, part in snapshot.parts.items()}
    rows = snapshot.streams["replay"]
    chunks = [(first, unpack(pack(Part(chunk)), "rows").arrays) for first, chunk in rows.chunks]
    return Snapshot(snapshot.timesteps, parts, {"replay": Rows(rows.first, rows.last, rows.capacity, chunks)})


def train(host: Late, buffer_size: int, **arguments: Any) -> SAC:
    """No updates: what is looked at are rows."""
    kwargs: dict[str, Any] = {"net_arch": [4]}
    model = SAC(
        "MlpPolicy", "Pendulum-v1", seed=1, device="cpu", learning_starts=10_000, buffer_size=buffer_size,
        policy_kwargs=kwargs, **arguments,
    )  # fmt: skip
    with contextlib.suppress(TrainingStopped):
        model.learn(host.total_timesteps, callback=Checkpoints(host, Choice("pickle", True, "")))
    host.settle()
    return model


def truth(total: int) -> dict[str, Array]:
    """The rows of a run whose ring never laps."""
    buffer: Any = train(Late(total, total), 10_000).replay_buffer
    return {name: getattr(buffer, name)[:total] for name in ("observations", "next_observations", "rewards")}


def check(snapshot: Snapshot, expected: dict[str, Array]) -> tuple[int, int]:
    rows = snapshot.streams["replay"]
    for first, chunk in rows.chunks:
        for name, column in expected.items():
            count = len(chunk[name])
            assert chunk[name].tobytes() == np.ascontiguousarray(column[first : first + count]).tobytes(), name
    return rows.first, rows.last


@pytest.mark.parametrize("arguments", [{}, {"train_freq": 7}])
def test_a_late_writer_finds_every_row_as_it_was(arguments: dict[str, Any]) -> None:
    expected = truth(310)  # the last rollout may go beyond the total
    host = Late(300, 45)
    train(host, 50, **arguments)
    assert len(host.written) >= 6
    at = 0
    for timesteps, snapshot in host.written.items():
        first, last = check(snapshot, expected)
        assert (first, last) == (max(at, timesteps - 50), timesteps)
        at = last


@pytest.mark.parametrize("size", [60, 150, 250, 1000])
def test_a_held_snapshot_keeps_its_rows(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode is long, time is out in the middle of it, and the ring may have lapped what the snapshot needs."""
    monkeypatch.setattr(callback, "_LONG_ROLLOUT_SECONDS", 0.0)
    expected = truth(500)
    host = Late(500, 10_000, stop_at=370)
    train(host, size, train_freq=(1, "episode"))
    assert max(host.written) == 200, "the start of the episode that was cut"
    covered = 0
    for snapshot in host.written.values():
        first, last = check(snapshot, expected)
        assert first <= max(covered, last - size)
        covered = last
    assert covered == 200


@pytest.mark.parametrize(
    ("seconds", "commit", "steps"),
    [
        (5.0, 1.0, 399),  # a step takes 0.01 s; what is done at the next one would be at risk for too long
        (1.5, 1.0, 74),  # a commit takes most of it
        (0.0001, 0.0, 1),
    ],
)
def test_seconds_at_risk(seconds: float, commit: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which a step takes 10 ms in the beginning, and half of that later."""
    change = 3 * (steps + 1)
    host = Late(3 * change, None)
    host.max_seconds_at_risk = seconds
    clock = SimpleNamespace(
        monotonic=lambda: 0.01 * min(host.timesteps, change) + 0.005 * max(0, host.timesteps - change)
    )
    monkeypatch.setattr(host, "commit_seconds", lambda new_bytes: commit)
    monkeypatch.setattr(callback, "time", clock)
    train(host, 5000)
    saved = [0, *host.written]
    slow = [b - a for a, b in pairwise(saved) if b <= change]
    fast = [b - a for a, b in pairwise(saved[:-1]) if a >= change]
    assert slow and fast
    assert all(abs(taken - steps) <= 1 for taken in slow)
    assert all(abs(taken - 2 * steps) <= 2 for taken in fast)


def test_the_bytes_of_the_new_rows_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a commit takes as long as its bytes need, it must begin the earlier the more there are."""
    host = Late(2000, None)
    host.max_seconds_at_risk = 10.0
    host.seconds_per_byte = 5e-5
    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=lambda: 0.01 * host.timesteps))
    train(host, 5000)
    parts = sum(
        len(part.blob) + sum(a.nbytes for a in part.arrays.values()) for part in host.written[2000].parts.values()
    )
    row = 4 * (3 + 1 + 1 + 1 + 1)  # without the next observation, which is the next row's
    intervals = [b - a for a, b in pairwise([0, *host.written])]
    a_step = 0.01 + 5e-5 * row  # interval + 1 s + the bytes' time = 10 s
    assert intervals[:2] == pytest.approx([(10 - 1 - 5e-5 * parts) / a_step] * 2, abs=10)


@pytest.mark.parametrize(("seconds_per_byte", "reached"), [(0.0, 400), (0.002, 200)])
def test_time_for_the_next_consistent_point(
    seconds_per_byte: float, reached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a notice in the middle of an episode: its end is waited for if the line can take all of it by the deadline."""
    host = Late(600, 10_000)
    monkeypatch.setattr(callback, "_LONG_ROLLOUT_SECONDS", 0.0)
    monkeypatch.setattr(callback, "time", SimpleNamespace(monotonic=lambda: 0.01 * host.timesteps))
    host.seconds_per_byte = seconds_per_byte
    # A step takes 10 ms and the deadline is 10 s away at step 300: the rest takes 1 s, a commit 1 s, and what its bytes
    # need: 200 rows of 28 bytes, a small net and a few KB of generators.
    monkeypatch.setattr(host, "stop_deadline", lambda: 3.0 + 10.0 if host.timesteps >= 300 else None)
    train(host, 5000, train_freq=(1, "episode"))
    assert max(host.written) == reached


class LooksForOutputs(BaseCallback):
    """As rl_zoo3's ``RawStatisticsCallback`` does, and the recipe in SB3's documentation."""

    def _init_callback(self) -> None:
        self.early = list(self.logger.output_formats)

    def _on_training_start(self) -> None:
        self.found = list(self.logger.output_formats)

    def _on_step(self) -> bool:
        return True


def test_outputs_are_there_before_any_callback_looks_for_them() -> None:
    output, looking = SimpleNamespace(write=lambda *_: None, close=lambda: None), LooksForOutputs()
    host: Any = IdleHost(16)
    host.outputs = lambda: [output]
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs={"net_arch": [2]}, device="cpu")
    model.set_logger(Logger(None, []))
    with callback.hosted_by(host):
        callback.learn(model, host, [looking], Choice("pickle", True, ""))
    assert looking.early == looking.found == model.logger.output_formats == [output]
