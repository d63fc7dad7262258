"""Waiting for something that a busy machine may take long for."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(
    condition: Callable[[], object], what: str, seconds: float = 600, *, told: Callable[[], str] = lambda: ""
) -> None:
    """Look every few hundredths of a second.

    :param what: is waited for
    :param told: what to show besides if it does not come
    :raises AssertionError: after so many seconds
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}\n{told()}"
        time.sleep(0.03)
