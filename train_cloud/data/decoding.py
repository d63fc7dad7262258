"""From bytes to a batch: decoding, augmentation, collation. The same in a worker process and in the training's own."""

from __future__ import annotations

import contextlib
import inspect
import io
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, NamedTuple

import numpy as np

from train_cloud.config.shapes import REFERENCE
from train_cloud.errors import DataError, InputError
from train_cloud.store import Body

Decode = Literal["rgb", "gray"] | Callable[..., Any] | str | None

_MODES = {"rgb": "RGB", "gray": "L"}
_OF_A_PROGRAM = (NameError, AttributeError, TypeError, ImportError, AssertionError, MemoryError, NotImplementedError)
"""Raised by a decode of one's own: its own fault, and not the object's."""


class Damaged(NamedTuple):
    key: str
    why: str


class Made(NamedTuple):
    """A batch.

    :ivar content: collated; None where no sample is left
    """

    content: Any
    kept: list[int]
    """Positions of the samples that are in it."""
    damaged: list[Damaged]


@dataclass(frozen=True)
class Decoder:
    """What is made of the bytes of each sample, and of the samples of a batch.

    :param decode: ``rgb`` or ``gray`` for images as uint8 ``[channels, height, width]``; a function of the body, or of
        the body and the key; None: the bytes
    :param size: ``(height, width)`` that images are resized to, None: as they are
    :param augment: a function of the sample and a generator (``numpy.random.Generator``); or of the sample alone, which
        may draw from the global generators of Python, NumPy and torch
    :param seed: of the augmentation, together with epoch and sample
    :param skip: leave damaged samples out
    """

    decode: Decode
    size: tuple[int, int] | None
    augment: Callable[..., Any] | None
    seed: int
    skip: bool

    def batch(self, epoch: int, samples: Sequence[int], keys: Sequence[str], bodies: Sequence[Body]) -> Made:
        """
        :raises DataError: a sample is damaged, and it is not said to skip it; or all of them are
        :raises InputError: samples that do not fit together
        """
        made: list[Any] = []
        kept: list[int] = []
        damaged: list[Damaged] = []
        plain = self.decode is None and self.augment is None
        for position, (sample, body) in enumerate(zip(samples, bodies, strict=True)):
            if plain:
                made.append(bytes(body))
                continue
            try:
                found = self._decoded(keys, position, body)
            except _Damage as error:
                damaged.append(Damaged(keys[position], str(error)))
                continue
            made.append(found if self.augment is None else self._augmented(found, epoch, sample))
            kept.append(position)
        if plain:
            return Made(made, list(range(len(made))), [])
        if damaged and not self.skip:
            key, why = damaged[0]
            raise DataError(f"{key}: {why}: repair or remove it, or leave such objects out with on_bad='skip'")
        if damaged and not made:
            raise DataError(
                f"none of the {len(damaged)} objects of a batch can be decoded, the first is {damaged[0].key} "
                f"({damaged[0].why}): choose the right ones with include, for example include='*.png'"
            )
        return Made(_collated(made, [keys[position] for position in kept]), kept, damaged)

    def _decoded(self, keys: Sequence[str], position: int, body: Body) -> Any:
        if self.decode is None:
            return bytes(body)
        if isinstance(self.decode, str):
            return self._image(body)
        try:
            return self.decode(body, keys[position]) if _arguments(self.decode) > 1 else self.decode(body)
        except _OF_A_PROGRAM:
            raise
        except Exception as error:
            raise _Damage(f"decode raises {type(error).__name__}: {error}") from error

    def _image(self, body: Body) -> Any:
        from PIL import Image

        assert isinstance(self.decode, str)
        try:
            with Image.open(io.BytesIO(body)) as image:
                found = image.convert(_MODES[self.decode])
                if self.size is not None and (found.height, found.width) != self.size:
                    found = found.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
                pixels = np.asarray(found)
        except MemoryError:
            raise
        except Exception as error:
            # Pillow raises what its decoders do: OSError, SyntaxError, ValueError, struct.error and more.
            text = "no image" if "cannot identify image file" in str(error) else f"a damaged image ({error})"
            raise _Damage(f"it is {text}") from error
        channels_first = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[np.newaxis]
        return channels_first if self.augment is None else np.ascontiguousarray(channels_first)

    def _augmented(self, sample: Any, epoch: int, number: int) -> Any:
        assert self.augment is not None
        entropy = [self.seed, epoch, number]
        if _arguments(self.augment) > 1:
            return self.augment(sample, np.random.default_rng(entropy))
        with _global_generators(entropy):
            return self.augment(sample)


class _Damage(Exception):
    pass


def resolved(function: Any, field: str) -> Any:
    """A function named as ``module:function``.

    :raises InputError: there is none
    """
    if not isinstance(function, str) or function in _MODES:
        return function
    if not REFERENCE.fullmatch(function):
        raise InputError(field, function, f"give {', '.join(_MODES)}, None, a function or module:function")
    module, _, name = function.partition(":")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(field, function, f"it cannot be imported: {error}") from error
    return found


@cache
def _arguments(function: Callable[..., Any]) -> int:
    """How many positional arguments it has to be given, or may be given before there are defaults."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is inspect.Parameter.empty for one in parameters)


@contextlib.contextmanager
def _global_generators(entropy: list[int]) -> Iterator[None]:
    """Seeded, and afterwards as they were: the training draws from them too."""
    first, second = (int(word) for word in np.random.SeedSequence(entropy).generate_state(2, np.uint64))
    torch: Any = sys.modules.get("torch")
    before = random.getstate(), np.random.get_state()
    torch_before = torch.get_rng_state() if torch is not None else None
    random.seed(first)
    np.random.seed(second % 2**32)
    if torch is not None:
        torch.default_generator.manual_seed(first % 2**63)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        if torch is not None:
            torch.set_rng_state(torch_before)


def _collated(made: list[Any], keys: Sequence[str]) -> Any:
    if not made:
        return None
    first = made[0]
    if isinstance(first, dict):
        return {name: _collated([one[name] for one in made], keys) for name in first}
    if isinstance(first, tuple):
        return tuple(_collated(list(column), keys) for column in zip(*made, strict=True))
    if isinstance(first, bytes | str | list) or first is None:
        return made
    arrays = [np.asarray(one) for one in made]
    if len({(array.shape, array.dtype) for array in arrays}) == 1 and arrays[0].dtype != object:
        whole = np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype)  # in the order that its shape says
        for position, array in enumerate(arrays):
            whole[position] = array
        return whole
    for array, key in zip(arrays, keys, strict=True):
        if array.shape != arrays[0].shape:
            here, there = ("x".join(map(str, one.shape)) or "one number" for one in (arrays[0], array))
            fix = "give size=(height, width), or a decode that makes all of one size"
            raise InputError("decode", f"{keys[0]} is {here}, {key} is {there}", fix)
        if array.dtype == object:
            raise InputError(
                "decode", type(first).__name__, "return arrays, numbers, text, bytes, or tuples or dicts of them"
            )
    return np.stack(arrays)
