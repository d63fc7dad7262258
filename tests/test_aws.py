"""The embedded AWS: that it answers like the real one where moto does not, and that it always ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError

from train_cloud.errors import TrainCloudError
from train_cloud.platforms.ec2.price import Volume, read_price
from train_cloud.rehearsal.aws import EmbeddedAws

OWNER = """
import sys, time
from train_cloud.rehearsal.aws import EmbeddedAws
with EmbeddedAws() as aws:
    print(aws.endpoint, flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        aws.client("s3").list_buckets()
        print("alive after Ctrl-C", flush=True)
"""


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedAws]:
    with EmbeddedAws() as running:
        yield running


def answers(endpoint: str) -> bool:
    try:
        return requests.get(f"{endpoint}/moto-api/data.json", timeout=5).ok
    except requests.ConnectionError:
        return False


def refused(call: Any, **arguments: Any) -> str:
    """The code of the error that a call is answered with."""
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return str(error.value.response["Error"]["Code"])


def template(aws: EmbeddedAws, name: str, **data: Any) -> str:
    image = aws.client("ssm").get_parameter(Name="/aws/service/deeplearning/ami/x86_64/any/latest/ami-id")
    data = {"ImageId": image["Parameter"]["Value"], "InstanceType": "g5.xlarge", **data}
    made = aws.client("ec2").create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
    return str(made["LaunchTemplate"]["LaunchTemplateId"])


def group(aws: EmbeddedAws, name: str, template_id: str) -> dict[str, Any]:
    subnet = aws.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    aws.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=1,
        VPCZoneIdentifier=subnet,
        MixedInstancesPolicy={
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {"LaunchTemplateId": template_id, "Version": "1"},
                "Overrides": [{"InstanceType": "g5.xlarge"}],
            }
        },
    )
    return described(aws, name)


def described(aws: EmbeddedAws, name: str) -> dict[str, Any]:
    found = aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[name])
    return dict(found["AutoScalingGroups"][0])


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_its_owner(way: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, start_new_session=True, env=dict(os.environ)
    )
    assert owner.stdout is not None
    try:
        endpoint = owner.stdout.readline().strip()
        assert answers(endpoint)
        # To the whole group, as a terminal does it.
        os.killpg(owner.pid, way)
        said = owner.stdout.read()
        owner.wait(20)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    assert ("alive after Ctrl-C" in said) == (way == signal.SIGINT)
    deadline = time.monotonic() + 10
    while answers(endpoint) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not answers(endpoint)


def test_it_is_not_there_before_and_after() -> None:
    aws = EmbeddedAws()
    with pytest.raises(TrainCloudError, match="not running"):
        _ = aws.endpoint
    with aws:
        endpoint = aws.endpoint
        assert answers(endpoint)
    assert not answers(endpoint)
    aws.close()


def test_the_environment_sends_another_process_here(aws: EmbeddedAws) -> None:
    aws.client("s3").create_bucket(Bucket="found-by-environment")
    asks = "import boto3; print([b['Name'] for b in boto3.client('s3').list_buckets()['Buckets']])"
    environment = {"PATH": os.environ["PATH"], **aws.environment()}
    said = subprocess.run([sys.executable, "-c", asks], env=environment, capture_output=True, text=True, timeout=60)
    assert "found-by-environment" in said.stdout, said.stderr
    aws.client("s3").delete_bucket(Bucket="found-by-environment")


def test_everything_that_is_left_is_listed() -> None:
    """In an account of its own: the others' leftovers would hide what is missing."""
    with EmbeddedAws() as aws:
        assert aws.resources_left() == []
        statement = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}
        iam, policy = aws.client("iam"), json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        aws.client("s3").create_bucket(Bucket="left")
        aws.client("ssm").put_parameter(Name="/left", Value="1", Type="String")
        aws.client("ec2").create_key_pair(KeyName="left")
        aws.client("ec2").create_security_group(GroupName="left", Description="left")
        iam.create_role(RoleName="left", AssumeRolePolicyDocument=policy)
        iam.create_instance_profile(InstanceProfileName="left")
        iam.create_policy(PolicyName="left", PolicyDocument=policy)
        iam.create_user(UserName="left")
        instance = group(aws, "left", template(aws, "left"))["Instances"][0]["InstanceId"]
        aws.client("autoscaling").put_scheduled_update_group_action(
            AutoScalingGroupName="left", ScheduledActionName="left", DesiredCapacity=0, Recurrence="0 * * * *"
        )
        found = aws.resources_left()
    kinds = "bucket group launch-template security-group key-pair role instance-profile policy user"
    expected = {f"{kind.replace('-', ' ')} {name}" for kind in kinds.split() for name in ("left",)}
    expected |= {"parameter /left", "scheduled action left", f"instance {instance}"}
    volumes = [entry for entry in found if entry.startswith("volume ")]
    assert set(found) - set(volumes) == expected
    assert len(volumes) == 1


def test_the_image_parameter_names_an_image_that_is_there(aws: EmbeddedAws) -> None:
    name = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
    image = aws.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    found = aws.client("ec2").describe_images(ImageIds=[image])["Images"][0]
    assert (found["Architecture"], found["RootDeviceName"]) == ("x86_64", "/dev/sda1")
    assert refused(aws.client("ssm").get_parameter, Name="/aws/service/no-such") == "ParameterNotFound"


def test_it_has_prices_and_only_for_what_is_asked(aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.environment().items():
        monkeypatch.setenv(name, value)
    now = datetime.now(timezone.utc)
    for life_cycle in ("spot", "on-demand"):
        volume = Volume(type="gp3", gb=150, iops=3000, throughput=500)
        price = read_price("g6.xlarge", "us-east-1b", now, life_cycle=life_cycle, volume=volume, public_address=True)
        assert (price.because, price.on_demand, price.address) == (None, 0.8048, 0.005)
        assert price.volume == pytest.approx(27 / 730)
        assert price.spot == (0.3316 if life_cycle == "spot" else None)
    unknown = read_price("x1e.32xlarge", "us-east-1b", now)
    assert (unknown.spot, unknown.on_demand) == (None, None)
    assert "the price list has 0 prices for x1e.32xlarge" in (unknown.because or "")


def test_a_tls_only_policy_leaves_loopback_alone_and_other_denials_stand(aws: EmbeddedAws) -> None:
    s3, arn = aws.client("s3"), "arn:aws:s3:::tls-only"
    tls: dict[str, Any] = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": [arn, f"{arn}/*"]}
    tls["Condition"] = {"Bool": {"aws:SecureTransport": "false"}}
    other = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": f"{arn}/secret"}
    s3.create_bucket(Bucket="tls-only")
    s3.put_bucket_policy(Bucket="tls-only", Policy=json.dumps({"Version": "2012-10-17", "Statement": [tls, other]}))
    for key in ("open", "secret"):
        s3.put_object(Bucket="tls-only", Key=key, Body=b"x")
    assert s3.get_object(Bucket="tls-only", Key="open")["Body"].read() == b"x"
    assert refused(s3.get_object, Bucket="tls-only", Key="secret") in ("AccessDenied", "403")
    stored = json.loads(s3.get_bucket_policy(Bucket="tls-only")["Policy"])
    assert stored["Statement"] == [tls, other]


def test_a_versioned_bucket_can_be_emptied(aws: EmbeddedAws) -> None:
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="versioned")
    s3.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="versioned", Key="a", Body=b"1")
    s3.delete_object(Bucket="versioned", Key="a")
    s3.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Suspended"})
    listed = s3.list_object_versions(Bucket="versioned")
    for entry in listed["DeleteMarkers"] + listed["Versions"]:
        s3.delete_object(Bucket="versioned", Key=entry["Key"], VersionId=entry["VersionId"])
    s3.delete_bucket(Bucket="versioned")


def test_of_many_conditional_writes_one_wins(aws: EmbeddedAws) -> None:
    aws.client("s3").create_bucket(Bucket="race")
    clients, won, start = [aws.client("s3") for _ in range(8)], [], threading.Barrier(8)

    def write(number: int) -> None:
        for round_ in range(5):
            start.wait()
            try:
                clients[number].put_object(Bucket="race", Key=f"{round_}", Body=b"%d" % number, IfNoneMatch="*")
                won.append((round_, number))
            except ClientError as error:
                assert error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(round_ for round_, _ in won) == list(range(5))


def test_a_repeated_request_gets_the_first_answer(aws: EmbeddedAws) -> None:
    def create_user(invocation: str) -> requests.Response:
        headers = {"amz-sdk-invocation-id": invocation, "amz-sdk-request": "attempt=2; max=2"}
        headers["Authorization"] = (
            "AWS4-HMAC-SHA256 Credential=AKIAREHEARSAL0000000/20260101/us-east-1/iam/aws4_request"
        )
        form = {"Action": "CreateUser", "Version": "2010-05-08", "UserName": "once"}
        return requests.post(aws.endpoint, headers=headers, data=form, timeout=30)

    first, repeated, another = (create_user(invocation) for invocation in ("a", "a", "b"))
    assert first.status_code == 200
    assert (repeated.status_code, repeated.content) == (200, first.content)
    assert another.status_code == 409
    aws.client("iam").delete_user(UserName="once")


def test_a_group_keeps_its_policy_replaces_its_worker_and_leaves_no_volume(aws: EmbeddedAws) -> None:
    ebs = {"VolumeSize": 50, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    mapping = [{"DeviceName": "/dev/sda1", "Ebs": ebs}]
    first = group(aws, "kept", template(aws, "kept", BlockDeviceMappings=mapping))
    scaling, ec2 = aws.client("autoscaling"), aws.client("ec2")
    scaling.update_auto_scaling_group(AutoScalingGroupName="kept", MaxSize=1, DesiredCapacity=1)
    assert described(aws, "kept")["MixedInstancesPolicy"] == first["MixedInstancesPolicy"]
    ec2.terminate_instances(InstanceIds=[first["Instances"][0]["InstanceId"]])
    second = described(aws, "kept")["Instances"]
    assert len(second) == 1
    assert second[0]["InstanceId"] != first["Instances"][0]["InstanceId"]
    scaling.put_lifecycle_hook(
        LifecycleHookName="bye", AutoScalingGroupName="kept", LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING"
    )
    action = {"LifecycleHookName": "bye", "AutoScalingGroupName": "kept", "InstanceId": second[0]["InstanceId"]}
    scaling.record_lifecycle_action_heartbeat(**action)
    scaling.complete_lifecycle_action(LifecycleActionResult="CONTINUE", **action)
    scaling.set_desired_capacity(AutoScalingGroupName="kept", DesiredCapacity=0)
    assert described(aws, "kept")["Instances"] == []
    assert not [entry for entry in aws.resources_left() if entry.startswith(("volume", "instance i-"))]


def test_scheduled_actions_of_one_name_belong_to_their_groups(aws: EmbeddedAws) -> None:
    scaling = aws.client("autoscaling")

    def there() -> list[str]:
        found = scaling.describe_scheduled_actions(ScheduledActionNames=["stop"])["ScheduledUpdateGroupActions"]
        return [action["AutoScalingGroupName"] for action in found]

    for name in ("one", "other"):
        group(aws, name, template(aws, name))
        for desired in (1, 0):
            scaling.put_scheduled_update_group_action(
                AutoScalingGroupName=name, ScheduledActionName="stop", DesiredCapacity=desired, Recurrence="5 * * * *"
            )
    assert there() == ["one", "other"]
    scaling.delete_scheduled_action(AutoScalingGroupName="one", ScheduledActionName="stop")
    assert there() == ["other"]
    with pytest.raises(ClientError, match="not found"):
        scaling.delete_scheduled_action(AutoScalingGroupName="one", ScheduledActionName="stop")
    scaling.delete_scheduled_action(AutoScalingGroupName="other", ScheduledActionName="stop")
    for name in ("one", "other"):
        scaling.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)


def test_tags_of_a_template_are_not_tags_of_its_machines(aws: EmbeddedAws) -> None:
    specifications = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "worker"}]}]
    aws.client("ec2").create_launch_template(
        LaunchTemplateName="tagged",
        LaunchTemplateData={"InstanceType": "g5.xlarge", "TagSpecifications": specifications},
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": [{"Key": "of", "Value": "template"}]}],
    )
    versions = aws.client("ec2").describe_launch_template_versions(LaunchTemplateName="tagged")
    assert versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["TagSpecifications"] == specifications


def test_permissions_hold_for_an_assumed_role_and_only_inside_the_block(aws: EmbeddedAws) -> None:
    iam, names = aws.client("iam"), ("mine", "theirs")
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    iam.create_role(
        RoleName="limited", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )
    groups = {name: group(aws, name, template(aws, name)) for name in names}
    allowed = [
        {"Effect": "Allow", "Action": ["s3:PutObject", "s3:DeleteObject"], "Resource": "arn:aws:s3:::limits/mine/*"},
        {"Effect": "Allow", "Action": "autoscaling:*", "Resource": groups["mine"]["AutoScalingGroupARN"]},
    ]
    iam.put_role_policy(
        RoleName="limited",
        PolicyName="p",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": allowed}),
    )
    aws.client("s3").create_bucket(Bucket="limits")
    with aws.permissions_enforced():
        credentials = aws.assume("limited", "i-0123")
        assert credentials["Expiration"].endswith("Z")
        s3, scaling = aws.client("s3", credentials), aws.client("autoscaling", credentials)
        s3.put_object(Bucket="limits", Key="mine/a", Body=b"x")
        assert refused(s3.put_object, Bucket="limits", Key="theirs/a", Body=b"x") == "AccessDenied"
        for key, errors in (("mine/a", []), ("theirs/a", ["AccessDenied"])):
            deleted = s3.delete_objects(Bucket="limits", Delete={"Objects": [{"Key": key}]})
            assert [error["Code"] for error in deleted.get("Errors", [])] == errors
        scaling.set_desired_capacity(AutoScalingGroupName="mine", DesiredCapacity=0)
        denied = refused(scaling.set_desired_capacity, AutoScalingGroupName="theirs", DesiredCapacity=0)
        assert denied == "AccessDenied"
        other = groups["theirs"]["Instances"][0]["InstanceId"]
        end = scaling.terminate_instance_in_auto_scaling_group
        assert refused(end, InstanceId=other, ShouldDecrementDesiredCapacity=False) == "AccessDenied"
        assert aws.client("s3").list_buckets()["Buckets"]
    aws.client("s3", credentials).put_object(Bucket="limits", Key="theirs/a", Body=b"x")
    assert not [entry for entry in aws.resources_left() if entry.startswith("user ")]


def test_a_listing_of_versions_leaves_the_bytes(aws: EmbeddedAws) -> None:
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="versions")
    s3.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    for body in (b"older", b"new"):
        s3.put_object(Bucket="versions", Key="k", Body=body)
    for _ in range(2):
        listed = s3.list_object_versions(Bucket="versions")["Versions"]
        assert [(version["Size"], version["IsLatest"]) for version in listed] == [(3, True), (5, False)]
    s3.put_object(Bucket="versions", Key="kept/k", Body=b"")
    s3.delete_object(Bucket="versions", Key="kept/k")
    below = s3.list_object_versions(Bucket="versions", Prefix="kept/")
    assert [found["Key"] for kind in ("Versions", "DeleteMarkers") for found in below[kind]] == ["kept/k", "kept/k"]
    bodies = [s3.get_object(Bucket="versions", Key="k", VersionId=v["VersionId"])["Body"].read() for v in listed]
    assert bodies == [b"new", b"older"]
