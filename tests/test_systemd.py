"""The rehearsal's systemd: real processes under real unit files, asked through its ``systemctl``."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from train_cloud.errors import CloudUnavailable, InputError
from train_cloud.platforms.ec2.units import UnitState, systemctl, unit_state
from train_cloud.rehearsal.systemd import Line, Machine
from train_cloud.rehearsal.unit_file import command, parse_seconds, read_environment_file, read_unit

UNITS = Path(__file__).parents[1] / "systemd"
SAY = """
import os, signal, socket, sys, time
signal.signal(signal.SIGUSR1, lambda *_: print("SIGUSR1", flush=True))
link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
link.connect(os.environ["NOTIFY_SOCKET"].replace("@", chr(0)))
for word in sys.argv[1:]:
    time.sleep(float(word)) if word[0].isdigit() else link.send(word.encode())
"""
"""Seconds to sleep, and words for systemd, one after the other."""
FAMILY = """
import os, signal, subprocess, sys, time
who = sys.argv[1]
def handle(number, frame):
    os.write(1, f"{who} {signal.Signals(number).name}\\n".encode())
    if who == "parent" and number == signal.SIGTERM:
        os._exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, handle)
if who != "child":
    subprocess.Popen([sys.executable, "-IS", __file__, "child"], start_new_session=True)
print(who, os.getpid(), flush=True)
while True:
    time.sleep(60)
"""
"""A parent that ends at SIGTERM, or a deaf one that does not, with a child in a session of its own that does not."""

Boot = Callable[..., Machine]


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """Starts a machine with units given by name (dots for underscores, no suffix); ends it with the test."""
    machines: list[Machine] = []
    (tmp_path / "say.py").write_text(SAY)
    (tmp_path / "family.py").write_text(FAMILY)
    programs = {name: f"{sys.executable} -IS {tmp_path}/{name.lower()}.py" for name in ("SAY", "FAMILY")}

    def start(restart_speedup: float = 50, environment: dict[str, str] | None = None, **units: str) -> Machine:
        folder = tmp_path / f"units-{len(machines)}"
        folder.mkdir()
        for name, text in units.items():
            lines = textwrap.dedent(text).strip()
            # One line can hold the unit, as "Key=value | Key=value".
            lines = lines.replace(" | ", "\n")
            for program, path in programs.items():
                lines = lines.replace(f"={program} ", f"={path} ")
            (folder / f"{name}.service").write_text(f"[Service]\n{lines}\n")
        machine = Machine(
            folder, tmp_path / f"machine-{len(machines)}", restart_speedup=restart_speedup, environment=environment
        )
        machines.append(machine)
        return machine

    yield start
    for machine in machines:
        machine.close()


def over(state: UnitState) -> bool:
    return state.over


def up(state: UnitState) -> bool:
    return state.active == "active"


def texts(machine: Machine, unit: str) -> list[str]:
    return [line.text for line in machine.journal(f"{unit}.service")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(*pids: int, within_s: float = 5) -> bool:
    deadline = time.monotonic() + within_s
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


# ------------------------------------------------------------------------------------------------------- the unit files


@pytest.mark.parametrize("path", sorted(UNITS.glob("*.service")), ids=lambda path: path.stem)
def test_every_unit_of_ours_can_be_played(path: Path) -> None:
    unit = read_unit(path, {"/opt/train-cloud/venv/bin": "/venv/bin", "/etc/train-cloud": "/here"})
    assert all("/opt/train-cloud/venv/bin" not in line for line in unit.exec_start)
    assert unit.environment_files in ((), ("/here/worker.env",))


def test_what_the_design_says_of_the_training_unit() -> None:
    unit = read_unit(UNITS / "train-cloud-train.service", {})
    assert (unit.type, unit.restart, unit.kill_mode, unit.stop_s) == ("notify", "on-failure", "mixed", 110)
    assert (set(unit.success), set(unit.restart_prevent), unit.start_s) == ({75}, {64, 73}, float("inf"))
    assert unit.on_success == unit.on_failure == ("train-cloud-finish.service",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ExecReload=/bin/true", "ExecReload"),
        ("Type=forking", "forking"),
        ("Restart=sometimes", "sometimes"),
        ("RestartSec=soon", "soon"),
        ("nonsense", "Key=value"),
    ],
)
def test_what_cannot_be_played_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.service").write_text(f"[Service]\nExecStart=/bin/true\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_unit(tmp_path / "a.service", {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("100ms", 0.1), ("2min", 120), ("1min 30s", 90), ("1h", 3600), ("0", 0), ("infinity", float("inf"))],
)
def test_time_spans(text: str, seconds: float) -> None:
    assert parse_seconds(text, "x") == pytest.approx(seconds)


def test_paths_are_mapped_whole(tmp_path: Path) -> None:
    (tmp_path / "a.service").write_text(
        "[Service]\nExecStart=/opt/x/bin/run /opt/x /opt/xy /my/opt/x\nEnvironmentFile=-/etc/x/env\n"
        "Environment=PATH=/opt/x/bin:/usr/bin 'B=two words'\nWorkingDirectory=/opt/x\n"
    )
    unit = read_unit(tmp_path / "a.service", {"/opt/x": "/new", "/opt/x/bin": "/bins", "/etc/x": "/e"})
    assert unit.exec_start == ("/bins/run /new /opt/xy /my/opt/x",)
    assert unit.environment == {"PATH": "/bins:/usr/bin", "B": "two words"}
    assert (unit.environment_files, unit.working_directory) == (("-/e/env",), "/new")


def test_command_lines() -> None:
    environment = {"A": "two words", "B": "x"}
    words, ignore = command("-/bin/echo ${A} $A 'q ${B}' --b=${B} ${NONE} $$ %n 5%%", environment, "u.service")
    assert words == ["/bin/echo", "two words", "two", "words", "q x", "--b=x", "", "$", "u.service", "5%"]
    assert ignore
    with pytest.raises(InputError, match="%i"):
        command("/bin/echo %i", {}, "u.service")


def test_environment_files(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nA=1\n\nB='two words'\nC=\"x=y\"\nD=\n")
    assert read_environment_file(str(tmp_path / "env")) == {"A": "1", "B": "two words", "C": "x=y", "D": ""}
    assert read_environment_file(f"-{tmp_path / 'none'}") == {}
    with pytest.raises(InputError, match="does not exist"):
        read_environment_file(str(tmp_path / "none"))


# -------------------------------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("command_line", "options", "active", "result", "status", "bell"),
    [
        ("exit 0", "", "inactive", "success", 0, "success"),
        ("exit 1", "", "failed", "exit-code", 1, "failure"),
        ("exit 75", "", "failed", "exit-code", 75, "failure"),
        ("exit 75", "SuccessExitStatus=75", "inactive", "success", 75, "success"),
        ("exit 64", "Restart=on-failure | RestartPreventExitStatus=64 73", "failed", "exit-code", 64, "failure"),
        ("kill -KILL $$$$", "", "failed", "signal", 9, "failure"),
        ("kill -TERM $$$$", "", "inactive", "success", 15, "success"),
        ("kill -KILL $$$$", "SuccessExitStatus=SIGKILL", "inactive", "success", 9, "success"),
        ("kill -ABRT $$$$", "", "failed", "core-dump", 6, "failure"),
    ],
)  # fmt: skip
def test_how_a_service_ends(
    boot: Boot, command_line: str, options: str, active: str, result: str, status: int, bell: str
) -> None:
    machine = boot(
        a=f"ExecStart=/bin/sh -c '{command_line}' | OnSuccess=success.service | OnFailure=failure.service | {options}",
        success="Type=oneshot | ExecStart=/bin/echo rung",
        failure="Type=oneshot | ExecStart=/bin/echo rung",
    )
    machine.start("a")
    state = machine.wait("a", over, 10)
    assert state == UnitState(active, "failed" if active == "failed" else "dead", result, status, 0)
    other = "success" if bell == "failure" else "failure"
    assert machine.wait(bell, lambda _: texts(machine, bell) == ["rung"], 10)
    assert texts(machine, other) == []


def test_a_failing_service_is_tried_again_and_has_failed_only_at_the_last_attempt(boot: Boot, tmp_path: Path) -> None:
    machine = boot(
        restart_speedup=2,
        a=f"""
        ExecStart=/bin/sh -c 'echo x >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) -ge 3 ] && exit 75; exit 3'
        Restart=on-failure
        RestartSec=2
        SuccessExitStatus=75
        OnFailure=failure.service
        OnSuccess=success.service
        """,
        failure="Type=oneshot | ExecStart=/bin/echo rung",
        success="Type=oneshot | ExecStart=/bin/sh -c 'systemctl show -p ActiveState a.service'",
    )
    began = time.monotonic()
    machine.start("a")
    state = machine.wait("a", over, 20)
    assert state == UnitState("inactive", "dead", "success", 75, 2)
    assert 2 <= time.monotonic() - began < 15
    assert machine.wait("success", lambda _: bool(texts(machine, "success")), 10)
    assert texts(machine, "success")[0] in ("ActiveState=activating", "ActiveState=active")  # between two attempts
    assert texts(machine, "failure") == []


def test_a_service_that_fails_too_often_is_given_up(boot: Boot) -> None:
    machine = boot(
        a="ExecStart=/bin/false | Restart=always | RestartSec=10ms | StartLimitBurst=3", b="ExecStart=/bin/true"
    )
    machine.start("a")
    state = machine.wait("a", lambda state: state.over, 10)
    assert state is not None and (state.active, state.restarts) == ("failed", 3)
    assert "systemd: Start request repeated too quickly." in texts(machine, "a")


def test_without_a_limit_it_is_not(boot: Boot) -> None:
    machine = boot(a="ExecStart=/bin/false | Restart=always | RestartSec=10ms | StartLimitIntervalSec=0")
    machine.start("a")
    assert machine.wait("a", lambda state: state.restarts >= 8, 10)
    machine.stop("a")
    assert machine.wait("a", over, 10)
    count = machine.state("a").restarts
    time.sleep(0.2)
    assert machine.state("a").restarts == count


def test_a_service_is_up_when_it_says_so(boot: Boot) -> None:
    machine = boot(a="Type=notify | ExecStart=SAY 0.3 READY=1 60")
    machine.start("a")
    assert machine.state("a").active == "activating"
    assert machine.wait("a", up, 10) == UnitState("active", "running", "success", 0, 0)


def test_a_service_that_ends_before_it_was_up_has_failed(boot: Boot) -> None:
    machine = boot(a="Type=notify | ExecStart=SAY 0")
    machine.start("a")
    assert machine.wait("a", over, 10) == UnitState("failed", "failed", "protocol", 0, 0)


def test_a_service_that_is_not_up_in_time_has_failed(boot: Boot) -> None:
    machine = boot(a="Type=notify | ExecStart=SAY 60 | TimeoutStartSec=300ms")
    machine.start("a")
    state = machine.wait("a", over, 10)
    assert state is not None and (state.active, state.result) == ("failed", "timeout")


def test_the_watchdog_bites_who_falls_silent(boot: Boot) -> None:
    machine = boot(a="Type=notify | ExecStart=SAY READY=1 0.3 WATCHDOG=1 0.3 WATCHDOG=1 60 | WatchdogSec=500ms")
    began = time.monotonic()
    machine.start("a")
    state = machine.wait("a", over, 10)
    assert state is not None and (state.active, state.result) == ("failed", "watchdog")
    assert time.monotonic() - began > 1.0


def test_a_condition_keeps_a_unit_from_starting(boot: Boot, tmp_path: Path) -> None:
    machine = boot(a=f"ExecStart=/bin/sleep 60 | ConditionPathExists=!{tmp_path}/no | ConditionPathExists={tmp_path}")
    (tmp_path / "no").touch()
    machine.start("a")
    assert machine.state("a").active == "inactive"
    (tmp_path / "no").unlink()
    machine.start("a")
    assert machine.wait("a", up, 10)


def test_what_is_wanted_starts_first(boot: Boot) -> None:
    machine = boot(
        a="Wants=b.service network.target | After=b.service | ExecStart=/bin/sleep 60",
        b="Type=notify | ExecStart=SAY 0.3 READY=1 60",
    )
    machine.start("a")
    assert (machine.state("a").active, machine.state("b").active) == ("inactive", "activating")
    assert machine.wait("a", up, 10)
    assert machine.state("b").active == "active"


def test_the_environment_of_a_service(boot: Boot, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FROM_FILE=file\nBOTH=file\n")
    machine = boot(
        environment={"GIVEN": "given", "BOTH": "given"},
        a=f"""
        Type=oneshot
        Environment=OWN=own BOTH=own
        EnvironmentFile={tmp_path}/env
        ExecStart=/bin/sh -c 'echo $GIVEN $OWN $FROM_FILE $BOTH; command -v systemctl; echo $HOME_OF_THE_TEST'
        """.replace("$", "$$"),
    )
    machine.start("a")
    assert machine.wait("a", lambda state: len(texts(machine, "a")) == 3, 10)
    first, path, foreign = texts(machine, "a")
    assert first == "given own file file"
    assert path.startswith(str(tmp_path)) and foreign == ""


def test_a_oneshot_runs_its_commands_in_order_and_may_remain(boot: Boot) -> None:
    machine = boot(
        a="Type=oneshot | RemainAfterExit=yes | ExecStart=/bin/echo 1 | ExecStart=/bin/echo 2",
        b="Type=oneshot | ExecStart=/bin/false | ExecStart=/bin/echo 2",
    )
    machine.start("a")
    machine.start("b")
    assert machine.wait("a", up, 10) == UnitState("active", "exited", "success", 0, 0)
    assert texts(machine, "a") == ["1", "2"]
    assert machine.wait("b", lambda state: state.active == "failed", 10)
    assert "2" not in texts(machine, "b")


# ---------------------------------------------------------------------------------------------------- stopping, killing


def family(machine: Machine) -> dict[str, int]:
    """The process ids of unit a's parent and child, once both can hear."""
    assert machine.wait("a", lambda _: len(texts(machine, "a")) >= 2, 10)
    return {who: int(pid) for who, pid in (text.split() for text in texts(machine, "a")[:2])}


def test_mixed_means_that_only_the_main_process_is_asked(boot: Boot) -> None:
    machine = boot(a="ExecStart=FAMILY parent | KillMode=mixed | SuccessExitStatus=75 | Restart=always")
    machine.start("a")
    pids = family(machine)
    assert machine.pid("a") == pids["parent"]
    machine.stop("a")
    assert machine.wait("a", over, 10) == UnitState("inactive", "dead", "success", 75, 0)
    assert gone(*pids.values())
    said = texts(machine, "a")
    assert "parent SIGTERM" in said and "child SIGTERM" not in said


def test_control_group_means_that_all_are_asked_and_then_killed(boot: Boot) -> None:
    machine = boot(a="ExecStart=FAMILY parent | SuccessExitStatus=75 | TimeoutStopSec=500ms")
    machine.start("a")
    pids = family(machine)
    machine.stop("a")
    assert machine.wait("a", over, 10)
    assert gone(*pids.values())
    assert {"parent SIGTERM", "child SIGTERM"} <= set(texts(machine, "a"))


def test_who_does_not_end_in_time_is_killed(boot: Boot) -> None:
    machine = boot(a="ExecStart=FAMILY deaf | KillMode=mixed | TimeoutStopSec=500ms | Restart=always")
    machine.start("a")
    pids = family(machine)
    machine.stop("a")
    assert machine.wait("a", over, 10) == UnitState("failed", "failed", "timeout", 9, 0)
    assert gone(*pids.values())


def test_a_main_process_that_dies_leaves_nobody_behind(boot: Boot) -> None:
    machine = boot(a="ExecStart=FAMILY parent | KillMode=mixed")
    machine.start("a")
    pids = family(machine)
    os.kill(pids["parent"], signal.SIGKILL)
    state = machine.wait("a", over, 10)
    assert state is not None and (state.result, state.status) == ("signal", 9)
    assert gone(*pids.values())


@pytest.mark.parametrize(
    ("option", "heard"), [("--kill-who=main", {"deaf SIGUSR1"}), ("", {"deaf SIGUSR1", "child SIGUSR1"})]
)
def test_systemctl_kill(boot: Boot, monkeypatch: pytest.MonkeyPatch, option: str, heard: set[str]) -> None:
    machine = boot(a="ExecStart=FAMILY deaf | TimeoutStopSec=1s")
    monkeypatch.setenv("PATH", machine.path)
    machine.start("a")
    family(machine)
    systemctl("kill", *option.split(), "--signal=SIGUSR1", "a.service")
    assert machine.wait("a", lambda _: {t for t in texts(machine, "a") if "USR1" in t} == heard, 10)
    time.sleep(0.1)
    assert {text for text in texts(machine, "a") if "USR1" in text} == heard


# ------------------------------------------------------------------------------------------------------------ systemctl


def run(machine: Machine, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        ["systemctl", *arguments], env={"PATH": machine.path}, capture_output=True, text=True, timeout=20
    )
    return done.returncode, done.stdout + done.stderr


def test_systemctl_start_and_stop_wait_unless_told_not_to(boot: Boot) -> None:
    machine = boot(a="Type=notify | ExecStart=SAY 0.5 READY=1 60")
    assert run(machine, "start", "--no-block", "a") == (0, "")
    assert run(machine, "is-active", "a") == (3, "activating\n")
    assert run(machine, "start", "a.service") == (0, "")
    assert run(machine, "is-active", "a.service") == (0, "active\n")
    assert run(machine, "stop", "a") == (0, "")
    assert run(machine, "is-active", "--quiet", "a") == (3, "")


def test_systemctl_says_what_went_wrong(boot: Boot) -> None:
    machine = boot(a="Type=oneshot | ExecStart=/bin/false")
    assert run(machine, "start", "a") == (1, "Job for a.service failed.\n")
    assert run(machine, "is-failed", "a") == (0, "failed\n")
    assert run(machine, "reset-failed", "a") == (0, "")
    assert run(machine, "is-failed", "a") == (1, "inactive\n")
    assert run(machine, "start", "nothing")[0] == 5
    assert run(machine, "kill", "a")[0] == 1
    assert run(machine, "frobnicate", "a")[0] == 1


def test_a_start_during_a_stop_follows_it(boot: Boot) -> None:
    machine = boot(a="ExecStart=FAMILY deaf | TimeoutStopSec=500ms")
    machine.start("a")
    first = family(machine)["deaf"]
    assert run(machine, "stop", "--no-block", "a")[0] == 0
    assert machine.state("a").active == "deactivating"
    assert run(machine, "start", "a")[0] == 0
    assert machine.wait("a", up, 10)
    assert machine.pid("a") not in (None, first)


def test_a_stop_ends_the_wait_for_the_next_attempt(boot: Boot) -> None:
    machine = boot(restart_speedup=1, a="ExecStart=/bin/false | Restart=always | RestartSec=30s")
    machine.start("a")
    assert machine.wait("a", lambda state: state.sub == "auto-restart", 10)
    assert run(machine, "stop", "a")[0] == 0
    assert machine.state("a").active == "inactive"


def test_watch_and_finish_read_it(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = boot(a="ExecStart=/bin/sh -c 'exit 3'")
    monkeypatch.setenv("PATH", machine.path)
    assert unit_state("a.service") == UnitState("inactive", "dead", "success", 0, 0)
    systemctl("start", "--no-block", "a.service")
    assert machine.wait("a", over, 10)
    assert unit_state("a.service") == UnitState("failed", "failed", "exit-code", 3, 0)
    assert unit_state("never-heard-of.service").active == "inactive"
    with pytest.raises(CloudUnavailable, match="not found"):
        systemctl("start", "never-heard-of.service")
    machine.close()
    with pytest.raises(CloudUnavailable):
        unit_state("a.service")


# ------------------------------------------------------------------------------------------------- power, and the end


def test_a_power_off_stops_in_order_and_starts_nothing(boot: Boot) -> None:
    machine = boot(
        first="ExecStart=FAMILY parent | KillMode=mixed | SuccessExitStatus=75",
        second="After=first.service | ExecStart=FAMILY parent | KillMode=mixed | OnSuccess=bell.service",
        bell="Type=oneshot | ExecStart=/bin/echo rung",
    )
    machine.start("first")
    machine.start("second")
    assert machine.wait("first", lambda _: len(texts(machine, "first")) >= 2, 10)
    assert machine.wait("second", lambda _: len(texts(machine, "second")) >= 2, 10)
    assert machine.power_off(10)
    stops = [line.unit for line in machine.journal() if line.text == "parent SIGTERM"]
    assert stops == ["second.service", "first.service"]
    assert texts(machine, "bell") == []
    assert run(machine, "start", "bell")[0] == 1


def test_who_is_not_done_when_the_grace_is_over_loses_the_power(boot: Boot) -> None:
    machine = boot(a="ExecStart=FAMILY deaf | KillMode=mixed")
    machine.start("a")
    pids = family(machine)
    began = time.monotonic()
    assert not machine.power_off(0.5)
    assert time.monotonic() - began < 5
    assert gone(*pids.values())


def test_the_plug_takes_everything_at_once(boot: Boot) -> None:
    machine = boot(a="ExecStart=FAMILY parent | Restart=always | OnFailure=b.service", b="ExecStart=/bin/sleep 60")
    machine.start("a")
    pids = family(machine)
    machine.lose_power()
    assert not any(alive(pid) for pid in pids.values())
    time.sleep(0.3)
    assert "parent SIGTERM" not in texts(machine, "a")
    assert machine.pid("a") is None and machine.state("b").active == "inactive"


def test_nobody_survives_a_failed_assertion(boot: Boot) -> None:
    with pytest.raises(ZeroDivisionError), boot(a="ExecStart=FAMILY deaf | Restart=always") as machine:
        machine.start("a")
        pids = family(machine)
        _ = 1 / 0
    assert gone(*pids.values())
    machine.close()


OWNER = """
import sys, time
from pathlib import Path
from train_cloud.rehearsal.systemd import Machine
with Machine(Path(sys.argv[1]), Path(sys.argv[2])) as machine:
    machine.start("a")
    machine.wait("a", lambda _: len(machine.journal("a.service")) >= 2, 10)
    print(*(line.text.split()[1] for line in machine.journal("a.service")), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nobody_survives_the_rehearsal(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "family.py").write_text(FAMILY.replace("SIGTERM:", "SIGTERM and False:"))
    (tmp_path / "units").mkdir()
    main = f"{sys.executable} -IS {tmp_path}/family.py parent"
    (tmp_path / "units" / "a.service").write_text(f"[Service]\nExecStart={main}\n")
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path / "units", tmp_path / "machine"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout is not None
    pids = []
    try:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        owner.send_signal(number)
        owner.wait(90)
        # Killed outright, it cannot reach what its processes started in sessions of their own.
        assert gone(*(pids if number == signal.SIGINT else pids[:1]))
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_the_journal_has_times_and_is_followed(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "a.service").write_text(
        "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo one; echo two >&2; printf three'\n"
    )
    followed: list[Line] = []
    with Machine(tmp_path / "units", tmp_path / "m", on_line=followed.append) as machine:
        machine.start("a")
        assert machine.wait("a", lambda _: len(followed) == 3, 10)
        assert [line.text for line in followed] == ["one", "two", "three"]
        assert machine.journal("a.service") == machine.journal() == followed
    times = [line.at for line in followed]
    assert all(earlier <= later for earlier, later in itertools.pairwise(times))
    assert abs(times[0] - time.time()) < 30


def test_a_folder_without_units_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.service file"):
        Machine(tmp_path, tmp_path / "m")
