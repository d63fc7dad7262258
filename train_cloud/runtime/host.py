"""What the trainer asks of its session (:class:`~train_cloud.trainer.Host`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from train_cloud.checkpoint import read_manifest
from train_cloud.run.head import Outcome
from train_cloud.run.session import SessionRecord
from train_cloud.runtime.acquire import Acquired
from train_cloud.runtime.beside import Beside
from train_cloud.runtime.delivery import Delivery
from train_cloud.runtime.inputs import Inputs
from train_cloud.runtime.pretraining import Pretrained
from train_cloud.runtime.progress import Progress
from train_cloud.runtime.restoring import Restored
from train_cloud.runtime.saving import Saving
from train_cloud.snapshot import ENDED_EARLY, Snapshot

if TYPE_CHECKING:
    from stable_baselines3.common.logger import KVWriter


class SessionHost:
    """A :class:`~train_cloud.trainer.Host`.

    :ivar early: how a callback ended the training before its total
    :ivar finished: whether the state after the last update is committed
    """

    def __init__(
        self,
        inputs: Inputs,
        acquired: Acquired,
        beside: Beside,
        progress: Progress,
        delivery: Delivery,
        saving: Saving,
        restored: Restored,
    ) -> None:
        config = inputs.config
        self.save_frequency = config.save_frequency
        self.max_seconds_at_risk = config.max_seconds_at_risk
        self.total_timesteps = config.total_timesteps
        self.schedule_timesteps = config.schedule_timesteps
        self.evaluate_every = config.evaluation.every if config.evaluation is not None else None
        self.restored, self.digests, self.train_on = restored.snapshot, restored.digests, restored.train_on
        self.early: str | None = None
        self.finished = False
        self._inputs, self._lease, self._beside = inputs, acquired.lease, beside
        self._progress, self._delivery, self._saving = progress, delivery, saving
        self._pretrained = Pretrained(beside.artifacts.folder, acquired.resumed_at)
        self._begins, self._before = acquired.manifest is None, restored.before
        # Asked at every step of the environments: not one call more than it takes.
        self.step: Callable[[int], None] = beside.step
        self.stop_deadline = inputs.deadline.at
        self.episode = beside.artifacts.episode
        self.stalled = functools.partial(beside.artifacts.measured, "stall_ms")

    @property
    def timesteps(self) -> int:
        """How far the training is."""
        return self._beside.heartbeat.timesteps

    def save_requested(self) -> bool:
        return self._inputs.signals.save_requested()

    def busy(self) -> bool:
        return self._saving.busy

    def commit_seconds(self, new_bytes: int) -> float:
        return self._saving.seconds(new_bytes)

    def settle(self) -> None:
        self._saving.settle()

    def phase(self, name: str) -> None:
        if name == "steps":
            self.finished = False  # a script may call learn() again
        self._beside.heartbeat.phase(name)

    def pretrained(self, epochs: Sequence[Mapping[str, float]], policy: bytes | None = None) -> bool:
        self._pretrained.show(epochs, policy)
        self._progress.pretrained(epochs)
        if policy is None:
            return True
        sent = self._delivery.send_all(yielding=True)
        self._beside.heartbeat.phase("pretrain")
        return sent

    def outputs(self) -> Sequence[KVWriter]:
        environment = self._inputs.config.environment
        board, table = self._beside.artifacts.outputs(
            environment.id if environment else "", _interruptions(self._before)
        )
        self._pretrained.board = board
        return board, table

    def exactness(self, exact: bool, because: str) -> None:
        if exact and self._inputs.evaluates_inline:
            exact, because = False, "evaluation.mode is inline"
        if not exact:
            self._beside.evidence.object(because)
        self._progress.write()

    def submit(self, snapshot: Snapshot) -> None:
        self._saving.submit(self._saving.complete(snapshot))
        if self._beside.proof is not None:
            self._saving.settle()  # so that all sessions of a proof commit at the same steps
        if self._inputs.evaluates_inline and snapshot.facts["evaluate"]:
            self._saving.settle()
            self._evaluate_inline()

    def finish(self, snapshot: Snapshot) -> bool:
        config, lease, saving = self._inputs.config, self._lease, self._saving
        # An evaluation belongs to the run: it is not completed before, or a machine that dies now would leave none.
        evaluated = config.evaluation is not None
        if evaluated:
            snapshot = replace(snapshot, facts={**snapshot.facts, "evaluate": True})
        snapshot = saving.complete(snapshot)
        self.early = _early(snapshot)
        self._delivery.upload_final(snapshot)
        sent = self._delivery.send_all(yielding=True)
        completes = config.entry_point is None  # a script may go on after its learn()
        if snapshot.timesteps != lease.head.timesteps or self._begins or lease.head.manifest is None:
            outcome: Outcome | None = "completed" if completes and sent and not evaluated else None
            saving.submit(snapshot, outcome, self.early)
            saving.settle()
        elif self._inputs.evaluations is not None:
            self._inputs.evaluations.committed(snapshot.timesteps)
        if evaluated and not self._last_evaluations():
            return True
        kept = self._delivery.kept_models()
        if self._beside.artifacts.not_exported is not None:
            self._progress.write()
        if not (kept and self._delivery.send_all()) and lease.head.outcome is None:
            return True  # the next session restores this state, and sends the rest
        if completes and lease.head.outcome is None:
            lease.conclude("completed", self.early)
        self.finished = True
        return False

    def _last_evaluations(self) -> bool:
        """What is still to be evaluated, the end's own included. A notice breaks it off; the next session goes on.

        :return: whether all of it is done
        """
        deadline, evaluations = self._inputs.deadline, self._inputs.evaluations
        self._beside.heartbeat.phase("evaluate")
        if evaluations is None:
            self._evaluate_inline()
            return True
        evaluations.wait(lambda: deadline.pending, self._beside.heartbeat.alive)
        if evaluations.pending() and deadline.reason != "limit":
            return False
        self._progress.write()
        return True

    def _evaluate_inline(self) -> None:
        from train_cloud.runtime.evaluate import evaluate_checkpoint

        inputs, artifacts = self._inputs, self._beside.artifacts
        assert self._lease.head.manifest is not None
        manifest = read_manifest(inputs.store, self._lease.head.manifest)
        evaluate_checkpoint(
            inputs.config, inputs.store, manifest, out=artifacts.folder, events=artifacts.events, record=True
        )


def _early(snapshot: Snapshot) -> str | None:
    early = snapshot.facts.get(ENDED_EARLY)
    if early is None:
        return None
    return f"{early['by']} ended it at {snapshot.timesteps} of {early['total_timesteps']} timesteps"


def _interruptions(before: Sequence[SessionRecord]) -> str:
    """How the sessions before ended, for TensorBoard's text page; empty where there were none."""
    lines = []
    for record in before:
        end = record.end or {}
        reached = end.get("last_timestep", (record.progress or {}).get("timesteps", "?"))
        lines.append(f"- session {record.number}: {end.get('ended_by', 'lost without a word')} at {reached} timesteps")
    return "\n".join(lines)
