"""Which samples come when: functions of (seed, epoch) and of the data, never of caches, workers or speed."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from train_cloud.data.index import Index, Numbers

_PARTS = 1 << 32


def members(index: Index, split: tuple[float, float], by: str) -> Numbers:
    """Samples of a part of the data, ascending.

    Where a sample belongs is decided by a hash of its key (or of its folder) alone: more data moves none from one part
    to another.

    :param split: from where to where, of 0 to 1
    :param by: ``key``; ``folder``: what lies in one folder, such as the frames of an episode, stays together
    """
    if split == (0.0, 1.0):
        return np.arange(index.count, dtype=np.int64)
    low, high = (round(bound * _PARTS) for bound in split)
    places: dict[str, bool] = {}
    chosen = np.zeros(index.count, bool)
    for sample in range(index.count):
        key = index.key(sample)
        name = key.rpartition("/")[0] if by == "folder" else key
        inside = places.get(name)
        if inside is None:
            inside = low <= int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < high
            if by == "folder":
                places[name] = inside
        chosen[sample] = inside
    return np.flatnonzero(chosen).astype(np.int64)


def epoch_order(index: Index, chosen: Numbers, seed: int, epoch: int, *, shuffle: bool, window: int) -> Numbers:
    """Samples in the order of an epoch, each once.

    In a packed data set shards are drawn in random order, and the samples of ``window`` shards at a time are mixed;
    which samples share a shard was drawn when they were packed.

    :param chosen: samples that take part, ascending
    :param window: shards
    """
    if not shuffle:
        return chosen
    generator = np.random.default_rng([seed, epoch])
    if not index.shards:
        return chosen[generator.permutation(len(chosen))]
    taking_part = np.zeros(index.count, bool)
    taking_part[chosen] = True
    shards = generator.permutation(len(index.shards))
    mixed = []
    for first in range(0, len(shards), window):
        samples = np.concatenate([index.samples_of(int(shard)) for shard in shards[first : first + window]])
        mixed.append(generator.permutation(samples[taking_part[samples]]))
    return np.concatenate(mixed)


def scattered(count: int) -> Numbers:
    """A fixed pseudo-random order of ``count`` numbers, the same with every version of every library: a prefix of it is
    an unbiased choice.
    """
    mixed: npt.NDArray[np.uint64] = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64, Steele et al. 2014
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.argsort(mixed ^ (mixed >> np.uint64(31))).astype(np.int64)  # one-to-one: no two are equal
