"""Checksums of what a training computed, so that steps that are computed twice can be compared.

Two kinds. *Rolling* checksums, one for each of :data:`LAYERS`, go over every row that the learner stored: what it
observed, what it did, what the environment answered. They are read from the rollout or replay buffer in blocks, because
a Python call for each step would cost more than the checksum itself. *Parameters* are summed up for each commit.

After row *i* a rolling checksum is ``H[i] = H[i-1] * P + row[i]`` modulo 2**64. Where a block begins and ends makes no
difference to it, so it does not depend on when a run commits or is interrupted; nothing in it depends on the process,
the hash seed or the device.

A session keeps the values since its last commit in a :class:`Table`, with fewer and fewer of them the longer that is:
in a small file, which a killed process leaves behind, and a few of them in its progress record. The session that
computes the same steps again compares (:meth:`Digests.expect`), and tells the first difference.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from awscrt import checksums

from train_cloud.sb3.replay import Ring
from train_cloud.snapshot import OF_THE_BLOB, Array, Part

Words = npt.NDArray[np.uint64]

#: What a row has, in the order in which a step produces it.
LAYERS = ("observation", "action", "reward", "end")
#: The layer of what the updates made: the parameters at a commit.
UPDATE = "update"

_MULTIPLIER = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, odd: D. Knuth, The Art of Computer Programming, volume 3, section 6.4."""
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)
_LONG_ROW = 1024
"""Bytes from which on a CRC of each row is quicker than a product of all."""
_BLOCK = 64
"""Rows of a replay buffer that are read at once."""
_ENTRIES = 8192
_PARAMETERS = 64
"""Checksums of parameters that a table has room for besides: the newest."""
_REPORTED = 10
_ENTRY = np.dtype([("timesteps", "<u8"), ("rolled", "<u8", (len(LAYERS),)), ("check", "<u8")])
_HEADER = 32


_in_words: dict[str, str] = {}


def say_for_loops() -> None:
    """From now on differences are of a loop of the user's own, whose rows have other things in these layers."""
    _in_words.update({"observation": "the random generators", "action": "the logged values"})


@dataclass(frozen=True)
class Difference:
    """Where steps that were computed again first differ.

    :ivar after: the last timestep known to be equal
    :ivar timesteps: the first known to differ
    :ivar layers: what differs there, of :data:`LAYERS`, or :data:`UPDATE`
    :ivar other: what it was compared with, in words
    :ivar per_row: timesteps that one step of all environments takes
    """

    after: int
    timesteps: int
    layers: tuple[str, ...]
    other: str
    per_row: int = 1

    def __str__(self) -> str:
        if self.layers == (UPDATE,):
            return f"since the update before step {self.timesteps:,}: the parameters differ from {self.other}"
        if self.layers[0] in _in_words:
            what = " and ".join(_in_words[layer] for layer in self.layers)
            since = f"step {self.timesteps:,}"
            if self.timesteps - self.after > self.per_row:
                since = f"a step after {self.after:,} and up to {self.timesteps:,}"
            return f"since {since}: {what} differ from {self.other}"
        if self.timesteps - self.after <= self.per_row:
            what = self.layers[0] if self.layers[0] == "action" else f"environment's {self.layers[0]}"
            return f"since step {self.timesteps:,}: the {what} differs from {self.other}"
        between = f"since a step after {self.after:,} and up to {self.timesteps:,}"
        return f"{between}: {', '.join(self.layers)} differ from {self.other}"


class Rolled:
    """Rolling checksums of all layers.

    :ivar timesteps: up to which they go
    :ivar since: from which on
    """

    def __init__(self, timesteps: int = 0, since: int = 0, values: Sequence[int] = (0,) * len(LAYERS)) -> None:
        self.timesteps, self.since = timesteps, since
        self.values: Words = np.array(values, np.uint64)

    def add(self, rows: Words, last: int) -> Words:
        """Go on over a block of rows.

        :param rows: checksum of each row in each layer, (layers, n)
        :param last: timesteps after the last row
        :return: the values after each row, of the same shape
        """
        count = rows.shape[1]
        powers, inverses = _powers(count)
        after = powers * (self.values[:, None] + np.cumsum(rows * inverses, axis=1, dtype=np.uint64))
        self.values, self.timesteps = after[:, -1].copy(), last
        return after

    def facts(self) -> dict[str, Any]:
        """JSON values, from which :meth:`of` makes the same again."""
        named = {layer: f"{value:016x}" for layer, value in zip(LAYERS, self.values.tolist(), strict=True)}
        return {"timesteps": self.timesteps, "since": self.since, **named}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Rolled:
        return cls(facts["timesteps"], facts["since"], [int(facts[layer], 16) for layer in LAYERS])


class Table:
    """Rolling checksums by timesteps, at most so many: when it is full, every second one goes. And checksums of the
    parameters at checkpoints.

    Its memory may be a file, which holds whole entries at any instant: each has a check of its own.

    :param path: of the file, made anew
    :param of: what the values belong to; :func:`read_table` gives nothing for another
    """

    def __init__(self, path: Path | None = None, of: str = "", entries: int = _ENTRIES) -> None:
        self._count = 0
        self.stride = 1
        """Only rows whose number is a multiple of this are taken. A power of 2, so that tables with different strides
        have rows in common."""
        size = _HEADER + (entries + _PARAMETERS) * _ENTRY.itemsize
        memory: Any = bytearray(size)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w+b") as file:
                file.truncate(size)
                memory = mmap.mmap(file.fileno(), size)
        memory[:_HEADER] = _header(of)
        every = np.frombuffer(memory, _ENTRY, offset=_HEADER)
        self._parameters, self._entries = every[:_PARAMETERS], every[_PARAMETERS:]
        self._kept = 0

    def anchor(self, rolled: Rolled) -> None:
        """Begin after ``rolled``: what came before is not needed any more."""
        kept = self.rows()
        kept = kept[kept["timesteps"] > rolled.timesteps]
        self._replace(np.concatenate([_entries([rolled.timesteps], rolled.values[:, None]), kept]))
        if not len(kept):
            self.stride = 1

    def add(self, timesteps: npt.NDArray[np.int64], after: Words, per_row: int) -> None:
        """
        :param timesteps: after each row, ascending
        :param after: the rolling checksums there, (layers, n)
        :param per_row: timesteps of a row
        """
        numbers = timesteps // per_row
        while True:
            chosen = numbers % self.stride == 0
            if self._count + int(chosen.sum()) <= len(self._entries):
                break
            self.stride *= 2
            kept = self.rows()
            among = (kept["timesteps"] // per_row) % self.stride == 0
            among[0] = True  # where it begins
            self._replace(kept[among])
        new = _entries(timesteps[chosen], after[:, chosen])
        self._entries[self._count : self._count + len(new)] = new
        self._count += len(new)

    def keep(self, timesteps: int, parameters: str) -> None:
        """The parameters of a checkpoint that is about to be committed."""
        value = np.zeros((len(LAYERS), 1), np.uint64)
        value[0] = int(parameters, 16)
        self._parameters[self._kept % _PARAMETERS] = _entries([timesteps], value)[0]
        self._kept += 1

    def rows(self) -> npt.NDArray[Any]:
        """A copy of the entries, ascending."""
        kept: npt.NDArray[Any] = self._entries[: self._count].copy()
        return kept

    def parameters(self) -> dict[int, str]:
        """By timesteps."""
        return _by_timesteps(self._parameters)

    def _replace(self, entries: npt.NDArray[Any]) -> None:
        # By others of the same run: a kill in between leaves both, or neither, never a wrong one.
        self._entries[: len(entries)] = entries
        self._entries[len(entries) : self._count] = 0
        self._count = len(entries)


def read_table(path: Path, name: str, of: str = "") -> Recording | None:
    """What a :class:`Table` has left in a file; None where there is nothing of ``of``.

    :param name: for messages
    """
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return None
    if body[:_HEADER] != _header(of) or (len(body) - _HEADER) % _ENTRY.itemsize:
        return None
    every = np.frombuffer(body, _ENTRY, offset=_HEADER)
    return Recording(name, np.unique(_whole(every[_PARAMETERS:])), _by_timesteps(every[:_PARAMETERS]))


def _whole(entries: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Those that are there, and were not torn by a kill."""
    found: npt.NDArray[Any] = entries[(entries["check"] == _checks(entries)) & (entries["check"] != 0)]
    return found


def _by_timesteps(parameters: npt.NDArray[Any]) -> dict[int, str]:
    return {int(entry["timesteps"]): f"{int(entry['rolled'][0]):016x}" for entry in _whole(parameters)}


def _header(of: str) -> bytes:
    return f"digests {of}".encode().ljust(_HEADER, b"\0")[:_HEADER]


def _entries(timesteps: Any, after: Words) -> npt.NDArray[Any]:
    entries = np.zeros(len(timesteps), _ENTRY)
    entries["timesteps"] = timesteps
    entries["rolled"] = after.T
    entries["check"] = _checks(entries)
    return entries


def _checks(entries: npt.NDArray[Any]) -> Words:
    """Never 0, which a hole in the file has."""
    sums: Words = (entries["rolled"] * _weights(len(LAYERS))).sum(axis=1, dtype=np.uint64)
    checks: Words = (sums + entries["timesteps"] * np.uint64(_MULTIPLIER)) | np.uint64(1)
    return checks


@dataclass(frozen=True)
class Recording:
    """What another session, or another process, recorded of the same steps.

    :ivar name: whose it is, for messages
    :ivar rows: entries as of :meth:`Table.rows`
    :ivar parameters: checksum of the parameters by timesteps
    """

    name: str
    rows: npt.NDArray[Any]
    parameters: Mapping[int, str]

    def follows(self, rolled: Rolled) -> bool:
        """Whether it came by this very point: then its later steps are the same ones."""
        here = self.rows[self.rows["timesteps"] == rolled.timesteps]
        return len(here) > 0 and bool((here["rolled"] == rolled.values).all())

    @classmethod
    def of(cls, name: str, reported: Mapping[str, Any]) -> Recording:
        """From what :meth:`Digests.reported` gave."""
        table = reported["table"]
        values = np.array([[int(value, 16) for value in row[1:]] for row in table], np.uint64)
        rows = _entries([row[0] for row in table], values.reshape(len(table), len(LAYERS)).T)
        return cls(name, rows, dict(reported["parameters"]))


class Digests:
    """The checksums of one session. The training adds to them; the commit's thread and others read.

    :param path: of the file that a killed process leaves; None keeps all in memory
    :param of: the run that they belong to, see :class:`Table`
    :param keep_all: also what is committed, as far as there is room: for a comparison afterwards
    """

    def __init__(self, path: Path | None = None, of: str = "", *, keep_all: bool = False) -> None:
        self._lock = threading.Lock()
        self._rolled = Rolled()
        self._table = Table(path, of)
        self._keep_all = keep_all
        self._expected: list[Recording] = []
        self._equal_to = 0
        self.compared = 0
        """Timesteps that were computed again and are the same."""
        self.difference: Difference | None = None
        self.on_difference: Callable[[Difference], None] = lambda difference: None
        self._table.anchor(self._rolled)

    def resume(self, timesteps: int, facts: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint.

        :param facts: what :meth:`now` gave there; None of a run that was begun without them
        """
        with self._lock:
            self._rolled = Rolled(timesteps, timesteps) if facts is None else Rolled.of(facts)
            self._table.anchor(self._rolled)
            self._equal_to = timesteps
            self._expected = [each for each in self._expected if each.follows(self._rolled)]

    def expect(self, recordings: Sequence[Recording]) -> None:
        """Compare with these from the next :meth:`resume` on."""
        self._expected = list(recordings)

    @property
    def timesteps(self) -> int:
        return self._rolled.timesteps

    def add(self, rows: Words, last: int, per_row: int) -> None:
        """A block of rows.

        :param rows: checksum of each in each layer, (layers, n)
        :param last: timesteps after the last one
        :param per_row: timesteps of a row
        """
        count = rows.shape[1]
        if not count:
            return
        timesteps = last - per_row * np.arange(count - 1, -1, -1, dtype=np.int64)
        with self._lock:
            after = self._rolled.add(rows, last)
            self._table.add(timesteps, after, per_row)
        for recording in self._expected:
            self._compare(recording, timesteps, after, per_row)

    def now(self) -> dict[str, Any]:
        """For a checkpoint's facts."""
        return self._rolled.facts()

    def kept(self, timesteps: int, parameters: str) -> None:
        """A checkpoint of these timesteps is about to be committed.

        :param parameters: what :func:`sum_of` gave of its tensors
        """
        with self._lock:
            self._table.keep(timesteps, parameters)
        for recording in self._expected:
            expected = recording.parameters.get(timesteps)
            if expected is not None and expected != parameters:
                self._differ(Difference(timesteps, timesteps, (UPDATE,), recording.name))

    def committed(self, facts: Mapping[str, Any] | None) -> None:
        """Nobody computes the steps up to this checkpoint again.

        :param facts: its own
        """
        if facts is None or self._keep_all:
            return
        with self._lock:
            self._table.anchor(Rolled.of(facts))

    def reported(self) -> dict[str, Any]:
        """For the session's progress record: about a kilobyte."""
        with self._lock:
            rows, parameters = self._table.rows(), self._table.parameters()
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _REPORTED).astype(int))]
        table = [[int(row["timesteps"]), *(f"{value:016x}" for value in row["rolled"].tolist())] for row in chosen]
        newest = [[at, value] for at, value in sorted(parameters.items())[-3:]]
        return {"table": table, "parameters": newest, "compared": self.compared}

    def recording(self, name: str) -> Recording:
        """All that is kept here."""
        with self._lock:
            return Recording(name, self._table.rows(), self._table.parameters())

    def _compare(self, recording: Recording, timesteps: npt.NDArray[np.int64], after: Words, per_row: int) -> None:
        known = recording.rows
        low, high = np.searchsorted(known["timesteps"], (timesteps[0], timesteps[-1] + 1))
        known = known[low:high]
        at = np.searchsorted(timesteps, known["timesteps"])
        there = timesteps[at] == known["timesteps"]
        known, at = known[there], at[there]
        other = known["rolled"] != after[:, at].T
        wrong = np.flatnonzero(other.any(axis=1))
        right = known["timesteps"][: wrong[0]] if len(wrong) else known["timesteps"]
        if len(right) and int(right[-1]) > self._equal_to:
            self.compared += int(right[-1]) - self._equal_to
            self._equal_to = int(right[-1])
        if len(wrong):
            layers = tuple(layer for layer, differs in zip(LAYERS, other[wrong[0]], strict=True) if differs)
            first = int(known["timesteps"][wrong[0]])
            self._differ(Difference(self._equal_to, first, layers, recording.name, per_row))

    def _differ(self, difference: Difference) -> None:
        self._expected = []  # what follows differs too
        if self.difference is None:
            self.difference = difference
            self.on_difference(difference)


def first_difference(one: Recording, other: Recording) -> Difference | None:
    """Of two recordings of the same steps; None where all that both have is equal. Each has the steps from its first
    entry on.
    """
    shared, here, there = np.intersect1d(one.rows["timesteps"], other.rows["timesteps"], return_indices=True)
    differs = one.rows["rolled"][here] != other.rows["rolled"][there]
    wrong = np.flatnonzero(differs.any(axis=1))
    found = None
    if len(wrong):
        after = int(shared[wrong[0] - 1]) if wrong[0] else 0
        layers = tuple(layer for layer, is_other in zip(LAYERS, differs[wrong[0]], strict=True) if is_other)
        per_row = int(np.diff(one.rows["timesteps"].astype(np.int64)).min(initial=1 << 62))
        found = Difference(after, int(shared[wrong[0]]), layers, other.name, per_row)
    for at in sorted(one.parameters.keys() & other.parameters.keys()):
        if one.parameters[at] != other.parameters[at] and (found is None or at < found.timesteps):
            return Difference(at, at, (UPDATE,), other.name)
    return found


# ------------------------------------------------------------------------------------ checksums of rows and of arrays


@cache
def _weights(count: int) -> Words:
    """Odd numbers that look random: splitmix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
    generators", 2014).
    """
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_MULTIPLIER)
    weights: Words = _mixed(state) | np.uint64(1)
    return weights


def _mixed(state: Words) -> Words:
    """Spreads each number's bits over all of its own: the last steps of splitmix64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = state ^ (state >> np.uint64(31))
    return mixed


_known_powers: tuple[Words, Words] = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def _powers(count: int) -> tuple[Words, Words]:
    """The multiplier's powers 1 to ``count``, and their inverses."""
    global _known_powers
    if len(_known_powers[0]) < count:
        size = 1 << (count - 1).bit_length()
        powers, inverses = (
            np.multiply.accumulate(np.full(size, base, np.uint64), dtype=np.uint64)
            for base in (np.uint64(_MULTIPLIER), np.uint64(_INVERSE))
        )
        _known_powers = (powers, inverses)
    powers, inverses = _known_powers
    return powers[:count], inverses[:count]


def row_sums(column: Array) -> Words:
    """A checksum of the bytes of each row.

    :param column: rows along the first axis
    """
    count = len(column)
    flat = np.ascontiguousarray(column).reshape(count, -1).view(np.uint8)
    width = flat.shape[1]
    if width > _LONG_ROW:
        return np.fromiter((checksums.crc64nvme(row.data) for row in flat), np.uint64, count)
    if width % 8:
        padded = np.zeros((count, width + 8 - width % 8), np.uint8)
        padded[:, :width] = flat
        flat = padded
    lanes = flat.view(np.uint64)
    lanes = lanes ^ (
        lanes >> np.uint64(29)
    )  # round numbers have all of their bits at one end, where a product loses some
    return _mixed(lanes @ _weights(lanes.shape[1]))


def sums_of(layers: Mapping[str, Mapping[str, Array]], count: int) -> Words:
    """Checksums of rows.

    :param layers: layer to its columns by name, each with ``count`` rows
    :return: (layers, count)
    """
    rows = np.zeros((len(LAYERS), count), np.uint64)
    for number, layer in enumerate(LAYERS):
        for _, column in sorted(layers.get(layer, {}).items()):
            rows[number] = rows[number] * np.uint64(_INVERSE) + row_sums(column)
    return rows


def sum_of(parts: Mapping[str, Part]) -> str:
    """One checksum of every tensor in the parts of a snapshot: names, types, shapes and bytes. It waits for those that
    are still on their way from a GPU. What is large in the pickle beside them may tell times and is left out.
    """
    value = 0
    for name, part in sorted(parts.items()):
        for key in sorted(name for name in part.arrays if not name.startswith(OF_THE_BLOB)):
            array = np.ascontiguousarray(part.arrays[key])
            value = checksums.crc64nvme(f"{name} {key} {array.dtype.str} {array.shape}".encode(), value)
            value = checksums.crc64nvme(array.reshape(-1).view(np.uint8).data, value)
    return f"{value:016x}"


# ------------------------------------------------------------------------------------------------- reading the buffers

_LAYER_OF = {
    "observations": "observation",
    "action_masks": "observation",
    "actions": "action",
    "rewards": "reward",
    "dones": "end",
    "timeouts": "end",
    "episode_starts": "end",
}


class Reader:
    """Reads what a model has stored since the last time, and adds it to the checksums.

    A rollout buffer is read when it is full, a replay buffer every few steps and at each checkpoint; of several agents,
    whose buffers grow by as many rows as there are agents alive, at each step.

    :param model: set up for learning
    :param rings: its replay buffers by learner; without those that have none
    :param per_step: timesteps that a step of all environments counts
    """

    def __init__(self, digests: Digests, model: Any, rings: Mapping[str, Ring], per_step: int) -> None:
        self._digests = digests
        self._model = model
        self._per_step = per_step
        self._rings = dict(sorted(rings.items()))
        self._read = dict.fromkeys(self._rings, 0)
        self._single = len(self._rings) == 1 and not hasattr(model, "learners")
        smallest = min((ring.capacity for ring in self._rings.values()), default=0)
        rows = max(1, min(_BLOCK, smallest // 2)) if self._single else 1
        self._every: float = rows * per_step if self._rings else float("inf")
        self.due = self._every
        """Timesteps from which on :meth:`read` should be called."""

    def begin(self, rows: Mapping[str, int], timesteps: int) -> None:
        """What is in the replay buffers now was read before, or belongs to another run.

        :param rows: that were ever added, by learner
        :param timesteps: the run's now
        """
        self._read = {name: rows[name] for name in self._rings}
        self.due = timesteps + self._every

    def read(self, timesteps: int, rows: Mapping[str, int]) -> None:
        """
        :param timesteps: those that are stored
        :param rows: that were ever added, by learner
        """
        self.due = timesteps + self._every
        if timesteps <= self._digests.timesteps or not self._rings:
            return
        blocks = [self._block(name, rows[name]) for name in self._rings]
        if self._single:
            self._digests.add(blocks[0], timesteps, self._per_step)
            return
        together = np.zeros(len(LAYERS), np.uint64)
        for block in blocks:
            together = together * np.uint64(_INVERSE) + (block * _powers(block.shape[1])[0]).sum(
                axis=1, dtype=np.uint64
            )
        self._digests.add(together[:, None], timesteps, 1)

    def rollout(self, timesteps: int) -> None:
        """A rollout buffer has been filled, or will not be filled any more.

        :param timesteps: those that are stored
        """
        buffer = getattr(self._model, "rollout_buffer", None)
        if buffer is None or timesteps <= self._digests.timesteps:
            return
        count = buffer.buffer_size if buffer.full else buffer.pos
        self._digests.add(sums_of(_layers(vars(buffer), slice(0, count)), count), timesteps, self._per_step)

    def _block(self, name: str, last: int) -> Words:
        first, self._read[name] = self._read[name], last
        blocks = [np.zeros((len(LAYERS), 0), np.uint64)]
        for _, columns in self._rings[name].rows(first, last).chunks:
            blocks.append(sums_of(_layers(columns, slice(None)), len(next(iter(columns.values())))))
        return np.concatenate(blocks, axis=1)


def _layers(columns: Mapping[str, Any], rows: slice) -> dict[str, dict[str, Array]]:
    """Columns by layer; those that the environments did not give are left out."""
    layers: dict[str, dict[str, Array]] = {}
    for name, column in columns.items():
        layer = _LAYER_OF.get(name.split("/")[0])
        if layer is None:
            continue
        if isinstance(column, dict):
            layers.setdefault(layer, {}).update({f"{name}/{key}": part[rows] for key, part in column.items()})
        elif isinstance(column, np.ndarray):
            layers.setdefault(layer, {})[name] = column[rows]
    return layers
