"""The Terraform module: formatted and valid, every validation refuses, and one real apply that is read back from AWS.

The tests are run in their order: some change the stack, and one destroys it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from small_package import with_small_package

from train_cloud import shipped
from train_cloud.config.code import code_digests
from train_cloud.errors import InputError, Interrupted, TrainCloudError
from train_cloud.operations.fork import fork
from train_cloud.platforms.ec2.permissions import needs
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.terraform import Terraform, find_mirror, worker_environment
from train_cloud.report.status import run_status
from train_cloud.run.head import Head, pack_head, read_head
from train_cloud.run.layout import LAUNCHED, run_url
from train_cloud.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[1]
RUN_FILE = """\
run_id: read-back
algorithm: sac
total_timesteps: 1_000_000   # as people write it
save_frequency: 1e4
environment: {id: Mine-v0, module: mine}
hyperparameters: {learning_starts: 1_000_000, buffer_size: 500}   # collects, and learns nothing: quick
code: {folder: project, exclude: ["data/**", "notes.txt"]}
"""
MINE = """\
import gymnasium

gymnasium.register("Mine-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=50)
"""
OUTPUTS = {
    "ssh_command",
    "session_command",
    "journalctl_command",
    "tensorboard_command",
    "tensorboard_url_command",
    "status_command",
    "scaling_activities_command",
    "logs_command",
    "runs",
    "s3_bucket_url",
    "autoscaling_group_name",
}
WRITTEN_BY_WORKER = (
    "head.json",
    "checkpoints/1/a",
    "replay/a",
    "sessions/1/start.json",
    "boots/1-i",
    "env/a",
    "artifacts/a/b",
    "evaluations/a",
    "logs/a",
    "launched/a",
    "told/a",
)
NAME = "train-cloud-read-back"
SERVICE_ROLE = "AWSServiceRoleForAutoScaling"
BUCKET = "train-cloud-123456789012-us-east-1"


#: The permissions that doctor checks, and the name that moto has for one of them.
OWNER_MAY = [
    *(action for need in needs(account="123456789012", region="us-east-1") for action in need.actions),
    "s3:HeadBucket",
]
#: What `terraform destroy` ends with where the bucket stays.
KEPT = (
    rf"terraform_data\.bucket_ready.*kept: the bucket {BUCKET}, its settings .* -var delete_artifacts_on_destroy=true"
)


def bucket_settings(s3: Any) -> dict[str, Any]:
    """All that keeps the bucket's content private and recoverable; a setting that is not there is an error."""
    return {
        "public access": s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"],
        "policy": json.loads(s3.get_bucket_policy(Bucket=BUCKET)["Policy"]),
        "versioning": s3.get_bucket_versioning(Bucket=BUCKET)["Status"],
        "encryption": s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"],
    }


@dataclass
class Stack:
    """One apply, and what it made."""

    aws: EmbeddedAws
    terraform: Terraform
    variables: dict[str, Any]
    run_file: Path
    outputs: dict[str, Any]
    events: list[tuple[str, str]]
    s3: Any
    folder: Path

    def template(self, run_id: str = "read-back") -> dict[str, Any]:
        name = f"train-cloud-{run_id}"
        versions = self.aws.client("ec2").describe_launch_template_versions(
            LaunchTemplateName=name, Versions=["$Latest"]
        )
        return dict(versions["LaunchTemplateVersions"][0]["LaunchTemplateData"])

    def user_data(self, run_id: str = "read-back") -> str:
        return base64.b64decode(self.template(run_id)["UserData"]).decode()

    def group(self) -> dict[str, Any]:
        groups = self.aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[NAME])
        return dict(groups["AutoScalingGroups"][0])

    def body(self, key: str) -> bytes:
        body: bytes = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def keys(self, prefix: str) -> set[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Contents", [])}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    project = folder / "runs-of-mine" / "project"
    for name, text in {
        "mine/__init__.py": MINE,
        "mine/__pycache__/x.pyc": "no",
        "sub/.hidden": "yes",
        "data/big.bin": "no",
        "notes.txt": "no",
        "sub/notes.txt": "yes",
        "wéird näme.txt": "yes",
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    run_file = folder / "runs-of-mine" / "run.yaml"
    run_file.write_text(RUN_FILE)
    events: list[tuple[str, str]] = []
    with EmbeddedAws(log=folder / "aws.log") as aws:
        variables = {"run_file": str(run_file), "training_type": "sac", "save_frequency": 20_000, "prefix": "a/b"}
        with aws.permissions_enforced(OWNER_MAY):  # exactly what doctor asks for
            terraform = Terraform(folder / "work", aws, on_event=lambda address, done: events.append((address, done)))
            with_small_package(folder / "work", terraform)
            outputs = terraform.apply(variables)
        yield Stack(aws, terraform, variables, run_file, outputs, events, aws.client("s3"), folder)


@pytest.mark.full
def test_format_validity_and_the_modules_own_tests() -> None:
    """`make check` runs the same script in CI."""
    subprocess.run([REPOSITORY / "scripts" / "check_terraform.sh"], check=True)


def test_each_validation_has_a_test_and_says_what_it_checks() -> None:
    variables = (REPOSITORY / "terraform" / "variables.tf").read_text()
    tests = (REPOSITORY / "terraform" / "tests" / "validation.tftest.hcl").read_text()
    blocks = dict(re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', variables, re.DOTALL | re.MULTILINE))
    assert 18 <= len(blocks) <= 28
    for name, block in blocks.items():
        assert re.search(r"^  description = \".+\.\"$", block, re.MULTILINE), name
        assert re.search(r"^  type +=", block, re.MULTILINE), name
        messages = re.findall(r'error_message = "(.*)"$', block, re.MULTILINE)
        assert all(message.startswith(f"{name}: ") and message.endswith(".") for message in messages), name
        assert len(re.findall(rf"expect_failures = \[var\.{name}\]", tests)) >= len(messages), name
        assert messages or "= bool" in block, name


def test_the_variables_page_is_current() -> None:
    subprocess.run([sys.executable, REPOSITORY / "scripts" / "document_variables.py", "--check"], check=True)


def test_each_gap_of_moto_is_documented() -> None:
    source = (REPOSITORY / "train_cloud" / "rehearsal" / "moto_gaps.py").read_text()
    gaps = {".".join(found) for found in re.findall(r'^@fills\((\w+), "(\w+)"\)', source, re.MULTILINE)}
    page = (REPOSITORY / "docs" / "aws-facts.md").read_text().split("## Where moto is not AWS")[1]
    assert gaps == set(re.findall(r"`(\w+\.\w+)`", page)) - {
        "test_account.py",
        "test_aws.py",
        "test_plan.py",
        "test_terraform.py",
        "test_rehearse.py",
        "test_second_emulator.py",
    }
    for file in set(re.findall(r"`(test_\w+\.py)`", page)):
        assert (REPOSITORY / "tests" / file).exists()


def test_the_provider_is_found_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lies = tmp_path / "plugins" / "registry.terraform.io" / "hashicorp" / "aws"
    lies.mkdir(parents=True)
    monkeypatch.setenv("TF_PLUGIN_DIR", str(tmp_path / "plugins"))
    assert find_mirror() == tmp_path / "plugins"
    monkeypatch.setenv("TF_PLUGIN_DIR", str(tmp_path / "plugins" / "registry.terraform.io"))
    assert find_mirror() == tmp_path / "plugins"
    monkeypatch.setenv("TF_PLUGIN_DIR", str(tmp_path))
    with pytest.raises(InputError, match="TF_PLUGIN_DIR"):
        find_mirror()
    monkeypatch.delenv("TF_PLUGIN_DIR")
    monkeypatch.setattr("train_cloud.rehearsal.terraform.MIRROR_ROOTS", (str(tmp_path),))
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(tmp_path / "absent"))
    (tmp_path / "checkout").mkdir()
    assert find_mirror(tmp_path / "checkout") == tmp_path / "plugins"
    (tmp_path / "my.rc").touch()
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(tmp_path / "my.rc"))
    assert find_mirror(tmp_path / "checkout") is None


def test_no_terraform_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if (shipped.tools() / "terraform").exists():
        pytest.skip("this checkout has a Terraform of its own")
    with EmbeddedAws() as aws, pytest.raises(InputError, match=r"install Terraform .* or run scripts/get_terraform.sh"):
        Terraform(tmp_path / "work", aws)


def test_another_apply_changes_nothing_whether_the_run_goes_on_or_has_ended(stack: Stack) -> None:
    """A running run is a matter of the test for the role; here a finished and a failed one, whose capacity is 0."""
    scaling = stack.aws.client("autoscaling")
    (before,) = stack.group()["Instances"]
    assert stack.terraform.changes() == []
    (after,) = stack.group()["Instances"]
    assert after["InstanceId"] == before["InstanceId"]
    # As finish leaves it, whatever the outcome: Terraform knows nothing of heads.
    head = Head(session=1, restart=0, owner=after["InstanceId"], commit="c", outcome="failed")
    stack.s3.put_object(Bucket=BUCKET, Key="a/b/runs/read-back/head.json", Body=pack_head(head))
    scaling.set_desired_capacity(AutoScalingGroupName=NAME, DesiredCapacity=0)
    try:
        assert stack.terraform.changes() == []
        assert stack.group()["Instances"] == []
    finally:
        scaling.set_desired_capacity(AutoScalingGroupName=NAME, DesiredCapacity=1)
        stack.s3.delete_object(Bucket=BUCKET, Key="a/b/runs/read-back/head.json")


def test_after_the_limit_the_stop_is_left_as_it_is(stack: Stack) -> None:
    """As after three days: AWS gives the next hour as the start, and a time that is past would be refused."""
    state = stack.folder / "work" / "terraform" / "terraform.tfstate"
    kept = state.read_text()
    launched = worker_environment(stack.user_data())["TRAIN_CLOUD_LAUNCHED_AT"]
    earlier = datetime.fromisoformat(launched) - timedelta(days=3)
    scaling = stack.aws.client("autoscaling")
    (action,) = scaling.describe_scheduled_actions(AutoScalingGroupName=NAME)["ScheduledUpdateGroupActions"]
    put = partial(
        scaling.put_scheduled_update_group_action,
        AutoScalingGroupName=NAME,
        ScheduledActionName=action["ScheduledActionName"],
        DesiredCapacity=0,
        Recurrence=action["Recurrence"],
    )
    try:
        state.write_text(kept.replace(launched, earlier.strftime("%Y-%m-%dT%H:%M:%SZ")))
        put(StartTime=datetime.now(timezone.utc) + timedelta(hours=1))
        changed = stack.terraform.changes()
    finally:
        state.write_text(kept)
        put(StartTime=action["StartTime"])
    assert 'update aws_launch_template.worker["read-back"]' in changed, "the state was not changed"
    assert not [change for change in changed if "schedule" in change]


def test_the_outputs_are_these_and_look_the_worker_up(stack: Stack) -> None:
    assert set(stack.outputs) == OUTPUTS
    assert stack.outputs["autoscaling_group_name"] == NAME
    (run,) = stack.outputs["runs"].values()
    assert {name: stack.outputs[name] for name in run} == run and set(run) == OUTPUTS - {"runs", "s3_bucket_url"}
    assert stack.outputs["s3_bucket_url"] == f"s3://{BUCKET}/a/b"
    assert stack.outputs["status_command"] == f"train-cloud status s3://{BUCKET}/a/b/runs/read-back"
    for name in OUTPUTS - {"autoscaling_group_name", "s3_bucket_url", "status_command", "runs"}:
        assert subprocess.run(["bash", "-n", "-c", stack.outputs[name]]).returncode == 0, name
    query = re.search(r"--filters (.*?) --query", stack.outputs["session_command"])
    assert query is not None
    filters = [dict(part.split("=", 1) for part in text.split(",")) for text in query[1].split()]
    found = stack.aws.client("ec2").describe_instances(
        Filters=[{"Name": entry["Name"], "Values": [entry["Values"]]} for entry in filters]
    )
    running = [instance["InstanceId"] for group in found["Reservations"] for instance in group["Instances"]]
    assert running == [instance["InstanceId"] for instance in stack.group()["Instances"]]


def test_progress_is_told(stack: Stack) -> None:
    assert ('aws_autoscaling_group.worker["read-back"]', "created") in stack.events
    assert ('aws_iam_role_policy.worker["read-back"]', "created") in stack.events
    order = [address for address, _ in stack.events]
    group = order.index('aws_autoscaling_group.worker["read-back"]')
    for name in ("iam_role_policy.worker", "s3_object.run_file", "s3_object.code_sums", "s3_object.code"):
        needed = f"aws_{name}["
        assert max(n for n, address in enumerate(order) if address.startswith(needed)) < group, needed


def test_the_group_is_one_spot_worker_that_is_replaced_and_ended(stack: Stack) -> None:
    group, scaling = stack.group(), stack.aws.client("autoscaling")
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (0, 1, 1)
    assert [process["ProcessName"] for process in group["SuspendedProcesses"]] == ["AZRebalance"]
    assert group["CapacityRebalance"] is False
    policy = group["MixedInstancesPolicy"]
    assert policy["InstancesDistribution"]["OnDemandBaseCapacity"] == 0
    assert policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 0
    assert policy["InstancesDistribution"]["SpotAllocationStrategy"] == "price-capacity-optimized"
    types = [entry["InstanceType"] for entry in policy["LaunchTemplate"]["Overrides"]]
    assert types == ["g6.xlarge", "g5.xlarge", "g4dn.xlarge"]
    (hook,) = scaling.describe_lifecycle_hooks(AutoScalingGroupName=NAME)["LifecycleHooks"]
    assert (hook["LifecycleTransition"], hook["HeartbeatTimeout"], hook["DefaultResult"]) == (
        "autoscaling:EC2_INSTANCE_TERMINATING",
        120,
        "CONTINUE",
    )
    (action,) = scaling.describe_scheduled_actions(AutoScalingGroupName=NAME)["ScheduledUpdateGroupActions"]
    launched = datetime.fromisoformat(worker_environment(stack.user_data())["TRAIN_CLOUD_LAUNCHED_AT"])
    late = action["StartTime"] - launched
    assert timedelta(hours=24, minutes=29) < late <= timedelta(hours=24, minutes=30)
    assert action["DesiredCapacity"] == 0
    assert action["Recurrence"] == f"{action['StartTime'].minute} * * * *"


def test_the_template_is_locked_down_and_leaves_spot_to_the_group(stack: Stack) -> None:
    template = stack.template()
    assert "InstanceMarketOptions" not in template
    assert template["MetadataOptions"]["HttpTokens"] == "required"
    assert template["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    (mapping,) = template["BlockDeviceMappings"]
    assert mapping["DeviceName"] == "/dev/sda1"
    assert mapping["Ebs"] == {
        "DeleteOnTermination": True,
        "Encrypted": True,
        "Iops": 3000,
        "Throughput": 500,
        "VolumeSize": 150,
        "VolumeType": "gp3",
    }
    (security_group,) = stack.aws.client("ec2").describe_security_groups(GroupIds=template["SecurityGroupIds"])[
        "SecurityGroups"
    ]
    assert security_group["IpPermissions"] == []


def test_the_user_data_fits_and_names_everything(stack: Stack) -> None:
    user_data = stack.user_data()
    assert len(user_data.encode()) < 16 * 1024
    environment = worker_environment(user_data)
    assert environment == {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "TRAIN_CLOUD_AUTOSCALING_GROUP": NAME,
        "TRAIN_CLOUD_CODE": "/opt/train-cloud/code/user",
        "TRAIN_CLOUD_CODE_DIGEST": environment["TRAIN_CLOUD_CODE_DIGEST"],
        "TRAIN_CLOUD_LAUNCHED_AT": environment["TRAIN_CLOUD_LAUNCHED_AT"],
        "TRAIN_CLOUD_MAX_ATTEMPTS": "5",
        "TRAIN_CLOUD_OVERRIDES": "/etc/train-cloud/overrides.json",
        "TRAIN_CLOUD_RUN_FILE": "/etc/train-cloud/run.yaml",
        "TRAIN_CLOUD_RUN_ID": "read-back",
        "TRAIN_CLOUD_STATE_DIR": "/var/lib/train-cloud",
        "TRAIN_CLOUD_STORE": f"s3://{BUCKET}/a/b",
    }
    plain = re.compile(r"[A-Za-z0-9_./:+-]+")
    assert all(plain.fullmatch(value) for value in environment.values())
    with pytest.raises(TrainCloudError, match=r"writes no worker\.env"):
        worker_environment("#!/bin/bash\n")


def test_run_file_and_overrides_arrive_as_written(stack: Stack) -> None:
    assert stack.keys("a/b/runs/read-back/") == {"run.yaml", "run.json", "overrides-0.json"}
    assert stack.body("a/b/runs/read-back/run.yaml") == RUN_FILE.encode()
    overrides = json.loads(stack.body("a/b/runs/read-back/overrides-0.json"))
    assert overrides == {"algorithm": "sac", "save_frequency": 20_000}
    launch = json.loads(stack.body("a/b/runs/read-back/run.json"))
    launched = datetime.fromisoformat(worker_environment(stack.user_data())["TRAIN_CLOUD_LAUNCHED_AT"])
    assert datetime.fromisoformat(launch.pop("deadline")) == launched + timedelta(hours=24)
    volume = {"type": "gp3", "gb": 150, "iops": 3000, "throughput": 500}
    assert launch == {"run_id": "read-back", "overrides": {}, "launched_by": "terraform", "volume": volume}


def test_the_code_is_what_its_digest_names(stack: Stack) -> None:
    digest = worker_environment(stack.user_data())["TRAIN_CLOUD_CODE_DIGEST"]
    prefix = f"a/b/code/{digest}/"
    sums = stack.body(f"{prefix}SHA256SUMS")
    assert hashlib.sha256(sums).hexdigest() == digest
    lines = sums.decode().splitlines()
    paths = [line[66:] for line in lines]
    assert paths == sorted(paths)
    assert stack.keys(prefix) == {"SHA256SUMS", *paths}
    for line in lines:
        assert hashlib.sha256(stack.body(prefix + line[66:])).hexdigest() == line[:64], line
    package = {path.removeprefix("package/") for path in paths if path.startswith("package/")}
    assert {"pyproject.toml", "LICENSE", "bootstrap/install.sh", "systemd/train-cloud-train.service"} <= package
    assert "train_cloud/run/head.py" in package
    assert not [path for path in package if "__pycache__" in path or path.startswith(("terraform", "tests"))]


def test_the_users_code_has_the_digests_that_the_run_file_knows(stack: Stack) -> None:
    digest = worker_environment(stack.user_data())["TRAIN_CLOUD_CODE_DIGEST"]
    lines = stack.body(f"a/b/code/{digest}/SHA256SUMS").decode().splitlines(keepends=True)
    mine = [line[:66] + line[66:].removeprefix("user/") for line in lines if line[66:].startswith("user/")]
    assert {line[66:-1] for line in mine} == {"mine/__init__.py", "sub/.hidden", "sub/notes.txt", "wéird näme.txt"}
    folder = stack.run_file.parent / "project"
    known = code_digests(folder, ("data/**", "notes.txt"))
    assert [line.rstrip("\n") for line in mine] == [f"{digest}  {path}" for path, digest in known.items()]


def test_the_bucket_is_private_versioned_and_encrypted(stack: Stack) -> None:
    s3 = stack.s3
    assert s3.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    blocked = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
    assert len(blocked) == 4
    assert all(blocked.values())
    (rule,) = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    (statement,) = json.loads(s3.get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"]
    assert (statement["Effect"], statement["Principal"]) == ("Deny", "*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_role_may_do_this_and_no_more(stack: Stack) -> None:
    """With permissions enforced, as the worker: each call with whether it must be allowed."""
    run, code = "a/b/runs/read-back", f"a/b/code/{worker_environment(stack.user_data())['TRAIN_CLOUD_CODE_DIGEST']}"
    for key in ("a/b/runs/other/head.json", "a/b/code/other/SHA256SUMS"):
        stack.s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    with stack.aws.permissions_enforced():
        role = stack.aws.assume(f"{NAME}-us-east-1", "i-0123")
        s3, scaling = stack.aws.client("s3", role), stack.aws.client("autoscaling", role)

        def put(key: str) -> Any:
            return s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")

        def get(key: str) -> Any:
            return s3.get_object(Bucket=BUCKET, Key=key)

        def put_get_delete(key: str) -> None:
            put(key), get(key), s3.delete_object(Bucket=BUCKET, Key=key)

        allowed: list[Callable[[], Any]] = [
            lambda: get(f"{run}/run.yaml"),
            lambda: get(f"{run}/run.json"),
            lambda: get(f"{run}/overrides-0.json"),
            lambda: get(f"{code}/SHA256SUMS"),
            lambda: s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{run}/head.json"),
            *[partial(put_get_delete, f"{run}/{key}") for key in WRITTEN_BY_WORKER],
            lambda: scaling.set_desired_capacity(AutoScalingGroupName=NAME, DesiredCapacity=1),
            lambda: stack.aws.client("ec2", role).describe_spot_price_history(InstanceTypes=["g5.xlarge"]),
        ]
        forbidden: list[Callable[[], Any]] = [
            lambda: put(f"{run}/run.yaml"),
            lambda: put(f"{run}/run.json"),
            lambda: put(f"{run}/overrides-1.json"),
            lambda: s3.delete_object(Bucket=BUCKET, Key=f"{run}/run.yaml"),
            lambda: put(f"{run}/anything"),
            lambda: put(f"{code}/package/train_cloud/evil.py"),
            lambda: get("a/b/runs/other/head.json"),
            lambda: put("a/b/runs/other/head.json"),
            lambda: get("a/b/code/other/SHA256SUMS"),
            lambda: s3.delete_bucket(Bucket=BUCKET),
            lambda: scaling.delete_auto_scaling_group(AutoScalingGroupName=NAME),
            lambda: scaling.update_auto_scaling_group(AutoScalingGroupName=NAME, MaxSize=5),
            lambda: scaling.describe_lifecycle_hooks(AutoScalingGroupName=NAME),
            lambda: scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[NAME]),
            lambda: stack.aws.client("ssm", role).get_parameter(Name="/somebody/elses/secret"),
            lambda: stack.aws.client("ec2", role).run_instances(MinCount=1, MaxCount=1),
            lambda: stack.aws.client("iam", role).list_roles(),
        ]
        for number, call in enumerate(allowed):
            try:
                call()
            except ClientError as error:
                pytest.fail(f"allowed[{number}] was refused: {error}")
        for number, call in enumerate(forbidden):
            with pytest.raises(ClientError) as refusal:
                call()
            code_ = refusal.value.response["Error"]["Code"]
            assert code_ in ("AccessDenied", "UnauthorizedOperation", "403"), (number, code_)
    for key in ("a/b/runs/other/head.json", "a/b/code/other/SHA256SUMS"):
        stack.s3.delete_object(Bucket=BUCKET, Key=key)


def test_a_bad_value_names_variable_value_and_fix_and_nothing_is_made(stack: Stack, tmp_path: Path) -> None:
    before = stack.aws.resources_left()
    terraform = with_small_package(tmp_path / "work", Terraform(tmp_path / "work", stack.aws))
    with pytest.raises(InputError, match=r"^save_frequency: 0: give a whole number of at least 1$"):
        terraform.apply({"run_file": stack.run_file, "project_name": "bad", "save_frequency": 0})
    with pytest.raises(
        InputError, match=r"^availability_zones: \['us-east-1z'\]: the default VPC has no default subnet"
    ):
        terraform.plan({"run_file": stack.run_file, "project_name": "bad", "availability_zones": ["us-east-1z"]})
    with pytest.raises(TrainCloudError, match=r"data\.aws_s3_bucket\.existing.*reading S3 Bucket \(no-such-bucket\)"):
        terraform.apply(
            {
                "run_file": stack.run_file,
                "project_name": "bad",
                "existing_bucket": True,
                "s3_bucket_name": "no-such-bucket",
            }
        )
    assert stack.aws.resources_left() == before


def test_a_new_run_gets_a_worker_and_the_old_one_keeps_its_own(stack: Stack) -> None:
    """Several runs from one apply, and every option on: nothing of the first run is replaced."""
    (before,) = stack.group()["Instances"]
    second = stack.run_file.with_name("second.yaml")
    second.write_text(RUN_FILE.replace("read-back", "second"))
    variables = {name: value for name, value in stack.variables.items() if name != "run_file"}
    key = stack.aws.client("kms").create_key()["KeyMetadata"]["Arn"]
    iam = stack.aws.client("iam")
    iam.create_role(
        RoleName=SERVICE_ROLE, Path="/aws-service-role/autoscaling.amazonaws.com/", AssumeRolePolicyDocument="{}"
    )
    stack.variables = {
        **variables,
        "run_files": [stack.run_file, second],
        "notification_emails": ["me@example.org"],
        "cloudwatch_log_days": 7,
        "kms_key_arn": key,
    }
    del stack.events[:]
    outputs = stack.terraform.apply(stack.variables)
    assert not [event for event in stack.events if event[1] == "destroyed"]
    created = [address for address, done in stack.events if done == "created"]
    assert 'aws_autoscaling_group.worker["second"]' in created
    assert not [address for address in created if address.startswith("aws_s3_object.code")], "it is the same code"
    assert [found["InstanceId"] for found in stack.group()["Instances"]] == [before["InstanceId"]]
    assert set(outputs["runs"]) == {"read-back", "second"} and "autoscaling_group_name" not in outputs
    assert outputs["status_command"] == f"train-cloud status s3://{BUCKET}/a/b"
    for command in (outputs["session_command"], outputs["scaling_activities_command"]):
        assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0, command
    said = subprocess.run(["bash", "-c", outputs["session_command"]], capture_output=True, text=True).stdout
    assert 'terraform output -json runs | jq -r .[\\"read-back\\"].session_command' in said

    for run_id in ("read-back", "second"):
        environment = worker_environment(stack.user_data(run_id))
        assert environment["TRAIN_CLOUD_RUN_ID"] == run_id
        assert environment["TRAIN_CLOUD_TOPIC"] == outputs["notification_topic_arn"]
        assert environment["TRAIN_CLOUD_LOG_GROUP"] == f"/train-cloud-{run_id}"
        (mapping,) = stack.template(run_id)["BlockDeviceMappings"]
        assert mapping["Ebs"]["KmsKeyId"] == key
    (grant,) = stack.aws.client("kms").list_grants(KeyId=key)["Grants"]
    assert grant["GranteePrincipal"] == iam.get_role(RoleName=SERVICE_ROLE)["Role"]["Arn"]
    (rule,) = stack.s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}

    with stack.aws.permissions_enforced():
        role = stack.aws.assume("train-cloud-second-us-east-1", "i-0123")
        s3, sns, logs = (stack.aws.client(name, role) for name in ("s3", "sns", "logs"))
        s3.put_object(Bucket=BUCKET, Key="a/b/runs/second/told/1", Body=b"")
        sns.publish(TopicArn=outputs["notification_topic_arn"], Message="m")
        logs.create_log_stream(logGroupName="/train-cloud-second", logStreamName="i-0123/train")
        scaling = stack.aws.client("autoscaling", role)
        for forbidden in (
            partial(s3.put_object, Bucket=BUCKET, Key="a/b/runs/read-back/told/1", Body=b""),
            partial(s3.get_object, Bucket=BUCKET, Key="a/b/runs/read-back/run.yaml"),
            partial(scaling.set_desired_capacity, AutoScalingGroupName=NAME, DesiredCapacity=0),
            partial(sns.create_topic, Name="another"),
            partial(logs.create_log_stream, logGroupName="/train-cloud-read-back", logStreamName="i-0123/train"),
        ):
            with pytest.raises(ClientError) as refusal:
                forbidden()
            assert refusal.value.response["Error"]["Code"] in ("AccessDenied", "403")
    stack.s3.delete_object(Bucket=BUCKET, Key="a/b/runs/second/told/1")


def test_destroy_in_mid_run_keeps_all_that_the_run_needs(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status, fork and going on, from the kept bucket alone."""
    for name, value in stack.aws.environment().items():
        monkeypatch.setenv(name, value)
    root = f"s3://{BUCKET}/a/b"
    store = open_store(run_url(root, "read-back"))

    def train(run_file: Path, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "train_cloud", "train", str(run_file), "--store", root, *options]
        return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})

    trainer = train(stack.run_file, "--set", "save_frequency=500")
    try:
        deadline = time.monotonic() + 120
        while (read := read_head(store)) is None or read[0].timesteps == 0:
            assert time.monotonic() < deadline and trainer.poll() is None, "the run has a checkpoint"
            time.sleep(0.1)
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(120) == Interrupted.exit_code
    finally:
        trainer.kill()
    # As bootstrap/launched.sh has left it at the first boot.
    digest = worker_environment(stack.user_data())["TRAIN_CLOUD_CODE_DIGEST"]
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as archive:
        for name in sorted(stack.keys(f"a/b/code/{digest}/")):
            body = stack.body(f"a/b/code/{digest}/{name}")
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    store.create(f"{LAUNCHED}code-{digest}.tar.gz", (tmp_path / "code.tar.gz").read_bytes())
    store.create(f"{LAUNCHED}run.yaml", stack.body("a/b/runs/read-back/run.yaml"))

    before = bucket_settings(stack.s3)
    with pytest.raises(TrainCloudError, match=KEPT) as error:
        stack.terraform.destroy()
    assert str(error.value).count("provisioner error") == 1
    assert bucket_settings(stack.s3) == before and before["public access"] and before["policy"]
    left = set(stack.aws.resources_left()) - {f"role {SERVICE_ROLE}"}  # which is AWS's own
    assert left == {f"bucket {BUCKET}"}
    assert not stack.keys("a/b/code/") and not stack.keys("a/b/runs/second/")

    status = run_status(root, "read-back")
    assert (status.state, status.committed_timesteps > 0) == ("interrupted", True)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "run.yaml").write_bytes(bytes(store.get(f"{LAUNCHED}run.yaml").body))
    (kept / "code.tar.gz").write_bytes(bytes(store.get(f"{LAUNCHED}code-{digest}.tar.gz").body))
    with tarfile.open(kept / "code.tar.gz") as archive:
        archive.extractall(kept / "code", filter="data")
    (kept / "code" / "user").rename(kept / "project")
    forked = fork(
        root, "read-back", "forked", overrides=["total_timesteps=2000000"], base=kept, out=kept / "forked.yaml"
    )
    assert forked.timesteps == status.committed_timesteps

    total = status.committed_timesteps + 200
    assert train(kept / "run.yaml", "--set", f"total_timesteps={total}", "--set", "save_frequency=100").wait(240) == 0
    after = run_status(root, "read-back")
    assert (after.state, after.timesteps, len(after.sessions)) == ("completed", total, 2)
    assert after.sessions[1].first_timestep == status.committed_timesteps
    assert after.exact, after.because


@pytest.mark.full
def test_artifacts_are_deleted_only_once_that_was_applied(tmp_path: Path) -> None:
    """In CI the rehearsal deletes its own."""
    run_file = tmp_path / "run.yaml"
    run_file.write_text("run_id: delete\n")
    with EmbeddedAws() as aws, aws.permissions_enforced(OWNER_MAY):
        terraform = Terraform(tmp_path / "work", aws)
        variables = {"run_file": run_file}
        terraform.apply(variables)
        s3 = aws.client("s3")
        for body in (b"1", b"2"):
            s3.put_object(Bucket=BUCKET, Key="runs/delete/checkpoints/1/part", Body=body)
        s3.put_object(Bucket=BUCKET, Key="runs/delete/boots/1", Body=b"")
        s3.delete_object(Bucket=BUCKET, Key="runs/delete/boots/1")
        with pytest.raises(TrainCloudError, match=KEPT):
            terraform.destroy()
        terraform.apply({**variables, "delete_artifacts_on_destroy": True})
        terraform.destroy()
        assert terraform.outputs() == {}


@pytest.mark.full
def test_another_checkout_goes_on_in_the_kept_bucket(tmp_path: Path) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("run_id: kept\n")
    with EmbeddedAws() as aws:
        first = Terraform(tmp_path / "first", aws)
        first.apply({"run_file": run_file})
        aws.client("s3").put_object(Bucket=BUCKET, Key="runs/kept/head.json", Body=b"{}")
        with pytest.raises(TrainCloudError, match=KEPT):
            first.destroy()
        second = Terraform(tmp_path / "second", aws)
        variables = {"run_file": run_file, "existing_bucket": True, "s3_bucket_name": BUCKET}
        second.apply(variables)
        assert second.changes() == []
        listed = aws.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="runs/kept/")["Contents"]
        assert {entry["Key"].split("/")[-1] for entry in listed} >= {"head.json", "run.yaml", "run.json"}
        second.destroy()
        assert aws.resources_left() == [f"bucket {BUCKET}"]


@pytest.mark.full
def test_on_demand_and_other_code_reach_the_next_worker_and_leave_this_one(tmp_path: Path) -> None:
    run_file, code = tmp_path / "run.yaml", tmp_path / "mine"
    run_file.write_text("run_id: change\ncode: {folder: mine}\n")
    code.mkdir()
    (code / "mine.py").write_text("X = 1\n")
    events: list[tuple[str, str]] = []
    with EmbeddedAws() as aws:
        terraform = Terraform(tmp_path / "work", aws, on_event=lambda address, done: events.append((address, done)))
        terraform.apply({"run_file": run_file})

        def group() -> dict[str, Any]:
            return dict(aws.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"][0])

        (worker,) = group()["Instances"]
        for use_spot, share in ((False, 100), (True, 0)):
            del events[:]
            terraform.apply({"run_file": run_file, "use_spot": use_spot})
            assert events == [('aws_autoscaling_group.worker["change"]', "updated")]
            policy = group()["MixedInstancesPolicy"]["InstancesDistribution"]
            assert policy["OnDemandPercentageAboveBaseCapacity"] == share

        del events[:]
        (code / "mine.py").write_text("X = 2\n")
        terraform.apply({"run_file": run_file})
        updated = events.index(('aws_autoscaling_group.worker["change"]', "updated"))
        gone = [n for n, (address, done) in enumerate(events) if done == "destroyed"]
        assert all(events[n][0].startswith("aws_s3_object.code") for n in gone)
        assert gone and min(gone) > updated, "a worker that is starting reads the old code until then"
        assert [found["InstanceId"] for found in group()["Instances"]] == [worker["InstanceId"]]


@pytest.mark.full
def test_the_lifecycle_rule_forgets_what_is_superseded(tmp_path: Path) -> None:
    """The provider takes 55 s over it, so the other applies leave it out."""
    run_file = tmp_path / "run.yaml"
    run_file.write_text("run_id: rule\n")
    with EmbeddedAws() as aws:
        terraform = Terraform(tmp_path / "work", aws, lifecycle_rule=True)
        terraform.apply({"run_file": run_file})
        found = aws.client("s3").get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
        assert terraform.changes() == []
    (rule,) = found
    assert rule["Status"] == "Enabled"
    assert rule["NoncurrentVersionExpiration"] == {"NoncurrentDays": 3}
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert rule["Expiration"] == {"ExpiredObjectDeleteMarker": True}


def test_get_terraform_says_what_to_install_and_takes_no_other_file(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "get_terraform.sh"
    script.parent.mkdir()
    shutil.copy(REPOSITORY / "scripts" / "get_terraform.sh", script)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "cat", "chmod", "curl", "dirname", "mkdir", "mktemp", "python3", "rm", "uname"):
        found = shutil.which(name)
        assert found is not None, name
        (tools / name).symlink_to(found)
    wrong = tmp_path / "wrong.zip"
    wrong.write_bytes(b"not Terraform")

    def run(url: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(tools), "TERRAFORM_URL": url, "HOME": str(tmp_path)}
        return subprocess.run([script], env=environment, capture_output=True, text=True, timeout=60)

    for url, reason in (
        (f"file://{tmp_path}/absent.zip", "cannot be reached"),
        (f"file://{wrong}", "is not the release"),
    ):
        done = run(url)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert reason in done.stderr
        assert "install Terraform 1.9 or later" in done.stderr
        assert list((tmp_path / ".tools").iterdir()) == []
    (tmp_path / ".tools" / "terraform").write_text("#!/bin/sh\n")
    (tmp_path / ".tools" / "terraform").chmod(0o755)
    done = run("file:///dev/null")
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / ".tools" / "terraform"))
