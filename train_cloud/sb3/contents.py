"""What is large in snapshots, told apart by content: a table of prices that is in the state of each environment, the
same at each checkpoint, is sent once.

An array may be changed in place at any time, so each is read at each snapshot (30 GB/s), and copied where its content
is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from train_cloud.envs.pickling import LARGE_BYTES, Content, Stream, content_name
from train_cloud.sb3.pickling import MARK, UNNAMED, as_numpy, marked
from train_cloud.snapshot import Array, Part


class _Seen(NamedTuple):
    name: str
    changed: bool


class Contents:
    """Of one training.

    What is another one in each snapshot would be one object more in each checkpoint, and is sent in any case. So what
    has changed twice in a row is an array like all others, until it is the same twice in a row. The same holds for
    tensors that have not been seen before, as nearly all of these are learned.

    :ivar arrays: of the last snapshot, by name
    :ivar names: those that are stored by their content: name of the array → of the content
    """

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.names: dict[str, str] = {}
        self._copies: dict[str, Array] = {}
        self._before: dict[str, _Seen] = {}
        self._seen: dict[str, _Seen] = {}

    def begin(self) -> Stream:
        """:return: what the pickle of a snapshot is written to"""
        self.arrays, self.names, self._seen = {}, {}, {}
        return Stream(self._take_next)

    def end(self, stream: Stream, tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, torch.Tensor]]:
        """:param tensors: that travel beside the pickle
        :return: the pickle, to be read by :func:`train_cloud.sb3.pickling.read`, and the tensors that are not large
        """
        rest = {}
        for name, tensor in tensors.items():
            if not tensor.is_cpu or tensor.nbytes < LARGE_BYTES:
                rest[name] = tensor
                continue
            whole = np.ascontiguousarray(as_numpy(tensor.detach()).numpy())
            taken = self._take(name, whole.reshape(-1).view(np.uint8).data, learned=True)
            self.arrays[name] = taken.view(whole.dtype).reshape(whole.shape)
        self._copies = {name: self._copies[name] for name in self.names.values()}
        self._before = self._seen
        return marked(stream), rest

    def restored(self, part: Part) -> None:
        """A session goes on from a checkpoint with this part: what the store has is not sent again."""
        self.names = dict(part.contents)
        self._copies = {name: part.arrays[place].reshape(-1).view(np.uint8) for place, name in self.names.items()}
        self._before = {place: _Seen(name, False) for place, name in self.names.items()}
        if part.blob.startswith(MARK):
            others = (place for place in part.arrays if place.startswith(UNNAMED) and place not in self.names)
            self._before |= {place: _Seen("", True) for place in others}

    def _take_next(self, content: Content) -> None:
        place = f"{UNNAMED}{len(self.arrays)}"
        self.arrays[place] = self._take(place, content, learned=False)

    def _take(self, place: str, content: Content, *, learned: bool) -> Array:
        name = content_name(content)
        copy = self._copies.get(name)
        if copy is None:
            copy = np.frombuffer(content, np.uint8)
            if not isinstance(content, bytes):
                copy = copy.copy()
                name = content_name(copy.data)  # a thread of the environment's may have written to it meanwhile
        before = self._before.get(place)
        if before is None:
            changed, lasts = learned, not learned
        else:
            changed = before.name != name
            lasts = not (changed and before.changed)
        self._seen[place] = _Seen(name, changed)
        if lasts or name in self._copies:
            self._copies[name], self.names[place] = copy, name
        return copy


def size_of(names: Iterable[str]) -> int:
    """Bytes of contents, by their names."""
    return sum(int(name.partition("-")[2]) for name in names)
