"""A simulated bucket and workers that stand still at every verb of it until they are told to go on.

A worker's code is the real one, in threads of its own; of these at most one is at a verb at a time (commits and
restores are told to write and read one object after the other), so that a schedule is a list of choices: which worker
goes on, and what becomes of the verb it stands at.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from typing import Any

from train_cloud.errors import ConditionFailed, ObjectMissing, StoreUnavailable, TrainCloudError
from train_cloud.run import layout
from train_cloud.run.head import Head, pack_head, parse_head
from train_cloud.store import ObjectInfo, StoredObject

_PAGE = 6
_LONGEST = 60.0
_EPOCH = datetime.fromtimestamp(0, timezone.utc)

FAULTS = (
    "dies before",  # the process is gone, and the verb was not carried out
    "dies after",
    "unavailable",  # StoreUnavailable, and nothing happened
    "reply lost",  # StoreUnavailable, and it happened
    "sent again",  # it happened, its reply was lost, and the client sends it once more: the verb is still to come
    "late",  # StoreUnavailable now; the request reaches the server at some later time
    "conflict",  # 409, as the S3 client resolves it
)
WRITES = ("put", "create", "swap", "delete")


class Died(BaseException):
    """The process is gone at this instant."""


class Objects:
    """The bucket: six atomic verbs. Remembers every head that ever stood.

    :ivar changes: counts them
    :ivar labels: for each random ``commit`` that was ever sent, a name that is the same in every run of one schedule
    :raises AssertionError: an object is written again with other bytes, which only the head may be
    """

    url = "simulated://bucket"

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.heads: list[Head] = []
        self.changes = 0
        self.labels: dict[str, str] = {}

    def get(self, key: str) -> StoredObject:
        if key not in self.bodies:
            raise ObjectMissing(key)
        return StoredObject(self.bodies[key], _etag(self.bodies[key]))

    def put(self, key: str, body: Any) -> str:
        standing = self.bodies.get(key)
        assert standing is None or standing == bytes(body), f"{key} was written with other bytes before"
        return self._write(key, body)

    def create(self, key: str, body: Any) -> str:
        if key in self.bodies:
            raise ConditionFailed(key)
        return self._write(key, body)

    def swap(self, key: str, body: Any, etag: str) -> str:
        if key not in self.bodies or _etag(self.bodies[key]) != etag:
            raise ConditionFailed(key)
        return self._write(key, body)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for key in sorted(self.bodies):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self.bodies[key]), _EPOCH)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            assert key != layout.HEAD, "the head is never deleted"
            self.changes += self.bodies.pop(key, None) is not None

    def plain(self, body: bytes) -> str:
        """A body without what is random in it, if it is a head."""
        try:
            head = parse_head(body)
        except ValueError:
            return hashlib.sha256(body).hexdigest()
        return pack_head(head.model_copy(update={"commit": self.labels.get(head.commit, "")})).decode()

    def _write(self, key: str, body: Any) -> str:
        self.bodies[key] = bytes(body)
        self.changes += 1
        if key == layout.HEAD:
            self.heads.append(parse_head(self.bodies[key]))
        return _etag(self.bodies[key])


class Call:
    """A verb that a worker stands at."""

    def __init__(self, verb: str, key: str, act: Callable[[], Any]) -> None:
        self.verb, self.key, self.act = verb, key, act

    def conflict(self, objects: Objects, etag: str | None) -> Exception:
        """409: another write was under way. ``BucketStore`` looks what has become of it."""
        standing = objects.bodies.get(self.key)
        lost = standing is not None if self.verb == "create" else standing is None or _etag(standing) != etag
        return ConditionFailed(self.key) if lost else StoreUnavailable("409")


class Worker:
    """One process. ``program`` is what it runs, given its store.

    :ivar call: the verb it stands at; None when it has ended
    :ivar ended: what the program returned or raised; None before that
    :ivar answers: what it has learned: the same answers, the same state
    """

    def __init__(self, objects: Objects, name: str, program: Callable[[Any], Any]) -> None:
        self.objects, self.name = objects, name
        self.call: Call | None = None
        self.ended: Any = None
        self.answers: list[str] = []
        self._sent = 0
        self._dead = False
        self._arrivals: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._etag: str | None = None
        self._thread = threading.Thread(target=self._run, args=(program,), name=name, daemon=True)
        self._thread.start()
        self._until_still()

    def step(self, fault: str = "") -> Callable[[], object] | None:
        """Let it go on from where it stands, to its next verb or its end.

        :return: with the fault ``late``, what the server does when the request arrives there after all
        """
        call = self.call
        assert call is not None
        if fault == "sent again":
            outcome(call.act)
            return None
        if fault.startswith("dies"):
            self._dead = True
        if fault in ("dies after", "reply lost"):
            outcome(call.act)
        if fault == "":
            reply = outcome(call.act)
        elif self._dead:
            reply = _raising(Died())
        elif fault == "conflict" and call.verb in ("create", "swap"):
            reply = _raising(call.conflict(self.objects, self._etag))
        else:
            reply = _raising(StoreUnavailable(fault))
        self.answers.append(f"{call.verb} {call.key} {self._told(reply)}")
        self._replies.put(reply)
        self._until_still()
        return (lambda: outcome(call.act)) if fault == "late" and call.verb in WRITES else None

    def kill(self) -> None:
        if self.call is not None:
            self.step("dies before")

    def _until_still(self) -> None:
        self.call = self._arrivals.get(timeout=_LONGEST)
        if self.call is None:
            self._thread.join(_LONGEST)

    def _run(self, program: Callable[[Any], Any]) -> None:
        try:
            self.ended = program(self)
        except BaseException as error:  # noqa: BLE001 - how it ended is for the test to judge
            self.ended = error
        self._arrivals.put(None)

    def _stand(self, verb: str, key: str, act: Callable[[], Any]) -> Any:
        if self._dead:
            raise Died
        self._arrivals.put(Call(verb, key, act))
        return self._replies.get(timeout=_LONGEST)()

    def _told(self, reply: Callable[[], Any]) -> str:
        """What it learns from a reply, without what is random in it."""
        try:
            value = reply()
        except (TrainCloudError, Died) as error:
            return type(error).__name__
        if isinstance(value, StoredObject):
            return self.objects.plain(bytes(value.body))
        return str(value) if isinstance(value, list) else ""

    def _label(self, body: bytes) -> None:
        self._sent += 1
        self.objects.labels.setdefault(parse_head(body).commit, f"{self.name}#{self._sent}")

    # The six verbs, as the worker's code calls them.

    url = Objects.url

    def get(self, key: str) -> StoredObject:
        found: StoredObject = self._stand("get", key, lambda: self.objects.get(key))
        return found

    def put(self, key: str, body: Any) -> str:
        body = bytes(body)
        return str(self._stand("put", key, lambda: self.objects.put(key, body)))

    def create(self, key: str, body: Any) -> str:
        body = bytes(body)
        if key == layout.HEAD:
            self._label(body)
        return str(self._stand("create", key, lambda: self.objects.create(key, body)))

    def swap(self, key: str, body: Any, etag: str) -> str:
        body, self._etag = bytes(body), etag
        self._label(body)
        return str(self._stand("swap", key, lambda: self.objects.swap(key, body, etag)))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """In pages, between which the bucket may change, as S3's does."""
        last = ""
        while True:

            def page(last: str = last) -> list[ObjectInfo]:
                return list(itertools.islice((info for info in self.objects.list(prefix) if info.key > last), _PAGE))

            found: list[ObjectInfo] = self._stand("list", prefix, page)
            yield from found
            if len(found) < _PAGE:
                return
            last = found[-1].key

    def delete(self, keys: Iterable[str]) -> None:
        """Key by key: the server may get through some of them only."""
        for key in keys:
            self._stand("delete", key, functools.partial(self.objects.delete, [key]))


def outcome(act: Callable[[], Any]) -> Callable[[], Any]:
    """Carry it out now; the result, or the exception, comes when the returned function is called."""
    try:
        value = act()
    except (ConditionFailed, ObjectMissing) as error:
        return _raising(error)
    return lambda: value


def _raising(error: BaseException) -> Callable[[], Any]:
    def reply() -> Any:
        raise error

    return reply


def _etag(body: bytes) -> str:
    """Of the content, as S3's is for a single PUT."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
