"""How a run stands, read from its head and its sessions' records.

An outcome is stored; *running*, *interrupted*, *starting* and *waiting* are derived here, when somebody looks, from who
reported what and when. They are for people: nothing in the worker decides by them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from train_cloud.checkpoint import Manifest, read_manifest
from train_cloud.checkpoint.survey import cure, refuse
from train_cloud.config.load import read_yaml
from train_cloud.errors import (
    CorruptCheckpoint,
    HeadMissing,
    InputError,
    ObjectMissing,
    StoreForbidden,
    TrainCloudError,
)
from train_cloud.run import layout
from train_cloud.run.cost import Cost, cost, reached_since
from train_cloud.run.head import Head, read_head
from train_cloud.run.overrides import read_overrides
from train_cloud.run.run_deadline import OUTER_STOP, read_deadline
from train_cloud.run.session import SessionRecord, is_gone, read_sessions
from train_cloud.store import FileStore, ObjectStore, open_store
from train_cloud.store.foreign import ignore

#: A worker reports at each commit. Silent for this long beyond two intervals of commits, it is not taken to be at work.
SILENCE = timedelta(minutes=5)
#: From the boot to the first session: driver, Python, torch.
SETTING_UP = timedelta(minutes=30)

State = Literal["completed", "stopped", "failed", "running", "starting", "interrupted", "waiting", "damaged"]

Evidence = Literal["proved", "not contradicted", "no"]

#: How a session ends that the next one goes on from, though nobody wanted it to.
_INTERRUPTED = {"notice", "lost", "failure"}
_PARALLEL = 32

_RUN_URL = re.compile(r"(?P<root>.*)/runs/(?P<run_id>[a-z0-9-]+)")


class SessionStatus(BaseModel):
    """One boot's work on the run."""

    model_config = ConfigDict(frozen=True)

    session: int
    instance_id: str
    started: str | None
    first_timestep: int | None
    last_timestep: int | None
    """The last that was reported; of a session that died without a word, later steps may have been lost."""
    ended: str | None
    """The last sign of it, once it is over."""
    instance_type: str | None
    availability_zone: str | None
    ended_by: str | None
    """As the session wrote it; ``notice`` or ``lost`` where it could write nothing; None while it runs."""
    notices: list[dict[str, Any]]
    exact: bool | None
    """Whether it went on, and can be gone on from, bit for bit; None before it knows."""
    exact_evidence: Evidence | None
    """What that rests on; see docs/exactness.md."""
    because: str | None
    not_kept: list[str] | None = None
    """What its checkpoints lack, ``path: reason`` each; None before it knows."""


class CheckpointStatus(BaseModel):
    """A checkpoint that is preserved."""

    model_config = ConfigDict(frozen=True)

    timesteps: int
    whole: bool
    """With its replay buffer, where the algorithm has one: only then a run can go back to it."""
    episode_return: float | None
    """Mean of the last 100 episodes before it."""


class RunStatus(BaseModel):
    """What ``train-cloud status --json`` prints."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    experiment: str | None
    """The group that it belongs to."""
    url: str
    state: State
    reason: str | None
    timesteps: int
    """The last that was reported."""
    committed_timesteps: int
    total_timesteps: int | None
    steps_per_second: float | None
    seconds_left: float | None
    since: str | None
    """When the state began, as far as the records tell; ISO 8601."""
    episode_return: float | None
    """Of a run in an experiment: mean return of the last 100 episodes at the newest checkpoint."""
    unit: str = "timesteps"
    """What is counted: ``steps`` of a PyTorch loop are its iterations."""
    score: dict[str, Any] | None = None
    """Of a PyTorch loop whose run file names one: ``name``, ``direction``, and ``best`` so far (None: none yet)."""
    attempts: int
    """Failures in a row without a new commit."""
    exact: bool | None
    """False as soon as one session was not; None before any knows."""
    exact_evidence: Evidence | None
    """What that rests on, in the newest session that knows; see docs/exactness.md."""
    because: str | None
    not_kept: list[str] | None = None
    """What the checkpoints of the newest session that knows lack, ``path: reason`` each."""
    closed: str | None
    """Since when the group of a run without an outcome has been taken to 0 from outside, hour by hour, because its
    max_runtime_hours are over; None where it has not."""
    suspended: str | None = None
    """Why the group of a run that has no worker launches none, where it could be asked; None in a list of runs."""
    sessions: list[SessionStatus]
    interruptions: int
    """Sessions that ended before the run did and not by a person's or a limit's will."""
    repeated_timesteps: int
    """Steps that were lost and done again, over all sessions: at least so many, where one died without a word."""
    repeated_at_most: int | None
    """About the most that it can have been: the same number where all is known; None where too little is."""
    cost: Cost
    evaluation: dict[str, Any] | None
    """The last one: ``timesteps``, ``mean_return``, ``success_rate``, and ``warnings`` if there are any, and
    ``below_cloned`` where it is worse than the cloned policy's mean return, which that gives; or ``failed`` and why."""
    curriculum: dict[str, Any] | None = None
    """Where it stands, at the newest checkpoint: ``stage``, ``name``, ``names``, ``since``, the ``episodes`` that count
    with their ``success_rate`` and ``mean_return``, episodes ``played`` and ``succeeded`` in each stage, and the newest
    ``changes``, ``[timesteps, stage]`` each. None without a curriculum; see docs/curriculum.md.
    """
    pretraining: dict[str, Any] | None = None
    """Figures of its last epoch (docs/pretraining.md); None where there is none."""
    hardware: dict[str, Any] | None = None
    """What ``hardware: auto`` chose when the run began: ``n_envs``, ``batch_size``, ``amp``, for which ``cores`` and
    ``gpu``, and ``because`` of each. None without it."""
    ranks: int = 1
    """Processes that train it together (``data_parallel``); its timesteps and their speed count those of all."""
    not_exported: dict[str, Any] | None
    """Checkpoints whose models could not be written: ``timesteps`` and ``because``. The next session tries again."""
    checkpoints: list[CheckpointStatus] | None
    """The preserved ones, newest first; None where nobody asked for them."""
    damaged: str | None
    """What is wrong with the newest checkpoint, as far as its manifest tells; of a damaged run, with its head; and what
    to do."""


def split_run_url(url: str) -> tuple[str, str] | None:
    """Root and run id of the URL of a run's folder; None for any other."""
    match = _RUN_URL.fullmatch(url.rstrip("/"))
    return (match["root"], match["run_id"]) if match else None


def run_ids(root: str) -> list[str]:
    """The runs below a store root, in alphabetical order."""
    store = open_store(root)
    assert isinstance(store, FileStore)
    names = store.folders("runs/")
    ignore(root, (f"runs/{name}" for name in names if not layout.is_run_id(name)), "no run's folder")
    return [name for name in names if layout.is_run_id(name)]


def statuses(root: str, run_ids: Sequence[str]) -> list[RunStatus]:
    """The status of each; all are asked for at once, since nearly all of the time is waiting. One that is damaged, or
    may not be read, is in the list like the others; a folder in which nothing is a run's is not.
    """
    store = open_store(root)
    assert isinstance(store, FileStore)

    def one(run_id: str) -> RunStatus | None:
        below = store.within(f"runs/{run_id}")
        try:
            return _status(below, root, run_id)
        except InputError:
            ignore(root, [f"runs/{run_id}"], "no run's folder")
            return None
        except (CorruptCheckpoint, StoreForbidden) as error:
            return _unreadable(below, run_id, error)

    with ThreadPoolExecutor(_PARALLEL) as threads:
        return [found for found in threads.map(one, run_ids) if found is not None]


def _unreadable(store: ObjectStore, run_id: str, error: Exception) -> RunStatus:
    """What is left to say of a run whose head or records cannot be read."""
    why = " ".join(str(error).split())
    return RunStatus(
        run_id=run_id,
        experiment=None,
        url=store.url,
        state="damaged",
        reason=why,
        timesteps=0,
        committed_timesteps=0,
        total_timesteps=None,
        steps_per_second=None,
        seconds_left=None,
        since=None,
        episode_return=None,
        attempts=0,
        exact=None,
        exact_evidence=None,
        because=None,
        closed=None,
        sessions=[],
        interruptions=0,
        repeated_timesteps=0,
        repeated_at_most=0,
        cost=cost([]),
        evaluation=None,
        pretraining=None,
        not_exported=None,
        checkpoints=None,
        damaged=why,
    )


def run_status(
    root: str,
    run_id: str,
    *,
    at: datetime | None = None,
    checkpoints: bool = False,
    reached: Mapping[int, int] | None = None,
) -> RunStatus:
    """The status of one run, by a number of requests that depends on how many sessions it has had and on nothing else.

    :param at: the reader's time, by default now
    :param checkpoints: also which checkpoints there are
    :param reached: session → the last step that it took, where somebody knows it better than the run's records
    :raises InputError: nothing is stored under this run id
    :raises CorruptCheckpoint: the head cannot be read
    """
    store = open_store(layout.run_url(root, run_id))
    return _status(store, root, run_id, at=at, checkpoints=checkpoints, reached=reached)


def _status(
    store: ObjectStore,
    root: str,
    run_id: str,
    *,
    at: datetime | None = None,
    checkpoints: bool = False,
    reached: Mapping[int, int] | None = None,
) -> RunStatus:
    try:
        return _derived(store, root, run_id, at=at, checkpoints=checkpoints, reached=reached)
    except TrainCloudError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Of values that none of our sessions writes, deep within a record.
        raise CorruptCheckpoint(f"{store.url}/{layout.SESSIONS} has a record that makes no sense: {error}") from error


def _derived(
    store: ObjectStore,
    root: str,
    run_id: str,
    *,
    at: datetime | None,
    checkpoints: bool,
    reached: Mapping[int, int] | None,
) -> RunStatus:
    read = read_head(store)
    head = read[0] if read else None
    records = read_sessions(store)
    over = head is not None and head.outcome is not None
    launched = None if over or records else _launched(store)
    boots = [] if over else list(store.list(layout.BOOTS))
    gone = None
    if head is None or (head.manifest is None and head.parent is not None):
        try:
            refuse(store, head)
        except HeadMissing as error:
            gone = str(error)
    if head is None and gone is None and not records and launched is None and not boots:
        known = ", ".join(run_ids(root)) or "none"
        raise InputError("run_id", run_id, f"no such run under {root}; there are: {known}")
    at = at or datetime.now(timezone.utc)
    booted = max((boot.modified for boot in boots), default=None)
    state, since = _state(head, records, booted, launched, at)
    if gone is not None and not over:
        state = "damaged"
    stood = {**reached_since(records), **(reached or {})}
    sessions = [
        _session(record, last=record is records[-1], state=state, reached=stood.get(record.number))
        for record in records
    ]
    latest = (records[-1].progress or {}) if records else {}
    committed = head.timesteps if head else 0
    timesteps = max(latest.get("timesteps") or 0, committed) if state == "running" else committed
    total = _total(store, records)
    speed = latest.get("steps_per_second") if state == "running" else None
    known_exact = [session for session in sessions if session.exact is not None]
    inexact = next((session for session in known_exact if not session.exact), None)
    experiment = (records[-1].start.get("run_file") or {}).get("experiment") if records else None
    newest, damaged = None, gone
    if (experiment is not None or checkpoints) and head is not None and head.manifest is not None:
        try:
            newest = read_manifest(store, head.manifest)
        except CorruptCheckpoint as error:
            damaged = f"{error}; {cure(store, head.manifest)}"
    spent = cost(records, reached)
    most = [session.repeated_at_most for session in spent.sessions]
    return RunStatus(
        run_id=run_id,
        experiment=experiment,
        url=store.url,
        state=state,
        reason=head.reason if head else None,
        timesteps=timesteps,
        committed_timesteps=committed,
        total_timesteps=total,
        steps_per_second=speed,
        # A rollout may end beyond the total.
        seconds_left=max(0.0, (total - timesteps) / speed) if speed and total is not None else None,
        since=since.isoformat(timespec="seconds") if since else None,
        episode_return=newest.episode_return if newest is not None else None,
        unit=str(_told(records, "unit") or "timesteps"),
        score=_score(_told(records, "score")),
        attempts=head.attempts if head else 0,
        exact=inexact is None if known_exact else None,
        exact_evidence="no" if inexact else known_exact[-1].exact_evidence if known_exact else None,
        because=f"session {inexact.session}: {inexact.because}" if inexact else None,
        not_kept=next((session.not_kept for session in reversed(sessions) if session.not_kept is not None), None),
        closed=_closed(store, head, at),
        sessions=sessions,
        interruptions=sum(session.ended_by in _INTERRUPTED for session in sessions),
        repeated_timesteps=sum(session.repeated_timesteps for session in spent.sessions),
        repeated_at_most=None if None in most else sum(number for number in most if number is not None),
        cost=spent,
        evaluation=_evaluation(records, committed),
        curriculum=_curriculum(records, committed),
        pretraining=_pretraining(records),
        hardware=next((p["hardware"] for p in (r.progress or {} for r in reversed(records)) if "hardware" in p), None),
        ranks=latest.get("ranks", 1),
        not_exported=latest.get("not_exported"),
        checkpoints=_checkpoints(newest) if checkpoints else None,
        damaged=damaged,
    )


def _evaluation(records: Sequence[SessionRecord], committed: int) -> dict[str, Any] | None:
    """The last one of what is still the run's: a rollback takes back what came after the step that it went to."""
    found: list[dict[str, Any]] = []
    for record in records:
        if (record.end or {}).get("ended_by") in ("rollback", "repair"):
            back = record.end["last_timestep"] if record.end else 0
            found = [each for each in found if each["timesteps"] <= back]
        evaluation = (record.progress or {}).get("evaluation")
        if evaluation is not None and isinstance(evaluation.get("timesteps"), int):
            found.append(evaluation)
    return next((each for each in reversed(found) if each["timesteps"] <= committed), None)


def _curriculum(records: Sequence[SessionRecord], committed: int) -> dict[str, Any] | None:
    """Of the newest checkpoint. After a rollback no session has told yet how it stood there, but which stage it was."""
    found: dict[str, Any] | None = None
    for record in records:
        found = (record.progress or {}).get("curriculum") or found
    if found is None or found["timesteps"] <= committed:
        return found
    changes = [change for change in found["changes"] if change[0] <= committed]
    if not changes:
        return None
    since, stage = changes[-1]
    unknown = dict.fromkeys(("episodes", "success_rate", "mean_return", "played", "succeeded"))
    here = {"timesteps": committed, "stage": stage, "name": found["names"][stage], "since": since, "changes": changes}
    return {**found, **unknown, **here}


def _pretraining(records: Sequence[SessionRecord]) -> dict[str, Any] | None:
    reported = ((record.progress or {}).get("pretraining") for record in reversed(records))
    return next((dict(found) for found in reported if isinstance(found, Mapping) and "epoch" in found), None)


def _checkpoints(newest: Manifest | None) -> list[CheckpointStatus]:
    if newest is None:
        return []
    kept = [(newest.timesteps, True, newest.episode_return)]
    kept += [(earlier.timesteps, earlier.rows, earlier.episode_return) for earlier in newest.kept]
    return [CheckpointStatus(timesteps=at, whole=whole, episode_return=mean) for at, whole, mean in kept]


def _state(
    head: Head | None,
    records: list[SessionRecord],
    booted: datetime | None,
    launched: datetime | None,
    at: datetime,
) -> tuple[State, datetime | None]:
    last = records[-1] if records else None
    heard = _times(last) if last else []
    if head is not None and head.outcome is not None:
        return head.outcome, max(heard, default=None)
    if last is None:
        return ("starting", booted) if booted and at - booted < SETTING_UP else ("waiting", launched)
    newest = max(heard, default=None)
    if not _over(last) and newest is not None and at - newest < SILENCE + _longest_silence(last) and not is_gone(last):
        return "running", min(heard)
    if booted and newest and booted > newest and at - booted < SETTING_UP:
        return "starting", booted
    return "interrupted", newest


def _leaves(record: SessionRecord) -> bool:
    """Whether its machine was announced to go; a rebalance recommendation announces nothing."""
    return any(notice.get("kind") != "rebalance" for notice in record.notices)


def _over(record: SessionRecord) -> bool:
    """Whether it has ended, or its machine was announced to go, and nothing was heard of it since: a machine that was
    not taken trains again.
    """
    ends = [(record.end or {}).get("ended")]
    ends += [notice.get("time") for notice in record.notices if notice.get("kind") != "rebalance"]
    known = [time for time in map(_parse, ends) if time is not None]
    heard = _parse((record.progress or {}).get("at"))
    return bool(known) and (heard is None or heard <= max(known))


def _closed(store: ObjectStore, head: Head | None, at: datetime) -> str | None:
    deadline = read_deadline(store) if head is None or head.outcome is None else None
    if deadline is None or at < deadline + OUTER_STOP:
        return None
    return (deadline + OUTER_STOP).isoformat(timespec="seconds")


def _longest_silence(record: SessionRecord) -> timedelta:
    """Two intervals of commits, at the speed that was reported where they are counted in timesteps."""
    run_file = record.start.get("run_file") or {}
    if run_file.get("max_seconds_at_risk"):
        return timedelta(seconds=2 * run_file["max_seconds_at_risk"])
    speed = (record.progress or {}).get("steps_per_second")
    interval = run_file.get("save_frequency")
    return timedelta(seconds=2 * interval / speed) if speed and interval else timedelta()


def _times(record: SessionRecord) -> list[datetime]:
    written = [record.start.get("started"), (record.progress or {}).get("at"), (record.end or {}).get("ended")]
    written += [notice.get("seen") for notice in record.notices]
    return [time for time in map(_parse, written) if time is not None]


def _last_sign(record: SessionRecord) -> str | None:
    newest = max(_times(record), default=None)
    return newest.isoformat(timespec="milliseconds") if newest is not None else None


def _parse(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _session(record: SessionRecord, *, last: bool, state: State, reached: int | None) -> SessionStatus:
    ended = record.end if _over(record) else None
    told = {**record.start, **(record.progress or {}), **(ended or {})}
    ended_by = told.get("ended_by")
    if ended_by is None and ended is None and not (last and state == "running"):
        ended_by = "notice" if _leaves(record) else "lost"
    return SessionStatus(
        session=record.number,
        instance_id=str(told.get("instance_id", "?")),
        started=told.get("started"),
        first_timestep=told.get("first_timestep"),
        last_timestep=reached if reached is not None else told.get("last_timestep", told.get("timesteps")),
        ended=None if last and state == "running" else _last_sign(record),
        instance_type=told.get("instance_type"),
        availability_zone=told.get("availability_zone"),
        ended_by=ended_by,
        notices=record.notices,
        exact=told.get("exact"),
        exact_evidence=_evidence(told),
        because=told.get("exact_because") or None,
        not_kept=[str(one) for one in told["not_kept"]] if told.get("not_kept") is not None else None,
    )


def _evidence(told: Mapping[str, Any]) -> Evidence | None:
    """Of a record that may have been written before evidence was kept."""
    exact = told.get("exact")
    if exact is None:
        return None
    if not exact:
        return "no"
    return "proved" if told.get("exact_evidence") == "proved" else "not contradicted"


def exactness_in_words(found: RunStatus | SessionStatus) -> str:
    """``proved``, ``not contradicted``, or ``no, because …``."""
    if found.exact_evidence is None:
        return "not known yet"
    return f"no, because {found.because}" if found.exact_evidence == "no" else found.exact_evidence


def _total(store: ObjectStore, records: Sequence[SessionRecord]) -> int | None:
    """The total that the newest session works towards; before the first, the one the run was launched with."""
    if records:
        total = (records[-1].start.get("run_file") or {}).get("total_timesteps")
        return total if isinstance(total, int) else None
    launched: dict[str, Any] = {}
    with contextlib.suppress(ObjectMissing, InputError, UnicodeDecodeError):
        content = read_yaml(bytes(store.get(layout.RUN_YAML).body).decode(), layout.RUN_YAML)
        launched |= content if isinstance(content, dict) else {}
    with contextlib.suppress(ObjectMissing, InputError):
        launched |= read_overrides(store)[1]
    total = launched.get("total_timesteps")
    return int(total) if isinstance(total, int | float) else None


def _launched(store: ObjectStore) -> datetime | None:
    names = (layout.RUN_JSON, layout.RUN_YAML)
    return min((info.modified for info in store.list("run.") if info.key in names), default=None)


def _told(records: Sequence[SessionRecord], name: str) -> Any:
    """What the newest session says of it that says anything."""
    return next((one.progress[name] for one in reversed(records) if one.progress and name in one.progress), None)


def _score(told: Any) -> dict[str, Any] | None:
    return {name: told.get(name) for name in ("name", "direction", "best")} if isinstance(told, dict) else None
