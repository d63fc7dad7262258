"""An S3 server for reading many small objects: one process, one thread, so that it costs the client's machine little.

LIST, GET with ``Range`` and ``If-Match``, HEAD; e-tags are MD5. ``python -m benchmarks.objects FOLDER [--latency MS]
[--rate MB/S]`` serves a folder as ``s3://bucket/``, prints its port, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_PAGE = 1000


class _Connection(asyncio.Protocol):
    def __init__(
        self, objects: dict[str, tuple[bytes, str]], keys: list[str], latency: float, rate: float, line: list[float]
    ) -> None:
        self._objects, self._keys, self._latency = objects, keys, latency
        self._rate, self._line = rate, line
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, self._buffer = self._buffer[:end].decode("latin-1"), self._buffer[end + 4 :]
            answer = self._answer(head)
            if wait := self._latency + self._on_the_line(len(answer[1])):
                asyncio.get_running_loop().call_later(wait, self._write, answer)
            else:
                self._write(answer)

    def _on_the_line(self, size: int) -> float:
        """Seconds until the line, which all connections share, has carried so many bytes more."""
        if not self._rate:
            return 0.0
        now = asyncio.get_running_loop().time()
        self._line[0] = max(self._line[0], now) + size / self._rate
        return self._line[0] - now

    def _write(self, answer: tuple[bytes, bytes]) -> None:
        self._transport.writelines([piece for piece in answer if piece])

    def _answer(self, head: str) -> tuple[bytes, bytes]:
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        parts = urlsplit(target)
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        if not key:
            return self._list(parts.query)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        found = self._objects.get(key)
        if found is None:
            return _reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        body, etag = found
        if headers.get("if-match", etag) != etag:
            return _reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        more = f"ETag: {etag}\r\n"
        if "range" in headers:
            start, _, end = headers["range"].removeprefix("bytes=").partition("-")
            last = min(int(end), len(body) - 1) if end else len(body) - 1
            piece = body[int(start) : last + 1]
            return _reply(206, piece, f"{more}Content-Range: bytes {start}-{last}/{len(body)}\r\n")
        answer = _reply(200, body, more)
        return (answer[0], b"") if method == "HEAD" else answer

    def _list(self, query: str) -> tuple[bytes, bytes]:
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        prefix = asked.get("prefix", "")
        after = asked.get("continuation-token") or asked.get("start-after", "")
        start = max(bisect.bisect_left(self._keys, prefix), bisect.bisect_right(self._keys, after))
        page = [key for key in self._keys[start : start + _PAGE] if key.startswith(prefix)]
        rest = start + _PAGE < len(self._keys) and len(page) == _PAGE
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self._objects[key][0])}</Size>"
            f"<ETag>{escape(self._objects[key][1])}</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if rest else ""
        text = f"<ListBucketResult><IsTruncated>{str(rest).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
        return _reply(200, text.encode())


def _reply(status: int, body: bytes, more: str = "") -> tuple[bytes, bytes]:
    lines = f"Content-Length: {len(body)}\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n{more}"
    head = f"HTTP/1.1 {status} -\r\n{lines}\r\n"
    return head.encode(), body


class Objects:
    """The server in a process of its own, as a context manager.

    :param latency: seconds from a request to its answer
    :param rate: bytes a second over all connections; 0: as fast as it goes
    """

    def __init__(self, folder: Path, *, latency: float = 0.0, rate: float = 0.0) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.objects",
                str(folder),
                f"--latency={latency * 1e3}",
                f"--rate={rate / 1e6}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> Objects:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


async def _serve(folder: Path, latency: float, rate: float) -> None:
    objects = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and ".train-cloud" not in path.parts):
        body = path.read_bytes()
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        objects[path.relative_to(folder).as_posix()] = (body, f'"{etag}"')
    keys = sorted(objects)
    loop = asyncio.get_running_loop()
    line = [0.0]
    server = await loop.create_server(
        lambda: _Connection(objects, keys, latency, rate, line), "127.0.0.1", 0, backlog=256
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="ms")
    parser.add_argument("--rate", type=float, default=0.0, help="MB/s; 0: as fast as it goes")
    options = parser.parse_args()
    asyncio.run(_serve(options.folder, options.latency / 1e3, options.rate * 1e6))
