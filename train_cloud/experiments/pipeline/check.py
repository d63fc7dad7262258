"""Checking a pipeline without training it: each session's model is built, and given that of the session before."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from train_cloud import child_process, hash_seed
from train_cloud.config import Cell, RunFile, load_run_file
from train_cloud.config.pipeline import PipelineConfig, PipelineSession
from train_cloud.errors import InputError, Refused
from train_cloud.experiments.check import check as build_each
from train_cloud.experiments.processes import last_words, usable_cores
from train_cloud.operations.seeds import write_cell

_SAID = "resume"


def check(
    pipeline: PipelineConfig, instance_types: Sequence[str], each: Callable[[str, str], None] = lambda name, said: None
) -> None:
    """
    :param each: called with a session's name and what was found of it
    :raises Refused: one cannot be trained; the message names it
    """
    options = [word for name in instance_types for word in ("--instance-type", name)]
    names = dict[str, str]()
    cells = []
    for session in pipeline.in_order():
        for config in session.attempts:
            # What it begins with is not there yet; whether it fits is tried below.
            alone = config.model_copy(update={"initial_model": None}) if session.begins_with is not None else config
            cells.append(Cell(config.run_id, {"session": config.run_id}, config.seed, alone))
            names[config.run_id] = session.name

    def told(cell: Cell, said: str) -> None:
        line = next((line for line in said.splitlines() if line.strip().startswith(_SAID)), "")
        if cell.run_id in {session.run_id for session in pipeline.sessions}:
            each(names[cell.run_id], " ".join(line.split()) or "it can be trained")

    build_each(cells, pipeline.path.name, options, usable_cores(), told)
    for session in pipeline.in_order():
        if session.begins_with is not None:
            for source in _distinct(pipeline.session(session.begins_with)):
                for config in _distinct(session):
                    _fits(pipeline, source, config)
            each(session.name, f"begins with {session.begins_with}: it fits")


def _distinct(session: PipelineSession) -> list[RunFile]:
    """Its attempts, without those that differ by nothing but their seed."""
    found = dict[str, RunFile]()
    for config in session.attempts:
        found.setdefault(config.model_dump_json(exclude={"run_id", "seed", "initial_model"}), config)
    return list(found.values())


def _fits(pipeline: PipelineConfig, source: RunFile, target: RunFile) -> None:
    """In a process of its own, as their code may have modules of the same names."""
    with tempfile.TemporaryDirectory(prefix="train-cloud-") as folder:
        paths = []
        for one in (source, target):
            config = one.model_copy(update={"initial_model": None})
            cell = Cell(one.run_id, {"session": one.run_id}, config.seed, config)
            paths.append(str(write_cell(cell, Path(folder), pipeline.path.name)))
        environment = child_process.environment(OMP_NUM_THREADS="1", **{hash_seed.VARIABLE: hash_seed.SEED})
        environment.pop("TRAIN_CLOUD_OVERRIDES", None)
        output = Path(folder) / "said.txt"
        with output.open("wb") as said:
            code = subprocess.run(
                child_process.command(__name__, *paths, user_code=True),
                env=environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL, check=False,
            ).returncode  # fmt: skip
        if code:
            raise Refused(f"{target.run_id}: {last_words(output) or f'exit code {code}'}")


def main(arguments: Sequence[str]) -> int:
    """``SOURCE RUN_FILE``: put the model of one run file, untrained, into that of another."""
    from train_cloud.sb3.initial import check_fit

    try:
        check_fit(load_run_file(arguments[0], extra={}), load_run_file(arguments[1], extra={}))
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
