"""Objects of other people: a marker of S3's console, a desktop's own file, a key with ``//``. Ignored; said once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

log = logging.getLogger(__name__)

_SHOWN = 3
_said: set[tuple[str, str]] = set()
_lock = threading.Lock()


def ignore(url: str, keys: Iterable[str], why: str = "not train-cloud's") -> None:
    """Warn of objects that are passed over, of each once in a process.

    :param url: of the store that they lie in
    :param keys: relative to it
    :param why: what they are
    """
    with _lock:
        new = sorted({key for key in keys if (url, key) not in _said})
        _said.update((url, key) for key in new)
    if new:
        # ascii(): a name may hold what a terminal obeys.
        named = ", ".join(ascii(key)[1:-1] for key in new[:_SHOWN])
        more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
        log.warning("ignored under %s, %s: %s%s", url, why, named, more)
