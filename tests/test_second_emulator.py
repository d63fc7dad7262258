"""The module's life on another emulator than the rehearsal's: what only moto accepts would show here.

MiniStack needs neither docker nor a network once it is installed. It pins another botocore than ours, and so has a
virtual environment of its own, which pip fills: outside CI's time.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
import requests

from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.terraform import Terraform

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(1200)]

VERSION = "1.5.33"
#: It knows neither the image's public parameter nor SuspendProcesses.
IMAGE = "ami-0fedcba9876543210"
WITHOUT_SUSPENDED = 'resource "aws_autoscaling_group" "worker" {\n  suspended_processes = []\n}\n'
#: It does not give back a group's mixed instances policy, nor tags and description of a rule that is the default one.
NOT_GIVEN_BACK = {
    'update aws_autoscaling_group.worker["a-run"]',
    'update aws_vpc_security_group_egress_rule.everywhere["a-run 0.0.0.0/0"]',
}


class MiniStack:
    """As much of :class:`EmbeddedAws` as Terraform's rehearsal asks for."""

    region = "us-east-1"

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), self.region),
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test"),
            **dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull),
            "AWS_EC2_METADATA_DISABLED": "true",
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        }

    def client(self, service: str) -> Any:
        session: Any = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test")
        return session.client(service, endpoint_url=self.endpoint, region_name=self.region)


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniStack]:
    folder = tmp_path_factory.mktemp("ministack")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"ministack=={VERSION}"], check=True, timeout=300)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))}
    environment = {**inherited, "GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1"}
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            [python, "-m", "ministack"], env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        found, deadline = MiniStack(port), time.monotonic() + 120
        while True:
            try:
                requests.get(f"{found.endpoint}/_localstack/health", timeout=5)
                break
            except requests.RequestException:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
                time.sleep(0.2)
        yield found
    finally:
        server.kill()
        server.wait()


def test_a_life_of_the_module(ministack: MiniStack, tmp_path: Path) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(
        "run_id: a-run\nalgorithm: sac\ntotal_timesteps: 1000\nsave_frequency: 100\nenvironment: {id: Pendulum-v1}\n"
    )
    terraform = Terraform(tmp_path / "work", cast(EmbeddedAws, ministack))
    (tmp_path / "work" / "terraform" / "second_override.tf").write_text(WITHOUT_SUSPENDED)
    variables = {"run_file": run_file, "ami_id": IMAGE, "delete_artifacts_on_destroy": True}
    outputs = terraform.apply(variables)

    s3, scaling, iam = (ministack.client(name) for name in ("s3", "autoscaling", "iam"))
    bucket = outputs["s3_bucket_url"].removeprefix("s3://").split("/")[0]
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    launch = json.loads(s3.get_object(Bucket=bucket, Key="runs/a-run/run.json")["Body"].read())
    assert launch["launched_by"] == "terraform"
    name = outputs["autoscaling_group_name"]
    (group,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (0, 1, 1)
    (action,) = scaling.describe_scheduled_actions(AutoScalingGroupName=name)["ScheduledUpdateGroupActions"]
    assert action["DesiredCapacity"] == 0
    (role,) = (role["RoleName"] for role in iam.list_roles()["Roles"] if role["RoleName"].startswith(name))
    assert set(iam.list_role_policies(RoleName=role)["PolicyNames"]) == {"run", "session"}

    assert set(terraform.changes()) <= NOT_GIVEN_BACK
    terraform.apply({**variables, "max_runtime_hours": 30})
    terraform.destroy()
    assert s3.list_buckets()["Buckets"] == []
    assert scaling.describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert not [each for each in iam.list_roles()["Roles"] if each["RoleName"].startswith(name)]
