"""The rehearsal on real machines: systemd, cloud-init, pip, the role's permissions, and nothing left behind.

Two machines' lives prove most of it, so each is lived once, and several tests look at what came of it.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from service_cases import CASES, Outcome, outcomes, write_units
from until import until

from train_cloud.config import load_run_file
from train_cloud.errors import InputError, Interrupted, TrainCloudError
from train_cloud.operations.requirements import packages
from train_cloud.platforms.ec2.units import TRAIN, UnitState
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.instance import Launch
from train_cloud.rehearsal.machine import Image, MachineInstance, missing, prepare
from train_cloud.rehearsal.machine import image as images
from train_cloud.rehearsal.systemd import Line, Machine
from train_cloud.rehearsal.terraform import Terraform, worker_environment

EXAMPLE = Path(__file__).parents[1] / "examples" / "pendulum_sac.yaml"
RUN = "runs/pendulum-sac"
BOOTSTRAP = "train-cloud-bootstrap.service"
SMALLER = ("--set", "total_timesteps=1500", "--set", "save_frequency=150")
pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.timeout(2400)]


def needed() -> None:
    """Every reason for which this computer cannot boot a machine is named: a failure in CI, a skip elsewhere."""
    lacking = "; ".join(missing())
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(f"the rehearsal's machines need {lacking}", pytrace=False)
    if lacking:
        pytest.skip(f"needs {lacking}")


@pytest.fixture(scope="module")
def image() -> Image:
    needed()
    return prepare(packages=packages(load_run_file(EXAMPLE)), say=print)


# What there is of machines, and whether it is still there later.


def network() -> str:
    """Of this computer: addresses, routes, and the names of its namespaces."""
    asked = (("-o", "address"), ("route", "show", "table", "all"), ("netns",))
    return "".join(subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout for words in asked)


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def groups_of(pid: int) -> list[Path]:
    """Control groups that this process made for machines."""
    return list(Path("/sys/fs/cgroup").glob(f"**/rehearsal-{pid}-*"))


def namespaces(processes: Any) -> set[str]:
    """Network, process and mount namespaces, without this process's own."""
    found = set()
    for process in processes:
        for kind in ("net", "pid", "mnt"):
            with contextlib.suppress(OSError):
                found.add(str(Path(f"/proc/{process.pid}/ns/{kind}").readlink()))
    return found - {str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "pid", "mnt")}


def named(folder: Path) -> list[str]:
    """Command lines of this computer's processes in which the folder's name stands."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline()))
    return [words for words in found if str(folder) in words]


@dataclass
class Traces:
    """What a process has of machines just now."""

    pid: int
    processes: list[psutil.Process]
    names: set[str]
    namespaces: set[str]

    @classmethod
    def of(cls, pid: int) -> Traces:
        processes = psutil.Process(pid).children(recursive=True)
        names = set()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # many a process of a booting machine is short
                names.add(process.name())
        return cls(pid, processes, names, namespaces(processes))

    def gone(self) -> bool:
        """Within a moment: what was killed takes one to go."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = namespaces(psutil.process_iter())
            if not any(process.is_running() for process in self.processes) and not found & self.namespaces:
                return True
            time.sleep(0.1)
        return False


# One life.


@dataclass
class Life:
    """What a rehearsal left: its folder, its last words, and this computer as it was before and is now."""

    folder: Path
    status: int
    said: str
    pid: int
    before: tuple[str, str]
    after: tuple[str, str]

    @property
    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "report.json").read_text()))

    def journal(self, session: int) -> str:
        machine = str(self.report["sessions"][session - 1]["instance_id"])
        return (self.folder / "machines" / machine / "journal.txt").read_text()


@pytest.fixture(scope="module")
def life(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    before = network(), mounts()
    command = [sys.executable, "-m", "train_cloud", "rehearse", str(EXAMPLE), "--machine", *SMALLER]
    with (folder / "said.txt").open("wb") as file:  # to read along
        rehearsal = subprocess.Popen([*command, "--out", str(folder)], stdout=file, stderr=subprocess.STDOUT)
        try:
            rehearsal.wait()
        finally:
            rehearsal.kill()
    said = (folder / "said.txt").read_text()
    lived = Life(folder / "pendulum-sac", rehearsal.returncode, said, rehearsal.pid, before, (network(), mounts()))
    assert lived.status == 0, said[-8000:]
    return lived


def test_a_life_on_machines_ends_as_it_does_with_processes(life: Life) -> None:
    report = life.report
    first, second, third = report["sessions"]
    assert [session["ended_by"] for session in report["sessions"]] == ["notice", "kill", "completed"]
    assert report["outcome"] == "completed" and report["timesteps"] == 1500
    assert first["last_timestep"] == second["first_timestep"] > 450
    assert second["last_timestep"] > third["first_timestep"] == second["committed_timesteps"]
    assert 0 < report["timesteps_repeated_after_kill"] <= report["bound"]
    assert report["bit_identical_to_uninterrupted"] is True
    assert report["final_desired_capacity"] == 0 and report["resources_left_after_destroy"] == []
    assert {"train/critic_loss", "rollout/ep_rew_mean"} <= set(report["shown_by_tensorboard"])
    promised = [line.split("result", 1)[1].strip() for line in life.said.splitlines() if "✓" in line or "✗" in line]
    assert len(promised) == 9 and all(line.startswith("✓") for line in promised), promised
    assert promised[-1].endswith("curves on the machine's TensorBoard")
    assert any(line.startswith("✓ status says exact: ") for line in promised)


def test_a_life_is_timed(life: Life) -> None:
    first, *others = life.report["sessions"]
    assert all(session["boot_seconds"] > 0 for session in (first, *others))
    # One may be killed before anybody looked after its first step.
    resumed = [session["resume_seconds"] for session in (first, *others) if "resume_seconds" in session]
    assert len(resumed) >= len(others) and min(resumed) > 0
    assert 0 < first["notice_to_commit_seconds"] < 120
    assert [session["notice_to_commit_seconds"] for session in others] == [None, None]


def test_a_life_is_told_by_its_journal(life: Life) -> None:
    timeline = life.report["timeline"]
    assert [event["seconds"] for event in timeline] == sorted(event["seconds"] for event in timeline)
    said = [(event["who"], event["what"]) for event in timeline]
    assert [what for _, what in said].count("Starting train-cloud-train.service - train-cloud: the training...") == 3
    assert ("finish", "close: the run is over: completed") in said
    assert any(who == "watch" and what.startswith("spot: terminate at") for who, what in said)
    assert any(who == "user-data" and "Datasource DataSourceEc2Local" in what for who, what in said)
    assert any(who == "tensorboard" and "http://0.0.0.0:6006/" in what for who, what in said)
    # What the worker asked for and may not have would stand here.
    assert not [what for _, what in said if "AccessDenied" in what or "Unable to locate credentials" in what]
    assert all("systemd[1]" in life.journal(session) for session in (1, 2, 3))


def test_the_first_boot_installs_and_the_others_restore(life: Life) -> None:
    installed, kept, restored = "Python: Python 3.11", "kept the environment ", "restored the environment "
    first, *others = (life.journal(session) for session in (1, 2, 3))
    assert installed in first and restored not in first
    digest = first.split(kept)[1][:64]
    for journal in others:
        assert f"{restored}{digest}" in journal
        assert installed not in journal and kept not in journal


def test_a_life_leaves_nothing_on_this_computer(life: Life) -> None:
    assert life.after == life.before
    assert named(life.folder) == [] and groups_of(life.pid) == []
    assert not list(life.folder.glob("machines/*/machine"))


# One boot that fails: an environment in the bucket that is not what was kept, and a GPU that torch cannot use.


@dataclass
class Stack:
    aws: EmbeddedAws
    group: str
    bucket: str
    outputs: dict[str, Any]

    def instances(self) -> list[str]:
        return [found["InstanceId"] for found in self.describe()["Instances"]]

    def describe(self) -> dict[str, Any]:
        groups = self.aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[self.group])
        return dict(groups["AutoScalingGroups"][0])

    def keys(self, prefix: str) -> list[str]:
        found = self.aws.client("s3").list_objects_v2(Bucket=self.bucket, Prefix=f"{RUN}/{prefix}")
        return [entry["Key"].removeprefix(f"{RUN}/") for entry in found.get("Contents", ())]

    def put(self, key: str, body: bytes) -> None:
        self.aws.client("s3").put_object(Bucket=self.bucket, Key=f"{RUN}/{key}", Body=body)

    def get(self, key: str) -> bytes:
        return bytes(self.aws.client("s3").get_object(Bucket=self.bucket, Key=f"{RUN}/{key}")["Body"].read())


@pytest.fixture(scope="module")
def stack(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with EmbeddedAws(log=folder / "aws.log") as aws:
        outputs = Terraform(folder / "work", aws).apply({"run_file": EXAMPLE, "project_name": "machines"})
        bucket = aws.client("s3").list_buckets()["Buckets"][0]["Name"]
        with aws.permissions_enforced():
            yield Stack(aws, outputs["autoscaling_group_name"], bucket, outputs)


@dataclass
class Boot:
    """A machine with an NVIDIA device, from launch until it gave itself up."""

    instance: str
    user_data: tuple[bytes, bytes]
    """As Terraform rendered it, and as cloud-init ran it."""
    lines: list[Line] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    """What was asked on the machine, with the credentials that its metadata service gives it."""
    services: dict[str, Outcome] = field(default_factory=dict)
    """What its systemd makes of small services."""
    train: UnitState | None = None
    timesteps: int = -1

    @property
    def bootstrap(self) -> list[str]:
        return [line.text for line in self.lines if line.unit == BOOTSTRAP]


def boot(stack: Stack, image: Image, folder: Path, programs: dict[str, str], ask: Callable[[Any], Any]) -> Boot:
    (instance,) = stack.instances()
    booted = Boot(instance, (Launch(stack.aws, stack.group, instance).user_data, b""))
    machine = MachineInstance(
        stack.aws,
        stack.group,
        instance,
        folder / instance,
        image=image,
        environment={},
        on_line=booted.lines.append,
        nvidia=True,
        programs=programs,
    )
    try:
        until(lambda: any(instance in key for key in stack.keys("boots/")), "the boot has begun")
        seen = machine.container.path(f"var/lib/cloud/instances/{instance}/user-data.txt").read_bytes()
        booted.user_data = booted.user_data[0], seen
        booted.answers = ask(machine)
        until(lambda: instance not in stack.instances(), "the machine has given itself up")
        until(lambda: any("this boot failed" in text for text in booted.bootstrap), "the journal says so")
        booted.train, booted.timesteps = machine.state(TRAIN), machine.timesteps
    finally:
        machine.lose_power()
    return booted


def tamper(stack: Stack, image: Image, folder: Path) -> None:
    """Put an environment where the next boot looks for one that was kept, with bytes that its sums do not name."""

    def inside(*command: str) -> str:
        said = subprocess.run(["chroot", str(image.root), *command], capture_output=True, text=True, check=True).stdout
        return said.strip()

    (instance,) = stack.instances()
    user_data = Launch(stack.aws, stack.group, instance).user_data.decode()
    code = worker_environment(user_data)["TRAIN_CLOUD_CODE_DIGEST"]
    lock = (image.wheelhouse / "constraints.txt").read_text()
    python = "/usr/bin/python3.11"
    machine = f"{platform.machine()} {inside('getconf', 'GNU_LIBC_VERSION')}"
    inputs = [f"{code} cuda", python, inside(python, "-VV"), machine]
    digest = hashlib.sha256(("".join(f"{line}\n" for line in inputs) + lock).encode()).hexdigest()
    (folder / "venv").mkdir()
    (folder / "venv" / "environment").write_text(digest)
    archive = folder / "environment.tar.zst"
    subprocess.run(["tar", "-C", str(folder), "-I", "zstd", "-cf", str(archive), "venv"], check=True)
    stack.put(f"env/{code}-cuda.txt", lock.encode())
    stack.put(f"env/{digest}/environment.tar.zst", archive.read_bytes())
    stack.put(f"env/{digest}/SHA256SUMS", f"{hashlib.sha256(b'as kept').hexdigest()}  {archive.name}\n".encode())


@pytest.fixture(scope="module")
def failed_boot(stack: Stack, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    folder = tmp_path_factory.mktemp("failed")
    tamper(stack, image, folder)
    services: dict[str, Outcome] = {}

    def ask(machine: MachineInstance) -> dict[str, str]:
        services.update(services_of(machine, folder))
        return {**asked(machine, stack), **in_a_session(machine, stack)}

    # A driver that answers, so that it is torch's turn to fail.
    booted = boot(stack, image, folder, {"nvidia-smi": "echo 'GPU 0: nobody'"}, ask)
    return dataclasses.replace(booted, services=services)


def services_of(machine: MachineInstance, folder: Path) -> dict[str, Outcome]:
    units, run = folder / "units", machine.container.run
    units.mkdir()
    write_units(units, "/run/cases")
    packed = subprocess.run(["tar", "-C", str(units), "-cz", "."], capture_output=True, check=True).stdout
    unpack = f"echo {base64.b64encode(packed).decode()} | base64 -d | tar -C /run/systemd/system -xz"
    for command in (unpack, "mkdir /run/cases", "systemctl daemon-reload"):
        done = run("sh", "-c", command)
        assert done.returncode == 0, done.stderr
    return outcomes(
        lambda unit: run("systemctl", "start", "--no-block", unit),
        lambda unit: run("systemctl", "stop", "--no-block", unit),
        machine.container.state,
        until,
        lambda name: run("sh", "-c", f"cat /run/cases/{name}").stdout,
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What the rehearsal without machines makes of the same services."""
    folder = tmp_path_factory.mktemp("played")
    for name in ("units", "cases"):
        (folder / name).mkdir()
    write_units(folder / "units", str(folder / "cases"))
    with contextlib.closing(Machine(folder / "units", folder / "machine", restart_speedup=1)) as machine:
        files = folder / "cases"
        return outcomes(
            machine.start,
            machine.stop,
            machine.state,
            until,
            lambda name: (files / name).read_text() if (files / name).exists() else "",
        )


@pytest.mark.parametrize("name", CASES)
def test_services_end_as_they_do_without_machines(failed_boot: Boot, played: dict[str, Outcome], name: str) -> None:
    assert played[name] == failed_boot.services[name]


def in_a_session(machine: MachineInstance, stack: Stack) -> dict[str, str]:
    """What Session Manager shows of each output's remote command. Its agent logs in as a user of its own making, in no
    group, who may use sudo without a password ("Turn on or turn off ssm-user account administrative permissions",
    Systems Manager User Guide)."""
    run = machine.container.run
    run("useradd", "--create-home", "--shell", "/bin/sh", "ssm-user")
    run("sh", "-c", "echo 'ssm-user ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/ssm-agent-users")
    shown = {"groups": run("id", "-nG", "ssm-user").stdout}
    for name, command in stack.outputs.items():
        remote = re.search(r"""command=\["(.*?)"\]'$""", command) if isinstance(command, str) else None
        if remote is not None:
            # Without a terminal a pager shows everything; what follows a log is ended after a while.
            shown[name] = run("timeout", "20", "runuser", "-u", "ssm-user", "--", "sh", "-c", remote[1]).stdout
    shown["without sudo"] = run("runuser", "-u", "ssm-user", "--", "journalctl", "-u", BOOTSTRAP).stdout
    return shown


def asked(machine: MachineInstance, stack: Stack) -> dict[str, str]:
    """What the machine is allowed: the answer to each request."""
    scaling, s3 = stack.aws.client("autoscaling"), stack.aws.client("s3")
    template = stack.describe()["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
    scaling.create_auto_scaling_group(
        AutoScalingGroupName="theirs",
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=1,
        LaunchTemplate={"LaunchTemplateId": template["LaunchTemplateId"], "Version": template["Version"]},
        AvailabilityZones=["us-east-1a"],
    )
    group = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=["theirs"])["AutoScalingGroups"][0]
    theirs = group["Instances"][0]["InstanceId"]
    s3.put_object(Bucket=stack.bucket, Key="runs/theirs/head.json", Body=b"{}")

    def ask(*words: str) -> str:
        at = ("AWS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt", "AWS_REGION=us-east-1")
        patient = ("AWS_METADATA_SERVICE_TIMEOUT=10", "AWS_METADATA_SERVICE_NUM_ATTEMPTS=5")
        done = machine.container.run("env", *at, *patient, "aws", *words)
        return done.stdout + "allowed" if done.returncode == 0 else done.stderr

    def put(key: str) -> str:
        return ask("s3api", "put-object", "--bucket", stack.bucket, "--key", key)

    def capacity(name: str, wanted: int) -> str:
        words = ("--auto-scaling-group-name", name, "--desired-capacity", str(wanted))
        return ask("autoscaling", "set-desired-capacity", *words)

    curl = ("curl", "-s", "-o", "/dev/null", "-m", "5", "-w", "%{http_code}")
    read = ("s3api", "get-object", "--bucket", stack.bucket, "--key", "runs/theirs/head.json", "/dev/null")
    end = ("autoscaling", "terminate-instance-in-auto-scaling-group", "--no-should-decrement-desired-capacity")
    try:
        return {
            "who am I": ask("sts", "get-caller-identity", "--query", "Arn", "--output", "text"),
            "write a log": put(f"{RUN}/logs/asked"),
            "write the run file": put(f"{RUN}/run.yaml"),
            "write beside its prefixes": put(f"{RUN}/mine"),
            "write code": put("code/mine"),
            "write another run": put("runs/theirs/head.json"),
            "read another run": ask(*read),
            "its own group": capacity(stack.group, 1),
            "another group": capacity("theirs", 0),
            "end another instance": ask(*end, "--instance-id", theirs),
            "end another instance at EC2": ask("ec2", "terminate-instances", "--instance-ids", theirs),
            "read a parameter": ask("ssm", "get-parameter", "--name", "/somebody/elses/secret"),
            "metadata without a token": machine.container.run(*curl, "http://169.254.169.254/latest/meta-data/").stdout,
            "the internet": machine.container.run(*curl, "http://1.1.1.1/").stdout,
        }
    finally:
        scaling.delete_auto_scaling_group(AutoScalingGroupName="theirs", ForceDelete=True)


def test_user_data_runs_unmodified(failed_boot: Boot) -> None:
    rendered, ran = failed_boot.user_data
    assert rendered.startswith(b"#!/bin/bash\n") and ran == rendered


def test_the_role_of_a_machine_reaches_its_run_and_its_group_only(failed_boot: Boot) -> None:
    answers = failed_boot.answers
    assert ":assumed-role/" in answers["who am I"] and f"/{failed_boot.instance}\n" in answers["who am I"]
    for allowed in ("write a log", "its own group"):
        assert answers[allowed].endswith("allowed"), answers[allowed]
    refused = [name for name, answer in answers.items() if "AccessDenied" in answer or "not authorized" in answer]
    assert refused == [
        "write the run file",
        "write beside its prefixes",
        "write code",
        "write another run",
        "read another run",
        "another group",
        "end another instance",
        "end another instance at EC2",
        "read a parameter",
    ]
    assert answers["metadata without a token"] == "401" and answers["the internet"] == "000"


def test_a_session_shows_the_log(failed_boot: Boot, stack: Stack) -> None:
    shown = failed_boot.answers
    assert shown["groups"].split() == ["ssm-user"]
    remote = [name for name, command in stack.outputs.items() if "--parameters 'command=" in str(command)]
    assert remote == ["journalctl_command"]
    for name in remote:
        assert "train-cloud-bootstrap" in shown[name] and "train-cloud: " in shown[name], shown[name]
    assert "train-cloud: " not in shown["without sudo"], "the journal is root's, here as there"


def test_a_kept_environment_that_was_tampered_with_is_refused_and_installed_again(
    failed_boot: Boot, stack: Stack
) -> None:
    said = failed_boot.bootstrap
    order = [
        next(index for index, text in enumerate(said) if words in text)
        for words in ("environment.tar.zst: FAILED", "installing again", "Python: Python 3.11", "Torch not compiled")
    ]
    assert order == sorted(order), said
    assert not any("restored the environment" in text for text in said)
    assert not [key for key in stack.keys("env/") if key.endswith("SHA256SUMS")], "nobody will be offered it again"


def test_a_gpu_that_torch_cannot_use_fails_the_boot_loudly(failed_boot: Boot, stack: Stack) -> None:
    assert failed_boot.train is not None and failed_boot.train.active == "inactive"
    assert failed_boot.timesteps == 0
    assert failed_boot.instance not in stack.instances()
    (key,) = [key for key in stack.keys("boots/") if failed_boot.instance in key and key.endswith("-failed")]
    log = stack.get(f"logs/boot-{key.removeprefix('boots/').removesuffix('-failed')}.log")
    assert b"Torch not compiled with CUDA enabled" in log and b"this boot failed" in log
    assert stack.describe()["DesiredCapacity"] == 1 and len(stack.instances()) == 1  # another one may try
    assert stack.keys("head.json") == []


@pytest.mark.full
def test_a_gpu_without_a_driver_fails_the_boot_before_anything_is_installed(
    stack: Stack, image: Image, tmp_path: Path
) -> None:
    booted = boot(stack, image, tmp_path, {}, lambda machine: {})
    assert any("there is an NVIDIA device and no driver that answers" in text for text in booted.bootstrap)
    assert not any("Python: Python 3.11" in text for text in booted.bootstrap)
    (key,) = [key for key in stack.keys("boots/") if booted.instance in key and key.endswith("-failed")]
    assert b"no driver that answers" in stack.get(f"logs/boot-{key.removeprefix('boots/').removesuffix('-failed')}.log")


# Nothing is left.


def test_ctrl_c_ends_a_rehearsal_with_all_that_is_its(image: Image, tmp_path: Path) -> None:
    before = network(), mounts()
    command = [sys.executable, "-u", "-m", "train_cloud", "rehearse", str(EXAMPLE), "--machine", *SMALLER]
    rehearsal = subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    assert rehearsal.stdout is not None
    said: list[str] = []
    try:
        for line in rehearsal.stdout:
            said.append(line)
            if "Starting cloud-final.service" in line:
                break
        alive = Traces.of(rehearsal.pid)
        assert {"systemd", "dnsmasq", "systemd-nspawn"} <= alive.names, "".join(said)
        assert len(alive.namespaces) >= 6 and groups_of(rehearsal.pid) and named(tmp_path)
        os.killpg(rehearsal.pid, signal.SIGINT)  # as a terminal does
        said.append(rehearsal.communicate(timeout=240)[0])
    finally:
        rehearsal.kill()
        rehearsal.wait()
    assert rehearsal.returncode == Interrupted.exit_code, "".join(said)
    assert alive.gone()
    assert named(tmp_path) == [] and groups_of(rehearsal.pid) == []
    assert (network(), mounts()) == before


SIGTERM = """
import os, signal, time
from pathlib import Path
from train_cloud.errors import Interrupted
from train_cloud.rehearsal.rehearse import ended_as_by_ctrl_c
try:
    with ended_as_by_ctrl_c(Path.cwd() / "rehearsal"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            print("tidied up")
except Interrupted as interrupted:
    print(interrupted)
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""


def test_sigterm_ends_a_rehearsal_as_ctrl_c_does() -> None:
    done = subprocess.run([sys.executable, "-c", SIGTERM], capture_output=True, text=True, timeout=120)
    words = "tidied up\nthe rehearsal is ended, with all that it had started: machines, AWS and Terraform; "
    assert (done.returncode, done.stdout) == (0, f"{words}its files so far are in rehearsal\n"), done.stderr


LIFE = """
import sys, time
from pathlib import Path
from train_cloud.rehearsal.machine.container import Container
from train_cloud.rehearsal.machine.image import prepare
with Container(prepare(say=lambda line: print(line, file=sys.stderr)), Path(sys.argv[1])) as machine:
    machine.boot()
    while machine.state("systemd-journald.service").active != "active":
        time.sleep(0.1)
    print("up", flush=True)
    assert sys.stdin.readline() == "go on\\n", "a failed assertion"
    time.sleep(600)
"""


# To its own Python SIGTERM is what SIGKILL is. What an exception ends is shown by Ctrl-C in the test before.
@pytest.mark.parametrize(
    "end", ["SIGKILL", *(pytest.param(end, marks=pytest.mark.full) for end in ("assertion", "SIGINT", "SIGTERM"))]
)
def test_nothing_of_a_machine_outlives_its_owner(image: Image, tmp_path: Path, end: str) -> None:
    before = network(), mounts()
    owner = subprocess.Popen(
        [sys.executable, "-c", LIFE, str(tmp_path / "machine")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert owner.stdin is not None and owner.stdout is not None and owner.stderr is not None
    try:
        assert owner.stdout.readline() == "up\n"
        alive = Traces.of(owner.pid)
        assert {"systemd", "dnsmasq", "systemd-nspawn"} <= alive.names
        assert len(alive.namespaces) >= 6, "a machine's and its cloud's"
        assert (network(), mounts()) == before, "a machine is seen by nobody"
        if end == "assertion":
            owner.stdin.write("stop\n")
            owner.stdin.flush()
        else:
            owner.send_signal(signal.Signals[end])
        owner.wait(60)
    finally:
        owner.kill()
        complaint = owner.communicate()[1]
        print(complaint)  # pytest shows it where the test fails
    assert ("a failed assertion" in complaint) == (end == "assertion")
    assert alive.gone()
    assert (network(), mounts()) == before
    left = groups_of(owner.pid)
    if end in ("assertion", "SIGINT"):  # who is killed cannot tidy up what the kernel keeps, empty and harmless
        assert not left and list((tmp_path / "machine").glob("machine")) == []
    for group in left:
        for folder in sorted(group.glob("**/"), reverse=True):
            folder.rmdir()


# What a machine is made from, and what is missing for one.


def test_what_is_made_is_kept_under_a_digest_of_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAIN_CLOUD_CACHE", str(tmp_path))
    made: list[str] = []

    def keep(inputs: object) -> Path:
        def make(folder: Path) -> None:
            made.append(folder.name)
            folder.mkdir()
            if inputs == "broken":
                raise TrainCloudError("half way")

        return images._kept("image", inputs, make)

    first = keep(["a", 1])
    assert keep(["a", 1]) == first and len(made) == 1
    assert keep(["a", 2]) != first and len(made) == 2
    for _ in range(2):
        with pytest.raises(TrainCloudError, match="half way"):
            keep("broken")
    (tmp_path / f"{first.name}.12345678").mkdir()  # of a preparation that was killed
    keep(["a", 1])
    folders = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 2 and first.name in folders, "nothing that is not whole"


def test_a_version_that_is_not_enough_binds_nobody() -> None:
    """As of the setuptools that a new virtual environment has."""
    enough = images._installed(["setuptools>=1", "boto3"])
    assert {"setuptools", "boto3", "botocore"} <= enough.keys()
    assert "setuptools" not in images._installed(["setuptools>=9999", "setuptools>=1", "boto3"])


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(images.NEEDED, "no-such-program", "no-such-package")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    lacking = "; ".join(missing())
    assert "root" in lacking and "apt-get install" in lacking and "no-such-package" in lacking
    with pytest.raises(InputError, match=r"--machine: .*no-such-package"):
        prepare(say=print)


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)], ids=["CI", "elsewhere"]
)
def test_what_is_missing_fails_in_ci_and_skips_elsewhere(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(images.NEEDED, "no-such-program", "no-such-package")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no-such-package"):
        needed()
