"""Which code is the user's own, and which Python or an installed package has brought."""

from __future__ import annotations

import functools
import sysconfig
from pathlib import Path

#: Of whatever interpreter, virtual environment or user: one may lie over another (``--system-site-packages``,
#: ``pip install --user``, Debian's ``dist-packages``), and sysconfig knows only the topmost.
_FOLDERS = frozenset({"site-packages", "dist-packages"})


@functools.cache
def _brought() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(sysconfig.get_path(kind)).resolve() for kind in kinds)


@functools.cache
def is_installed(path: str) -> bool:
    """Whether the file is a part of Python or of an installed package.

    :param path: of a module's file
    """
    found = Path(path)
    if not _FOLDERS.isdisjoint(found.parts):
        return True
    found = found.resolve()
    return not _FOLDERS.isdisjoint(found.parts) or any(found.is_relative_to(folder) for folder in _brought())
