"""A model for people: a folder whose ``model.zip`` loads with plain Stable-Baselines3, made from a checkpoint's parts.

No environment is built and nothing of the user's code is imported: the zip is put together from SB3's own description
of the model (``skeleton``) and the tensors.
"""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import pprint
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.save_util import save_to_zip_file

from train_cloud.sb3.capture import parameters_of, tensors_in
from train_cloud.snapshot import Snapshot

#: A program of its own, of which a copy goes with each model.
_PLAY = Path(__file__).with_name("play_script.py")
#: SB3's name for what JSON cannot say.
_PACKED = ":serialized:"
_ARCHITECTURES = "train_cloud.sb3.architectures"
_FILLED_IN = "RUN: dict[str, Any] = {}\n"


def write_export(
    snapshot: Snapshot, folder: Path, *, run_yaml: str, lock: str, environment: Mapping[str, Any] | None
) -> None:
    """Write ``model.zip``, ``vecnormalize.pkl`` where the run normalises, ``run.yaml``, ``requirements.lock``,
    ``play.py``.

    Of several learners each has a folder with its ``model.zip``.

    :param snapshot: needs the parts ``model``, ``skeleton`` and, if there is one, ``normalizer``
    :param environment: the run file's section, for ``play.py``; None where a script builds its own
    """
    folder.mkdir(parents=True, exist_ok=True)
    learners = snapshot.facts.get("learners")
    for name, facts in (learners or {"": snapshot.facts}).items():
        (folder / name).mkdir(exist_ok=True)
        _write_model(snapshot, f"{name}/" if name else "", facts, folder / name / "model.zip")
    if "normalizer" in snapshot.parts:
        (folder / "vecnormalize.pkl").write_bytes(snapshot.parts["normalizer"].blob)
    (folder / "run.yaml").write_text(run_yaml)
    (folder / "requirements.lock").write_text(lock)
    (folder / "play.py").write_text(_play_script(snapshot.facts, environment), encoding="utf-8")


def _play_script(facts: Mapping[str, Any], environment: Mapping[str, Any] | None) -> str:
    """The program that plays this model, with what it needs to know of the run."""
    made = environment or {}
    stage = _stage(facts)
    several = facts.get("learners")
    module, _, name = "stable_baselines3:SAC".partition(":")
    if several is None:
        module, _, name = facts["algorithm"]["class"].partition(":")
        module = module.split(".")[0] if module.startswith(("stable_baselines3.", "sb3_contrib.")) else module
    run = {
        "algorithm": f"{module}:{name}",
        "environment": {
            "id": made.get("id"),
            "kwargs": {**made.get("kwargs", {}), **stage.get("kwargs", {})},
            "module": made.get("module"),
            "wrappers": list(made.get("wrappers", ())),
            "frame_stack": made.get("frame_stack"),
            "call": [stage["method"], *stage["args"]] if stage.get("method") else None,
        },
        "learner_of": dict(facts["agents"]) if several is not None else None,
        "code_folder": facts.get("code_folder"),
    }
    text = _PLAY.read_text(encoding="utf-8")
    assert _FILLED_IN in text
    return text.replace(_FILLED_IN, f"RUN: dict[str, Any] = {pprint.pformat(run, width=110, sort_dicts=False)}\n")


def _stage(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a curriculum: the one that the checkpoint was made in, as the run file has it; empty where there is none."""
    curriculum = facts.get("identity", {}).get("curriculum")
    stage: Mapping[str, Any] = curriculum["stages"][facts["curriculum"]["stage"]] if curriculum else {}
    return stage


@contextlib.contextmanager
def _without_a_folder_named_gym() -> Iterator[None]:
    """``save_to_zip_file`` notes OpenAI Gym's version where a module of that name can be imported. A user's folder
    ``gym/`` can, as many have one, and has no version.
    """
    if hasattr(sys.modules.get("gym"), "__version__"):
        yield
        return
    before = sys.modules.get("gym", ...)
    sys.modules["gym"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["gym"]
        if before is not ...:
            sys.modules["gym"] = before


def _write_model(snapshot: Snapshot, prefix: str, facts: Mapping[str, Any], path: Path) -> None:
    part = snapshot.parts[f"{prefix}model"]
    tensors = tensors_in(part)
    parameters, variables = parameters_of(tensors, facts["optimizers"])
    with _without_a_folder_named_gym():
        save_to_zip_file(path, data=None, params=parameters, pytorch_variables=variables or None)
    data = json.loads(snapshot.parts[f"{prefix}skeleton"].blob)
    data.update({key: value for key, value in facts["algorithm"].items() if key != "class"})
    _carry_architecture(data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data", json.dumps(data, indent=4))


def _carry_architecture(data: dict[str, Any]) -> None:
    """Have a network of ours travel in the zip as a whole, where SB3 has only its name: it loads without train-cloud.

    :param data: SB3's description of the model; changed in place
    """
    written: dict[str, Any] = data.get("policy_kwargs") or {}
    packed = base64.b64decode(written.get(_PACKED, ""))
    if _ARCHITECTURES.encode() not in packed:
        return
    import cloudpickle

    from train_cloud.sb3 import architectures

    kwargs = pickle.loads(packed)  # of this run's checkpoint, as the whole export
    cloudpickle.register_pickle_by_value(architectures)
    try:
        data["policy_kwargs"] = {**written, _PACKED: base64.b64encode(cloudpickle.dumps(kwargs)).decode()}
    finally:
        cloudpickle.unregister_pickle_by_value(architectures)
