"""What a run has cost, session by session, from what the sessions themselves have recorded. Pure.

A session costs its machine's hours times the price that was read at its start: the machine's, its volume's and its
public address's. A price that could not be read stays unknown: nothing is made up for it, and the sum says which
sessions it leaves out. Left out altogether: traffic, S3, the minute from the launch to the first word of a boot, and
the one from the last commit to the end. A spot machine that AWS itself takes in its first hour is free; it is counted
all the same, since only the bill tells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from train_cloud.run.session import SessionRecord

#: A worker reports at each commit, and where those are far apart every minute (runtime/train.py).
_REPORTED_SECONDS = 70.0


class SessionCost(BaseModel):
    """Of one session. Money is in US dollars; None stands for unknown."""

    model_config = ConfigDict(frozen=True)

    session: int
    hours: float
    """Of the machine, from its boot's first word to the last sign of the session."""
    hourly: float | None
    """Dollars an hour of the machine alone, as read at the session's start."""
    dollars: float | None
    """Of the machine, and of volume and address as far as they are known; None where the machine's is not."""
    machine_dollars: float | None
    volume_dollars: float | None
    address_dollars: float | None
    """Of a public IPv4 address; 0 where there was none."""
    on_demand_dollars: float | None
    """What the same hours on the same machine type would have cost without interruptions."""
    repeated_timesteps: int
    """Steps whose work was lost, and done again by a later process: at least so many, where the session could not say
    how far it had come."""
    repeated_at_most: int | None
    """About the most that it can have been, by its pace and by what its commits left at risk: the same number where it
    is known; None where nothing is known of either."""
    repeated_dollars: float | None
    """The part of ``dollars`` that went into ``repeated_timesteps``."""
    because: str | None
    """Why something is unknown."""


class Cost(BaseModel):
    """Of a run so far."""

    model_config = ConfigDict(frozen=True)

    sessions: tuple[SessionCost, ...]
    hours: float
    dollars: float | None
    """Of the sessions whose price is known; None where none is."""
    machine_dollars: float | None
    volume_dollars: float | None
    address_dollars: float | None
    """The parts of ``dollars``, each of the sessions where it is known."""
    saved_dollars: float | None
    """Against the same hours on demand, over the sessions where both prices are known; None where none is."""
    repeated_dollars: float | None
    """The part of ``dollars`` that went into steps that were done again."""
    unknown: tuple[int, ...]
    """Numbers of the sessions that ``dollars`` leaves out."""
    without_volume: tuple[int, ...]
    """Numbers of the others whose volume it leaves out."""
    without_address: tuple[int, ...]
    """Numbers of the others whose public address it leaves out."""


def cost(records: Sequence[SessionRecord], reached: Mapping[int, int] | None = None) -> Cost:
    """Of all sessions of a run, in their order.

    :param reached: session → the last step that it took, where somebody knows it better than the records
    """
    known = {**reached_since(records), **(reached or {})}
    sessions = tuple(
        _session(record, after, known.get(record.number))
        for record, after in itertools.zip_longest(records, records[1:])
    )
    both = [
        session.on_demand_dollars - session.dollars
        for session in sessions
        if session.dollars is not None and session.on_demand_dollars is not None
    ]
    counted = [session for session in sessions if session.dollars is not None]
    return Cost(
        sessions=sessions,
        hours=sum(session.hours for session in sessions),
        dollars=_sum(session.dollars for session in sessions),
        machine_dollars=_sum(session.machine_dollars for session in counted),
        volume_dollars=_sum(session.volume_dollars for session in counted),
        address_dollars=_sum(session.address_dollars for session in counted),
        saved_dollars=_sum(both),
        repeated_dollars=_sum(session.repeated_dollars for session in sessions),
        unknown=tuple(session.session for session in sessions if session.dollars is None),
        without_volume=tuple(session.session for session in counted if session.volume_dollars is None),
        without_address=tuple(session.session for session in counted if session.address_dollars is None),
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


def repeated(session: SessionCost) -> str:
    """How many steps were done again, in words: a number, or a range where the session died without a word."""
    return in_words(session.repeated_timesteps, session.repeated_at_most)


def in_words(least: int, most: int | None) -> str:
    """A number of steps that is known to lie between these."""
    if most is None:
        return f"at least {least:,}"
    return f"{least:,}" if most == least else f"{least:,} to about {most:,}"


def _session(record: SessionRecord, after: SessionRecord | None, reached: int | None) -> SessionCost:
    known = price(record)
    on_demand = known.get("on_demand")
    hourly = known.get("spot") if known.get("life_cycle", "spot") == "spot" else on_demand
    spent = hours(record)
    machine, volume, address = (
        None if each is None else each * spent for each in (hourly, known.get("volume"), known.get("address"))
    )
    others = (volume or 0.0) + (address or 0.0)
    dollars = None if machine is None else machine + others
    repeated, most, steps = _repeated(record, after, reached)
    return SessionCost(
        session=record.number,
        hours=spent,
        hourly=hourly,
        dollars=dollars,
        machine_dollars=machine,
        volume_dollars=volume,
        address_dollars=address,
        on_demand_dollars=None if on_demand is None else on_demand * spent + others,
        repeated_timesteps=repeated,
        repeated_at_most=most,
        repeated_dollars=None if dollars is None else dollars * repeated / steps if repeated else 0.0,
        because=known.get("because") or (None if known else "no price was recorded"),
    )


def _repeated(record: SessionRecord, after: SessionRecord | None, reached: int | None) -> tuple[int, int | None, int]:
    """Steps of one session that were done again: at least, at most (None: unknown), and steps done in it."""
    progress, end = record.progress or {}, record.end or {}
    first = end.get("first_timestep", progress.get("first_timestep", 0)) or 0
    last = max(end.get("last_timestep") or 0, progress.get("timesteps") or 0)
    exact = end_stands(record) or record.progress is None  # which is written before the first step
    if reached is not None:
        last, exact = max(last, reached), True
    within = max(progress.get("repeated") or 0, end.get("repeated") or 0)  # by restarts of its process
    steps = max(0, last - first) + within
    resumed = None
    if after is not None:
        resumed = {**(after.progress or {}), **(after.end or {})}.get("first_timestep")
    if resumed is None:  # nobody went on, or where is not known yet
        return min(steps, within), min(steps, within), steps
    least = min(steps, max(0, last - resumed) + within)
    if exact:
        return least, least, steps
    most = _at_most(record)
    return least, None if most is None else max(least, most - resumed + within), steps


def reached_since(records: Sequence[SessionRecord]) -> dict[int, int]:
    """Session → the last step that it took, as a later one on the same disk has found it."""
    found: dict[int, int] = {}
    for record in records:
        seen = record.start.get("predecessor") or {}
        if isinstance(seen.get("session"), int) and isinstance(seen.get("timesteps"), int):
            found[seen["session"]] = seen["timesteps"]
    return found


def end_stands(record: SessionRecord) -> bool:
    """Whether it has said how it ended, and no later process of it was heard of since."""
    ended, heard = (record.end or {}).get("seconds"), (record.progress or {}).get("seconds")
    return ended is not None and (heard is None or heard <= ended)


def _at_most(record: SessionRecord) -> int | None:
    """About the last step that a session can have taken which was heard of no more: the next report was due within a
    minute, and the next commit within as many steps as its commits left at risk so far.
    """
    progress, run_file = record.progress or {}, record.start.get("run_file") or {}
    speed, committed, last = (progress.get(name) for name in ("steps_per_second", "committed_timesteps", "timesteps"))
    bounds = []
    if speed and last is not None:
        bounds.append(last + math.ceil(speed * _REPORTED_SECONDS))
    interval = run_file.get("save_frequency")
    at_risk = max(progress.get("at_risk") or 0, interval if isinstance(interval, int) else 0)
    if committed is not None and at_risk:
        during = (speed or 0.0) * (progress.get("commit_seconds") or 0.0)
        bounds.append(committed + at_risk + math.ceil(during))
    return max(last or 0, min(bounds)) if bounds else None


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
