"""What watch and finish ask of systemd, through ``systemctl`` on PATH."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from train_cloud.errors import CloudUnavailable

TRAIN = "train-cloud-train.service"
FINISH = "train-cloud-finish.service"

_ENDED = {"inactive", "failed"}
_RESULTS = {
    "watchdog": "stood still for longer than its watchdog allows",
    "timeout": "did not start or stop in time and was killed",
    "oom-kill": "was killed because the machine ran out of memory",
    "start-limit-hit": "was started too often in a short time",
    "resources": "could not be started: systemd lacked resources",
    "protocol": "ended before it said that it was ready",
}


@dataclass(frozen=True)
class UnitState:
    """``systemctl show`` of one service; the properties of systemd's D-Bus interface, org.freedesktop.systemd1(5)."""

    active: str
    """active, activating (also while waiting for the next attempt), deactivating, inactive, failed, …"""
    sub: str
    """running, auto-restart, dead, …"""
    result: str
    """success, exit-code, signal, core-dump, watchdog, timeout, oom-kill, …"""
    status: int
    """Exit status of the last main process, or the number of the signal that killed it; 0 while there was none."""
    restarts: int

    @property
    def over(self) -> bool:
        """Nothing of it runs, and nothing of it will run by itself."""
        return self.active in _ENDED

    @property
    def exit_status(self) -> int | None:
        """What the main process exited with; None where a signal ended it or systemd gave up on it."""
        return self.status if self.result in ("success", "exit-code") else None

    @property
    def killed(self) -> bool:
        """What ended it was no exit of its own."""
        return self.result not in ("success", "exit-code")

    def in_words(self) -> str:
        """How it ended, as the end of a sentence that begins with "the trainer"."""
        tries = f" after {self.restarts} restarts" if self.restarts else ""
        if self.result in ("signal", "core-dump"):
            return f"was killed by {_signal_name(self.status)}{tries}"
        if self.result in _RESULTS:
            return _RESULTS[self.result] + tries
        return f"ended with exit status {self.status}{tries}"


def systemctl(*arguments: str, timeout_s: float = 15) -> str:
    """Run ``systemctl`` and return what it printed.

    :raises CloudUnavailable: it is not there, does not answer, or refuses
    """
    said = f"systemctl {' '.join(arguments)}"
    try:
        done = subprocess.run(
            ["systemctl", *arguments], capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CloudUnavailable(f"{said}: {error}") from error
    if done.returncode != 0:
        raise CloudUnavailable(f"{said}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def unit_state(unit: str) -> UnitState:
    """The state of ``unit``; one that systemd has never heard of is inactive.

    :raises CloudUnavailable: systemd could not be asked
    """
    said = systemctl("show", "-p", "ActiveState,SubState,Result,ExecMainStatus,NRestarts", unit)
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    try:
        return UnitState(
            active=found["ActiveState"],
            sub=found["SubState"],
            result=found.get("Result", "success"),
            status=int(found.get("ExecMainStatus", "0")),
            restarts=int(found.get("NRestarts", "0")),
        )
    except (KeyError, ValueError) as error:
        raise CloudUnavailable(f"systemctl show {unit} printed {said!r}") from error


def ended_with(variables: Mapping[str, str]) -> UnitState:
    """What systemd tells a program that it runs by ``ExecStopPost=`` of the main process that has ended.

    :param variables: ``SERVICE_RESULT`` and ``EXIT_STATUS``, a number or the name of a signal (systemd.exec(5),
        "Environment Variables in Spawned Processes"); without them nothing has ended
    """
    said = variables.get("EXIT_STATUS", "")
    status = int(said) if said.isdigit() else getattr(signal, f"SIG{said}", 0)
    return UnitState("deactivating", "stop-post", variables.get("SERVICE_RESULT", "success"), int(status), 0)


def boot_id() -> str:
    """What tells this boot of the machine from every other; proc_sys_kernel(5), random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({number})"
    except ValueError:
        return f"signal {number}"
