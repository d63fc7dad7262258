"""The one way to try again: twice as long a pause after each failure."""

from __future__ import annotations

import time


class Retry:
    """Pauses between the tries of one thing.

    :param timeout_s: no try begins later than so many seconds after this is made; None: without an end, 0: one try
    :param first_s: the first pause
    :param longest_s: none is longer
    :ivar pause_s: the next one
    """

    def __init__(self, timeout_s: float | None = None, *, first_s: float = 1.0, longest_s: float = 30.0) -> None:
        self._until = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        self._longest_s = longest_s
        self.pause_s = first_s

    def has_time(self, until: float = float("inf")) -> bool:
        """Whether another try would begin in time.

        :param until: on ``time.monotonic()``; counts besides the timeout
        """
        return time.monotonic() + self.pause_s <= min(self._until, until)

    def pause(self) -> None:
        time.sleep(self.pause_s)
        self.pause_s = min(2 * self.pause_s, self._longest_s)
