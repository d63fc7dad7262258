"""train: one session of a run on this machine, from the run file to its exit code.

The order matters: signal handlers and systemd's READY come before the heavy imports, the head is read before anything
is built, the run is acquired before anything is trained (:mod:`train_cloud.runtime.session`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from train_cloud import hash_seed, warm_process
from train_cloud.config import RunFile, load_run_file, variables
from train_cloud.config.code import mark_as_cache
from train_cloud.errors import EXIT_COMPLETED, HeadMissing, InputError
from train_cloud.platforms.here import here
from train_cloud.platforms.protocol import Platform
from train_cloud.run import layout
from train_cloud.runtime.artifacts import EVENTS, FOLDER
from train_cloud.runtime.deadline import StopSignals
from train_cloud.runtime.evaluations import RESULTS, Evaluations, command
from train_cloud.runtime.heartbeat import last_alive
from train_cloud.runtime.inputs import Inputs
from train_cloud.runtime.masking import hide_variables
from train_cloud.runtime.session import TrainingSession
from train_cloud.store import RETRY_TIMEOUT, open_store
from train_cloud.trainer import Deadline

log = logging.getLogger(__name__)


def train(
    run_file: str | Path,
    *,
    store: str,
    state_dir: Path | None = None,
    overrides: Sequence[str] = (),
    train_on: bool = False,
    several: Callable[[RunFile], int] | None = None,
) -> int:
    """Train ``run_file`` from where the store's head is until it ends or is stopped.

    As :func:`train_cloud.operations.train.train`, which says what the others mean.

    :param several: trains a run file with several seeds; such a file is refused without it, and on a worker
    """
    run_file = Path(run_file)
    platform = here()
    config = _read(run_file, overrides, platform, store, state_dir)
    if config.seeds is not None:
        if several is None:
            raise InputError(
                "seeds", list(config.seeds), "several runs: write a run file for each with train-cloud expand"
            )
        return several(config)
    if hash_seed.VARIABLE in config.env:
        hash_seed.fix(config.env[hash_seed.VARIABLE])
    os.environ.update(config.env)
    hide_variables(config, warn=True)
    state_dir = (state_dir or Path(".train-cloud") / config.run_id).absolute()
    _check_writable(state_dir)
    mark_as_cache(state_dir)
    deadline = Deadline()
    signals = StopSignals(deadline, lambda: platform.goes_at(state_dir))
    parent = os.environ.pop(variables.PARENT, None)  # which no child of this process is to end with
    if parent is not None:
        warm_process.die_with_parent(int(parent))
    retry_timeout = variables.number(variables.STORE_RETRY_TIMEOUT, RETRY_TIMEOUT)
    run_store = open_store(layout.run_url(store, config.run_id), retry_timeout=retry_timeout)
    with _alone(state_dir):
        alive = last_alive(state_dir)  # before this session shows signs of life
        inputs = Inputs(
            config=config,
            run_yaml=run_file.read_text(),
            store=run_store,
            store_root=store,
            state_dir=state_dir,
            platform=platform,
            deadline=deadline,
            signals=signals,
            evaluations=_evaluations(config, run_file, store, state_dir / FOLDER, overrides),
            train_on=train_on,
        )
        with contextlib.closing(TrainingSession(inputs)) as session:
            outcome = platform.admit(run_store, state_dir)
            if outcome is not None:
                log.info("nothing to do: the run has the outcome %s", outcome)
                return EXIT_COMPLETED
            try:
                return session.run(alive)
            except BaseException as error:
                # No restart mends it, and the reason must outlive the machine. Over a damaged head nobody writes.
                if isinstance(error, InputError | HeadMissing):
                    platform.give_up(run_store, str(error), session.number)
                session.ended_by(error)
                raise


def _read(run_file: Path, overrides: Sequence[str], platform: Platform, store: str, state_dir: Path | None) -> RunFile:
    try:
        variables.check_all()
        config = load_run_file(run_file, overrides)
        platform.refuse(config)
    except InputError as error:
        platform.unreadable(store, state_dir, str(error))
        raise
    return config


def _evaluations(
    config: RunFile, run_file: Path, store: str, out: Path, overrides: Sequence[str]
) -> Evaluations | None:
    if config.evaluation is None or config.evaluation.mode != "process":
        return None
    # The user's code may change the working directory.
    root = store if "://" in store else str(Path(store).absolute())
    playing = command(run_file.absolute(), store=root, out=out, events=out / EVENTS, overrides=overrides)
    return Evaluations(playing, out / RESULTS, 60.0 * config.evaluation.max_minutes)


def _check_writable(state_dir: Path) -> None:
    """Make the folder of the session's local files.

    :raises InputError: it cannot be made, or nothing can be written there
    """
    probe = state_dir / f".writable-{os.getpid()}"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        why = f"nothing can be written there ({error.strerror})"
        raise InputError("state-dir", str(state_dir), f"{why}: mend that, or give another --state-dir") from error


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    try:
        with FileLock(state_dir / "train.lock", timeout=0):
            yield
    except Timeout:
        raise InputError(
            "state-dir", str(state_dir), "another train-cloud trains here: stop it, or give another --state-dir"
        ) from None
