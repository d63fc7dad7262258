"""Files that others see whole or not at all: written under another name, which then takes the place of the old one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

UNFINISHED = ".unfinished"
"""How the other name ends; nothing that is called so is sent anywhere."""


@contextlib.contextmanager
def replacing(path: Path, *, lasting: bool = False, under: str | None = None) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when the block ends; where it raises, ``path`` stays as it was.

    :param lasting: it survives a power cut right after the block
    :param under: the other name, for folders whose readers take one that contains the file's own for another file of
        theirs, and for files that several processes write
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(under or f".{path.name}{UNFINISHED}")
    with unfinished.open("wb") as file:
        yield file
        if lasting:
            file.flush()
            os.fsync(file.fileno())
    unfinished.replace(path)


def write_whole(path: Path, body: bytes | bytearray | memoryview) -> None:
    with replacing(path) as file:
        file.write(body)


def write_local(path: Path, content: Mapping[str, Any]) -> None:
    """A small JSON file on the local disk, which any process of a worker may write, and which lasts."""
    with replacing(path, lasting=True, under=f".{path.name}.{os.getpid()}") as file:
        file.write(json.dumps(dict(content)).encode())
