"""The run file that trained a checkpoint, from the run's own records: what was written, launched and overridden."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic_core import to_jsonable_python

from train_cloud.checkpoint import Manifest, restore
from train_cloud.config import ALIASES, RunFile, parse_run_file, read_yaml
from train_cloud.config.pretraining import recorded as recorded_pretraining
from train_cloud.run import layout
from train_cloud.run.session import read_sessions
from train_cloud.store import ObjectStore


def recorded_run_file(
    source: ObjectStore,
    manifest: Manifest,
    run_id: str,
    overrides: Sequence[str] = (),
    *,
    base: Path,
    to_play: bool = False,
) -> RunFile:
    """:param run_id: of the run that it is for
    :param base: folder that its paths are relative to
    :param to_play: for playing the model alone: the code may lie where it lay when the run was trained, and what the
        run began with does not matter any more
    :raises InputError: something that it names is not here
    """
    text = restore(source, manifest, parts={"run"}).parts["run"].blob.decode()
    written = {ALIASES.get(key, key): value for key, value in read_yaml(text, layout.RUN_YAML).items()}
    session = next((record for record in read_sessions(source) if record.number == manifest.session), None)
    effective = session.start.get("run_file", {}) if session is not None else {}
    values = {**written, **effective, **manifest.facts["identity"]}
    for name, field in RunFile.model_fields.items():
        if not field.is_required() and values.get(name, ...) == to_jsonable_python(field.default):
            del values[name]
    # The identity has a digest in its place, and the session knows where it lay on its own machine.
    values["code"] = written.get("code", {})
    lay = manifest.facts.get("code_folder")
    if to_play and lay is not None and Path(lay).is_dir():
        values["code"] = {"folder": lay}
    begun_with = values.get("initial_model")
    if to_play:
        values.pop("initial_model", None)
    elif isinstance(begun_with, dict) and "source" not in begun_with:  # a file, by its digest
        values["initial_model"] = written.get("initial_model")
    learned = values.get("pretraining")
    if to_play:
        values.pop("pretraining", None)
    elif isinstance(learned, dict):
        values["pretraining"] = recorded_pretraining(learned, written.get("pretraining"))
    return parse_run_file({**values, "run_id": run_id}, overrides, extra={}, base=base)
