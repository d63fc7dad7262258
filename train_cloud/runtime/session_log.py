"""A session's log: what its process says, among its artifacts."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from pathlib import Path
from typing import IO, Any

from train_cloud.safe_text import masked


class Tee:
    """What this process says, into a file too: what goes through ``sys.stdout`` and ``sys.stderr``."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1, errors="replace")
        self._file.write(f"-- {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {platform.node()} process {os.getpid()}\n")
        self._before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (_Both(stream, self._file) for stream in self._before)

    def note(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(f"{masked(text.rstrip())}\n")

    def close(self) -> None:
        """As it was before."""
        for name, stream in zip(("stdout", "stderr"), self._before, strict=True):
            if isinstance(getattr(sys, name), _Both):
                setattr(sys, name, stream)
        self._file.close()


class _Both:
    """A stream that also writes to a file."""

    def __init__(self, stream: IO[str], file: IO[str]) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # a full disk, or closed: the stream itself goes on
            self._file.write(masked(text))
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
