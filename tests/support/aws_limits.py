"""What AWS would refuse of a plan of Terraform.

The requests of a plan (``aws_requests``) are held against AWS's own models, which botocore carries (types, required
members, lengths, ranges, patterns, enumerations), and against what only AWS's documentation says (:data:`RULES`).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from aws_requests import UNKNOWN, Complaint, Request, input_shape, requests

# What AWS's own models say.


def _model_complaints(shape: Any, path: str, value: Any) -> Iterator[Complaint]:
    if value is UNKNOWN:
        return
    types: dict[str, Any] = {
        "structure": (dict,),
        "map": (dict,),
        "list": (list,),
        "string": (str,),
        "blob": (str, bytes),
        "boolean": (bool,),
        "integer": (int,),
        "long": (int,),
        "float": (int, float),
        "double": (int, float),
        "timestamp": (str,),
    }
    name = shape.type_name
    if not isinstance(value, types[name]) or (isinstance(value, bool) and name != "boolean"):
        yield Complaint("type", path, f"{value!r} is no {name}")
        return
    yield from _limits(shape, path, value)
    if name == "structure":
        for member in shape.metadata.get("required", ()):
            if member not in value:
                yield Complaint("required", f"{path}.{member}", "is missing")
        for member, entry in value.items():
            yield from _model_complaints(shape.members[member], f"{path}.{member}", entry)
    elif name == "list":
        for entry in value:
            yield from _model_complaints(shape.member, path, entry)
    elif name == "map":
        for key, entry in value.items():
            yield from _model_complaints(shape.key, f"{path}.key", key)
            yield from _model_complaints(shape.value, f"{path}.{key}", entry)


def _limits(shape: Any, path: str, value: Any) -> Iterator[Complaint]:
    limits, name = shape.metadata, shape.type_name
    measured, kind = (value, "range") if name in ("integer", "long", "float", "double") else (None, "length")
    if name in ("string", "list", "map", "blob"):
        measured = len(value)
    if measured is not None and not limits.get("min", measured) <= measured <= limits.get("max", measured):
        allowed = f"{limits.get('min', '')}..{limits.get('max', '')}"
        yield Complaint(kind, path, f"{_short(value)}: {measured} is not within {allowed}")
    if name == "string" and limits.get("pattern") and not _matches(limits["pattern"], value):
        yield Complaint("pattern", path, f"{_short(value)} does not match {limits['pattern']}")
    if name == "string" and limits.get("enum") and value not in limits["enum"]:
        yield Complaint("enum", path, f"{_short(value)} is none of the {len(limits['enum'])} that AWS knows")
    if name == "timestamp":
        try:
            datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            yield Complaint("type", path, f"{_short(value)} is no time")


def _matches(pattern: str, value: str) -> bool:
    """The models' patterns are Java's: it has names for classes of characters, and writes what is above the first plane
    as surrogate pairs."""
    plain = pattern.replace(r"\uD800\uDC00-\uDBFF\uDFFF", "\U00010000-\U0010ffff")
    return re.fullmatch(re.sub(r"\\p\{(\w+)\}", lambda name: _CLASSES[name[1]], plain), value) is not None


_CLASSES = {"L": r"\w", "N": r"\w", "Z": r"\s", "IsLetter": r"\w"}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


# What only AWS's documentation says.


@dataclass(frozen=True)
class Rule:
    """One documented limit.

    :param where: which values it is for: ``service:Operation`` and the path of members, without the places in lists
    :param holds: of one such value
    """

    name: str
    where: str
    holds: Callable[[Any], bool]
    source: str
    """Title of the page in AWS's documentation."""


def _only(pattern: str) -> Callable[[Any], bool]:
    return lambda value: re.fullmatch(pattern, str(value)) is not None


def _between(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: least <= value <= most


def _one_of(*values: object) -> Callable[[Any], bool]:
    return lambda value: value in values


def _network(family: type[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        try:
            return str(family(value)) == str(value)
        except ValueError:
            return False

    return holds


def _user_data(value: Any) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) <= 16384
    except (ValueError, binascii.Error):
        return False


def _volume(ebs: Any) -> bool:
    if ebs.get("VolumeType") != "gp3" or UNKNOWN in ebs.values():
        return True
    size, iops, throughput = ebs["VolumeSize"], ebs["Iops"], ebs["Throughput"]
    return bool(
        1 <= size <= 16384
        and 3000 <= iops <= min(16000, max(3000, 500 * size))
        and 125 <= throughput <= min(1000, 0.25 * iops)
    )


def _ports(permission: Any) -> bool:
    if permission.get("IpProtocol") == "-1":
        return not {"FromPort", "ToPort"} & set(permission)
    low, high = permission.get("FromPort", -1), permission.get("ToPort", -1)
    return bool(permission.get("IpProtocol") in ("tcp", "udp") and 0 <= low <= high <= 65535)


def _sizes(group: Any) -> bool:
    return bool(0 <= group["MinSize"] <= group.get("DesiredCapacity", group["MinSize"]) <= group["MaxSize"])


def _encryption(default: Any) -> bool:
    return bool(default.get("SSEAlgorithm") == "aws:kms") is bool(default.get("KMSMasterKeyID"))


def _expiration(rule: Any) -> bool:
    return not (rule.get("ExpiredObjectDeleteMarker") and {"Days", "Date"} & set(rule))


def _lists_of_tags(tags: Any) -> bool:
    keys = [str(tag["Key"]) for tag in tags]
    return len(keys) <= 50 and len(set(keys)) == len(keys)


def _object_tags(header: Any) -> bool:
    tags = parse_qsl(header, keep_blank_values=True)
    return len(tags) <= 10 and all(_tag_key(key) and _tag_value(value) for key, value in tags)


def _tag_map(tags: Any) -> bool:
    return all(_tag_key(key) and _tag_value(value) for key, value in tags.items())


def _tag_key(value: Any) -> bool:
    return bool(re.fullmatch(r"[\w\s+\-=.:/@]{1,128}", value) and not value.lower().startswith("aws:"))


_tag_value = _only(r"[\w\s+\-=.:/@]{0,256}")


def _bucket_name(value: Any) -> bool:
    return bool(
        re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", value)
        and ".." not in value
        and not re.fullmatch(r"(\d+\.){3}\d+", value)
        and not value.startswith(("xn--", "sthree-", "amzn-s3-demo-"))
        and not value.endswith(("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"))
    )


def _instance_type(value: Any) -> bool:
    shape = input_shape("ec2:RunInstances")
    return shape is not None and value in shape.members["InstanceType"].metadata["enum"]


def _cron(value: Any) -> bool:
    ranges = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    fields = value.split(" ")
    return len(fields) == 5 and all(
        entry == "*" or (entry.isdigit() and low <= int(entry) <= high)
        for entry, (low, high) in zip(fields, ranges, strict=True)
    )


# Of a policy: its text, then what stands in it.

_STATEMENT = {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
_OPERATORS = {"Bool", "StringEquals", "StringLike", "StringNotEquals", "ArnEquals", "ArnLike", "NumericEquals"}


def _policy(*, principal: bool, most: int) -> Callable[[Any], bool]:
    def holds(text: Any) -> bool:
        try:
            policy = json.loads(text)
        except ValueError:
            return False
        statements = policy.get("Statement")
        if policy.get("Version") != "2012-10-17" or not isinstance(statements, list) or not statements:
            return False
        names = [statement["Sid"] for statement in statements if "Sid" in statement]
        return (
            len(re.sub(r"\s", "", text)) <= most
            and len(set(names)) == len(names)
            and set(policy) <= {"Version", "Statement", "Id"}
            and all(_statement(statement, principal) for statement in statements)
        )

    return holds


def _statement(statement: Mapping[str, Any], principal: bool) -> bool:
    trusts = "Resource" not in statement
    return (
        set(statement) <= _STATEMENT
        and statement.get("Effect") in ("Allow", "Deny")
        and re.fullmatch(r"[A-Za-z0-9]*", statement.get("Sid", "")) is not None
        and ("Principal" in statement) is principal
        and all(re.fullmatch(r"[a-z0-9-]+:(\*|[A-Za-z]+\*?)", action) for action in as_list(statement.get("Action")))
        and bool(as_list(statement.get("Action")))
        and (trusts is (as_list(statement.get("Action")) == ["sts:AssumeRole"]))
        and all(_resource(resource) for resource in as_list(statement.get("Resource")))
        and set(statement.get("Condition", {})) <= _OPERATORS
    )


def _resource(resource: Any) -> bool:
    return resource == "*" or re.fullmatch(r"arn:aws[a-z-]*:[a-z0-9-]+:[a-z0-9-]*:(\d{12})?:\S+", resource) is not None


def as_list(value: Any) -> list[Any]:
    """Of an entry of a policy that may be one or several."""
    return [] if value is None else value if isinstance(value, list) else [value]


_TEXT = r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{%d,255}"
_ANY_TAGS = r"(ec2|iam|sns|s3|autoscaling):\w+\.([\w.]+\.)?(Tags|TagSet)"
_PROCESSES = (
    *("Launch", "Terminate", "AddToLoadBalancer", "AlarmNotification", "AZRebalance"),
    *("HealthCheck", "InstanceRefresh", "ReplaceUnhealthy", "ScheduledActions"),
)
_RETENTION = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653)
_TRANSITIONS = ("autoscaling:EC2_INSTANCE_LAUNCHING", "autoscaling:EC2_INSTANCE_TERMINATING")
_SPOT = ("lowest-price", "diversified", "capacity-optimized", "capacity-optimized-prioritized")

RULES: tuple[Rule, ...] = (
    Rule(
        "security group text",
        r"ec2:CreateSecurityGroup\.(GroupName|Description)",
        _only(_TEXT % 1),
        "CreateSecurityGroup",
    ),
    Rule(
        "security group name",
        r"ec2:CreateSecurityGroup\.GroupName",
        lambda name: not name.startswith("sg-"),
        "CreateSecurityGroup",
    ),
    Rule("rule text", r"ec2:AuthorizeSecurityGroup\w+\..*\.Description", _only(_TEXT % 0), "IpRange"),
    Rule("IPv4 network", r"ec2:.*\.CidrIp", _network(ipaddress.IPv4Network), "IpRange"),
    Rule("IPv6 network", r"ec2:.*\.CidrIpv6", _network(ipaddress.IPv6Network), "Ipv6Range"),
    Rule("ports", r"ec2:AuthorizeSecurityGroup\w+\.IpPermissions", _ports, "IpPermission"),
    Rule(
        "launch template name",
        r"ec2:CreateLaunchTemplate\.LaunchTemplateName",
        _only(r"[a-zA-Z0-9().\-/_]{3,128}"),
        "CreateLaunchTemplate",
    ),
    Rule(
        "user data",
        r"ec2:.*\.UserData",
        _user_data,
        "Run commands when you launch an EC2 instance with user data input",
    ),
    Rule("image", r"ec2:.*\.ImageId", _only(r"ami-([0-9a-f]{8}|[0-9a-f]{17})"), "RequestLaunchTemplateData"),
    Rule("key pair", r"ec2:.*\.KeyName", _only(r"[!-~]{1,255}"), "CreateKeyPair"),
    Rule("volume", r"ec2:.*\.BlockDeviceMappings\.Ebs", _volume, "Amazon EBS General Purpose SSD volumes"),
    Rule(
        "device",
        r"ec2:.*\.BlockDeviceMappings\.DeviceName",
        _only(r"/dev/(sd|xvd|nvme)[a-z0-9]+"),
        "Device names for volumes on Amazon EC2 instances",
    ),
    Rule(
        "key's ARN",
        r"(ec2|s3|kms):.*\.(KmsKeyId|KMSMasterKeyID|KeyId)",
        _only(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[0-9a-zA-Z-]+"),
        "Find the key ID and key ARN",
    ),
    Rule("hop limit", r"ec2:.*\.HttpPutResponseHopLimit", _between(1, 64), "InstanceMetadataOptionsRequest"),
    Rule(
        "spot in the template",
        r"ec2:CreateLaunchTemplate\.LaunchTemplateData",
        lambda data: "InstanceMarketOptions" not in data,
        "Setup overview for creating a mixed instances group",
    ),
    Rule("instance type", r"autoscaling:.*\.Overrides\.InstanceType", _instance_type, "Amazon EC2 instance types"),
    Rule(
        "overrides",
        r"autoscaling:.*\.Overrides\[\]",
        lambda overrides: 1 <= len(overrides) <= 40,
        "Quotas for Auto Scaling resources and groups",
    ),
    Rule("group name", r"autoscaling:.*\.AutoScalingGroupName", lambda name: ":" not in name, "CreateAutoScalingGroup"),
    Rule(
        "group sizes", r"autoscaling:CreateAutoScalingGroup", _sizes, "Set scaling limits for your Auto Scaling group"
    ),
    Rule(
        "subnets",
        r"autoscaling:.*\.VPCZoneIdentifier",
        _only(r"subnet-[0-9a-f]+(,subnet-[0-9a-f]+)*"),
        "CreateAutoScalingGroup",
    ),
    Rule(
        "spot allocation strategy",
        r"autoscaling:.*\.SpotAllocationStrategy",
        _one_of(*_SPOT, "price-capacity-optimized"),
        "InstancesDistribution",
    ),
    Rule(
        "on-demand share",
        r"autoscaling:.*\.OnDemandPercentageAboveBaseCapacity",
        _between(0, 100),
        "InstancesDistribution",
    ),
    Rule(
        "processes",
        r"autoscaling:.*\.ScalingProcesses",
        _one_of(*_PROCESSES),
        "Suspend and resume Amazon EC2 Auto Scaling processes",
    ),
    Rule("hook timeout", r"autoscaling:.*\.HeartbeatTimeout", _between(30, 7200), "PutLifecycleHook"),
    Rule("hook transition", r"autoscaling:.*\.LifecycleTransition", _one_of(*_TRANSITIONS), "PutLifecycleHook"),
    Rule("hook result", r"autoscaling:.*\.DefaultResult", _one_of("CONTINUE", "ABANDON"), "PutLifecycleHook"),
    Rule("recurrence", r"autoscaling:.*\.Recurrence", _cron, "Scheduled scaling for Amazon EC2 Auto Scaling"),
    Rule(
        "trust policy",
        r"iam:CreateRole\.AssumeRolePolicyDocument",
        _policy(principal=True, most=2048),
        "IAM and AWS STS quotas",
    ),
    Rule(
        "role policy",
        r"iam:PutRolePolicy\.PolicyDocument",
        _policy(principal=False, most=10240),
        "IAM and AWS STS quotas",
    ),
    Rule(
        "bucket policy",
        r"s3:PutBucketPolicy\.Policy",
        _policy(principal=True, most=20480),
        "Bucket policies for Amazon S3",
    ),
    Rule("bucket name", r"s3:.*\.Bucket", _bucket_name, "General purpose bucket naming rules"),
    Rule("object key", r"s3:PutObject\.Key", lambda key: len(key.encode()) <= 1024, "Naming Amazon S3 objects"),
    Rule("header", r"s3:PutObject\.ContentType", _only(r"[\x20-\x7e]+"), "PutObject"),
    Rule("object tags", r"s3:PutObject\.Tagging", _object_tags, "Categorizing your objects using tags"),
    Rule("encryption", r"s3:.*\.ApplyServerSideEncryptionByDefault", _encryption, "ServerSideEncryptionByDefault"),
    Rule(
        "lifecycle days",
        r"s3:.*\.(Days|NoncurrentDays|DaysAfterInitiation)",
        lambda days: days >= 1,
        "Lifecycle configuration elements",
    ),
    Rule("lifecycle id", r"s3:.*\.Rules\.ID", lambda name: len(name) <= 255, "LifecycleRule"),
    Rule("lifecycle expiration", r"s3:.*\.Rules\.Expiration", _expiration, "LifecycleExpiration"),
    Rule("topic name", r"sns:CreateTopic\.Name", _only(r"[A-Za-z0-9_-]{1,256}"), "CreateTopic"),
    Rule(
        "subscription",
        r"sns:Subscribe\.Protocol",
        _one_of("email", "email-json", "http", "https", "lambda", "sms", "sqs"),
        "Subscribe",
    ),
    Rule("e-mail address", r"sns:Subscribe\.Endpoint", _only(r"[^@\s]+@[^@\s]+\.[^@\s]+"), "Subscribe"),
    Rule("retention", r"logs:PutRetentionPolicy\.retentionInDays", _one_of(*_RETENTION), "PutRetentionPolicy"),
    Rule("parameter name", r"ssm:GetParameter\.Name", _only(r"[a-zA-Z0-9_.\-/:]{1,2048}"), "GetParameter"),
    Rule("tag key", rf"{_ANY_TAGS}\.Key", _tag_key, "Tag your Amazon EC2 resources"),
    Rule("tag value", rf"{_ANY_TAGS}\.Value", _tag_value, "Tag your Amazon EC2 resources"),
    Rule("tags", rf"{_ANY_TAGS}\[\]", _lists_of_tags, "Tag your Amazon EC2 resources"),
    Rule("tag map", r"logs:CreateLogGroup\.tags", _tag_map, "CreateLogGroup"),
)
ACROSS = "inline policies of a role"
"""10,240 characters in all, white space not counted ("IAM and AWS STS quotas")."""


def _values(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each value with its path; a list itself has ``[]`` at its end, its entries have not."""
    if isinstance(value, list):
        yield f"{path}[]", value
        for entry in value:
            yield from _values(path, entry)
        return
    yield path, value
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _values(f"{path}.{name}", entry)


def _documented(request: Request) -> Iterator[Complaint]:
    for path, value in _values(request.operation, request.parameters):
        if value is UNKNOWN or (isinstance(value, list) and UNKNOWN in value):
            continue
        for rule in RULES:
            if re.fullmatch(rule.where, path) and not rule.holds(value):
                yield Complaint(rule.name, f"{request.address} {path}", f"{_short(value)}: see AWS's “{rule.source}”")


def _of_roles(made: Sequence[Request]) -> Iterator[Complaint]:
    sizes: Counter[str] = Counter()
    for request in made:
        policy = request.parameters.get("PolicyDocument")
        if request.operation == "iam:PutRolePolicy" and isinstance(policy, str):
            sizes[str(request.parameters.get("RoleName"))] += len(re.sub(r"\s", "", policy))
    for role, size in sizes.items():
        if size > 10240:
            yield Complaint(ACROSS, role, f"{size} characters; IAM takes 10240")


def complaints(plan: Mapping[str, Any]) -> list[Complaint]:
    """All that AWS would refuse of a plan, as far as the plan knows its values."""
    made, found = requests(plan)
    for request in made:
        shape = input_shape(request.operation)
        refused = list(_model_complaints(shape, request.operation, request.parameters)) if shape is not None else []
        found += [Complaint(entry.kind, f"{request.address} {entry.where}", entry.said) for entry in refused]
        if not any(entry.kind in ("type", "required") for entry in refused):
            found += _documented(request)
    return [*found, *_of_roles(made)]
