"""record: demonstrations of a run file's environment, played by a run's model, an expert, or a person."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train_cloud.checkpoint import find, restore
from train_cloud.checkpoint.survey import committed
from train_cloud.child_process import code_on_path
from train_cloud.config import Environment, RunFile, load_run_file
from train_cloud.config.current import training
from train_cloud.config.run_file import MULTIAGENT
from train_cloud.envs.demonstrations import write
from train_cloud.errors import InputError
from train_cloud.evaluate.record import Chosen, Expert, Keyboard, Model, Player, record
from train_cloud.run import layout
from train_cloud.sb3.export import write_export
from train_cloud.store import open_store

_PARTS = {"model", "skeleton", "normalizer", "lock", "run"}


@dataclass(frozen=True)
class Recorded:
    """What was recorded.

    :ivar played: episodes, of which those that are kept may be few
    :ivar returns: of those that are kept, (episodes,)
    :ivar steps: of those
    """

    out: Path
    played: int
    returns: np.ndarray[Any, Any]
    steps: int


@dataclass(frozen=True)
class Source:
    """Who plays: one of the three.

    :ivar run: a run's id
    :ivar root: store root of the run
    :ivar at: timesteps of one of its preserved checkpoints; None for the newest
    :ivar stochastic: whether its actions are drawn from the policy
    :ivar expert: ``module:name``
    :ivar keyboard: a person
    :ivar keys: JSON file with keys for the person; None for the environment's own
    """

    run: str | None = None
    root: str | None = None
    at: int | None = None
    stochastic: bool = False
    expert: str | None = None
    keyboard: bool = False
    keys: Path | None = None


def record_demonstrations(
    run_file: Path,
    out: Path,
    source: Source,
    *,
    episodes: int,
    seed: int = 0,
    successful: bool = False,
    overrides: Sequence[str] = (),
) -> Recorded:
    """Play episodes and write them down: as a file where ``out`` ends in ``.npz``, else as a Minari dataset's folder.

    :param seed: of the first episode; the next ones follow
    :param successful: keep only those that ``evaluation.success`` calls so
    :raises InputError: nobody or several are to play, ``out`` exists, or environment, run or expert refuse
    """
    config = load_run_file(run_file, overrides)
    if config.environment is None or config.algorithm == MULTIAGENT:
        fix = "name a run file with an environment of one agent: a script makes its own"
        raise InputError("run file", str(run_file), fix)
    if [source.run is not None, source.expert is not None, source.keyboard].count(True) != 1:
        raise InputError("--expert", source.expert, "say who plays: one of --run, --expert and --keyboard")
    if out.exists():
        raise InputError(
            "--out", str(out), "it exists: name a file that ends in .npz, or a folder, that is not there yet"
        )
    os.environ.update(config.env)
    success = config.evaluation.success if config.evaluation is not None else "info.is_success"
    chosen = Chosen(episodes, success if successful else None)
    with code_on_path(config.code.folder), training(config), tempfile.TemporaryDirectory() as folder:
        player = _player(source, config.environment, config, Path(folder))
        found, env = record(config.environment, player, chosen, seed)
        write(found, env, {"id": config.environment.id, "kwargs": config.environment.kwargs}, out)
    return Recorded(
        out, chosen.played, np.array([each.total for each in found]), sum(len(each.actions) for each in found)
    )


def _player(source: Source, environment: Environment, config: RunFile, folder: Path) -> Player:
    if source.expert is not None:
        return Expert(source.expert)
    if source.keyboard:
        return Keyboard(_keys(source.keys) if source.keys is not None else None)
    assert source.run is not None
    if source.root is None:
        raise InputError("--store", None, "say where the run is kept: --store s3://bucket/prefix or a folder")
    store = open_store(layout.run_url(source.root, source.run))
    _, newest = committed(store, source.run)
    snapshot = restore(store, find(store, newest, source.at), parts=_PARTS)
    if "learners" in snapshot.facts:
        raise InputError("--run", source.run, "it has several learners: name a run with one")
    write_export(
        snapshot,
        folder,
        run_yaml=snapshot.parts["run"].blob.decode(),
        lock=snapshot.parts["lock"].blob.decode(),
        environment=environment.model_dump(mode="json"),
    )
    kind = snapshot.facts["algorithm"]["class"]
    return Model(folder, kind, environment.frame_stack, deterministic=not source.stochastic)


def _keys(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError("--keys", str(path), f"name a JSON file: {error}") from error
    if not isinstance(found, dict) or not found:
        raise InputError(
            "--keys", str(path), 'write JSON like {"a": 0, "d": 1, "": 0}: keys that are held, and an action'
        )
    return found
