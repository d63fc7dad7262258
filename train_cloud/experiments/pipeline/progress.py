"""How each session of a pipeline stands, derived from the runs' heads and evaluations; nothing is kept beside them.

So whatever was killed, a session that is completed is never trained again, and the same command always continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from train_cloud.config import Cell, RunFile
from train_cloud.config.pipeline import PipelineConfig, PipelineSession
from train_cloud.errors import InputError
from train_cloud.experiments.pipeline.criteria import Judged, judge
from train_cloud.experiments.pipeline.handover import pin
from train_cloud.experiments.standing import Standing, run_store, standing
from train_cloud.run.head import read_head
from train_cloud.run.session import read_sessions

State = Literal["waiting", "open", "completed", "unmet", "failed", "stopped", "cancelled", "skipped"]
#: A pipeline ends with these, unless it continues on error.
BAD: tuple[State, ...] = ("unmet", "failed", "stopped", "cancelled", "skipped")
#: Beside the identity, what a session's result depends on.
_COMPARED = ("total_timesteps", "schedule_total")


class Changed(InputError):
    """A session is not what its run was begun with.

    :ivar session: its name
    """

    def __init__(self, session: str, field: str, value: object, fix: str) -> None:
        self.session = session
        super().__init__(field, value, fix)

    def __reduce__(self) -> tuple[type[Changed], tuple[str, str, object, str]]:  # type: ignore[override]
        return type(self), (self.session, self.field, self.value, self.fix)


@dataclass(frozen=True)
class SessionStanding:
    """Of one session."""

    session: PipelineSession
    state: State
    """``waiting`` for others. ``open``: it is to be trained now. ``unmet``: trained, and no attempt has met its
    criteria. ``failed``, ``stopped`` (at a limit of its own), ``cancelled``: as its run. ``skipped``: what it waits for
    will not come."""
    config: RunFile | None = None
    """Run file of the attempt that counts; None while what it begins with is not known."""
    run: Standing | None = None
    """Of that attempt's run."""
    judged: Judged | None = None
    attempts: int = 0
    """That were completed without meeting the criteria."""
    reason: str | None = None

    @property
    def name(self) -> str:
        return self.session.name

    @property
    def run_id(self) -> str:
        """Of the attempt that counts."""
        return self.session.run_id if self.config is None else self.config.run_id

    @property
    def cell(self) -> Cell:
        assert self.config is not None
        return Cell(self.config.run_id, {"session": self.name}, self.config.seed, self.config)


class Derivation:
    """Asks the store; what is completed is asked for once.

    :param resume: sessions that were cancelled or have failed for good are open again
    :param check: whether the sessions are still what their runs were begun with
    """

    def __init__(self, pipeline: PipelineConfig, root: str, *, resume: bool = False, check: bool = True) -> None:
        self._pipeline, self._root = pipeline, root
        self._resume, self._check = resume, check
        self._done: dict[str, SessionStanding] = {}

    def derive(self, failed: Mapping[str, tuple[State, str]] | None = None) -> list[SessionStanding]:
        """In an order in which each comes after those that it waits for.

        :param failed: sessions that will not be tried again here, how they stand, and why
        :raises Changed: a session is not what its run was begun with
        """
        found: dict[str, SessionStanding] = {}
        for session in self._pipeline.in_order():
            one = self._done.get(session.name) or self._one(session, found)
            if one.state == "open" and failed is not None and session.name in failed:
                one = replace(one, state=failed[session.name][0], reason=failed[session.name][1])
            if one.state == "completed":
                self._done[session.name] = one
            found[session.name] = one
        return list(found.values())

    def _one(self, session: PipelineSession, found: Mapping[str, SessionStanding]) -> SessionStanding:
        held = self._held_back(session, found)
        if held is not None:
            return held
        last: tuple[RunFile, Standing, Judged] | None = None
        for number in range(len(session.attempts)):
            config = self._pinned(session, number, found)
            cell = Cell(config.run_id, {"session": session.name}, config.seed, config)
            one = self._standing(session, cell)
            if one.state != "completed":
                state: State = "open" if one.state == "new" else one.state
                return SessionStanding(session, state, config, one, attempts=number, reason=one.reason)
            judged = judge(run_store(self._root, config.run_id), session.criteria, one.timesteps)
            if judged.met is not False:
                state = "completed" if judged.met else "failed"
                return SessionStanding(session, state, config, one, judged, number, judged.reason)
            last = config, one, judged
        assert last is not None
        config, one, judged = last
        return SessionStanding(session, "unmet", config, one, judged, len(session.attempts), judged.reason)

    def _held_back(self, session: PipelineSession, found: Mapping[str, SessionStanding]) -> SessionStanding | None:
        """Where others come first, or will never."""
        missing = [found[name] for name in session.after if found[name].state != "completed"]
        source = session.begins_with
        if not missing and (source is None or found[source].state == "completed"):
            return None
        bad = [one for one in missing if one.state in BAD]
        if self._pipeline.written.continue_on_error and len(bad) == len(missing):
            if source is None or found[source].state == "completed":
                return None
            if found[source].state in BAD:
                bad = [found[source]]
        if self._check and missing and not bad and read_head(run_store(self._root, session.run_id)) is not None:
            fix = f"it has begun, and {missing[0].name} before it is not completed any more: {_RERUN}"
            raise Changed(session.name, "session", session.name, fix)
        if bad:
            return SessionStanding(session, "skipped", reason=f"{bad[0].name} is {bad[0].state}")
        return SessionStanding(session, "waiting", reason=f"after {', '.join(one.name for one in missing)}")

    def _pinned(self, session: PipelineSession, attempt: int, found: Mapping[str, SessionStanding]) -> RunFile:
        """Its run file, with the checkpoint that it begins with."""
        initial: dict[str, Any] | None = None
        if session.begins_with is not None:
            source = found[session.begins_with].config
            assert source is not None
            initial = pin(self._root, source, session.choice)
        return session.run_file(attempt, initial=initial)

    def _standing(self, session: PipelineSession, cell: Cell) -> Standing:
        attempts = self._pipeline.written.max_attempts
        try:
            one = standing(self._root, cell, attempts, train_on=self._resume, check=self._check, keep_completed=True)
        except InputError as error:
            why = error.fix.partition(": restore that")[0].partition(": run ")[0]
            raise Changed(session.name, error.field, error.value, f"{why}: restore that, or {_RERUN}") from error
        if self._check and one.outcome == "completed":
            self._refuse_another_length(session, cell.config, one)
        return one

    def _refuse_another_length(self, session: PipelineSession, config: RunFile, one: Standing) -> None:
        records = read_sessions(run_store(self._root, config.run_id))
        before = records[-1].start.get("run_file") if records else None
        if not isinstance(before, dict):
            return
        for field in _COMPARED:
            now = getattr(config, field)
            if field in before and before[field] != now:
                fix = f"it was completed with {before[field]}: restore that, or {_RERUN}"
                raise Changed(session.name, f"{config.run_id}: {field}", now, fix)


_RERUN = "add --rerun, which trains it and what began with it anew"
