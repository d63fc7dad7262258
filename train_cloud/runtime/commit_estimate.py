"""How long a commit takes on this machine's line to the store, by what the commits so far took."""

from __future__ import annotations

import time
from collections import deque

#: Before the first commit: less than any EC2 instance sends to S3 in its region, and what a cold connection takes.
_UNMEASURED_RATE = 20e6
_UNMEASURED_SECONDS = 5.0
_REMEMBERED = 3


class CommitEstimate:
    """Of the commits that are remembered the slowest counts: an estimate decides whether there is time for more."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=_REMEMBERED)
        self._trips: deque[float] = deque(maxlen=_REMEMBERED)
        self._usual = _UNMEASURED_SECONDS
        self._began: float | None = None

    def begin(self) -> None:
        """A commit sets out."""
        self._began = time.monotonic()

    def note(self, sent_bytes: int, writing: float, swap: float) -> None:
        """It is over.

        :param writing: seconds for all that is in it; at least one round trip of it moved nothing
        :param swap: seconds of the head's swap, which is a round trip and no more
        """
        self._rates.append(sent_bytes / max(1e-3, writing - swap))
        self._trips.append(swap)
        self._usual = writing + swap
        self._began = None

    def seconds(self, new_bytes: int) -> float:
        """Until a commit of so many bytes is over that begins now: after the one in flight, everything in one round
        trip beside the bytes' own time, the head in another.
        """
        waiting = 0.0
        if self._began is not None:
            # Where it takes longer than usual, nobody knows for how much longer; as long again is a fair guess.
            waiting = abs(self._usual - (time.monotonic() - self._began))
        if not self._rates:
            return waiting + _UNMEASURED_SECONDS + new_bytes / _UNMEASURED_RATE
        return waiting + new_bytes / min(self._rates) + 2 * max(self._trips)
