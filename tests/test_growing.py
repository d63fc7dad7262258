"""What stores can do besides for files of people's own: bodies made on the way, and objects that grow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.utils
import pytest

from train_cloud.errors import ConditionFailed, ObjectMissing
from train_cloud.store import FileStore, open_store

MIB = 1 << 20


@pytest.fixture
def store(store_root: str) -> FileStore:
    store = open_store(store_root)
    assert isinstance(store, FileStore)
    return store


def chunks(*bodies: bytes) -> Iterator[bytes]:
    yield from bodies


@pytest.mark.parametrize("size", [0, 1, 17 * MIB])
def test_a_body_made_on_the_way(store: FileStore, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    pieces = (body[start : start + MIB] for start in range(0, size, MIB))
    etag = store.stream("a/b", (piece[: size - at * MIB] for at, piece in enumerate(pieces)))
    found = store.get("a/b")
    assert bytes(found.body) == body[:size]
    assert found.etag == etag


class Broken(Exception):
    pass


def test_what_breaks_on_the_way_changes_nothing(store: FileStore) -> None:
    def breaking() -> Iterator[bytes]:
        yield bytes(20 * MIB)
        raise Broken

    store.put("a", b"before")
    with pytest.raises(Broken):
        store.stream("a", breaking())
    assert bytes(store.get("a").body) == b"before"
    assert [info.key for info in store.list()] == ["a"]


@pytest.mark.parametrize("size", [0, 10, 5 * MIB, 6 * MIB + 1])
@pytest.mark.parametrize("tail", [b"x", b"y" * (18 * MIB)], ids=["little", "much"])
def test_an_object_grows(store: FileStore, size: int, tail: bytes) -> None:
    body = b"a" * size
    etag = store.extend("k", chunks(tail), store.put("k", body))
    found = store.get("k")
    assert bytes(found.body) == body + tail
    assert found.etag == etag
    etag = store.extend("k", chunks(b"end"), etag)
    assert bytes(store.tail("k", size + len(tail))) == b"end"
    assert bytes(store.get("k").body) == body + tail + b"end"


@pytest.mark.parametrize("size", [10, 6 * MIB])
def test_only_the_version_that_was_written_grows(store: FileStore, size: int) -> None:
    etag = store.put("k", b"a" * size)
    store.put("k", b"b" * size)
    with pytest.raises(ConditionFailed):
        store.extend("k", chunks(b"tail"), etag)
    assert bytes(store.get("k").body) == b"b" * size
    store.delete(["k"])
    with pytest.raises(ConditionFailed):
        store.extend("k", chunks(b"tail"), etag)
    assert not list(store.list())


@pytest.mark.parametrize("start", [0, 3, 5, 6, 100])
def test_the_tail_of_an_object(store: FileStore, start: int) -> None:
    store.put("k", b"01234")
    assert bytes(store.tail("k", start)) == b"01234"[start:]
    with pytest.raises(ObjectMissing):
        store.tail("absent", start)


def test_only_the_tail_travels(s3_root: str, aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that are there are copied by S3 itself, and no unfinished upload is left."""
    store = open_store(s3_root)
    assert isinstance(store, FileStore)
    etag = store.put("log", b"a" * (8 * MIB))
    sent: list[int] = []
    client = store._boto()  # type: ignore[attr-defined]

    def note(request: Any, **_: Any) -> None:
        sent.append(int(request.headers.get("Content-Length", 0)))

    client.meta.events.register("before-send.s3", note)
    store.extend("log", chunks(b"b" * 1000), etag)
    assert 1000 <= sum(sent) < 5000
    bucket = s3_root.removeprefix("s3://").split("/")[0]
    assert "Uploads" not in boto3.client("s3", endpoint_url=aws_endpoint).list_multipart_uploads(Bucket=bucket)


def test_fetching_credentials_draws_nothing_from_the_trainings_generator(s3_root: str) -> None:
    """Each time that an instance's are fetched botocore adds a random time."""
    list(open_store(s3_root).list())
    before = random.getstate()
    credentials = {"expiry_time": "2020-01-01T00:00:00Z"}
    fetcher: Any = botocore.utils.InstanceMetadataFetcher()
    fetcher._evaluate_expiration(credentials)
    assert credentials["expiry_time"] != "2020-01-01T00:00:00Z"
    assert random.getstate() == before
