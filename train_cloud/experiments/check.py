"""Checking an experiment's runs without training them: each distinct model is built once, in its own process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from train_cloud import child_process, hash_seed
from train_cloud.config import Cell
from train_cloud.errors import Refused
from train_cloud.experiments.processes import forkable, last_words
from train_cloud.operations.seeds import write_cell
from train_cloud.runtime.reproducibility import pin_instructions
from train_cloud.warm_process import Child, WarmProcess, start

_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class _Job:
    cell: Cell
    child: Child
    output: Path


def distinct(cells: Sequence[Cell]) -> list[Cell]:
    """One for each combination of levels: a seed decides neither what is built nor whether it can be."""
    return list({tuple(cell.levels.items()): cell for cell in reversed(cells)}.values())[::-1]


def check(
    cells: Sequence[Cell],
    source: str,
    options: Sequence[str],
    parallel: int,
    each: Callable[[Cell, str], None] = lambda cell, said: None,
) -> None:
    """Do with each of these runs what ``train-cloud validate`` does.

    :param options: of ``validate``
    :param each: called with what it has said of a run
    :raises Refused: it refuses one; the message names the run
    """
    pin_instructions()
    environment = child_process.environment(OMP_NUM_THREADS="1", **{hash_seed.VARIABLE: hash_seed.SEED})
    environment.pop("TRAIN_CLOUD_OVERRIDES", None)  # they have been put into the runs' files
    waiting, running = list(cells), list[_Job]()
    warm = WarmProcess.begin(environment)
    try:
        with tempfile.TemporaryDirectory(prefix="train-cloud-") as folder:
            while waiting or running:
                while waiting and len(running) < parallel:
                    running.append(_begin(waiting.pop(0), source, options, Path(folder), environment, warm))
                for job in [job for job in running if job.child.poll() is not None]:
                    running.remove(job)
                    if job.child.returncode != 0:
                        why = last_words(job.output) or f"exit code {job.child.returncode}"
                        raise Refused(f"{job.cell.run_id}: {why}")
                    each(job.cell, job.output.read_text(errors="replace"))
                time.sleep(_LOOK_SECONDS)
    finally:
        for job in running:
            job.child.kill()
            job.child.wait()
        if warm is not None:
            warm.close()


def _begin(
    cell: Cell,
    source: str,
    options: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    warm: WarmProcess | None,
) -> _Job:
    path = write_cell(cell, folder, source)
    output = folder / f"{cell.run_id}.txt"
    command = child_process.command("train_cloud", "validate", str(path), *options, user_code=True)
    with output.open("wb") as said:
        child = start(
            command,
            env=environment,
            stdout=said,
            stderr=said,
            new_session=True,
            warm=warm if forkable(cell.config, warm) else None,
        )
    return _Job(cell, child, output)
