"""The run file that this process trains, for scripts of the user's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from train_cloud.config.load import load_run_file
from train_cloud.config.run_file import RunFile
from train_cloud.errors import InputError
from train_cloud.generators import unseeded_follow

_current: list[RunFile] = []
_folders: list[Path] = []


@contextlib.contextmanager
def training(run_file: RunFile, artifacts: Path | None = None) -> Iterator[None]:
    """While this lasts, :func:`run_file` returns ``run_file``, and :func:`artifact_folder` ``artifacts``. Generators
    that nobody seeds follow from the run's seed.
    """
    _current.append(run_file)
    _folders.extend([artifacts] if artifacts is not None else [])
    try:
        with unseeded_follow(run_file.seed):
            yield
    finally:
        _current.pop()
        if artifacts is not None:
            _folders.pop()


def current() -> RunFile | None:
    """The run file being trained, None where none is."""
    return _current[-1] if _current else None


def run_file(path: str | Path | None = None) -> RunFile:
    """The run file being trained, overrides and all.

    :param path: read where no run is being trained, so that the script also runs without ``train-cloud train``
    :raises InputError: no run is being trained and no path is given
    """
    if (found := current()) is not None:
        return found
    if path is None:
        raise InputError(
            "run_file", None, "start the script with train-cloud train, or name a file: run_file('run.yaml')"
        )
    return load_run_file(path)


def artifact_folders() -> tuple[Path, ...]:
    """The folder of :func:`artifact_folder` where a run is being trained; none elsewhere."""
    return tuple(_folders)


def artifact_folder(otherwise: str | Path = "artifacts") -> Path:
    """The folder whose files reach the store while the run trains; it exists.

    Write a file that is made in one go under a name that ends in ``.unfinished``, and rename it when it is whole.

    :param otherwise: made and returned where no run is being trained
    """
    folder = _folders[-1] if _folders else Path(otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
