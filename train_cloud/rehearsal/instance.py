"""One instance of the rehearsal: what EC2, user-data and the bootstrap do on a machine, done with local processes.

It reads the same launch template, fetches the same objects by the same digest, and runs the units' own command lines,
with their environment and credentials from a metadata service over real HTTP. The real machine is another driver.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from train_cloud.errors import TrainCloudError
from train_cloud.platforms.ec2.units import TRAIN, UnitState
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.rehearsal.systemd import Line, Machine
from train_cloud.rehearsal.terraform import worker_environment
from train_cloud.runtime.heartbeat import read_timesteps

_WATCH = "train-cloud-watch.service"


class InstanceDriver(Protocol):
    """A running instance of the Auto Scaling group, whatever plays it."""

    instance_id: str
    metadata: MetadataService

    @property
    def timesteps(self) -> int:
        """How far the training process got, to the step; also of an instance that is gone."""

    def state(self, unit: str) -> UnitState: ...

    def journal(self, unit: str) -> list[Line]: ...

    def shown_scalars(self) -> list[str] | None:
        """The curves that TensorBoard on it shows, none while it does not answer; None where none is played."""

    def shows_all_scalars(self) -> bool:
        """Whether these are all that the event files on its disk have; True where none is played."""

    def power_off(self, grace: float) -> None:
        """What EC2 does when the announced time has come: the operating system is told, then it is over."""

    def lose_power(self) -> None:
        """Every process is gone at this instant."""

    def close(self) -> None:
        """Nothing of it is left but its folder."""


class Launch:
    """What EC2 makes of the group's launch template for one instance."""

    def __init__(self, aws: EmbeddedAws, group: str, instance_id: str) -> None:
        template = _launch_template(aws, group)
        self.instance_id = instance_id
        self.user_data = base64.b64decode(template["UserData"])
        described = aws.client("ec2").describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
        self.instance_type: str = described["InstanceType"]
        self.availability_zone: str = described["Placement"]["AvailabilityZone"]
        self.public_ipv4: str | None = described.get("PublicIpAddress")
        profile = template["IamInstanceProfile"]
        name = profile.get("Name") or profile["Arn"].rsplit("/", 1)[1]
        role = aws.client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"][0]
        self.role: str = role["RoleName"]
        # Ahead of the first request: the AWS CLI waits one second for them.
        given = aws.assume(self.role, instance_id)
        self._credentials = {**given, "Token": given["SessionToken"]}

    def metadata(self, listener: socket.socket | None = None) -> MetadataService:
        """The instance's metadata service, with its role's credentials from STS."""
        return MetadataService(
            self.instance_id,
            instance_type=self.instance_type,
            availability_zone=self.availability_zone,
            role=self.role,
            public_ipv4=self.public_ipv4,
            credentials=lambda: self._credentials,
            user_data=self.user_data,
            listener=listener,
        )


class Instance:
    """An instance as local processes.

    :param folder: its disk
    :param environment: set for every process besides the units' own
    :param on_line: called with each line of the journal, from another thread
    """

    def __init__(
        self,
        aws: EmbeddedAws,
        group: str,
        instance_id: str,
        folder: Path,
        *,
        environment: dict[str, str],
        on_line: Callable[[Line], None],
    ) -> None:
        self.instance_id = instance_id
        self.gone = False
        self._on_line = on_line
        self._aws = aws
        launch = Launch(aws, group, instance_id)
        variables = worker_environment(launch.user_data.decode())
        self._root = folder
        self.state_dir = self._on_disk(variables["TRAIN_CLOUD_STATE_DIR"])
        self._write(variables)
        package = self._fetch(variables)
        self.metadata = launch.metadata()
        self.machine = Machine(
            package / "systemd",
            folder / "run",
            paths={
                "/opt/train-cloud/venv/bin": str(Path(sys.executable).parent),
                **{path: str(self._on_disk(path)) for path in ("/etc/train-cloud", "/var/lib/train-cloud")},
            },
            environment={
                **environment,
                "PYTHONPATH": str(package),
                "AWS_ENDPOINT_URL": aws.endpoint,
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.endpoint,
            },
            on_line=lambda line: None if self.gone else self._on_line(line),
        )
        for unit in (_WATCH, TRAIN):
            self.machine.start(unit)

    def state(self, unit: str) -> UnitState:
        return self.machine.state(unit)

    def journal(self, unit: str) -> list[Line]:
        return self.machine.journal(unit)

    def shown_scalars(self) -> list[str] | None:
        return None

    def shows_all_scalars(self) -> bool:
        return True

    @property
    def timesteps(self) -> int:
        """How far the training process got, to the step."""
        try:
            return read_timesteps(self.state_dir)
        except FileNotFoundError:
            return 0

    def power_off(self, grace: float) -> None:
        """What EC2 does when the announced time has come: the operating system is told, then it is over."""
        self.machine.power_off(grace)
        self.close()

    def lose_power(self) -> None:
        """Every process is gone at this instant."""
        self.gone = True  # and nobody is left to say so
        self.machine.lose_power()
        self.close()

    def close(self) -> None:
        self.gone = True
        self.machine.close()
        self.metadata.close()

    def _on_disk(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _write(self, variables: dict[str, str]) -> None:
        """user-data's first half: worker.env, with the paths of this disk."""
        for name, value in variables.items():
            if value.startswith(("/etc/", "/var/", "/opt/")):
                variables[name] = str(self._on_disk(value))
        etc = self._on_disk("/etc/train-cloud")
        etc.mkdir(parents=True)
        self.state_dir.mkdir(parents=True)
        Path(variables["TRAIN_CLOUD_CODE"]).mkdir(parents=True)
        (etc / "worker.env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))

    def _fetch(self, variables: dict[str, str]) -> Path:
        """user-data's second half: run file and code from the bucket, the code verified against its digest.

        :return: the package's folder
        """
        bucket, _, prefix = variables["TRAIN_CLOUD_STORE"].removeprefix("s3://").partition("/")
        prefix = f"{prefix}/" if prefix else ""
        s3 = self._aws.client("s3")
        run = f"{prefix}{variables.get('TRAIN_CLOUD_FOLDER', 'runs')}/{variables['TRAIN_CLOUD_RUN_ID']}/"
        overrides = [entry["Key"] for entry in _objects(s3, bucket, run + "overrides-")]
        for key, path in (
            (run + "run.yaml", variables["TRAIN_CLOUD_RUN_FILE"]),
            (max(overrides, key=lambda key: (len(key), key)), variables["TRAIN_CLOUD_OVERRIDES"]),
        ):
            Path(path).write_bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        code = f"{prefix}code/{variables['TRAIN_CLOUD_CODE_DIGEST']}/"
        target = self._on_disk("/opt/train-cloud/code")
        for entry in _objects(s3, bucket, code):
            path = target / entry["Key"].removeprefix(code)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
        _verify(target, variables["TRAIN_CLOUD_CODE_DIGEST"])
        return target / "package"


def _verify(folder: Path, digest: str) -> None:
    sums = (folder / "SHA256SUMS").read_bytes()
    lines = (line.split("  ", 1) for line in sums.decode().splitlines())
    listed = {path: named for named, path in lines}
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }
    if hashlib.sha256(sums).hexdigest() != digest or found != listed:
        raise TrainCloudError(f"the code in the bucket is not what the digest {digest} names")


def _launch_template(aws: EmbeddedAws, group: str) -> dict[str, Any]:
    found = aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
    named = found[0]["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
    versions = aws.client("ec2").describe_launch_template_versions(
        LaunchTemplateId=named["LaunchTemplateId"], Versions=[named["Version"]]
    )["LaunchTemplateVersions"]
    data: dict[str, Any] = versions[0]["LaunchTemplateData"]
    return data


def _objects(s3: Any, bucket: str, prefix: str) -> list[dict[str, Any]]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [entry for page in pages for entry in page.get("Contents", ())]
