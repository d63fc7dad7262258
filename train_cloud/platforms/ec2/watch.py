"""watch: sees that the machine is about to go, stops the trainer in time, and leaves word of it.

A machine that EC2 takes, and that has nothing left to do, asks its group for a successor at once, unless EC2 would make
its time free by taking it (``notices.worth_leaving``).

The stop comes first and waits for nobody: the local notice, ``systemctl stop``, and only then, in the background, the
record in the store. What was done is kept in ``watch.json``, so that a restarted watch does not do it twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydantic import BaseModel, ValidationError

from train_cloud.errors import CloudError, CloudForbidden, CorruptCheckpoint, InputError, Interrupted, StoreError
from train_cloud.platforms.ec2.group import Group
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.platforms.ec2.notices import (
    DETECTORS,
    NOTICE_FILE,
    Detector,
    Notice,
    local_form,
    local_notice,
    record_form,
    scale_in,
    worth_leaving,
)
from train_cloud.platforms.ec2.units import FINISH, TRAIN, boot_id, systemctl, unit_state
from train_cloud.platforms.notifications import Channel, announce_loss, announce_notice
from train_cloud.run.session import Session, local_session, record_notice
from train_cloud.store import ObjectStore, open_store
from train_cloud.whole_file import write_local

LONGEST_INTERVAL_S = 5.0
"""AWS recommends to look every 5 seconds ("Spot Instance interruption notices", Amazon EC2 User Guide)."""
LINGER = timedelta(minutes=5)
"""A machine that still lives so long after the announced time was not taken."""

_RUNS_ON = timedelta(seconds=10)
"""A trainer that was asked to stop is stopping after that: systemd says so as soon as it has begun."""
_FINISH_AFTER, _SELDOM = timedelta(minutes=1), timedelta(hours=1)
_RECORDING_GRACE = timedelta(seconds=20)
"""For so long a machine that may go stays for the sake of the notice's record, and of those who are told."""
_MEMORY = "watch.json"
_log = logging.getLogger(__name__)


class _Case(BaseModel):
    """One notice and what has been done about it."""

    notice: Notice
    acted: bool = False
    """The trainer was stopped, or asked for a checkpoint."""
    recorded: bool = False
    """The store has it."""
    told: bool = False
    """People were told, or need not be."""
    over: bool = False
    """The machine went on living."""

    @property
    def in_force(self) -> bool:
        return self.notice.ends and self.acted and not self.over


class _Memory(BaseModel):
    boot_id: str
    cases: dict[str, _Case] = {}
    left: bool = False
    """The group was asked to replace this machine."""


class Watch:
    """What :func:`watch` polls. No method waits for the store.

    :param store: of the run
    :param group: the machine's group, for the lifecycle action; None: it runs out by itself
    :param linger: how long after the announced time a machine that still lives trains again
    :param channels: are told of interruptions
    """

    def __init__(
        self,
        store: ObjectStore,
        state_dir: Path,
        metadata: Metadata,
        *,
        boot_id: str,
        group: Group | None = None,
        linger: timedelta = LINGER,
        channels: Sequence[Channel] = (),
    ) -> None:
        self._store, self._state_dir, self._metadata = store, state_dir, metadata
        self._boot_id, self._group, self._linger = boot_id, group, linger
        self._channels, self._looked_back = tuple(channels), not channels
        self._failing: set[str] = set()
        self._train_was_over = False
        self._stays: bool | None = None
        """Whether this machine waits for EC2 to take it; None: not decided."""
        self._asked_at = datetime.max.replace(tzinfo=timezone.utc) - _RUNS_ON
        """When systemd was last asked to stop the trainer."""
        self._finish_at: datetime | None = None
        self._finish_after = _FINISH_AFTER
        self._lock = threading.Lock()
        """Over the memory: the recorder writes to it too."""
        self._memory = self._recall()
        self._news, self._closing = threading.Event(), threading.Event()
        self._recorder = threading.Thread(target=self._record, name="recorder", daemon=True)
        self._recorder.start()

    def poll(self, now: datetime) -> None:
        """Look once, and do what is due. What fails is due again at the next poll."""
        for detect in DETECTORS:
            with self._tolerating(f"asking for a {detect.__name__} notice"):
                self._note(detect, detect(self._metadata, now))
            for case in self._cases():
                if not case.acted:
                    with self._tolerating(f"acting on {case.notice.key}"):
                        self._act(case)
                        self._asked_at = now if case.notice.ends else self._asked_at
        self._news.set()
        standing = [case for case in self._cases() if case.in_force]
        if standing:
            with self._tolerating("seeing to the trainer after the notice"):
                self._see_to(standing, now)
        else:
            with self._tolerating("asking after the trainer"):
                self._start_finish(now)

    def close(self, wait_s: float = 3.0) -> None:
        """Give the recorder a moment to say what it has to say, and end it."""
        self._closing.set()
        self._news.set()
        self._recorder.join(wait_s)

    def _cases(self) -> list[_Case]:
        return list(self._memory.cases.values())

    def _note(self, detect: Detector, notice: Notice | None) -> None:
        """Open a case for a notice that is new."""
        cases = self._memory.cases
        if notice is None:
            # Auto Scaling gives its decision no time: one that it took back and takes again is a new one.
            if detect is scale_in and "scale-in" in cases and cases["scale-in"].over:
                with self._lock:
                    del cases["scale-in"]
        elif notice.kind == "scale-in" and self._memory.left:
            pass  # the group's answer
        elif notice.key not in cases:
            _log.info("%s: %s at %s", notice.kind, notice.action, notice.time.isoformat(timespec="seconds"))
            with self._lock:
                cases[notice.key] = _Case(notice=notice)

    def _act(self, case: _Case) -> None:
        if case.notice.ends:
            try:
                write_local(self._state_dir / NOTICE_FILE, local_form(case.notice, self._boot_id))
            except OSError as error:  # a full disk must not keep the trainer from its last commit
                _log.error("%s could not be written: %s", NOTICE_FILE, error)
            systemctl("stop", "--no-block", TRAIN)
            _log.info("asked systemd to stop the trainer")
        else:
            if unit_state(TRAIN).active != "active":
                return  # no trainer, or one that has no handler for the signal yet
            systemctl("kill", "--kill-who=main", "--signal=SIGUSR1", TRAIN)
            _log.info("asked the trainer for a checkpoint")
        case.acted = True
        self._remember()

    def _see_to(self, standing: list[_Case], now: datetime) -> None:
        """Between a notice and its end: keep the trainer stopped, let Auto Scaling have the machine, or train again."""
        if now > max(max(case.notice.time, case.notice.seen) for case in standing) + self._linger:
            (self._state_dir / NOTICE_FILE).unlink(missing_ok=True)
            systemctl("start", "--no-block", TRAIN)
            _log.info("the machine was not taken: asked systemd to start the trainer again")
            self._train_was_over = False
            for case in standing:
                case.over = True
            self._remember()
            return
        train = unit_state(TRAIN)
        # Started since, by a boot that was under way when the notice came: it was seen to be over before, or, where
        # nobody looked in between, runs on.
        runs_on = train.active in ("active", "activating") and self._asked_at + _RUNS_ON < now
        if (self._train_was_over and not train.over) or runs_on:
            systemctl("stop", "--no-block", TRAIN)
            _log.info("asked systemd to stop the trainer, which was started after the notice")
            self._asked_at = now
        self._train_was_over = train.over
        if not train.over:
            return
        waited = now - min(case.notice.seen for case in standing)
        if self._memory.left or any(case.notice.kind == "scale-in" for case in standing):
            self._let_go(waited)
        elif train.exit_status == Interrupted.exit_code and now < max(case.notice.time for case in standing):
            self._leave(standing, waited)

    def _start_finish(self, now: datetime) -> None:
        """systemd starts ``finish`` at each ending of the trainer, but not while it still runs: an ending that comes as
        ``finish`` leaves is missed. A trainer that stays over costs money, so it is started once more, and again
        ever more seldom.
        """
        if self._finish_at is None:
            self._finish_at = now + self._finish_after
        if now < self._finish_at:
            return
        train = unit_state(TRAIN)
        if train.over and (train.status or local_session(self._state_dir, self._boot_id)) and unit_state(FINISH).over:
            systemctl("start", "--no-block", FINISH)
            _log.info("the trainer is over: asked systemd for finish once more")
            self._finish_after = min(2 * self._finish_after, _SELDOM)
        elif not train.over:
            self._finish_after = _FINISH_AFTER
        self._finish_at = now + self._finish_after

    def _leave(self, standing: list[_Case], waited: timedelta) -> None:
        """Ask the group to replace this machine now, where waiting for EC2 to take it would be dearer."""
        if self._group is None or not self._done(waited):
            return
        if self._stays is None:
            launched = self._metadata.launched()
            self._stays = not any(worth_leaving(case.notice, launched) for case in standing)
            if self._stays:
                _log.info("this machine stays until EC2 takes it: interrupted in its first hour it costs nothing")
        if not self._stays:
            self._group.terminate(self._metadata.instance_id(), decrement=False)
            _log.info("asked Auto Scaling to replace this machine now: all is committed")
            self._memory.left = True
            self._remember()

    def _done(self, waited: timedelta) -> bool:
        """Whether nothing here has anything left to do."""
        with self._lock:
            said = all(
                case.recorded and (case.told or not case.notice.ends or not self._channels) for case in self._cases()
            )
        return (said or waited > _RECORDING_GRACE) and unit_state(FINISH).over

    def _let_go(self, waited: timedelta) -> None:
        """Spare Auto Scaling the rest of its hook's two minutes."""
        if self._group is None or not self._done(waited):
            return
        try:
            if not self._group.complete_termination(self._metadata.instance_id()):
                return
            _log.info("told Auto Scaling that this machine may go")
        except CloudForbidden as error:
            _log.info("the lifecycle action runs out by itself: %s", error)
        self._group = None

    def _record(self) -> None:
        """The recorder's thread: takes every case to the store, for as long as that takes."""
        wait_s = 1.0
        while not self._closing.is_set():
            self._news.wait()
            self._news.clear()
            with self._lock:
                due = [case for case in self._cases() if not case.recorded]
                untold = [case for case in self._cases() if not case.told and case.notice.ends and self._channels]
            try:
                session = None
                if due or untold or not self._looked_back:
                    session = local_session(self._state_dir, self._boot_id)
                if session is None:
                    continue  # none begun, none cut short
                for case in due:
                    _log.info("recorded as %s", record_notice(self._of(session), session, record_form(case.notice)))
                    case.recorded = True
                    self._remember()
                self._tell(session, untold)
                wait_s = 1.0
            except (StoreError, CorruptCheckpoint, CloudError, OSError, ValidationError) as error:
                _log.warning("a notice is not recorded or told yet: %s; next attempt in %.0f s", error, wait_s)
                self._closing.wait(wait_s)
                self._news.set()
                wait_s = min(2 * wait_s, 30.0)

    def _of(self, session: Session) -> ObjectStore:
        """The run that a session is of: another than was launched where that is a pipeline."""
        return self._store if session.url in ("", self._store.url) else open_store(session.url)

    def _tell(self, session: Session, untold: list[_Case]) -> None:
        number, instance = session.number, session.instance_id
        for case in untold:
            notice = case.notice
            said = f"{notice.kind} notice, {notice.action} at {notice.time.isoformat(timespec='seconds')}"
            for channel in self._channels:
                announce_notice(self._of(session), channel, session=number, instance_id=instance, notice=said)
            case.told = True
            self._remember()
        if not self._looked_back:
            for channel in self._channels:
                announce_loss(self._of(session), channel, session=number, instance_id=instance)
            self._looked_back = True

    def _recall(self) -> _Memory:
        """What an earlier watch did in this boot. Notices of an earlier boot are over, whatever became of them."""
        memory = _Memory(boot_id=self._boot_id)
        with contextlib.suppress(FileNotFoundError, ValidationError):
            found = _Memory.model_validate_json((self._state_dir / _MEMORY).read_bytes())
            if found.boot_id == self._boot_id:
                memory = found
        notice = local_notice(self._state_dir, self._boot_id)
        if notice is None:
            (self._state_dir / NOTICE_FILE).unlink(missing_ok=True)
        elif notice.key not in memory.cases:  # ended between the notice and the stop
            memory.cases[notice.key] = _Case(notice=notice)
        return memory

    def _remember(self) -> None:
        with self._lock:
            try:
                write_local(self._state_dir / _MEMORY, self._memory.model_dump(mode="json"))
            except OSError as error:
                _log.error("%s could not be written: %s", _MEMORY, error)

    @contextlib.contextmanager
    def _tolerating(self, doing: str) -> Iterator[None]:
        """What fails is logged when it begins and when it ends, not at every poll."""
        try:
            yield
        except CloudError as error:
            if doing not in self._failing:
                _log.warning("%s: %s", doing, error)
            self._failing.add(doing)
        else:
            if doing in self._failing:
                _log.info("%s works again", doing)
            self._failing.discard(doing)


def watch(
    store: ObjectStore,
    state_dir: Path,
    metadata: Metadata,
    *,
    group: Group | None = None,
    interval_s: float = 2.0,
    linger: timedelta = LINGER,
    channels: Sequence[Channel] = (),
) -> None:
    """Watch over this boot until SIGTERM or SIGINT, then return. Main thread only.

    :param interval_s: seconds from poll to poll, above 0 and at most 5
    :param channels: are told of interruptions, with one attempt at a time
    :raises InputError: another interval
    """
    if not 0 < interval_s <= LONGEST_INTERVAL_S:
        raise InputError("interval", interval_s, f"give seconds above 0 and at most {LONGEST_INTERVAL_S:.0f}")
    # A pipe rather than an event: setting an event inside a handler can deadlock with the wait that it interrupts.
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(woken)
    watching = Watch(store, state_dir, metadata, boot_id=boot_id(), group=group, linger=linger, channels=channels)
    try:
        due = time.monotonic()
        while not select.select([wake], [], [], max(0.0, due - time.monotonic()))[0]:
            due = time.monotonic() + interval_s
            watching.poll(datetime.now(timezone.utc))
    finally:
        watching.close()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(woken)
