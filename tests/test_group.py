"""Leaving, closing and opening the Auto Scaling group: against moto, and against AWS's own words for refusals."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from groups import AutoScaling, machines, make_group, scripted_autoscaling

from train_cloud.errors import CloudError, CloudForbidden, CloudUnavailable, StoreUnavailable
from train_cloud.platforms.ec2.api import until_it_holds
from train_cloud.platforms.ec2.group import RUN_TAG, TERMINATING_HOOK, Group, find_groups

NO_GROUP = "AutoScalingGroup name not found - AutoScalingGroup g not found"
NO_INSTANCE = "Instance Id not found - No managed instance found for instance ID: i-0abc"
NO_ACTION = "No active Lifecycle Action found with instance ID i-0abc"
BELOW_MIN = "New SetDesiredCapacity value 0 is below min value 1 for the AutoScalingGroup."
IN_PROGRESS = "Scaling activity 0ea5f0da is in progress and blocks this action"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[AutoScaling]:
    with scripted_autoscaling() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", server.url)
        yield server


@pytest.fixture
def group(aws_endpoint: str) -> str:
    """A group of one machine at moto's."""
    return make_group()


def test_the_capacity_goes_to_0_and_back(group: str) -> None:
    machine = Group(group)
    assert machine.capacity() == 1
    for _ in range(2):
        assert machine.set_capacity(0)
        assert machine.capacity() == 0
    assert machines(group) == []
    assert machine.set_capacity(1)
    assert len(machines(group)) == 1


@pytest.mark.parametrize(("decrement", "capacity"), [(True, 0), (False, 1)])
def test_a_machine_leaves_with_and_without_a_successor(group: str, decrement: bool, capacity: int) -> None:
    (first,) = machines(group)
    assert Group(group).terminate(first, decrement=decrement)
    assert Group(group).capacity() == capacity
    left = machines(group)
    assert first not in left and len(left) == capacity


def test_groups_are_found_by_tag(group: str) -> None:
    assert find_groups("train-cloud-run", group) == [group]
    assert find_groups("train-cloud-run", "nobody's") == []


def test_what_keeps_a_group_from_launching_is_named_and_resumed(group: str) -> None:
    assert Group(group).suspended() == {}
    client = boto3.client("autoscaling")
    client.suspend_processes(AutoScalingGroupName=group, ScalingProcesses=["Launch", "AZRebalance"])
    assert list(Group(group).suspended()) == ["Launch"]
    assert Group(group).resume(["Launch"]) and Group(group).suspended() == {}
    left = client.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"][0]
    assert [each["ProcessName"] for each in left["SuspendedProcesses"]] == ["AZRebalance"], "which is ours"


def test_a_group_that_does_not_exist_has_no_capacity(aws_endpoint: str) -> None:
    assert Group("no-such-group").capacity() is None


def test_what_is_sent(aws: AutoScaling) -> None:
    group = Group("g")
    assert group.set_capacity(0) and group.terminate("i-0abc", decrement=False)
    sent = [{k: v for k, v in call.items() if k != "Version"} for call in aws.calls]
    assert sent == [
        {
            "Action": "SetDesiredCapacity",
            "AutoScalingGroupName": "g",
            "DesiredCapacity": "0",
            "HonorCooldown": "false",
        },
        {
            "Action": "TerminateInstanceInAutoScalingGroup",
            "InstanceId": "i-0abc",
            "ShouldDecrementDesiredCapacity": "false",
        },
    ]


@pytest.mark.parametrize("message", [NO_GROUP, NO_INSTANCE])
def test_not_found_is_success(aws: AutoScaling, message: str) -> None:
    aws.script = [(400, "ValidationError", message)]
    if message is NO_GROUP:
        assert Group("g").set_capacity(0) is False
    else:
        assert Group("g").terminate("i-0abc", decrement=False) is False
    assert len(aws.calls) == 1


def test_the_terminating_hook_is_completed(aws: AutoScaling) -> None:
    assert Group("g").complete_termination("i-0abc")
    (sent,) = aws.calls
    assert sent["Action"] == "CompleteLifecycleAction"
    assert sent["AutoScalingGroupName"] == "g"
    assert sent["LifecycleHookName"] == TERMINATING_HOOK
    assert sent["LifecycleActionResult"] == "CONTINUE"
    assert sent["InstanceId"] == "i-0abc"


def test_hook_and_tag_have_the_names_that_terraform_gives_them() -> None:
    worker = (Path(__file__).parents[1] / "terraform" / "worker.tf").read_text()
    assert re.search(rf'^\s*key\s*=\s*"{RUN_TAG}"\n\s*value\s*=\s*each.key$', worker, re.MULTILINE)
    assert re.search(rf'^\s*hook\s*=\s*"{TERMINATING_HOOK}"$', worker, re.MULTILINE)


def test_a_hook_that_does_not_hold_the_machine_is_no_error(aws: AutoScaling) -> None:
    aws.script = [(400, "ValidationError", NO_ACTION)]
    assert Group("g").complete_termination("i-0abc") is False


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "AccessDenied", CloudForbidden),
        (403, "InvalidClientTokenId", CloudForbidden),
        (400, "Throttling", CloudUnavailable),
        (400, "ScalingActivityInProgress", CloudUnavailable),
        (503, "ServiceUnavailable", CloudUnavailable),
        (500, "InternalFailure", CloudUnavailable),
        (502, "", CloudUnavailable),
        (400, "ValidationError", CloudError),
    ],
)
def test_errors_have_types(aws: AutoScaling, status: int, code: str, error: type[CloudError]) -> None:
    aws.script = [(status, code, BELOW_MIN)] * 2  # botocore tries some of them a second time itself
    with pytest.raises(CloudError, match="below min value 1") as raised:
        Group("g").set_capacity(0)
    assert raised.type is error


def test_tries_again_until_it_holds(aws: AutoScaling) -> None:
    aws.script = [(400, "ScalingActivityInProgress", IN_PROGRESS), (403, "AccessDenied", "not yet propagated")]
    assert Group("g", retry_timeout_s=20).set_capacity(0)
    assert len(aws.calls) == 3


def test_the_retry_timeout_ends(aws: AutoScaling) -> None:
    aws.script = [(403, "AccessDenied", "never")] * 9
    began = time.monotonic()
    with pytest.raises(CloudForbidden):
        Group("g", retry_timeout_s=2).set_capacity(0)
    assert 0.9 < time.monotonic() - began < 4
    assert len(aws.calls) == 2


def test_what_no_retry_can_mend_is_not_retried(aws: AutoScaling) -> None:
    aws.script = [(400, "ValidationError", BELOW_MIN)]
    with pytest.raises(CloudError, match="below min value 1"):
        Group("g", retry_timeout_s=None).set_capacity(0)
    assert len(aws.calls) == 1


def test_nobody_there_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", "http://127.0.0.1:9")
    with pytest.raises(CloudUnavailable):
        Group("g").set_capacity(0)


def test_no_credentials_is_forbidden(aws: AutoScaling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CloudForbidden, match="credentials"):
        Group("g").set_capacity(0)


def test_no_region_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises(CloudError, match="region"):
        Group("g")


def test_waits_double_up_to_a_limit() -> None:
    times: list[float] = []

    def act() -> str:
        times.append(time.monotonic())
        if len(times) < 6:
            raise StoreUnavailable("not now")
        return "held"

    held = until_it_holds(
        act, retry_timeout_s=None, retry_on=(StoreUnavailable,), first_wait_s=0.05, longest_wait_s=0.2
    )
    assert held == "held"
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert all(wait >= least for wait, least in zip(waits, [0.05, 0.1, 0.2, 0.2, 0.2], strict=True)), waits
    assert max(waits) < 0.8, "they double without a limit"
