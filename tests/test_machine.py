"""The rehearsal on real machines: systemd, cloud-init, pip, the role's permissions, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from train_cloud.cli import main
from train_cloud.errors import InputError
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.machine import Image, MachineInstance, missing, prepare
from train_cloud.rehearsal.systemd import Line
from train_cloud.rehearsal.terraform import Terraform
from train_cloud.worker.units import TRAIN

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN = "runs/pendulum-sac"
pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def image() -> Image:
    lacking = "; ".join(missing())
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(f"the rehearsal's machines need {lacking}", pytrace=False)
    if lacking:
        pytest.skip(f"needs {lacking}")
    return prepare(say=print)


def network() -> str:
    """Of this computer: addresses, routes, and the names of its namespaces."""
    asked = (("-o", "address"), ("route", "show", "table", "all"), ("netns",))
    return "".join(subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout for words in asked)


@dataclass
class Traces:
    """What this process has of machines just now, and whether it is still there later."""

    processes: list[psutil.Process]
    names: set[str]
    namespaces: set[str]
    groups: list[Path]
    mounts: str
    network: str

    @classmethod
    def of(cls, pid: int) -> Traces:
        processes = psutil.Process(pid).children(recursive=True)
        names = set()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # many a process of a booting machine is short
                names.add(process.name())
        groups = list(Path("/sys/fs/cgroup").glob("**/rehearsal-*"))
        return cls(processes, names, namespaces(processes), groups, Path("/proc/self/mounts").read_text(), network())

    def gone(self) -> bool:
        """Within a moment: what was killed takes one to go."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = namespaces(psutil.process_iter())
            if not any(process.is_running() for process in self.processes) and not found & self.namespaces:
                return True
            time.sleep(0.1)
        return False


def namespaces(processes: Any) -> set[str]:
    """Network and process namespaces, without this process's own."""
    found = set()
    for process in processes:
        for kind in ("net", "pid", "mnt"):
            try:
                found.add(str(Path(f"/proc/{process.pid}/ns/{kind}").readlink()))
            except OSError:
                continue
    return found - {str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "pid", "mnt")}


# One life.


def test_a_life_on_machines(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = network()
    smaller = ("--set", "total_timesteps=1500", "--set", "save_frequency=150")
    status = main(["rehearse", str(EXAMPLES / "pendulum_sac.yaml"), "--machine", *smaller])
    said_and_complained = capfd.readouterr()
    assert status == 0, "".join(said_and_complained)[-8000:]
    folder = tmp_path / "rehearsal" / "pendulum-sac"
    report = json.loads((folder / "report.json").read_text())
    first, second, third = report["sessions"]
    assert [session["ended_by"] for session in report["sessions"]] == ["notice", "kill", "completed"]
    assert first["last_timestep"] == second["first_timestep"] > 450
    assert 0 < report["timesteps_repeated_after_kill"] <= report["bound"]
    assert report["bit_identical_to_uninterrupted"] is True
    assert report["final_desired_capacity"] == 0 and report["resources_left_after_destroy"] == []
    assert {"train/critic_loss", "rollout/ep_rew_mean"} <= set(report["shown_by_tensorboard"])
    for session in report["sessions"]:
        assert session["boot_seconds"] > 0 and session["resume_seconds"] > 0
    assert 0 < first["notice_to_commit_seconds"] < 120
    assert second["notice_to_commit_seconds"] is None

    said = [(event["who"], event["what"]) for event in report["timeline"]]
    assert [what for _, what in said].count("Starting train-cloud-train.service - train-cloud: the training...") == 3
    kept = [what for who, what in said if who == "bootstrap" and "kept the environment" in what]
    restored = [what for who, what in said if who == "bootstrap" and "restored the environment" in what]
    assert len(kept) == 1 and len(restored) == 2
    assert restored[0].rsplit(" ", 1)[1] in kept[0]
    assert ("finish", "close: the run is over: completed") in said
    # What the worker asked for and may not have would stand here.
    assert not [what for _, what in said if "AccessDenied" in what or "Unable to locate credentials" in what]
    journal = (folder / "machines" / third["instance_id"] / "journal.txt").read_text()
    assert "Datasource DataSourceEc2Local" in journal
    assert not Traces.of(os.getpid()).processes and network() == before


# What befalls a machine, on one stack.


@dataclass
class Stack:
    aws: EmbeddedAws
    group: str
    bucket: str

    def instances(self) -> list[str]:
        return [found["InstanceId"] for found in self.describe()["Instances"]]

    def describe(self) -> dict[str, Any]:
        groups = self.aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[self.group])
        return dict(groups["AutoScalingGroups"][0])

    def keys(self, prefix: str) -> list[str]:
        found = self.aws.client("s3").list_objects_v2(Bucket=self.bucket, Prefix=f"{RUN}/{prefix}")
        return [entry["Key"].removeprefix(f"{RUN}/") for entry in found.get("Contents", ())]


@pytest.fixture(scope="module")
def stack(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with EmbeddedAws(log=folder / "aws.log") as aws:
        variables = {"run_file": EXAMPLES / "pendulum_sac.yaml", "project_name": "machines"}
        outputs = Terraform(folder / "work", aws).apply(variables)
        bucket = aws.client("s3").list_buckets()["Buckets"][0]["Name"]
        with aws.permissions_enforced():
            yield Stack(aws, outputs["autoscaling_group_name"], bucket)


def booted(stack: Stack, image: Image, folder: Path, lines: list[Line], *, nvidia: bool = False) -> MachineInstance:
    (instance,) = stack.instances()
    return MachineInstance(
        stack.aws,
        stack.group,
        instance,
        folder / instance,
        image=image,
        environment={},
        on_line=lines.append,
        nvidia=nvidia,
    )


def until(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def test_the_role_of_a_machine_reaches_its_run_and_its_group_only(stack: Stack, image: Image, tmp_path: Path) -> None:
    """Asked from the machine itself, with the credentials that its metadata service gives it."""
    described = stack.describe()
    template = described["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
    stack.aws.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName="theirs",
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=1,
        LaunchTemplate={"LaunchTemplateId": template["LaunchTemplateId"], "Version": template["Version"]},
        AvailabilityZones=["us-east-1a"],
    )
    groups = stack.aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=["theirs"])
    theirs = groups["AutoScalingGroups"][0]["Instances"][0]["InstanceId"]
    stack.aws.client("s3").put_object(Bucket=stack.bucket, Key="runs/theirs/head.json", Body=b"{}")
    machine = booted(stack, image, tmp_path, [])
    try:
        until(lambda: stack.keys("boots/") != [], "the boot has begun")

        def ask(*words: str) -> str:
            at = ("AWS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt", "AWS_REGION=us-east-1")
            done = machine.container.run("env", *at, "aws", *words)
            return "allowed" if done.returncode == 0 else done.stderr

        def put(key: str) -> str:
            return ask("s3api", "put-object", "--bucket", stack.bucket, "--key", key)

        def capacity(group: str, wanted: int) -> str:
            name = ("--auto-scaling-group-name", group, "--desired-capacity", str(wanted))
            return ask("autoscaling", "set-desired-capacity", *name)

        assert put(f"{RUN}/logs/asked") == "allowed"
        for key in (f"{RUN}/run.yaml", f"{RUN}/mine", "code/mine", "runs/theirs/head.json"):
            assert "AccessDenied" in put(key), key
        read = ("s3api", "get-object", "--bucket", stack.bucket, "--key", "runs/theirs/head.json", "/dev/null")
        assert "AccessDenied" in ask(*read)
        assert capacity(stack.group, 1) == "allowed"
        assert "AccessDenied" in capacity("theirs", 0)
        end = ("autoscaling", "terminate-instance-in-auto-scaling-group", "--no-should-decrement-desired-capacity")
        assert "AccessDenied" in ask(*end, "--instance-id", theirs)
        assert "not authorized" in ask("ec2", "terminate-instances", "--instance-ids", theirs)
        # Without a token there is no answer, and beyond AWS there is nobody.
        curl = ("curl", "-s", "-o", "/dev/null", "-m", "5", "-w", "%{http_code}")
        assert machine.container.run(*curl, "http://169.254.169.254/latest/meta-data/instance-id").stdout == "401"
        assert machine.container.run(*curl, "http://1.1.1.1/").stdout == "000"
    finally:
        machine.plug_pulled()
        stack.aws.client("ec2").terminate_instances(InstanceIds=[machine.instance_id])
        stack.aws.client("autoscaling").delete_auto_scaling_group(AutoScalingGroupName="theirs", ForceDelete=True)


def test_a_gpu_that_cannot_compute_fails_the_boot(stack: Stack, image: Image, tmp_path: Path) -> None:
    lines: list[Line] = []
    machine = booted(stack, image, tmp_path, lines, nvidia=True)
    try:
        until(lambda: machine.instance_id not in stack.instances(), "the machine has given itself up")
        until(lambda: any("this boot failed" in line.text for line in lines), "the journal says so")
        assert machine.state(TRAIN).active == "inactive"
        assert machine.timesteps == 0
    finally:
        machine.plug_pulled()
    said = [line.text for line in lines if line.unit == "train-cloud-bootstrap.service"]
    assert any("there is an NVIDIA device and no driver that answers" in text for text in said), said
    (failed,) = [key for key in stack.keys("boots/") if key.endswith("-failed")]
    boot = failed.removeprefix("boots/").removesuffix("-failed")
    assert machine.instance_id in boot
    log = stack.aws.client("s3").get_object(Bucket=stack.bucket, Key=f"{RUN}/logs/boot-{boot}.log")["Body"].read()
    assert b"no driver that answers" in log
    assert stack.describe()["DesiredCapacity"] == 1 and len(stack.instances()) == 1  # another one may try
    assert stack.keys("head.json") == []


# Nothing is left.

LIFE = """
import sys, time
from pathlib import Path
from train_cloud.rehearsal.machine.container import Container
from train_cloud.rehearsal.machine.image import prepare
with Container(prepare(say=print), Path(sys.argv[1])) as machine:
    machine.boot()
    while machine.state("systemd-journald.service").active != "active":
        time.sleep(0.1)
    print("up", flush=True)
    assert sys.stdin.readline() == "go on\\n", "a failed assertion"
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["assertion", "SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_of_a_machine_outlives_its_owner(image: Image, tmp_path: Path, end: str) -> None:
    before = Traces.of(os.getpid())
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
        assert owner.stdout.readline() == "up\n", owner.stderr.read()
        alive = Traces.of(owner.pid)
        assert {"systemd", "dnsmasq", "systemd-nspawn"} <= alive.names
        assert len(alive.namespaces) >= 6, "a machine's and its cloud's"
        assert (alive.mounts, alive.network) == (before.mounts, before.network)
        if end == "assertion":
            owner.stdin.write("stop\n")
            owner.stdin.flush()
        else:
            owner.send_signal(signal.Signals[end])
        owner.wait(60)
    finally:
        owner.kill()
        complaint = owner.communicate()[1]
    assert ("a failed assertion" in complaint) == (end == "assertion")
    assert alive.gone()
    assert (network(), Path("/proc/self/mounts").read_text()) == (before.network, before.mounts)
    left = [group for group in alive.groups if group not in before.groups and group.exists()]
    if end in ("assertion", "SIGINT"):  # who is killed cannot tidy up what the kernel keeps, empty and harmless
        assert not left and list((tmp_path / "machine").glob("machine")) == []
    for group in left:
        for folder in sorted(group.glob("**/"), reverse=True):
            folder.rmdir()


# What is missing has a name.


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from train_cloud.rehearsal.machine import image as made

    monkeypatch.setitem(made.NEEDED, "no-such-program", "no-such-package")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    lacking = "; ".join(missing())
    assert "root" in lacking and "apt-get install" in lacking and "no-such-package" in lacking
    with pytest.raises(InputError, match=r"--machine: .*no-such-package"):
        prepare(say=print)
