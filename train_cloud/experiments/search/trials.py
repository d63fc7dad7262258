"""A search as the engine sees it: where its next runs come from, and which of them are to end early.

What the trials are stands in the journal (``study``), how far their runs are in the runs' heads and evaluations;
nothing is kept beside these. A run knows nothing of the search: it ends early by the limit file that every run of an
experiment looks at.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from pydantic import ValidationError

from train_cloud.artifacts.experiment import experiment_url
from train_cloud.config import Cell, Experiment
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.evaluate.results import Evaluation, metric_of
from train_cloud.experiments.search.study import Study, Trial
from train_cloud.experiments.search.worker import Worker
from train_cloud.experiments.standing import PRUNED, run_store
from train_cloud.run import layout
from train_cloud.store import open_store

if TYPE_CHECKING:
    from train_cloud.experiments.engine import Row

log = logging.getLogger(__name__)

#: Trials in a row that fail, after which no other one is drawn: it is not their values.
_MOST_FAILURES = 5
#: How often the store is asked for evaluations of a run, and for what other workers do.
_LOOK_SECONDS, _LOOK_SECONDS_FAR = 0.5, 5.0


class Trials:
    """
    :param root: of the store
    :param train_on: draw on, although as many trials in a row have failed
    :raises StoreError: of any method
    """

    def __init__(self, experiment: Experiment, root: str, *, train_on: bool = False) -> None:
        assert experiment.search is not None
        self._experiment, self._root, self._train_on = experiment, root, train_on
        self._metric, self._prunes = experiment.search.metric, experiment.search.pruner != "none"
        self._study = Study(experiment, root)
        self._worker: Worker | None = None
        self._open: dict[int, tuple[Cell, ...]] = {}
        """Trials that this process trains."""
        self._over: dict[str, str] = {}
        """Run of a trial that is over → why it needs no more training."""
        self._evaluated: dict[str, dict[str, Evaluation]] = {}
        """Run → key → what was read there."""
        self._every = _LOOK_SECONDS_FAR if "://" in root and not root.startswith("file:") else _LOOK_SECONDS
        self._read: dict[int, float] = {}
        self._asked = -math.inf
        self._refusal: str | None = None
        self.waits = False
        """Whether another worker trains the last trials: if it dies, they are taken up here."""

    def prepare(self) -> None:
        """Let the runs of all trials that were drawn belong to the experiment. Nothing is written.

        :raises InputError: the trials that are there were drawn by another search
        """
        self._study.check(base=True)
        include(self._experiment, self._study.trials())

    def begin(self, folder: Path) -> None:
        """
        :param folder: of this process alone
        :raises InputError: as :meth:`prepare`
        """
        self._worker = Worker(open_store(experiment_url(self._root, self._experiment.experiment)), folder)
        self._worker.beat()
        self._study.begin(train_on=self._train_on)
        for trial in self._study.trials():
            cells = cells_of(self._experiment, trial)
            if trial.state == "running" and trial.worker == self._worker.name:
                self._open[trial.number] = cells
            elif trial.state in ("pruned", "failed"):
                self._note(cells, trial)

    def leave(self) -> None:
        if self._worker is not None:
            self._worker.leave()

    def of_others(self) -> set[str]:
        """Runs that other workers train."""
        others = (one for one in self._study.trials() if one.state == "running" and one.number not in self._open)
        return {cell.run_id for trial in others for cell in cells_of(self._experiment, trial)}

    def more(self) -> Sequence[Cell]:
        """The runs of another trial: of one whose worker is no more, or of a new one. None while there is none."""
        assert self._worker is not None
        now = time.monotonic()
        if self._refusal is not None or now - self._asked < self._every:
            return ()
        trials = self._study.trials()
        others = [
            trial for trial in trials if trial.state == "running" and trial.number not in self._open and trial.values
        ]
        # One of its own that is not open was drawn in a write whose reply was lost.
        trial = next((one for one in others if one.worker == self._worker.name or self._take_up(one)), None)
        if trial is None:
            self._refusal = self._too_many_failures(trials)
            trial = self._study.ask(self._worker.name) if self._refusal is None else None
        if trial is None:
            if others and not self.waits and not self._open:
                numbers = ", ".join(str(one.number) for one in others)
                log.info("waiting for other workers, which train trials %s: what they leave is taken up here", numbers)
            self.waits, self._asked = bool(others), now
            return ()
        try:
            cells = cells_of(self._experiment, trial)
        except InputError as error:  # of values that are refused together, though each of them alone is not
            self._study.fail(trial.number, str(error))
            log.warning("trial %d has failed: %s", trial.number, error)
            return ()
        log.info("trial %d: %s", trial.number, values_in_words(trial.values))
        self._open[trial.number] = cells
        self._experiment.include(cells)
        return cells

    def look(self, rows: list[Row]) -> Mapping[str, str]:
        """Report what is known of this process's trials by now.

        :param rows: of the engine; those of trials that another worker has taken up are removed
        :return: runs that are to end, and why
        """
        assert self._worker is not None
        self._worker.beat()
        by_run = {row.cell.run_id: row for row in rows}
        for number, cells in list(self._open.items()):
            mine = [by_run[cell.run_id] for cell in cells if cell.run_id in by_run]
            if any(row.doing == "fenced" for row in mine) and self._is_taken(number):
                log.warning("trial %d is trained by another worker", number)
                rows[:] = [row for row in rows if row not in mine]
                del self._open[number]
            elif len(mine) == len(cells):
                self._look_at(number, cells, mine)
        return {run_id: why for run_id, why in self._over.items() if run_id in by_run and _goes_on(by_run[run_id])}

    def check_end(self) -> None:
        """:raises TrainCloudError: the search has ended without a result"""
        trials = self._study.trials()
        if self._refusal is not None:
            raise TrainCloudError(self._refusal)
        bad = [trial for trial in trials if trial.state == "failed"]
        if bad and len(bad) == len(trials):
            raise TrainCloudError(f"all {len(bad)} trials have failed, the last: {bad[-1].reason}")

    def is_over(self, run_id: str) -> bool:
        """Whether it belongs to a trial that has ended, however."""
        return run_id in self._over

    # ------------------------------------------------------------------------------------------------------ one trial

    def _look_at(self, number: int, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
        for row in rows:
            if row.doing == "failed" and row.child is None:
                if row.standing.state == "failed" or row.refused or row.attempts >= self._experiment.max_attempts:
                    self._study.fail(number, f"{row.cell.run_id}: {row.reason}")
                    self._end(number, cells)
                    return
                row.doing = "waiting"  # at once: what is drawn next depends on it
            elif row.standing.state in ("cancelled", "stopped") and row.child is None:
                self._study.prune(number, row.reason or row.standing.state)
                self._end(number, cells)
                return
        done = all(row.doing == "completed" for row in rows)
        if not done and (not self._prunes or time.monotonic() - self._read.get(number, -math.inf) < self._every):
            return
        self._read[number] = time.monotonic()
        if self._prunes and self._report(number, cells):
            self._end(number, cells)
        elif done:
            self._complete(number, cells, rows)
            self._end(number, cells)

    def _report(self, number: int, cells: Sequence[Cell]) -> bool:
        """What all seeds' evaluations have told at the same timesteps.

        :return: whether the trial has ended early
        """
        config = cells[0].config
        every = config.evaluation.every if config.evaluation is not None else None
        assert every is not None
        found = []
        for cell in cells:
            # An evaluation is that of the first consistent point at or after a multiple of `every`.
            values: dict[int, float] = {}
            for timesteps, evaluation in sorted(self._evaluations(cell).items()):
                value = metric_of(evaluation.overall, self._metric)
                if timesteps < config.total_timesteps and value is not None:
                    values.setdefault(timesteps // every * every, value)
            found.append(values)
        common = sorted(set.intersection(*(set(values) for values in found)))
        known = self._known(number)
        new = {step: fmean(values[step] for values in found) for step in common if step not in known.steps}
        trial = self._study.report(number, new) if new else known
        return trial.state != "running"

    def _complete(self, number: int, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
        values = []
        for cell, row in zip(cells, rows, strict=True):
            last = self._evaluations(cell).get(row.standing.timesteps)
            value = metric_of(last.overall, self._metric) if last is not None else None
            if value is None or not math.isfinite(value):
                why = "its last evaluation has failed" if last is None else f"its evaluation tells {value}"
                self._study.fail(number, f"{cell.run_id} has no {self._metric}: {why}")
                if last is not None and value is None:
                    self._refusal = _not_told(cell.run_id, self._metric)
                return
            values.append(value)
        self._study.complete(number, fmean(values))

    def _end(self, number: int, cells: Sequence[Cell]) -> None:
        trial = self._known(number)
        del self._open[number]
        if trial.state != "complete":
            self._note(cells, trial)
        value = "" if trial.value is None else f", {self._metric} {trial.value:g}"
        log.info("trial %d is %s%s%s", number, trial.state, value, f": {trial.reason}" if trial.reason else "")

    def _note(self, cells: Sequence[Cell], trial: Trial) -> None:
        how = PRUNED if trial.state == "pruned" else "its trial has failed"
        self._over.update({cell.run_id: f"{how}: {trial.reason}" for cell in cells})

    def _known(self, number: int) -> Trial:
        return self._study.trials()[number]

    def _is_taken(self, number: int) -> bool:
        assert self._worker is not None
        return self._known(number).worker != self._worker.name

    def _take_up(self, trial: Trial) -> bool:
        assert self._worker is not None
        if trial.worker is None or not self._worker.is_gone(trial.worker):
            return False
        if not self._study.take_up(trial.number, trial.worker, self._worker.name):
            return False
        log.info("trial %d is taken up: the worker that has begun it is gone", trial.number)
        return True

    def _too_many_failures(self, trials: Sequence[Trial]) -> str | None:
        last = [trial for trial in trials if trial.state not in ("running", "waiting")][-_MOST_FAILURES:]
        if self._train_on or len(last) < _MOST_FAILURES or any(trial.state != "failed" for trial in last):
            return None
        return f"{_MOST_FAILURES} trials in a row have failed, the last: {last[-1].reason}; --continue draws others"

    def _evaluations(self, cell: Cell) -> dict[int, Evaluation]:
        """All of a run so far, by timesteps."""
        store, read = run_store(self._root, cell.run_id), self._evaluated.setdefault(cell.run_id, {})
        for info in store.list(layout.EVALUATIONS):
            if info.key not in read and layout.evaluated_at(info.key) is not None:
                try:
                    read[info.key] = Evaluation.model_validate_json(bytes(store.get(info.key).body))
                except ValidationError as error:
                    log.warning("%s/%s is no evaluation: %s", store.url, info.key, error)
        return {evaluation.timesteps: evaluation for evaluation in read.values()}


def _not_told(run_id: str, metric: str) -> str:
    """Why no further trial is drawn: what this run's environment does not tell, it tells none."""
    fix = "say with evaluation.success when an episode has succeeded, or " if metric == "success_rate" else ""
    why = f"the evaluation of {run_id} does not tell {metric}, nor would another trial's"
    return f"search.metric: {why}: {fix}take another metric"


def _goes_on(row: Row) -> bool:
    """Whether its head does not yet say that it is over, or a process trains it."""
    over = row.doing in ("completed", "stopped", "cancelled", "failed")
    return row.child is not None or not over or (row.standing.state == "open" and row.standing.outcome is None)


def cells_of(experiment: Experiment, trial: Trial) -> tuple[Cell, ...]:
    """The runs of a trial; none of one that somebody else's program has drawn without values."""
    return experiment.trial(trial.number, trial.values) if trial.values else ()


def include(experiment: Experiment, trials: Sequence[Trial]) -> None:
    """Let the runs of these trials belong to the experiment."""
    for trial in trials:
        try:
            experiment.include(cells_of(experiment, trial))
        except InputError:
            if trial.state != "failed":  # because of that
                raise


def drawn(experiment: Experiment, root: str) -> list[Trial]:
    """The trials of a search by number, none where it has not begun. Their runs belong to the experiment afterwards.

    :raises InputError: they were drawn by another search
    """
    study = Study(experiment, root)
    study.check()
    trials = study.trials()
    include(experiment, trials)
    return trials


def values_in_words(values: Mapping[str, object]) -> str:
    """What was drawn, on one line; keys without what they have in common with all."""
    return ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in values.items())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
