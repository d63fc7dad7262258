"""Small services, one for each thing that the rehearsal's systemd plays, and how to see what became of each.

The booted machine is the reference: tests/test_machine.py asks both about the same unit files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train_cloud.platforms.ec2.units import UnitState


@dataclass(frozen=True)
class Case:
    """A service and what is done to it.

    :ivar service: lines of its ``[Service]``; ``{file}`` is a file of its own, which is not there at first
    :ivar unit: lines of its ``[Unit]``
    :ivar up: whether it stays up until it is stopped
    """

    service: str
    unit: str = ""
    up: bool = False


_NOTIFY = "Type=notify\nNotifyAccess=all\nExecStart=/bin/sh -c"
_RETRY = "Restart=on-failure\nRestartSec=100ms"
_TRIED = "echo x >>{file}; [ $(wc -l <{file}) -ge 3 ]"
_WAITS = "while :; do sleep 0.1; done"
_LEAVES_WITH = "ExecStart=/bin/sh -c 'trap \"exit"
_DEAF = f"trap : TERM; {_WAITS}"

CASES = {
    "ends": Case("ExecStart=/bin/sh -c 'exit 0'"),
    "fails": Case("ExecStart=/bin/sh -c 'exit 1'"),
    "fails with 75": Case("ExecStart=/bin/sh -c 'exit 75'"),
    "75 is success": Case("ExecStart=/bin/sh -c 'exit 75'\nSuccessExitStatus=75"),
    "killed": Case("ExecStart=/bin/sh -c 'kill -KILL $$$$'"),
    "killed is success": Case("ExecStart=/bin/sh -c 'kill -KILL $$$$'\nSuccessExitStatus=SIGKILL"),
    "terminated": Case("ExecStart=/bin/sh -c 'kill -TERM $$$$'"),
    "no restart after 64": Case(f"ExecStart=/bin/sh -c 'exit 64'\nRestartPreventExitStatus=64 73\n{_RETRY}"),
    "third try ends": Case(f"ExecStart=/bin/sh -c '{_TRIED} && exit 0; exit 3'\n{_RETRY}"),
    "no restart after two kills": Case(
        f"ExecStart=/bin/sh -c '{_TRIED} && exit 64; kill -KILL $$$$'\nRestartPreventExitStatus=64\n{_RETRY}"
    ),
    "too often": Case("ExecStart=/bin/false\nRestart=always\nRestartSec=10ms", "StartLimitBurst=3"),
    "ends before it was ready": Case(f"{_NOTIFY} 'exit 0'"),
    "fails before it was ready": Case(f"{_NOTIFY} 'exit 4'"),
    "never ready": Case(f"{_NOTIFY} 'exec sleep 60'\nTimeoutStartSec=300ms"),
    "silent": Case(f"{_NOTIFY} 'systemd-notify --ready; exec sleep 60'\nWatchdogSec=1s"),
    "ready": Case(f"{_NOTIFY} 'systemd-notify --ready; exec sleep 60'", up=True),
    "condition fails": Case("ExecStart=/bin/false", "ConditionPathExists={file}"),
    "condition holds": Case("ExecStart=/bin/false", "ConditionPathExists=!{file}"),
    "one after the other": Case(
        "Type=oneshot\nExecStart=/bin/true\nExecStart=/bin/sh -c 'exit 5'\nExecStart=/bin/true"
    ),
    "before it starts": Case("ExecStartPre=/bin/sh -c 'exit 6'\nExecStart=/bin/true"),
    "stopped": Case("ExecStart=/bin/sleep 60", up=True),
    "stopped with 75": Case(f"{_LEAVES_WITH} 75\" TERM; {_WAITS}'\nSuccessExitStatus=75", up=True),
    "stopped with 3": Case(f"{_LEAVES_WITH} 3\" TERM; {_WAITS}'", up=True),
    "deaf": Case(f"ExecStart=/bin/sh -c '{_DEAF}'\nTimeoutStopSec=500ms", up=True),
    "deaf, mixed": Case(f"ExecStart=/bin/sh -c '{_DEAF}'\nKillMode=mixed\nTimeoutStopSec=500ms", up=True),
    "told afterwards": Case(
        "ExecStart=/bin/sh -c 'kill -KILL $$$$'\n"
        "ExecStopPost=/bin/sh -c 'echo $$SERVICE_RESULT $$EXIT_CODE $$EXIT_STATUS >{file}'"
    ),
    "told afterwards, exited": Case(
        "ExecStart=/bin/sh -c 'exit 7'\n"
        "ExecStopPost=/bin/sh -c 'echo $$SERVICE_RESULT $$EXIT_CODE $$EXIT_STATUS >{file}'"
    ),
    "what comes after fails": Case("ExecStart=/bin/true\nExecStopPost=/bin/false"),
    "what comes after may fail": Case("ExecStart=/bin/true\nExecStopPost=-/bin/false"),
    "stopped while it waits": Case("ExecStart=/bin/false\nRestart=always\nRestartSec=60s", up=True),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a service.

    :ivar state: its last one
    :ivar started: which of the units of its ``OnSuccess`` and ``OnFailure`` were started
    :ivar wrote: what is in its own file
    """

    state: UnitState
    started: tuple[str, ...]
    wrote: str


def write_units(folder: Path, files: str) -> None:
    """:param folder: of the units
    :param files: of the services' own files, as they see it
    """
    for name, case in CASES.items():
        unit = name_of(name)
        triggered = "".join(f"On{word}={unit}-{word.lower()}.service\n" for word in ("Success", "Failure"))
        text = f"[Unit]\n{triggered}{case.unit}\n[Service]\n{case.service}\n".replace("{file}", f"{files}/{unit}")
        (folder / f"{unit}.service").write_text(text)
        for word in ("success", "failure"):
            (folder / f"{unit}-{word}.service").write_text(
                "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
            )


def name_of(case: str) -> str:
    return "case-" + "".join(letter if letter.isalnum() else "-" for letter in case)


def outcomes(
    start: Callable[[str], object],
    stop: Callable[[str], object],
    state: Callable[[str], UnitState],
    wait: Callable[[Callable[[], bool], str], object],
    read: Callable[[str], str],
) -> dict[str, Outcome]:
    """Start every service, wait for its end, or stop it once it is up.

    :param start: without waiting, as the next one
    :param wait: until a condition holds
    :param read: a service's own file, by its name; nothing where there is none
    """
    units = {name: f"{name_of(name)}.service" for name in CASES}
    for unit in units.values():
        start(unit)
    for name, case in CASES.items():
        if case.up:
            running = ("running", "auto-restart")
            wait(lambda unit=units[name], among=running: state(unit).sub in among, f"{name}: up")  # type: ignore[misc]
            stop(units[name])
    for name, unit in units.items():
        wait(lambda unit=unit: state(unit).over, f"{name}: over")  # type: ignore[misc]
    found = {}
    for name, unit in units.items():
        both = {word: f"{name_of(name)}-{word}.service" for word in ("success", "failure")}
        if CASES[name].unit != "ConditionPathExists={file}" and not CASES[name].up:
            wait(lambda both=both: any(state(one).active == "active" for one in both.values()), f"{name}: triggers")  # type: ignore[misc]
        started = tuple(word for word, one in both.items() if state(one).active == "active")
        found[name] = Outcome(state(unit), started, read(name_of(name)))
    return found
