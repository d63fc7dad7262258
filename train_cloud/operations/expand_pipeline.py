"""A pipeline file as one machine can have it: every run file in it, paths relative to where it lies, for Terraform's
``pipeline_file``.

Beside it lies a listing that says what it was made of. Terraform compares it with what it finds
(terraform/pipeline.tf), so that no pipeline is launched that was changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from train_cloud.config import RunFile, dump_run_file, read_yaml
from train_cloud.config.code import MARKS, mark_as_cache
from train_cloud.config.pipeline import LAUNCHED, PipelineConfig, PipelineSession, load_pipeline
from train_cloud.errors import InputError
from train_cloud.whole_file import write_whole

LISTING = "pipeline.json"


def launch_folder(path: Path) -> Path:
    """Where Terraform looks for what was made of a pipeline file: beside it."""
    return path.parent / f"{path.stem}-sessions"


def expand_pipeline(path: Path, overrides: Sequence[str] = (), *, into: Path | None = None) -> Path:
    """Write the pipeline file for one machine, and the listing, into :func:`launch_folder`, which is this command's.

    :param overrides: as given with ``--set``
    :param into: another folder
    :return: the file
    :raises InputError: the pipeline file is bad, or its sessions cannot be trained on one machine; nothing is written
    """
    pipeline = load_pipeline(path, overrides)
    folder = into or launch_folder(path)
    content = _content(pipeline, folder)
    _take(folder)
    (folder / LISTING).unlink(missing_ok=True)
    for gone in folder.glob("*.yaml"):
        gone.unlink()
    written = folder / f"{pipeline.id}.yaml"
    with written.open("w") as file:
        file.write(f"# {path.name} as one machine has it; made by train-cloud expand\n")
        YAML().dump(content, file)
    listing = {
        "id": pipeline.id,
        "options": shlex.join(word for override in overrides for word in ("--set", override)),
        "sources": {
            Path(os.path.relpath(source, folder.absolute())).as_posix(): _digest(source)
            for source in (path.absolute(), *pipeline.sources)
        },
        "file": written.name,
        "sha256": _digest(written),
        "runs": [run_id for session in pipeline.sessions for run_id in session.run_ids],
    }
    write_whole(folder / LISTING, (json.dumps(listing, indent=1) + "\n").encode())
    return written


def _content(pipeline: PipelineConfig, folder: Path) -> dict[str, Any]:
    sessions = pipeline.sessions
    first = sessions[0].config
    for session in sessions[1:]:
        if session.config.code != first.code:
            fix = f"the sessions of one machine have one code folder: give it the same as {sessions[0].name}"
            raise InputError(f"{session.name}: code", str(session.config.code.folder), fix)
    top: dict[str, Any] = {"run_id": pipeline.id, LAUNCHED: True}
    code = _dumped(first, folder).get("code")
    if code is not None:
        top["code"] = code
    secrets: dict[str, str] = {}
    for session in sessions:
        for name, parameter in session.config.secrets.items():
            if secrets.setdefault(name, parameter) != parameter:
                raise InputError(f"{session.name}: secrets.{name}", parameter, f"another session has {secrets[name]}")
    if secrets:
        top["secrets"] = secrets
    data = dict.fromkeys(url for session in sessions for url in session.config.data)
    if data:
        top["data"] = list(data)
    for key in ("initial_model", "pretraining"):
        read = {source for session in sessions if (source := _read_elsewhere(session, key)) is not None}
        if len(read) > 1:
            fix = "of one machine at most one session reads such a source: train them as pipelines of their own"
            raise InputError(key, sorted(read), fix)
        if read:
            top[key] = next(iter(read))
    written = pipeline.written.model_dump(mode="json", exclude_defaults=True, exclude={"aws", "id"})
    return {**top, **written, "id": pipeline.id, "sessions": [_session(one, folder) for one in sessions]}


def _session(session: PipelineSession, folder: Path) -> dict[str, Any]:
    values = _dumped(session.config.model_copy(update={"initial_model": None}), folder)
    if session.begins_with is None and session.config.initial_model is not None:
        values["initial_model"] = _dumped(session.config, folder)["initial_model"]
    values.pop("run_id")
    content: dict[str, Any] = {"name": session.name, "config": values, "after": list(session.after)}
    if session.begins_with is not None:
        content |= {"checkpoint": f"session:{session.begins_with}", "checkpoint_choice": session.choice}
    if session.criteria is not None:
        content["success_criteria"] = session.criteria.model_dump(mode="json", exclude_defaults=True)
    return content


def _dumped(config: RunFile, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_yaml(dump_run_file(config, folder.absolute(), "a session"), "run file")
    return found


def _read_elsewhere(session: PipelineSession, key: str) -> str | None:
    """What a session reads from another run or from S3, which its machine's role must be allowed to."""
    if key == "initial_model":
        model = session.config.initial_model
        return None if model is None or session.begins_with is not None or model.path is not None else model.source
    learned = session.config.pretraining
    return learned.demonstrations if learned is not None and learned.demonstrations.startswith("s3:") else None


def _take(folder: Path) -> None:
    """Make it, or see that an earlier call has made it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made_by_us = (folder / MARKS[0]).exists() or next(folder.iterdir(), None) is None
    except OSError as error:
        raise InputError("pipeline", str(folder), f"what is launched goes there: make it writable: {error}") from error
    if not made_by_us:
        raise InputError("pipeline", str(folder), "what is launched goes there: move what is in this folder elsewhere")
    mark_as_cache(folder)


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()
