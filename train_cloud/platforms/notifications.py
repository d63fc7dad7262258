"""Telling people how a run ended, or that its worker goes: each piece of news once, and never before what is urgent.

A record in the store says what was told. It is written after the message, so that a machine which dies in between
leads to a second message rather than to none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Literal, Protocol

from train_cloud.errors import ConditionFailed, CorruptCheckpoint, StoreError
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head
from train_cloud.run.session import SessionRecord, now, read_sessions
from train_cloud.safe_text import clean, masked
from train_cloud.store import ObjectStore

News = Literal["completed", "stopped", "failed", "interrupted"]

_GOES_ON = "Another worker goes on from there as soon as there is one."
#: How a session ended that nobody cut short.
_OWN_ENDINGS = {"completed", "callback", "limit", "fenced", "rollback", "repair"}
_log = logging.getLogger(__name__)


class Channel(Protocol):
    """Where news go to."""

    @property
    def name(self) -> str:
        """Tells it from a run's other channels: each is told by itself."""
        ...

    def publish(self, subject: str, message: str, attributes: Mapping[str, str]) -> str: ...


def announce_end(store: ObjectStore, channel: Channel, *, session: int | None = None, why: str = "") -> bool:
    """Tell the outcome that stands in the head; where the head cannot be read, that the run failed and why.

    :param session: this boot's
    :return: whether anything was told now
    :raises CloudError: the channel did not take it
    """
    try:
        head = _head(store)
    except (StoreError, CorruptCheckpoint) as error:
        _log.warning("the head cannot be read: %s", error)
        head = None
    if head is not None and head.outcome is not None:
        return _tell(store, channel, head.outcome, head.session, [head.reason or "", _reached(head)])
    if head is None and why:
        return _tell(store, channel, "failed", session or 0, [why])
    return False


def announce_notice(store: ObjectStore, channel: Channel, *, session: int, instance_id: str, notice: str) -> bool:
    """Tell that this machine is taken away in mid-run. A run that is over loses its machine as it should.

    :param notice: in words
    :raises StoreError, CorruptCheckpoint, CloudError: not told
    """
    head = _head(store)
    if head is not None and head.outcome is not None:
        return False
    return _tell(store, channel, "interrupted", session, [f"{instance_id}: {notice}", _reached(head), _GOES_ON])


def announce_loss(store: ObjectStore, channel: Channel, *, session: int, instance_id: str) -> bool:
    """Tell that the session before this one ended without a word, if nobody has told how it ended.

    :param session: this boot's
    :raises StoreError, CorruptCheckpoint, CloudError: not told
    """
    before = [record for record in read_sessions(store) if record.number < session]
    if not before or not _cut_short(before[-1]) or before[-1].start.get("instance_id") == instance_id:
        return False
    lost = before[-1]
    if any(info.key.endswith(f"-{channel.name}.json") for info in store.list(layout.told_key(lost.number, ""))):
        return False
    said = f"{lost.start.get('instance_id', 'the worker')} has gone; {instance_id} has taken the run over."
    return _tell(store, channel, "interrupted", lost.number, [said, _reached(_head(store))])


def _cut_short(record: SessionRecord) -> bool:
    return (record.end or {}).get("ended_by") not in _OWN_ENDINGS


def _head(store: ObjectStore) -> Head | None:
    read = read_head(store)
    return read[0] if read else None


def _reached(head: Head | None) -> str:
    return f"Committed: {head.timesteps if head is not None else 0} timesteps."


def _tell(store: ObjectStore, channel: Channel, news: News, session: int, lines: list[str]) -> bool:
    key = f"{layout.told_key(session, news)}-{channel.name}.json"
    try:
        if any(store.list(key)):
            return False
    except StoreError as error:  # rather twice than never
        _log.warning("whether %s was told already cannot be read: %s", news, error)
    run_id = layout.run_id_of(store.url)
    told = [clean(masked(line)) for line in lines if line]
    message = "\n".join([f"{run_id}: {news}", *told, "", f"train-cloud status {store.url}"])
    sent = channel.publish(f"train-cloud: {run_id} {news}", message, {"run_id": run_id, "news": news})
    _log.info("told: %s (message %s)", news, sent)
    record = json.dumps({"news": news, "session": session, "message": sent, "at": now()}, indent=1)
    try:
        store.create(key, record.encode())
    except ConditionFailed:
        _log.info("%s was told by another machine too", news)
    except StoreError as error:
        _log.warning("%s could not be written, this may be told again: %s", key, error)
    return True
