"""Plays the instance metadata service of one machine: version 2 only, over real HTTP on loopback.

Protocol as in ``platforms/ec2/metadata.py``. It also hands out the role's credentials, so that botocore and everything
on it finds them the way it does on EC2.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_TOKEN = "X-aws-ec2-metadata-token"
_TTL = "X-aws-ec2-metadata-token-ttl-seconds"
_ACTION = "meta-data/spot/instance-action"
_REBALANCE = "meta-data/events/recommendations/rebalance"
_LIFECYCLE = "meta-data/autoscaling/target-lifecycle-state"


class Request(NamedTuple):
    """One line of the service's log."""

    at: float
    """seconds since the epoch"""
    method: str
    path: str
    status: int


class MetadataService:
    """The metadata of one instance, served until :meth:`close`. Its methods may be called from any thread.

    :param role: name of the instance profile's role; None: no credentials are served
    :param credentials: called per request: ``AccessKeyId``, ``SecretAccessKey``, ``Token``, ``Expiration``
    :param launched: when EC2 began to launch the instance; default: now
    :param public_ipv4: its address; None: it has none
    :param user_data: served under ``/latest/user-data``
    :param listener: a listening socket to serve on, already bound (in a network namespace, say); default: a free port
        on loopback
    """

    def __init__(
        self,
        instance_id: str,
        *,
        instance_type: str = "g5.xlarge",
        availability_zone: str = "us-east-1a",
        role: str | None = None,
        credentials: Callable[[], Mapping[str, str]] | None = None,
        launched: datetime | None = None,
        public_ipv4: str | None = None,
        user_data: bytes | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self._role, self._credentials = role, credentials
        self._lock = threading.Lock()
        self._tokens: dict[str, float] = {}
        self._faults: deque[tuple[float, int]] = deque()
        identity = {
            "instanceId": instance_id,
            "instanceType": instance_type,
            "availabilityZone": availability_zone,
            "region": availability_zone.rstrip("abcdefghijklmnopqrstuvwxyz"),
            "pendingTime": _stamp(launched or _now()),
        }
        self._entries: dict[str, bytes] = {
            "dynamic/instance-identity/document": json.dumps(identity).encode(),
            "meta-data/instance-id": instance_id.encode(),
            "meta-data/instance-type": instance_type.encode(),
            "meta-data/instance-life-cycle": b"spot",
            "meta-data/placement/availability-zone": availability_zone.encode(),
            "meta-data/placement/region": availability_zone.rstrip("abcdefghijklmnopqrstuvwxyz").encode(),
            _LIFECYCLE: b"InService",
        }
        if public_ipv4 is not None:
            self._entries["meta-data/public-ipv4"] = public_ipv4.encode()
        if user_data is not None:
            self._entries["user-data"] = user_data
        if role is not None:
            self._entries["meta-data/iam/security-credentials"] = role.encode()
        self._server = _Server(listener or socket.create_server(("127.0.0.1", 0)), self)
        # Polls its own stop flag: serve_forever(0.05) ends within that many seconds of close().
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """For ``AWS_EC2_METADATA_SERVICE_ENDPOINT``."""
        host, port = self._server.socket.getsockname()[:2]
        return f"http://{host}:{port}"

    def interrupt(self, action: str = "terminate", seconds: float = 120) -> datetime:
        """Announce a spot interruption in ``seconds``; returns the announced time."""
        when = _now() + timedelta(seconds=seconds)
        self.set(_ACTION, json.dumps({"action": action, "time": _stamp(when)}))
        return when.replace(microsecond=0)

    def withdraw(self) -> None:
        """No interruption, no rebalance recommendation, and Auto Scaling keeps the machine in service."""
        self.set(_ACTION, None)
        self.set(_REBALANCE, None)
        self.set(_LIFECYCLE, "InService")

    def recommend_rebalance(self) -> None:
        self.set(_REBALANCE, json.dumps({"noticeTime": _stamp(_now())}))

    def scale_in(self) -> None:
        """Auto Scaling has chosen this machine to go."""
        self.set(_LIFECYCLE, "Terminated")

    def set(self, path: str, text: str | None) -> None:
        """Serve ``text`` under ``/latest/<path>``, whatever it is; None: 404."""
        with self._lock:
            if text is None:
                self._entries.pop(path, None)
            else:
                self._entries[path] = text.encode()

    def expire_tokens(self) -> None:
        """Every token given so far is answered with 401 from now on."""
        with self._lock:
            self._tokens.clear()

    def fail(self, requests: int, status: int = 503) -> None:
        """Answer the next ``requests`` with ``status``, token or not."""
        with self._lock:
            self._faults.extend([(0.0, status)] * requests)

    def stall(self, requests: int, seconds: float) -> None:
        """Let the next ``requests`` wait for ``seconds`` and then answer 503."""
        with self._lock:
            self._faults.extend([(seconds, 503)] * requests)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetadataService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, method: str, path: str, headers: Message) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers for one request."""
        with self._lock:
            delay, fault = self._faults.popleft() if self._faults else (0.0, 0)
        if fault:
            time.sleep(delay)
            return fault, b"", {}
        if method == "PUT":
            return self._grant(path, headers)
        with self._lock:
            if self._tokens.get(headers.get(_TOKEN, ""), 0.0) < time.monotonic():
                return 401, b"", {}
        version, _, rest = path.strip("/").partition("/")
        known = version == "latest" or re.fullmatch(r"\d{4}-\d\d-\d\d", version)  # cloud-init asks by date
        body = self._entry(rest) if known else None
        return (404, b"<h1>404 - Not Found</h1>", {}) if body is None else (200, body, {})

    def _grant(self, path: str, headers: Message) -> tuple[int, bytes, dict[str, str]]:
        if "X-Forwarded-For" in headers:
            return 403, b"", {}
        if path != "/latest/api/token":
            return 405, b"", {}
        ttl = headers.get(_TTL, "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return 400, b"", {}
        token = secrets.token_urlsafe(40)
        with self._lock:
            self._tokens[token] = time.monotonic() + int(ttl)
        return 200, token.encode(), {_TTL: ttl}

    def _entry(self, path: str) -> bytes | None:
        path = path.rstrip("/")
        if self._role and path == f"meta-data/iam/security-credentials/{self._role}":
            if self._credentials is None:
                return None
            stamp = {"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": _stamp(_now())}
            return json.dumps({**stamp, **self._credentials()}).encode()
        with self._lock:
            if path in self._entries:
                return self._entries[path]
            below = [entry.removeprefix(path).lstrip("/") for entry in self._entries if entry.startswith(f"{path}/")]
        # A folder lists its children, those that are folders with a slash.
        names = {head + slash for head, slash, _ in (entry.partition("/") for entry in below)}
        return "\n".join(sorted(names)).encode() if names else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a kept-alive connection must not hold close()

    def __init__(self, listener: socket.socket, service: MetadataService) -> None:
        super().__init__(listener.getsockname()[:2], _Exchange, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.service = service

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A machine that is killed or powered off leaves its connections as they are: that is played on purpose."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "EC2ws"
    timeout = 30
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        status, body, headers = self.server.service.answer(self.command, path, self.headers)
        self.server.service.requests.append(Request(time.time(), self.command, path, status))
        try:
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "text/plain", "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the client's time-out was shorter than stall()
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """The service keeps its own log."""


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _stamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
