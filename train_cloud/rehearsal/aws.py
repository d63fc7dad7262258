"""An AWS of one's own on loopback: moto behind real HTTP, in a process that never outlives its owner."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3
import requests
from botocore.config import Config

from train_cloud import child_process
from train_cloud.errors import TrainCloudError

#: For whoever ends the server: it has nothing to save.
_END_SECONDS = 5
_START_SECONDS = 60


class EmbeddedAws:
    """S3, EC2, Auto Scaling, IAM, STS, SSM, SNS, KMS and CloudWatch Logs at one loopback URL, empty at first.

    A context manager. The server reads its standard input and ends with it, so it goes even if this process is killed;
    it has a process group of its own, so Ctrl-C leaves it alive for the ``terraform destroy`` that follows.

    :param log: file that receives the server's messages; by default they are dropped
    :raises TrainCloudError: the server did not start
    """

    def __init__(self, *, region: str = "us-east-1", log: Path | None = None) -> None:
        self.region = region
        self._log = log or Path(os.devnull)
        self._server: subprocess.Popen[bytes] | None = None
        self._endpoint: str | None = None
        self._keys = ("AKIAREHEARSAL0000000", "of-nobody")
        self._clients: dict[tuple[str, ...], Any] = {}
        self._making = threading.Lock()

    def __enter__(self) -> EmbeddedAws:
        variables = child_process.environment()  # without the caller's AWS settings
        environment = {name: value for name, value in variables.items() if not name.startswith(("AWS_", "MOTO_"))}
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                child_process.command("train_cloud.rehearsal.moto_gaps"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        alarm = threading.Timer(_START_SECONDS, self._server.kill)
        alarm.start()
        try:
            assert self._server.stdout is not None
            port = self._server.stdout.readline().strip()
        except BaseException:
            self.close()
            raise
        finally:
            alarm.cancel()
        if not port:
            self.close()
            raise TrainCloudError(f"the embedded AWS did not start; its messages: {self._log}")
        self._endpoint = f"http://127.0.0.1:{int(port)}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server; whatever it held is gone."""
        server, self._server = self._server, None
        if server is None:
            return
        assert server.stdin is not None and server.stdout is not None
        try:
            server.stdin.close()
            server.wait(_END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        finally:
            server.kill()
            server.wait()
            server.stdout.close()

    @property
    def endpoint(self) -> str:
        """URL that answers for every service."""
        if self._endpoint is None:
            raise TrainCloudError("the embedded AWS is not running")
        return self._endpoint

    def environment(self) -> dict[str, str]:
        """Variables that send an SDK in another process here, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self._keys[0],
            "AWS_SECRET_ACCESS_KEY": self._keys[1],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def client(self, service: str, credentials: dict[str, str] | None = None) -> Any:
        """A boto3 client for this AWS: as its owner, or with what :meth:`assume` returned. For any thread."""
        given = credentials or {}
        keys = (
            given.get("AccessKeyId", self._keys[0]),
            given.get("SecretAccessKey", self._keys[1]),
            given.get("SessionToken", ""),
        )
        name = (service, *keys)
        with self._making:
            # Kept: to make one takes up to half a second of reading, and rehearsals ask many times a second.
            if name not in self._clients:
                session: Any = boto3.Session()
                self._clients[name] = session.client(
                    service,
                    endpoint_url=self.endpoint,
                    region_name=self.region,
                    aws_access_key_id=keys[0],
                    aws_secret_access_key=keys[1],
                    aws_session_token=keys[2] or None,
                    config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}, proxies={}),
                )
            return self._clients[name]

    def assume(self, role: str, session: str) -> dict[str, str]:
        """Temporary credentials of a role, as EC2 gets them for an instance.

        :return: AccessKeyId, SecretAccessKey, SessionToken, Expiration (ISO 8601)
        """
        arn = self.client("iam").get_role(RoleName=role)["Role"]["Arn"]
        given = self.client("sts").assume_role(RoleArn=arn, RoleSessionName=session)["Credentials"]
        return {**given, "Expiration": given["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ")}

    @contextmanager
    def permissions_enforced(self, owner_may: Sequence[str] = ("*",)) -> Iterator[None]:
        """Within this block IAM policies hold, for assumed roles too; outside it everything is allowed.

        :param owner_may: actions that the owner may take, on anything
        """
        iam, owner, name = self.client("iam"), self._keys, f"owner-{uuid.uuid4().hex[:8]}"
        statement = {"Effect": "Allow", "Action": list(owner_may), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="owner", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        try:
            self._keys = (key["AccessKeyId"], key["SecretAccessKey"])
            self._free_actions(0)
            yield
        finally:
            self._free_actions(10**12)
            self._keys = owner
            iam.delete_access_key(UserName=name, AccessKeyId=key["AccessKeyId"])
            iam.delete_user_policy(UserName=name, PolicyName="owner")
            iam.delete_user(UserName=name)

    def _free_actions(self, number: int) -> None:
        """How many requests moto answers before it checks permissions."""
        url = f"{self.endpoint}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        requests.post(url, data=str(number), headers=headers, timeout=30).raise_for_status()

    def resources_left(self) -> list[str]:
        """Everything in the account that somebody made and nobody removed, as ``kind name``; a new account has none."""
        ec2, iam, scaling = self.client("ec2"), self.client("iam"), self.client("autoscaling")
        owned = {
            "bucket": [bucket["Name"] for bucket in self.client("s3").list_buckets()["Buckets"]],
            "group": _names(scaling.describe_auto_scaling_groups(), "AutoScalingGroups", "AutoScalingGroupName"),
            "scheduled action": _names(
                scaling.describe_scheduled_actions(), "ScheduledUpdateGroupActions", "ScheduledActionName"
            ),
            "launch template": _names(ec2.describe_launch_templates(), "LaunchTemplates", "LaunchTemplateName"),
            "security group": [
                name
                for name in _names(ec2.describe_security_groups(), "SecurityGroups", "GroupName")
                if name != "default"
            ],
            "key pair": _names(ec2.describe_key_pairs(), "KeyPairs", "KeyName"),
            "role": _names(iam.list_roles(), "Roles", "RoleName"),
            "instance profile": _names(iam.list_instance_profiles(), "InstanceProfiles", "InstanceProfileName"),
            "policy": _names(iam.list_policies(Scope="Local"), "Policies", "PolicyName"),
            "user": _names(iam.list_users(), "Users", "UserName"),
            "parameter": _names(self.client("ssm").describe_parameters(), "Parameters", "Name"),
            "instance": [
                instance["InstanceId"]
                for reservation in ec2.describe_instances()["Reservations"]
                for instance in reservation["Instances"]
                if instance["State"]["Name"] not in ("terminated", "shutting-down")
            ],
            "topic": _names(self.client("sns").list_topics(), "Topics", "TopicArn"),
            "log group": _names(self.client("logs").describe_log_groups(), "logGroups", "logGroupName"),
            "volume": _names(ec2.describe_volumes(), "Volumes", "VolumeId"),
        }
        return [f"{kind} {name}" for kind, names in owned.items() for name in sorted(names)]


def _names(answer: dict[str, Any], list_field: str, name_field: str) -> list[str]:
    return [entry[name_field] for entry in answer[list_field]]
