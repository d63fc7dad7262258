"""The callback that makes a run resumable: restores at its first consistent point, saves at later ones, stops at one.

A consistent point is a rollout's start. For algorithms with ``train_freq`` in steps it comes after every few steps,
so a notice repeats nothing. Where it is far away (PPO's rollout, whole episodes), a snapshot is taken in memory at
each, and when time runs out that one is committed: at most one rollout is computed again, exactly.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import multiprocessing
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from train_cloud.config import RunFile
from train_cloud.config.current import current
from train_cloud.envs.make import Env
from train_cloud.envs.state import StatefulEnv
from train_cloud.envs.trial import Choice, choose_for
from train_cloud.envs.trial import stateful as with_state
from train_cloud.errors import InputError
from train_cloud.sb3 import accounting, precision
from train_cloud.sb3.capture import Capture, learners_of, restore_parameters
from train_cloud.sb3.curriculum import StageChanges
from train_cloud.sb3.digest import Digests, Reader
from train_cloud.sb3.ending import stopped_by, watch
from train_cloud.sb3.phases import Phase, Phases, Shifted
from train_cloud.sb3.pretraining import Pretraining
from train_cloud.sb3.ranks import GO_ON, HOLD, SAVE, STOP, CallbacksOfAllRanks, EveryStep, Ranks
from train_cloud.sb3.vectorized import choice_of, prepare
from train_cloud.snapshot import ENDED_EARLY, PRETRAINING, Snapshot
from train_cloud.trainer import Host, TrainingStopped, current_host, hosting

log = logging.getLogger(__name__)

#: Rollouts that take longer than this get a snapshot in memory at their start (it costs milliseconds).
_LONG_ROLLOUT_SECONDS = 1.0


class IdleHost(Host):
    """Hosts a training, does nothing and never stops it: what a host without a store need not say again.

    :param restored: the checkpoint to go on from
    """

    save_frequency: int | None = 1 << 62
    max_seconds_at_risk: float | None = None
    evaluate_every: int | None = None
    train_on = False

    def __init__(
        self, total_timesteps: int, *, restored: Snapshot | None = None, digests: Digests | None = None
    ) -> None:
        self.total_timesteps = self.schedule_timesteps = total_timesteps
        self.restored = restored
        self.digests = Digests() if digests is None else digests

    def stop_deadline(self) -> float | None:
        return None

    def save_requested(self) -> bool:
        return False

    def busy(self) -> bool:
        return False

    def commit_seconds(self, new_bytes: int) -> float:
        return 0.0

    def settle(self) -> None:
        """Nothing is in flight."""

    def submit(self, snapshot: Snapshot) -> None:
        """It goes nowhere."""

    def finish(self, snapshot: Snapshot) -> bool:
        self.submit(snapshot)
        return False

    def phase(self, name: str) -> None:
        """Nobody watches."""

    def step(self, timesteps: int) -> None:
        """Nobody counts."""

    def episode(self, timesteps: int, env: int, episode: Mapping[str, Any]) -> None:
        """Nobody notes it."""

    def stalled(self, milliseconds: float) -> None:
        """Nobody measures."""

    def outputs(self) -> Sequence[KVWriter]:
        return ()

    def exactness(self, exact: bool, because: str) -> None:
        """Nobody asked."""

    def pretrained(self, epochs: Sequence[Mapping[str, float]], policy: bytes | None = None) -> bool:
        return True


class Checkpoints(BaseCallback):
    """See the module. One in each ``learn`` call, anywhere in its list of callbacks.

    :param host: the process it runs in
    :param choice: state provider of the environments; None finds it (in a script of one's own)
    :param log_interval: on-policy, iterations from one log to the next where ``learn`` itself is told to log at each;
        None where the script has told it
    :param pretraining: the run's first phase, if it has one
    :param ranks: the other processes of a data-parallel run
    :param run_file: what it says of the updates' arithmetic; None in a script, which sees to that itself
    """

    def __init__(
        self,
        host: Host,
        choice: Choice | None = None,
        log_interval: int | None = None,
        pretraining: Pretraining | None = None,
        ranks: Ranks | None = None,
        run_file: RunFile | None = None,
    ) -> None:
        super().__init__()
        self._run_file = run_file
        self._host = host
        self._choice = choice
        self._log_interval = log_interval
        self._pretraining = pretraining
        self._ranks = ranks
        self._between_logs = False
        self._ended_early: str | None = None
        self._stood_at: int | None = None
        self._lost: list[str] = []
        self._schedules: list[str] = []
        self._capture: Capture | None = None
        self._reader: Reader
        self._capacity = 0
        self._rows_per_step = 1
        self._rows = 0
        self._submitted_rows = 0
        self._submitted_timesteps = -1
        self._in_flight_from: int | None = None
        self._next_save = 0
        self._next_evaluation = float("inf")
        self._saved_at = 0.0
        self._held: tuple[Snapshot, int] | None = None
        self._rollouts = 0
        self._first_rollout = 0
        self._rollout_began = 0.0
        self._rollout_seconds = float("inf")
        self._phases = Phases.of(host)
        self._schedule_timesteps = host.schedule_timesteps
        self._kind: type = object
        self._passed_over: Phase | None = None

    # ------------------------------------------------------------------------------------------------ Stable-Baselines3

    def _on_training_start(self) -> None:
        if self._capture is not None:  # the same object in another call
            self._renew()
        restored = self._host.restored
        self._passed_over = self._phases.begin(self.model, restored.facts if restored is not None else {})
        total = self.model._total_timesteps
        if self._phases.asked > self._host.total_timesteps:
            asked = total - self.model._num_timesteps_at_start
            before = self._phases.asked - asked
            fix = f"learn() was asked for {asked}{f' after {before}' if before else ''}: all its calls together "
            fix += "may train train_cloud.run_file().total_timesteps"
            raise InputError("total_timesteps", self._host.total_timesteps, fix)
        if self._passed_over is not None:
            if restored is not None and self._phases.is_the_one(self.model, restored.facts):
                restore_parameters(self.model, restored)
            self._leave_at(self._passed_over.model_timesteps)
            return
        if self._phases.number == 0 and total == self._host.total_timesteps:
            self.model._total_timesteps = self._host.schedule_timesteps
        else:
            self._schedule_timesteps = total
        self.add_outputs(self.model)
        held = {} if self._pretraining is None else {"held": self._pretraining.held}
        self._capture = Capture(self.model, self.locals["callback"], self, self._provider_of, **held)
        self._capacity = self._capture.capacity
        self._rows = self._phases.rows(self._capture.rows_there)
        self._rows_per_step = self._capture.rows_per_step
        if self._phases.number:  # the phase before has committed its end
            self._submitted_rows, self._submitted_timesteps = self._rows, self._timesteps()
        self._reader = Reader(self._host.digests, self.model, self._capture.rings, self._timesteps_per_step())
        self._reader.begin(self._capture.counts(self._rows), self._timesteps())
        self._steer()
        if self._ranks is not None:
            self._ranks.begin(self.model)
        self._schedules = schedules(self.model)
        if restored is not None and restored.timesteps >= total + self._phases.offset:
            # SB3 would train on: a run at its total must not enter the loop that follows this call.
            self._restore(self._capture, restored)
        elif restored is not None and ENDED_EARLY in restored.facts and not self._host.train_on:
            # Nor may one that a callback had ended, whose session died before it could say so.
            self._ended_early = restored.facts[ENDED_EARLY]["by"]
            self._restore(self._capture, restored)
            self._leave_at(self.model.num_timesteps)
        watch(self.locals["callback"])

    def _on_rollout_start(self) -> None:
        now = time.monotonic()
        assert self._capture is not None
        if self._rollouts == 0:
            self._capture.begin()
        if self._rollouts == 0 and self._host.restored is not None:
            restored = self._host.restored
            self._restore(self._capture, restored)
            if not restored.facts["rollout_begun"]:
                self._begin_rollout()
            self._account(accounting.RESTORED)
        elif self._rollouts > 0:
            self._rollout_seconds = now - self._rollout_began
        if self._rollouts == 0:
            self._plan_save(now)
            self._plan_evaluation()
            self._host.exactness(*self._exactness())
        self._rollouts += 1
        self._rollout_began = now
        self._host.phase("steps")
        if not self._at_log_interval():
            return
        self._held = None
        if self._pretraining is not None and not self._pretraining.finished:
            self._pretrain(self._pretraining)
            self._rollout_began = now = time.monotonic()
        if self._ranks is not None:
            self._ranks.merge()
        evaluated = self._timesteps() >= self._next_evaluation
        wish = self._wish(now, evaluated)
        if self._ranks is not None:
            wish = self._ranks.agree(wish)
        if wish == STOP:
            self._stop(self._snapshot(), self._rows)
        if wish >= HOLD:
            snapshot = self._snapshot()
            self._held = (snapshot, self._rows)
            if wish == SAVE:
                self._submit(snapshot, self._rows)
                self._plan_save(now)
                self._plan_evaluation()
                self._host.stalled(1e3 * (time.monotonic() - now))
            elif self._ranks is not None:
                self._ranks.keep(snapshot)

    def _wish(self, now: float, evaluated: bool) -> int:
        """What is to be done at this rollout's start, if it is for this process to say.

        :param evaluated: whether a checkpoint of these timesteps is to be evaluated
        """
        if self._host.stop_deadline() is not None:
            return STOP
        if evaluated:
            self._settle()  # this very checkpoint, whatever the store is busy with: no clock decides what is evaluated
        busy = self._host.busy()
        due = self._due(now) or self._host.save_requested() or evaluated
        if due and not busy:
            return SAVE
        # Other ranks hand out the rows of what is committed, and of nothing else.
        holds = self._ranks is None or not self._capacity
        return HOLD if self._rollout_seconds > _LONG_ROLLOUT_SECONDS and holds else GO_ON

    def _on_step(self) -> bool:
        timesteps = self.num_timesteps + self._phases.offset
        self._host.step(timesteps)
        for env, info in enumerate(self.locals.get("infos", ())):
            if "episode" in info:
                self._host.episode(timesteps, env, info["episode"])
        if self._capacity:
            if timesteps >= self._reader.due:  # this step is not stored yet
                self._reader.read(self._stored_timesteps(), self._capture_of().counts(self._rows))
            self._rows += self._rows_per_step
            self._keep_rows(self._capacity)
        deadline = self._host.stop_deadline()
        if deadline is not None and self._held is not None and time.monotonic() + self._until_committed() > deadline:
            self._reader.rollout(self._stored_timesteps())
            self._stop(*self._held)
        return True

    def _on_rollout_end(self) -> None:
        self._host.phase("update")
        if not self._capacity:
            self._reader.rollout(self._timesteps())

    def _on_training_end(self) -> None:
        if self._stood_at is not None:
            self.model.num_timesteps, self._stood_at = self._stood_at, None
        if self._passed_over is not None:
            self._phases.passed_over(self._passed_over)
            return
        stopped = stopped_by(self.locals["callback"])
        if stopped is not None and self._capacity:
            self._rows -= self._rows_per_step  # collect_rollouts leaves before it stores the step that was the last
        self._ended_early = self._ended_early or stopped
        self._reader.rollout(self._stored_timesteps())  # where a callback ended the training in the middle of one
        if self._ranks is not None:
            self._ranks.merge()
        self._settle()
        self._host.phase("store")
        self._rollouts += 1  # the one that has ended, as the next one's start would count it
        snapshot = self._with_rows(self._snapshot(rollout_begun=False), self._rows)
        if self._ended_early is not None and snapshot.timesteps < self._host.total_timesteps:
            early = {"by": self._ended_early, "total_timesteps": self._host.total_timesteps}
            snapshot = replace(snapshot, facts={**snapshot.facts, ENDED_EARLY: early})
        if self._host.finish(snapshot):
            raise TrainingStopped
        self._phases.end(self.model, self._rows)
        self.model.__class__ = self._kind

    # ---------------------------------------------------------------------------------------------------- pretraining

    def _pretrain(self, pretraining: Pretraining) -> None:
        """Before the first timestep. Each epoch's end is committed, unless the one before is still on its way; a stop
        commits the batch that it came at.
        """
        host, risk = self._host, self._host.max_seconds_at_risk
        host.phase("pretrain")
        pretraining.begin()
        host.pretrained(pretraining.epochs)
        saved = time.monotonic()
        for epoch_over in pretraining.batches():
            host.phase("pretrain")
            if host.stop_deadline() is not None:
                self._leave_pretraining()
            if epoch_over:
                host.pretrained(pretraining.epochs)
            at_risk = risk is not None and time.monotonic() - saved >= risk - self._commit_seconds()
            if (epoch_over or at_risk or host.save_requested()) and not host.busy():
                self._submit(self._snapshot(), self._rows)
                saved = time.monotonic()
        if not host.pretrained(pretraining.epochs, pretraining.policy_file()):
            self._leave_pretraining()
        pretraining.finish()
        self._settle()
        cloned = self._snapshot()
        self._submit(replace(cloned, facts={**cloned.facts, "evaluate": True}), self._rows)

    def _leave_pretraining(self) -> None:
        """Commit how far it is, though no timestep was taken since the last commit."""
        self._settle()
        self._submit(self._snapshot(), self._rows)
        self._settle()
        raise TrainingStopped

    # --------------------------------------------------------------------------------------------------------- phases

    def _renew(self) -> None:
        """As it was made, for the next ``learn`` call; what ``BaseCallback.init_callback`` has set stays."""
        model, parent, logs = self.model, self.parent, self.locals
        self.__init__(  # type: ignore[misc]
            self._host, self._choice, self._log_interval, self._pretraining, self._ranks, self._run_file
        )
        self.model, self.parent, self.locals = model, parent, logs

    def _leave_at(self, model_timesteps: int) -> None:
        """Let ``learn`` enter no loop, and end at so many timesteps of the model's."""
        self._stood_at, self.model.num_timesteps = model_timesteps, self.model._total_timesteps

    def add_outputs(self, model: BaseAlgorithm) -> None:
        """Where scalars go, among those that the model's logger has: once, however often this is called."""
        formats = model.logger.output_formats
        formats[:] = [output for output in formats if not self._phases.writes(output)]  # a logger of the script's own
        if self._phases.outputs is None:
            self._phases.outputs = list(self._host.outputs())
        shifted = self._phases.offset != 0  # else as they are: people look for TensorBoard's among them
        formats.extend(Shifted(output, self._phases) if shifted else output for output in self._phases.outputs)

    def _timesteps(self) -> int:
        """The run's, where the model counts its own."""
        return int(self.model.num_timesteps) + self._phases.offset

    # ----------------------------------------------------------------------------------------------------------- saving

    def _restore(self, capture: Capture, snapshot: Snapshot) -> None:
        self._host.phase("restore")
        self._rows = self._submitted_rows = capture.restore(snapshot)
        if self._ranks is not None:
            self._ranks.follow(self.model.get_vec_normalize_env())
        if self._pretraining is not None:
            self._pretraining.resume(snapshot.parts.get(PRETRAINING), capture.held)
            self._host.pretrained(self._pretraining.epochs)
        self._host.digests.resume(snapshot.timesteps, snapshot.facts.get("digests"))
        self._reader.begin(capture.counts(self._rows), snapshot.timesteps)
        self._lost = list(snapshot.facts.get("not_kept", ()))
        self._submitted_timesteps = snapshot.timesteps
        self._first_rollout = snapshot.facts["rollouts"]
        self._between_logs = isinstance(self.model, OnPolicyAlgorithm) and self._first_rollout % self._log_every() != 0
        self._rollout_seconds = snapshot.facts["rollout_seconds"] or float("inf")
        self.model._update_current_progress_remaining(self.model.num_timesteps, self.model._total_timesteps)
        self._host.restored = None

    def _begin_rollout(self) -> None:
        """On the state at the end of a training that goes on after all: what SB3 does before it calls us."""
        model = self.model
        if model.use_sde:
            explorer: Any = model.policy if isinstance(model, OnPolicyAlgorithm) else model.actor  # type: ignore[attr-defined]
            explorer.reset_noise(model.n_envs)
        for callback in _leaves(self.locals["callback"]):
            if callback is self:
                return
            callback.on_rollout_start()

    def _snapshot(self, *, rollout_begun: bool = True) -> Snapshot:
        """The state now, with what only the moment knows.

        :param rollout_begun: False at the end of a training, which SB3 leaves before it begins another rollout
        """
        snapshot = replace(self._capture_of().snapshot(self._rows), timesteps=self._timesteps())
        self._reader.read(snapshot.timesteps, self._capture_of().counts(self._rows))
        returns = [float(episode["r"]) for episode in self.model.ep_info_buffer or ()]
        mean = float(np.mean(returns)) if returns else float("nan")
        facts = {
            **snapshot.facts,
            "rollouts": self._first_rollout + self._rollouts - 1,
            "rollout_seconds": self._rollout_seconds if self._rollout_seconds < float("inf") else None,
            "rollout_begun": rollout_begun,
            "episode_return": mean if np.isfinite(mean) else None,  # rollout/ep_rew_mean
            "evaluate": self._timesteps() >= self._next_evaluation,
            "digests": self._host.digests.now(),
            "schedules": {"names": self._schedules, "timesteps": self._schedule_timesteps},
            **self._phases.facts(self.model),
        }
        curriculum = next((one for one in self._capture_of().callbacks.values() if isinstance(one, StageChanges)), None)
        if curriculum is not None:
            facts["curriculum"] = curriculum.summary()
        self._account(accounting.SNAPSHOT if rollout_begun else accounting.END)
        if self._pretraining is None:
            return replace(snapshot, facts=facts)
        parts = {**snapshot.parts, PRETRAINING: self._pretraining.part()}
        return replace(snapshot, parts=parts, facts={**facts, PRETRAINING: self._pretraining.facts()})

    def _account(self, moment: str) -> None:
        """For a proof: write down all that can be reached now."""
        callback = self.locals["callback"]
        accounting.note(moment, self._timesteps(), self.model, callback, self._capture_of().callbacks)

    def _submit(self, snapshot: Snapshot, rows: int) -> None:
        self._in_flight_from = max(self._submitted_rows, rows - self._capture_of().capacity)
        self._host.submit(self._with_rows(snapshot, rows))
        self._submitted_rows = rows
        self._submitted_timesteps = snapshot.timesteps

    def _stop(self, snapshot: Snapshot, rows: int) -> None:
        """Commit ``snapshot`` and leave ``learn``."""
        self._settle()
        if snapshot.timesteps != self._submitted_timesteps:
            self._submit(snapshot, rows)
            self._settle()
        raise TrainingStopped

    def _keep_rows(self, capacity: int) -> None:
        """Called where the ring is about to overwrite a row: what still needs it is committed first."""
        if self._in_flight_from is not None and self._rows - self._in_flight_from > capacity:
            self._settle()
        if self._held is None:
            return
        snapshot, rows = self._held
        oldest = max(self._submitted_rows, rows - capacity)
        if snapshot.timesteps != self._submitted_timesteps and self._rows - oldest > capacity:
            self._settle()
            self._submit(snapshot, rows)
            self._settle()

    def _settle(self) -> None:
        self._host.phase("store")
        self._host.settle()
        self._in_flight_from = None
        self._host.phase("steps")

    def _with_rows(self, snapshot: Snapshot, rows: int) -> Snapshot:
        exact, because = self._exactness()
        facts = {**snapshot.facts, "exact": exact, "exact_because": because}
        left_out = self._not_kept()
        if left_out:
            facts["not_kept"] = left_out
            self._host.exactness(exact, because)
        return replace(snapshot, streams=self._capture_of().rows(self._submitted_rows, rows), facts=facts)

    def _plan_save(self, now: float) -> None:
        """The next save, as seen from one at ``now`` or from the session's beginning."""
        self._saved_at = now
        if self._host.save_frequency is not None:
            self._next_save = (self._timesteps() // self._host.save_frequency + 1) * self._host.save_frequency

    def _plan_evaluation(self) -> None:
        every = self._host.evaluate_every
        self._next_evaluation = (self._timesteps() // every + 1) * every if every is not None else float("inf")

    def _due(self, now: float) -> bool:
        """Whether to save here. By seconds at risk: whether what was done since the last snapshot would be at risk for
        longer if only the next consistent point were saved. A commit that takes most of these seconds is no reason to
        wait: the next one cannot begin before it is over.
        """
        if self._host.save_frequency is not None:
            return self._timesteps() >= self._next_save
        seconds = self._host.max_seconds_at_risk
        assert seconds is not None
        rollouts = self._log_every() if self._scripted() else 1
        until_next = rollouts * self._rollout_seconds if self._rollout_seconds < float("inf") else 0.0
        return now + until_next - self._saved_at >= max(seconds - self._commit_seconds(), seconds / 2)

    def _until_committed(self) -> float:
        """Seconds until the next consistent point is reached, and committed. To reach it takes as long as the last
        rollout and its update, and as much again for safety.
        """
        until = 2 * self._rollout_seconds - (time.monotonic() - self._rollout_began)
        return max(0.0, until) + self._commit_seconds()

    def _commit_seconds(self) -> float:
        size = self._capture_of().sent_bytes(self._rows - self._submitted_rows)
        return self._host.commit_seconds(size * (1 if self._ranks is None else self._ranks.size))

    def _stored_timesteps(self) -> int:
        """While a step is under way, which the buffers do not have yet."""
        return self._timesteps() - self._timesteps_per_step()

    def _timesteps_per_step(self) -> int:
        """That a step of all environments counts, on all ranks."""
        return int(self.model.n_envs) * (1 if self._ranks is None else self._ranks.size)

    def _capture_of(self) -> Capture:
        assert self._capture is not None
        return self._capture

    # ----------------------------------------------------------------------------------------------------- iterations

    def _log_every(self) -> int:
        """Iterations from one log to the next."""
        return int(self._log_interval or self.locals.get("log_interval") or 1)

    def _at_log_interval(self) -> bool:
        """On-policy ``learn`` counts its iterations in a local variable that restarts at 0. In a script, which decides
        when it logs, the rest of its loop is the same after a resume only where it would log anyway.
        """
        return not self._scripted() or (self._rollouts - 1) % self._log_every() == 0

    def _scripted(self) -> bool:
        return isinstance(self.model, OnPolicyAlgorithm) and self._log_interval is None

    def _steer(self) -> None:
        """Count iterations over all sessions, and progress by the schedules' own total.

        Both are arguments from ``learn``'s local variables, so the model's methods take others. It gets a class for
        that: attributes of its own would be pickled by ``model.save``, with all that they refer to.
        """
        own, kind = self, type(self.model)
        self._kind = kind

        class Steered(kind):  # type: ignore[misc, valid-type]
            def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
                super()._update_current_progress_remaining(num_timesteps, own._schedule_timesteps)

            if issubclass(kind, OnPolicyAlgorithm):

                def dump_logs(self, iteration: int = 0) -> None:
                    iteration += own._first_rollout
                    if own._log_interval is None or iteration % own._log_interval == 0:
                        super().dump_logs(iteration)

            if (
                own._ranks is not None
                or (own._pretraining is not None and own._pretraining.keeps)
                or (own._run_file is not None and own._run_file.precision == "bf16")
            ):

                def train(self, *arguments: Any, **named: Any) -> None:
                    with contextlib.ExitStack() as stack:
                        if own._pretraining is not None and own._pretraining.keeps:
                            stack.enter_context(own._pretraining.keeping())
                        if own._ranks is not None:
                            stack.enter_context(own._ranks.updating(self))
                        if own._run_file is not None:
                            stack.enter_context(precision.updating(own._run_file, self.device))
                        super().train(*arguments, **named)

        Steered.__module__, Steered.__name__, Steered.__qualname__ = kind.__module__, kind.__name__, kind.__qualname__
        self.model.__class__ = Steered

    # ---------------------------------------------------------------------------------------------- state of
    # environments

    def _provider_of(self, env: gymnasium.Env[Any, Any]) -> str:
        return choice_of(env).provider

    def _not_kept(self) -> list[str]:
        """What this session's checkpoints lack, and those before it: what was lost once stays lost."""
        capture = self._capture_of()
        begun = (f"environments: new episodes were begun: {why or 'they are not saved'}" for why in capture.begun_anew)
        return list(dict.fromkeys([*self._lost, *capture.not_kept, *begun]))

    def _exactness(self) -> tuple[bool, str]:
        if self._between_logs and self._log_interval is None:
            return False, "the run had ended between two logs: the script logs at other steps from there on"
        told = [self._choice.because] if self._choice is not None and not self._choice.exact else []
        told += self._capture_of().not_exact
        repeats = torch.are_deterministic_algorithms_enabled()
        told += [precision.NOT_REPEATED] if self.model.device.type == "cuda" and not repeats else []
        left_out = self._not_kept()
        if left_out:
            told.append(f"not kept: {'; '.join(left_out)}")
        return not told, "; ".join(dict.fromkeys(told))


def schedules(model: BaseAlgorithm) -> list[str]:
    """Names of the arguments that change with the training's progress: they depend on its total."""
    return sorted(
        "learning_rate" if name == "lr_schedule" else name
        for name, value in vars(next(iter(learners_of(model).values()))).items()
        if isinstance(value, FloatSchedule | LinearSchedule)
        and name != "learning_rate"  # as it was given
        and len({value(left) for left in np.linspace(1.0, 0.0, 101)}) > 1
    )


def learn(
    model: BaseAlgorithm,
    host: Host,
    callbacks: Sequence[BaseCallback],
    choice: Choice,
    pretraining: Pretraining | None = None,
    ranks: Ranks | None = None,
    run_file: RunFile | None = None,
) -> None:
    """``model.learn`` with checkpoints, after the other callbacks, and after the pretraining if there is one.

    :param ranks: the other processes that train with this one
    :param run_file: for the updates' arithmetic

    On-policy it is told to log at each iteration, and the model leaves out what is too often, so that each is a
    consistent point (see :meth:`Checkpoints._at_log_interval`).
    """
    interval = inspect.signature(model.learn).parameters["log_interval"].default
    each = isinstance(model, OnPolicyAlgorithm) and interval is not None
    own = Checkpoints(host, choice, interval if each else None, pretraining, ranks, run_file)
    if ranks is not None:
        together = [CallbacksOfAllRanks(ranks, list(callbacks))] if callbacks else []
        callbacks = [EveryStep(ranks), *together]
        ranks.follow(model.get_vec_normalize_env())
    # A list of one costs every step as much as the callback in it.
    callback: Any = [*callbacks, own] if callbacks else own
    model.learn(host.total_timesteps, callback=callback, log_interval=1 if each else interval)


def _leaves(callbacks: Any) -> Iterator[BaseCallback]:
    """Of what ``learn`` was given, in the order in which SB3 calls them at a rollout's start."""
    if isinstance(callbacks, list | tuple):
        for callback in callbacks:
            yield from _leaves(callback)
    elif isinstance(callbacks, CallbackList):
        yield from _leaves(callbacks.callbacks)
    elif isinstance(callbacks, BaseCallback):
        yield callbacks


@contextlib.contextmanager
def hosted_by(host: Host) -> Iterator[None]:
    """While this lasts, :func:`checkpoints` belongs to ``host``. What a training is given is made ready first:
    environments before they are reset for it, outputs for scalars before any callback looks for one.
    """
    algorithm: Any = BaseAlgorithm
    begin, initialize = algorithm._setup_learn, algorithm._init_callback

    def prepared(model: Any, *arguments: Any, **named: Any) -> Any:
        for env in (model.get_env(), *_environments_of(named.get("callback", arguments[1:2]))):
            if env is not None:
                prepare(env)
        return begin(model, *arguments, **named)

    def initialized(model: Any, callback: Any, *arguments: Any, **named: Any) -> Any:
        for each in _leaves(callback):
            if isinstance(each, Checkpoints):
                each.add_outputs(model)
        return initialize(model, callback, *arguments, **named)

    algorithm._setup_learn, algorithm._init_callback = prepared, initialized
    try:
        with hosting(host):
            yield
    finally:
        algorithm._setup_learn, algorithm._init_callback = begin, initialize


def _environments_of(callbacks: Any) -> Iterator[VecEnv]:
    """That callbacks hold, as SB3's ``EvalCallback`` does."""
    for callback in _leaves(callbacks):
        yield from (value for value in vars(callback).values() if isinstance(value, VecEnv))
        yield from _environments_of(getattr(callback, "callback", None))


def checkpoints() -> BaseCallback:
    """The callback that makes an ordinary SB3 script resumable; pass it to ``learn``, alone or in a list.

    In a script that was not started by ``train-cloud train`` it does nothing, and says so.
    """
    host = current_host()
    if host is None:
        log.warning("not started by train-cloud train: nothing is saved, nothing is resumed")
        return CallbackList([])
    config = current()
    if config is not None and config.initial_model is not None and config.entry_point is not None:
        fix = f"the script {config.entry_point} decides this: remove it or entry_point"
        raise InputError("initial_model", config.initial_model.source, fix)
    return Checkpoints(host)


def stateful(env: Env) -> StatefulEnv:
    """For scripts with a ``SubprocVecEnv``: lets an environment's state be taken out of its process.

    ``make_vec_env("Pendulum-v1", 4, vec_env_cls=SubprocVecEnv, wrapper_class=train_cloud.stateful)``
    """
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches the whole process group; the trainer decides when its environments end. SIGTERM still ends this
        # process: multiprocessing sends it at exit, and waits.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return with_state(env, choose_for(env, recorded=True))
