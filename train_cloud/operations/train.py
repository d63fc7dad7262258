"""train: a run file, whether it describes one run or, with several seeds, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from train_cloud.config import RunFile
from train_cloud.operations.seeds import train_each
from train_cloud.runtime.train import train as train_one


def train(
    run_file: str | Path,
    *,
    store: str,
    state_dir: Path | None = None,
    overrides: Sequence[str] = (),
    train_on: bool = False,
) -> int:
    """Train ``run_file`` from where the store's head is until it ends or is stopped.

    While it trains, SIGINT and SIGTERM stop it after a commit; so call it from the main thread. What environments
    draw from sets of names is the same in each session only where ``PYTHONHASHSEED`` is set; the command sets it.

    :param store: root of the store, ``s3://bucket/prefix`` or a local folder
    :param state_dir: the session's local files; ``.train-cloud/<run_id>`` below the working directory by default
    :param train_on: train on where a callback had ended the run before its total
    :return: 0; the outcome is in the head
    :raises InputError: refused before anything was written
    :raises Interrupted: stopped by a signal; all is committed
    :raises Fenced: a newer worker has the run
    """
    run_file = Path(run_file)

    def several(config: RunFile) -> int:
        return train_each(config, run_file.name, store, state_dir, train_on=train_on)

    return train_one(
        run_file, store=store, state_dir=state_dir, overrides=overrides, train_on=train_on, several=several
    )
