"""Day one: whether an AWS account can start a worker, asked point by point. Changes nothing.

Sources: "EC2 Spot Instance quotas" (Amazon EC2 User Guide) for the quotas' names, "Service Quotas API Reference",
"Parameter Store public parameters" (Deep Learning AMI Developer Guide).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from train_cloud.errors import CloudError, CloudForbidden
from train_cloud.instance.api import call, client, region_name

IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
INSTANCE_TYPES = ("g6.xlarge", "g5.xlarge", "g4dn.xlarge")
"""What ``terraform/variables.tf`` asks for by default."""

_QUOTAS = (
    # Which types it covers, its code and its name. In vCPUs.
    (re.compile(r"(g|gr|vt)\d"), "L-3819A6DF", "All G and VT Spot Instance Requests"),
    (re.compile(r"p[2-4]"), "L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    (re.compile(r"(a|c|d|h|i|im|is|m|r|t|z)\d"), "L-34B43A08", "All Standard Spot Instance Requests"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    verdict: Literal["ok", "warn", "fail"]
    said: str
    fix: str = ""
    """What to do about it, as a command or a clause; empty where nothing is to be done."""


def examine(
    *, region: str | None = None, types: Sequence[str] = INSTANCE_TYPES, key_pair: str | None = None
) -> Iterator[Finding]:
    """One finding after the other, as each is known. Without credentials and a region there is nothing more to ask.

    :param region: default: the SDK's own
    :param types: instance types that are wanted, best first
    :param key_pair: name of the key pair for SSH, if one is wanted
    """
    region = region or region_name()
    if region is None:
        yield Finding("region", "fail", "none is set", "export AWS_REGION=us-east-1, say, or give --region")
        return
    try:
        caller = call(client("sts", region), "get_caller_identity") or {}
    except CloudError as error:
        fix = "run `aws configure`, or `aws sso login` and set AWS_PROFILE, until `aws sts get-caller-identity` answers"
        yield Finding("credentials", "fail", str(error), fix)
        return
    yield Finding("credentials", "ok", f"account {caller['Account']} as {caller['Arn']}")
    yield Finding("region", "ok", region)
    ec2 = client("ec2", region)
    vcpus: dict[str, int] = {}
    yield from _types(ec2, types, region, vcpus)
    yield from _quotas(client("service-quotas", region), types, region, vcpus)
    yield _default_vpc(ec2, region)
    yield _key_pair(ec2, key_pair, region)
    yield _image(client("ssm", region), region)


def _ask(subject: str, question: Callable[[], Any]) -> Any:
    """The answer, or a finding that there was none."""
    try:
        return question()
    except CloudForbidden as error:
        return Finding(subject, "warn", f"could not be checked, these credentials may not: {error}")
    except CloudError as error:
        return Finding(subject, "warn", f"could not be checked: {error}")


def _types(ec2: Any, types: Sequence[str], region: str, vcpus: dict[str, int]) -> Iterator[Finding]:
    """Where each type is offered; fills ``vcpus`` for those that are."""
    named = {"Filters": [{"Name": "instance-type", "Values": list(types)}]}
    answer = _ask(
        "types", lambda: call(ec2, "describe_instance_type_offerings", LocationType="availability-zone", **named)
    )
    if isinstance(answer, Finding):
        yield answer
        return
    zones: dict[str, list[str]] = {}
    for offer in answer["InstanceTypeOfferings"]:
        zones.setdefault(offer["InstanceType"], []).append(offer["Location"])
    known = _ask("types", lambda: call(ec2, "describe_instance_types", **named))
    if not isinstance(known, Finding):
        vcpus.update({found["InstanceType"]: found["VCpuInfo"]["DefaultVCpus"] for found in known["InstanceTypes"]})
    for wanted in types:
        where = ", ".join(sorted(zones.get(wanted, [])))
        if where:
            yield Finding("types", "ok", f"{wanted} in {where}")
        else:
            fix = "leave it out of instance_types, or choose another region"
            yield Finding("types", "warn" if zones else "fail", f"{wanted} is not offered in {region}", fix)


def _quotas(quotas: Any, types: Sequence[str], region: str, vcpus: dict[str, int]) -> Iterator[Finding]:
    """Of every family that is wanted: new accounts have 0."""
    unknown = list(types)
    for covers, code, name in _QUOTAS:
        wanted = [kind for kind in types if covers.match(kind)]
        unknown = [kind for kind in unknown if kind not in wanted]
        if wanted:
            need = min((vcpus[kind] for kind in wanted if kind in vcpus), default=4)
            yield _quota(quotas, code, name, need, region)
    if unknown:
        yield Finding("spot quota", "warn", f"could not be checked for {', '.join(unknown)}: a family with its own")


def _quota(quotas: Any, code: str, name: str, need: int, region: str) -> Finding:
    """:param need: vCPUs of the smallest type that is wanted"""
    answer = _ask("spot quota", lambda: call(quotas, "get_service_quota", ServiceCode="ec2", QuotaCode=code))
    if isinstance(answer, Finding):
        return answer
    if answer is None:
        return Finding("spot quota", "warn", f"{name}: could not be checked, {region} does not know it as {code}")
    value = answer["Quota"]["Value"]
    said = f"{name}: {value:g} vCPUs in {region}"
    if value >= need:
        return Finding("spot quota", "ok", said)
    fix = (
        f"aws service-quotas request-service-quota-increase --region {region} --service-code ec2 "
        f"--quota-code {code} --desired-value {max(8, need)}   (granted within hours, sometimes days)"
    )
    return Finding("spot quota", "fail", f"{said}; the smallest wanted type needs {need}", fix)


def _default_vpc(ec2: Any, region: str) -> Finding:
    answer = _ask(
        "default VPC", lambda: call(ec2, "describe_vpcs", Filters=[{"Name": "is-default", "Values": ["true"]}])
    )
    if isinstance(answer, Finding):
        return answer
    if answer["Vpcs"]:
        return Finding("default VPC", "ok", str(answer["Vpcs"][0]["VpcId"]))
    fix = f"aws ec2 create-default-vpc --region {region}   or set subnet_ids"
    return Finding("default VPC", "fail", f"{region} has none", fix)


def _key_pair(ec2: Any, name: str | None, region: str) -> Finding:
    if name is None:
        return Finding("key pair", "ok", "none wanted: session_command opens a shell without one")
    answer = _ask("key pair", lambda: call(ec2, "describe_key_pairs", KeyNames=[name]))
    if isinstance(answer, Finding):
        return answer
    if answer is not None:
        return Finding("key pair", "ok", name)
    fix = f"aws ec2 create-key-pair --region {region} --key-name {name}, or leave key_pair_name out"
    return Finding("key pair", "fail", f"{name} does not exist in {region}", fix)


def _image(ssm: Any, region: str) -> Finding:
    answer = _ask("image", lambda: call(ssm, "get_parameter", Name=IMAGE_PARAMETER))
    if isinstance(answer, Finding):
        return answer
    if answer is None:
        fix = "choose another region, or set ami_id to an Ubuntu 22.04 or 24.04 image"
        return Finding("image", "fail", f"the parameter {IMAGE_PARAMETER} is not there in {region}", fix)
    return Finding("image", "ok", f"{answer['Parameter']['Value']}, the newest Deep Learning Base image")
