"""Every road ends at capacity 0 or in an exact resume, and nothing is lost: the table of docs/failures.md, row by row.

The trainer is the real one in each of these tests, and so are its store, its metadata service and its signals. Where
what systemd does matters, a machine plays the real unit files; elsewhere the process alone tells as much.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest
from fault_proxy import FaultProxy, refuse, stall
from groups import machines, make_group, scripted_autoscaling
from local_machine import LocalMachine
from prices import Prices, serving
from sessions import Rehearsed
from stable_baselines3 import SAC as StableSAC
from test_bootstrap import INSTALL, NVIDIA, Boot, booting, made_for_boots, render
from until import until

from train_cloud.checkpoint import read_manifest
from train_cloud.cli import main
from train_cloud.config.run_file import Limits as RunLimits
from train_cloud.platforms.ec2.group import Group
from train_cloud.platforms.ec2.units import FINISH, TRAIN
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.cost import cost
from train_cloud.run.head import Head, conclude, read_head, reopen
from train_cloud.run.layout import boot_key
from train_cloud.run.session import begin_session, read_sessions
from train_cloud.runtime.limits import Limits
from train_cloud.sb3.compare import differences
from train_cloud.whole_file import write_local

# Nothing here waits for the clock where it can wait for the event; what ends a test that fails is generous.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[1]
WATCH = "train-cloud-watch.service"
SAC: dict[str, Any] = {
    "algorithm": "sac",
    "seed": 3,
    "total_timesteps": 400,
    "save_frequency": 100,
    "environment": {"id": "Pendulum-v1"},
    # Learning at each step would take most of the time.
    "hyperparameters": {"learning_starts": 50, "train_freq": 2, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}},
    "callbacks": ["failing_code:Accidents"],
}
SLOW = {**SAC, "environment": {"id": "Pendulum-v1", "wrappers": ["failing_code:Slow"]}}
LONG_UPDATE: dict[str, Any] = {
    "algorithm": "failing_code:LongUpdate",
    "seed": 3,
    "total_timesteps": 128,
    "save_frequency": 64,
    "environment": {"id": "Pendulum-v1"},
    "hyperparameters": {"n_steps": 64, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}},
    "callbacks": ["failing_code:Accidents"],
}


class Run(Rehearsed):
    """A run whose sessions are those of a worker, with accidents to come."""

    def __init__(self, context: Any, folder: Path, run: dict[str, Any], root: str | None = None) -> None:
        super().__init__(context, folder, run, root)
        self.accidents = folder / "accidents"
        self.accidents.mkdir()
        self.metadata = MetadataService("i-0123456789abcdef0")
        self.worker = {
            "ACCIDENTS": str(self.accidents),
            "TRAIN_CLOUD_AUTOSCALING_GROUP": "a-group",
            "TRAIN_CLOUD_RUN_ID": "a-run",
            "TRAIN_CLOUD_MAX_ATTEMPTS": "3",
            "TRAIN_CLOUD_PRICE_SECONDS": "0",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.endpoint,
        }

    def befall(self, *names: str, text: str = "") -> None:
        for name in names:
            (self.accidents / name).write_text(text)

    @property
    def waits(self) -> bool:
        """Whether the trainer has come to where it waits."""
        return self.accidents.with_name(f"{self.accidents.name}.here").exists()

    def let_go(self) -> None:
        """It waits no longer."""
        self.accidents.with_name(f"{self.accidents.name}.here").unlink(missing_ok=True)
        for path in self.accidents.glob("*-wait"):
            path.unlink()

    def go(self, *options: str, **env: str) -> int:
        """A trainer's life on this machine; its exit code."""
        return self.session(options=options, env={**self.worker, **env})

    def another_machine(self) -> None:
        """What comes is another boot's."""
        shutil.rmtree(self.folder / "state", ignore_errors=True)

    def commits(self) -> list[int]:
        """Timesteps of the checkpoints that are there."""
        found = {info.key.split("/")[1] for info in self.store.list(layout.CHECKPOINTS)}
        return sorted(int(name.split("-")[0]) for name in found)

    def said(self) -> str:
        return self.log()[-6000:]


@pytest.fixture(scope="module")
def sac(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """The same run, which nothing befell."""
    twin = Rehearsed(warm, tmp_path_factory.mktemp("sac"), SAC)
    assert twin.session() == 0, twin.log()
    return twin


def exact(run: Rehearsed, twin: Rehearsed) -> bool:
    assert differences(run.final(), twin.final()) == []
    return True


@pytest.fixture
def run(warm: Any, tmp_path: Path) -> Iterator[Run]:
    run = Run(warm, tmp_path, SAC)
    yield run
    run.metadata.close()


@pytest.fixture
def proxy(aws_endpoint: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(aws_endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def far_run(warm: Any, tmp_path: Path, s3_root: str, proxy: FaultProxy) -> Iterator[Run]:
    """A run in S3, which its workers reach through a proxy that may fail."""
    run = Run(warm, tmp_path, SAC, root=s3_root)
    run.worker["AWS_ENDPOINT_URL_S3"] = proxy.url
    yield run
    run.metadata.close()


# ------------------------------------------------------------------------------------------ 1. training code that fails


def test_code_that_raises_every_time_is_given_up(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.befall("150-raise-always")
    assert [run.go() for _ in range(4)] == [1, 1, 1, 1], run.said()
    head = run.head()
    assert (head.outcome, head.timesteps, head.attempts) == ("failed", 100, 3)
    assert run.go() == 0
    assert "nothing to do: the run has the outcome failed" in run.log()
    assert b"ArithmeticError: on purpose" in bytes(run.store.get(layout.session_log_key(1)).body)
    assert main(["status", run.store.url]) == 0
    told = capsys.readouterr().out
    assert "3 attempts without a new commit" in told
    assert "Traceback" in told and "failing_code.py" in told and "ArithmeticError: on purpose" in told


def test_code_that_raises_once_is_started_again_and_ends_exactly(run: Run, sac: Rehearsed) -> None:
    run.befall("250-raise")
    assert [run.go(), run.go()] == [1, 0], run.said()
    assert run.head().attempts == 0 and run.head().reason is None
    assert exact(run, sac)
    assert len(read_sessions(run.store)) == 1, "one boot is one session"


def test_crashes_with_a_commit_between_them_are_no_loop(run: Run, sac: Rehearsed) -> None:
    """Each attempt commits once and dies: more attempts than are allowed in a row, and none in a row."""
    run.worker["TRAIN_CLOUD_MAX_ATTEMPTS"] = "2"
    run.befall("+130-raise-always")
    codes: list[int] = []
    while 0 not in codes and len(codes) < 9:
        codes.append(run.go())
    assert codes == [1, 1, 1, 0], run.said()
    assert exact(run, sac)


def test_dying_without_a_word_is_counted_and_named(run: Run) -> None:
    """A trainer that is killed leaves nothing in the head: what systemd told finish about it is the reason."""
    from train_cloud.platforms.ec2.units import boot_id, ended_with
    from train_cloud.run.exit_record import note_kill

    run.befall("150-SIGKILL-always")
    for _ in range(3):
        assert run.go() == -9
        note_kill(run.folder / "state", boot_id(), ended_with({"SERVICE_RESULT": "oom-kill", "EXIT_STATUS": "KILL"}))
    assert run.go() == 1
    head = run.head()
    assert head.outcome == "failed" and head.reason is not None
    assert "3 attempts" in head.reason and "was killed because the machine ran out of memory" in head.reason


def test_what_a_worker_refuses_ends_its_run_also_when_it_has_a_head(run: Run) -> None:
    """No other machine would do better: the outcome is failed, and not fenced by the session before."""
    assert run.session("SIGTERM@150", env={**run.worker, "INTERRUPT": ""}, outside=True) == 75, run.said()
    before = run.head()
    run.another_machine()
    assert run.go("--set", "seed=4") == 64, run.said()
    head = run.head()
    assert head.outcome == "failed" and (head.reason or "").startswith("seed: 4: run a-run was begun with 3")
    assert head.manifest == before.manifest


def test_a_run_file_that_cannot_be_read_ends_the_run(run: Run) -> None:
    assert run.session("SIGTERM@150", env=run.worker, outside=True) == 75, run.said()
    run.another_machine()
    assert run.go("--set", "limits.hours=soon") == 64
    assert run.head().outcome == "failed" and "limits.hours: 'soon'" in (run.head().reason or "")


# ------------------------------------------------------------------------------------------- 2. hangs, and what is none


class Watchdog:
    """The half of systemd's watchdog that listens: whoever was silent for too long has its process aborted.

    ``WatchdogSec=`` in systemd.service(5); the trainer's own limit is what is really asked about.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.bitten = seconds, False
        self.name = f"@watchdog-{uuid.uuid4().hex}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.name.replace("@", "\0"))

    def guard(self, process: Any) -> int:
        """Until the process has ended: its exit code."""
        self.socket.settimeout(0.1)
        fed = None
        deadline = time.monotonic() + 240
        while process.exitcode is None and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if self.socket.recv(100) in (b"READY=1", b"WATCHDOG=1"):
                    fed = time.monotonic()
            if fed is not None and time.monotonic() - fed > self.seconds:
                self.bitten = True
                os.kill(process.pid, signal.SIGABRT)
                fed = None
            process.join(0)
        assert process.exitcode is not None
        return int(process.exitcode)


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(15)
    yield watchdog
    watchdog.socket.close()


PATIENCE = {"NOTIFY_SOCKET": "", "TRAIN_CLOUD_PATIENCE": "start=120 restore=5 steps=5 update=60 store=60"}
"""Shorter than what takes long in these tests, where it must not take that long."""


def guarded(run: Run, watchdog: Watchdog, **env: str) -> int:
    return watchdog.guard(run.start(env={**run.worker, **PATIENCE, "NOTIFY_SOCKET": watchdog.name, **env}))


def test_a_long_update_is_no_hang(warm: Any, tmp_path: Path, watchdog: Watchdog) -> None:
    run = Run(warm, tmp_path, LONG_UPDATE)
    try:
        assert guarded(run, watchdog) == 0, run.said()
    finally:
        run.metadata.close()
    assert not watchdog.bitten and run.head().outcome == "completed"
    assert "no sign of life" not in run.log()


def test_a_long_restore_is_no_hang(far_run: Run, sac: Rehearsed, proxy: FaultProxy, watchdog: Watchdog) -> None:
    """Each object takes a second and a half, and all of them longer than a restore may be silent."""
    far_run.befall("350-SIGTERM")
    assert far_run.go() == 75, far_run.said()
    far_run.another_machine()
    proxy.arm("get .*", stall(1.5), 6)
    began = time.monotonic()
    assert guarded(far_run, watchdog) == 0, far_run.said()
    assert time.monotonic() - began > 6 and not proxy.armed
    assert not watchdog.bitten and "no sign of life" not in far_run.log()
    assert exact(far_run, sac)


def test_a_hang_is_seen_told_and_gone_on_from(run: Run, sac: Rehearsed, watchdog: Watchdog) -> None:
    run.befall("250-hang")
    assert guarded(run, watchdog, TRAIN_CLOUD_PATIENCE="start=60 restore=60 steps=4 update=4 store=30") == -6, (
        run.said()
    )
    assert watchdog.bitten
    assert re.search(r"no sign of life for \d+ s while training, at:", run.log())
    assert "time.sleep(60)" in run.log(), "where it stands is in the journal"
    assert run.go() == 0, run.said()
    assert exact(run, sac)


def test_a_run_that_always_hangs_is_given_up_and_says_where(run: Run, watchdog: Watchdog) -> None:
    run.worker["TRAIN_CLOUD_MAX_ATTEMPTS"] = "1"
    run.befall("150-hang-always")
    assert guarded(run, watchdog, TRAIN_CLOUD_PATIENCE="start=60 restore=60 steps=4 update=4 store=30") == -6, (
        run.said()
    )
    assert run.go() == 1
    head = run.head()
    assert head.outcome == "failed"
    assert "no sign of life" in (head.reason or "") and "in _happen" in (head.reason or "")


# --------------------------------------------------------------------------------------------------- 3. boots that fail


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedAws]:
    yield from made_for_boots()


@pytest.fixture
def boot(aws: EmbeddedAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boot]:
    with monkeypatch.context() as patch:
        yield from booting(aws, tmp_path, patch)


def hurried(boot: Boot) -> None:
    """The code on the machine, with a retry timeout of two seconds in the place of minutes."""
    boot.installed()
    code = boot.root / "opt/train-cloud/code"
    for script in (code / "package/bootstrap").glob("*.sh"):
        script.write_text(re.sub(r"retry \d+ ", "retry 2 ", script.read_text()))
    names = sorted(str(path.relative_to(code)) for path in code.rglob("*") if path.is_file())
    names.remove("SHA256SUMS")
    sums = "".join(f"{hashlib.sha256((code / name).read_bytes()).hexdigest()}  {name}\n" for name in names).encode()
    (code / "SHA256SUMS").write_bytes(sums)
    boot.variables["TRAIN_CLOUD_CODE_DIGEST"] = hashlib.sha256(sums).hexdigest()


def with_python(boot: Boot, pip: str, wanted: str = "") -> None:
    """A Python whose virtual environments have this pip, and a package that asks for these requirements."""
    for name, script in {"pip": pip, "train-cloud": f"echo {wanted}"}.items():
        (boot.root / name).write_text(f"#!/bin/bash\n{script}\n")
    made = " ".join(str(boot.root / name) for name in ("pip", "train-cloud"))
    boot.stand_in(
        "python3.11",
        f"""case "$1" in
        -V*) echo Python 3.11.99 ;;
        -m) mkdir -p "$3/bin" && install -m 755 {made} "$3/bin/" ;;
        esac""",
    )


def break_index(boot: Boot) -> str:
    with_python(boot, "echo 'ERROR: Could not connect to the package index' >&2; exit 1")
    return "Could not connect to the package index"


def break_requirement(boot: Boot) -> str:
    words = "ERROR: No matching distribution found for no-such-package==9"
    with_python(boot, f'case "$*" in *no-such-package*) echo "{words}" >&2; exit 1 ;; esac', "no-such-package==9")
    return words


def break_driver(boot: Boot) -> str:
    (boot.root / NVIDIA).parent.mkdir(parents=True)
    (boot.root / NVIDIA).write_text("0x10de\n")
    boot.stand_in("nvidia-smi", "echo NVIDIA-SMI has failed >&2; exit 9")
    return "there is an NVIDIA device and no driver that answers"


@pytest.mark.parametrize("breaking", [break_index, break_requirement, break_driver])
@pytest.mark.parametrize("last", [False, True], ids=["first attempt", "last attempt"])
def test_a_boot_that_fails_leaves_its_log_and_the_next_one_or_the_end(
    boot: Boot, breaking: Callable[[Boot], str], last: bool
) -> None:
    hurried(boot)
    words = breaking(boot)
    boot.variables["TRAIN_CLOUD_MAX_ATTEMPTS"] = "1" if last else "3"
    assert boot.call(*INSTALL).returncode != 0
    marker = boot_key(1, boot.instance)
    assert boot.keys("boots/") == [marker, f"{marker}-failed"], boot.log()
    log = f"logs/boot-{marker.removeprefix('boots/')}.log"
    assert words in boot.get(log).decode()
    read = read_head(boot.store)
    if last:
        assert read is not None and (read[0].outcome, read[0].reason) == (
            "failed",
            f"1 boots in a row failed; see {log}",
        )
        assert boot.capacity() == 0
    else:
        assert read is None and boot.capacity() == 1 and not boot.alive(), "another machine tries"
    assert not any(line.startswith("systemctl start") for line in boot.requests())


def test_a_boot_waits_while_its_role_is_refused(boot: Boot) -> None:
    """IAM needs seconds, seldom minutes, until a new role may do what it may."""
    boot.installed()
    boot.has_venv()
    allowed = (boot.bin / "aws").rename(boot.bin / "aws-allowed")
    count = boot.root / "refused"
    boot.stand_in(
        "aws",
        f"""echo x >>{count}
        if [ "$(wc -l <{count})" -lt 8 ]; then echo "An error occurred (AccessDenied)" >&2; exit 254; fi
        exec {allowed} "$@" """,
    )
    assert boot.call(*INSTALL).returncode == 0, boot.log()
    marker = boot_key(1, boot.instance)
    assert boot.keys("boots/") == [marker, f"{marker}-ready"]
    assert "AccessDenied" in boot.log() and boot.alive()
    assert b"ready after" in boot.get(f"logs/boot-{marker.removeprefix('boots/')}.log")


def test_without_an_aws_cli_and_a_way_to_get_one_the_machine_powers_itself_off(boot: Boot) -> None:
    """Nothing can be written without it. The launch template turns the power-off into a termination."""
    boot.stand_in("aws", "exit 127")
    boot.stand_in("curl", "echo 'curl: (6) Could not resolve host: awscli.amazonaws.com' >&2; exit 6")
    boot.stand_in("unzip", "exit 1")
    script = boot.root.parent / "user-data"
    script.write_text(re.sub(r"retry \d+ ", "retry 1 ", render(boot.variables)))
    assert boot.call("bash", str(script)).returncode != 0
    assert [line.split()[1] for line in boot.requests()] == ["mask", "stop", "poweroff"]
    assert "Could not resolve host" in boot.log() and "this boot failed" in boot.log()


@pytest.mark.parametrize("how", ["spot notice", "scale-in", "power-off"])
def test_a_boot_that_is_cut_by_a_notice_is_not_counted(boot: Boot, how: str) -> None:
    """The operating system is told to stop, and so is the boot: it failed at nothing."""
    boot.installed()
    (boot.root / NVIDIA).parent.mkdir(parents=True)
    (boot.root / NVIDIA).write_text("0x10de\n")
    boot.stand_in("nvidia-smi", f"echo booting >>{boot.asked}; exec sleep 100")
    boot.variables["TRAIN_CLOUD_MAX_ATTEMPTS"] = "1"
    if how == "spot notice":
        boot.metadata.interrupt()
    elif how == "scale-in":
        boot.metadata.scale_in()
    else:
        boot.stand_in("systemctl", "echo stopping; exit 1")
    process = subprocess.Popen(
        INSTALL, env={**boot.environment, **boot.variables}, cwd=boot.root, start_new_session=True
    )
    try:
        until(lambda: "booting" in boot.requests(), "the boot is under way")
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(120) != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    marker = boot_key(1, boot.instance)
    assert boot.keys("boots/") == [marker], boot.log()
    assert b"taken away" in boot.get(f"logs/boot-{marker.removeprefix('boots/')}.log")
    assert read_head(boot.store) is None and boot.capacity() == 1 and not boot.alive()


# ------------------------------------------------------------------------------------ 4. notices, at any time (process)


def notice(run: Run, seconds: float) -> None:
    """On the disk, as watch leaves it before it stops the trainer."""
    from train_cloud.platforms.ec2.notices import NOTICE_FILE, Notice, local_form
    from train_cloud.platforms.ec2.units import boot_id

    now = datetime.now(timezone.utc)
    content = Notice(kind="spot", action="terminate", time=now + timedelta(seconds=seconds), seen=now)
    write_local(run.folder / "state" / NOTICE_FILE, local_form(content, boot_id()))


def ends(process: Any, run: Run, seconds: float = 240) -> int:
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail(f"it did not end: {run.said()}")
    return int(process.exitcode)


def test_a_notice_during_the_import_commits_nothing_and_loses_nothing(run: Run, sac: Rehearsed) -> None:
    run.befall("150-SIGTERM")
    assert run.go() == 75, run.said()
    before = run.head()
    run.another_machine()
    process = run.start(env={**run.worker, "STOP_AT_IMPORT": "1"}, state="state")
    until(lambda: (run.folder / "state" / "session.json").exists(), "the session has begun")
    os.kill(process.pid, signal.SIGTERM)
    assert ends(process, run) == 75, run.said()
    assert (run.head().timesteps, run.head().outcome) == (before.timesteps, None)
    run.another_machine()
    assert run.go() == 0, run.said()
    assert exact(run, sac)


@pytest.mark.parametrize("object", [pytest.param("get model", marks=pytest.mark.full), "get segment"])
def test_a_notice_during_the_restore(far_run: Run, sac: Rehearsed, proxy: FaultProxy, object: str) -> None:
    far_run.befall("250-SIGTERM")
    assert far_run.go() == 75, far_run.said()
    before = far_run.head()
    far_run.another_machine()
    proxy.arm(object, stall(3), 1)
    process = far_run.start(env=far_run.worker)
    until(lambda: not proxy.armed, "the restore has begun")
    notice(far_run, 60)
    os.kill(process.pid, signal.SIGTERM)
    assert ends(process, far_run) == 75, far_run.said()
    assert (far_run.head().timesteps, far_run.head().manifest) == (before.timesteps, before.manifest)
    far_run.another_machine()
    assert far_run.go() == 0, far_run.said()
    assert exact(far_run, sac)


@pytest.mark.parametrize("object", [pytest.param("put model", marks=pytest.mark.full), "put segment", "swap head"])
def test_a_notice_during_a_save_repeats_nothing(far_run: Run, sac: Rehearsed, proxy: FaultProxy, object: str) -> None:
    """The commit under way ends, and the steps since are committed after it."""
    proxy.arm(object, stall(2), 1) if object != "swap head" else None
    far_run.befall("101-sleep", text="0.5")  # the commit of step 100 is under way
    process = far_run.start(env=far_run.worker)
    if object == "swap head":  # the first one takes the run
        until(lambda: "put model" in proxy.seen, "the first save")
        proxy.arm(object, stall(2), 1)
    until(lambda: not proxy.armed, "the save is under way")
    notice(far_run, 60)
    os.kill(process.pid, signal.SIGTERM)
    assert ends(process, far_run) == 75, far_run.said()
    (session,) = read_sessions(far_run.store)
    assert session.end is not None and session.end["ended_by"] == "notice"
    assert far_run.head().timesteps == session.end["last_timestep"] > 100
    far_run.another_machine()
    assert far_run.go() == 0, far_run.said()
    assert exact(far_run, sac)


@pytest.mark.parametrize(
    "object", [r"put \w*model\.zip", pytest.param("put manifest", marks=pytest.mark.full), "swap head"]
)
def test_a_notice_while_completing_completes(far_run: Run, sac: Rehearsed, proxy: FaultProxy, object: str) -> None:
    far_run.befall("300-SIGTERM")
    assert far_run.go() == 75, far_run.said()
    far_run.another_machine()
    far_run.befall("399-wait")
    process = far_run.start("--set", "save_frequency=400", env=far_run.worker)
    until(lambda: far_run.waits, "the last step is near")
    proxy.arm(object, stall(2), 1)
    far_run.let_go()
    until(lambda: not proxy.armed, "it is completing")
    notice(far_run, 60)
    os.kill(process.pid, signal.SIGTERM)
    code = ends(process, far_run)
    assert code in ((0, 75) if "model" in object else (0,)), far_run.said()
    if code == 75:  # it could not be sent in time: what is left to do is the next machine's
        assert far_run.head().outcome is None
        far_run.another_machine()
        assert far_run.go() == 0, far_run.said()
    assert exact(far_run, sac)
    assert far_run.store.get(layout.FINAL + "model.zip").body


# ------------------------------------------------------------------------------ 5. and 6. too late, and without a store


def test_a_save_that_overruns_the_deadline_leaves_the_commit_before(
    far_run: Run, sac: Rehearsed, proxy: FaultProxy
) -> None:
    far_run.befall("150-sleep", text="0.3")
    far_run.befall("250-SIGTERM")
    proxy.arm("put segment", lambda exchange: exchange.answer(exchange.forward()), 1)  # of step 100
    process = far_run.start(env={**far_run.worker, "TRAIN_CLOUD_STOP_SECONDS": "2"})
    until(lambda: not proxy.armed, "the save of step 100")
    until(lambda: far_run.head().timesteps == 100, "the commit of step 100")
    proxy.arm("put .*", stall(600), float("inf"))
    time.sleep(8)
    # What systemd does after TimeoutStopSec, and EC2 at the announced time, whatever is under way.
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    assert ends(process, far_run) in (-9, 75), far_run.said()
    proxy.disarm()
    assert far_run.head().timesteps in (100, 200)
    far_run.another_machine()
    assert far_run.go() == 0, far_run.said()
    assert exact(far_run, sac)


def test_an_outage_in_mid_run_delays_commits_and_nothing_else(
    far_run: Run, sac: Rehearsed, proxy: FaultProxy, watchdog: Watchdog
) -> None:
    """Longer than any phase may be silent: the training ends, waits, and commits when the store is back."""
    far_run.worker["TRAIN_CLOUD_STORE_PATIENCE"] = "6"

    def outage() -> None:
        until(lambda: far_run.waits, "training")
        proxy.arm(".*", refuse(503, "ServiceUnavailable"), float("inf"))
        far_run.let_go()
        time.sleep(12)
        proxy.disarm()

    far_run.befall("90-wait")
    process = far_run.start(env={**far_run.worker, **PATIENCE, "NOTIFY_SOCKET": watchdog.name})
    threading.Thread(target=outage, daemon=True).start()
    assert watchdog.guard(process) == 0, far_run.said()
    assert not watchdog.bitten and "no sign of life" not in far_run.log()
    assert re.search(r"commit at \d+ delayed", far_run.log())
    assert exact(far_run, sac)


def test_a_notice_during_an_outage_leaves_at_the_last_commit(far_run: Run, sac: Rehearsed, proxy: FaultProxy) -> None:
    far_run.befall("150-wait")
    process = far_run.start(env={**far_run.worker, "TRAIN_CLOUD_STOP_SECONDS": "3", "TRAIN_CLOUD_STORE_PATIENCE": "6"})
    until(lambda: far_run.waits and far_run.head().timesteps == 100, "step 150, and the commit of step 100")
    proxy.arm(".*", refuse(503, "ServiceUnavailable"), float("inf"))
    os.kill(process.pid, signal.SIGTERM)
    far_run.let_go()
    assert ends(process, far_run) == 75, far_run.said()
    assert "while the store does not answer" in far_run.log()
    proxy.disarm()
    assert (far_run.head().timesteps, far_run.head().outcome) == (100, None)
    far_run.another_machine()
    assert far_run.go() == 0, far_run.said()
    assert exact(far_run, sac)


# ------------------------------------------------------------------------------------------------------------ 7. limits


@pytest.fixture
def prices() -> Iterator[Prices]:
    with serving() as server:
        server.spot, server.on_demand = [("us-east-1a", "2026-01-01T00:00:00Z", "36")], ["72"]
        yield server


def launched(run: Run, **facts: object) -> None:
    """As Terraform leaves it, and writes it again at each apply."""
    run.store.put(layout.RUN_JSON, json.dumps({"run_id": "a-run", "launched_by": "terraform", **facts}).encode())


def in_seconds(seconds: float) -> str:
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


@pytest.mark.parametrize("limit", ["limits.hours", "limits.dollars", "max_runtime_hours"])
def test_a_limit_is_stopped_with_model_and_artifacts_and_goes_on_when_raised(
    run: Run, sac: Rehearsed, prices: Prices, tmp_path: Path, limit: str
) -> None:
    """Ten seconds after the session's start, which is the price of a dime at 36 dollars an hour."""
    run.worker |= prices.environment()
    run.befall("250-stay", text=f"{run.folder}/state/session.json 13")
    value = {"limits.hours": 10 / 3600, "limits.dollars": 0.1}.get(limit)
    options = ["--set", f"{limit}={value}"] if value is not None else []
    if limit == "max_runtime_hours":
        launched(run, deadline=in_seconds(10))
    assert run.go(*options) == 0, run.said()
    head = run.head()
    assert head.outcome == "stopped" and (head.reason or "").startswith(limit), head.reason
    assert 0 < head.timesteps < 400
    (tmp_path / "model.zip").write_bytes(run.store.get(layout.FINAL + "model.zip").body)
    assert StableSAC.load(tmp_path / "model.zip").num_timesteps == head.timesteps
    assert any(info.key.startswith(layout.TENSORBOARD) for info in run.store.list(layout.TENSORBOARD))
    assert run.go(*options) == 0 and "nothing to do" in run.log()

    reopen(run.store)  # as relaunch does
    run.another_machine()
    launched(run, deadline=in_seconds(3600))
    assert run.go() == 0, run.said()
    assert exact(run, sac)
    (tmp_path / "model.zip").write_bytes(run.store.get(layout.FINAL + "model.zip").body)
    assert StableSAC.load(tmp_path / "model.zip").num_timesteps == 400


def test_the_sessions_prices_are_recorded_and_summed(run: Run, prices: Prices) -> None:
    run.worker |= prices.environment()
    run.befall("150-sleep", text="1")
    run.befall("250-SIGTERM")
    assert run.go() == 75, run.said()
    run.another_machine()
    prices.spot = []
    assert run.go() == 0, run.said()
    found = cost(read_sessions(run.store))
    first, second = found.sessions
    assert first.hourly == 36 and first.dollars is not None and first.dollars > 0.01
    assert first.on_demand_dollars == pytest.approx(2 * first.dollars)
    assert second.dollars is None and "the history has none" in (second.because or "")
    assert (found.dollars, found.unknown) == (first.dollars, (2,))


def test_dollars_are_counted_over_all_sessions(run: Run, prices: Prices) -> None:
    run.worker |= prices.environment()
    run.befall("150-stay", text=f"{run.folder}/state/session.json 4")
    run.befall("250-SIGTERM")
    assert run.go("--set", "limits.dollars=9") == 75, run.said()
    run.another_machine()
    assert run.go("--set", "limits.dollars=0.03") == 0, run.said()
    assert run.head().outcome == "stopped" and run.head().timesteps == 250, "spent before this session began"


@pytest.mark.parametrize("moved", [True, False])
def test_a_deadline_is_looked_at_again_when_it_has_come(run: Run, moved: bool) -> None:
    """Somebody may have raised it, and applied that, since the session began."""
    session = begin_session(run.store, run.folder, instance_id="i", boot_id="b", details={}, persist=False)
    deadline = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(seconds=1)
    launched(run, deadline=(deadline + timedelta(hours=moved)).isoformat())
    limits = Limits(RunLimits(), session, [], price=None, store=run.store, deadline=deadline)
    assert limits.reached() is None
    if moved:
        time.sleep(3)
        assert limits.reached() is None
        time.sleep(0.5)
        assert limits.reached() is None
    else:
        until(limits.reached, "the end")
        assert (limits.reached() or "").startswith("max_runtime_hours: the time was up at")


def test_a_dollar_limit_that_cannot_be_kept_is_refused_before_it_is_spent(run: Run) -> None:
    run.worker |= {"AWS_ENDPOINT_URL_EC2": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_PRICING": "http://127.0.0.1:9"}
    assert run.go("--set", "limits.dollars=5") == 0, run.said()
    head = run.head()
    assert (head.outcome, head.timesteps) == ("stopped", 0)
    assert "limits.dollars: 5.0 dollars cannot be kept to, because this machine's price is unknown" in (
        head.reason or ""
    )
    assert "ec2:DescribeSpotPriceHistory" in (head.reason or "")


def test_on_a_laptop_dollars_are_not_counted_and_that_is_said(run: Run) -> None:
    assert run.session(options=("--set", "limits.dollars=1e-9")) == 0, run.said()
    assert run.head().outcome == "completed"
    assert "limits.dollars: 1e-09 does not count here" in run.log()


# -------------------------------------------------------------------------------------------- 8. a machine that is deaf


def test_a_deaf_machine_is_ended_from_outside_and_status_says_so(
    run: Run, aws_endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains on and hears nothing: the group's scheduled action, which needs nobody's consent, ends it."""
    group, autoscaling = make_group(), boto3.client("autoscaling")
    autoscaling.put_scheduled_update_group_action(
        AutoScalingGroupName=group,
        ScheduledActionName="stop-at-limit",
        DesiredCapacity=0,
        MinSize=-1,
        MaxSize=-1,
        Recurrence="0 * * * *",
    )
    run.befall("150-wait")
    launched(run, deadline=in_seconds(3600))
    process = run.start(env=run.worker)
    until(lambda: run.waits and run.head().timesteps == 100, "step 150")
    os.kill(process.pid, signal.SIGSTOP)
    (action,) = autoscaling.describe_scheduled_actions(AutoScalingGroupName=group)["ScheduledUpdateGroupActions"]
    # The hour has come: moto keeps scheduled actions and carries none out.
    Group(group).set_capacity(action["DesiredCapacity"])
    assert machines(group) == []
    os.kill(process.pid, signal.SIGKILL)
    assert ends(process, run) == -9
    head = run.head()
    assert (head.outcome, head.timesteps) == (None, 100), "nobody was there to say so, and nothing is lost"
    launched(run, deadline=in_seconds(-3600))
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    found = run_status(run.root, "a-run", at=later)
    assert (found.state, found.committed_timesteps) == ("interrupted", 100) and found.closed is not None
    assert main(["status", run.store.url]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "its max_runtime_hours are over" in told and "train-cloud relaunch a-run" in told


# ------------------------------------------------------------------------------------------------------- 9. two workers


@pytest.mark.parametrize("old", ["wakes up late", "crashes and restarts"])
def test_of_two_workers_the_newer_one_has_the_run(run: Run, sac: Rehearsed, old: str, tmp_path: Path) -> None:
    """Capacity rebalancing: the old machine is still there when the new one takes the run."""
    run.befall("150-wait")
    first = run.start(env=run.worker, state="old")
    until(lambda: run.waits and run.head().timesteps == 100, "the old one is at step 150")
    if old == "crashes and restarts":
        os.kill(first.pid, signal.SIGKILL)
        assert ends(first, run) == -9

    news = tmp_path / "news"
    news.mkdir()
    (news / "350-wait").touch()
    with MetadataService("i-0fedcba9876543210") as metadata:
        newer = {**run.worker, "ACCIDENTS": str(news), "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.endpoint}
        second = run.start(env=newer, state="new")
        until(lambda: run.head().session == 2 and run.head().timesteps == 300, "the new one has committed")
        if old == "crashes and restarts":
            first = run.start(env=run.worker, state="old")
        run.let_go()
        assert ends(first, run) == 73, run.said()
        assert run.head().session == 2, "and was not disturbed"
        (news / "350-wait").unlink()
        assert ends(second, run) == 0, run.said()
    assert exact(run, sac)
    head = run.head()
    assert head.manifest is not None
    kept = [entry.manifest.key for entry in read_manifest(run.store, head.manifest).kept]
    tokens = {int(key.split("/")[1].split("-")[0]): key.split("-")[1] for key in [head.manifest.key, *kept]}
    assert tokens == dict.fromkeys(tokens, "000002.0000") and len(tokens) > 2
    old_session = read_sessions(run.store)[0]
    assert old_session.progress is not None and old_session.progress["committed_timesteps"] <= 100


# --------------------------------------------------------------- on machines: what systemd, watch and finish make of it


class Boxes:
    """Machines of one run in one group, one after the other or two at a time."""

    def __init__(self, folder: Path, root: str) -> None:
        self.folder, self.root = folder, root
        self.rehearsed = Run(None, folder / "run", SAC, root)
        self.group = make_group()
        self.made: list[LocalMachine] = []

    def boot(self, **options: Any) -> LocalMachine:
        number = len(self.made)
        instance = machines(self.group)[0] if number == 0 else f"i-{number:017x}"
        environment = {"ACCIDENTS": str(self.rehearsed.accidents), **options.pop("environment", {})}
        folder = self.folder / f"box-{number}"
        box = LocalMachine(
            folder, self.rehearsed.run_file, self.root, self.group, instance, environment=environment, **options
        )
        self.made.append(box)
        return box

    @property
    def capacity(self) -> int | None:
        return Group(self.group).capacity()

    def head(self) -> Head:
        return self.rehearsed.head()


@pytest.fixture
def boxes(tmp_path: Path, s3_root: str) -> Iterator[Boxes]:
    boxes = Boxes(tmp_path, s3_root)
    yield boxes
    for box in boxes.made:
        box.close()
    boxes.rehearsed.metadata.close()


def test_a_machine_whose_code_always_raises_closes_its_group(boxes: Boxes) -> None:
    boxes.rehearsed.befall("50-raise-always")
    box = boxes.boot(environment={"TRAIN_CLOUD_MAX_ATTEMPTS": "1"})
    box.until(lambda: boxes.capacity == 0, "capacity 0")
    head = boxes.head()
    assert head.outcome == "failed" and "ArithmeticError: on purpose" in (head.reason or "")
    found = run_status(boxes.root, "a-run")
    assert (found.state, found.reason) == ("failed", head.reason)
    assert "close: the run is over: failed" in box.said("finish")


def test_a_machine_that_hangs_is_started_again_by_its_watchdog(boxes: Boxes, sac: Rehearsed) -> None:
    boxes.rehearsed.befall("250-hang")
    box = boxes.boot(watchdog=4, environment={"TRAIN_CLOUD_PATIENCE": "steps=15 update=15"})
    box.until(lambda: boxes.capacity == 0, "capacity 0")
    assert (boxes.head().outcome, boxes.head().attempts) == ("completed", 0)
    assert box.session is not None and (box.session.number, box.session.restart) == (1, 1)
    assert "no sign of life" in box.said("train") and "watchdog" in box.said("train").lower()
    assert exact(boxes.rehearsed, sac)


def test_a_notice_that_is_withdrawn_costs_a_pause(boxes: Boxes, sac: Rehearsed) -> None:
    run = boxes.rehearsed
    run.befall("150-wait")
    box = boxes.boot(linger=1)
    box.until(lambda: run.waits, "step 150")
    box.metadata.interrupt(seconds=5)
    box.until(lambda: "asked systemd to stop the trainer" in box.said("watch"), "the notice is seen")
    box.metadata.withdraw()
    run.let_go()
    box.until(lambda: box.session is not None and box.session.restart == 1, "it is started again")
    assert "the machine was not taken" in box.said("watch") and boxes.capacity == 1
    box.until(lambda: boxes.capacity == 0, "capacity 0")
    assert (boxes.head().outcome, boxes.head().attempts) == ("completed", 0)
    (session,) = read_sessions(run.store)
    assert [notice["kind"] for notice in session.notices] == ["spot"]
    assert session.end is not None and session.end["last_timestep"] >= 150
    assert exact(run, sac)


def test_after_its_first_hour_a_machine_makes_way_as_soon_as_it_has_committed(boxes: Boxes, sac: Rehearsed) -> None:
    """Within it, EC2's own interruption is free, and it stays: the other tests' machines."""
    run = boxes.rehearsed
    run.befall("150-wait")
    first = boxes.boot()
    launched_at = datetime.now(timezone.utc) - timedelta(hours=2)
    identity = {"pendingTime": launched_at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    first.metadata.set("dynamic/instance-identity/document", json.dumps(identity))
    first.until(lambda: run.waits, "step 150")
    first.metadata.interrupt(seconds=120)
    first.until(lambda: "asked systemd to stop the trainer" in first.said("watch"), "the notice is seen")
    run.let_go()
    first.until(lambda: machines(boxes.group) not in ([], [first.instance_id]), "the group sends another machine")
    assert boxes.capacity == 1 and run.head().timesteps >= 150
    first.close()
    second = boxes.boot()
    second.until(lambda: boxes.capacity == 0, "capacity 0")
    before = read_sessions(run.store)[0]
    assert [notice["kind"] for notice in before.notices] == ["spot"]
    assert run_status(boxes.root, "a-run").repeated_timesteps == 0
    assert exact(run, sac)


def test_two_notices_a_power_off_and_a_pulled_plug(boxes: Boxes, sac: Rehearsed) -> None:
    """One life: announced twice, powered off without a notice, cut off; and completed, in four boots."""
    run = boxes.rehearsed
    run.befall("120-wait")
    first = boxes.boot()
    first.until(lambda: run.waits, "step 120")
    first.metadata.recommend_rebalance()
    first.metadata.scale_in()
    first.metadata.interrupt(seconds=600)
    first.until(lambda: first.said("watch").count("asked systemd to stop the trainer") >= 2, "both are seen")
    run.let_go()
    first.until_over()
    assert (first.train.status, first.train.restarts, boxes.capacity) == (75, 0, 1)
    (session,) = read_sessions(boxes.rehearsed.store)
    first.until(lambda: len(read_sessions(boxes.rehearsed.store)[0].notices) == 3, "all three are recorded")
    assert session.end is not None and session.end["last_timestep"] == boxes.head().timesteps >= 120
    first.machine.power_off(20)

    run.befall("220-wait")
    second = boxes.boot()
    second.until(lambda: run.waits, "step 220")
    run.let_go()
    assert second.machine.power_off(60), "`systemctl poweroff`: the unit's own stop commits"
    assert second.said("finish") == "" and boxes.capacity == 1
    committed = boxes.head().timesteps
    assert committed == second.timesteps >= 220

    run.befall("320-wait")
    third = boxes.boot()
    third.until(lambda: run.waits and boxes.head().timesteps == 300, "step 320, and the commit of 300")
    third.machine.lose_power()
    run.let_go()

    fourth = boxes.boot()
    fourth.until(lambda: boxes.capacity == 0, "capacity 0")
    ends = [(s.end or {}).get("ended_by") for s in read_sessions(boxes.rehearsed.store)]
    assert ends == ["notice", "signal", None, "completed"]
    assert boxes.head().attempts == 0 and exact(boxes.rehearsed, sac)


def test_a_notice_during_the_boot_starts_no_training(boxes: Boxes) -> None:
    """It stands when watch and trainer come up: the trainer is stopped, whatever it has reached."""
    box = boxes.boot(begin=False)
    box.metadata.interrupt(seconds=60)
    box.start()
    box.until(lambda: "asked systemd to stop the trainer" in box.said("watch"), "the notice is seen")
    box.until(lambda: box.train.over, "the trainer has left")
    assert box.train.status in (0, 15, 75)
    time.sleep(1)
    assert box.train.over and boxes.capacity == 1
    read = read_head(boxes.rehearsed.store)
    assert read is None or read[0].outcome is None


def test_a_notice_while_finish_closes_the_group(boxes: Boxes) -> None:
    """Auto Scaling does not answer, the notice comes, and Auto Scaling answers: the money stops all the same."""
    conclude(boxes.rehearsed.store, "completed", "", session=1, owner="i-before")
    with scripted_autoscaling() as autoscaling:
        autoscaling.script = [(503, "ServiceUnavailable", "not now")] * 6
        box = boxes.boot(environment={"AWS_ENDPOINT_URL_AUTO_SCALING": autoscaling.url})
        box.until(lambda: autoscaling.calls, "finish asks")
        box.metadata.interrupt(seconds=60)
        box.until(lambda: "asked systemd to stop the trainer" in box.said("watch"), "the notice is seen")
        box.until(lambda: box.machine.state(FINISH).over, "finish has got through")
        wanted = [call for call in autoscaling.calls if call["Action"] == "SetDesiredCapacity"]
    assert wanted[-1]["DesiredCapacity"] == "0" and not autoscaling.script
    assert boxes.head().outcome == "completed"


def test_of_two_machines_the_older_one_leaves_and_the_capacity_stays(boxes: Boxes, sac: Rehearsed) -> None:
    """With capacity rebalancing two live at once. The old trainer crashes and is started again after the new one took
    the run: it is fenced, and finish ends its machine without lowering the capacity.
    """
    boxes.rehearsed.befall("150-wait")
    old = boxes.boot()
    old.until(lambda: boxes.rehearsed.waits and boxes.head().timesteps == 100, "the old one is at step 150")
    news = boxes.folder / "news"
    news.mkdir()
    (news / "250-wait").touch()
    new = boxes.boot(environment={"ACCIDENTS": str(news)})
    new.until(lambda: boxes.head().session == 2 and boxes.head().timesteps == 200, "the new one has committed")
    pid = old.machine.pid(TRAIN)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    old.until(lambda: "replace:" in old.said("finish") and old.machine.state(FINISH).over, "the old one leaves")
    assert old.train.status == 73
    assert boxes.capacity == 1 and old.instance_id not in machines(boxes.group)
    assert (boxes.head().session, boxes.head().outcome) == (2, None)
    (news / "250-wait").unlink()
    new.until(lambda: boxes.capacity == 0, "the new one completes")
    assert exact(boxes.rehearsed, sac)


# -------------------------------------------------------------------------------------- 10. completed, and then it dies


def test_the_replacement_of_a_machine_that_died_completed_leaves_within_a_minute(boxes: Boxes) -> None:
    conclude(boxes.rehearsed.store, "completed", "", session=1, owner="i-gone")
    began = time.monotonic()
    box = boxes.boot()
    box.until(lambda: boxes.capacity == 0, "capacity 0")
    assert time.monotonic() - began < 60
    assert "nothing to do: the run has the outcome completed" in box.said("train")
    assert box.session is None and read_sessions(boxes.rehearsed.store) == [], "no session was begun for it"


# ------------------------------------------------------------------------------------------------------------ the table


def test_each_line_of_the_table_names_a_test_that_exists() -> None:
    table = (REPOSITORY / "docs" / "failures.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(tests/\w+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"\ndef {test}(" in (REPOSITORY / file).read_text(), (file, test)
    own = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE))
    told = set(re.findall(r"`tests/test_failures\.py::(\w+)`", table))
    assert own - told == {
        "test_each_line_of_the_table_names_a_test_that_exists",
        "test_the_sessions_prices_are_recorded_and_summed",
    }
