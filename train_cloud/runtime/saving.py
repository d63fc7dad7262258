"""How a snapshot becomes a checkpoint: completed with what only the runtime knows, and committed in the background."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from train_cloud.checkpoint import Committer
from train_cloud.checkpoint.commit import Committed
from train_cloud.run import layout
from train_cloud.run.head import Outcome
from train_cloud.runtime.acquire import Acquired
from train_cloud.runtime.beside import Beside
from train_cloud.runtime.commit_estimate import CommitEstimate
from train_cloud.runtime.evaluations import DUE
from train_cloud.runtime.inputs import Inputs
from train_cloud.runtime.program import Program
from train_cloud.runtime.progress import Progress
from train_cloud.runtime.ranks import stored
from train_cloud.snapshot import Part, Rows, Snapshot


class Saving:
    """:param machine: what the session's results depend on besides the code"""

    def __init__(
        self,
        inputs: Inputs,
        acquired: Acquired,
        beside: Beside,
        program: Program,
        progress: Progress,
        machine: Mapping[str, Any],
    ) -> None:
        self._inputs, self._acquired, self._beside = inputs, acquired, beside
        self._program, self._progress = program, progress
        self._evaluations = inputs.evaluations
        self._machine = acquired.manifest.facts["machine"] if acquired.manifest is not None else machine
        self._estimate = CommitEstimate()
        self._committing: Mapping[str, Any] = {}
        self._submitted: Snapshot | None = None
        self._streams_of_ranks: Mapping[str, Rows] = {}
        self._head_began = 0.0
        self._committer = Committer(
            inputs.store,
            acquired.lease,
            acquired.manifest,
            policy=inputs.config.preservation,
            hold=self._held,
            extra_parts=self._extra_parts,
            extra_streams=lambda: self._streams_of_ranks,
            facts=self._facts,
            before_head=self._before_head,
            on_commit=self._on_commit,
            urgent=lambda: inputs.deadline.pending,
            on_delay=beside.heartbeat.delayed,
        )

    # ------------------------------------------------------------------------------------------- in the training thread

    @property
    def busy(self) -> bool:
        """Whether a commit is in flight. Raises what the last one ended with."""
        return self._committer.busy

    def seconds(self, new_bytes: int) -> float:
        """Until a commit of so many bytes is over that begins now."""
        return self._estimate.seconds(new_bytes)

    def complete(self, snapshot: Snapshot) -> Snapshot:
        """With what the runtime knows: versions, machine, identity, what is to be evaluated."""
        config, manifest = self._inputs.config, self._acquired.manifest
        facts = {
            **snapshot.facts,
            "run_id": config.run_id,
            "identity": self._inputs.identity,
            "code_folder": str(config.code.folder) if config.code.folder is not None else None,
            "machine": self._machine,
            **self._program.facts,
        }
        if self._evaluations is not None:
            if facts["evaluate"]:
                self._evaluations.due(snapshot.timesteps)
            facts[DUE] = self._evaluations.pending()
        if manifest is not None and "forked_from" in manifest.facts:
            facts["forked_from"] = manifest.facts["forked_from"]
        return replace(snapshot, facts=facts)

    def submit(self, snapshot: Snapshot, outcome: Outcome | None = None, reason: str | None = None) -> None:
        """Start to commit a snapshot that is complete.

        :param outcome: goes into the head in the same swap
        """
        self._estimate.begin()
        self._submitted = snapshot
        self._committer.submit(snapshot, outcome=outcome, reason=reason)

    def settle(self) -> None:
        """Wait for the commit in flight.

        :raises StoreUnavailable: a stop's deadline passed first
        """
        while self._committer.busy:
            deadline = self._inputs.deadline.at()
            if deadline is not None:
                self._committer.wait(deadline)
            time.sleep(0.005)
            self._beside.heartbeat.alive()

    def wait(self, seconds: float) -> None:
        """For what is under way, at most so long while the store does not answer."""
        self._committer.wait(time.monotonic() + seconds)

    # ------------------------------------------------------------------------------------------- in the commit's thread

    def _extra_parts(self) -> dict[str, Part]:
        """Parts that are made beside the training, or by other processes of it."""
        return {
            **self._parts_of_ranks(),
            layout.LOGGED: self._beside.artifacts.logged(),
            "lock": Part(blob=self._inputs.lock.encode()),
            "run": Part(blob=self._inputs.run_yaml.encode()),
            layout.CODE: self._program.code.part(),
        }

    def _parts_of_ranks(self) -> Mapping[str, Part]:
        ranks, snapshot = self._program.ranks, self._submitted
        if ranks is None or snapshot is None:
            return {}
        parts, self._streams_of_ranks = stored(ranks.collect(snapshot))
        return parts

    def _facts(self, snapshot: Snapshot) -> Mapping[str, Any]:
        self._committing = self._beside.evidence.facts(snapshot)
        return self._committing

    def _held(self) -> list[int]:
        """Timesteps of checkpoints that somebody reads."""
        evaluated = self._evaluations.pending() if self._evaluations is not None else []
        return [*self._beside.replay.held(), *evaluated]

    def _before_head(self) -> None:
        self._head_began = time.monotonic()
        self._progress.about_to_commit()

    def _on_commit(self, committed: Committed) -> None:
        swap = time.monotonic() - self._head_began
        self._estimate.note(committed.sent_bytes, committed.seconds - swap, swap)
        evidence = self._beside.evidence
        recording = evidence.recording()
        evidence.committed(self._committing)
        if evidence.exact:
            self._beside.replay.committed(committed.head, self._committing, recording)
        self._beside.artifacts.committed(committed.head.timesteps, committed.head.manifest)
        self._beside.artifacts.measured("commit_seconds", committed.seconds)
        self._progress.committed(committed.seconds, committed.sent_bytes, self._committing)
        if self._evaluations is not None:
            self._evaluations.committed(committed.head.timesteps)
        self._progress.write()
