"""An experiment: its runs, so many at once.

This process only decides which one is next, and reads their heads. Where they are trained is a place's business: child
processes here, tasks on a cluster. It may be killed at any instant: the trainings stop with a commit when it is gone,
and what is to be done next follows from the heads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from train_cloud.checkpoint import signing
from train_cloud.config import Cell, Experiment, RunFile, variables
from train_cloud.config.code import mark_as_cache
from train_cloud.errors import (
    CorruptCheckpoint,
    Fenced,
    InputError,
    Interrupted,
    StoreError,
    StoreUnavailable,
    TrainCloudError,
)
from train_cloud.experiments.files import enter_experiment, enter_results
from train_cloud.experiments.place import Place, Plan
from train_cloud.experiments.processes import Processes, shortly
from train_cloud.experiments.standing import PRUNED, Standing, run_store, standing, standings, total
from train_cloud.run.head import conclude, read_head
from train_cloud.store import ObjectStore
from train_cloud.warm_process import Child

log = logging.getLogger(__name__)

Doing = Literal[
    "waiting",
    "elsewhere",
    "queued",
    "training",
    "stopping",
    "completed",
    "stopped",
    "cancelled",
    "failed",
    "fenced",
    "interrupted",
    "not begun",
]
OVER: tuple[Doing, ...] = ("completed", "stopped", "cancelled")
_LOOK_SECONDS = 0.1
_REASON_CHARACTERS = 300
_STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Row:
    """One run, as the engine sees it."""

    cell: Cell
    standing: Standing
    state_dir: Path
    doing: Doing = "waiting"
    timesteps: int = 0
    reason: str | None = None
    delay: str | None = None
    """Why it waits for the store, where it is trained and does."""
    child: Child | None = None
    began: float = 0.0
    """On ``time.monotonic()``."""
    began_at: int = 0
    """Timesteps."""
    gpu: str | None = None
    attempts: int = 0
    """Of this engine that have failed."""
    refused: bool = False
    """Whether its input was refused, which no other attempt mends."""

    @property
    def limit_file(self) -> Path:
        """What tells the process that trains it to stop, and why."""
        return self.state_dir / "limit.txt"

    @property
    def total(self) -> int:
        return self.cell.config.total_timesteps

    @property
    def steps_per_second(self) -> float | None:
        """Of this session; None before there is anything to divide."""
        done = self.timesteps - self.began_at
        return done / max(1e-9, time.monotonic() - self.began) if self.child is not None and done > 0 else None


class Source(Protocol):
    """Where further runs come from while others are trained: a search's trials, a pipeline's sessions."""

    waits: bool
    """Whether there may be more, though nothing is trained here now."""

    def prepare(self) -> None:
        """Before anything is written.

        :raises InputError: it is refused
        """

    def begin(self, folder: Path) -> None:
        """:param folder: of this process alone"""

    def leave(self) -> None:
        """Nothing is trained any more."""

    def of_others(self) -> set[str]:
        """Runs that other processes train."""

    def more(self) -> Sequence[Cell]:
        """Further runs; none where there is none yet."""

    def look(self, rows: list[Row]) -> Mapping[str, str]:
        """Called again and again.

        :return: runs that are to end early, and why
        """

    def check_end(self) -> None:
        """:raises TrainCloudError: it has not ended well"""

    def is_over(self, run_id: str) -> bool:
        """Whether this run's failure is no failure of the whole."""


class Engine:
    """:param experiment: what is trained
    :param source: the file's name, for comments
    :param root: of the store
    :param folder: of the sessions' folders
    :param parallel: how many runs are trained at once
    :param train_on: train runs that were cancelled, that have failed for good, or that a callback had ended
    :param trials: where further runs come from, of a search or a pipeline
    :param changed: called several times a second with all runs, for whoever shows them
    :param place: where they are trained; child processes of this one by default
    :param kind: of what is trained, in words
    :param keep_completed: ``train_on`` says nothing of runs that are completed
    """

    def __init__(
        self,
        experiment: Plan,
        *,
        source: str,
        root: str,
        folder: Path,
        parallel: int,
        train_on: bool = False,
        trials: Source | None = None,
        changed: Callable[[Sequence[Row]], None] = lambda rows: None,
        place: Place | None = None,
        kind: str = "experiment",
        keep_completed: bool = False,
    ) -> None:
        self._experiment, self._root = experiment, root
        self._folder, self._parallel, self._train_on = folder.absolute(), parallel, train_on
        self._trials, self._changed = trials, changed
        self._kind, self._keep_completed = kind, keep_completed
        self._files = self._folder / f"{experiment.experiment}-{kind}"
        self._stops = 0
        """How often somebody has asked to stop; a signal handler does no more than count."""
        self._hurries = False
        """Whether somebody has pressed Ctrl-C again."""
        self._passed_on = 0
        self._limit: str | None = None
        """Which limit over all runs is reached, in words."""
        self._unanswered = False
        """Whether a search's store did not answer the last time."""
        self._place = place or Processes(
            self._files, source=source, root=root, threads=experiment.threads, train_on=train_on, kind=kind
        )
        self.rows: list[Row] = []

    def run(self) -> None:
        """Train until all runs are over, or somebody asks to stop.

        :raises InputError: refused before anything was begun
        :raises Interrupted: stopped by a signal; all is committed
        :raises TrainCloudError: some runs have failed
        """
        variables.check_all()
        self._refuse_what_no_run_could_do()
        # Before anything is written: what cannot be trained is told of all runs at once.
        if self._trials is not None:
            self._trials.prepare()
        found = standings(
            self._root,
            self._experiment.cells,
            self._experiment.max_attempts,
            train_on=self._train_on,
            keep_completed=self._keep_completed,
        )
        self._files.mkdir(parents=True, exist_ok=True)
        mark_as_cache(self._files)
        with self._place.alone(self._experiment.experiment), self._signals():
            others: set[str] = set()
            if self._trials is not None:
                self._trials.begin(self._files)
                others = self._trials.of_others()
            self.rows = [self._row(one) for one in found if one.cell.run_id not in others]
            self._enter_experiment()
            try:
                self._loop()
            finally:
                self._end_children()
                if self._trials is not None:
                    self._trials.leave()
                self._place.close()
            self._changed(self.rows)
            if isinstance(self._experiment, Experiment):
                enter_results(self._root, self._experiment, [row.standing for row in self.rows])
        self._say_how_it_ended()

    def _enter_experiment(self) -> None:
        if isinstance(self._experiment, Experiment):
            enter_experiment(self._root, self._experiment)

    def _refuse_what_no_run_could_do(self) -> None:
        """:raises InputError: they cannot be trained there; a variable is missing that runs take as a secret"""
        self._place.check(self._experiment)
        for cell in self._experiment.cells:
            read_signed(cell.config)

    # ------------------------------------------------------------------------------------------------------ the queue

    def _loop(self) -> None:
        while True:
            self._pass_on()
            for row in self.rows:
                self._look(row)
            self._look_at_limits()
            if self._trials is not None:
                with self._outage():
                    for run_id, reason in self._trials.look(self.rows).items():
                        self._end_early(run_id, reason)
            if not self._stops and self._limit is None:
                self._start_what_fits()
            self._changed(self.rows)
            over = self._stops or self._limit is not None
            waits = bool(self._next()) or (self._trials is not None and self._trials.waits)
            if not any(row.child is not None for row in self.rows) and (over or not waits):
                break
            time.sleep(_LOOK_SECONDS)
        for row in self._next():
            row.doing = "stopped" if row.standing.outcome == "stopped" else "interrupted"
            if row.standing.state == "new":
                row.doing = "not begun"

    def _next(self) -> list[Row]:
        """What is still to be trained: first what was begun already."""
        waiting = [row for row in self.rows if row.doing in ("waiting", "elsewhere")]
        return sorted(waiting, key=lambda row: row.standing.state != "open")

    def _start_what_fits(self) -> None:
        running = sum(row.child is not None for row in self.rows)
        for row in self._next():
            if running >= self._parallel or self._stops:
                return
            running += self._start(row)
        while running < self._parallel and (added := self._added()):
            for row in added[: self._parallel - running]:
                running += self._start(row)

    def _added(self) -> list[Row]:
        """Further runs of a search or a pipeline; none while there is none."""
        more: Sequence[Cell] = ()
        if self._trials is not None:
            with self._outage():
                more = self._trials.more()
        added = [self._row(Standing(cell, "new")) for cell in more]  # how it stands is read when it is started
        self.rows += added
        if added:
            self._enter_experiment()
        return added

    @contextlib.contextmanager
    def _outage(self) -> Iterator[None]:
        """A store that does not answer ends nothing here: what was asked of it is asked again in the next turn."""
        try:
            yield
            self._unanswered = False
        except StoreUnavailable as error:
            if not self._unanswered:
                what = "search" if self._kind == "experiment" else self._kind
                log.warning("the %s waits for its store: %s", what, error)
            self._unanswered = True

    def _end_early(self, run_id: str, reason: str) -> None:
        """Of a trial that is over."""
        row = next(row for row in self.rows if row.cell.run_id == run_id)
        if row.child is not None:
            self._place.end(row, reason)
            return
        doing: Literal["stopped", "failed"] = "stopped" if reason.startswith(PRUNED) else "failed"
        if row.standing.state != "new":  # its process was gone before it could say so itself
            store = run_store(self._root, run_id)
            with contextlib.suppress(Fenced, StoreUnavailable):
                head = conclude(store, doing, reason, session=_session(store), owner=f"engine-{os.getpid()}")
                row.standing = dataclasses.replace(row.standing, outcome=head.outcome)
        row.doing, row.reason = doing, shortly(reason)

    def _start(self, row: Row) -> bool:
        """:return: whether it is trained now"""
        if self._place.is_taken(row):
            row.doing = "elsewhere"
            return False
        # Somebody may have cancelled it, or trained it elsewhere, since this began.
        self._read(row, check=False)
        if row.doing != "waiting":
            return False
        try:
            row.child = self._place.start(row, self.rows)
        except OSError as error:  # as of a disk that is full
            row.doing, row.reason = "failed", str(error)
            return False
        row.doing, row.began, row.began_at = "training", time.monotonic(), row.standing.timesteps
        self._place.look(row)
        self._passed_on = 0  # it may have been asked for while this one was started
        return True

    def _look(self, row: Row) -> None:
        """How far a child is, and what it has left if it has ended."""
        if row.child is None:
            return
        code = row.child.poll()
        if code is None:
            self._place.look(row)
            return
        row.child = row.delay = None
        self._read(row)
        if row.standing.state == "open" and row.standing.outcome == "stopped":
            row.doing = "stopped"
        elif row.standing.state in ("new", "open"):
            again, said = self._place.ended(row, code)
            if again and not self._stops and self._limit is None:
                return  # it waits
            row.doing, row.reason = self._ended(row, code, said)
            row.attempts, row.refused = row.attempts + (row.doing == "failed"), code == InputError.exit_code
        elif row.standing.state == "failed" and row.standing.outcome is None and row.standing.failures:
            self._give_up(row)

    def _read(self, row: Row, *, check: bool = False) -> None:
        """How the run stands now, by its head."""
        try:
            found = standing(
                self._root,
                row.cell,
                self._experiment.max_attempts,
                train_on=self._train_on and row.began == 0,
                check=check,
                keep_completed=self._keep_completed,
            )
        except (StoreError, CorruptCheckpoint) as error:
            row.doing, row.reason = "failed", str(error)
            return
        self._enter(row, found)

    def _enter(self, row: Row, found: Standing) -> None:
        row.standing, row.timesteps, row.reason = found, found.timesteps, shortly(found.reason)
        row.doing = "waiting"
        if found.state in ("completed", "stopped", "cancelled", "failed"):
            row.doing = found.state

    def _ended(self, row: Row, code: int, said: str | None) -> tuple[Doing, str | None]:
        """Of a run that is not over.

        :param said: its process's last words
        """
        if code == Interrupted.exit_code or (code < 0 and self._stops):
            return "interrupted", None
        if code == Fenced.exit_code:
            return "fenced", said
        if code < 0:
            return "failed", f"ended by {signal.Signals(-code).name}"
        return "failed", shortly(row.standing.reason) or said or f"exit code {code}"

    def _give_up(self, row: Row) -> None:
        """It has failed so often that it is not tried again: the head says so to everybody."""
        last = shortly(row.standing.reason)
        attempts = f"{row.standing.failures} attempts without a new commit; the last: {last}"
        row.doing, row.reason = "failed", f"{attempts}; --continue tries again"
        store = run_store(self._root, row.cell.run_id)
        with contextlib.suppress(Fenced, StoreError):  # somebody else has it, and decides
            conclude(store, "failed", attempts, session=_session(store), owner=f"engine-{os.getpid()}")
            row.standing = dataclasses.replace(row.standing, outcome="failed")

    # -------------------------------------------------------------------------------------------------------- limits

    def _look_at_limits(self) -> None:
        """The limits over all runs. The runs that are trained look at the file once a second, and end as stopped."""
        if self._limit is not None:
            return
        limits = self._experiment.limits
        hours, dollars = total(row.standing for row in self.rows)
        if limits.hours is not None:
            hours += sum(self._place.hours(row) for row in self.rows)
        name = f"limits of the experiment {self._experiment.experiment}"
        if limits.hours is not None and hours >= limits.hours:
            self._limit = f"{name}: {limits.hours} hours are used"
        elif limits.dollars is not None and (dollars or 0.0) >= limits.dollars:
            self._limit = f"{name}: {limits.dollars} dollars are spent"
        if self._limit is None:
            return
        log.info("%s", self._limit)
        for row in self.rows:
            if row.child is not None:
                self._place.end(row, self._limit)

    # ------------------------------------------------------------------------------------------------------- stopping

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, _: Any) -> None:
            self._hurries = number == signal.SIGINT and self._stops > 0
            self._stops += 1

        before = {number: signal.signal(number, stop) for number in _STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self) -> None:
        """What somebody has asked for, to the children. A second Ctrl-C says what it says to a single run: leave at the
        last commit; a third one ends what does not listen.
        """
        if self._passed_on == self._stops:
            return
        self._passed_on = self._stops
        number = signal.SIGINT if self._hurries else signal.SIGTERM
        for row in self.rows:
            if row.child is None:
                continue
            row.doing = "stopping"
            if self._stops > 2:
                row.child.kill()
            elif os.name != "nt":  # there the console sends Ctrl-C to all, and any other signal would end them at once
                row.child.send_signal(number)

    def _end_children(self) -> None:
        """After an error of this process's own: they stop with a commit."""
        left = [row.child for row in self.rows if row.child is not None]
        for child in left:
            child.send_signal(signal.SIGTERM)
        for child in left:
            child.wait()

    def _say_how_it_ended(self) -> None:
        counts = {doing: sum(row.doing == doing for row in self.rows) for doing in ("failed", "fenced", "interrupted")}
        if self._stops or (counts["interrupted"] and not counts["failed"] and self._limit is None):
            raise Interrupted("interrupted: the same command goes on from each run's last commit")
        bad = [row for row in self.rows if row.doing in ("failed", "fenced")]
        if self._trials is not None:  # a trial that has failed is told of, and is no reason to try again
            self._trials.check_end()
            bad = [row for row in bad if not self._trials.is_over(row.cell.run_id)]
        if bad:
            first = bad[0]
            others = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
            error = f"{first.cell.run_id} {first.doing}{others}: {(first.reason or '')[:_REASON_CHARACTERS]}"
            raise TrainCloudError(error)

    def _row(self, found: Standing) -> Row:
        row = Row(found.cell, found, self._folder / found.cell.run_id)
        self._enter(row, found)
        return row


def read_signed(config: RunFile) -> None:
    """What is read here of a run has the key that its checkpoints are signed with."""
    if config.signing_key is not None:
        os.environ.setdefault(signing.VARIABLE, config.signing_key)


def _session(store: ObjectStore) -> int:
    read = read_head(store)
    return read[0].session if read is not None else 0
