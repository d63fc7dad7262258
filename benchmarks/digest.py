"""What the checksums of every step cost: one training, whose rollouts take turns with and without them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Figure, interval

if TYPE_CHECKING:
    from benchmarks.figures import Sizes

#: Of PPO's steps per second on CartPole.
LIMIT = 0.003


def checksums(folder: Path, sizes: Sizes, wanted: set[int]) -> Iterator[Figure]:
    """PPO with Stable-Baselines3's defaults, in this process. What is compared is the processor time of the training's
    thread: what the checksums take of each rollout that has them. How much slower such a rollout is than its neighbour
    without is too small to be seen in the noise of one; it is told besides.
    """
    import torch
    from stable_baselines3 import PPO

    from train_cloud.envs.trial import Choice
    from train_cloud.sb3.callback import Checkpoints, IdleHost

    torch.set_num_threads(1)
    pairs = sizes.rollouts
    model = PPO("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    probe = _Probe(2 * pairs + 2, model.n_steps)
    own = Checkpoints(IdleHost(probe.total), Choice("pickle", True, ""), log_interval=1)
    probe.of = own
    model.learn(probe.total, callback=[own, probe.callback()])
    on, off = probe.spans(True), probe.spans(False)
    alone = probe.alone[: len(on)]
    against = interval([1 - without / with_ for with_, without in zip(on, off, strict=True)])
    steps = model.n_steps
    yield Figure(
        8,
        "PPO on CartPole-v1",
        interval([checksum / with_ for checksum, with_ in zip(alone, on, strict=True)]),
        LIMIT,
        detail={
            "checksums, µs a step": 1e6 * sum(alone) / (len(alone) * steps),
            "with, steps per CPU second": steps * len(on) / sum(on),
            "without, steps per CPU second": steps * len(off) / sum(off),
            "slower than the neighbour without, %": 100 * against.value,
            "from, %": 100 * against.low,
            "to, %": 100 * against.high,
        },
    )


class _Probe:
    """Switches the checksums on and off in turn, on off off on, and times each rollout with its update."""

    def __init__(self, rollouts: int, steps: int) -> None:
        self.total = rollouts * steps
        self.of: Any = None
        self.alone: list[float] = []
        self._began: float | None = None
        self._number = -2  # the first two are not counted
        self._spans: dict[bool, list[float]] = {True: [], False: []}
        self._on = True

    def callback(self) -> Any:
        from stable_baselines3.common.callbacks import BaseCallback

        probe = self

        class Turns(BaseCallback):
            def _on_step(self) -> bool:
                return True

            def _on_rollout_start(self) -> None:
                probe.turn()

        return Turns()

    def turn(self) -> None:
        now = time.thread_time()
        if self._began is not None:
            if self._number >= 0:
                self._spans[self._on].append(now - self._began)
            self._number += 1
        self._on = self._number % 4 in (0, 3)
        reader = self.of._reader
        reader.rollout = self._timed(type(reader).rollout, reader) if self._on else lambda timesteps: None
        self._began = time.thread_time()

    def _timed(self, rollout: Any, reader: Any) -> Any:
        def timed(timesteps: int) -> None:
            began = time.thread_time()
            rollout(reader, timesteps)
            if self._number >= 0:
                self.alone.append(time.thread_time() - began)

        return timed

    def spans(self, on: bool) -> list[float]:
        count = min(map(len, self._spans.values()))
        return self._spans[on][:count]
