"""A loopback HTTP proxy between a worker and S3 that loses, delays and damages what passes through it."""

from __future__ import annotations

import base64
import http.client
import random
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

from train_cloud.checkpoint.format import crc64nvme

_DROPPED = ("connection", "transfer-encoding", "date", "server", "content-length")


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def refusal(status: int, code: str) -> Reply:
    """An error as S3 words it."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>Because.</Message></Error>'
    return Reply(status, {"Content-Type": "application/xml"}, body.encode())


class Exchange:
    """One request, and what may be done with it.

    :param handler: has read the request's head, and nothing of its body
    """

    def __init__(self, handler: BaseHTTPRequestHandler, proxy: FaultProxy) -> None:
        self._handler, self._proxy = handler, proxy
        self.method, self.path = handler.command, handler.path
        self.size = int(handler.headers.get("Content-Length") or 0)

    @property
    def kind(self) -> str:
        """What it asks for: ``put model``, ``get manifest``, ``swap head``, ``list``, ``delete``, …"""
        path, _, query = self.path.partition("?")
        if "list-type=2" in query:
            return "list"
        if "uploads" in query or "uploadId" in query:
            return "multipart"
        if self.method == "POST":
            return "delete"
        name = "segment" if "/replay/" in path else path.rsplit("/", 1)[-1].removesuffix(".json")
        conditional = "If-Match" in self._handler.headers or "If-None-Match" in self._handler.headers
        verb = {"PUT": "swap" if conditional else "put", "GET": "get"}.get(self.method, self.method.lower())
        return f"{verb} {name}"

    @cached_property
    def body(self) -> bytes:
        return self._handler.rfile.read(self.size)

    def forward(self, body: bytes | None = None) -> Reply:
        """Let the server carry it out.

        :param body: instead of the one that came. A server that verifies compares it with the checksum that was sent.
        """
        body = self.body if body is None else body
        sent = self._handler.headers.get("x-amz-checksum-crc64nvme")
        if self._proxy.verifies and sent is not None:
            found = base64.b64encode(struct.pack(">Q", crc64nvme(memoryview(body)))).decode()
            if found != sent:
                return refusal(400, "BadDigest")
        connection = http.client.HTTPConnection(self._proxy.upstream, timeout=60)
        headers = {k: v for k, v in self._handler.headers.items() if k.lower() != "content-length"}
        connection.request(self.method, self.path, body, {**headers, "Content-Length": str(len(body))})
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        return Reply(reply.status, {k: v for k, v in reply.getheaders() if k.lower() not in _DROPPED}, content)

    def answer(self, reply: Reply, *, first: int | None = None, pause: float = 0.0) -> None:
        """:param first: send only so many bytes of the body, then break the connection, or
        :param pause: wait so many seconds before the rest
        """
        _ = self.body  # a client that is still sending would not read
        handler = self._handler
        with suppress(OSError):  # a client that has lost its patience
            handler.send_response(reply.status)
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            if self.method != "HEAD":
                handler.send_header("Content-Length", str(len(reply.body)))
            handler.end_headers()
            if self.method != "HEAD":
                cut = len(reply.body) if first is None else first
                handler.wfile.write(reply.body[:cut])
                handler.wfile.flush()
                if pause:
                    self._proxy.wait(pause)
                    handler.wfile.write(reply.body[cut:])
                elif cut < len(reply.body):
                    self.reset()

    def read(self, size: int) -> bytes:
        """The first bytes of the request's body, no more."""
        return self._handler.rfile.read(size)

    def reset(self) -> None:
        """RST: what is under way on the connection is lost on both sides."""
        handler = self._handler
        handler.close_connection = True
        with suppress(OSError):
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()

    def wait(self, seconds: float) -> None:
        self._proxy.wait(seconds)


Fault = Callable[[Exchange], None]


class FaultProxy:
    """Forwards everything, but for what :meth:`arm` has announced.

    :param upstream: URL of the server
    :param verifies: whether to compare each body with the checksum in its header before it is forwarded, as S3 does and
        moto does not (Amazon S3 User Guide, "Checking object integrity in Amazon S3")
    :ivar seen: kinds of all requests so far
    """

    def __init__(self, upstream: str, *, verifies: bool = False) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.verifies = verifies
        self.seen: list[str] = []
        self._armed: list[tuple[re.Pattern[str], Fault, float]] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def pass_on(self) -> None:
                exchange = Exchange(self, proxy)
                fault = proxy._fault(exchange.kind)
                try:
                    fault(exchange) if fault else exchange.answer(exchange.forward())
                except (OSError, http.client.HTTPException):
                    exchange.reset()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def shutdown_request(self, request: object) -> None:
                with suppress(OSError):  # it was reset
                    super().shutdown_request(request)  # type: ignore[arg-type]

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def arm(self, kind: str, fault: Fault, times: float = 1) -> None:
        """:param kind: regular expression for the whole :attr:`Exchange.kind`
        :param times: how often; ``inf`` until :meth:`disarm`
        """
        with self._lock:
            self._armed.append((re.compile(kind), fault, times))

    def disarm(self) -> None:
        with self._lock:
            self._armed.clear()

    @property
    def armed(self) -> bool:
        """Whether an announced fault is still to come."""
        with self._lock:
            return bool(self._armed)

    def wait(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, kind: str) -> Fault | None:
        with self._lock:
            self.seen.append(kind)
            for index, (pattern, fault, times) in enumerate(self._armed):
                if pattern.fullmatch(kind):
                    self._armed[index : index + 1] = [(pattern, fault, times - 1)] if times > 1 else []
                    return fault
        return None


# ---------------------------------------------------------------------------------------------------------- the faults


def refuse(status: int, code: str, *, happens: bool = False) -> Fault:
    """An error; with ``happens`` although the request was carried out."""

    def fault(exchange: Exchange) -> None:
        _ = exchange.forward() if happens else None
        exchange.answer(refusal(status, code))

    return fault


def lose_request(exchange: Exchange) -> None:
    """Reset before the request's body has arrived as a whole."""
    exchange.read(exchange.size // 2)
    exchange.reset()


def lose_reply(exchange: Exchange) -> None:
    """Carried out; reset before the reply."""
    exchange.forward()
    exchange.reset()


def break_reply(exchange: Exchange) -> None:
    """Carried out; reset in the middle of the reply's body."""
    reply = exchange.forward()
    exchange.answer(reply, first=len(reply.body) // 2) if reply.body else exchange.reset()


def flip_upload(exchange: Exchange) -> None:
    exchange.answer(exchange.forward(_flipped(exchange.body)))


def truncate_upload(exchange: Exchange) -> None:
    exchange.answer(exchange.forward(exchange.body[: exchange.size // 2]))


def flip_download(exchange: Exchange) -> None:
    reply = exchange.forward()
    exchange.answer(reply._replace(body=_flipped(reply.body)))


def truncate_download(exchange: Exchange) -> None:
    """Half of the body, said to be all of it."""
    reply = exchange.forward()
    exchange.answer(reply._replace(body=reply.body[: len(reply.body) // 2]))


def stall(seconds: float, *, where: str = "before") -> Fault:
    """Silence ``before`` the request is carried out, ``after`` it, or ``within`` the reply's body."""

    def fault(exchange: Exchange) -> None:
        if where == "before":
            _ = exchange.body
            exchange.wait(seconds)
        reply = exchange.forward()
        if where == "after":
            exchange.wait(seconds)
        exchange.answer(reply, first=len(reply.body) // 2, pause=seconds if where == "within" else 0.001)

    return fault


def meanwhile(act: Callable[[], object]) -> Fault:
    """Something happens while the request is under way."""

    def fault(exchange: Exchange) -> None:
        _ = exchange.body
        act()
        exchange.answer(exchange.forward())

    return fault


def now_and_then(chance: random.Random, share: float, *faults: Fault) -> Fault:
    """Mostly nothing, else one of ``faults``."""

    def fault(exchange: Exchange) -> None:
        if chance.random() < share:
            chance.choice(faults)(exchange)
        else:
            exchange.answer(exchange.forward())

    return fault


def _flipped(body: bytes) -> bytes:
    """One bit of it is another one."""
    flipped = bytearray(body)
    flipped[len(flipped) // 2] ^= 0x04
    return bytes(flipped)
