"""What lives beside the training from a session's first second to its last: heartbeat, artifacts, evidence, replay."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from typing import Any

from train_cloud.run import exit_record
from train_cloud.runtime.artifacts import Artifacts
from train_cloud.runtime.evidence import Evidence
from train_cloud.runtime.heartbeat import Heartbeat
from train_cloud.runtime.inputs import Inputs
from train_cloud.runtime.proof_session import Trial, graphs_beside
from train_cloud.runtime.replay import Replay


class Beside:
    """:ivar each_second: called by the heartbeat's thread, in this order
    :ivar hardware: what ``hardware`` of the run file has chosen, once that is known
    :ivar ranks: processes that train the run
    :ivar proof: what the session does besides as a part of a proof
    :ivar step: for the trainer, at every step of the environments: not one call more than it takes
    :ivar on_replay: called once a replay has come to a result, in its thread
    """

    def __init__(self, inputs: Inputs) -> None:
        config = self._config = inputs.config
        self.hardware: Mapping[str, Any] | None = None
        self.ranks = 1
        self._evaluations = inputs.evaluations
        self.on_replay: Callable[[], None] = lambda: None
        self.each_second: list[Callable[[], None]] = [inputs.signals.look, self._look_after_evaluations]
        self._deadline = inputs.deadline
        self.heartbeat = Heartbeat(
            inputs.state_dir,
            config.total_timesteps,
            every_second=self._every_second,
            on_silence=lambda words: exit_record.stand_still(inputs.state_dir, words),
            bar=config.entry_point is None and not any("ProgressBar" in name for name in config.callbacks),
        )
        self.proof = Trial.from_environment()
        self.graphs = graphs_beside(self.proof.digests) if self.proof is not None else None
        self.evidence = Evidence(self.proof.digests if self.proof is not None else None)
        beat = self.heartbeat.step
        self.step: Callable[[int], None] = beat if self.proof is None else self.proof.step(beat)
        self.artifacts = Artifacts(
            config,
            inputs.store,
            inputs.state_dir,
            urgent=lambda: inputs.deadline.urgent,
            timesteps=lambda: self.heartbeat.timesteps,
        )
        self.replay = Replay(config, inputs.store.url, inputs.state_dir, lambda: inputs.lock, self._replayed)
        inputs.deadline.when_set = self.replay.stop
        self.heartbeat.start()

    def use(self, chosen: Mapping[str, Any] | None) -> None:
        """What ``hardware`` of the run file has chosen is known now; None where it chooses nothing."""
        if chosen is not None:
            self.hardware = chosen
            self._config = self._config.with_hardware(chosen)
            self.artifacts.config = self._config
            self.replay.use(self._config)

    def close(self) -> None:
        self.replay.close()
        self.heartbeat.stop()
        if self._evaluations is not None:
            self._evaluations.end()
        self.artifacts.close()
        for child in multiprocessing.active_children():
            child.kill()  # environments that ignore SIGTERM; the interpreter would wait for them for ever

    def _every_second(self) -> None:
        for look in tuple(self.each_second):
            look()

    def _look_after_evaluations(self) -> None:
        if self._evaluations is None:
            return
        if self._deadline.pending and self._deadline.reason != "limit":
            self._evaluations.end()  # the processor is the commit's now
        else:
            self._evaluations.poll()

    def _replayed(self, proof: Mapping[str, Any] | None, because: str) -> None:
        """A fresh process came to the same results, or to others."""
        if proof is not None:
            self.evidence.prove(proof)
        else:
            self.evidence.object(because)
        self.on_replay()
