"""The six verbs that the rest of the package knows of storage, and what they promise on every kind of it."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

from ..errors import InputError

Body: TypeAlias = "bytes | bytearray | memoryview"

RESERVED = ".train-cloud"
"""A folder name that no key contains: the local store keeps its lock and its unfinished files there."""


@dataclass(frozen=True)
class StoredObject:
    body: Body
    etag: str
    """Names this content: changes whenever the content does. Opaque."""


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    size: int
    """bytes"""
    modified: datetime
    """With a time zone."""
    etag: str = ""
    """Names this content, as :attr:`StoredObject.etag` does; empty in a local folder, whose listing tells none."""


class ObjectStore(Protocol):
    """Objects under string keys: whole or not there at all, and durable once a verb has returned.

    Keys are relative to ``url``, with ``/`` between segments. All verbs are synchronous and thread-safe, and raise

    - ``StoreForbidden``: the credentials may not do this, or there are none
    - ``BucketMissing``: there is nothing at ``url`` that could hold objects
    - ``StoreUnavailable``: no answer within the store's retry timeout; whether a write happened is then unknown
    - ``InputError``: the key is not one: empty, absolute, or with an empty, ``.`` or ``..`` segment
    """

    @property
    def url(self) -> str:
        """Where the keys begin, without a trailing slash."""
        ...

    def get(self, key: str) -> StoredObject:
        """:raises ObjectMissing: a LIST of the key shows that it does not exist (never inferred from a 403 or 404)"""
        ...

    def put(self, key: str, body: Body) -> str:
        """Write unconditionally, in parts where large; returns the e-tag. For payloads under names of their own."""
        ...

    def create(self, key: str, body: Body) -> str:
        """Write only where nothing is; returns the e-tag.

        The client retries after a lost reply, and then finds its own object: on ``ConditionFailed`` a caller that must
        know compares the body that stands there with the one it sent, which therefore should hold something random.

        :raises ConditionFailed: the key exists
        """
        ...

    def swap(self, key: str, body: Body, etag: str) -> str:
        """Write only over the version ``etag``; returns the new e-tag. Lost replies show as with ``create``.

        :raises ConditionFailed: the object is another one by now, or gone
        """
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key begins with the string ``prefix``, in order of keys. Errors come with the first item.

        What lies there under no key (see ``InputError`` above, and the empty objects by which S3's console shows a
        folder) is other people's: it is left out, with a warning.
        """
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Missing keys are fine."""
        ...


@runtime_checkable
class FileStore(ObjectStore, Protocol):
    """What a store can do besides for files of people's own: large ones, and such as only grow.

    Whoever needs no more than objects asks for an :class:`ObjectStore`. The errors are the same.
    """

    def within(self, folder: str) -> ObjectStore:
        """The same store with keys that begin below ``folder``, over the same connections."""
        ...

    def folders(self, prefix: str = "") -> list[str]:
        """Names directly below the folder ``prefix`` (empty, or with a slash at its end) that have objects below them,
        in order; however many those are, they are not listed.
        """
        ...

    def clear(self) -> tuple[int, builtins.list[str]]:
        """Delete everything below ``url``, also what is under no key, and nothing else. Whoever writes meanwhile may
        leave something.

        :return: how many objects were deleted, and names of what could not be, each with the reason
        """
        ...

    def stream(self, key: str, chunks: Iterator[bytes]) -> str:
        """As ``put``, of a body that is made while it travels. What the iterator raises leaves the object as it was."""
        ...

    def extend(self, key: str, tail: Iterator[bytes], etag: str) -> str:
        """Append to the version ``etag``, which is not sent again; returns the new e-tag. Readers see the object before
        or after, never between.

        :raises ConditionFailed: the object is another one by now, or gone
        """
        ...

    def version(self, key: str, etag: str) -> Body:
        """The version ``etag`` of an object, with one request.

        :raises ConditionFailed: the object is another one by now, or gone
        """
        ...

    def tail(self, key: str, start: int) -> Body:
        """What the object holds from byte ``start`` on; nothing where it is no longer than that.

        :raises ObjectMissing: as ``get``
        """
        ...


def is_key(key: str) -> bool:
    """Whether every kind of store can hold an object under this name."""
    return key.isprintable() and "\\" not in key and {"", ".", "..", RESERVED}.isdisjoint(key.split("/"))


def check_key(key: str, field: str = "key") -> str:
    """The key itself, if it is one on every kind of store.

    :param field: what to call it in an error
    :raises InputError: empty, absolute, an empty, ``.`` or ``..`` segment, a control character or backslash
    """
    if not is_key(key):
        raise InputError(field, key, "give printable names between single slashes, not '.' or '..', no backslash")
    return key


def check_prefix(prefix: str) -> str:
    """The beginning of a key, perhaps all of it, perhaps nothing."""
    if prefix:
        check_key(prefix.removesuffix("/"), "prefix")
    return prefix
