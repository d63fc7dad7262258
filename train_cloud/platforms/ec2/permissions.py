"""What `terraform apply` and its outputs do with an account, and whether the credentials here may.

The actions were recorded from Terraform's AWS provider, with every option of ``terraform/`` on and off; a test applies
the module with exactly these. What AWS checks besides the calls themselves (``iam:PassRole``, ``ec2:RunInstances`` for
a group with a launch template, tags) stands in "Launch template support" (Amazon EC2 Auto Scaling User Guide) and
"Grant permission to tag Amazon EC2 resources during creation" (Amazon EC2 User Guide).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train_cloud.errors import CloudError
from train_cloud.platforms.ec2.api import call

#: Names in one request; the simulator's answers come in pages.
_AT_ONCE = 60
_ANY = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Need:
    """Actions on resources of one kind."""

    purpose: str
    """``apply``; or, where Terraform does without, what they are for."""
    resources: tuple[str, ...]
    """ARNs like those that there will be."""
    actions: tuple[str, ...]


def needs(*, account: str, region: str, partition: str = "aws", project: str = "train-cloud") -> list[Need]:
    """For a run of the id ``a-run``.

    :param account: its number
    :param project: ``project_name`` in terraform.tfvars
    """

    def arn(service: str, resource: str, where: str = region, owner: str = account) -> str:
        return f"arn:{partition}:{service}:{where}:{owner}:{resource}"

    name = f"{project}-a-run-{region}"
    bucket = f"arn:{partition}:s3:::{project}-{account}-{region}"
    group = arn("autoscaling", f"autoScalingGroup:{_ANY}:autoScalingGroupName/{project}-a-run")
    logs = arn("logs", f"log-group:/{project}-a-run:log-stream:")
    return [
        Need("apply", ("*",), _named("ec2", _EC2)),
        Need("apply", ("*",), _named("autoscaling", _LOOK_AT_GROUPS)),
        Need("apply", (group,), _named("autoscaling", _GROUP)),
        Need("apply", (arn("iam", f"role/{name}", ""),), _named("iam", _ROLE)),
        Need("apply", (arn("iam", f"instance-profile/{name}", ""),), _named("iam", _PROFILE)),
        Need(
            "apply",
            (arn("iam", "role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling", ""),),
            _named("iam", "CreateServiceLinkedRole"),
        ),
        Need("apply", (bucket,), _named("s3", _BUCKET)),
        Need("apply", (f"{bucket}/runs/a-run/run.yaml",), _named("s3", _OBJECT)),
        Need("apply", (arn("ssm", "parameter/aws/service/deeplearning/ami", owner=""),), _named("ssm", "GetParameter")),
        Need("relaunch", (group,), _named("autoscaling", "ResumeProcesses SetDesiredCapacity")),
        Need("session_command", (arn("ec2", "instance/i-00000000000000000"),), _named("ssm", "StartSession")),
        Need("notification_emails", (arn("sns", f"{project}-2026"),), _named("sns", _TOPIC)),
        Need("cloudwatch_log_days", (logs,), _named("logs", _LOG_GROUP)),
        Need("kms_key_arn", (arn("kms", f"key/{_ANY}"),), _named("kms", "CreateGrant ListGrants RevokeGrant")),
    ]


def missing(iam: Any, principal: str, wanted: Sequence[Need], *, region: str) -> Iterator[tuple[Need, list[str]]]:
    """Each need of which something is not allowed, with the actions.

    :param iam: a client
    :param principal: ARN of the user or role that will run Terraform
    :raises CloudForbidden: these credentials may not simulate
    :raises CloudError: the simulation cannot be had
    """
    context = [{"ContextKeyName": "aws:RequestedRegion", "ContextKeyType": "string", "ContextKeyValues": [region]}]
    for need in wanted:
        refused = []
        for first in range(0, len(need.actions), _AT_ONCE):
            asked: dict[str, Any] = {
                "PolicySourceArn": principal,
                "ActionNames": list(need.actions[first : first + _AT_ONCE]),
                "ResourceArns": list(need.resources),
                "ContextEntries": context,
            }
            refused += [each["EvalActionName"] for each in _results(iam, asked) if each["EvalDecision"] != "allowed"]
        if refused:
            yield need, refused


def principal_of(iam: Any, caller: str) -> str | None:
    """The ARN that policies are attached to, for the ARN that STS gives; None for an account's root user, who may all.

    :raises CloudError: the role's path cannot be found out, or it is none that policies are attached to
    """
    found = re.fullmatch(r"arn:(?P<partition>[\w-]+):(?:iam|sts)::(?P<account>\d+):(?P<rest>.+)", caller)
    if found is None:
        raise CloudError(f"{caller} is no principal of an account")
    if found["rest"] == "root":
        return None
    if found["rest"].startswith("user/"):
        return caller
    if not found["rest"].startswith("assumed-role/"):
        raise CloudError(f"{caller} is no user and no role")
    role = found["rest"].split("/")[1]
    # The session's ARN lacks the role's path, as of all roles of IAM Identity Center.
    told: Any = call(iam, "get_role", RoleName=role)
    if told is None:
        raise CloudError(f"the role {role} is not there")
    return str(told["Role"]["Arn"])


def _results(iam: Any, asked: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    marker: dict[str, str] = {}
    while True:
        answer = call(iam, "simulate_principal_policy", **asked, **marker)
        if answer is None:
            raise CloudError(f"{asked['PolicySourceArn']} is not there")
        yield from answer.get("EvaluationResults", [])
        if not answer.get("IsTruncated"):
            return
        marker = {"Marker": answer["Marker"]}


def _named(service: str, names: str) -> tuple[str, ...]:
    return tuple(f"{service}:{name}" for name in names.split())


_EC2 = """
    AuthorizeSecurityGroupEgress AuthorizeSecurityGroupIngress CreateLaunchTemplate CreateLaunchTemplateVersion
    CreateSecurityGroup CreateTags DeleteLaunchTemplate DeleteSecurityGroup DescribeImages DescribeInstances
    DescribeLaunchTemplateVersions DescribeLaunchTemplates DescribeNetworkInterfaces DescribeRouteTables
    DescribeSecurityGroupRules DescribeSecurityGroups DescribeSubnets DescribeVpcAttribute DescribeVpcs
    ModifyLaunchTemplate RevokeSecurityGroupEgress RevokeSecurityGroupIngress RunInstances
"""
_LOOK_AT_GROUPS = "DescribeAutoScalingGroups DescribeScalingActivities DescribeScheduledActions"
_GROUP = """
    CreateAutoScalingGroup CreateOrUpdateTags DeleteAutoScalingGroup DeleteScheduledAction PutLifecycleHook
    PutScheduledUpdateGroupAction SuspendProcesses UpdateAutoScalingGroup
"""
_ROLE = """
    CreateRole DeleteRole DeleteRolePolicy GetRole GetRolePolicy ListAttachedRolePolicies ListInstanceProfilesForRole
    ListRolePolicies PassRole PutRolePolicy TagRole
"""
_PROFILE = """
    AddRoleToInstanceProfile CreateInstanceProfile DeleteInstanceProfile GetInstanceProfile
    RemoveRoleFromInstanceProfile TagInstanceProfile
"""
_BUCKET = """
    CreateBucket DeleteBucket DeleteBucketPolicy GetAccelerateConfiguration GetBucketAcl GetBucketCORS GetBucketLogging
    GetBucketObjectLockConfiguration GetBucketPolicy GetBucketPublicAccessBlock GetBucketRequestPayment
    GetBucketTagging GetBucketVersioning GetBucketWebsite GetEncryptionConfiguration GetLifecycleConfiguration
    GetReplicationConfiguration ListBucket ListBucketVersions PutBucketPolicy PutBucketPublicAccessBlock
    PutBucketTagging PutBucketVersioning PutEncryptionConfiguration PutLifecycleConfiguration
"""
_OBJECT = "DeleteObject DeleteObjectVersion GetObject GetObjectTagging PutObject PutObjectTagging"
_TOPIC = """
    CreateTopic DeleteTopic GetSubscriptionAttributes GetTopicAttributes ListTagsForResource SetTopicAttributes
    Subscribe TagResource Unsubscribe
"""
_LOG_GROUP = "CreateLogGroup DeleteLogGroup DescribeLogGroups ListTagsForResource PutRetentionPolicy TagResource"
