"""A search's trials in Optuna's journal: what is drawn, what evaluations told, which trial ends early.

Every decision is one transaction: the journal is read, Optuna decides on exactly that, and all that follows from it is
one object, which the store takes only if nobody has written meanwhile. So a process may be killed at any write, and
several may decide at once: what is in the journal was decided upon what stands before it.

What is drawn depends on the trials before, on the search's seed and on the trial's number alone.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from train_cloud.artifacts.experiment import experiment_url
from train_cloud.config import Dimension, Experiment, identity_changes
from train_cloud.errors import InputError
from train_cloud.experiments.search.journal import Journal, Overtaken
from train_cloud.store import open_store

State = Literal["waiting", "running", "complete", "pruned", "failed"]
#: In the study's attributes: what may not change.
DEFINITION = "train_cloud_search"
#: There: whether a person has ended the search.
CANCELLED = "train_cloud_cancelled"
#: In a trial's: who trains it, and why it ended otherwise than complete.
WORKER, REASON = "worker", "reason"
_STATES: Mapping[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
#: Of the section ``evaluation``, what the values do not depend on.
_HOW_IT_IS_EVALUATED = {"max_minutes", "mode", "separate", "video", "routes"}
#: Of a run's identity, what it has for itself.
_OF_A_TRIAL = {"run_id", "experiment", "seed", "seeds", "device"}
Found = TypeVar("Found")


@dataclass(frozen=True)
class Trial:
    """As it stands in the journal."""

    number: int
    state: State
    values: Mapping[str, Any]
    """Key of the space → what was drawn."""
    value: float | None
    """Of the metric: of a complete trial over its runs' last evaluations, of a pruned one when it was pruned."""
    steps: Mapping[int, float]
    """Timesteps → the metric there, as far as it was reported; what a pruner reads."""
    reason: str | None
    """Why it was pruned or has failed."""
    worker: str | None


class Study:
    """The trials of one search.

    :param root: of the store
    :raises StoreError: of any method
    """

    def __init__(self, experiment: Experiment, root: str) -> None:
        assert experiment.search is not None
        self._experiment, self._search = experiment, experiment.search
        self._journal = Journal(open_store(experiment_url(root, experiment.experiment)))
        self._storage: optuna.storages.JournalStorage | None = None
        self._space = {key: _distribution(dimension) for key, dimension in self._search.space.items()}
        cells = experiment.trial(0, next(self._search.tried())[1])
        evaluation = cells[0].config.evaluation
        assert evaluation is not None
        self._every = evaluation.every or 1
        self._definition: dict[str, Any] = {
            "search": self._search.definition(),
            "seeds": [cell.seed for cell in cells],
            "total_timesteps": cells[0].config.total_timesteps,
            "evaluation": evaluation.model_dump(mode="json", exclude=_HOW_IT_IS_EVALUATED),
        }
        """What may not change once trials were drawn: what was found would stand for something else."""
        self._first = cells[0].config

    def begin(self, *, train_on: bool = False) -> None:
        """Make the study, where nobody has yet.

        :param train_on: draw trials, although a person has ended the search
        :raises InputError: its trials were drawn by another search, and would stand for something else
        """
        self.check(base=True)

        def make(study: optuna.Study) -> None:
            if self._old(study) is None:
                study.set_user_attr(DEFINITION, {**self._definition, **self._base()})
            if train_on and study.user_attrs.get(CANCELLED):
                study.set_user_attr(CANCELLED, False)

        self._transact(make)
        self.check(base=True)  # somebody else may have made it meanwhile

    def check(self, *, base: bool = False) -> None:
        """Nothing is written.

        :param base: whether trials are to be trained, with what the base says of everything that is not searched
        :raises InputError: as :meth:`begin`
        """
        if self._journal.is_empty:
            return
        old = self._transact(self._old) or {}
        for here in (self._definition, self._base() if base else {}):
            known = {name: old[name] for name in here if name in old}  # an earlier version wrote less
            self._compare(known, {name: here[name] for name in known})

    @staticmethod
    def _compare(old: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        for field, before, after in identity_changes(old, here):
            fix = f"the search was begun with {before!r}: restore that, or call the experiment otherwise"
            raise InputError(field, after, fix)

    def _base(self) -> dict[str, Any]:
        """What every trial is trained with besides what is drawn for it; the device is the machine's affair."""
        identity = self._first.identity()
        return {"base": {name: value for name, value in identity.items() if name not in _OF_A_TRIAL}}

    def trials(self) -> list[Trial]:
        """All that were drawn, by number; none where the search has not begun."""
        return [] if self._journal.is_empty else self._transact(lambda study: [self._trial(one) for one in _all(study)])

    def optuna_study(self) -> optuna.Study:
        """For what Optuna computes of it; nothing is to be written through it."""
        return self._transact(lambda study: study)

    def cancel(self) -> None:
        """No further trial is drawn, by whomever."""
        if not self._journal.is_empty:
            self._transact(lambda study: study.set_user_attr(CANCELLED, True))

    def ask(self, worker: str) -> Trial | None:
        """The next trial, which ``worker`` trains; None where all have been drawn, or a person has ended the search."""

        def draw(study: optuna.Study) -> Trial | None:
            every = _all(study)
            number = next((one.number for one in every if one.state == TrialState.WAITING), len(every))
            if number >= self._search.most_trials or study.user_attrs.get(CANCELLED):
                return None
            if self._search.sampler == "grid" and number == len(every):
                values = self._search.combination(number)
                params = {key: _stored(self._search.space[key], value) for key, value in values.items()}
                study.enqueue_trial(params)
            study.sampler = self._sampler(number)
            trial = study.ask(self._space)
            trial.set_user_attr(WORKER, worker)
            return self._trial(_all(study)[trial.number])

        return self._transact(draw)

    def take_up(self, number: int, dead: str | None, worker: str) -> bool:
        """From now on ``worker`` trains a trial whose worker is no more.

        :return: whether it does; somebody else may have been faster, or the trial is over
        """

        def take(study: optuna.Study) -> bool:
            trial = self._trial(_all(study)[number])
            if trial.state != "running" or trial.worker != dead:
                return False
            study._storage.set_trial_user_attr(_id(study, number), WORKER, worker)
            return True

        return self._transact(take)

    def report(self, number: int, steps: Mapping[int, float]) -> Trial:
        """What evaluations told at these timesteps, in their order; the first at which the pruner says so ends it.

        :return: the trial as it stands afterwards
        """

        def report(study: optuna.Study) -> Trial:
            for step in sorted(steps):
                trial = _all(study)[number]
                last = max(trial.intermediate_values, default=-1)
                if trial.state != TrialState.RUNNING or step <= last:
                    continue
                study._storage.set_trial_intermediate_value(_id(study, number), step, steps[step])
                if step >= self._search.warmup_timesteps and study.pruner.prune(study, _all(study)[number]):
                    how = "worse than the median of the others" if self._search.pruner == "median" else "not the best"
                    reason = f"{how} at {step} timesteps: {self._search.metric} {steps[step]:g}"
                    study._storage.set_trial_user_attr(_id(study, number), REASON, reason)
                    study.tell(number, state=TrialState.PRUNED)
            return self._trial(_all(study)[number])

        return self._transact(report)

    def complete(self, number: int, value: float) -> None:
        """The trial's runs are completed. What stands in the journal already stays."""
        self._tell(number, TrialState.COMPLETE, value, None)

    def prune(self, number: int, reason: str) -> None:
        """It ended early, and no pruner has said so."""
        self._tell(number, TrialState.PRUNED, None, reason)

    def fail(self, number: int, reason: str) -> None:
        """It has no value, and will have none."""
        self._tell(number, TrialState.FAIL, None, reason)

    def _tell(self, number: int, state: TrialState, value: float | None, reason: str | None) -> None:
        def tell(study: optuna.Study) -> None:
            if _all(study)[number].state.is_finished():
                return
            if reason is not None:
                study._storage.set_trial_user_attr(_id(study, number), REASON, reason)
            study.tell(number, value, state=state)

        self._transact(tell)

    def _transact(self, change: Callable[[optuna.Study], Found]) -> Found:
        """Decide, and write all that was decided or nothing; again upon what others have written meanwhile."""
        while True:
            try:
                with self._journal.transaction(), quiet():
                    return change(self._study())
            except Overtaken:
                self._storage = None  # it has heard of what was not written
            except BaseException:
                self._storage = None
                raise

    def _study(self) -> optuna.Study:
        if self._storage is None:
            self._storage = optuna.storages.JournalStorage(self._journal)
        name = self._experiment.experiment
        if name not in (study.study_name for study in self._storage.get_all_studies()):
            optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize" if self._search.maximize else "minimize"
            )
        sampler = optuna.samplers.RandomSampler(0)  # an own one for each trial
        return optuna.load_study(study_name=name, storage=self._storage, sampler=sampler, pruner=self._pruner())

    @staticmethod
    def _old(study: optuna.Study) -> dict[str, Any] | None:
        return study.user_attrs.get(DEFINITION)

    def _trial(self, trial: FrozenTrial) -> Trial:
        values = {
            key: _meant(self._search.space[key], trial.params[key]) for key in self._search.space if key in trial.params
        }
        return Trial(
            number=trial.number,
            state=_STATES[trial.state],
            values=values,
            value=trial.values[0] if trial.values else None,
            steps=dict(sorted(trial.intermediate_values.items())),
            reason=trial.user_attrs.get(REASON),
            worker=trial.user_attrs.get(WORKER),
        )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self._search.seed, number]).generate_state(1)[0])
        if self._search.sampler == "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self._search.startup_trials, multivariate=True, constant_liar=True
            )
        return optuna.samplers.RandomSampler(seed)

    def _pruner(self) -> optuna.pruners.BasePruner:
        search = self._search
        if search.pruner == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=search.startup_trials, n_warmup_steps=0)
        if search.pruner == "asha":
            first = max(1, math.ceil(search.warmup_timesteps / self._every)) * self._every
            return optuna.pruners.SuccessiveHalvingPruner(first, search.reduction_factor)
        return optuna.pruners.NopPruner()


def examples(experiment: Experiment, count: int) -> list[Mapping[str, Any]]:
    """What the first trials would be drawn as, as long as nothing is known of any: of these, TPE's are random."""
    search = experiment.search
    assert search is not None
    found: list[Mapping[str, Any]] = []
    space = {key: _distribution(dimension) for key, dimension in search.space.items()}
    for number in range(min(count, search.most_trials)):
        if search.sampler == "grid":
            found.append(search.combination(number))
            continue
        seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
        with quiet():
            drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask(space).params
        found.append({key: _meant(search.space[key], value) for key, value in drawn.items()})
    return found


def _all(study: optuna.Study) -> Sequence[FrozenTrial]:
    return study.get_trials(deepcopy=False)


def _id(study: optuna.Study, number: int) -> int:
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution([_stored(dimension, choice) for choice in dimension.choices])
    low, high = dimension.ends
    if dimension.whole:
        step = 1 if dimension.step is None else round(dimension.step)
        return IntDistribution(low, high - (high - low) % step, log=dimension.log, step=step)
    with quiet():  # a high that is no multiple of the step above low is lowered to the last one
        return FloatDistribution(low, high, log=dimension.log, step=dimension.step)


def _stored(dimension: Dimension, value: Any) -> Any:
    """A value as Optuna keeps it: among choices that are not all different plain values it is their JSON."""
    return json.dumps(value, sort_keys=True) if _as_json(dimension) else value


def _meant(dimension: Dimension, stored: Any) -> Any:
    if dimension.choices is None:
        return stored
    found = (choice for choice in dimension.choices if _is(_stored(dimension, choice), stored))
    return next(found, stored)


def _is(one: Any, other: Any) -> bool:
    return one == other and type(one) is type(other)


def _as_json(dimension: Dimension) -> bool:
    choices = dimension.choices
    if choices is None:
        return False
    plain = all(isinstance(choice, str | int | float | bool | None) for choice in choices)
    return not plain or len(set(choices)) < len(choices)


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna tells every trial, and warns of each argument that may change."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.filterwarnings("ignore", message="The distribution is specified by")
            yield
    finally:
        optuna.logging.set_verbosity(before)
