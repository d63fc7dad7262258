"""What a trainer and the runtime know of each other.

The runtime hands a trainer a :class:`Host`; a trainer hands snapshots back. Stable-Baselines3 (:mod:`train_cloud.sb3`)
is one trainer. Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from typing import Any

    from stable_baselines3.common.logger import KVWriter

    from train_cloud.sb3.digest import Digests
    from train_cloud.snapshot import Snapshot

Reason = Literal["notice", "signal", "limit"]


class TrainingStopped(BaseException):
    """Ends a training at a consistent point. No ``Exception``, so that a script's own handlers let it pass."""


class Deadline:
    """By when all must be committed, and why: an absolute time, never a chain of waits. Everybody who needs to know
    whether there is time asks this one object, from any thread.
    """

    def __init__(self) -> None:
        self._at: float | None = None
        self.reason: Reason | None = None
        """None while nobody has asked to stop."""
        self.limit: str | None = None
        """Which limit was reached, in words."""
        self.when_set: Callable[[], None] = lambda: None
        """Called at once when somebody asks to stop; also in a signal handler."""
        self.before_answer: Callable[[], None] | None = None
        """What the next one who asks has to do first."""

    def at(self) -> float | None:
        """On ``time.monotonic()``; None: go on."""
        first = self.before_answer
        if first is not None:
            first()
        return self._at

    @property
    def pending(self) -> bool:
        """Somebody has asked to stop."""
        return self.at() is not None

    @property
    def urgent(self) -> bool:
        """Somebody waits for this machine; where a limit of the run's own is reached nobody does."""
        return self.reason in ("notice", "signal")

    def urgent_at(self) -> float | None:
        """:meth:`at` where it is urgent; None: there is time for everything."""
        return self.at() if self.urgent else None

    def allows(self, seconds: float) -> bool:
        """Whether something that takes so long would be over by then."""
        at = self.at()
        return at is None or time.monotonic() + seconds <= at

    def set(self, seconds: float, reason: Reason, limit: str | None = None) -> None:
        """Stop within so many seconds from now.

        :param limit: which one is reached, in words
        """
        self.reason, self.limit = reason, limit
        self._at = time.monotonic() + seconds
        self.when_set()


class Host(Protocol):
    """What a trainer needs from the process that it runs in."""

    save_frequency: int | None
    """Timesteps between checkpoints."""
    max_seconds_at_risk: float | None
    """Where that is None: seconds from a snapshot until the next one is committed, at most."""
    total_timesteps: int
    schedule_timesteps: int
    """Over which the model's schedules run: the total, or what the run file says instead."""
    evaluate_every: int | None
    """Timesteps between checkpoints that are evaluated, over and above the others; their facts say ``evaluate``."""
    restored: Snapshot | None
    """The checkpoint to go on from; None for a new run."""
    train_on: bool
    """Whether somebody asked to train on where a callback had ended the run before its total."""
    digests: Digests
    """Checksums of what this session computes."""

    def stop_deadline(self) -> float | None:
        """By when all must be committed, on ``time.monotonic()``; None where nobody asked to stop."""

    def save_requested(self) -> bool:
        """Whether somebody asked for a checkpoint out of turn; asking clears it."""

    def busy(self) -> bool:
        """Whether a commit is in flight. Raises what the last one ended with."""

    def commit_seconds(self, new_bytes: int) -> float:
        """How long it takes until a commit of so many bytes is over that begins now, by what was measured."""

    def settle(self) -> None:
        """Wait for the commit in flight."""

    def submit(self, snapshot: Snapshot) -> None:
        """Commit in the background."""

    def finish(self, snapshot: Snapshot) -> bool:
        """Commit the state after the last update, and all that belongs to a run's end.

        :return: whether something of it is left to the next session, because the deadline came first
        """

    def phase(self, name: str) -> None:
        """The training is now in: ``steps``, ``update``, ``pretrain`` or ``store`` (waiting for it)."""

    def pretrained(self, epochs: Sequence[Mapping[str, float]], policy: bytes | None = None) -> bool:
        """So far the pretraining has come.

        :param epochs: figures of all epochs that are over, each with its number as ``epoch``
        :param policy: once it is over: the cloned policy, as a file of the run's artifacts
        :return: whether all of it is where it will be found; False where a stop's deadline came first
        """
        return True

    def step(self, timesteps: int) -> None:
        """A step of the environments is done."""

    def episode(self, timesteps: int, env: int, episode: Mapping[str, Any]) -> None:
        """An episode of an environment is over; what Monitor says of it."""

    def stalled(self, milliseconds: float) -> None:
        """The training has waited so long for a checkpoint to set out."""

    def outputs(self) -> Sequence[KVWriter]:
        """Where scalars go besides the outputs that the model has."""

    def exactness(self, exact: bool, because: str) -> None:
        """Whether an interruption of this run can be exact."""


_hosts: list[Host] = []


@contextlib.contextmanager
def hosting(host: Host) -> Iterator[None]:
    """While this lasts, what trains in this process belongs to ``host``."""
    _hosts.append(host)
    try:
        yield
    finally:
        _hosts.pop()


def current_host() -> Host | None:
    """The innermost of :func:`hosting`; None in a process that ``train-cloud train`` has not started."""
    return _hosts[-1] if _hosts else None
