"""A pipeline as the engine sees it: which runs may begin, as those before them end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from train_cloud.config import Cell
from train_cloud.config.experiment import TotalLimits
from train_cloud.config.pipeline import PipelineConfig
from train_cloud.errors import CorruptCheckpoint, InputError, StoreError, TrainCloudError
from train_cloud.experiments.engine import read_signed
from train_cloud.experiments.pipeline.check import check
from train_cloud.experiments.pipeline.files import write
from train_cloud.experiments.pipeline.progress import BAD, Changed, Derivation, SessionStanding, State
from train_cloud.experiments.standing import run_store
from train_cloud.operations.delete import delete
from train_cloud.platforms.here import here

if TYPE_CHECKING:
    from train_cloud.experiments.engine import Row

log = logging.getLogger(__name__)

_REASON_CHARACTERS = 300


class Sessions:
    """Both what is trained and where further runs come from.

    :param start_from: name of the session to begin with; those before it have to be completed
    :param rerun: sessions that are not what their runs were begun with are deleted and trained anew, with all that
        began with them; of ``start_from`` also that one
    :param resume: sessions that were cancelled or have failed for good are trained on
    :param beside: a local folder that gets the files for readers too
    """

    def __init__(
        self,
        pipeline: PipelineConfig,
        root: str,
        *,
        start_from: str | None = None,
        rerun: bool = False,
        resume: bool = False,
        beside: Path | None = None,
    ) -> None:
        self._pipeline, self._root, self._beside = pipeline, root, beside
        self._start_from, self._rerun, self._resume = start_from, rerun, resume
        self._wanted = {session.name for session in pipeline.sessions}
        if start_from is not None:
            self._wanted = {
                start_from,
                *(one.name for one in pipeline.sessions if start_from in pipeline.before(one.name)),
            }
            pipeline.session(start_from)
        self._derivation = Derivation(pipeline, root, resume=resume)
        self._failed: dict[str, tuple[State, str]] = {}
        """Session → how it has ended here, and why."""
        self._cells: list[Cell] = []
        self._news = False
        """Whether a session has ended since it was looked what that lets begin."""
        self._given: set[str] = set()
        self._over: set[str] = set()
        self._rows: Sequence[Row] = ()
        self.found: list[SessionStanding] = []
        self.waits = False

    # -------------------------------------------------------------------------------------------- what is to be trained

    @property
    def experiment(self) -> str:
        return self._pipeline.id

    @property
    def cells(self) -> Sequence[Cell]:
        """Those that are completed, for whoever shows them, and those that may begin."""
        return self._cells

    @property
    def max_attempts(self) -> int:
        return self._pipeline.written.max_attempts

    @property
    def threads(self) -> int | None:
        return self._pipeline.threads

    @property
    def limits(self) -> TotalLimits:
        return TotalLimits()

    # ------------------------------------------------------------------------------------------- where runs come from

    def prepare(self) -> None:
        """:raises InputError: a session is not what its run was begun with; what it inherits from is not completed"""
        for session in self._pipeline.sessions:
            here().secrets(session.config)
            read_signed(session.config)
        if self._rerun and self._start_from is not None:
            self._delete(self._start_from)
        while True:
            try:
                self.found = self._derivation.derive()
                break
            except Changed as error:
                if not self._rerun:
                    raise
                self._delete(error.session)
        self._check_start()
        self._cells = [one.cell for one in self.found if one.state == "completed"]
        self._over = {cell.run_id for cell in self._cells}
        more = self.more()
        self._cells += more
        self._given = {cell.run_id for cell in more}

    def begin(self, folder: Path) -> None:
        """:raises Refused: nothing has begun yet, and a session cannot be trained"""
        if all(one.run is None or one.run.state == "new" for one in self.found):
            log.info("each session's model is built once, before the first is trained")
            check(self._pipeline, ())
        write(self._root, self._pipeline, self.found, self._beside)

    def leave(self) -> None:
        try:
            self.found = self._derivation.derive(self._failed)
        except (StoreError, CorruptCheckpoint, InputError) as error:
            log.warning("how the pipeline stands is not known: %s", error)
        write(self._root, self._pipeline, self.found, self._beside)

    def of_others(self) -> set[str]:
        return set()

    def more(self) -> Sequence[Cell]:
        if not self._pipeline.written.continue_on_error and any(one.state in BAD for one in self._mine()):
            return ()
        found = [one.cell for one in self._mine() if one.state == "open" and one.run_id not in self._given]
        self._given |= {cell.run_id for cell in found}
        return found

    def look(self, rows: list[Row]) -> Mapping[str, str]:
        self._rows = rows
        for row in rows:
            if row.child is not None or row.cell.run_id in self._over or row.doing in ("waiting", "elsewhere"):
                continue
            again = row.doing == "failed" and row.standing.state != "failed"
            if again and not row.refused and row.attempts < self.max_attempts:
                row.doing = "waiting"  # at once: all others wait for it
                continue
            if row.doing in ("failed", "stopped", "cancelled"):
                self._failed[row.cell.levels["session"]] = row.doing, row.reason or row.doing
            if row.doing in ("failed", "completed", "stopped", "cancelled"):
                self._over.add(row.cell.run_id)
                self._news = True
        if self._news:
            self.found = self._derivation.derive(self._failed)
            self._news = False
            write(self._root, self._pipeline, self.found, self._beside)
            self._tell()
        return {}

    def check_end(self) -> None:
        fenced = next((row for row in self._rows if row.doing == "fenced"), None)
        if fenced is not None:
            raise TrainCloudError(f"{fenced.cell.run_id} fenced: {(fenced.reason or '')[:_REASON_CHARACTERS]}")
        bad = [one for one in self._mine() if one.state in BAD and one.state != "skipped"]
        if bad:
            others = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
            why = f": {(bad[0].reason or '')[:_REASON_CHARACTERS]}" if bad[0].reason else ""
            raise TrainCloudError(f"session {bad[0].name} {in_words(bad[0])}{others}{why}")

    def is_over(self, run_id: str) -> bool:
        return True

    # ------------------------------------------------------------------------------------------------------------------

    def _mine(self) -> list[SessionStanding]:
        return [one for one in self.found if one.name in self._wanted]

    def _check_start(self) -> None:
        if self._start_from is None:
            return
        by_name = {one.name: one for one in self.found}
        for session in self._pipeline.in_order():
            name = session.name
            near = [*session.after, *sorted(self._pipeline.before(name))] if name in self._wanted else []
            for before in [one for one in near if one not in self._wanted]:
                if by_name[before].state != "completed":
                    comes = "it" if name == self._start_from else name
                    fix = f"{comes} comes after {before}, which is not completed in this store: begin with that one"
                    raise InputError("--start-from", self._start_from, fix)

    def _delete(self, name: str) -> None:
        """A session and all that began with it."""
        for each in (name, *sorted(self._pipeline.beginning_with(name))):
            for run_id in self._pipeline.session(each).run_ids:
                if has_begun(self._root, run_id):
                    log.info("%s is deleted: %d objects", run_id, delete(self._root, run_id))
        self._derivation = Derivation(self._pipeline, self._root, resume=self._resume)

    def _tell(self) -> None:
        for one in self._mine():
            if one.attempts and one.state == "open" and one.run_id not in self._given:
                log.info("session %s does not meet its criteria: attempt %d of %d follows", one.name, one.attempts + 1,
                         len(one.session.attempts))  # fmt: skip


def has_begun(root: str, run_id: str) -> bool:
    """Whether anything is stored of a run."""
    return next(iter(run_store(root, run_id).list()), None) is not None


def in_words(one: SessionStanding) -> str:
    """How a session that does not go on stands, as what follows its name."""
    if one.state == "unmet":
        attempts = len(one.session.attempts)
        return f"does not meet its criteria{'' if attempts == 1 else f' in {attempts} attempts'}"
    return {"failed": "has failed", "stopped": "was stopped", "cancelled": "was cancelled"}.get(one.state, one.state)
