"""A pipeline as training jobs of SageMaker: one job trains session after session.

The job itself goes from one session to the next, by the very engine that `train-cloud pipeline run` has: nobody has to
look on, the machine stays, a spot machine that is taken costs one session's minutes, and what is completed is known by
the runs' heads. Only sessions that ask for another machine take a job of their own: the launch creates it after the one
before it, or the next call does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_cloud.config.load import read_mapping
from train_cloud.config.pipeline import PipelineConfig, PipelineSession, load_pipeline
from train_cloud.errors import InputError
from train_cloud.experiments.pipeline.progress import Derivation
from train_cloud.operations.sagemaker.launch import (
    Launch,
    check_store,
    create,
    describe_machine,
    jobs_at_work,
    make,
    section_of,
)
from train_cloud.platforms.sagemaker.launched import Launched
from train_cloud.platforms.sagemaker.request import unlike
from train_cloud.store import ObjectStore, open_store

_ASK_SECONDS = 30.0
_MAIN = "pipeline.yaml"
#: Keys of a session that stand in its run file's content already, once the file was read.
_IN_CONTENT = ("overrides", "timesteps", "aws_overrides", "config")


def pipeline_folder(pipeline_id: str) -> str:
    """Where its jobs are written down, relative to the store's root."""
    return f"pipelines/{pipeline_id}"


@dataclass(frozen=True)
class Part:
    """Sessions that one job trains."""

    sessions: tuple[PipelineSession, ...]
    launch: Launch


class PipelineJobs:
    """The jobs of a pipeline.

    :param overrides: as given with ``--set``
    :param train_on: also sessions that were cancelled or have failed for good
    :raises InputError: what its file, the store or AWS would refuse; nothing has been created
    """

    def __init__(
        self, path: Path, root: str, overrides: Sequence[str], parallel: int | None, *, train_on: bool = False
    ) -> None:
        check_store(root)
        self.config: PipelineConfig = load_pipeline(path, overrides)
        self._root, self._train_on = root, train_on
        self._raw = {str(entry["name"]): entry for entry in read_mapping(path, "pipeline file", "name")["sessions"]}
        self._check_code()
        self.parts = [self._part(sessions, parallel) for sessions in in_parts(self.config)]

    @property
    def folder(self) -> str:
        return pipeline_folder(self.config.id)

    @property
    def store(self) -> ObjectStore:
        return open_store(f"{self._root.rstrip('/')}/{self.folder}")

    def warnings(self) -> list[str]:
        """Where the machine changes, so that neither the same job nor a warm pool can go on."""
        said = []
        for before, after in zip(self.parts, self.parts[1:], strict=False):
            changed = " and ".join(unlike(before.launch.section, after.launch.section))
            first = after.sessions[0].name
            pool = ", which no warm pool matches" if before.launch.section.keep_alive_seconds else ""
            said.append(
                f"{first}: another {changed}{pool}: it begins in a job of its own, on a machine that boots anew"
            )
        return said

    def next_part(self) -> Part | None:
        """The one with the first session that is to be trained; None where there is none.

        :raises InputError: a session is not what its run was begun with
        """
        found = {one.name: one for one in Derivation(self.config, self._root, resume=self._train_on).derive()}
        for part in self.parts:
            if any(found[session.name].state == "open" for session in part.sessions):
                return part
        return None

    def launch(self, *, wait: bool, each: Callable[[str], None], every: float = _ASK_SECONDS) -> None:
        """Launch what comes next, and after that job's end what comes after it.

        :param wait: until the last of the jobs is launched
        :param each: is told what becomes of it
        """
        launched: list[Part] = []
        while True:
            at_work = jobs_at_work(self.store)
            part = None if at_work else self.next_part()
            if at_work:
                each(f"the job {at_work[0].name} is at work: {at_work[0].in_words()}") if not launched else None
            elif part is None or part in launched:
                each("nothing to launch: no session is to be trained" if part is None else "a session is not over")
                return
            else:
                name = create(part.launch, self._root).name
                each(f"the job {name} trains {', '.join(session.name for session in part.sessions)}")
                launched.append(part)
            if not wait or (launched and launched[-1] is self.parts[-1]) or (at_work and len(self.parts) == 1):
                return
            time.sleep(every)

    def _check_code(self) -> None:
        """:raises InputError: a job has one code folder"""
        first, *others = self.config.sessions
        for other in others:
            if (other.config.code.folder, other.config.code.exclude) != (
                first.config.code.folder, first.config.code.exclude
            ):  # fmt: skip
                fix = f"{first.name} has another one, and a job has one code folder: put both into one"
                raise InputError(f"{other.name}: code.folder", str(other.config.code.folder), fix)

    def _part(self, sessions: Sequence[PipelineSession], parallel: int | None) -> Part:
        first = sessions[0].config
        options = [*(["--parallel", str(parallel)] if parallel is not None else [])]
        launched = Launched(
            command=("pipeline", "run"),
            main=_MAIN,
            files={_MAIN: self._file_up_to(sessions[-1])},
            run_ids=tuple(session.run_id for session in sessions),
            options=(*options, *(["--resume"] if self._train_on else [])),
            machine=describe_machine(section_of(first)),
        )
        return Part(tuple(sessions), make(first, launched, self._root, self.folder))

    def _file_up_to(self, last: PipelineSession) -> str:
        """A pipeline file that needs no other: with the content of the run files, of the sessions up to ``last``."""
        written = self.config.written.model_dump(mode="json", exclude_unset=True, exclude={"aws"})
        order = self.config.in_order()
        sessions = order[: order.index(last) + 1]
        values = {
            **written,
            "id": self.config.id,
            # Else they would follow from which sessions are in the file.
            **({"threads": self.config.threads} if self.config.threads is not None else {}),
            "sessions": [self._entry(session) for session in sessions],
        }
        return json.dumps(values, indent=1)  # which is YAML

    def _entry(self, session: PipelineSession) -> dict[str, Any]:
        content = {key: value for key, value in session.content.items() if key != "run_id"}
        entry = {key: value for key, value in self._raw[session.name].items() if key not in _IN_CONTENT}
        if session.begins_with is not None:
            content.pop("initial_model", None)  # which is known when it begins
        else:
            for key in ("checkpoint", "use_previous_checkpoint", "checkpoint_choice"):
                entry.pop(key, None)
            model = content.get("initial_model")
            if isinstance(model, dict) and Path(str(model.get("source"))).is_absolute():
                # In the job its code lies elsewhere: paths that are relative to each other stay so.
                source = os.path.relpath(str(model["source"]), session.base)
                content["initial_model"] = {**model, "source": Path(source).as_posix()}
        return {**entry, "after": list(session.after), "config": content}


def in_parts(config: PipelineConfig) -> list[list[PipelineSession]]:
    """Its sessions in their order, those together that one machine trains after each other.

    :raises InputError: a session's run file has no section ``sagemaker``
    """
    found: list[list[PipelineSession]] = []
    for session in config.in_order():
        try:
            section = section_of(session.config)
        except InputError as error:
            raise InputError(f"{session.name}: {error.field}", error.value, error.fix) from error
        if found and not unlike(section_of(found[-1][-1].config), section):
            found[-1].append(session)
        else:
            found.append([session])
    return found
