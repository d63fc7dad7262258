"""Generators that a run's result depends on without anybody having seeded them.

Python's global random generator belongs to the training: what draws from it in between changes what is learned.

botocore does, in whatever thread: where it fetches an instance's credentials (``botocore.utils``), and where it waits
before it sends a request again (``botocore.retryhandler``, ``botocore.retries.standard``). Whoever imports boto3 here
calls :func:`leave_to_training`.

NumPy's generators that are made without a seed begin with the machine's entropy (NumPy, "Parallel random number
generation"), and so do environments that nobody seeds. In a training they begin with what follows from the run's seed:
two runs of one file are the same then.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
from collections.abc import Iterator
from typing import Any


@functools.cache
def leave_to_training() -> None:
    """Give botocore a generator of its own."""
    from botocore import retryhandler, utils
    from botocore.retries import standard

    own = random.Random()
    for module in (retryhandler, utils):
        vars(module)["random"] = own
    backoff: Any = standard.ExponentialBackoff  # its default was bound when the module was imported
    backoff.__init__ = functools.partialmethod(backoff.__init__, random=own.random)


class _Unseeded:
    """In the place of ``secrets.randbits`` in NumPy: the same numbers in the same order."""

    def __init__(self, begin: str) -> None:
        self.state = (begin, 0)

    def __call__(self, bits: int) -> int:
        begin, count = self.state
        self.state = (begin, count + 1)
        size = -(-bits // 8)
        digest = hashlib.shake_128(f"{begin} {count}".encode()).digest(size)
        return int.from_bytes(digest, "little") >> (8 * size - bits)


def _module() -> Any:
    import numpy.random.bit_generator

    return numpy.random.bit_generator


@contextlib.contextmanager
def unseeded_follow(seed: int, process: str = "") -> Iterator[None]:
    """While this lasts, :func:`follow`; within another one nothing changes."""
    module = _module()
    before = module.randbits
    if not isinstance(before, _Unseeded):
        follow(seed, process)
    try:
        yield
    finally:
        module.randbits = before


def follow(seed: int, process: str = "") -> None:
    """NumPy's generators that are made without a seed follow from this one, from here on.

    :param process: what tells this process from others of the run
    """
    _module().randbits = _Unseeded(f"{seed} {process}")


def get_unseeded() -> tuple[str, int] | None:
    """Which of those numbers comes next; None where they are the machine's."""
    found = _module().randbits
    return found.state if isinstance(found, _Unseeded) else None


def set_unseeded(state: tuple[str, int] | None) -> None:
    """Put back what :func:`get_unseeded` has returned."""
    found = _module().randbits
    if state is not None and isinstance(found, _Unseeded):
        found.state = state
