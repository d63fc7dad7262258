"""A run as a trial of Ray Tune: any search, any scheduler, and everything that is worth keeping in the store.

Tune keeps ``{run_id, timesteps}`` as a trial's checkpoint. An actor that died, or whose node did, is begun again by
Tune, and its run goes on from its last commit, however old Tune's checkpoint is. A scheduler that puts one trial in the
place of another, as PBT does, forks a run at a checkpoint; which run came of which stands in the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray import tune

from train_cloud.checkpoint import Manifest, read_manifest
from train_cloud.child_process import restore_variables
from train_cloud.config import RunFile, dump_run_file, load_run_file, parse_run_file, read_yaml
from train_cloud.errors import EXIT_COMPLETED, InputError, Interrupted, TrainCloudError
from train_cloud.evaluate.results import Evaluation
from train_cloud.operations.fork import fork
from train_cloud.ray import cluster
from train_cloud.ray.place import absolute
from train_cloud.ray.training import Order, Training, digest, node_folder, own_modules, pack_code, unpack
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head
from train_cloud.store import ObjectStore, open_store

_RUN_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MOST_CODE = 50_000_000
_POLL_SECONDS = 0.1
#: How often the store is asked: a folder, and what is far.
_LOOK_SECONDS, _LOOK_SECONDS_FAR = 0.5, 5.0
_STOP_SECONDS = 150.0
#: A training that was ended on its node by somebody else is begun again so often.
_MOST_RESTARTS = 3


@dataclass(frozen=True)
class _Spec:
    """What all trials have in common. Travels to the nodes."""

    run_file: str
    base: str
    """Folder that its paths are relative to."""
    store: str
    interval: int
    keep: int
    threads: int
    folder: str | None
    code: str | None
    archive: bytes | None
    modules: tuple[str, ...]


def trainable(
    run_file: str | Path,
    *,
    store: str,
    interval: int | None = None,
    overrides: Sequence[str] = (),
    threads: int = 1,
    keep: int = 10,
    state_dir: str | None = None,
) -> type[tune.Trainable]:
    """A class for ``tune.Tuner``, each of whose trials is a run of its own: ``<run_id>-<trial's id>``.

    A trial's ``config`` overrides the run file; keys are dotted (``hyperparameters.learning_rate``) or maps. A result
    comes every ``interval`` timesteps, with ``timesteps_total``, ``run_id`` and ``episode_return``, the mean return of
    the training's last episodes; where the run file evaluates, also with ``mean_return``, ``success_rate``, ``length``,
    ``efficiency`` and ``collisions`` of the evaluation there. What nothing tells is NaN.

    :param run_file: of the run that is varied
    :param store: root of the store, ``s3://bucket/prefix`` or a folder that all nodes see
    :param interval: timesteps from one result to the next; by default ``evaluation.every``, or else ``save_frequency``
    :param overrides: ``key=value`` for all trials, as given with ``--set``
    :param threads: with which torch computes in each trial
    :param keep: how many checkpoints of each run stay whole, so that a scheduler can go back to them
    :param state_dir: folder of the sessions' files on each node; ``.train-cloud/ray`` in the home folder by default
    :return: a subclass of ``ray.tune.Trainable``
    :raises InputError: the run file, or something that it names, cannot be used on other machines
    """
    path = Path(run_file)
    config = load_run_file(path, overrides)
    if config.seeds is not None:
        raise InputError(
            "seeds", list(config.seeds), "give seed instead, and let Tune vary it: tune.grid_search([1, 2])"
        )
    archive = pack_code(config.code)
    if archive is not None and len(archive) > _MOST_CODE:
        fix = f"at most {_MOST_CODE:,} bytes travel with a trial: leave data out with code.exclude"
        raise InputError("code.folder", str(config.code.folder), fix)
    every = config.evaluation.every if config.evaluation is not None else None
    steps = interval or every or config.save_frequency
    if steps is None or steps < 1:
        raise InputError("interval", interval, "give timesteps from one result to the next: at least 1")
    if every is not None and steps % every:
        raise InputError("interval", steps, f"give a multiple of evaluation.every, which is {every}")
    spec = _Spec(
        run_file=dump_run_file(config, path.absolute().parent, f"for Ray Tune, from {path.name}"),
        base=str(path.absolute().parent),
        store=absolute(store),
        interval=steps,
        keep=keep,
        threads=threads,
        folder=state_dir,
        code=digest(archive) if archive is not None else None,
        archive=archive,
        modules=tuple(own_modules(config.code.folder)),
    )
    return type("TrainCloud", (RunTrainable,), {"spec": spec})


class RunTrainable(tune.Trainable):
    """One trial. Its process trains nothing: it starts a training, and reads from the store what that commits."""

    spec: _Spec

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What the run file's ``ray`` section says."""
        with _packed(cls.spec):
            run = _run_file(cls.spec, "a-trial", config)
        gpus = bool(ray.is_initialized() and any(node.resources.get("GPU") for node in cluster.nodes()))
        return tune.PlacementGroupFactory([cluster.needs(run, cls.spec.threads, gpus=gpus)])

    def setup(self, config: dict[str, Any]) -> None:
        self._training: Training | None = None
        self._restarts = 0
        self._overrides = config
        self._own = re.sub(r"[^a-z0-9]+", "-", f"{_run_id(self.spec)}-{self.trial_id}".lower()).strip("-")
        self._take(self._own, 0)

    def _take(self, run_id: str, at: int) -> None:
        """:param at: timesteps of the last result"""
        if not _RUN_ID.fullmatch(run_id):
            raise InputError("run_id", run_id, "it has more than 63 characters with the trial's id: shorten run_id")
        self._run_id, self._at = run_id, at
        with _packed(self.spec):
            self._run = _run_file(self.spec, run_id, self._overrides)
        self._store = open_store(layout.run_url(self.spec.store, run_id))
        self._look_at = 0.0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {"run_id": self._run_id, "timesteps": self._at}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        if not checkpoint:
            return
        run_id, at = str(checkpoint["run_id"]), int(checkpoint["timesteps"])
        if run_id == self._own or run_id.startswith(f"{self._own}-f"):
            self._take(run_id, at)
        elif at > 0:
            self._fork(run_id, at)

    def _fork(self, run_id: str, at: int) -> None:
        """Go on with another trial's checkpoint, under a name that says so: called again, it is the same run."""
        source = open_store(layout.run_url(self.spec.store, run_id))
        parent = f"{source.url}@{at}"
        changes = [f"{key}={json.dumps(value)}" for key, value in _dotted(self._overrides).items()]
        name = hashlib.sha256("\n".join([parent, *changes]).encode()).hexdigest()[:8]
        target = f"{self._own}-f{name}"
        self._take(target, at)
        if _parent(self._store) is not None:
            return
        with _packed(self.spec), tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run.yaml"
            fork(self.spec.store, run_id, target, at=at, overrides=changes, base=Path(self.spec.base), out=out)

    # ------------------------------------------------------------------------------------------------------- training

    def step(self) -> dict[str, Any]:
        training = self._begin()
        while (code := training.poll(self.spec.archive)) is None:
            found = self._result()
            if found is not None:
                return found
            time.sleep(_POLL_SECONDS)
        self._training = None
        training.close()
        if code == EXIT_COMPLETED:
            return self._last()
        if code == Interrupted.exit_code and training.notice is None and self._restarts < _MOST_RESTARTS:
            self._restarts += 1
            return self.step()
        if training.notice is not None:
            raise Interrupted(f"{self._run_id}: its node goes ({training.notice.kind}); all is committed")
        raise TrainCloudError(f"{self._run_id}: {training.last_words() or f'exit code {code}'}")

    def cleanup(self) -> None:
        """Stop with a commit. Whether the trial is over or only paused, Tune does not say: the run stays open."""
        training, self._training = self._training, None
        if training is None:
            return
        training.send_signal(signal.SIGTERM)
        until = time.monotonic() + _STOP_SECONDS
        while training.poll(self.spec.archive) is None and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        training.close()

    def _begin(self) -> Training:
        if self._training is None:
            spec = self.spec
            order = Order(
                run_id=self._run_id,
                run_file=dump_run_file(self._run, node_folder(spec.folder) / "files", "a trial of Ray Tune"),
                store=spec.store,
                threads=spec.threads,
                folder=spec.folder,
                code=spec.code,
                warm=not self._run.env and self._run.entry_point is None,
                modules=spec.modules,
            )
            node = ray.get_runtime_context().get_node_id()
            here = next((one.resources for one in cluster.nodes() if one.id == node), {})
            need = cluster.needs(self._run, spec.threads, gpus=bool(here.get("GPU")))
            self._training = Training(order, node, cluster.share(need, here))
        return self._training

    # -------------------------------------------------------------------------------------------------------- results

    def _result(self) -> dict[str, Any] | None:
        """Of the next interval, once it is committed and evaluated; None before. The last one waits for the end."""
        if time.monotonic() < self._look_at:
            return None
        self._look_at = time.monotonic() + (_LOOK_SECONDS_FAR if "://" in self.spec.store else _LOOK_SECONDS)
        read = read_head(self._store)
        due = self._due()
        if read is None or read[0].manifest is None or read[0].timesteps < due or due >= self._run.total_timesteps:
            return None
        at, manifest = _first(self._store, read[0], due)
        if at >= self._run.total_timesteps:
            return None
        evaluation = self._evaluation(at)
        if evaluation is None and self._evaluates:
            return None
        self._at = at
        return self._told(at, manifest, evaluation)

    def _last(self) -> dict[str, Any]:
        read = read_head(self._store)
        if read is None or read[0].manifest is None:
            raise TrainCloudError(f"{self._run_id} has ended without a checkpoint")
        manifest = read_manifest(self._store, read[0].manifest)
        self._at = read[0].timesteps
        return {**self._told(self._at, manifest, self._evaluation(self._at)), "done": True}

    def _due(self) -> int:
        return (self._at // self.spec.interval + 1) * self.spec.interval

    @property
    def _evaluates(self) -> bool:
        evaluation = self._run.evaluation
        return evaluation is not None and evaluation.every is not None

    def _evaluation(self, at: int) -> Evaluation | None:
        key = layout.evaluation_key(at)
        if not any(info.key == key for info in self._store.list(key)):
            return None
        with contextlib.suppress(ValidationError):
            return Evaluation.model_validate_json(bytes(self._store.get(key).body))
        return None

    def _told(self, at: int, manifest: Manifest | None, evaluation: Evaluation | None) -> dict[str, Any]:
        found: dict[str, Any] = {"run_id": self._run_id, "timesteps_total": at}
        found["episode_return"] = _number(manifest.episode_return if manifest is not None else None)
        if self._run.evaluation is not None:
            summary = evaluation.overall if evaluation is not None else None
            for name, value in (
                ("mean_return", summary.returns.mean if summary else None),
                ("success_rate", summary.success_rate if summary else None),
                ("length", summary.lengths.mean if summary else None),
                ("efficiency", summary.efficiency if summary else None),
                ("collisions", summary.collisions if summary else None),
            ):
                found[name] = _number(value)
        return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _first(store: ObjectStore, head: Head, due: int) -> tuple[int, Manifest | None]:
    """The first checkpoint at or after ``due`` timesteps that is preserved."""
    assert head.manifest is not None
    newest = read_manifest(store, head.manifest)
    earlier = [kept for kept in newest.kept if kept.timesteps >= due]
    if not earlier:
        return newest.timesteps, newest
    first = min(earlier, key=lambda kept: kept.timesteps)
    return first.timesteps, read_manifest(store, first.manifest)


def _parent(store: ObjectStore) -> str | None:
    """What a run was forked from, or its last checkpoint but one; None of a run that is not there."""
    read = read_head(store)
    return None if read is None else read[0].parent or ""


def _dotted(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A trial's config as overrides of a run file. NumPy's numbers, which samplers draw, become Python's."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _dotted(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value.item() if hasattr(value, "item") else value
    return found


def _run_id(spec: _Spec) -> str:
    return str(read_yaml(spec.run_file, "run file")["run_id"])


def _run_file(spec: _Spec, run_id: str, config: Mapping[str, Any]) -> RunFile:
    """Of a trial.

    :raises InputError: its config cannot stand in a run file
    """
    values = read_yaml(spec.run_file, "run file")
    changes = _dotted(config)
    for key in ("run_id", "seeds", "experiment"):
        if key in changes:
            raise InputError(key, changes[key], "each trial is a run of its own, which this names: leave it out")
    kept = dict(values.get("preservation") or {})
    kept["last"] = max(spec.keep, kept.get("last", 0))
    named = {"run_id": run_id, "experiment": values.get("experiment") or values["run_id"], "preservation": kept}
    return parse_run_file({**values, **named}, extra=changes, base=Path(spec.base))


@contextlib.contextmanager
def _packed(spec: _Spec) -> Iterator[None]:
    """With the code folder that travelled in the place of the one that the run file names."""
    if spec.archive is None or spec.code is None or Path(spec.base).is_dir():
        yield
        return
    name = "TRAIN_CLOUD_CODE"
    before = os.environ.get(name)
    os.environ[name] = str(unpack(spec.archive, spec.code, node_folder(spec.folder) / "code"))
    try:
        yield
    finally:
        restore_variables({name: before})
