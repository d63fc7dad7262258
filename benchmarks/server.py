"""An S3 server on loopback that costs next to nothing: it keeps or discards bodies and serves them from memory.

As much of S3 as the two clients need: single and multipart PUT, ranges, LIST, conditional writes, bulk deletion. It
can be paced to a line's rate and round trip. It notes when each request was answered on the clock that all processes
of a machine share, so that it is the instrument for what is sent and for when something is committed.

``python -m benchmarks.server [--rate MB/s] [--latency ms] [--discard-above bytes]`` prints its port; it ends with its
standard input.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import http.client
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

_LOG, _LINE = "-/log", "-/line"
_BLOCK = 1 << 20
_PACED_BLOCK = 1 << 18
_MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"


class Request(NamedTuple):
    """One answered request."""

    at: float
    """``time.monotonic()`` when the answer began to go out"""
    method: str
    key: str
    """bucket/key"""
    received: int
    """bytes of the body"""
    sent: int


@dataclass(frozen=True)
class _Object:
    etag: str
    size: int
    blocks: Sequence[bytes | bytearray]
    """Empty where the body was discarded: zeros are served."""


class _Line:
    """One line that all connections share.

    :param rate: bytes per second; 0 is unpaced
    """

    def __init__(self, rate: float) -> None:
        self._free = 0.0
        self._lock = threading.Lock()
        self.pace(rate)

    def pace(self, rate: float) -> None:
        self._rate = rate
        self.block = _PACED_BLOCK if rate else _BLOCK

    def carry(self, size: int) -> None:
        """Return when ``size`` bytes more have gone over the line."""
        if not self._rate:
            return
        with self._lock:
            # A sleep that lasted too long is made up for, an idle line saves nothing up.
            self._free = max(self._free, time.monotonic() - 0.002) + size / self._rate
            wait = self._free - time.monotonic()
        if wait > 0.0005:
            time.sleep(wait)


class _Bucket(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rate: float, latency: float, discard_above: float) -> None:
        super().__init__(("127.0.0.1", 0), _S3)
        self.line = _Line(rate)
        self.latency = latency
        self.discard_above = discard_above
        self.objects: dict[str, _Object] = {}
        self.keys: list[str] | None = None
        self.uploads: dict[str, dict[int, _Object]] = {}
        self.log: list[Request] = []
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)


class _S3(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Bucket

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that needed no more of it
            super().handle()

    def do_PUT(self) -> None:
        path, query = self._target()
        body = self._receive()
        if path == _LINE:
            self.server.line.pace(float(query["rate"]))
            self.server.latency = float(query["latency"])
            return self._answer(200, note=False)
        if "partNumber" in query:
            self.server.uploads[query["uploadId"]][int(query["partNumber"])] = body
            return self._answer(200, etag=body.etag, received=body.size)
        with self.server.lock:
            there = self.server.objects.get(path)
            unmet = ("If-None-Match" in self.headers and there is not None) or (
                "If-Match" in self.headers and (there is None or there.etag != self.headers["If-Match"])
            )
            if not unmet:
                self.server.objects[path], self.server.keys = body, None
        if unmet:
            return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>", received=body.size)
        return self._answer(200, etag=body.etag, received=body.size)

    def do_POST(self) -> None:
        path, query = self._target()
        body = self._receive(keep=True)
        if "uploads" in query:
            upload = str(next(self.server.numbers))
            self.server.uploads[upload] = {}
            return self._answer(200, _xml("InitiateMultipartUploadResult", UploadId=upload), received=body.size)
        if "uploadId" in query:
            parts = self.server.uploads.pop(query["uploadId"])
            blocks = [block for number in sorted(parts) for block in parts[number].blocks]
            whole = _Object(self._etag(), sum(part.size for part in parts.values()), blocks)
            with self.server.lock:
                self.server.objects[path], self.server.keys = whole, None
            text = _xml("CompleteMultipartUploadResult", ETag=whole.etag, Key=path.partition("/")[2])
            return self._answer(200, text, received=body.size)
        keys = [unescape(key) for key in re.findall(r"<Key>(.*?)</Key>", b"".join(body.blocks).decode())]
        with self.server.lock:
            for key in keys:
                self.server.objects.pop(f"{path}/{key}", None)
                self.server.keys = None
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode(), received=body.size)

    def do_GET(self) -> None:
        path, query = self._target()
        if path == _LOG:
            log, self.server.log = self.server.log, []
            return self._answer(200, json.dumps(log).encode(), note=False)
        if "/" not in path:
            return self._list(path, query)
        found = self.server.objects.get(path)
        if found is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if "If-Match" in self.headers and self.headers["If-Match"] != found.etag:
            return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]) if asked and asked[2] else found.size, found.size - 1)
        head = {"Content-Range": f"bytes {first}-{last}/{found.size}"} if asked else {}
        size = last + 1 - first
        self._answer(206 if asked else 200, etag=found.etag, length=size, head=head, sent=size)
        if self.command == "GET":
            self._send(found, first, last + 1)
        return None

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        path, _ = self._target()
        with self.server.lock:
            self.server.objects.pop(path, None)
            self.server.keys = None
        self._answer(204)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _target(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(parts.path).strip("/"), query

    def _etag(self) -> str:
        return f'"{next(self.server.numbers):x}"'

    def _receive(self, *, keep: bool = False) -> _Object:
        size = int(self.headers.get("Content-Length", 0))
        keep = keep or size <= self.server.discard_above
        kept = bytearray(size if keep else _BLOCK)
        view = memoryview(kept)
        got = 0
        while got < size:
            step = min(self.server.line.block, size - got)
            start = got if keep else 0
            read = self.rfile.readinto(view[start : start + step])
            if not read:
                raise ConnectionResetError(f"{self.path}: {got} of {size} bytes came")
            got += read
            self.server.line.carry(read)
        return _Object(self._etag(), size, [kept] if keep else [])

    def _send(self, found: _Object, first: int, last: int) -> None:
        blocks = found.blocks or [bytes(_BLOCK)] * (-(-found.size // _BLOCK))
        begins = 0
        for block in blocks:
            start, stop = max(first - begins, 0), min(last - begins, len(block))
            begins += len(block)
            for at in range(start, stop, self.server.line.block):
                piece = memoryview(block)[at : min(at + self.server.line.block, stop)]
                self.server.line.carry(len(piece))
                self.wfile.write(piece)

    def _list(self, bucket: str, query: Mapping[str, str]) -> None:
        prefix = f"{bucket}/{query.get('prefix', '')}"
        after = f"{bucket}/{max(query.get('start-after', ''), query.get('continuation-token', ''))}"
        if "delimiter" in query:
            self._folders(prefix, query["delimiter"])
            return
        with self.server.lock:
            keys = self._keys()
            first, last = (
                bisect.bisect_right(keys, max(after, prefix[:-1])),
                bisect.bisect_left(keys, f"{prefix}\uffff"),
            )
            more = last - first > 1000
            page = [(key.partition("/")[2], self.server.objects[key]) for key in keys[first:last][:1000]]
        page = [(key, found) for key, found in page if f"{bucket}/{key}".startswith(prefix)]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{found.size}</Size><ETag>{escape(found.etag)}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, found in page
        )
        token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
        self._answer(200, text.encode())

    def _keys(self) -> list[str]:
        """All keys in order, under the lock; sorted anew only where they are other ones."""
        if self.server.keys is None:
            self.server.keys = sorted(self.server.objects)
        return self.server.keys

    def _folders(self, prefix: str, delimiter: str) -> None:
        names = []
        with self.server.lock:
            keys = self._keys()
            at = bisect.bisect_left(keys, prefix)
            while at < len(keys) and keys[at].startswith(prefix):
                name, found, _ = keys[at][len(prefix) :].partition(delimiter)
                names.append(prefix.partition("/")[2] + name + found)
                at = bisect.bisect_left(keys, f"{prefix}{name}{found}\uffff") if found else at + 1
        folders = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            for name in names
            if name.endswith(delimiter)
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{folders}</ListBucketResult>"
        self._answer(200, text.encode())

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        *,
        etag: str | None = None,
        length: int | None = None,
        head: Mapping[str, str] | None = None,
        received: int = 0,
        sent: int = 0,
        note: bool = True,
    ) -> None:
        if note:
            time.sleep(self.server.latency)
            path = urlsplit(self.path).path.strip("/")
            self.server.log.append(Request(time.monotonic(), self.command, unquote(path), received, sent or len(body)))
        lines = {"Content-Length": str(len(body) if length is None else length), "Last-Modified": _MODIFIED}
        if etag is not None:
            lines["ETag"] = etag
        text = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **(head or {})}.items())
        self.wfile.write(f"HTTP/1.1 {status} -\r\n{text}\r\n".encode() + body)


def _xml(name: str, **values: str) -> bytes:
    return (
        f"<{name}>" + "".join(f"<{key}>{escape(text)}</{key}>" for key, text in values.items()) + f"</{name}>"
    ).encode()


class Server:
    """The server in a process of its own, as a context manager.

    :param rate: bytes per second over all connections; None: as fast as it goes
    :param latency: seconds from a request's last byte to its answer
    :param discard_above: bodies of more bytes are not kept
    """

    def __init__(self, *, rate: float | None = None, latency: float = 0.0, discard_above: float = float("inf")) -> None:
        arguments = [f"--rate={(rate or 0) / 1e6}", f"--latency={latency * 1e3}", f"--discard-above={discard_above}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.server", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def log(self) -> list[Request]:
        """What was answered since the last call, in this order."""
        entries: list[list[Any]] = json.loads(self._ask("GET", f"/{_LOG}"))
        return [Request(*entry) for entry in entries]

    def pace(self, rate: float | None, latency: float) -> None:
        """From now on; see the class."""
        pace(self.url, rate or 0.0, latency)

    def _ask(self, method: str, target: str) -> bytes:
        return _ask(self.url, method, target)


def pace(url: str, rate: float, latency: float) -> None:
    """Of the server at ``url``, from now on: bytes per second, 0 for as fast as it goes; seconds."""
    _ask(url, "PUT", f"/{_LINE}?rate={rate}&latency={latency}")


def _ask(url: str, method: str, target: str) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    try:
        connection.request(method, target)
        return connection.getresponse().read()
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=0.0, help="MB/s")
    parser.add_argument("--latency", type=float, default=0.0, help="ms")
    parser.add_argument("--discard-above", type=float, default=float("inf"), help="bytes")
    options = parser.parse_args()
    server = _Bucket(options.rate * 1e6, options.latency / 1e3, options.discard_above)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
