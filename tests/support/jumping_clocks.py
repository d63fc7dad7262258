"""A module that run files of tests name: with ``CLOCK_JUMPS`` set, no two readings of the wall clock agree on the year.

The monotonic clock, which everything should go by, is left alone.
"""

from __future__ import annotations

import datetime
import os
import secrets
import sys
import time
from typing import Any

_YEARS = 20 * 365 * 24 * 3600
_time, _time_ns = time.time, time.time_ns


def _jump() -> int:
    return secrets.randbelow(2 * _YEARS) - _YEARS  # no generator of the module's own: that would be state of the run


class _Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return datetime.datetime.fromtimestamp(_time() + _jump(), tz)


if os.environ.get("CLOCK_JUMPS"):
    time.time = lambda: _time() + _jump()
    time.time_ns = lambda: _time_ns() + _jump() * 10**9
    for _name, _module in list(sys.modules.items()):
        if _name.startswith("train_cloud") and getattr(_module, "datetime", None) is datetime.datetime:
            _module.datetime = _Jumping  # type: ignore[attr-defined]
