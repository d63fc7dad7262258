"""A run file with several seeds on one machine: one run after the other, each in a process of its own."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from train_cloud import child_process
from train_cloud.config import Cell, RunFile, dump_run_file, expand
from train_cloud.errors import EXIT_COMPLETED, InputError
from train_cloud.report.preflight import is_over
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.store import open_store

log = logging.getLogger(__name__)


def write_each(run_file: RunFile, folder: Path, source: str, *, replace: bool = False) -> list[Path]:
    """A run file for each seed, ``<run_id>.yaml`` in ``folder``, which is made.

    :param source: what they were made of, for a comment
    :param replace: files that are there already
    :raises InputError: a file is there already and says something else
    """
    return [_write(one, folder, f"seed {one.seed} of {source}", replace=replace) for one in expand(run_file)]


def write_cell(cell: Cell, folder: Path, source: str, *, replace: bool = False) -> Path:
    """The run file of one run of an experiment, ``<run_id>.yaml`` in ``folder``, as :func:`write_each` does."""
    levels = "".join(f"{factor} {level}, " for factor, level in cell.levels.items())
    return _write(cell.config, folder, f"{levels}seed {cell.seed} of {source}", replace=replace)


def _write(run_file: RunFile, folder: Path, comment: str, *, replace: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_file.run_id}.yaml"
    text = dump_run_file(run_file, folder.absolute(), comment)
    if not replace and path.exists() and path.read_text() != text:
        raise InputError("--out", str(path), "it is there already and says something else: remove it")
    path.write_text(text)
    return path


def train_each(run_file: RunFile, source: str, store: str, state_dir: Path | None, *, train_on: bool = False) -> int:
    """Train the seeds in order. A signal stops the one that is trained, and those after it are left for the next call.

    :param state_dir: folder of the sessions' folders; ``.train-cloud`` by default
    :param train_on: train on those that a callback had ended before their total
    :return: 0 if all are completed, else the exit code of the one that was not
    """
    folder = state_dir or Path(".train-cloud")
    files = write_each(run_file, folder / f"{run_file.run_id}-seeds", source, replace=True)
    for path, one in zip(files, expand(run_file), strict=True):
        run_store = open_store(layout.run_url(store, one.run_id))
        read = read_head(run_store)
        asked = train_on and read is not None and read[0].timesteps < one.total_timesteps
        if read is not None and not asked and is_over(run_store, read[0], one):
            log.info("%s is completed", one.run_id)
            continue
        log.info("training %s", one.run_id)
        code = _train(path, store, folder / one.run_id, train_on=asked)
        if code != EXIT_COMPLETED:
            return code
    return EXIT_COMPLETED


def _train(path: Path, store: str, state_dir: Path, *, train_on: bool) -> int:
    arguments = ["train", str(path), "--store", store, "--state-dir", str(state_dir)]
    arguments += ["--continue"] if train_on else []
    # What a launch sets has been put into the file.
    environment = child_process.environment()
    environment.pop("TRAIN_CLOUD_OVERRIDES", None)
    process = subprocess.Popen(child_process.command("train_cloud", *arguments, user_code=True), env=environment)

    def pass_on(number: int, _: Any) -> None:
        if number != signal.SIGINT:  # which the terminal sends to both
            process.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
