"""The run file that this process trains, for scripts of the user's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from train_cloud.config.load import load_run_file
from train_cloud.config.run_file import RunFile
from train_cloud.errors import InputError

_current: list[RunFile] = []


@contextlib.contextmanager
def training(run_file: RunFile) -> Iterator[None]:
    """While this lasts, :func:`run_file` returns ``run_file``."""
    _current.append(run_file)
    try:
        yield
    finally:
        _current.pop()


def run_file(path: str | Path | None = None) -> RunFile:
    """The run file being trained, overrides and all.

    :param path: read where no run is being trained, so that the script also runs without ``train-cloud train``
    :raises InputError: no run is being trained and no path is given
    """
    if _current:
        return _current[-1]
    if path is None:
        raise InputError(
            "run_file", None, "start the script with train-cloud train, or name a file: run_file('run.yaml')"
        )
    return load_run_file(path)
