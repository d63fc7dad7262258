"""A snapshot: the whole state of a run at one consistent point, in memory, as named parts and append-only rows.

``learn`` makes snapshots and takes them back; ``checkpoint`` stores and restores them. Neither knows the other: this
is all that they share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

OF_THE_BLOB = "own|#"
"""Names of arrays begin with it that were cut out of their part's blob, for being large."""

ENDED_EARLY = "ended_early"
"""In the facts of a checkpoint at which a callback ended the run: ``by`` which, and of which ``total_timesteps``."""

PRETRAINING = "pretraining"
"""Of a run that begins with pretraining: the part with its state, and in the facts how far it is: ``epoch`` of
``epochs``, and whether it is ``finished``."""


def is_pretraining(facts: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was taken before its run's pretraining was over: there are several at timesteps 0.

    :param facts: of the checkpoint
    """
    return not facts.get(PRETRAINING, {}).get("finished", True)


@dataclass(frozen=True)
class Part:
    """A named bundle of arrays and one opaque blob; stored as one object, but for large arrays that last."""

    arrays: Mapping[str, Array] = field(default_factory=dict)
    blob: bytes = b""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Name of an array → of its content. Equal names stand for equal bytes; these are stored once, as an object that
    each checkpoint names which needs them."""


class Columns(Mapping[str, Array]):
    """Columns that are made when they are asked for, and more cheaply where they go."""

    @abstractmethod
    def copy(self, name: str, rows: slice, target: Array) -> None:
        """What ``target[:] = self[name][rows]`` does.

        :param target: contiguous
        """


@dataclass(frozen=True)
class Rows:
    """Rows ``[first, last)`` of an append-only stream of which the newest ``capacity`` rows are alive: a replay buffer.

    Rows are counted from the run's start, not from the ring's. On the way to a store these are the rows that are new
    since the last checkpoint; on the way back, all that are alive.
    """

    first: int
    last: int
    capacity: int
    chunks: Iterable[tuple[int, Mapping[str, Array]]]
    """(number of the first row, columns); each column has the rows along its first axis. In ascending order. Those that
    come back from a store are :class:`Columns`."""
    successors: Mapping[str, str] = field(default_factory=dict)
    """Column → column: ``a[i] == b[i + 1]`` nearly everywhere, so that ``a`` need not be stored where that holds."""


@dataclass(frozen=True)
class Snapshot:
    timesteps: int
    parts: Mapping[str, Part]
    streams: Mapping[str, Rows] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able: what a reader may want to know without opening a part."""
