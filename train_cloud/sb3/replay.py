"""A replay buffer as an append-only stream of rows: what is new since the last checkpoint is all that has to travel.

A row is what one ``add`` stores: a transition of each environment. Rows are counted from the run's start; row ``n``
lies at ``n % size`` of the ring. Four buffers of Stable-Baselines3 are known well enough for that to be exact:

=====================================  =============================================================================
ReplayBuffer, DictReplayBuffer         rows never change once they are added
ReplayBuffer, optimize_memory_usage    has no ``next_observations``: ``add`` writes the following row's observation
                                       ahead of it, over the oldest row's, so that one row less is alive
NStepReplayBuffer                      ``sample`` marks the newest row as an end for a moment: small columns are copied
HerReplayBuffer                        ``add`` rewrites the ``ep_length`` of other rows when an episode ends, or is
                                       overwritten: it follows from the rows themselves and is computed at restore
=====================================  =============================================================================

A class derived from one of these may have more: what its other attributes hold is saved as a whole each time. Its rows
are taken at its word, and some are looked at again (:meth:`Ring.rewritten`).
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from train_cloud.errors import InputError, NotYet
from train_cloud.snapshot import Array, Columns, Rows

_LARGE = ("observations", "next_observations")
_SMALL = ("actions", "rewards", "dones", "timeouts", "ep_start")
_COPYING = 2
#: Rows of a buffer of a class that is not known that are looked at again at later snapshots.
_WATCHED, _LOOKED_AT = 256, 64
_KNOWN = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, HerReplayBuffer)


class Ring:
    """The rows of one buffer.

    :raises NotYet: a buffer of which it is not known how its rows change
    """

    def __init__(self, buffer: Any) -> None:
        if not isinstance(buffer, _KNOWN):
            fix = "not in this version: its rows are not known to stay as they are; derive it from SB3's ReplayBuffer"
            raise NotYet("hyperparameters.replay_buffer_class", type(buffer).__name__, fix)
        if isinstance(buffer, HerReplayBuffer) and buffer.copy_info_dict:
            fix = "not in this version: infos are objects of any kind; compute rewards from goals alone"
            raise NotYet("hyperparameters.replay_buffer_kwargs.copy_info_dict", True, fix)
        self.buffer: ReplayBuffer = buffer
        self.size: int = buffer.buffer_size
        """Rows that there is room for."""
        self.capacity = max(1, self.size - 1) if buffer.optimize_memory_usage else self.size
        """Rows that are alive at most: the newest ones."""
        self._columns = _columns(buffer)
        for name, column in self._columns.items():
            if column.dtype.hasobject and type(buffer) in _KNOWN:
                raise InputError("environment.id", name, "its spaces hold Python objects: only numbers can be saved")
            if column.dtype.hasobject:
                fix = f"its {name} are Python objects: only arrays of numbers can be saved; leave it out"
                raise InputError("hyperparameters.replay_buffer_class", type(buffer).__name__, fix)
        after, before = reversed(_LARGE)
        self._successors = {name: before + name[len(after) :] for name in self._columns if name.split("/")[0] == after}
        self.sent_bytes: int = sum(c[:1].nbytes for name, c in self._columns.items() if name not in self._successors)
        """Of one row on its way to a store: without what stands in the next row, too."""
        self._watched: dict[int, int] | None = None if type(buffer) in _KNOWN else {}
        self._looked_at = 0

    def at(self, last: int) -> bool:
        """Whether the ring's position agrees with ``last`` rows that were ever added."""
        return last % self.size == int(self.buffer.pos)

    @property
    def attributes(self) -> frozenset[str]:
        """Names of the buffer's attributes whose state is in its rows or in :meth:`state`."""
        of_hindsight = ("ep_start", "ep_length", "_current_ep_start", "infos")
        return frozenset((*_LARGE, *_SMALL, "pos", "full", *of_hindsight))

    def rewritten(self, last: int) -> bool:
        """Whether a row was changed after it was added, as far as a random choice of rows shows. Only of derived
        classes; to be asked at each snapshot.

        :param last: number of rows that were ever added
        """
        if self._watched is None:
            return False
        oldest = last - self.capacity + 1
        there = {row: checksum for row, checksum in self._watched.items() if row >= oldest}
        changed = any(self._checksum(row) != checksum for row, checksum in there.items())
        first = max(oldest, self._looked_at, 0)
        chance = random.Random(last)
        new = chance.sample(range(first, last), min(_LOOKED_AT, last - first)) if last > first else []
        if len(there) > _WATCHED:
            there = dict(chance.sample(sorted(there.items()), _WATCHED))
        self._watched = there | {row: self._checksum(row) for row in new}
        self._looked_at = last
        return changed

    def _checksum(self, row: int) -> int:
        checksum = 0
        for column in self._columns.values():
            checksum = zlib.crc32(column[row % self.size].tobytes(), checksum)
        return checksum

    def count(self) -> int:
        """Rows that were added, as far as the ring tells: those of earlier laps count as one lap."""
        return int(self.buffer.pos) + (self.size if self.buffer.full else 0)

    def mismatches(self, chunk: Mapping[str, Array]) -> list[str]:
        """Why rows of another buffer cannot be taken, column by column; empty if they can."""
        found = []
        for name in sorted({*chunk, *self._columns}):
            there, here = (str(of[name].dtype) + str(of[name].shape[1:]) if name in of else "none"
                           for of in (chunk, self._columns))  # fmt: skip
            if there != here:
                found.append(f"{name}: {there} there, {here} here")
        return found

    def rows(self, first: int, last: int) -> Rows:
        """Rows ``[first, last)``, of those that are alive.

        Observations are views: they stay put until ``capacity`` rows from ``first`` on are added. Small columns are
        copied.
        """
        first = max(first, last - self.capacity)
        chunks = []
        for start, stop in _laps(first, last, self.size):
            at = start % self.size
            window = slice(at, at + stop - start)
            columns = {
                name: column[window] if _is_large(name) else column[window].copy()
                for name, column in self._columns.items()
            }
            chunks.append((start, columns))
        return Rows(first, last, self.capacity, chunks, self._successors)

    def state(self) -> dict[str, Any]:
        """What is in no row."""
        state: dict[str, Any] = {}
        if self.buffer.optimize_memory_usage:
            state["ahead"] = self.buffer.observations[self.buffer.pos].copy()
        if isinstance(self.buffer, HerReplayBuffer):
            state["episode_starts"] = self.buffer._current_ep_start.copy()
        return state

    def load(self, rows: Rows, state: Mapping[str, Any]) -> int:
        """Overwrite a buffer that nothing was added to.

        :return: number of rows that were ever added
        """
        if rows.capacity != self.capacity:
            begun = rows.capacity + self.size - self.capacity
            raise InputError("hyperparameters.buffer_size", self.size, f"this run was begun with {begun}")
        # Each chunk has rows of its own, and copying them releases the interpreter lock: two threads copy what this one
        # unpacks. No more chunks are in memory than that.
        with ThreadPoolExecutor(_COPYING) as pool:
            under_way: deque[Future[None]] = deque()
            for first, chunk in rows.chunks:
                while len(under_way) >= _COPYING:
                    under_way.popleft().result()
                under_way.append(pool.submit(self._copy, first, chunk))
                del chunk
            for future in under_way:
                future.result()
        self.buffer.pos = rows.last % self.size
        self.buffer.full = rows.last >= self.size
        if not rows.last:
            return 0  # a fork that left the rows behind: what follows refers to them
        if "ahead" in state:
            self.buffer.observations[self.buffer.pos] = state["ahead"]
        if isinstance(self.buffer, HerReplayBuffer):
            self.buffer._current_ep_start[:] = state["episode_starts"]
            self._measure_episodes(self.buffer, rows.last)
        return rows.last

    def _copy(self, first: int, chunk: Mapping[str, Array]) -> None:
        count = len(next(iter(chunk.values())))
        for start, stop in _laps(first, first + count, self.size):
            at = start % self.size
            for name, column in self._columns.items():
                rows_of, target = slice(start - first, stop - first), column[at : at + stop - start]
                if isinstance(chunk, Columns):
                    chunk.copy(name, rows_of, target)
                else:
                    target[:] = chunk[name][rows_of]

    def _measure_episodes(self, buffer: HerReplayBuffer, last: int) -> None:
        """``ep_length`` as the last ``size`` calls of ``add`` have left it: an episode's length in each of its rows, 0
        where it goes on still, or where its first row is overwritten.
        """
        oldest = max(0, last - self.size)
        numbers = np.arange(oldest, last)
        at = numbers % self.size
        for env in range(buffer.n_envs):
            ends = numbers[buffer.dones[at, env] != 0]
            lengths = (ends + 1 - buffer.ep_start[ends % self.size, env]) % self.size  # as SB3 does, 0 for a whole lap
            begins = ends + 1 - lengths
            whole = (lengths > 0) & (begins >= oldest)
            steps = np.zeros(last - oldest + 1, np.int64)
            np.add.at(steps, begins[whole] - oldest, lengths[whole])
            np.add.at(steps, ends[whole] + 1 - oldest, -lengths[whole])
            buffer.ep_length[:, env] = 0
            buffer.ep_length[at, env] = np.cumsum(steps)[:-1]


def _laps(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``[first, last)`` where the ring wraps."""
    while first < last:
        stop = min(last, (first // size + 1) * size)
        yield first, stop
        first = stop


def _is_large(name: str) -> bool:
    return name.split("/")[0] in _LARGE


def _columns(buffer: ReplayBuffer) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    for name in _LARGE + _SMALL:
        value = getattr(buffer, name, None)
        if isinstance(value, dict):
            columns.update({f"{name}/{key}": array for key, array in value.items()})
        elif value is not None:
            columns[name] = value
    return columns
