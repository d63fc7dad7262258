"""The runs of an experiment as training jobs of SageMaker: a job for each, as many at once as may be.

Which run is next follows from the runs' heads and from the jobs that are at work: whoever calls this again, from
whatever machine, goes on where the last call was. What has been launched needs no call any more.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from train_cloud.config import Cell, Experiment, dump_run_file
from train_cloud.errors import CloudError, InputError
from train_cloud.experiments.standing import run_store, standings
from train_cloud.operations.expand import refuse_search
from train_cloud.operations.sagemaker.launch import Launch, create, jobs_at_work, plan, write_run
from train_cloud.run import layout
from train_cloud.run.experiment import Spending, Spent
from train_cloud.store import FileStore, open_store

_ASK_SECONDS = 30.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A run that is to be launched."""

    cell: Cell
    launch: Launch


class Queue:
    """:param parallel: jobs at once
    :param root: the store's
    :raises InputError: what a run's file, the store or AWS would refuse; nothing has been created
    """

    def __init__(self, experiment: Experiment, root: str, parallel: int | None, *, train_on: bool = False) -> None:
        refuse_search(experiment)
        self._experiment, self._root = experiment, root
        self.parallel = parallel or experiment.max_parallel or len(experiment.cells)
        found = standings(root, experiment.cells, experiment.max_attempts, train_on=train_on)
        self.over = [one for one in found if one.state not in ("new", "open")]
        self.waiting = [
            Planned(one.cell, self._plan(one.cell, train_on)) for one in found if one.state in ("new", "open")
        ]
        priced = all(planned.launch.launched.machine["price"]["on_demand"] is not None for planned in self.waiting)
        if experiment.limits.dollars is not None and not priced:
            fix = "it cannot be kept: AWS tells no price for one of the machines; leave it out, or give limits.hours"
            raise InputError("limits.dollars", experiment.limits.dollars, fix)

    def _plan(self, cell: Cell, train_on: bool) -> Launch:
        folder = cell.config.code.folder
        text = dump_run_file(cell.config, folder.parent if folder else self._experiment.base.parent, "of an experiment")
        try:
            return plan(cell.config, text, self._root, {}, train_on=train_on)
        except InputError as error:
            raise InputError(error.field, error.value, f"{error.fix} (in the run {cell.run_id})") from error

    def launch_all(self, *, wait: bool, each: Callable[[str, str], None], every: float = _ASK_SECONDS) -> list[Planned]:
        """Launch what waits, no more at once than may be.

        :param wait: until all are launched; else what can be launched now
        :param each: is told the run and what became of it
        :return: those that were not launched
        """
        root = open_store(self._root)
        assert isinstance(root, FileStore)
        self._record(root)
        spending = Spending(root)
        while True:
            at_work = {cell.run_id: jobs for cell in self._experiment.cells if (jobs := self._jobs(cell.run_id))}
            for planned in [*self.waiting]:
                if planned.cell.run_id in at_work:
                    self.waiting.remove(planned)
                    each(planned.cell.run_id, f"{at_work[planned.cell.run_id][0]} is at work already")
            free = self.parallel - len(at_work)
            for planned in self.waiting[: max(0, free)]:
                reached = self._limit(spending)
                if reached is not None:
                    each(planned.cell.run_id, f"is not launched: {reached}")
                    return self.waiting
                write_run(
                    run_store(self._root, planned.cell.run_id),
                    planned.cell.run_id,
                    planned.launch.launched.files["run.yaml"],
                    self._experiment.experiment,
                )
                try:
                    each(planned.cell.run_id, create(planned.launch, self._root).name)
                except CloudError as error:
                    if "ResourceLimitExceeded" not in str(error) or not at_work:
                        raise
                    each(planned.cell.run_id, f"waits: {error}")  # for one of those that are at work
                    break
                self.waiting.remove(planned)
                at_work[planned.cell.run_id] = [planned.launch.name]
            if not self.waiting or not wait:
                return self.waiting
            time.sleep(every)

    def _jobs(self, run_id: str) -> list[str]:
        return [state.name for state in jobs_at_work(run_store(self._root, run_id))]

    def _record(self, root: FileStore) -> None:
        """What each job reads of the limits over all, as Terraform writes it (terraform/experiment.tf)."""
        record = {
            "experiment": self._experiment.experiment,
            "limits": self._experiment.limits.model_dump(mode="json"),
            "runs": {cell.run_id: {"levels": dict(cell.levels), "seed": cell.seed} for cell in self._experiment.cells},
        }
        root.put(layout.experiment_key(self._experiment.experiment), json.dumps(record).encode())

    def _limit(self, spending: Spending) -> str | None:
        """Which limit over all is reached, in words."""
        limits = self._experiment.limits
        if limits.hours is None and limits.dollars is None:
            return None
        spent: Spent = spending.look([cell.run_id for cell in self._experiment.cells])
        if limits.hours is not None and spent.hours >= limits.hours:
            return f"limits.hours: {limits.hours:g} hours are used by all runs"
        if limits.dollars is not None and spent.dollars >= limits.dollars:
            return f"limits.dollars: {limits.dollars:g} dollars are spent by all runs"
        return None
