"""Scalars into files that go on over interruptions: TensorBoard's event files, and tables.

What cannot be written, on a disk that is full, is said once, and stops no training.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat, filter_excluded_keys
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from train_cloud.whole_file import write_whole

_TIMESTEPS = "timesteps"
_failed: set[str] = set()
log = logging.getLogger(__name__)


@contextlib.contextmanager
def _tolerating(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if what not in _failed:
            log.warning("%s is not written: %s", what, error)
        _failed.add(what)
    else:
        _failed.discard(what)


class SessionTensorBoard(TensorBoardOutputFormat):
    """SB3's format, writing one file per session.

    :param folder: shared by all sessions of the run
    :param session: number in the file's name, so that files sort in the order in which they were written
    :param timesteps: where this session goes on; TensorBoard hides what an earlier file has beyond it
        (``purge_step``, torch.utils.tensorboard.SummaryWriter)
    """

    def __init__(self, folder: Path, session: int, timesteps: int) -> None:
        self.writer = SummaryWriter(
            str(folder), purge_step=timesteps + 1 if timesteps else None, filename_suffix=f".session-{session:06d}"
        )
        self._is_closed = False

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        with _tolerating("TensorBoard's file"):
            super().write(key_values, key_excluded, step)

    def add_scalars(self, scalars: Mapping[str, float], timesteps: int) -> None:
        """From any thread."""
        with _tolerating("TensorBoard's file"):
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, timesteps)

    def add_text(self, name: str, text: str, timesteps: int) -> None:
        self.writer.add_text(name, text, timesteps)
        self.writer.flush()

    def add_hyperparameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """For the HParams page, which compares runs.

        :param values: flat; what is no number, text or truth value is shown as JSON
        :param metrics: names of scalars to compare by
        """
        shown = {key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
                 for key, value in values.items()}  # fmt: skip
        for summary in hparams(shown, dict(metrics)):  # type: ignore[no-untyped-call]
            self.writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]


class Table(KVWriter):
    """What SB3 logs, a row for each dump, as its own ``progress.csv``, with the timesteps first.

    :param path: goes on where it is
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        if path.exists():
            with path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        values = {_TIMESTEPS: step, **filter_excluded_keys(key_values, key_excluded, "csv")}
        new = sorted(values.keys() - set(self._columns) - {_TIMESTEPS})
        with _tolerating(self._path.name):
            if new or not self._columns:
                self._widen([*(self._columns or [_TIMESTEPS]), *new])
            _append(self._path, [values.get(column, "") for column in self._columns])

    def _widen(self, columns: list[str]) -> None:
        """Columns are only ever added, on the right; the rows so far are empty there."""
        rows = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                rows = list(csv.reader(file))[1:]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([*row, *[""] * (len(columns) - len(row))] for row in rows)
        write_whole(self._path, text.getvalue().encode())
        self._columns = columns

    def close(self) -> None:
        """Nothing is open between two rows."""


class Episodes:
    """Every episode, as SB3's Monitor writes them: ``stable_baselines3.common.results_plotter`` reads it.

    :param path: goes on where it is
    :param started: seconds since 1970, of a new file
    :param staged: whether a column says which stage of a curriculum an episode was played in
    """

    def __init__(self, path: Path, environment: str, started: float, *, staged: bool = False) -> None:
        self._path = path
        self._staged = staged
        self._lock = threading.Lock()
        if not path.exists():
            header = json.dumps({"t_start": started, "env_id": environment})
            path.write_text(f"#{header}\n{_TIMESTEPS},r,l,t,env{',stage' if staged else ''}\n")

    def add(self, timesteps: int, env: int, episode: Mapping[str, Any]) -> None:
        """:param episode: what Monitor leaves in ``info["episode"]``"""
        with self._lock, _tolerating(self._path.name):
            row = [timesteps, episode["r"], episode["l"], episode["t"], env]
            _append(self._path, [*row, *([episode.get("stage", "")] if self._staged else [])])


def _append(path: Path, row: list[Any]) -> None:
    """In one write, so that a kill tears at most the last line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    with path.open("a", newline="") as file:
        file.write(text.getvalue())
