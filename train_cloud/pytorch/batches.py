"""Batches of a ``torch.utils.data.DataLoader``, epoch after epoch, with a position that can be saved.

A loader's own iterator has no state that could be saved. But all that decides on an epoch's batches is drawn when it
begins: the sampler's order and the workers' seed. So the generators of that moment are kept, with the number of batches
that were taken; a resumed session begins the epoch again with them, and passes over as many. Without workers only the
sampler is asked for these, with workers they are loaded once more: what a worker draws for one sample decides what it
draws for the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from train_cloud.envs.state import process_generators, set_process_generators
from train_cloud.errors import InputError
from train_cloud.sb3.kinds import is_own


class Batches:
    """See the module. An endless iterator.

    :ivar epoch: number of the epoch that the last batch was of, from 0
    :ivar offset: batches of it that were taken
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        if not isinstance(loader, DataLoader):
            raise InputError("batches", type(loader).__name__, "give a torch.utils.data.DataLoader")
        if loader.num_workers and loader.persistent_workers:
            fix = "workers that outlive an epoch have generators and caches that nobody can save: leave it False"
            raise InputError("persistent_workers", True, fix)
        if loader.num_workers and not getattr(loader, "in_order", True):
            fix = "which worker is the quickest decides on the order of the batches: leave it True"
            raise InputError("in_order", False, fix)
        self.loader = loader
        self.epoch = self.offset = 0
        self._begun: dict[str, Any] | None = None
        self._iterator: Iterator[Any] | None = None
        self._draws = False
        self._is_read_here = isinstance(loader.dataset, IterableDataset) and not loader.num_workers

    def __iter__(self) -> Batches:
        return self

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.loader)

    def __next__(self) -> Any:
        if self._iterator is None:
            if self._begun is None:
                self._begin()
            else:
                self._begin_again(self._begun)
        before = process_generators() if self._is_read_here else None
        try:
            batch = self._next()
        except StopIteration:
            if not self.offset:
                raise InputError("data", type(self.loader.dataset).__name__, "it has no batches") from None
            self.epoch, self.offset = self.epoch + 1, 0
            self._begin()
            batch = self._next()
        if before is not None and not self._draws:
            self._draws = not _are_same(before, process_generators())
        self.offset += 1
        return batch

    @property
    def not_kept(self) -> str:
        """What a checkpoint lacks of it, in words; empty where nothing is."""
        if not self._draws:
            return ""
        return (
            f"{type(self.loader.dataset).__name__} draws from the global generators while it is read, mixed with what "
            "the training draws: give it a generator of its own"
        )

    def train_cloud_holds(self) -> dict[str, Any]:
        """What may have state besides the position: code of the user's own, which is run in this process."""
        if self.loader.num_workers:
            return {}
        parts = {name: getattr(self.loader, name) for name in ("dataset", "sampler", "batch_sampler", "collate_fn")}
        return {name: part for name, part in parts.items() if is_own(type(part)) or isinstance(part, Dataset)}

    def state_dict(self) -> dict[str, Any]:
        generator = self.loader.generator
        own = None if generator is None else generator.get_state().clone()
        return {"epoch": self.epoch, "offset": self.offset, "begun": self._begun, "own": own, "draws": self._draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.offset, self._begun = state["epoch"], state["offset"], state["begun"]
        self._draws = state["draws"]
        if self.loader.generator is not None and state["own"] is not None:
            self.loader.generator.set_state(state["own"])
        self._iterator = None

    def _next(self) -> Any:
        assert self._iterator is not None
        return next(self._iterator)

    def _begin(self) -> None:
        for sampler in (self.loader.sampler, self.loader.batch_sampler):
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(self.epoch)
        generator = self.loader.generator
        self._begun = {
            "process": process_generators(),
            "own": None if generator is None else generator.get_state().clone(),
        }
        self._iterator = iter(self.loader)

    def _begin_again(self, begun: Mapping[str, Any]) -> None:
        """The epoch of a checkpoint, up to where it was."""
        generator = self.loader.generator
        own = None if generator is None else generator.get_state().clone()
        now = process_generators()
        set_process_generators(begun["process"])
        if generator is not None:
            generator.set_state(begun["own"])
        for sampler in (self.loader.sampler, self.loader.batch_sampler):
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(self.epoch)
        self._iterator = iter(self.loader)
        skip = getattr(self._iterator, "_next_index", None)
        if self.loader.num_workers or self._is_read_here or skip is None:
            for _ in itertools.islice(self._iterator, self.offset):
                pass
        else:
            for _ in range(self.offset):
                skip()
        if generator is not None:
            assert own is not None
            generator.set_state(own)
        set_process_generators(now)


def batches(loader: DataLoader[Any]) -> Batches:
    """An endless iterator over the batches of a loader, for ``resumable(data=…)``: ``x, y = next(data)``.

    A sampler's ``set_epoch`` is called when an epoch begins.

    :param loader: with any number of workers, but not ``persistent_workers``
    """
    return Batches(loader)


def _are_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one["python"] != other["python"] or one["unseeded"] != other["unseeded"]:
        return False
    first, second = one["numpy"]["state"], other["numpy"]["state"]
    if first["pos"] != second["pos"] or (first["key"] != second["key"]).any():
        return False
    return bool(torch.equal(torch.from_numpy(one["torch"]), torch.from_numpy(other["torch"])))
