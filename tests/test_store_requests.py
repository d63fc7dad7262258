"""What is sent to S3, header by header: recorded by a server that refuses what AWS documents that S3 refuses.

moto compares no algorithms, and other servers are lenient too. The rules are those of the Amazon S3 API Reference
("PutObject", "UploadPart", "CompleteMultipartUpload", "DeleteObjects") and of "Checking object integrity" and "How to
prevent object overwrites with conditional writes" (Amazon S3 User Guide).
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import pytest
from awscrt import checksums

from train_cloud.errors import ConditionFailed
from train_cloud.store import FileStore, open_store

MIB = 1 << 20
#: Of every request that obstore makes, and of every one that boto3 makes.
OBSTORE = {"accept", "authorization", "host", "user-agent", "x-amz-content-sha256", "x-amz-date"}
BOTO3 = {
    *("accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "authorization", "content-length", "host"),
    *("user-agent", "x-amz-content-sha256", "x-amz-date"),
}
BODY = {"content-length", "x-amz-checksum-crc64nvme"}


@dataclass
class Request:
    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    """By lower-case names."""
    body: bytes

    @property
    def kind(self) -> str:
        """The operation, by the names of the API Reference."""
        q = self.query
        if self.method == "POST":
            return "Create" if "uploads" in q else "Complete" if "uploadId" in q else "DeleteObjects"
        if self.method == "PUT":
            copied = "x-amz-copy-source" in self.headers
            return ("UploadPartCopy" if copied else "UploadPart") if "uploadId" in q else "PutObject"
        return {"GET": "ListObjectsV2" if "list-type" in q else "GetObject", "HEAD": "HeadObject"}[self.method]


class Refused(Exception):
    def __init__(self, status: int, code: str, said: str) -> None:
        super().__init__(said)
        self.status, self.code = status, code


@dataclass
class Upload:
    algorithm: str | None
    parts: dict[int, bytes] = field(default_factory=dict)


class S3(ThreadingHTTPServer):
    """One bucket, strict where moto is not; keeps every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.requests: list[Request] = []
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, Upload] = {}
        self.lock = threading.Lock()

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        self.check(request)
        key, stood = request.key, self.objects.get(request.key)
        if request.kind == "PutObject":
            self.conditions(request, stood)
            self.objects[key] = request.body
            return 200, {"ETag": etag(request.body)}, b""
        if request.kind == "Create":
            upload = f"upload-{len(self.uploads)}"
            self.uploads[upload] = Upload(request.headers.get("x-amz-checksum-algorithm"))
            return (
                200,
                {},
                f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode(),
            )
        if request.kind in ("UploadPart", "UploadPartCopy"):
            return self.part(request)
        if request.kind == "Complete":
            return self.complete(request)
        if request.kind == "DeleteObjects":
            named = [
                each.text or "" for each in ElementTree.fromstring(request.body).iter() if each.tag.endswith("Key")
            ]
            for name in named:
                self.objects.pop(name, None)
            quiet = b"<Quiet>true</Quiet>" in request.body
            told = "" if quiet else "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in named)
            return 200, {}, f"<DeleteResult>{told}</DeleteResult>".encode()
        if request.kind == "ListObjectsV2":
            prefix = request.query.get("prefix", "")
            keys = sorted(name for name in self.objects if name.startswith(prefix))
            content = "".join(
                f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{etag(self.objects[name])}</ETag><Size>{len(self.objects[name])}</Size></Contents>"
                for name in keys
            )
            return 200, {}, f"<ListBucketResult><IsTruncated>false</IsTruncated>{content}</ListBucketResult>".encode()
        if stood is None:
            raise Refused(404, "NoSuchKey", "no")
        headers = {"ETag": etag(stood), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted is None:
            return 200, headers, stood
        first, last = int(wanted[1]), min(int(wanted[2] or len(stood) - 1), len(stood) - 1)
        return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(stood)}"}, stood[first : last + 1]

    def check(self, request: Request) -> None:
        """What holds for every request."""
        headers, body = request.headers, request.body
        if "transfer-encoding" in headers:
            raise Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        if request.method in ("PUT", "POST") and "content-length" not in headers:
            raise Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        said = headers["x-amz-content-sha256"]
        if said not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
            raise Refused(400, "XAmzContentSHA256Mismatch", said)
        for name, value in headers.items():
            if name.startswith("x-amz-checksum-") and name not in ("x-amz-checksum-algorithm", "x-amz-checksum-type"):
                algorithm = name.removeprefix("x-amz-checksum-")
                if algorithm not in _CHECKSUMS or _CHECKSUMS[algorithm](body) != value:
                    raise Refused(400, "BadDigest", f"The {algorithm} you specified did not match.")
        if request.kind == "DeleteObjects" and not ("content-md5" in headers or checksum_of(headers)):
            raise Refused(400, "InvalidRequest", "Missing required header for this request: Content-MD5")

    def conditions(self, request: Request, stood: bytes | None) -> None:
        if request.headers.get("if-none-match") == "*" and stood is not None:
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        wanted = request.headers.get("if-match")
        if wanted is not None and stood is None:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        if wanted is not None and wanted != etag(stood or b""):
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")

    def part(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        upload, number = self.uploads[request.query["uploadId"]], int(request.query["partNumber"])
        if request.kind == "UploadPartCopy":
            source = self.objects[unquote(request.headers["x-amz-copy-source"]).split("/", 1)[1]]
            assert request.headers["x-amz-copy-source-if-match"] == etag(source)
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["x-amz-copy-source-range"]).groups()  # type: ignore[union-attr]
            upload.parts[number] = source[int(first) : int(last) + 1]
            said = f"<CopyPartResult><ETag>{etag(upload.parts[number])}</ETag></CopyPartResult>"
            return 200, {}, said.encode()
        sent = checksum_of(request.headers)
        if sent is not None and sent.upper() != (upload.algorithm or "null"):
            said = f"expected checksum Type: {upload.algorithm}, actual checksum Type: {sent}"
            raise Refused(400, "InvalidRequest", f"Checksum Type mismatch occurred, {said}")
        upload.parts[number] = request.body
        return 200, {"ETag": etag(request.body)}, b""

    def complete(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        upload = self.uploads[request.query["uploadId"]]
        named = ElementTree.fromstring(re.sub(rb' xmlns="[^"]+"', b"", request.body)).findall("Part")
        listed = [(int(part.findtext("PartNumber") or 0), part.findtext("ETag")) for part in named]
        assert listed == [(number, etag(upload.parts[number])) for number in sorted(upload.parts)]
        if any(len(upload.parts[number]) < 5 * MIB for number, _ in listed[:-1]):
            raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        # CRC64NVME is of the whole object; of the composite ones S3 wants each part's again.
        if upload.algorithm not in (None, "CRC64NVME") and b"Checksum" not in request.body:
            raise Refused(400, "InvalidRequest", "The complete request must include the checksum for each part.")
        whole = b"".join(upload.parts[number] for number in sorted(upload.parts))
        self.objects[request.key] = whole
        return (
            200,
            {},
            f"<CompleteMultipartUploadResult><ETag>{etag(whole)}</ETag></CompleteMultipartUploadResult>".encode(),
        )


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, unquote(url.path).split("/", 2)[-1], query, headers, self.rfile.read(size))
        with self.server.lock:
            self.server.requests.append(request)
            try:
                status, told, body = self.server.answer(request)
            except Refused as error:
                said = f"<Code>{error.code}</Code><Message>{error}</Message>"
                status, told, body = error.status, {}, f"<Error>{said}</Error>".encode()
        self.send_response(status)
        for name, value in {**told, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def _encoded(value: int, size: int) -> str:
    return base64.b64encode(value.to_bytes(size, "big")).decode()


_CHECKSUMS: dict[str, Callable[[bytes], str]] = {
    "crc64nvme": lambda body: _encoded(checksums.crc64nvme(body), 8),
    "sha256": lambda body: base64.b64encode(hashlib.sha256(body).digest()).decode(),
    "crc32": lambda body: _encoded(checksums.crc32(body), 4),
}


def checksum_of(headers: dict[str, str]) -> str | None:
    """The algorithm of the checksum that came along."""
    found = [name.removeprefix("x-amz-checksum-") for name in headers if name.startswith("x-amz-checksum-")]
    found = [name for name in found if name not in ("algorithm", "type")]
    return found[0] if found else None


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with S3() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store(s3: S3) -> FileStore:
    store = open_store("s3://bucket/p")
    assert isinstance(store, FileStore)
    return store


def sent(s3: S3) -> list[tuple[str, set[str]]]:
    """Kind and names of headers of each request since the last look, parts in any order."""
    found = [(request.kind, set(request.headers)) for request in s3.requests]
    s3.requests.clear()
    return found


def test_single_objects(s3: S3, store: FileStore) -> None:
    first = store.put("a", b"one")
    assert sent(s3) == [("PutObject", OBSTORE | BODY)]
    store.create("b", b"")
    assert sent(s3) == [("PutObject", OBSTORE | BODY | {"if-none-match"})]
    second = store.swap("a", b"two", first)
    assert s3.requests[0].headers["if-match"] == etag(b"one")
    assert sent(s3) == [("PutObject", OBSTORE | BODY | {"if-match"})]
    assert second == etag(b"two") and s3.objects == {"p/a": b"two", "p/b": b""}
    assert bytes(store.get("a").body) == b"two"
    assert sent(s3) == [("GetObject", OBSTORE)]
    assert bytes(store.tail("a", 1)) == b"wo"
    assert sent(s3) == [("GetObject", OBSTORE | {"range"})]
    assert [info.key for info in store.list("")] == ["a", "b"]
    assert sent(s3) == [("ListObjectsV2", OBSTORE)]


def test_conditions_hold_and_nothing_is_written_twice(s3: S3, store: FileStore) -> None:
    tag = store.put("a", b"one")
    with pytest.raises(ConditionFailed):
        store.create("a", b"other")
    store.swap("a", b"two", tag)
    with pytest.raises(ConditionFailed):
        store.swap("a", b"three", tag)
    with pytest.raises(ConditionFailed):
        store.swap("gone", b"three", tag)
    assert s3.objects == {"p/a": b"two"}


@pytest.mark.parametrize("how", ["put", "stream"])
def test_what_is_large_travels_in_parts_of_one_algorithm(s3: S3, store: FileStore, how: str) -> None:
    body = bytes(16 * MIB) + b"the end"
    if how == "put":
        store.put("big", body)
    else:
        store.stream("big", iter([body[: 5 * MIB], body[5 * MIB :]]))
    begin, *parts, complete = list(s3.requests)
    assert begin.headers["x-amz-checksum-algorithm"] == "CRC64NVME"
    assert {request.query["partNumber"] for request in parts} == {"1", "2"}
    assert sent(s3) == [
        ("Create", OBSTORE | {"content-length", "x-amz-checksum-algorithm"}),
        ("UploadPart", OBSTORE | BODY),
        ("UploadPart", OBSTORE | BODY),
        ("Complete", OBSTORE | {"content-length"}),
    ]
    assert "if-match" not in complete.headers and s3.objects == {"p/big": body}


def test_what_grows_is_sent_from_its_old_end_on(s3: S3, store: FileStore) -> None:
    before = bytes(6 * MIB)
    tag = store.put("log", before)
    sent(s3)
    store.extend("log", iter([b"more", b" and more"]), tag)
    assert s3.objects["p/log"] == before + b"more and more"
    begin, part = s3.requests[1], s3.requests[3]
    assert begin.headers["x-amz-checksum-algorithm"] == "CRC64NVME" and part.body == b"more and more"
    copied = {"x-amz-copy-source", "x-amz-copy-source-if-match", "x-amz-copy-source-range"}
    assert sent(s3) == [
        ("HeadObject", OBSTORE),
        ("Create", BOTO3 | {"x-amz-checksum-algorithm"}),
        ("UploadPartCopy", BOTO3 | copied),
        ("UploadPart", BOTO3 | {"expect", "x-amz-checksum-crc64nvme", "x-amz-sdk-checksum-algorithm"}),
        ("Complete", BOTO3),
    ]


def test_what_is_deleted_is_named_with_a_checksum(s3: S3, store: FileStore) -> None:
    for name in ("a", "b", "c"):
        store.put(name, b"x")
    sent(s3)
    store.delete(["a", "b"])
    ((kind, headers),) = sent(s3)
    named = {"content-length", "content-md5", "content-type", "x-amz-checksum-sha256"}
    assert (kind, headers) == ("DeleteObjects", OBSTORE | named)
    assert s3.objects == {"p/c": b"x"}
    assert store.clear() == (1, [])
    (listing, listed), (kind, headers) = sent(s3)
    assert (listing, listed, kind) == ("ListObjectsV2", BOTO3 - {"content-length"}, "DeleteObjects")
    assert headers == BOTO3 | {"x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm"} and s3.objects == {}


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}, b"one", "BadDigest"),
        ({"x-amz-content-sha256": "0" * 64}, b"one", "XAmzContentSHA256Mismatch"),
        ({"transfer-encoding": "chunked"}, b"one", "MissingContentLength"),
    ],
)
def test_the_server_sees_what_it_is_there_to_see(s3: S3, headers: dict[str, str], body: bytes, code: str) -> None:
    plain = {"content-length": str(len(body)), "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    with pytest.raises(Refused) as refusal:
        s3.answer(Request("PUT", "p/a", {}, {**plain, **headers}, body))
    assert refusal.value.code == code


def test_the_server_refuses_a_part_of_another_algorithm(s3: S3) -> None:
    s3.uploads["u"] = Upload(None)
    headers = {"content-length": "1", "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    headers["x-amz-checksum-crc32"] = _CHECKSUMS["crc32"](b"x")
    with pytest.raises(Refused, match="expected checksum Type: None, actual checksum Type: crc32"):
        s3.answer(Request("PUT", "p/a", {"uploadId": "u", "partNumber": "1"}, headers, b"x"))
