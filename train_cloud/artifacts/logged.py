"""What was logged and may not have reached the store yet: a checkpoint takes it along, so that no head stands without
its scalars, and nothing that was sent before has to be sent again with each.

A session on a new disk fetches the files as they lie in the store, in whatever state its predecessors left them there,
adds what they lack of this, and cuts them at the head (``tables``, ``tensorboard``). Lines and records are told apart
by their content, which has a time in it: what is there already is not added twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from train_cloud.artifacts import tables, tensorboard
from train_cloud.snapshot import Part


class Logged:
    """:param folder: of the artifacts
    :param sent: how many bytes of a file, by its name, are in the store; files only grow from there on
    """

    def __init__(self, folder: Path, sent: Callable[[str], int]) -> None:
        self._folder, self._sent = folder, sent
        self._between: dict[str, list[int]] = {}
        """Of event files, in ascending order: bytes that a record begins at, found at the end of each take."""

    def take(self, paths: Iterable[Path]) -> Part:
        """The ends of these files that are not in the store for certain."""
        ends = {}
        for path in paths:
            name = path.relative_to(self._folder).as_posix()
            sent = self._sent(name)
            if path.stat().st_size == sent:
                continue
            if path.suffix == ".csv":
                ends[name] = tables.end(path, sent)
            else:
                ends[name] = self._records(name, path, sent)
        return Part({name: np.frombuffer(body, np.uint8) for name, body in ends.items()})

    def _records(self, name: str, path: Path, sent: int) -> bytes:
        """From some take's end on that was sent; only what came since the last one is looked at record by record."""
        known = self._between.get(name, [0])
        new = tensorboard.whole_records(path, known[-1])
        begin = max(at for at in known if at <= sent)
        self._between[name] = [at for at in (*known, known[-1] + len(new)) if at >= begin]
        with path.open("rb") as file:
            file.seek(begin)
            return file.read(known[-1] - begin) + new

    def add(self, part: Part) -> None:
        """Complete the files by what :meth:`take` returned; what goes beyond the head is still to be cut."""
        for name, body in part.arrays.items():
            path = self._folder / name
            if path.suffix == ".csv":
                tables.extend(path, body.tobytes())
            else:
                tensorboard.extend(path, body.tobytes())
