"""What a machine of the rehearsal finds on its network: sockets opened inside its namespace, and AWS over TLS.

The addresses exist in the namespace alone; the sockets belong to this process, which answers on them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
"""sched.h; setns(2)."""
_CHUNK = 1 << 18
_SILENCE_SECONDS = 300.0
"""A connection on which nothing moves for so long is closed."""


def within(pid: int, act: Callable[[], _T]) -> _T:
    """Call ``act`` in the network namespace of a process. Sockets that it makes stay in there.

    :raises OSError: there is no such process, or it is not ours to enter
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def enter() -> None:  # in a thread of its own, which is thrown away: a namespace is a thread's
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(namespace)
            results.append(act())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Authority:
    """A certificate authority that lives as long as this process; its key is never written.

    It vouches for whichever name of ``amazonaws.com`` a client asks for in its greeting, and for no other.
    """

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "train-cloud rehearsal")])
        authority = self._certificate(self._name, self._name, self._key, [(x509.BasicConstraints(True, 0), True)])
        self.certificate = authority.public_bytes(serialization.Encoding.PEM)
        """PEM; what a machine must trust."""
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._lock = threading.Lock()
        self.context = self._serve("amazonaws.com")
        """For the listening side."""
        self.context.sni_callback = self._greeted

    def _greeted(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        if name is None or not name.endswith(".amazonaws.com"):
            return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
        with self._lock:
            if name not in self._contexts:
                self._contexts[name] = self._serve(name)
            connection.context = self._contexts[name]
        return None

    def _serve(self, host: str) -> ssl.SSLContext:
        """What TLS needs to be this host."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "amazonaws.com")])  # 64 characters at most
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        extensions = [(names, False), (x509.BasicConstraints(False, None), True)]
        served = self._certificate(subject, self._name, key, extensions)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:  # load_cert_chain reads files only
            file.write(served.public_bytes(serialization.Encoding.PEM))
            file.write(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
            file.flush()
            context.load_cert_chain(file.name)
        return context

    def _certificate(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extensions: Iterable[tuple[x509.ExtensionType, bool]],
    ) -> x509.Certificate:
        now = datetime.now(timezone.utc)
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=7))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


class Relay:
    """Takes TLS connections on a listening socket and carries their bytes to a plain port on loopback.

    :param listener: closed with the relay
    """

    def __init__(self, listener: socket.socket, port: int, context: ssl.SSLContext) -> None:
        self.connections = 0
        self._listener, self._port, self._context = listener, port, context
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody is connected any more, and nobody can be: AWS is out of reach."""
        with self._lock:
            self._closed = True
            ends = [self._listener, *self._open]
        for end in ends:
            _hang_up(end)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                inside, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._carry, args=(inside,), name="relay", daemon=True).start()

    def _carry(self, inside: socket.socket) -> None:
        # One thread for both directions: an SSL object must not be used by two at once.
        with inside, socket.socket() as outside:
            if not self._register(inside, outside):
                return
            try:
                inside.settimeout(_SILENCE_SECONDS)
                with self._context.wrap_socket(inside, server_side=True) as secure:
                    if not self._register(secure):
                        return
                    outside.settimeout(_SILENCE_SECONDS)
                    outside.connect(("127.0.0.1", self._port))
                    while self._pass_on(secure, outside):
                        pass
                    self._forget(secure)
            except (OSError, ValueError):  # gone, in the middle of whatever it was
                pass
            finally:
                self._forget(inside, outside)

    def _pass_on(self, secure: ssl.SSLSocket, outside: socket.socket) -> bool:
        """Carry what has arrived, from either side; False once one of them has closed or fallen silent."""
        ready: list[socket.socket] = [secure]
        if not secure.pending():
            ready = select.select([secure, outside], [], [], _SILENCE_SECONDS)[0]
        for source in ready:
            body = source.recv(_CHUNK)
            if not body:
                return False
            (outside if source is secure else secure).sendall(body)
        return bool(ready)

    def _register(self, *ends: socket.socket) -> bool:
        with self._lock:
            self._open.update(ends)
            return not self._closed

    def _forget(self, *ends: socket.socket) -> None:
        with self._lock:
            self._open.difference_update(ends)


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # The plain socket's: an SSLSocket's would change what its thread is using.
        socket.socket.shutdown(end, socket.SHUT_RDWR)
