"""One machine of the rehearsal as a systemd-nspawn container: an own disk, an own network, systemd as PID 1.

``supervise.sh`` holds it and the cloud around it. This process keeps that one's standard input open: when it closes
it, or dies in whatever way, the kernel ends the machine and removes its mounts and networks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from train_cloud.errors import TrainCloudError
from train_cloud.platforms.ec2.units import UnitState
from train_cloud.rehearsal.machine.image import Image
from train_cloud.rehearsal.machine.network import within
from train_cloud.rehearsal.systemd import Line

ADDRESS, GATEWAY, METADATA = "10.0.0.10", "10.0.0.1", "169.254.169.254"
"""The machine's, and what answers it; as in ``supervise.sh``."""
_HERE = Path(__file__).parent
_START_SECONDS, _END_SECONDS, _ASK_SECONDS = 120.0, 120.0, 120.0
_POWER_OFF = signal.SIGRTMIN + 4
"""systemd(1): starts poweroff.target."""
_GONE = UnitState("inactive", "dead", "success", 0, 0)
_PROPERTIES = "ActiveState,SubState,Result,ExecMainStatus,NRestarts"


class Container:
    """A machine that is not switched on yet. A context manager; nothing of it is left after :meth:`close` but logs.

    :param folder: made; receives the machine's logs
    :param files: path on its disk → content, beside what the image has
    :param programs: name → shell script: commands of its own, found before the image's
    :param environment: what every service gets
    :param nvidia: it has a PCI device of NVIDIA's
    :raises TrainCloudError: its network could not be made
    """

    def __init__(
        self,
        image: Image,
        folder: Path,
        *,
        files: Mapping[str, str | bytes] | None = None,
        programs: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        nvidia: bool = False,
    ) -> None:
        self.folder = folder.absolute()
        self.mac = ":".join(["0a", *(f"{byte:02x}" for byte in os.urandom(5))])
        self._image = image
        (self.folder / "machine").mkdir(parents=True)
        variables = " ".join(f'"{name}={value}"' for name, value in (environment or {}).items())
        given: dict[str, str | bytes] = {
            "etc/rehearsal/uuid": f"ec2{str(uuid.uuid4())[3:]}\n",
            "etc/systemd/system.conf.d/90-rehearsal.conf": f"[Manager]\nDefaultEnvironment={variables}\n",
            **(files or {}),
        }
        commands = {f"usr/local/bin/{name}": f"#!/bin/sh\n{script}\n" for name, script in (programs or {}).items()}
        if nvidia:
            given["etc/rehearsal/pci/0000:00:1e.0/vendor"] = "0x10de\n"
        self._leader: int | None = None
        self._disk: int | None = None
        self._closing = threading.Lock()
        self._closed = False
        # systemd in the machine must find its own groups, not those of another machine.
        # One name: nspawn takes it from one hierarchy for all. It says whose it is.
        group_name = f"rehearsal-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._groups = [folder / group_name for folder in _control_groups()]
        for group in self._groups:
            group.mkdir()
        with (self.folder / "supervisor.log").open("wb") as log:
            self._supervisor = subprocess.Popen(
                [
                    *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
                    *(str(_HERE / "supervise.sh"), str(self.folder), str(image.root), self.mac),
                    f"--bind-ro={image.wheelhouse}:/opt/wheelhouse",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={
                    "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
                    "LC_ALL": "C",
                    "CGROUPS": " ".join(map(str, self._groups)),
                },
                start_new_session=True,  # a Ctrl-C is ours to answer
            )
        alarm = threading.Timer(_START_SECONDS, self._supervisor.kill)
        alarm.start()
        try:
            assert self._supervisor.stdout is not None
            ready = self._supervisor.stdout.readline()
            if not ready:
                said = (self.folder / "supervisor.log").read_text().strip()
                raise TrainCloudError(f"the machine's network could not be made: {said[-1000:]}")
            # The supervisor is unshare's only child: PID 1 in there.
            self._init = psutil.Process(self._supervisor.pid).children()[0].pid
            # Keeps the disk, which is mounted in there only, for as long as this process wants to read it.
            disk = f"/proc/{self._init}/root{self.folder}/machine/disk"
            self._disk = os.open(disk, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path("etc/rehearsal/pci").mkdir(parents=True)
            for path, content in {**given, **commands}.items():
                self.path(path).parent.mkdir(parents=True, exist_ok=True)
                self.path(path).write_bytes(content.encode() if isinstance(content, str) else content)
                self.path(path).chmod(0o755 if path in commands else 0o644)
        except BaseException:
            self.close()
            raise
        finally:
            alarm.cancel()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listen(self, address: str, port: int) -> socket.socket:
        """A listening socket on the cloud's side of the machine's network, which this process answers."""
        return within(self._init, lambda: socket.create_server((address, port), backlog=128))

    def connect(self, port: int, timeout_s: float = 10) -> socket.socket:
        """A connection to a port of the machine.

        :raises OSError: nobody listens there
        """
        return within(self._init, lambda: socket.create_connection((ADDRESS, port), timeout_s))

    def boot(self) -> None:
        """Switch it on; what answers it must listen by now."""
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(b"boot\n")
        self._supervisor.stdin.flush()

    @property
    def alive(self) -> bool:
        return self._supervisor.poll() is None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the running machine.

        :raises TrainCloudError: it is not running, or the command took longer than two minutes
        """
        leader = self._find_leader()
        if leader is None:
            raise TrainCloudError(f"{self.folder.name} is not running")
        enter = ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        try:
            return subprocess.run(
                [*enter, *command],
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=_ASK_SECONDS,
                env=environment,
            )
        except subprocess.TimeoutExpired as error:
            raise TrainCloudError(f"{command[0]} on {self.folder.name}: no answer in {_ASK_SECONDS:.0f} s") from error

    def state(self, unit: str) -> UnitState:
        """Of a systemd unit; inactive where the machine is off or does not answer yet."""
        if self._find_leader() is None:
            return _GONE
        said = self.run("systemctl", "show", "-p", _PROPERTIES, unit).stdout
        found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        if "ActiveState" not in found:
            return _GONE
        return UnitState(
            active=found["ActiveState"],
            sub=found.get("SubState", "dead"),
            result=found.get("Result", "success"),
            status=int(found.get("ExecMainStatus", "0")),
            restarts=int(found.get("NRestarts", "0")),
        )

    def path(self, path: str) -> Path:
        """Where a file that the machine wrote lies, running or not, until :meth:`close`. Not the image's files."""
        return Path(f"/proc/{os.getpid()}/fd/{self._disk}") / path.lstrip("/")

    def power_off(self, grace: float) -> bool:
        """What EC2 does to end an instance: tell the system, after ``grace`` seconds pull the plug.

        :return: whether it went by itself
        """
        leader = self._find_leader()
        if leader is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(leader, _POWER_OFF)
        return self.wait(grace)

    def wait(self, timeout_s: float) -> bool:
        """Whether the machine is off within so many seconds."""
        try:
            self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def pull_plug(self) -> None:
        """Every process of the machine is gone when this returns; nothing was told, nothing was written."""
        if self._supervisor.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
            self._supervisor.wait(_END_SECONDS)

    def close(self) -> None:
        """Pull the plug, if need be, and remove the disk."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        pipes = [pipe for pipe in (self._supervisor.stdin, self._supervisor.stdout) if pipe is not None]
        for pipe in pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._supervisor.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()  # and with it, by --kill-child, all that it holds
            self._supervisor.wait()
        if self._disk is not None:
            os.close(self._disk)
            self._disk = None
        (self.folder / "machine").rmdir()
        for group in self._groups:
            _remove_group(group)

    def _find_leader(self) -> int | None:
        """The machine's PID 1, as a process of this computer; None while there is none."""
        if not self.alive:
            return None
        if self._leader is not None and psutil.pid_exists(self._leader):
            return self._leader
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            outer = _namespace(self._init)
            for process in psutil.Process(self._init).children(recursive=True):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
                    # Its parent is nspawn's; and it has become systemd, whose signals mean something.
                    if _namespace(process.pid) != outer and process.name() == "systemd":
                        self._leader = process.pid
                        return self._leader
        return None


class Journal:
    """Reads a machine's journal as it grows, and what is left of it after the machine's end.

    :param on_line: called with each line of the given units, from another thread
    """

    def __init__(self, container: Container, units: tuple[str, ...], on_line: Callable[[Line], None]) -> None:
        self.lines: list[Line] = []
        self._folder = container.path("/var/log/journal")
        self._units = [f"--unit={unit}" for unit in units]
        self._on_line = on_line
        self._cursor = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read what is left."""
        self._end.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._end.wait(0.5):
            self._read()
        self._read()

    def _read(self) -> None:
        if not self._folder.exists():
            return
        command = ["journalctl", f"--directory={self._folder}", "--output=json", "--quiet", *self._units]
        if self._cursor:
            command.append(f"--after-cursor={self._cursor}")
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_ASK_SECONDS)
        for entry in _entries(done.stdout):
            self._cursor = entry["__CURSOR"]
            message = entry.get("MESSAGE") or ""
            # journalctl(1): what is not valid UTF-8 is an array of bytes.
            text = bytes(message).decode(errors="replace") if isinstance(message, list) else message
            unit = entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or ""
            line = Line(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, unit, text)
            self.lines.append(line)
            self._on_line(line)


def _entries(output: bytes) -> Iterator[dict[str, Any]]:
    for line in output.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut short while it was being written
            yield json.loads(line)


def _control_groups() -> list[Path]:
    """The groups that this process is in, of the hierarchies that systemd uses; cgroups(7)."""
    mounted = Path("/sys/fs/cgroup")
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, name, path = line.split(":", 2)
        if name == "name=systemd":
            found.append(mounted / "systemd" / path.lstrip("/"))
        elif number == "0":
            unified = mounted / "unified" if (mounted / "unified").is_dir() else mounted
            found.append(unified / path.lstrip("/"))
    return [folder for folder in found if folder.is_dir()]


def _remove_group(group: Path) -> None:
    """Its processes have been killed; the last may take a moment to go."""
    deadline = time.monotonic() + _END_SECONDS
    for folder in sorted(group.glob("**/"), reverse=True):
        while True:
            try:
                folder.rmdir()
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise TrainCloudError(f"{folder} stays: {error}") from error
            time.sleep(0.02)


def _namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())
