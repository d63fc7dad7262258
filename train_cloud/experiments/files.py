"""The files of an experiment for its readers, below ``experiments/<name>/``: made from the runs, read by nobody of ours
but to name runs when the experiment file is not at hand.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from train_cloud.artifacts.experiment import (
    CONFIG,
    RESULTS,
    enter_cells,
    enter_result,
    experiment_url,
    read_file,
)
from train_cloud.artifacts.uploads import MANIFEST, Upload, as_json, make, now, read_uploads
from train_cloud.config import Experiment
from train_cloud.errors import CorruptCheckpoint, InputError, ObjectMissing, StoreError
from train_cloud.experiments.standing import Standing, run_store
from train_cloud.report.pull import Pulled, pull
from train_cloud.report.status import run_ids, statuses
from train_cloud.run import layout
from train_cloud.run.experiment import read_experiment
from train_cloud.run.head import read_head
from train_cloud.runtime.experiment_files import result
from train_cloud.store import FileStore, open_store
from train_cloud.whole_file import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A run of an experiment, as far as its files name it."""

    run_id: str
    levels: Mapping[str, str]
    """Factor → level; empty of a run that no experiment file stands for."""
    seed: int | None


def members(experiment: Experiment) -> list[Member]:
    return [Member(cell.run_id, cell.levels, cell.seed) for cell in experiment.cells]


def recorded_members(root: str, name: str) -> list[Member]:
    """The runs of an experiment whose file is not at hand, as they were entered when it was trained.

    :raises InputError: no experiment of that name has been trained in this store
    """
    config = read_file(root, name, CONFIG)
    store = open_store(root)
    assert isinstance(store, FileStore)
    launched = read_experiment(store, name)  # by Terraform
    cells = {**(launched.runs if launched is not None else {}), **config.get("cells", {})}
    named = [run_id for run_id in {**cells, **config.get("runs", {})} if layout.is_run_id(run_id)]
    if not named:  # the files are gone or damaged: the runs themselves know
        named = [found.run_id for found in statuses(root, run_ids(root)) if found.experiment == name]
    if not named:
        raise InputError("--experiment", name, f"no run of an experiment of that name has begun under {root}")
    found = []
    for run_id in named:
        cell = cells.get(run_id, {})
        levels = cell.get("levels")
        levels = {str(key): str(level) for key, level in levels.items()} if isinstance(levels, dict) else {}
        found.append(Member(run_id, levels, cell.get("seed") if isinstance(cell.get("seed"), int) else None))
    return found


def folders(found: Sequence[Member]) -> dict[str, Path]:
    """Where each run's artifacts lie in a pulled folder: ``<level>/<level>``, and below it ``seed_<seed>`` where there
    is more than one seed; a run without levels in a folder of its own name.
    """
    several = len({member.seed for member in found}) > 1
    return {
        member.run_id: Path(*member.levels.values(), *([f"seed_{member.seed}"] if several else []))
        if member.levels and all(_is_name(level) for level in member.levels.values())
        else Path(member.run_id)
        for member in found
    }


def _is_name(level: str) -> bool:
    return level not in ("", ".", "..") and not {"/", "\\"} & set(level)


def enter_experiment(root: str, experiment: Experiment) -> None:
    """Which runs there are, before the first begins. A store that does not let it ends no training."""
    cells = {cell.run_id: {"levels": dict(cell.levels), "seed": cell.seed} for cell in experiment.cells}
    try:
        enter_cells(root, experiment.experiment, cells)
    except StoreError as error:
        log.warning("the files of the experiment %s are not up to date: %s", experiment.experiment, error)


def enter_results(root: str, experiment: Experiment, found: Sequence[Standing]) -> None:
    """How the runs have ended. Each enters it by itself; this is for those that were killed between the two, that have
    failed for good or were cancelled. Then the manifest of all their files.
    """
    name = experiment.experiment
    try:
        known = read_file(root, name, RESULTS).get("runs", {})
        for one in found:
            entry = known.get(one.cell.run_id, {})
            if one.outcome is None or (entry.get("outcome"), entry.get("timesteps")) == (one.outcome, one.timesteps):
                continue
            store = run_store(root, one.cell.run_id)
            read = read_head(store)
            if read is not None and read[0].outcome is not None:
                enter_result(root, name, one.cell.run_id, result(store, read[0], one.cell.seed))
        _write_manifest(root, name, members(experiment))
    except (StoreError, CorruptCheckpoint) as error:
        log.warning("the files of the experiment %s are not up to date: %s", name, error)


def manifest(root: str, name: str, found: Sequence[Member], created_at: str | None = None) -> bytes:
    """``s3_manifest.json`` of an experiment: the artifacts of all runs, named as in a pulled folder."""
    uploads: list[Upload] = []
    for run_id, folder in folders(found).items():
        try:
            read = read_uploads(open_store(f"{layout.run_url(root, run_id)}/{layout.ARTIFACTS.rstrip('/')}"))
        except CorruptCheckpoint as error:
            log.warning("left out of the experiment's manifest: %s", error)
            continue
        for upload in read[0].uploaded_files if read is not None else ():
            uploads.append(upload.model_copy(update={"local_path": (folder / upload.local_path).as_posix()}))
    return as_json(make(name, open_store(root).url, uploads, created_at=created_at or now()))


def _write_manifest(root: str, name: str, found: Sequence[Member]) -> None:
    store = open_store(experiment_url(root, name))
    try:
        read = read_uploads(store)
    except CorruptCheckpoint:
        read = None
    store.put(MANIFEST, manifest(root, name, found, read[0].created_at if read is not None else None))


def pull_experiment(
    root: str,
    name: str,
    found: Sequence[Member],
    *,
    what: Sequence[str] = (),
    out: Path,
    each: Callable[[str, int], None] = lambda name, size: None,
) -> list[Pulled]:
    """Fetch the artifacts of all runs that have some, each into its folder (:func:`folders`), and the experiment's own
    files beside them.

    :param what: as of :func:`train_cloud.report.pull.pull`; runs that have nothing of it yet are passed over
    :raises InputError: no run has artifacts, or none anything of that name
    """
    there = set(run_ids(root))
    done: list[Pulled] = []
    lacking: InputError | None = None
    for run_id, folder in folders(found).items():
        artifacts = open_store(f"{layout.run_url(root, run_id)}/{layout.ARTIFACTS.rstrip('/')}")
        if run_id in there and next(iter(artifacts.list()), None) is not None:
            told = functools.partial(_below, each, folder.as_posix())
            try:
                done.append(pull(root, run_id, what=what, out=out / folder, each=told))
            except InputError as error:
                lacking = error
    if lacking is not None and not done:
        raise lacking
    if not done:
        raise InputError("experiment", name, f"none of its runs has artifacts under {root} yet")
    store = open_store(experiment_url(root, name))
    for file in (CONFIG, RESULTS):
        with contextlib.suppress(ObjectMissing):
            write_whole(out / file, bytes(store.get(file).body))
    write_whole(out / MANIFEST, manifest(root, name, found))
    return done


def _below(each: Callable[[str, int], None], folder: str, name: str, size: int) -> None:
    each(f"{folder}/{name}", size)
