"""What a run has cost, session by session, from what the sessions themselves have recorded. Pure.

A session costs its machine's hours times the price that was read at its start. A price that could not be read stays
unknown: nothing is made up for it, and the sum says which sessions it leaves out. Left out altogether: the volume,
traffic, S3, the minute from the launch to the first word of a boot, and the one from the last commit to the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from train_cloud.run.session import SessionRecord


class SessionCost(BaseModel):
    """Of one session. Money is in US dollars; None stands for unknown."""

    model_config = ConfigDict(frozen=True)

    session: int
    hours: float
    """Of the machine, from its boot's first word to the last sign of the session."""
    hourly: float | None
    """Dollars an hour, as read at the session's start."""
    dollars: float | None
    on_demand_dollars: float | None
    """What the same hours on the same machine type would have cost without interruptions."""
    repeated_timesteps: int
    """Steps whose work was lost, and done again by the next session."""
    repeated_dollars: float | None
    """The part of ``dollars`` that went into them."""
    because: str | None
    """Why something is unknown."""


class Cost(BaseModel):
    """Of a run so far."""

    model_config = ConfigDict(frozen=True)

    sessions: tuple[SessionCost, ...]
    hours: float
    dollars: float | None
    """Of the sessions whose price is known; None where none is."""
    saved_dollars: float | None
    """Against the same hours on demand, over the sessions where both prices are known; None where none is."""
    repeated_dollars: float | None
    """The part of ``dollars`` that went into steps that were done again."""
    unknown: tuple[int, ...]
    """Numbers of the sessions that ``dollars`` leaves out."""


def cost(records: Sequence[SessionRecord]) -> Cost:
    """Of all sessions of a run, in their order."""
    sessions = tuple(_session(record, after) for record, after in itertools.zip_longest(records, records[1:]))
    both = [
        session.on_demand_dollars - session.dollars
        for session in sessions
        if session.dollars is not None and session.on_demand_dollars is not None
    ]
    return Cost(
        sessions=sessions,
        hours=sum(session.hours for session in sessions),
        dollars=_sum(session.dollars for session in sessions),
        saved_dollars=_sum(both),
        repeated_dollars=_sum(session.repeated_dollars for session in sessions),
        unknown=tuple(session.session for session in sessions if session.dollars is None),
    )


def hours(record: SessionRecord) -> float:
    """Of the session's machine, as far as is known: each by its own clock, to the last sign of it."""
    signs = [float(sign.get("seconds", 0.0)) for sign in (record.progress, record.end) if sign is not None]
    return (setup_seconds(record.start) + max(signs, default=0.0)) / 3600


def setup_seconds(start: Mapping[str, Any]) -> float:
    """From the boot's first word to the session's start; 0 where nothing is known of it."""
    return float(start.get("setup_seconds") or 0.0)


def price(record: SessionRecord) -> Mapping[str, Any]:
    """As ``instance.price.Price`` was recorded; the later word counts, of a price that could not be read at first."""
    found: Mapping[str, Any] = (record.progress or {}).get("price") or record.start.get("price") or {}
    return found


def _session(record: SessionRecord, after: SessionRecord | None) -> SessionCost:
    known = price(record)
    on_demand = known.get("on_demand")
    hourly = known.get("spot") if known.get("life_cycle", "spot") == "spot" else on_demand
    spent = hours(record)
    dollars = None if hourly is None else hourly * spent
    repeated, steps = _repeated(record, after)
    return SessionCost(
        session=record.number,
        hours=spent,
        hourly=hourly,
        dollars=dollars,
        on_demand_dollars=None if on_demand is None else on_demand * spent,
        repeated_timesteps=repeated,
        repeated_dollars=None if dollars is None else dollars * repeated / steps if repeated else 0.0,
        because=known.get("because") or (None if known else "no price was recorded"),
    )


def _repeated(record: SessionRecord, after: SessionRecord | None) -> tuple[int, int]:
    """Steps done again, and steps done, in one session; as far as was reported."""
    told = {**(record.progress or {}), **(record.end or {})}
    first, last = told.get("first_timestep", 0), told.get("last_timestep", told.get("timesteps", 0))
    steps = max(0, last - first)
    resumed = None if after is None else {**(after.progress or {}), **(after.end or {})}.get("first_timestep")
    if resumed is None:  # nobody went on, or where is not known yet
        resumed = last
    return min(steps, max(0, last - resumed)), steps


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
