"""What a plan of Terraform asks AWS for.

Each resource and data source of a plan (``terraform show -json``) becomes the requests that the provider makes of it,
by the names of AWS's own models, which botocore carries. A type or an attribute that is not mapped here is a complaint:
nothing is sent unseen. ``aws_limits`` says what AWS would refuse of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

import botocore.session
from botocore.model import OperationModel, StructureShape


class _Unknown:
    """A value that only apply will know."""

    def __repr__(self) -> str:
        return "(known after apply)"


UNKNOWN = _Unknown()
UNSENT = ""
"""Of an attribute: it steers the provider or Terraform, and AWS never sees it."""


@dataclass(frozen=True)
class Complaint:
    """One thing that AWS would refuse."""

    kind: str
    """``type``, ``required``, ``length``, ``range``, ``pattern``, ``enum``, ``unmapped type``, ``unmapped attribute``,
    or a rule's name."""
    where: str
    said: str

    def __str__(self) -> str:
        return f"{self.where}: {self.said} ({self.kind})"


@dataclass(frozen=True)
class Kind:
    """How the provider makes requests of one type of resource.

    A target is a path into the operation's input, relative to ``base``; with a ``/`` before it, to the input itself,
    and with ``service:Operation/`` to another operation's. Attributes without a target have their member's own name.
    """

    operation: str
    base: str = ""
    targets: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """By the attribute's path, blocks joined with dots."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What the provider adds by itself."""
    unset: Mapping[str, Any] = field(default_factory=dict)
    """Values by which an attribute, by its path, says that it is not sent."""


_TAGGED = {"tags_all": "/TagSpecifications.Tags"}
_RULE = {"security_group_id": "/GroupId", "cidr_ipv4": "IpRanges.CidrIp", "cidr_ipv6": "Ipv6Ranges.CidrIpv6"}
_RULE_TAGS = {"/TagSpecifications.ResourceType": "security-group-rule"}
_BUCKET = {"bucket": "/Bucket"}

RESOURCES: dict[str, Kind] = {
    "aws_autoscaling_group": Kind(
        "autoscaling:CreateAutoScalingGroup",
        targets={
            "name": ("AutoScalingGroupName", "autoscaling:SuspendProcesses/AutoScalingGroupName"),
            "initial_lifecycle_hook": "LifecycleHookSpecificationList",
            "initial_lifecycle_hook.name": "LifecycleHookName",
            "protect_from_scale_in": "NewInstancesProtectedFromScaleIn",
            "suspended_processes": "autoscaling:SuspendProcesses/ScalingProcesses",
            **dict.fromkeys(
                (
                    "force_delete",
                    "force_delete_warm_pool",
                    "ignore_failed_scaling_activities",
                    "metrics_granularity",
                    "wait_for_capacity_timeout",
                ),
                UNSENT,
            ),
        },
    ),
    "aws_autoscaling_schedule": Kind(
        "autoscaling:PutScheduledUpdateGroupAction", unset={"min_size": -1, "max_size": -1, "desired_capacity": -1}
    ),
    "aws_cloudwatch_log_group": Kind(
        "logs:CreateLogGroup",
        targets={
            "name": ("logGroupName", "logs:PutRetentionPolicy/logGroupName"),
            "retention_in_days": "logs:PutRetentionPolicy/retentionInDays",
            "skip_destroy": UNSENT,
            "tags_all": "tags",
        },
    ),
    "aws_iam_instance_profile": Kind(
        "iam:CreateInstanceProfile",
        targets={
            "name": ("InstanceProfileName", "iam:AddRoleToInstanceProfile/InstanceProfileName"),
            "role": "iam:AddRoleToInstanceProfile/RoleName",
            "tags_all": "Tags",
        },
    ),
    "aws_iam_role": Kind(
        "iam:CreateRole",
        targets={
            "name": "RoleName",
            "assume_role_policy": "AssumeRolePolicyDocument",
            "force_detach_policies": UNSENT,
            "tags_all": "Tags",
        },
    ),
    "aws_iam_role_policy": Kind(
        "iam:PutRolePolicy", targets={"name": "PolicyName", "role": "RoleName", "policy": "PolicyDocument"}
    ),
    "aws_kms_grant": Kind("kms:CreateGrant", targets={"retire_on_delete": UNSENT}),
    "aws_launch_template": Kind(
        "ec2:CreateLaunchTemplate",
        base="LaunchTemplateData",
        targets={
            "name": "/LaunchTemplateName",
            "vpc_security_group_ids": "SecurityGroupIds",
            "update_default_version": UNSENT,
            **_TAGGED,
        },
        given={"/TagSpecifications.ResourceType": "launch-template"},
    ),
    "aws_s3_bucket": Kind(
        "s3:CreateBucket",
        targets={
            "bucket": ("Bucket", "s3:PutBucketTagging/Bucket"),
            "force_destroy": UNSENT,
            "tags_all": "s3:PutBucketTagging/Tagging.TagSet",
        },
    ),
    "aws_s3_bucket_lifecycle_configuration": Kind(
        "s3:PutBucketLifecycleConfiguration",
        base="LifecycleConfiguration",
        targets={
            **_BUCKET,
            "rule": "Rules",
            "transition_default_minimum_object_size": "/TransitionDefaultMinimumObjectSize",
        },
        unset={"rule.expiration.days": 0},
    ),
    "aws_s3_bucket_policy": Kind("s3:PutBucketPolicy"),
    "aws_s3_bucket_public_access_block": Kind(
        "s3:PutPublicAccessBlock", base="PublicAccessBlockConfiguration", targets=_BUCKET
    ),
    "aws_s3_bucket_server_side_encryption_configuration": Kind(
        "s3:PutBucketEncryption", base="ServerSideEncryptionConfiguration", targets=_BUCKET
    ),
    "aws_s3_bucket_versioning": Kind("s3:PutBucketVersioning"),
    "aws_s3_object": Kind(
        "s3:PutObject",
        targets={
            "source": "Body",
            "content": "Body",
            "source_hash": UNSENT,
            "force_destroy": UNSENT,
            "tags_all": "Tagging",
        },
    ),
    "aws_security_group": Kind(
        "ec2:CreateSecurityGroup",
        targets={"name": "GroupName", "revoke_rules_on_delete": UNSENT, **_TAGGED},
        given={"/TagSpecifications.ResourceType": "security-group"},
    ),
    "aws_sns_topic": Kind(
        "sns:CreateTopic",
        targets={
            "name_prefix": "Name",
            "kms_master_key_id": "Attributes.KmsMasterKeyId",
            "content_based_deduplication": UNSENT,
            "fifo_topic": UNSENT,
            "tags_all": "Tags",
        },
    ),
    "aws_sns_topic_subscription": Kind(
        "sns:Subscribe",
        targets={
            "raw_message_delivery": "Attributes.RawMessageDelivery",
            "confirmation_timeout_in_minutes": UNSENT,
            "endpoint_auto_confirms": UNSENT,
        },
    ),
    "aws_vpc_security_group_egress_rule": Kind(
        "ec2:AuthorizeSecurityGroupEgress", base="IpPermissions", targets={**_RULE, **_TAGGED}, given=_RULE_TAGS
    ),
    "aws_vpc_security_group_ingress_rule": Kind(
        "ec2:AuthorizeSecurityGroupIngress", base="IpPermissions", targets={**_RULE, **_TAGGED}, given=_RULE_TAGS
    ),
}
DATA: dict[str, Kind] = {
    "aws_ami": Kind("ec2:DescribeImages"),
    "aws_caller_identity": Kind("sts:GetCallerIdentity"),
    "aws_iam_role": Kind("iam:GetRole", targets={"name": "RoleName"}),
    "aws_s3_bucket": Kind("s3:HeadBucket"),
    "aws_ssm_parameter": Kind("ssm:GetParameter"),
    "aws_subnet": Kind("ec2:DescribeSubnets", targets={"id": "SubnetIds"}),
    "aws_subnets": Kind("ec2:DescribeSubnets"),
    "aws_vpc": Kind("ec2:DescribeVpcs", targets={"default": "Filters.Values"}, given={"/Filters.Name": "is-default"}),
}
#: Of the module for SageMaker, beside those.
OF_JOBS: dict[str, Kind] = {
    "aws_cloudwatch_event_rule": Kind(
        "events:PutRule", targets={"event_bus_name": "EventBusName", "force_destroy": UNSENT, "tags_all": "Tags"}
    ),
    "aws_cloudwatch_event_target": Kind(
        "events:PutTargets",
        base="Targets",
        targets={
            "rule": "/Rule",
            "event_bus_name": "/EventBusName",
            "target_id": "Id",
            "force_destroy": UNSENT,
            "input_transformer": "InputTransformer",
            "input_transformer.input_paths": "InputPathsMap",
        },
    ),
    "aws_ecr_lifecycle_policy": Kind(
        "ecr:PutLifecyclePolicy", targets={"repository": "repositoryName", "policy": "lifecyclePolicyText"}
    ),
    "aws_ecr_repository": Kind(
        "ecr:CreateRepository",
        targets={"name": "repositoryName", "force_delete": UNSENT, "tags_all": "tags"},
    ),
    "aws_sns_topic_policy": Kind(
        "sns:SetTopicAttributes",
        targets={"arn": "TopicArn", "policy": "AttributeValue"},
        given={"AttributeName": "Policy"},
    ),
}
ASK_NOTHING = {"aws_partition", "terraform_data"}
"""Answered without AWS."""
_NEVER_SENT = {"id", "tags", "timeouts"}
"""``tags`` are in ``tags_all``."""


# From a plan to requests.


@dataclass
class Request:
    """One call of AWS's API, by its own names."""

    address: str
    operation: str
    parameters: dict[str, Any] = field(default_factory=dict)


@lru_cache
def model(name: str) -> OperationModel:
    """botocore's own, of ``service:Operation``."""
    service, _, operation = name.partition(":")
    found: OperationModel = _service(service).operation_model(operation)
    return found


@lru_cache
def _service(name: str) -> Any:
    return botocore.session.Session().get_service_model(name)


def input_shape(operation: str) -> StructureShape | None:
    """Of ``service:Operation``; None: it takes nothing."""
    shape: StructureShape | None = model(operation).input_shape
    return shape


def requests(plan: Mapping[str, Any]) -> tuple[list[Request], list[Complaint]]:
    """The requests of a plan, and what of it could not be mapped."""
    configured = {
        _key(found): found.get("expressions", {}) for found in plan["configuration"]["root_module"].get("resources", ())
    }
    made: list[Request] = []
    lost: list[Complaint] = []
    for found, values in _resources(plan):
        kinds = DATA if found["mode"] == "data" else {**RESOURCES, **OF_JOBS}
        if found["type"] in ASK_NOTHING:
            continue
        kind = kinds.get(found["type"])
        if kind is None:
            lost.append(Complaint("unmapped type", found["address"], f"nothing is known of {found['type']}"))
            continue
        _Mapper(found["address"], kind, made, lost).map(_sent(values, configured.get(_key(found), {}), found))
    return made, lost


def _key(found: Mapping[str, Any]) -> tuple[str, str, str]:
    return found["mode"], found["type"], found["name"]


def _resources(plan: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each with its values, those that are not known yet as UNKNOWN."""
    for found in plan["resource_changes"]:
        change = found["change"]
        if change["actions"] != ["delete"]:
            known = _merged(change["after"], change["after_unknown"])
            yield {**found, "untouched": change["actions"] == ["no-op"]}, known
    for found in plan.get("prior_state", {}).get("values", {}).get("root_module", {}).get("resources", ()):
        if found["mode"] == "data":
            yield {**found, "untouched": True}, found["values"]


def _merged(after: Any, unknown: Any) -> Any:
    if unknown is True:
        return UNKNOWN
    if isinstance(unknown, dict):
        return {name: _merged((after or {}).get(name), unknown.get(name)) for name in {**unknown, **(after or {})}}
    if isinstance(unknown, list):
        have = list(after or ())
        more = [*unknown, *[None] * (len(have) - len(unknown))]
        return [_merged(have[n] if n < len(have) else None, entry) for n, entry in enumerate(more)]
    return after


def _sent(values: Mapping[str, Any], configured: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Without what AWS or the provider computes: unknown and not ours, or of a resource that exists already."""
    kept = {}
    for name, value in values.items():
        ours = configured.get(name)
        if ours is None and name != "tags_all" and (value is UNKNOWN or found["untouched"]):
            continue
        if isinstance(value, list) and value and all(isinstance(block, dict) for block in value):
            blocks = ours if isinstance(ours, list) else [ours] if isinstance(ours, dict) else []
            value = [
                _sent(block, blocks[min(n, len(blocks) - 1)] if blocks else {}, {"untouched": False})
                for n, block in enumerate(value)
            ]
        if value not in (None, "", [], {}) or (ours is not None and value == ""):
            kept[name] = value
    return kept


@dataclass
class _Mapper:
    address: str
    kind: Kind
    made: list[Request]
    lost: list[Complaint]

    def map(self, values: Mapping[str, Any]) -> None:
        self._request(self.kind.operation)
        values = {name: value for name, value in values.items() if self.kind.unset.get(name, self) != value}
        for name, value in values.items():
            if name in _NEVER_SENT and name not in self.kind.targets:
                continue
            if name == "name_prefix":
                value = f"{value}{'0' * 26}"  # as the provider makes a name of it
            if name == "description" and "IpPermissions" in self.kind.base:
                family = "IpRanges" if "cidr_ipv4" in values else "Ipv6Ranges"
                self._put(f"{family}.Description", name, value)
                continue
            targets = self.kind.targets.get(name)
            if targets is None:
                targets = self._member(self._shape(self.kind.operation, self.kind.base), name) or ()
                if not targets:
                    self._unmapped(name)
            for target in (targets,) if isinstance(targets, str) else targets:
                if target != UNSENT:
                    self._put(target, name, value)
        for target, value in self.kind.given.items():
            operation, path = self._absolute(target)
            if not target.startswith("/") or self._present(operation, path.partition(".")[0]):
                self._put(target, target, value)

    def _request(self, operation: str) -> Request:
        for request in self.made:
            if (request.address, request.operation) == (self.address, operation):
                return request
        self.made.append(Request(self.address, operation))
        return self.made[-1]

    def _absolute(self, target: str) -> tuple[str, str]:
        if target.startswith("/"):
            return self.kind.operation, target[1:]
        if "/" in target:
            operation, _, path = target.partition("/")
            return operation, path
        return self.kind.operation, ".".join(filter(None, (self.kind.base, target)))

    def _present(self, operation: str, member: str) -> bool:
        return member in self._request(operation).parameters

    def _put(self, target: str, name: str, value: Any) -> None:
        operation, path = self._absolute(target)
        at: Any = self._request(operation).parameters
        shape: Any = input_shape(operation)
        *parents, last = path.split(".")
        for parent in parents:
            shape = shape.members[parent]
            if shape.type_name == "list":
                entries = at.setdefault(parent, [{}])
                at, shape = entries[0], shape.member
            else:
                at = at.setdefault(parent, {})
        member = shape.value if shape.type_name == "map" else shape.members[last]
        at[last] = self._converted(member, name, value)

    def _shape(self, operation: str, path: str) -> Any:
        shape: Any = input_shape(operation)
        for parent in filter(None, path.split(".")):
            shape = shape.members[parent]
            shape = shape.member if shape.type_name == "list" else shape
        return shape

    @staticmethod
    def _member(shape: Any, attribute: str) -> str | None:
        """The member of this name, singular or plural, however AWS capitalises it."""
        if shape is None or shape.type_name != "structure":
            return None
        names = {name.lower(): name for name in shape.members}
        plain = attribute.replace("_", "")
        return names.get(plain) or names.get(f"{plain}s")

    def _unmapped(self, path: str) -> None:
        said = f"{self.kind.operation} has no member for this attribute"
        self.lost.append(Complaint("unmapped attribute", f"{self.address} {path}", said))

    def _converted(self, shape: Any, path: str, value: Any) -> Any:
        """As the provider would write it, where that is beyond doubt; else as it is."""
        kind, convert = shape.type_name, self._converted
        if value is UNKNOWN:
            return value
        if kind == "structure" and isinstance(value, list) and len(value) == 1:
            value = value[0]
        if kind == "structure" and isinstance(value, dict):
            return self._structure(shape, path, value)
        if kind == "list" and isinstance(value, dict):  # tags
            return [{"Key": key, "Value": text} for key, text in value.items()]
        if kind == "list":
            return [convert(shape.member, path, entry) for entry in (value if isinstance(value, list) else [value])]
        if kind == "map" and isinstance(value, dict):
            return {key: convert(shape.value, path, entry) for key, entry in value.items()}
        if kind == "string":
            return self._text(value)
        if kind == "boolean" and value in ("true", "false"):
            return value == "true"
        if kind in ("integer", "long") and isinstance(value, str) and re.fullmatch(r"-?\d+", value):
            return int(value)
        return value

    @staticmethod
    def _text(value: Any) -> Any:
        if isinstance(value, dict):
            return urlencode(value)
        if isinstance(value, list):
            return UNKNOWN if UNKNOWN in value else ",".join(value)
        return str(value).lower() if isinstance(value, bool) else value

    def _structure(self, shape: Any, path: str, value: Mapping[str, Any]) -> dict[str, Any]:
        made = {}
        for name, entry in value.items():
            below = f"{path}.{name}"
            if entry == self.kind.unset.get(below, self):
                continue
            target = self.kind.targets.get(below) or self._member(shape, name)
            if target is None:
                self._unmapped(below)
            elif entry not in (None, "", []):
                assert isinstance(target, str)
                made[target] = self._converted(shape.members[target], below, entry)
        return made
