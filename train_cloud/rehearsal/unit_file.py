"""Reads a systemd service unit: what the rehearsal plays, what it may pass over, and nothing it does not know.

Sources: systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.kill(5), systemd.time(7).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from train_cloud.errors import InputError

# What changes nothing that a process rehearsal could show: users, limits, sandboxes, documentation, boot targets.
_PASSED_OVER = re.compile(
    r"Description|Documentation|DefaultDependencies|Requires|BindsTo|PartOf|Conflicts|WantedBy|RequiredBy|Alias|"
    r"User|Group|SupplementaryGroups|DynamicUser|UMask|Nice|OOM\w+|CPU\w+|IO\w+|Memory\w+|Tasks\w+|Limit\w+|Slice|"
    r"Protect\w+|Private\w+|Restrict\w+|Lock\w+|NoNewPrivileges|Capability\w+|Ambient\w+|SystemCall\w+|ReadWritePaths|"
    r"ReadOnlyPaths|InaccessiblePaths|Remove\w+|Keyring\w+|Proc\w+|Device\w+|"
    r"(State|Runtime|Cache|Logs|Configuration)Directory\w*|Standard(Input|Output|Error)|Syslog\w+|LogLevelMax|TTY\w+|"
    r"NotifyAccess|GuessMainPID|Delegate\w*|RequiresMountsFor"
)
_UNITS_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "sec": 1_000_000, "min": 60_000_000, "m": 60_000_000}
_UNITS_US |= {"h": 3_600_000_000, "hr": 3_600_000_000, "d": 86_400_000_000}
_RESTARTS = {"no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog"}


@dataclass(frozen=True)
class Unit:
    """One service. Times in seconds, infinity included."""

    name: str
    type: str = "simple"
    exec_start: tuple[str, ...] = ()
    """Command lines as written, paths mapped, variables not yet expanded."""
    exec_start_pre: tuple[str, ...] = ()
    exec_stop_post: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    environment_files: tuple[str, ...] = ()
    working_directory: str | None = None
    conditions: tuple[tuple[str, bool], ...] = ()
    """(path, whether it must exist)"""
    wants: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    on_success: tuple[str, ...] = ()
    on_failure: tuple[str, ...] = ()
    remain_after_exit: bool = False
    restart: str = "no"
    restart_s: float = 0.1
    start_limit_interval_s: float = 10.0
    start_limit_burst: int = 5
    success: frozenset[int | str] = frozenset()
    """Exit statuses, and names of signals, that count as success besides 0 and the clean signals."""
    restart_prevent: frozenset[int | str] = frozenset()
    start_s: float = 90.0
    stop_s: float = 90.0
    watchdog_s: float = 0.0
    kill_mode: str = "control-group"
    kill_signal: str = "SIGTERM"


def read_unit(path: Path, paths: Mapping[str, str]) -> Unit:
    """Read a ``.service`` file.

    :param paths: put in the place of paths on the real machine, the longest first
    :raises InputError: a directive that is neither played nor known to be harmless, or a value that makes no sense
    """
    values: dict[str, list[str]] = {}
    mapped = _map(path.read_text().replace("\\\n", " "), paths)
    for line in (line.strip() for line in mapped.splitlines()):
        if not line or line[0] in "#;[":
            continue
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator:
            raise InputError(path.name, line, "write Key=value")
        # An empty value takes back what stood before it.
        values[key] = [*values.get(key, []), value] if value else []

    def last(key: str, default: str) -> str:
        found = values.pop(key, [])
        return found[-1] if found else default

    def words(*keys: str) -> tuple[str, ...]:
        return tuple(word for key in keys for value in values.pop(key, []) for word in value.split())

    def seconds(key: str, default: float) -> float:
        text = last(key, "")
        return parse_seconds(text, f"{path.name}: {key}") if text else default

    def statuses(key: str) -> frozenset[int | str]:
        return frozenset(int(word) if word.isdigit() else word for word in words(key))

    both = seconds("TimeoutSec", 90.0)
    kind = last("Type", "simple" if values.get("ExecStart") else "oneshot")
    conditions = [(text.lstrip("!"), not text.startswith("!")) for text in words("ConditionPathExists")]
    unit = Unit(
        name=path.name,
        type=kind,
        exec_start=tuple(values.pop("ExecStart", [])),
        exec_start_pre=tuple(values.pop("ExecStartPre", [])),
        exec_stop_post=tuple(values.pop("ExecStopPost", [])),
        environment=dict(_assignments(path.name, shlex.split(" ".join(values.pop("Environment", []))))),
        environment_files=tuple(values.pop("EnvironmentFile", [])),
        working_directory=last("WorkingDirectory", "") or None,
        conditions=tuple(conditions),
        wants=words("Wants", "Requires"),
        after=words("After"),
        before=words("Before"),
        on_success=words("OnSuccess"),
        on_failure=words("OnFailure"),
        remain_after_exit=last("RemainAfterExit", "no") in ("yes", "true", "1", "on"),
        restart=last("Restart", "no"),
        restart_s=seconds("RestartSec", 0.1),
        start_limit_interval_s=seconds("StartLimitIntervalSec", 10.0),
        start_limit_burst=int(last("StartLimitBurst", "5")),
        success=statuses("SuccessExitStatus"),
        restart_prevent=statuses("RestartPreventExitStatus"),
        # A oneshot may take as long as it takes.
        start_s=seconds("TimeoutStartSec", float("inf") if kind == "oneshot" else both),
        stop_s=seconds("TimeoutStopSec", both),
        watchdog_s=seconds("WatchdogSec", 0.0),
        kill_mode=last("KillMode", "control-group"),
        kill_signal=last("KillSignal", "SIGTERM"),
    )
    for name, value, known in (
        ("Type", unit.type, {"simple", "exec", "notify", "oneshot"}),
        ("Restart", unit.restart, _RESTARTS),
        ("KillMode", unit.kill_mode, {"control-group", "mixed", "process"}),
    ):
        if value not in known:
            raise InputError(f"{path.name}: {name}", value, f"the rehearsal plays {', '.join(sorted(known))}")
    unknown = [key for key in values if not _PASSED_OVER.fullmatch(key)]
    if unknown:
        raise InputError(path.name, ", ".join(unknown), "the rehearsal neither plays this nor knows it to be harmless")
    return unit


def parse_seconds(text: str, what: str) -> float:
    """A time span of systemd.time(7): ``5``, ``1min 30s``, ``100ms``, ``infinity``.

    :raises InputError: it is none
    """
    if text in ("infinity", "0"):
        return float(text.replace("infinity", "inf"))
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    if not parts or not re.fullmatch(r"(\d+(?:\.\d+)?\s*[a-z]*\s*)+", text):
        raise InputError(what, text, "write a time span such as 90 or 1min 30s")
    try:
        return sum(float(number) * _UNITS_US[unit or "s"] for number, unit in parts) / 1_000_000
    except KeyError as error:
        raise InputError(what, text, "write a time span such as 90 or 1min 30s") from error


def read_environment_file(path: str) -> dict[str, str]:
    """``EnvironmentFile=``: one assignment a line, values quoted or not. After a leading ``-`` the file may be missing.

    :raises InputError: it is missing, or a line is none
    """
    file = Path(path.removeprefix("-"))
    if not file.exists():
        if path.startswith("-"):
            return {}
        raise InputError("EnvironmentFile", path, "this file does not exist")
    lines = (line.strip() for line in file.read_text().splitlines())
    found = {}
    for name, value in _assignments(file.name, [line for line in lines if line and line[0] not in "#;"]):
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        found[name] = value[1:-1] if quoted else value
    return found


def command(line: str, environment: Mapping[str, str], unit: str) -> tuple[list[str], bool]:
    """The words of a command line with its variables expanded, and whether its failure is to be passed over.

    ``${NAME}`` is one word whatever it holds; ``$NAME`` as a word of its own is split at blanks.

    :raises InputError: a prefix or specifier that the rehearsal does not play
    """
    ignore = False
    while line[:1] in "-+!:":
        ignore = ignore or line[0] == "-"
        line = line[1:]
    if line[:1] == "@":
        raise InputError(f"{unit}: ExecStart", line, "the rehearsal does not play '@'")
    words: list[str] = []
    for word in shlex.split(line):
        alone = re.fullmatch(r"\$(\w+)", word)
        if alone:
            words += environment.get(alone[1], "").split()
            continue
        word = re.sub(r"\$\{(\w+)\}", lambda match: environment.get(match[1], ""), word).replace("$$", "$")
        specifier = re.search(r"%[^%n]", word.replace("%%", ""))
        if specifier:
            raise InputError(f"{unit}: ExecStart", specifier[0], "the rehearsal does not know this specifier")
        words.append(word.replace("%n", unit).replace("%%", "%"))
    return words, ignore


def _assignments(what: str, words: list[str]) -> list[tuple[str, str]]:
    found = []
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            raise InputError(what, word, "write NAME=value")
        found.append((name.strip(), value.strip()))
    return found


def _map(text: str, paths: Mapping[str, str]) -> str:
    if not paths:
        return text
    ordered = sorted(paths, key=len, reverse=True)
    found = re.compile(rf"(?<![\w/.])(?:{'|'.join(re.escape(path) for path in ordered)})(?![\w.-])")
    return found.sub(lambda match: paths[match[0]], text)
