"""The nodes of a Ray cluster, as the engine of an experiment sees them: each run a task with its resources.

Ray decides on which node a task runs, and waits until one has room; a task that was lost with its node is begun again
by the engine, on another one, and goes on from the store. Nothing of a run is in Ray: this process holds a row for each
run, and a number for each that is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from train_cloud.checkpoint import signing
from train_cloud.config import Experiment, RunFile, dump_run_file
from train_cloud.errors import InputError, Interrupted
from train_cloud.experiments.engine import Row
from train_cloud.experiments.place import Place, Plan
from train_cloud.platforms.ec2.metadata import on_ec2
from train_cloud.platforms.ec2.parameters import read_secrets
from train_cloud.platforms.local import Local
from train_cloud.ray import cluster
from train_cloud.ray.cluster import Node, NodeType
from train_cloud.ray.task import Desk, Result, Told, train
from train_cloud.ray.training import Order, digest, node_folder, own_modules, pack_code
from train_cloud.warm_process import Child

log = logging.getLogger(__name__)

_FAILED = 1
#: Losses in a row of one run, without a new commit, after which it is not begun again.
_MOST_LOSSES = 5
#: How long a run waits after its node was left, so that Ray knows by then.
_AFTER_NOTICE_SECONDS = 3.0
_LOOK_SECONDS = 0.1


class Cluster(Place):
    """
    :param source: the experiment file's name, for comments
    :param root: of the store
    :param here: the cluster's nodes
    :param later: what its autoscaler may add
    :param folder: of the sessions' folders, on each node; below the home folder by default
    :param train_on: train runs that were cancelled, that have failed for good, or that a callback had ended
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        source: str,
        root: str,
        here: Sequence[Node],
        later: Sequence[NodeType] = (),
        folder: str | None = None,
        train_on: bool = False,
    ) -> None:
        self._root, self._source = absolute(root), source
        self._here, self._later, self._folder = list(here), list(later), folder
        self._threads, self._train_on = experiment.threads, train_on
        every = [*(node.resources for node in here), *(kind.resources for kind in later)]
        self._gpus = any(resources.get("GPU") for resources in every)
        self._desk: Any = None
        self._look: Any = None
        """The answer to the last question to the desk, while it is awaited."""
        self._told: dict[str, Told] = {}
        self._stops = 0
        self._codes: dict[Path, tuple[str, Any]] = {}
        """Code folder → digest of its archive, and the archive in Ray's object store."""
        self._losses: dict[str, tuple[int, int]] = {}
        """Run → losses in a row, and its committed timesteps then."""
        self._tasks: dict[str, _Task] = {}
        """The last one of each run that the engine has not asked about since it ended."""
        self._not_before: dict[str, float] = {}
        self._last_node: dict[str, str] = {}

    def needs(self, config: RunFile) -> dict[str, float]:
        return cluster.needs(config, self._threads, gpus=self._gpus)

    def check(self, experiment: Plan) -> None:
        self.check_runs({cell.run_id: cell.config for cell in experiment.cells})

    def check_runs(self, configs: dict[str, RunFile]) -> None:
        """:raises InputError: a run has needs that no node meets"""
        cluster.check_resources(
            {run_id: self.needs(config) for run_id, config in configs.items()}, self._here, self._later
        )
        cluster.check_nodes(list(configs.values()), self._root, self._here)
        for config in configs.values():
            missing = {name: parameter for name, parameter in config.secrets.items() if name not in os.environ}
            if not on_ec2():
                Local().secrets(config)
            elif config.signing_key is not None and config.signing_key in missing:  # the checkpoints are read here too
                os.environ.update(read_secrets({config.signing_key: missing[config.signing_key]}))
            if config.signing_key is not None:
                os.environ.setdefault(signing.VARIABLE, config.signing_key)

    def room(self, configs: Sequence[RunFile]) -> int:
        """How many of these runs the cluster holds at once, grown as far as it may."""
        return min((cluster.room(self.needs(config), self._here, self._later) for config in configs), default=1)

    @contextlib.contextmanager
    def alone(self, experiment: str) -> Iterator[None]:
        name = desk_name(self._root, experiment)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=0)(Desk)
        try:
            self._desk = actor.options(name=name, scheduling_strategy=here).remote()
            ray.get(self._desk.look.remote(), timeout=cluster.ANSWER_SECONDS)
        except ValueError:  # the name is taken
            fix = "another launch trains it on this cluster: stop that one first (train-cloud stop --platform ray)"
            raise InputError("experiment", experiment, fix) from None
        except RayError as error:
            fix = f"this node cannot run an actor: {next(iter(str(error).splitlines()), 'no answer')}"
            raise InputError("--address", None, fix) from error
        try:
            yield
        finally:
            ray.kill(self._desk)

    def is_taken(self, row: Row) -> bool:
        """Whether it waits for its last node to be given up."""
        return time.monotonic() < self._not_before.get(row.cell.run_id, 0.0)

    def start(self, row: Row, rows: Sequence[Row]) -> Child:
        config, run_id = row.cell.config, row.cell.run_id
        need = self.needs(config)
        name, archive = self._code_of(config)
        order = Order(
            run_id=run_id,
            run_file=dump_run_file(config, node_folder(self._folder) / "files", self._source),
            store=self._root,
            threads=self._threads,
            folder=self._folder,
            code=name,
            needs=dict(need),
            train_on=self._train_on and row.began == 0,
            warm=not config.env and config.entry_point is None,
            modules=tuple(own_modules(config.code.folder)),
        )
        options: dict[str, Any] = {
            "num_cpus": need.pop("CPU", 0),
            "num_gpus": need.pop("GPU", 0),
            "memory": need.pop("memory", None),
            "resources": need or None,
            "name": f"train-cloud {run_id}",
            "max_retries": 0,
        }
        last = self._last_node.get(run_id)
        if last is not None and any(one.id == last for one in cluster.nodes()):
            # There its predecessor may still commit: whoever comes next waits for that.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(last, soft=True)
        task = f"{run_id} {time.monotonic_ns()}"
        reference = ray.remote(train).options(**options).remote(order, archive, task, self._desk)
        self._tasks[run_id] = _Task(self._desk, task, reference)
        return self._tasks[run_id]

    def _code_of(self, config: RunFile) -> tuple[str | None, Any]:
        folder = config.code.folder
        if folder is None:
            return None, None
        if folder not in self._codes:
            archive = pack_code(config.code)
            assert archive is not None
            self._codes[folder] = digest(archive), ray.put(archive)
        return self._codes[folder]

    def look(self, row: Row) -> None:
        self._ask_desk()
        assert isinstance(row.child, _Task)
        told = self._told.get(row.child.task)
        if told is None:
            row.began = time.monotonic()
            row.doing = "queued" if row.doing == "training" else row.doing
            return
        row.child.known = True
        self._last_node[row.cell.run_id] = told["node"]
        row.doing = "training" if row.doing == "queued" else row.doing
        row.timesteps = max(row.began_at, min(row.total, told["timesteps"]))

    def _ask_desk(self) -> None:
        if self._look is None:
            self._look = self._desk.look.remote()
            return
        ready, _ = ray.wait([self._look], timeout=0)
        if not ready:
            return
        with contextlib.suppress(RayActorError):
            self._told, stops = ray.get(self._look)
            for _ in range(stops - self._stops):  # as if somebody had pressed Ctrl-C here
                os.kill(os.getpid(), signal.SIGTERM)
            self._stops = stops
        self._look = None

    def hours(self, row: Row) -> float:
        told = self._told.get(row.child.task) if isinstance(row.child, _Task) else None
        return told["hours"] if told is not None else 0.0

    def end(self, row: Row, reason: str) -> None:
        assert isinstance(row.child, _Task)
        if row.child.ended_for is None:
            row.child.ended_for = reason
            self._desk.ask.remote(row.child.task, reason)

    def ended(self, row: Row, code: int) -> tuple[bool, str | None]:
        run_id, at = row.cell.run_id, row.standing.timesteps
        task = self._tasks.pop(run_id)
        result = task.result
        if result is not None and result["left"] is not None:
            log.info("%s: its node goes (%s): it goes on elsewhere from %d timesteps", run_id, result["left"], at)
            self._last_node.pop(run_id, None)
            self._not_before[run_id] = time.monotonic() + _AFTER_NOTICE_SECONDS
            return True, None
        why = task.lost
        if result is not None:
            if code >= 0 and code != Interrupted.exit_code:
                return False, result["said"]
            why = "it was stopped on its node" if code >= 0 else f"ended by {signal.Signals(-code).name}"
        losses, before = self._losses.get(run_id, (0, -1))
        losses = losses + 1 if before == at else 1
        self._losses[run_id] = losses, at
        log.info("%s: %s: it goes on from %d timesteps", run_id, why, at)
        return losses < _MOST_LOSSES, f"{losses} times in a row without a new commit: {why}"

    def close(self) -> None:
        """Nothing is left of it."""


class _Task(Child):
    """A run that is trained on the cluster, or waits there for room: what the engine sees as a child process."""

    pid = 0

    def __init__(self, desk: Any, task: str, reference: Any) -> None:
        self._desk, self.task, self._reference = desk, task, reference
        self._asked = False
        """Whether it is to stop."""
        self.known = False
        """Whether the task has told something: it has begun."""
        self.ended_for: str | None = None
        self.returncode: int | None = None
        self.result: Result | None = None
        self.lost: str | None = None
        """How it vanished."""

    def poll(self) -> int | None:
        if self.returncode is not None:
            return self.returncode
        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            self.result = ray.get(self._reference)
            self.returncode = self.result["code"]
        except TaskCancelledError:
            self.returncode = Interrupted.exit_code
        except RayError as error:
            self.lost = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            self.returncode = Interrupted.exit_code if self._asked else _FAILED
        self._reference = None
        self._desk.forget.remote(self.task)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired(self.task, timeout or 0.0)
            time.sleep(_LOOK_SECONDS)
        return code

    def send_signal(self, sig: int) -> None:
        self._asked = True
        if self._reference is None:
            return
        self._desk.ask.remote(self.task, int(sig))
        if not self.known:  # it waits for room
            ray.cancel(self._reference)

    def kill(self) -> None:
        """Its worker; the training, which nobody waits for any more, stops with a commit."""
        self._asked = True
        if self._reference is not None:
            ray.cancel(self._reference, force=True)


def desk_name(root: str, experiment: str) -> str:
    """What the actor of a launch is called, in :data:`train_cloud.ray.cluster.NAMESPACE`."""
    return f"{experiment} {hashlib.sha256(root.encode()).hexdigest()[:12]}"


def absolute(root: str) -> str:
    """Of a store: processes on the cluster have other working directories."""
    return root if "://" in root else str(Path(root).expanduser().absolute())


def stop(root: str, experiment: str) -> None:
    """Have whoever trains this experiment on the connected cluster stop, as Ctrl-C does there.

    :raises InputError: nobody does
    """
    try:
        desk = ray.get_actor(desk_name(absolute(root), experiment), namespace=cluster.NAMESPACE)
        ray.get(desk.stop.remote(), timeout=cluster.ANSWER_SECONDS)
    except (ValueError, RayError) as error:
        fix = f"no launch trains it on this cluster from {root}: nothing is to be stopped"
        raise InputError("experiment", experiment, fix) from error
