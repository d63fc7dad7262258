"""One contract for every kind of store, over real HTTP and real processes; then what is special to each."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from filelock import FileLock

from train_cloud.errors import (
    BucketMissing,
    ConditionFailed,
    CredentialsExpired,
    InputError,
    ObjectMissing,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
)
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.store import FileStore, ObjectStore, open_store
from train_cloud.store.protocol import RESERVED

MIB = 1 << 20


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Rule = Callable[[Request, Callable[[], Reply]], "Reply | None"]


def refusal(status: int, code: str) -> Reply:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>Because.</Message></Error>'
    return Reply(status, {"Content-Type": "application/xml"}, body.encode())


class Proxy:
    """Stands before the S3 server and answers by its ``rule``, which may ask the server; None hangs up."""

    def __init__(self, upstream: str) -> None:
        self.requests: list[Request] = []
        self.rule: Rule = lambda request, forward: forward()
        host = urlsplit(upstream).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                proxy.requests.append(request)

                def forward(path: str = self.path) -> Reply:
                    connection = http.client.HTTPConnection(host)
                    connection.request(self.command, path, body, dict(self.headers))
                    reply = connection.getresponse()
                    content = reply.read()
                    connection.close()
                    dropped = ("connection", "transfer-encoding", "date", "server")
                    return Reply(
                        reply.status, {k: v for k, v in reply.getheaders() if k.lower() not in dropped}, content
                    )

                reply = proxy.rule(request, forward)
                if reply is None:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                length = {} if self.command == "HEAD" else {"Content-Length": str(len(reply.body))}
                for name, value in (
                    {k: v for k, v in reply.headers.items() if k.lower() != "content-length"} | length
                ).items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):  # a client that has lost its patience
                    self.wfile.write(b"" if self.command == "HEAD" else reply.body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def proxy(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(aws_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    yield proxy
    proxy.close()


def unsociable(request: Request, forward: Callable[..., Reply]) -> Reply:
    """What S3 may do: 403 for a missing key (where the policy grants ListBucket with a condition), short list pages."""
    reply = forward(request.path + "&max-keys=3" if "list-type=2" in request.path else request.path)
    return refusal(403, "AccessDenied") if reply.status == 404 and b"NoSuchBucket" not in reply.body else reply


@pytest.fixture(params=["folder", "s3", "unsociable s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    if request.param == "folder":
        return open_store(request.getfixturevalue("folder_root"))
    root = request.getfixturevalue("s3_root")
    if request.param == "unsociable s3":
        request.getfixturevalue("proxy").rule = unsociable
    return open_store(root)


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def verbs(store: ObjectStore, key: str = "key") -> dict[str, Callable[[], object]]:
    return {
        "get": lambda: store.get(key),
        "put": lambda: store.put(key, b"body"),
        "create": lambda: store.create(key, b"body"),
        "swap": lambda: store.swap(key, b"body", '"an-etag"'),
        "list": lambda: list(store.list(key)),
        "delete": lambda: store.delete([key]),
    }


VERBS = ["get", "put", "create", "swap", "list", "delete"]

# --------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("size", [0, 1, 16 * MIB, 16 * MIB + 1, 50 * MIB])
def test_what_was_put_comes_back(store: ObjectStore, size: int) -> None:
    body = random.Random(size).randbytes(size)
    etag = store.put("a/part", body)
    stored = store.get("a/part")
    assert bytes(stored.body) == body
    assert stored.etag == etag
    assert [(info.key, info.size) for info in store.list()] == [("a/part", size)]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda body: memoryview(bytearray(body))[:]])
def test_every_kind_of_buffer(store: ObjectStore, kind: Callable[[bytes], bytes]) -> None:
    etag = store.create("created", kind(b"one"))
    store.swap("created", kind(b"two"), etag)
    store.put("put", kind(b"three"))
    assert bytes(store.get("created").body) == b"two"
    assert json.loads(b'"three"') == bytes(store.get("put").body).decode()


def test_etags_name_contents(store: ObjectStore) -> None:
    first = store.create("head", b"1")
    second = store.swap("head", b"2", first)
    third = store.put("head", b"3")
    assert len({first, second, third}) == 3
    assert store.get("head").etag == third


def test_create_writes_once(store: ObjectStore) -> None:
    store.create("key", b"first")
    with pytest.raises(ConditionFailed):
        store.create("key", b"second")
    assert store.get("key").body == b"first"
    store.delete(["key"])
    store.create("key", b"third")
    assert store.get("key").body == b"third"


def test_swap_needs_the_version_that_was_read(store: ObjectStore) -> None:
    stale = store.create("key", b"1")
    fresh = store.swap("key", b"2", stale)
    with pytest.raises(ConditionFailed):
        store.swap("key", b"3", stale)
    assert store.get("key") == type(store.get("key"))(b"2", fresh)
    store.delete(["key"])
    for key in ("key", "never/was"):
        with pytest.raises(ConditionFailed):
            store.swap(key, b"4", fresh)
    assert keys(store) == []


@pytest.mark.parametrize("key", ["key", "a", "a/b", "ab", "a/b/c/d"])
def test_missing_is_missing_among_similar_names(store: ObjectStore, key: str) -> None:
    for similar in ("a/bc", "a-b", "abc", "key2", "ke", "a/b/c/d.e", *(f"a{n}" for n in range(5))):
        store.put(similar, b"")
    with pytest.raises(ObjectMissing):
        store.get(key)


def test_list_takes_any_prefix_in_order_of_keys(store: ObjectStore) -> None:
    names = [f"checkpoints/{n:03}/part-{p}" for n in range(5) for p in "ab"]
    names += ["head.json", "overrides-1.json", "overrides-10.json", "overrides-2.json", "overrides/x", "ü/1", "ü/日本"]
    for number, name in enumerate(random.Random(0).sample(names, len(names))):
        store.put(name, b"x" * number)
    assert keys(store) == sorted(names)
    for prefix in (
        "checkpoints/",
        "checkpoints/003",
        "checkpoints/003/",
        "checkpoints/003/part-b",
        "overrides-",
        "ü/",
        "o",
    ):
        assert keys(store, prefix) == sorted(name for name in names if name.startswith(prefix)), prefix
    assert keys(store, "nothing/of/the/kind") == keys(store, "p") == keys(store, "checkpoints/9") == []
    info = next(iter(store.list("head")))
    assert info.size == len(store.get("head.json").body)
    assert abs(datetime.now(timezone.utc) - info.modified) < timedelta(minutes=1)


def test_delete_leaves_the_others(store: ObjectStore) -> None:
    for name in ("a/1", "a/2", "b/1", "c"):
        store.put(name, b"x")
    store.delete(name for name in ("a/1", "b/1", "never/was"))
    store.delete([])
    assert keys(store) == ["a/2", "c"]


@pytest.mark.parametrize(
    "key", ["a b", "ä/ö", "a%20b", "a%b", "a+b", "a=b&c", "a#b", "a~b", "a'b", ".hidden", "..x", "a/...", "x@y,z"]
)
def test_odd_keys_are_kept_as_they_are(store: ObjectStore, key: str) -> None:
    store.swap(key, b"body", store.create(key, b""))
    assert store.get(key).body == b"body"
    assert keys(store) == keys(store, key) == [key]
    store.delete([key])
    with pytest.raises(ObjectMissing):
        store.get(key)


@pytest.mark.parametrize(
    "key", ["/a", "a//b", ".", "..", "a/../b", "../a", "a/./b", "a\nb", "a\0b", "a\\b", f"a/{RESERVED}/b"]
)
def test_keys_that_are_none(store: ObjectStore, key: str) -> None:
    for call in verbs(store, key).values():
        with pytest.raises(InputError, match=r"key|prefix"):
            call()
    assert keys(store) == []


@pytest.mark.parametrize("key", ["", "a/"])
def test_a_prefix_is_no_key(store: ObjectStore, key: str) -> None:
    for verb, call in verbs(store, key).items():
        if verb != "list":
            with pytest.raises(InputError, match="key"):
                call()


def test_a_store_may_begin_deeper(store: ObjectStore) -> None:
    deeper = open_store(f"{store.url}/runs/one")
    assert deeper.url == f"{store.url}/runs/one"
    deeper.create("head.json", b"1")
    store.put("runs/one-more/head.json", b"2")
    assert keys(deeper) == ["head.json"]
    assert keys(store, "runs/one/") == ["runs/one/head.json"]
    assert keys(store) == ["runs/one-more/head.json", "runs/one/head.json"]


# ---------------------------------------------------------------------------------------------------------------- races


@pytest.mark.parametrize("verb", ["create", "swap"])
def test_of_many_threads_one_wins(store: ObjectStore, verb: str) -> None:
    for turn in range(5):
        key = f"head-{turn}"
        etag = store.create(key, b"") if verb == "swap" else ""
        barrier = threading.Barrier(6)

        def write(number: int, key: str = key, etag: str = etag, barrier: threading.Barrier = barrier) -> int | None:
            body = b"%d" % number * 1000
            barrier.wait()
            try:
                store.swap(key, body, etag) if verb == "swap" else store.create(key, body)
            except ConditionFailed:
                return None
            return number

        with ThreadPoolExecutor(6) as threads:
            winners = [number for number in threads.map(write, range(6)) if number is not None]
        assert len(winners) == 1
        assert store.get(key).body == b"%d" % winners[0] * 1000


COUNT = """
import sys
from train_cloud.errors import ConditionFailed
from train_cloud.store import open_store
store, mine = open_store(sys.argv[1]), 0
while mine < int(sys.argv[2]):
    read = store.get("counter")
    try:
        store.swap("counter", b"%d" % (int(read.body) + 1), read.etag)
        mine += 1
    except ConditionFailed:
        pass
"""


@pytest.mark.slow
def test_processes_count_together(store: ObjectStore) -> None:
    store.create("counter", b"0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, store.url, "25"]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    assert store.get("counter").body == b"100"


# ------------------------------------------------------------------------------------------------------------ which one


BUCKET_URLS = ["s3://", "s3:///x", "s3://Bucket", "s3://ab", "s3://bucket_x", "s3://a..b", "s3:bucket/x", "s3:/bucket"]
PREFIX_URLS = ["s3://bucket//x", "s3://bucket/../x", "s3://bucket/x//", "s3://bucket/a?b=c", "s3://bucket/a#b"]
OTHER_URLS = [
    "",
    " ",
    "gs://bucket/x",
    "http://host/x",
    "file://host/x",
    "file:///",
    "file:x",
    "~no-such-user/x",
    "a\0b",
]


@pytest.mark.parametrize("url", [*BUCKET_URLS, *PREFIX_URLS, *OTHER_URLS])
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(InputError, match="store"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1/a/b/", "s3://my.bucket-1/a/b"),
        ("runs", str(Path("runs").absolute())),
        ("./runs/", str(Path("runs").absolute())),
        ("~/runs", str(Path("~/runs").expanduser())),
        ("/tmp/a b", "/tmp/a b"),
        ("file:///tmp/a%20b", "/tmp/a b"),
    ],
)
def test_urls(url: str, canonical: str) -> None:
    assert open_store(url).url == canonical


def test_the_retry_timeout_is_a_time() -> None:
    with pytest.raises(InputError, match="retry_timeout"):
        open_store("s3://bucket", retry_timeout=0)


# ------------------------------------------------------------------------------------------------------------------- S3


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_bucket_is_named(aws_endpoint: str, verb: str) -> None:
    with pytest.raises(BucketMissing, match="s3://no-such-bucket does not exist"):
        verbs(open_store("s3://no-such-bucket/prefix"))[verb]()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (refusal(403, "AccessDenied"), StoreForbidden, "s3:ListBucket"),
        (refusal(403, "InvalidAccessKeyId"), CredentialsExpired, "renew"),
        (refusal(400, "ExpiredToken"), CredentialsExpired, "renew"),
        (refusal(403, "RequestTimeTooSkewed"), StoreForbidden, "clock"),
        (refusal(301, "PermanentRedirect"), BucketMissing, "AWS_REGION"),
        (refusal(400, "AuthorizationHeaderMalformed"), BucketMissing, "AWS_REGION"),
        (refusal(400, "InvalidRequest"), StoreError, "InvalidRequest"),
        (refusal(500, "InternalError"), StoreUnavailable, "InternalError"),
        (refusal(503, "SlowDown"), StoreUnavailable, "SlowDown"),
        (refusal(429, "TooManyRequests"), StoreUnavailable, "TooManyRequests"),
        (refusal(400, "RequestTimeout"), StoreUnavailable, "RequestTimeout"),
        (None, StoreUnavailable, "does not answer"),
    ],
    ids=lambda value: value.body.decode().split("Code>")[1][:-2] if isinstance(value, Reply) else None,
)
def test_refusals(
    s3_root: str, proxy: Proxy, verb: str, reply: Reply | None, error: type[StoreError], text: str
) -> None:
    proxy.rule = lambda request, forward: reply
    temporary = error is StoreUnavailable  # the client tries again until its time is up, and may then say just that
    with pytest.raises(error, match=f"{text}|time-out" if temporary else text) as caught:
        verbs(open_store(s3_root, retry_timeout=0.1 if temporary else 30))[verb]()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", VERBS)
def test_a_server_that_is_down(bucket: str, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"at http://127.0.0.1:9 does not answer: (Connection refused|time-out)"):
        verbs(open_store(f"s3://{bucket}", retry_timeout=0.2))[verb]()
    assert time.monotonic() - begun < 20  # by far less than without a timeout of one's own


@pytest.mark.parametrize("verb", VERBS)
def test_a_server_that_is_silent(bucket: str, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="time-out"):
            verbs(open_store(f"s3://{bucket}", retry_timeout=0.2))[verb]()
        assert time.monotonic() - begun < 20  # by far less than without a timeout of one's own


@pytest.mark.parametrize("verb", VERBS)
def test_a_server_that_stumbles(s3_root: str, proxy: Proxy, verb: str) -> None:
    store = open_store(s3_root)
    etag = store.create("key", b"body")
    calls = verbs(store) | {"swap": lambda: store.swap("key", b"2", etag), "create": lambda: store.create("new", b"2")}
    stumbles = [None, refusal(503, "SlowDown"), refusal(500, "InternalError")]
    proxy.rule = lambda request, forward: stumbles.pop() if stumbles else forward()
    calls[verb]()
    assert stumbles == []


def test_a_body_that_breaks_off(s3_root: str, proxy: Proxy) -> None:
    store = open_store(s3_root, retry_timeout=60)
    body = random.Random(1).randbytes(40 * MIB)
    store.put("part", body)
    broken: list[Request] = []

    def cut(request: Request, forward: Callable[[], Reply]) -> Reply | None:
        if request.headers.get("range") == f"bytes={16 * MIB}-{32 * MIB - 1}" and not broken:
            broken.append(request)
            return None
        return forward()

    proxy.rule = cut
    assert store.get("part").body == body
    assert broken


def test_a_403_is_never_taken_for_missing(s3_root: str, proxy: Proxy) -> None:
    store = open_store(s3_root)
    store.put("there", b"x")
    proxy.rule = lambda request, forward: forward() if "list-type=2" in request.path else refusal(403, "AccessDenied")
    with pytest.raises(StoreForbidden):
        store.get("there")
    with pytest.raises(ObjectMissing):
        store.get("not-there")
    # Nothing may be said of a key that cannot be listed, be the answer 403 or 404.
    for status, code in ((403, "AccessDenied"), (404, "NoSuchKey")):
        replies = {True: refusal(403, "AccessDenied"), False: refusal(status, code)}
        proxy.rule = lambda request, forward, replies=replies: replies["list-type=2" in request.path]  # type: ignore[misc]
        with pytest.raises(StoreForbidden):
            store.get("not-there")


def test_folders_are_named_without_listing_what_they_hold(store_root: str) -> None:
    store = open_store(store_root)
    assert isinstance(store, FileStore)
    assert store.folders() == store.folders("runs/") == []
    for key in ("runs/b/head.json", "runs/a/checkpoints/1/x", "runs/a.txt", "code/runs/c/y"):
        store.put(key, b"1")
    assert store.folders("runs/") == ["a", "b"]
    assert store.folders() == ["code", "runs"]
    store.create("runs/gone/head.json", b"1")
    store.delete(["runs/gone/head.json"])
    assert store.folders("runs/") == ["a", "b"]
    within = store.within("runs/a")
    assert within.url == f"{store.url}/runs/a"
    assert [info.key for info in within.list()] == ["checkpoints/1/x"] and within.get("checkpoints/1/x").body == b"1"
    within.create("head.json", b"2")
    assert store.get("runs/a/head.json").body == b"2"


def test_a_404_that_a_list_contradicts(s3_root: str, proxy: Proxy) -> None:
    store = open_store(s3_root)
    store.put("key", b"x")
    late = [refusal(404, "NoSuchKey")]
    proxy.rule = lambda request, forward: late.pop() if late else forward()
    assert store.get("key").body == b"x"
    proxy.rule = lambda request, forward: forward() if "list-type=2" in request.path else refusal(404, "NoSuchKey")
    with pytest.raises(StoreUnavailable):
        store.get("key")


def test_a_lost_reply_shows_as_a_lost_race(s3_root: str, proxy: Proxy) -> None:
    """The client sends again and meets its own object: what stands there tells, as the protocol says."""
    store = open_store(s3_root)
    lost: list[Request] = []

    def lose_the_first(request: Request, forward: Callable[[], Reply]) -> Reply | None:
        reply = forward()
        lost.append(request)
        return None if len(lost) == 1 else reply

    proxy.rule = lose_the_first
    with pytest.raises(ConditionFailed):
        store.create("key", b"mine")
    assert store.get("key").body == b"mine"
    etag = store.get("key").etag
    lost.clear()
    with pytest.raises(ConditionFailed):
        store.swap("key", b"mine again", etag)
    assert store.get("key").body == b"mine again"


def test_a_conflict_is_settled_by_reading_again(s3_root: str, proxy: Proxy) -> None:
    """409 ConditionalRequestConflict: another write was under way at the same moment."""
    store = open_store(s3_root, retry_timeout=1)
    conflicts = [refusal(409, "ConditionalRequestConflict")] * 2
    proxy.rule = lambda request, forward: conflicts.pop() if conflicts and request.method == "PUT" else forward()
    etag = store.create("key", b"1")
    assert store.get("key").body == b"1"

    proxy.rule = lambda request, forward: (
        refusal(409, "ConditionalRequestConflict") if request.method == "PUT" else forward()
    )
    with pytest.raises(ConditionFailed):
        store.create("key", b"2")  # the other write came through
    with pytest.raises(ConditionFailed):
        store.swap("key", b"2", '"another"')
    with pytest.raises(ConditionFailed):
        store.swap("gone", b"2", etag)
    with pytest.raises(StoreUnavailable):
        store.swap("key", b"2", etag)
    with pytest.raises(StoreUnavailable):
        store.create("new", b"2")
    assert store.get("key").body == b"1"


def test_a_delete_that_is_refused_for_one_key(s3_root: str, proxy: Proxy) -> None:
    error = b"<Error><Key>prefix/b</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    body = b'<?xml version="1.0"?><DeleteResult><Deleted><Key>prefix/a</Key></Deleted>' + error + b"</DeleteResult>"
    proxy.rule = lambda request, forward: Reply(200, {}, body)
    with pytest.raises(StoreForbidden):
        open_store(s3_root).delete(["a", "b"])


def test_what_travels(s3_root: str, proxy: Proxy) -> None:
    """Payloads in parts, conditions on single PUTs only, a checksum on each, nothing hashed for the signature."""
    store = open_store(s3_root)
    body = bytes(40 * MIB)
    store.put("payload", body)
    assert sorted(len(request.body) // MIB for request in proxy.requests if "partNumber" in request.path) == [8, 16, 16]

    proxy.requests.clear()
    store.swap("head", body, store.create("head", body[: 20 * MIB]))
    conditions = [(r.method, r.headers.get("if-none-match"), "if-match" in r.headers) for r in proxy.requests]
    assert conditions == [("PUT", "*", False), ("PUT", None, True)]
    for request in proxy.requests:
        assert request.headers["x-amz-checksum-crc64nvme"]
        assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"

    proxy.requests.clear()
    assert store.get("payload").body == body
    assert {request.headers.get("range") for request in proxy.requests} == {
        None,
        f"bytes=0-{16 * MIB - 1}",
        f"bytes={16 * MIB}-{32 * MIB - 1}",
        f"bytes={32 * MIB}-{40 * MIB - 1}",
    }


def test_a_search_reads_no_more_than_it_needs(s3_root: str, proxy: Proxy) -> None:
    store = open_store(s3_root)
    proxy.requests.clear()
    with pytest.raises(ObjectMissing):
        store.get("checkpoints/05/part")
    listed = proxy.requests[-1].path.partition("?")[2].replace("%2F", "/").split("&")
    assert sorted(listed) == [
        "list-type=2",
        "prefix=prefix/checkpoints/05/",
        "start-after=prefix/checkpoints/05/par",
    ]

    for number in range(80):
        store.put(f"many/{number:02}", b"")
    proxy.rule = unsociable  # three keys to a page; obstore asks for 50 keys ahead
    proxy.requests.clear()
    assert keys(store, "many/03") == ["many/03"]
    assert len(proxy.requests) < 20


def test_the_region_is_the_sdks(s3_root: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def region() -> str:
        list(open_store(s3_root).list())
        return proxy.requests[-1].headers["authorization"].split("/")[2]

    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert region() == "eu-central-1"
    monkeypatch.delenv("AWS_REGION")
    assert region() == "eu-west-1"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert region() == "us-east-1"
    (tmp_path / "config").write_text("[profile mine]\nregion = sa-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert region() == "sa-east-1"


@pytest.mark.parametrize(
    ("bucket_name", "host"),
    [("my-bucket", "my-bucket.s3.eu-west-1.amazonaws.com:443"), ("my.bucket", "s3.eu-west-1.amazonaws.com:443")],
)
def test_addresses_on_aws_itself(monkeypatch: pytest.MonkeyPatch, bucket_name: str, host: str) -> None:
    """Seen by an HTTPS proxy that refuses to connect to them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        store = open_store(f"s3://{bucket_name}", retry_timeout=0.2)
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(store.create, "key", b"")
            listener.settimeout(5)
            connection, _ = listener.accept()
            with connection:
                asked = connection.recv(1000).decode()
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            listener.close()
            assert isinstance(call.exception(), StoreUnavailable)
    assert asked.startswith(f"CONNECT {host} ")


@pytest.mark.parametrize("region", ["cn-north-1", "us-isob-east-1", "eusc-de-east-1"])
def test_a_region_with_addresses_of_its_own_needs_one(region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", region)
    with pytest.raises(InputError, match=rf"^AWS_REGION: '{region}': .* AWS_ENDPOINT_URL_S3$"):
        list(open_store("s3://somebodys-bucket/x").list(""))


@pytest.mark.parametrize(
    "url", ["http://example.com", "http://10.0.0.1:9000", "ftp://127.0.0.1", "127.0.0.1:9000", "https://", "x"]
)
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_plain_http_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch, variable: str, url: str) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(InputError, match=variable):
        open_store("s3://bucket")


@pytest.mark.parametrize("verb", VERBS)
def test_without_credentials(s3_root: str, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(s3_root)
    with pytest.raises(StoreForbidden, match="aws configure"):
        verbs(store)[verb]()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIALATER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert keys(store) == []


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ("[default]\ncredential_process = false\n", StoreForbidden, "custom-process"),
        ("[profile other]\nregion = us-east-1\n", StoreForbidden, "mine"),
    ],
)
def test_credentials_that_cannot_be_had(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str, error: type[StoreError], text: str
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    if "other" in config:
        monkeypatch.setenv("AWS_PROFILE", "mine")
    with pytest.raises(error, match=text):
        keys(open_store(s3_root))


def test_credentials_of_an_instance_are_renewed(s3_root: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on EC2. They are about to expire, so that botocore fetches new ones as often as it is asked."""
    granted: list[str] = []

    def grant() -> dict[str, str]:
        granted.append(f"TOKEN{len(granted)}")
        expiry = (datetime.now(timezone.utc) + timedelta(minutes=9)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"AccessKeyId": "ASIAROLE", "SecretAccessKey": "s", "Token": granted[-1], "Expiration": expiry}

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    with MetadataService("i-1", role="worker", credentials=grant) as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint)
        store = open_store(s3_root)
        store.put("key", b"")
        assert proxy.requests[-1].headers["x-amz-security-token"] == granted[-1]
        assert "ASIAROLE" in proxy.requests[-1].headers["authorization"]
        metadata.fail(100)
        with pytest.raises(StoreForbidden, match="instance role"):
            keys(open_store(s3_root))
        monkeypatch.setenv("TRAIN_CLOUD_AUTOSCALING_GROUP", "workers")
        with pytest.raises(StoreUnavailable, match="instance role"):
            keys(open_store(s3_root))


# ------------------------------------------------------------------------------------------------------------- a folder

WRITE = """
import hashlib, random, sys
from train_cloud.store import open_store
store, rng = open_store(sys.argv[1]), random.Random(int(sys.argv[2]))
etag, turn = None, 0
print("ready", flush=True)
while True:
    turn += 1
    content = rng.randbytes(rng.choice([0, 10, 5000, 2_000_000]))
    body = hashlib.sha256(content).hexdigest().encode() + content
    if etag is None:
        try:
            etag = store.get("head").etag
        except Exception:
            etag = store.create("head", body)
    etag = store.swap("head", body, etag)
    store.put(f"parts/{turn % 3}/part", body)
    store.create(f"log/{sys.argv[2]}-{turn}", body)
    store.delete([f"log/{sys.argv[2]}-{turn - 3}"])
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_objects(folder_root: str) -> None:
    store = open_store(folder_root, retry_timeout=5)
    rng, seen = random.Random(0), 0
    for turn in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITE, folder_root, str(turn)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.02, 0.4))
        for alive in (True, False):
            if not alive:
                writer.send_signal(signal.SIGKILL)
                writer.wait()
            for info in store.list():
                with suppress(*[ObjectMissing] if alive else []):
                    body = store.get(info.key).body
                    assert hashlib.sha256(body[64:]).hexdigest().encode() == body[:64]
                    assert alive or len(body) == info.size
                    seen += 1
        writer.stdout.close()
        read = store.get("head")
        store.swap("head", read.body, read.etag)  # nobody's lock is in the way
    assert seen > 50


HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_waited_for_and_dies_with_its_holder(folder_root: str) -> None:
    store = open_store(folder_root, retry_timeout=0.3)
    etag = store.create("key", b"1")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, f"{folder_root}/{RESERVED}/lock"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        for verb in ("put", "create", "swap", "delete"):
            with pytest.raises(StoreUnavailable, match="lock"):
                verbs(store)[verb]()
        assert store.get("key").body == b"1"
        assert keys(store) == ["key"]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    store.swap("key", b"2", etag)
    assert entries(Path(folder_root, RESERVED)) == ["lock"]


def test_remains_of_killed_writers_go(folder_root: str) -> None:
    private = Path(folder_root, RESERVED)
    private.mkdir()
    for name, age in (("old", 48 * 3600), ("young", 60)):
        (private / name).write_bytes(b"x")
        os.utime(private / name, (time.time() - age,) * 2)
    store = open_store(folder_root)
    assert keys(store) == []
    store.put("key", b"")
    assert entries(private) == ["lock", "young"]


def test_a_folder_goes_with_its_last_object(folder_root: str) -> None:
    store = open_store(f"{folder_root}/not/yet/there")
    assert keys(store) == []
    store.delete(["a/b/c/d"])
    assert not Path(folder_root, "not").exists()
    for key in ("a/b/c/d", "a/b/c/e", "a/x"):
        store.put(key, b"")
    store.delete(["a/b/c/d", "a/b/c/e"])
    assert entries(Path(store.url, "a")) == ["x"]
    store.delete(["a/x"])
    assert entries(Path(store.url)) == [RESERVED]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("below", ["", "/runs/one"])
def test_a_file_is_no_folder(tmp_path: Path, below: str, verb: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(BucketMissing, match="is a file"):
        verbs(open_store(f"{tmp_path}/file{below}"))[verb]()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_an_object_is_no_folder(folder_root: str) -> None:
    store = open_store(folder_root)
    store.put("a/b", b"x")
    for key in ("a", "a/b/c"):
        with pytest.raises(ObjectMissing):
            store.get(key)
        with pytest.raises(StoreError, match="same name"):
            store.put(key, b"y")
    assert keys(store, "a/b/c") == []
    assert store.get("a/b").body == b"x"


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="Unix only")
@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_of_somebody_else(folder_root: str, verb: str) -> None:
    store = open_store(folder_root)
    store.put("key", b"x")
    store.put("folder/key", b"x")
    Path(folder_root, "folder").chmod(0o000)
    Path(folder_root, "key").chmod(0o000)
    Path(folder_root, RESERVED).chmod(0o500)
    Path(folder_root).chmod(0o500)
    user = os.geteuid()
    if user == 0:
        for path in (folder_root, f"{folder_root}/{RESERVED}", f"{folder_root}/key"):
            os.chown(path, 65534, 65534)
        Path(folder_root).parent.chmod(0o711)
        Path(folder_root).parent.parent.chmod(0o711)
        os.seteuid(65534)
    try:
        with pytest.raises(StoreForbidden):
            (verbs(store, "folder/") | {v: c for v, c in verbs(store).items() if v != "list"})[verb]()
    finally:
        os.seteuid(user)
        for path in (folder_root, f"{folder_root}/{RESERVED}", f"{folder_root}/folder", f"{folder_root}/key"):
            Path(path).chmod(0o700)
    assert store.get("key").body == b"x"


FULL = """
import sys
from train_cloud.errors import StoreUnavailable
from train_cloud.store import open_store
store = open_store(sys.argv[1])
try:
    store.swap("key", bytes(100_000), store.get("key").etag)
except StoreUnavailable as error:
    print(error)
"""


def test_a_disk_that_takes_no_more(folder_root: str) -> None:
    """Played by a limit on the size of files."""
    store = open_store(folder_root)
    store.put("key", b"x")
    done = subprocess.run(
        [sys.executable, "-c", FULL, folder_root],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "File too large" in done.stdout, done.stdout + done.stderr
    assert store.get("key").body == b"x"
    assert entries(Path(folder_root, RESERVED)) == ["lock"]


# ---------------------------------------------------------------------------------------------------- who is waited for


def test_a_silent_endpoint_is_named_while_it_is_waited_for(
    proxy: Proxy, s3_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    silent = threading.Event()

    def stalled(request: Request, forward: Callable[[], Reply]) -> Reply:
        silent.wait(20)
        return forward()

    proxy.rule = stalled
    store = open_store(s3_root, retry_timeout=60)
    asking = [threading.Thread(target=lambda: list(store.list())) for _ in range(3)]
    for thread in asking:
        thread.start()
    until = time.monotonic() + 15
    while not caplog.records and time.monotonic() < until:
        time.sleep(0.05)
    silent.set()
    for thread in asking:
        thread.join(30)
    (record,) = caplog.records
    assert record.message == f"waiting for an answer of {proxy.url} ({s3_root}), for 60 s in all"


def test_a_store_that_has_answered_is_not_said_to_be_waited_for(
    proxy: Proxy, s3_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(s3_root, retry_timeout=60)
    assert list(store.list()) == []

    def slow(request: Request, forward: Callable[[], Reply]) -> Reply:
        time.sleep(4)
        return forward()

    proxy.rule = slow
    store.put("x", b"1")
    assert not caplog.records, "commits say themselves that they are delayed"


def test_a_lock_that_is_held_is_named(folder_root: str, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(folder_root, retry_timeout=60)
    store.put("x", b"1")
    with FileLock(Path(folder_root, ".train-cloud", "lock")):
        writing = threading.Thread(target=lambda: store.put("x", b"2"))
        writing.start()
        until = time.monotonic() + 15
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.05)
    writing.join(30)
    (record,) = caplog.records
    assert "waiting for another process to release" in record.message and store.get("x").body == b"2"
