"""Plays systemd for one machine: the real unit files as local processes, ``systemctl`` on PATH, power-off, the plug.

One thread owns all state and waits for what happens: processes end (pidfds), say something (pipes), report (notify
sockets), or somebody asks (``systemctl``, or the methods here). Linux only.

What it plays is systemd.service(5), with the traits that the worker's life depends on: ``OnFailure=`` fires at every
failed attempt, also when another follows; a start of a unit that runs is no new start; a notify service that ends
before READY has failed; during a power-off nothing is started any more.

It is frozen: it plays what demos without root need. What it lacks is tried on a booted machine, with systemd itself.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, NamedTuple, TypeVar, cast

from train_cloud.errors import InputError
from train_cloud.platforms.ec2.units import UnitState
from train_cloud.rehearsal.unit_file import Unit, command, read_environment_file, read_unit

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CLEAN_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}
_MARK = "INVOCATION_ID"
"""systemd sets it for every process of a unit; children inherit it, so that we find them all."""
_SYSTEMCTL = """#!/bin/sh
exec "{python}" -IS "{client}" "$@"
"""
_CLIENT = """
import json, socket, sys
link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
link.connect({address!r})
link.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
status, output, errors = json.loads(link.makefile("rb").readline())
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(status)
"""


class Line(NamedTuple):
    """One line of the journal."""

    at: float
    """seconds since the epoch"""
    unit: str
    text: str


_Ended = Callable[["_Service", "subprocess.Popen[bytes]", int, list[bytes]], None]


class _Service:
    """A unit's state. Touched by the machine's thread only."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.active, self.sub = "inactive", "dead"
        self.result, self.status, self.restarts = "success", 0, 0
        self.process: subprocess.Popen[bytes] | None = None
        self.mark = ""
        self.queue: list[tuple[str, bool]] = []
        """Command lines still to be run in this start, each with whether it is the main one."""
        self.main = False
        """Whether the running process is the main one."""
        self.afterwards: list[str] = []
        """Command lines still to be run after this attempt."""
        self.code = ""
        """How the main process ended: exited, killed or dumped."""
        self.verdict = ""
        """A result that systemd itself has come to: watchdog, timeout, protocol."""
        self.stopping = False
        """Somebody asked for the stop, so no restart follows."""
        self.start_wanted = False
        """To be started once those that come before it are up, or once it is down."""
        self.stop_wanted = False
        """In a power-off: to be stopped once those that come after it are down."""
        self.deadlines: dict[str, float] = {}
        self.starts: deque[float] = deque()
        self.notify: socket.socket | None = None

    @property
    def down(self) -> bool:
        return self.active in ("inactive", "failed")

    def state(self) -> UnitState:
        return UnitState(self.active, self.sub, self.result, self.status, self.restarts)


class Machine:
    """One machine's services, all inactive at first. A context manager; no process survives :meth:`close`.

    :param units: folder with the ``.service`` files
    :param folder: made if need be; receives ``bin/systemctl``
    :param paths: what stands on this computer in the place of the units' paths, for example
        ``{"/opt/train-cloud/venv/bin": sys.prefix + "/bin", "/etc/train-cloud": ...}``
    :param environment: what every process gets; ``bin`` is put first on its PATH
    :param restart_speedup: divides ``RestartSec=``
    :param on_line: called for each line of the journal, from the machine's thread: it must return at once
    :raises InputError: a unit file that the rehearsal cannot play
    """

    def __init__(
        self,
        units: Path,
        folder: Path,
        *,
        paths: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        restart_speedup: float = 1.0,
        on_line: Callable[[Line], None] | None = None,
    ) -> None:
        read = [read_unit(path, paths or {}) for path in sorted(units.glob("*.service"))]
        if not read:
            raise InputError("units", str(units), "there is no .service file in this folder")
        self._services = {unit.name: _Service(unit) for unit in read}
        self._environment, self._restart_speedup, self._on_line = dict(environment or {}), restart_speedup, on_line
        self._journal: list[Line] = []
        self._off = False
        """No unit is started any more."""
        self._closed = False
        self._watchers: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self._asks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        name = f"\0train-cloud-{uuid.uuid4().hex}"
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.bind(name)  # abstract: nothing to clean up, and no limit on the folder's path
        self._control.listen(16)
        self._selector.register(self._control, selectors.EVENT_READ, self._accept)
        self._bin = folder.absolute() / "bin"
        self._bin.mkdir(parents=True, exist_ok=True)
        (self._bin / "systemctl.py").write_text(_CLIENT.format(address=name))
        (self._bin / "systemctl").write_text(
            _SYSTEMCTL.format(python=sys.executable, client=self._bin / "systemctl.py")
        )
        (self._bin / "systemctl").chmod(0o755)
        self._setpriv = shutil.which("setpriv")
        for service in self._services.values():
            service.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            service.notify.bind(f"{name}-{service.unit.name}")
            self._selector.register(service.notify, selectors.EVENT_READ, lambda s=service: self._notified(s))
        self._thread = threading.Thread(target=self._live, name="machine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    # ------------------------------------------------------------------------------------- what is done to the machine

    def start(self, unit: str) -> None:
        """``systemctl start --no-block``. What the unit wants is started too."""
        self._do(lambda: self._start(self._named(unit), by_hand=True))

    def stop(self, unit: str) -> None:
        """``systemctl stop --no-block``."""
        self._do(lambda: self._stop(self._named(unit)))

    def state(self, unit: str) -> UnitState:
        return self._do(lambda: self._named(unit).state())

    def pid(self, unit: str) -> int | None:
        """Of the unit's main process; None while it has none."""

        def find() -> int | None:
            service = self._named(unit)
            return service.process.pid if service.process is not None and service.main else None

        return self._do(find)

    def wait(self, unit: str, condition: Callable[[UnitState], bool], timeout_s: float) -> UnitState | None:
        """The first state of a unit that fulfils the condition; None if that took too long."""
        service, seen = self._named(unit), threading.Event()
        found: list[UnitState] = []

        def fulfilled() -> bool:
            if condition(service.state()):
                found.append(service.state())
                return True
            return False

        watcher = (fulfilled, seen.set)
        self._do(lambda: self._watchers.append(watcher))
        if not seen.wait(timeout_s):
            self._do(lambda: self._watchers.remove(watcher) if watcher in self._watchers else None)
        return found[0] if found else None

    def journal(self, unit: str | None = None) -> list[Line]:
        """The lines so far, of one unit or of all."""
        return [line for line in list(self._journal) if unit is None or line.unit == unit]

    @property
    def path(self) -> str:
        """A PATH on which this machine's ``systemctl`` comes first."""
        return f"{self._bin}:{self._environment.get('PATH') or os.environ.get('PATH', os.defpath)}"

    def power_off(self, grace_s: float) -> bool:
        """Shut down as EC2 does on termination: stop every unit, and after ``grace_s`` pull the plug.

        :return: whether everything ended in time
        """
        done = threading.Event()

        def begin() -> None:
            self._off = True
            for service in self._services.values():
                service.start_wanted = False
                service.stop_wanted = not service.down
            self._watchers.append((lambda: all(service.down for service in self._services.values()), done.set))

        self._do(begin)
        done.wait(grace_s)
        clean = done.is_set()
        self.lose_power()
        return clean

    def lose_power(self) -> None:
        """The power is gone: every process dies at once, nothing is written any more, nothing is started."""

        def pull() -> None:
            self._off = True
            for service in self._services.values():
                service.stop_wanted = service.start_wanted = False
                service.queue.clear()
                service.deadlines.clear()
            for _ in range(50):
                pids = {pid for service in self._services.values() for pid in self._members(service)}
                if not pids:
                    break
                _kill(pids, signal.SIGKILL)
                time.sleep(0.01)

        self._do(pull)

    def close(self) -> None:
        """End everything that still runs. May be called twice."""
        if self._closed:
            return
        atexit.unregister(self.close)
        self.lose_power()
        reaped = threading.Event()
        self._do(
            lambda: self._watchers.append(
                (lambda: all(service.process is None for service in self._services.values()), reaped.set)
            )
        )
        reaped.wait(10)
        self._closed = True
        os.write(self._waker, b"x")
        self._thread.join(10)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
            else:
                cast(IO[bytes], key.fileobj).close()
        self._selector.close()
        os.close(self._waker)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, ask: Callable[[], _T]) -> _T:
        """Have the machine's thread do something, and wait for it."""
        if self._closed:
            raise InputError("machine", "closed", "it cannot be used any more")
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(ask())
            except InputError as error:
                done.set_exception(error)

        self._asks.put(run)
        os.write(self._waker, b"x")
        return done.result(timeout=60)

    def _named(self, unit: str) -> _Service:
        name = unit if unit.endswith(".service") else f"{unit}.service"
        try:
            return self._services[name]
        except KeyError:
            raise InputError("unit", unit, f"this machine has {', '.join(self._services)}") from None

    # --------------------------------------------------------------------------------------------------- the one thread

    def _live(self) -> None:
        while not self._closed:
            due = min((when for s in self._services.values() for when in s.deadlines.values()), default=float("inf"))
            for key, _ in self._selector.select(None if due == float("inf") else max(0.0, due - time.monotonic())):
                key.data()
            now = time.monotonic()
            for service in self._services.values():
                for name in [name for name, when in service.deadlines.items() if when <= now]:
                    if service.deadlines.pop(name, None) is not None:
                        getattr(self, f"_{name}_over")(service)
            self._advance()
            for watcher in list(self._watchers):
                if watcher[0]():
                    self._watchers.remove(watcher)
                    watcher[1]()

    def _woken(self) -> None:
        os.read(self._wake, 4096)
        with contextlib.suppress(queue.Empty):
            while True:
                self._asks.get_nowait()()

    def _advance(self) -> None:
        """Start and stop what waited for its turn."""
        services = self._services.values()
        for service in services:
            if service.stop_wanted and not any(s.stop_wanted and not s.down for s in self._later(service)):
                service.stop_wanted = False
                self._stop(service)
        for service in services:
            waiting = service.start_wanted and (service.down or service.sub == "auto-restart")
            if waiting and not any(s.start_wanted or s.active == "activating" for s in self._earlier(service)):
                service.start_wanted = False
                self._enter(service)

    def _earlier(self, service: _Service) -> Iterator[_Service]:
        for other in self._services.values():
            if other.unit.name in service.unit.after or service.unit.name in other.unit.before:
                yield other

    def _later(self, service: _Service) -> Iterator[_Service]:
        return (other for other in self._services.values() if service in self._earlier(other))

    # ------------------------------------------------------------------------------------------------------------ start

    def _start(self, service: _Service, *, by_hand: bool = False) -> None:
        if self._off or service.start_wanted:
            return
        if service.active in ("active", "activating"):
            return  # running, or about to be tried again by itself
        for condition, wanted in service.unit.conditions:
            if Path(condition).exists() != wanted:
                self._say(service, f"Condition check failed: {condition} {'missing' if wanted else 'exists'}")
                return
        if by_hand:
            service.restarts = 0
        service.start_wanted = True
        for name in service.unit.wants:
            if name in self._services:
                self._start(self._services[name], by_hand=by_hand)

    def _enter(self, service: _Service) -> None:
        """Begin an attempt."""
        now, unit = time.monotonic(), service.unit
        while service.starts and service.starts[0] <= now - unit.start_limit_interval_s:
            service.starts.popleft()
        service.verdict = ""
        if unit.start_limit_interval_s > 0 and 0 < unit.start_limit_burst <= len(service.starts):
            self._say(service, "Start request repeated too quickly.")
            service.result = "start-limit-hit" if service.result == "success" else service.result
            self._set(service, "failed", "failed")
            self._trigger(service.unit.on_failure)
            return
        service.starts.append(now)
        service.deadlines.clear()
        service.result, service.status, service.stopping = "success", 0, False
        service.mark = uuid.uuid4().hex
        service.queue = [(line, False) for line in unit.exec_start_pre] + [(line, True) for line in unit.exec_start]
        service.afterwards, service.code = list(unit.exec_stop_post), ""
        self._set(service, "activating", "start")
        if unit.start_s != float("inf"):
            service.deadlines["start"] = now + unit.start_s
        self._next(service)

    def _next(self, service: _Service) -> None:
        """Run the next command of this attempt, or note that there is none."""
        unit = service.unit
        if not service.queue:
            service.deadlines.pop("start", None)
            if unit.remain_after_exit and unit.type == "oneshot":
                self._set(service, "active", "exited")
            else:
                self._wind_up(service)
            return
        line, service.main = service.queue.pop(0)
        if not service.main:
            service.sub = "start-pre"
        try:
            environment = self._environment_of(service)
            words, _ = command(line, environment, unit.name)
            service.process = self._spawn(words, environment, unit.working_directory)
        except (InputError, OSError) as error:
            self._say(service, f"Failed to run: {error}")
            service.result, service.status, service.process = "exit-code", 203, None  # EXIT_EXEC
            service.queue.clear()
            self._wind_up(service)
            return
        self._follow(service, service.process, self._ended)
        if service.main and unit.type in ("simple", "exec"):
            self._up(service)

    def _follow(self, service: _Service, process: subprocess.Popen[bytes], ended: _Ended) -> None:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        pidfd, tail = os.pidfd_open(process.pid), [b""]
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: ended(service, process, pidfd, tail))
        self._selector.register(process.stdout, selectors.EVENT_READ, lambda: self._said(service, process, tail))

    def _spawn(
        self, words: list[str], environment: dict[str, str], working_directory: str | None
    ) -> subprocess.Popen[bytes]:
        # The children die with this thread, so even if the rehearsal is killed nothing of the machine lives on.
        bound = [self._setpriv, "--pdeathsig", "KILL", "--"] if self._setpriv else []
        return subprocess.Popen(
            [*bound, *words],
            env=environment,
            cwd=working_directory or "/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _environment_of(self, service: _Service) -> dict[str, str]:
        unit = service.unit
        assert service.notify is not None
        environment = {
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "JOURNAL_STREAM": "8:0",
            **self._environment,
            "PATH": self.path,
            **unit.environment,
        }
        for path in unit.environment_files:
            environment |= read_environment_file(path)
        environment[_MARK] = service.mark
        if unit.type == "notify" or unit.watchdog_s:
            environment["NOTIFY_SOCKET"] = "@" + service.notify.getsockname()[1:].decode()
        if unit.watchdog_s:
            environment["WATCHDOG_USEC"] = str(int(unit.watchdog_s * 1_000_000))
        return environment

    def _up(self, service: _Service) -> None:
        service.deadlines.pop("start", None)
        self._set(service, "active", "running")
        self._feed(service)

    def _feed(self, service: _Service) -> None:
        if service.unit.watchdog_s:
            service.deadlines["watchdog"] = time.monotonic() + service.unit.watchdog_s

    def _notified(self, service: _Service) -> None:
        assert service.notify is not None
        for line in service.notify.recv(65536).decode(errors="replace").splitlines():
            if line == "READY=1" and service.unit.type == "notify" and service.active == "activating":
                self._up(service)
            elif line == "WATCHDOG=1" and service.active == "active":
                self._feed(service)

    # -------------------------------------------------------------------------------------------------------------- end

    def _stop(self, service: _Service) -> None:
        service.start_wanted = False
        if service.down or service.active == "deactivating":
            service.stopping = True
            return
        service.stopping = True
        service.queue.clear()
        if service.process is None:  # waiting for its next attempt, or a oneshot that remains
            service.deadlines.clear()
            self._set(service, "inactive", "dead")
            self._trigger(service.unit.on_success)
            return
        self._signal_stop(service)

    def _signal_stop(self, service: _Service) -> None:
        unit = service.unit
        service.deadlines.clear()
        self._set(service, "deactivating", "stop-sigterm")
        assert service.process is not None
        everyone = unit.kill_mode == "control-group"
        _kill(self._members(service) if everyone else {service.process.pid}, signal.Signals[unit.kill_signal])
        if unit.stop_s != float("inf"):
            service.deadlines["stop"] = time.monotonic() + unit.stop_s

    def _start_over(self, service: _Service) -> None:
        self._say(service, "start operation timed out. Terminating.")
        service.verdict = "timeout"
        service.queue.clear()
        self._signal_stop(service)

    def _stop_over(self, service: _Service) -> None:
        self._say(service, "State 'stop-sigterm' timed out. Killing.")
        service.verdict = service.verdict or "timeout"
        service.sub = "stop-sigkill"
        _kill(self._members(service), signal.SIGKILL)

    def _watchdog_over(self, service: _Service) -> None:
        self._say(service, f"Watchdog timeout (limit {service.unit.watchdog_s:g}s)!")
        service.verdict = "watchdog"
        self._set(service, "deactivating", "stop-watchdog")
        service.deadlines["stop"] = time.monotonic() + service.unit.stop_s
        assert service.process is not None
        _kill({service.process.pid}, signal.SIGABRT)

    def _reap(self, service: _Service, process: subprocess.Popen[bytes], pidfd: int, tail: list[bytes]) -> int:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        code = process.wait()
        self._said(service, process, tail)
        return code

    def _ended(self, service: _Service, process: subprocess.Popen[bytes], pidfd: int, tail: list[bytes]) -> None:
        code, unit = self._reap(service, process, pidfd, tail), service.unit
        names = {signal.Signals(-code).name, -code} if code < 0 else set()
        if code < 0:
            clean = -code in _CLEAN_SIGNALS and unit.type != "oneshot"
            result, status = "core-dump" if -code in (signal.SIGABRT, signal.SIGSEGV) else "signal", -code
            self._say(service, f"Main process exited, code=killed, status={-code}/{signal.Signals(-code).name[3:]}")
        else:
            clean, result, status = code == 0, "exit-code", code
            if code:
                self._say(service, f"Main process exited, code=exited, status={code}")
        clean, starting = clean or bool(unit.success & ({code} | names)), service.active == "activating"
        service.process = None
        if service.main:
            service.status = status
            service.code = "exited" if code >= 0 else "dumped" if result == "core-dump" else "killed"
        service.result = service.verdict or ("success" if clean else result)
        if clean and not service.verdict and (service.queue or (unit.type == "oneshot" and starting)):
            self._next(service)
        else:
            if unit.type == "notify" and starting and service.result == "success":
                service.result = "protocol"
            service.queue.clear()
            self._wind_up(service)

    def _wind_up(self, service: _Service) -> None:
        """The main process is gone: see to what it left behind, then settle."""
        service.deadlines.clear()
        left = self._members(service)
        if left:
            if service.active != "deactivating":
                self._set(service, "deactivating", "stop-sigterm")
            if service.unit.kill_mode == "mixed":
                _kill(left, signal.SIGKILL)
            elif service.unit.kill_mode == "control-group":
                _kill(left, signal.SIGTERM)
                service.deadlines["stop"] = time.monotonic() + service.unit.stop_s
            service.deadlines["left"] = time.monotonic() + 0.02
            return
        self._settle(service)

    def _left_over(self, service: _Service) -> None:
        if self._members(service) and service.unit.kill_mode != "process":
            service.deadlines["left"] = time.monotonic() + 0.02
        else:
            service.deadlines.clear()
            self._settle(service)

    def _settle(self, service: _Service) -> None:
        """The attempt is over: the service is tried again if the unit says so, or what follows its end is started."""
        unit, failed = service.unit, service.result != "success"
        if service.afterwards and not self._off:
            self._afterwards(service)
            return
        if failed:
            self._say(service, f"Failed with result '{service.result}'.")
        prevented = service.status in unit.restart_prevent and service.result in ("success", "exit-code")
        if service.stopping or self._off or prevented or not _restarts(unit.restart, service.result):
            self._set(service, "failed" if failed else "inactive", "failed" if failed else "dead")
            self._trigger(unit.on_failure if failed else unit.on_success)
            return
        self._set(service, "activating", "auto-restart")
        service.deadlines["restart"] = time.monotonic() + unit.restart_s / self._restart_speedup

    def _afterwards(self, service: _Service) -> None:
        """The next command of ``ExecStopPost=``, which is told how the main process ended (systemd.exec(5))."""
        self._set(service, "deactivating", "stop-post")
        told = {"SERVICE_RESULT": service.result}
        if service.code:
            status = str(service.status) if service.code == "exited" else signal.Signals(service.status).name[3:]
            told |= {"EXIT_CODE": service.code, "EXIT_STATUS": status}
        ignored = True

        def over(_: _Service, process: subprocess.Popen[bytes], pidfd: int, tail: list[bytes]) -> None:
            failed = self._reap(service, process, pidfd, tail) != 0
            service.process = None
            if failed and not ignored and service.result == "success":
                service.result = "exit-code"
            self._settle(service)

        environment = {**self._environment_of(service), **told}
        words, ignored = command(service.afterwards.pop(0), environment, service.unit.name)
        service.process = self._spawn(words, environment, service.unit.working_directory)
        self._follow(service, service.process, over)

    def _restart_over(self, service: _Service) -> None:
        if not self._off:
            service.restarts += 1
            self._say(service, f"Scheduled restart job, restart counter is at {service.restarts}.")
            # A booted machine with systemd 252 does this: the service is inactive for a moment between two attempts.
            self._trigger(service.unit.on_success)
            self._enter(service)

    def _trigger(self, units: Sequence[str]) -> None:
        for name in units:
            if name in self._services:
                self._start(self._services[name], by_hand=True)

    def _set(self, service: _Service, active: str, sub: str) -> None:
        if active != "active":
            service.deadlines.pop("watchdog", None)
        service.active, service.sub = active, sub

    def _members(self, service: _Service) -> set[int]:
        """All living processes of a unit, however they were started."""
        if not service.mark:
            return set()
        mark, found = f"{_MARK}={service.mark}".encode(), set()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        found.add(int(folder.name))
        if service.process is not None and service.process.poll() is None:
            found.add(service.process.pid)
        return found

    # ---------------------------------------------------------------------------------------------------------- journal

    def _said(self, service: _Service, process: subprocess.Popen[bytes], tail: list[bytes]) -> None:
        """Take what a service has written. Its children may write on after its main process is gone."""
        pipe = process.stdout
        assert pipe is not None
        with contextlib.suppress(BlockingIOError):
            while not pipe.closed:
                piece = os.read(pipe.fileno(), 65536)
                *lines, tail[0] = (tail[0] + piece).split(b"\n")
                if not piece:
                    lines += [tail[0]] if tail[0] else []
                    self._selector.unregister(pipe)
                    pipe.close()
                for line in lines:
                    self._write(service, line.decode(errors="replace").rstrip("\r"))

    def _say(self, service: _Service, text: str) -> None:
        self._write(service, f"systemd: {text}")

    def _write(self, service: _Service, text: str) -> None:
        line = Line(time.time(), service.unit.name, text)
        self._journal.append(line)
        if self._on_line is not None:
            self._on_line(line)

    # -------------------------------------------------------------------------------------------------------- systemctl

    def _accept(self) -> None:
        link, _ = self._control.accept()
        link.settimeout(2)
        with contextlib.suppress(OSError, ValueError), link.makefile("rb") as request:
            arguments = json.loads(request.readline())
            verb, options, units = _parse(arguments)
            answer = self._systemctl(verb, options, units)
            blocks = verb in ("start", "stop", "restart") and "no-block" not in options and answer[0] == 0
            if not blocks:
                _reply(link, answer)
                return
            services = [self._named(unit) for unit in units]

            def settled() -> bool:
                if verb == "stop":
                    return all(service.down for service in services)
                return all(not service.start_wanted and service.active != "activating" for service in services)

            def tell() -> None:
                failed = [s.unit.name for s in services if verb != "stop" and s.active == "failed"]
                _reply(link, (int(bool(failed)), "", "".join(f"Job for {name} failed.\n" for name in failed)))

            self._watchers.append((settled, tell))

    def _systemctl(self, verb: str, options: Mapping[str, str], units: Sequence[str]) -> tuple[int, str, str]:
        """Exit status, output and errors, as systemctl(1) gives them."""
        if verb in ("daemon-reload", "enable", "disable", "mask", "unmask") and "now" not in options:
            return 0, "", ""
        if verb == "is-system-running":
            return (1, "stopping\n", "") if self._off else (0, "running\n", "")
        named = {unit: self._services.get(unit if "." in unit else f"{unit}.service") for unit in units}
        known = [service for service in named.values() if service is not None]
        if verb == "show":
            return 0, "\n".join(_show(service, options.get("property")) for service in named.values()), ""
        if verb in ("is-active", "is-failed"):
            states = [service.active if service else "inactive" for service in named.values()]
            good = any(state == verb.removeprefix("is-") for state in states)
            output = "" if "quiet" in options else "".join(f"{state}\n" for state in states)
            return (0 if good else 3 if verb == "is-active" else 1), output, ""
        if len(known) < len(named) or not named:
            missing = [unit for unit, service in named.items() if service is None]
            return 5, "", f"Failed to {verb} {' '.join(missing)}: Unit {' '.join(missing)} not found.\n"
        for service in known:
            if verb in ("stop", "restart"):
                self._stop(service)
            if verb in ("start", "restart"):
                if self._off:
                    return 1, "", f"Failed to start {service.unit.name}: Transaction is destructive (shutdown).\n"
                self._start(service, by_hand=True)
            if verb == "reset-failed":
                service.starts.clear()
                if service.active == "failed":
                    self._set(service, "inactive", "dead")
            if verb == "kill":
                if service.process is None:
                    return 1, "", f"Failed to kill unit {service.unit.name}: No main process to kill\n"
                number = options.get("signal", "SIGTERM")
                main = options.get("kill-whom", "all") == "main"
                name = number if number.startswith("SIG") or number.isdigit() else f"SIG{number}"
                sent = signal.Signals(int(name)) if name.isdigit() else signal.Signals[name]
                _kill({service.process.pid} if main else self._members(service), sent)
        if verb not in ("start", "stop", "restart", "reset-failed", "kill"):
            return 1, "", f"Unknown command verb {verb}.\n"
        return 0, "", ""


def _restarts(restart: str, result: str) -> bool:
    """The table "Exit causes and the effect of the Restart= settings" of systemd.service(5)."""
    causes = {
        "on-success": {"success"},
        "on-failure": {"exit-code", "signal", "core-dump", "timeout", "watchdog", "protocol", "oom-kill"},
        "on-abnormal": {"signal", "core-dump", "timeout", "watchdog", "oom-kill"},
        "on-abort": {"signal", "core-dump"},
        "on-watchdog": {"watchdog"},
    }
    return restart == "always" or result in causes.get(restart, set())


def _parse(arguments: Sequence[str]) -> tuple[str, dict[str, str], list[str]]:
    """Verb, options and units of a systemctl command line."""
    short = {"-p": "property", "-s": "signal", "-q": "quiet"}
    takes_value = {"property", "signal", "kill-who", "kill-whom"}
    options: dict[str, str] = {}
    words: list[str] = []
    rest = deque(arguments)
    while rest:
        word = rest.popleft()
        if not word.startswith("-"):
            words.append(word)
            continue
        name, separator, value = word.partition("=")
        name = short.get(name, name.lstrip("-"))
        if name in takes_value and not separator:
            value = rest.popleft() if rest else ""
        if name == "property" and name in options:
            value = f"{options[name]},{value}"
        options["kill-whom" if name == "kill-who" else name] = value
    return (words[0] if words else ""), options, words[1:]


def _show(service: _Service | None, properties: str | None) -> str:
    state = service.state() if service else UnitState("inactive", "dead", "success", 0, 0)
    values = {
        "Id": service.unit.name if service else "",
        "LoadState": "loaded" if service else "not-found",
        "ActiveState": state.active,
        "SubState": state.sub,
        "Result": state.result,
        "ExecMainStatus": str(state.status),
        "NRestarts": str(state.restarts),
        "MainPID": str(service.process.pid if service and service.process and service.main else 0),
    }
    wanted = properties.split(",") if properties else list(values)
    return "".join(f"{name}={values[name]}\n" for name in values if name in wanted)


def _reply(link: socket.socket, answer: tuple[int, str, str]) -> None:
    with contextlib.suppress(OSError), link:
        link.sendall(json.dumps(answer).encode() + b"\n")


def _kill(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
