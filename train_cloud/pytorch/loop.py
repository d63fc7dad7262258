"""``resumable``: a PyTorch training loop that goes on after any interruption where it was.

The consistent point is the top of an iteration. The first time that the loop asks for a step, everything is put back to
where the newest checkpoint is; each later time is a place where a checkpoint may be taken, or the training stopped.
"""

from __future__ import annotations

import logging
import random
import sys
import time
import types
import weakref
from collections.abc import Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from awscrt import checksums

from train_cloud.config.current import current
from train_cloud.errors import InputError, NotYet
from train_cloud.pytorch import checks, initial
from train_cloud.pytorch.batches import Batches
from train_cloud.pytorch.capture import Capture
from train_cloud.pytorch.rows import check as check_rows
from train_cloud.pytorch.variables import Place, is_own_file, places
from train_cloud.sb3 import accounting
from train_cloud.sb3.digest import LAYERS, say_for_loops
from train_cloud.snapshot import ENDED_EARLY, Snapshot
from train_cloud.trainer import Host, TrainingStopped, current_host

log = logging.getLogger(__name__)

#: Iterations that take longer than this get a snapshot in memory at their start.
_LONG_STEP_SECONDS = 1.0
_DIGESTED_AT_ONCE = 64
#: In the facts of a checkpoint: what was logged under the name of the run file's ``score`` in the step before.
SCORE = "score"
_BREAK = "the loop"


class Resumable:
    """What ``with train_cloud.resumable(…) as run`` gives.

    :ivar step: iterations that are done
    """

    def __init__(self, objects: Mapping[str, Any], rows: Mapping[str, Any], frame: types.FrameType | None) -> None:
        self._objects, self._rows = dict(objects), dict(rows)
        self._host: Host | None = current_host()
        self._frame, self._entered_at = frame, frame.f_lasti if frame is not None else -1
        self.step = 0
        self._steps: Steps | None = None
        self._logged: dict[str, float] = {}
        if self._host is not None:
            checks.entered(Place("", frame, frame.f_lasti) if frame is not None else None)
        checks.registered(self._objects)
        for name, buffer in self._rows.items():
            check_rows(name, buffer)

    def __enter__(self) -> Resumable:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        steps = self._steps
        if error is None and isinstance(steps, HostedSteps):
            steps.left()
        self._frame = None

    @property
    def exact(self) -> bool:
        """Whether a checkpoint is being taken of this loop at all: False outside of ``train-cloud train``."""
        return self._host is not None

    def steps(self, total: int | None = None) -> Steps:
        """The numbers of the iterations, from 0, or from where the newest checkpoint is.

        :param total: how many there are where the script runs by itself; under ``train-cloud train`` the run file's
            ``total_steps`` counts
        :raises InputError: a second loop; neither a run file nor ``total`` says how many
        """
        if self._steps is not None:
            fix = "one resumable() has one loop: make a phase of your training a branch of it, or a run of its own"
            raise InputError("run.steps()", "a second loop", fix)
        if self._host is None:
            config = current()
            count = total if config is None else config.total_timesteps
            if count is None:
                fix = "not started by train-cloud train: give a number, as in run.steps(1000)"
                raise InputError("run.steps(total=)", None, fix)
            log.warning("not started by train-cloud train: nothing is saved, nothing is resumed")
            self._steps = Steps(self, count)
        else:
            self._steps = HostedSteps(self, self._host, self._objects, self._rows, self._frame, self._entered_at)
        return self._steps

    def log(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Scalars of this step, for TensorBoard, ``progress.csv``, Weights & Biases and the report.

        :param values: by name, for names such as ``val/loss``
        :raises InputError: one is no single number
        """
        for name, value in {**(values or {}), **named}.items():
            try:
                self._logged[name] = float(value.detach() if isinstance(value, torch.Tensor) else value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"run.log({name}=)", type(value).__name__, "give one number") from error
        if isinstance(self._steps, HostedSteps):
            self._steps.look()


class Steps(Sized):
    """The iterator that ``run.steps()`` gives; without a host it counts."""

    def __init__(self, run: Resumable, total: int) -> None:
        self._run, self.total = run, total
        self._began = False

    def __len__(self) -> int:
        return max(0, self.total - self._run.step)

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> int:
        if self._began:
            self._run.step += 1
        self._began = True
        if self._run.step >= self.total:
            raise StopIteration
        return self._run.step


class HostedSteps(Steps):
    """The same, with checkpoints."""

    def __init__(
        self,
        run: Resumable,
        host: Host,
        objects: Mapping[str, Any],
        rows: Mapping[str, Any],
        frame: types.FrameType | None,
        entered_at: int,
    ) -> None:
        super().__init__(run, host.total_timesteps)
        if host in _looped:
            fix = "a run has one loop: make a phase of your training a branch of it, or a run of its own"
            raise InputError("train_cloud.resumable", "a second one", fix)
        _looped.add(host)
        say_for_loops()
        self._host, self._objects, self._rows = host, objects, rows
        self._frame, self._entered_at = frame, entered_at
        self._capture: Capture | None = None
        self._over = False
        self._ended_early: str | None = None
        self._step_began = 0.0
        self._step_seconds = float("inf")
        self._next_save: float = 0.0
        self._next_evaluation = float("inf")
        self._saved_at = 0.0
        self._submitted_step = -1
        self._held: Snapshot | None = None
        self._score: float | None = None
        self._best: float | None = None
        self._digested: list[list[int]] = []
        config = current()
        if config is not None and config.evaluation is not None:
            fix = "not of a PyTorch loop in this version: evaluate in the loop, log it, and name it under score"
            raise NotYet("evaluation", config.evaluation.mode, fix)
        self._wanted = config.score if config is not None else None
        self._keeps_best = config is not None and config.preservation.best

    def __next__(self) -> int:
        if self._over:
            raise StopIteration
        now = time.monotonic()
        if self._capture is None:
            self._begin(sys._getframe(1))
        else:
            self._end_step(now)
        if self._ended_early is not None or self._run.step >= self.total:
            self._finish()
            raise StopIteration
        self._at_top(now)
        self._step_began = time.monotonic()
        return self._run.step

    # ------------------------------------------------------------------------------------------------ the first time

    def _begin(self, frame: types.FrameType) -> None:
        found = places(frame, self._frame)
        checks.wrapped(self, self._objects)
        own = {"train_cloud.resumable": self._run, "run.steps()": self, "train-cloud's host": self._host}
        capture = Capture(self._objects, self._rows, found, own)
        checks.loop(found, self._entered_at, capture.held(), [*self._objects.values(), self])
        checks.several_workers(capture.reached())
        self._capture = capture
        self._outputs = list(self._host.outputs())
        restored = self._host.restored
        if restored is not None:
            self._host.phase("restore")
            capture.restore(restored)
            self._run.step = self._submitted_step = restored.timesteps
            self._best = (restored.facts.get(SCORE) or {}).get("best")
            self._host.digests.resume(restored.timesteps, restored.facts.get("digests"))
            if ENDED_EARLY in restored.facts and not self._host.train_on:
                self._ended_early = restored.facts[ENDED_EARLY]["by"]
            self._host.restored = None
            self._account(accounting.RESTORED)
        else:
            initial.begin(self._objects)
        self._plan(time.monotonic())
        self._host.exactness(*self._exactness())
        self._phase_of_steps()

    # ------------------------------------------------------------------------------------------------ every iteration

    def _end_step(self, now: float) -> None:
        run = self._run
        run.step += 1
        self._step_seconds = now - self._step_began
        logged, run._logged = run._logged, {}
        self._digest(logged)
        self._score = None
        if logged:
            for output in self._outputs:
                output.write(logged, dict.fromkeys(logged, ()), run.step)
            self._note_score(logged)
        self._host.step(run.step)

    def _note_score(self, logged: Mapping[str, float]) -> None:
        if self._wanted is None or self._wanted.name not in logged:
            return
        value = logged[self._wanted.name]
        self._score = value if np.isfinite(value) else None

    def _is_best(self) -> bool:
        if self._score is None or self._wanted is None:
            return False
        return self._best is None or (
            self._score < self._best if self._wanted.direction == "min" else self._score > self._best
        )

    def _at_top(self, now: float) -> None:
        host = self._host
        self._held = None
        if host.stop_deadline() is not None:
            self._stop(self._snapshot())
        best = self._is_best()
        if best:
            self._best = self._score
        evaluated = self._run.step >= self._next_evaluation
        if evaluated:
            self._settle()  # this very checkpoint, whatever the store is busy with
        due = self._due(now) or evaluated or (best and self._keeps_best) or host.save_requested()
        busy = host.busy()
        snapshot = None
        if (due and not busy) or (self._step_seconds > _LONG_STEP_SECONDS and self._step_seconds < float("inf")):
            snapshot = self._held = self._snapshot()
        if due and not busy and snapshot is not None and self._run.step != self._submitted_step:
            self._submit(snapshot)
            self._plan(now)
            host.stalled(1e3 * (time.monotonic() - now))

    def look(self) -> None:
        """In the middle of an iteration: whether the one that is under way can still be waited for."""
        self._host.phase("update")  # a sign of life
        deadline = self._host.stop_deadline()
        if deadline is None or self._held is None:
            return
        left = self._step_seconds - (time.monotonic() - self._step_began)
        until = max(left, 0.0) + self._commit_seconds()
        if time.monotonic() + until > deadline:
            self._stop(self._held)

    def _due(self, now: float) -> bool:
        if self._host.save_frequency is not None:
            return self._run.step >= self._next_save
        seconds = self._host.max_seconds_at_risk
        assert seconds is not None
        until_next = self._step_seconds if self._step_seconds < float("inf") else 0.0
        return now + until_next - self._saved_at >= max(seconds - self._commit_seconds(), seconds / 2)

    def _commit_seconds(self) -> float:
        return self._host.commit_seconds(self._capture_of().sent_bytes())

    def _plan(self, now: float) -> None:
        self._saved_at = now
        every, evaluated = self._host.save_frequency, self._host.evaluate_every
        if every is not None:
            self._next_save = (self._run.step // every + 1) * every
        self._next_evaluation = (self._run.step // evaluated + 1) * evaluated if evaluated else float("inf")

    # -------------------------------------------------------------------------------------------------- checkpoints

    def _snapshot(self) -> Snapshot:
        self._add_digests()
        snapshot = self._capture_of().snapshot(self._run.step)
        exact, because = self._exactness()
        facts: dict[str, Any] = {
            **snapshot.facts,
            "unit": "steps",
            "evaluate": self._run.step >= self._next_evaluation,
            "digests": self._host.digests.now(),
            "exact": exact,
            "exact_because": because,
            "episode_return": None,
        }
        if self._wanted is not None:
            facts[SCORE] = {**self._wanted.model_dump(mode="json"), "value": self._score, "best": self._best}
            facts["episode_return"] = self._score
        left_out = self._not_kept()
        if left_out:
            facts["not_kept"] = left_out
        self._host.exactness(exact, because)
        self._account(accounting.SNAPSHOT)
        return replace(snapshot, facts=facts)

    def _submit(self, snapshot: Snapshot) -> None:
        self._host.submit(snapshot)
        self._capture_of().submitted(snapshot)
        self._submitted_step = snapshot.timesteps

    def _stop(self, snapshot: Snapshot) -> None:
        self._settle()
        if snapshot.timesteps != self._submitted_step:
            self._submit(snapshot)
            self._settle()
        self._over = True
        raise TrainingStopped

    def _settle(self) -> None:
        self._host.phase("store")
        self._host.settle()
        self._phase_of_steps()

    def _phase_of_steps(self) -> None:
        """An iteration may take as long as an update: it may be an epoch."""
        self._host.phase("steps")
        self._host.phase("update")

    def left(self) -> None:
        """The ``with`` block was left without an error, perhaps before the total."""
        if self._over or self._capture is None:
            return
        self._end_step(time.monotonic())
        if self._run.step < self.total:
            self._ended_early = _BREAK
        self._finish()

    def _finish(self) -> None:
        self._settle()
        self._host.phase("store")
        if self._is_best():
            self._best = self._score
        snapshot = self._snapshot()
        if self._ended_early is not None and snapshot.timesteps < self._host.total_timesteps:
            early = {"by": self._ended_early, "total_timesteps": self._host.total_timesteps}
            snapshot = replace(snapshot, facts={**snapshot.facts, ENDED_EARLY: early})
        self._over = True
        if self._host.finish(snapshot):
            raise TrainingStopped

    # ----------------------------------------------------------------------------------------------------- evidence

    def _capture_of(self) -> Capture:
        assert self._capture is not None
        return self._capture

    def _not_kept(self) -> list[str]:
        told = [f"{name}: {one.not_kept}" for name, one in self._objects.items() if isinstance(one, Batches)]
        return [*self._capture_of().not_kept, *(one for one in told if not one.endswith(": "))]

    def _exactness(self) -> tuple[bool, str]:
        left_out = self._not_kept()
        return not left_out, f"not kept: {'; '.join(left_out)}" if left_out else ""

    def _account(self, moment: str) -> None:
        """For a proof: write down all that can be reached now."""
        capture = self._capture_of()
        accounting.note_reached(moment, self._run.step, capture.roots(), [self._run, self, *capture.apart()])

    def _digest(self, logged: Mapping[str, float]) -> None:
        """A checksum of the generators, and one of what the step has logged."""
        generators = checksums.crc64nvme(torch.get_rng_state().numpy().data)
        numpy_state: Any = np.random.get_state(legacy=True)
        generators = checksums.crc64nvme(numpy_state[1].data, generators ^ int(numpy_state[2]))
        _, words, normal = random.getstate()  # the hash of None is another one in each process
        generators = checksums.crc64nvme(f"{hash(words)} {normal!r}".encode(), generators)
        text = ",".join(f"{name}={value.hex()}" for name, value in sorted(logged.items()))
        values = checksums.crc64nvme(text.encode())
        self._digested.append([generators, values, *[0] * (len(LAYERS) - 2)])
        if len(self._digested) >= _DIGESTED_AT_ONCE:
            self._add_digests()

    def _add_digests(self) -> None:
        if self._digested:
            rows = np.array(self._digested, np.uint64).T
            self._digested = []
            self._host.digests.add(rows, self._run.step, 1)


_looped: weakref.WeakSet[Any] = weakref.WeakSet()


def resumable(*, rows: Mapping[str, Any] | None = None, **objects: Any) -> Resumable:
    """Make a training loop resumable::

        with train_cloud.resumable(model=model, optimizer=optimizer, data=data) as run:
            for step in run.steps():
                loss = train_one(next(data))
                run.log(loss=loss)

    After an interruption the same script is started again from its top; when it asks for its first step, everything is
    as it was at the newest checkpoint: what is registered, the generators of Python, NumPy and torch (all GPUs), the
    local variables of the functions that the loop runs in, and what the script's own objects and modules hold. What
    cannot be kept is named in ``train-cloud status``. In a script that was not started by ``train-cloud train`` nothing
    is saved, and the loop runs as ever.

    :param rows: append-only buffers by name, of which checkpoints carry new rows only: objects with ``columns`` and
        ``count`` (:class:`~train_cloud.pytorch.rows.Appended`)
    :param objects: by name: modules, optimisers, tensors, and whatever has ``state_dict()`` and ``load_state_dict()``
        (schedulers, scalers, data); registered modules are what ``export`` writes
    :raises InputError: something is registered that cannot be kept, or an optimiser has a parameter that no registered
        module has
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and not is_own_file(frame.f_code.co_filename):
        frame = frame.f_back
    return Resumable(objects, rows or {}, frame)
