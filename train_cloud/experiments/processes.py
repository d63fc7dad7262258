"""The runs of an experiment as child processes of this one.

Each is ``train-cloud train`` with the run's own file, as if a person had called it. It stops with a commit when this
process is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from train_cloud import child_process, hash_seed, warm_process
from train_cloud.config import RunFile, variables
from train_cloud.config.code import mark_as_cache
from train_cloud.envs import TRIALS
from train_cloud.errors import InputError
from train_cloud.experiments.place import Place, Plan
from train_cloud.operations.seeds import write_cell
from train_cloud.platforms.here import here
from train_cloud.platforms.local import KEEP_CANCELLED, Local
from train_cloud.platforms.sagemaker.job import Job
from train_cloud.run.session import last_session
from train_cloud.runtime.heartbeat import forget_timesteps, read_delay, read_timesteps
from train_cloud.runtime.limits import EXPERIMENT_LIMIT
from train_cloud.runtime.reproducibility import pin_instructions
from train_cloud.warm_process import Child, WarmProcess
from train_cloud.whole_file import write_whole

if TYPE_CHECKING:
    from train_cloud.experiments.engine import Row

log = logging.getLogger(__name__)

OUTPUT = "output.log"
LOCK = "train.lock"
_MESSAGE_LINES = 20
"""What stands further behind a traceback is not its message."""


class Processes(Place):
    """
    :param files: folder of the runs' files and of the lock
    :param source: the experiment file's name, for comments
    :param root: of the store
    :param threads: with which torch computes in each run; None for what ``train`` takes by itself
    :param train_on: train runs that were cancelled, that have failed for good, or that a callback had ended
    :param kind: of what is trained, in words
    """

    def __init__(
        self,
        files: Path,
        *,
        source: str,
        root: str,
        threads: int | None,
        train_on: bool,
        kind: str = "experiment",
    ) -> None:
        self._files, self._source, self._root, self._kind = files, source, root, kind
        self._threads, self._train_on = threads, train_on
        self._warm: WarmProcess | None = None
        self._cold = False
        """Whether none could be started."""
        self._gpus = visible_gpus()

    def check(self, experiment: Plan) -> None:
        platform = here()
        if not isinstance(platform, Local | Job):  # a job is told by its launch to train all of them
            fix = "several runs: write a run file for each with train-cloud expand, and name them in run_files"
            raise InputError(self._kind, experiment.experiment, fix)
        if experiment.limits.dollars is not None:
            log.warning(
                "limits.dollars: %s does not count here: only a worker on AWS has a price", experiment.limits.dollars
            )
        for cell in experiment.cells:
            platform.secrets(cell.config)

    @contextlib.contextmanager
    def alone(self, experiment: str) -> Iterator[None]:
        try:
            with FileLock(self._files / LOCK, timeout=0):
                yield
        except Timeout:
            option = {"pipeline": "--output-dir", "session": "output_dir"}.get(self._kind, "--state-dir")
            fix = f"another train-cloud trains it here: stop it, or give another {option}"
            raise InputError(self._kind, experiment, fix) from None

    def is_taken(self, row: Row) -> bool:
        """One of a person's, or one that this engine's predecessor has left and that is about to stop."""
        return is_locked(row.state_dir)

    def start(self, row: Row, rows: Sequence[Row]) -> Child:
        environment = self._environment(row, rows)
        row.state_dir.mkdir(parents=True, exist_ok=True)
        mark_as_cache(row.state_dir)  # it may lie in the code folder
        row.limit_file.unlink(missing_ok=True)
        if row.standing.state == "new":  # what lies here is of a run that was deleted
            forget_timesteps(row.state_dir)
        command = child_process.command("train_cloud", *self._arguments(row), user_code=True)
        with (row.state_dir / OUTPUT).open("ab") as said:
            return warm_process.start(
                command,
                env=environment,
                stdout=said,
                stderr=said,
                new_session=True,
                warm=self._warm_for(row.cell.config, environment),
            )

    def look(self, row: Row) -> None:
        with contextlib.suppress(OSError):
            row.timesteps = max(row.began_at, min(row.total, read_timesteps(row.state_dir)))
        row.delay = shortly(read_delay(row.state_dir))

    def hours(self, row: Row) -> float:
        session = last_session(row.state_dir) if row.child is not None else None
        return session.seconds / 3600 if session is not None and session.began >= row.began else 0.0

    def end(self, row: Row, reason: str) -> None:
        if not row.limit_file.exists():
            write_whole(row.limit_file, reason.encode())

    def ended(self, row: Row, code: int) -> tuple[bool, str | None]:
        return False, last_words(row.state_dir / OUTPUT)

    def close(self) -> None:
        if self._warm is not None:
            self._warm.close()

    def _arguments(self, row: Row) -> list[str]:
        path = write_cell(row.cell, self._files, self._source, replace=True)
        arguments = ["train", str(path), "--store", self._root, "--state-dir", str(row.state_dir)]
        return [*arguments, *(["--continue"] if self._train_on else [])]

    def _environment(self, row: Row, rows: Sequence[Row]) -> dict[str, str]:
        environment = training_environment(self._threads, row.limit_file, train_on=self._train_on)
        environment[TRIALS] = str(self._files / "trials")
        if len(self._gpus) > 1 and row.cell.config.device in ("auto", "cuda"):
            taken = [other.gpu for other in rows if other.child is not None]
            row.gpu = min(self._gpus, key=taken.count)
            environment["CUDA_VISIBLE_DEVICES"] = row.gpu
        return environment

    def _warm_for(self, config: RunFile, environment: Mapping[str, str]) -> WarmProcess | None:
        """None where the run's process is started as ever."""
        if self._warm is None and not self._cold:
            self._warm = WarmProcess.begin(environment)
            self._cold = self._warm is None
            if self._warm is not None and self._warm.why_not is not None:
                log.info("each run imports for itself what it needs: %s", self._warm.why_not)
        return self._warm if forkable(config, self._warm) else None


def training_environment(threads: int | None, limit_file: Path, *, train_on: bool) -> dict[str, str]:
    """Variables of the process that trains one run of many, which stops with a commit when this process is gone.

    :param threads: with which torch computes; None for what ``train`` takes by itself
    :param limit_file: tells it to stop, and why
    :param train_on: train it although it was cancelled
    """
    pin_instructions()
    given = {} if threads is None else {"OMP_NUM_THREADS": str(threads), variables.THREADS: str(threads)}
    environment = child_process.environment(
        **given,
        **{
            hash_seed.VARIABLE: os.environ.get(hash_seed.VARIABLE, hash_seed.SEED),
            EXPERIMENT_LIMIT: str(limit_file),
            variables.PARENT: str(os.getpid()),
        },
    )
    environment.pop("TRAIN_CLOUD_OVERRIDES", None)  # they have been put into the run's file
    if not train_on:
        environment[KEEP_CANCELLED] = "1"
    return environment


def forkable(config: RunFile, warm: WarmProcess | None) -> bool:
    """Whether a run's process can be forked: not where it needs an interpreter that has not imported anything yet,
    because of variables, of a script that may set some, or of modules of its own that are called like others.
    """
    if warm is None or warm.why_not is not None or config.env or config.entry_point is not None:
        return False
    return warm.has_loaded(_own_modules(config.code.folder)) is None


def _own_modules(folder: Path | None) -> list[str]:
    """Names that can be imported from the user's code folder."""
    if folder is None:
        return []
    return [path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()]


def visible_gpus() -> list[str]:
    """The GPUs that processes started from here may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    try:
        return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").iterdir())]
    except OSError:
        return []


def usable_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def shortly(reason: str | None) -> str | None:
    """Why a run failed, in one line: of a traceback, what was raised, with the first line of its message."""
    lines = [line for line in (reason or "").splitlines() if line.strip()]
    if not lines:
        return None
    frames = [at for at, line in enumerate(lines) if line.startswith("  File ")]
    if not frames or not lines[0].startswith("Traceback"):
        return lines[0]
    return next((line for line in lines[frames[-1] :] if line[0] != " "), lines[0])


def last_words(path: Path) -> str | None:
    """The last line that a process has printed, or of a traceback there what was raised; of ours, without the program's
    name.
    """
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return None
    if not lines:
        return None
    begun = max(at if line.startswith(("Traceback", "train-cloud: ")) else 0 for at, line in enumerate(lines))
    frames = [at for at, line in enumerate(lines) if line.startswith(" ")]
    if lines[begun].startswith("Traceback") and frames and len(lines) - frames[-1] <= _MESSAGE_LINES:
        return shortly("\n".join(lines[begun:]))
    return lines[-1].strip().removeprefix("train-cloud: ")


def is_locked(state_dir: Path) -> bool:
    """Whether a training is under way with this folder: one of a person's, or one that this process's predecessor
    has left and that is about to stop.
    """
    if not state_dir.is_dir():
        return False
    try:
        with FileLock(state_dir / LOCK, timeout=0):
            return False
    except Timeout:
        return True
