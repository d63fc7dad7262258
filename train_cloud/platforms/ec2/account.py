"""Day one: whether an AWS account can start a worker, asked point by point. Changes nothing.

Sources: "EC2 Spot Instance quotas", "Amazon EC2 service quotas" (Amazon EC2 User Guide) for the quotas' names, "Service
Quotas API Reference", "AWS Free Tier API Reference" and "Choosing an AWS account plan" (AWS Billing User Guide),
"Parameter Store public parameters" (Deep Learning AMI Developer Guide).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from train_cloud.errors import CloudError, CloudForbidden
from train_cloud.platforms.ec2.api import call, client, region_name
from train_cloud.platforms.ec2.fit import DEFAULT_TYPES, describe
from train_cloud.platforms.ec2.permissions import missing, needs, principal_of
from train_cloud.platforms.ec2.routes import ways_out

IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"

_QUOTAS: dict[str, tuple[tuple[re.Pattern[str], str, str], ...]] = {
    # Which types each covers, its code and its name. In vCPUs.
    "spot": (
        (re.compile(r"(g|gr|vt)\d"), "L-3819A6DF", "All G and VT Spot Instance Requests"),
        (re.compile(r"p[2-4]"), "L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
        (re.compile(r"(a|c|d|h|i|im|is|m|r|t|z)\d"), "L-34B43A08", "All Standard Spot Instance Requests"),
    ),
    "on-demand": (
        (re.compile(r"(g|gr|vt)\d"), "L-DB2E81BA", "Running On-Demand G and VT instances"),
        (re.compile(r"p\d"), "L-417A185B", "Running On-Demand P instances"),
        (re.compile(r"(a|c|d|h|i|im|is|m|r|t|z)\d"), "L-1216C47A", "Running On-Demand Standard instances"),
    ),
}
_PLUGIN = "session-manager-plugin"
_UPGRADE = "aws freetier upgrade-account-plan --region us-east-1 --account-plan-type PAID"
_PLAN_REGION = "us-east-1"
"""The only one that the Free Tier API is served from."""
_ENOUGH_MIB = 4096
"""Of memory: less than that holds no torch beside an environment."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    verdict: Literal["ok", "warn", "fail"]
    said: str
    fix: str = ""
    """What to do about it, as a command or a clause; empty where nothing is to be done."""


def examine(
    *,
    region: str | None = None,
    types: Sequence[str] = DEFAULT_TYPES,
    key_pair: str | None = None,
    subnet_ids: Sequence[str] = (),
    project: str = "train-cloud",
    machines: int = 1,
) -> Iterator[Finding]:
    """One finding after the other, as each is known. Without credentials and a region there is nothing more to ask.

    :param region: default: the SDK's own
    :param types: instance types that are wanted
    :param key_pair: name of the key pair for SSH, if one is wanted
    :param subnet_ids: where workers are to stand; default: the default VPC's subnets
    :param project: first part of the names of what ``apply`` creates
    :param machines: how many are wanted at once: an experiment has one for each of its runs
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
    eligible: set[str] = set()
    yield from _types(ec2, types, region, vcpus, eligible)
    yield account_plan(client("freetier", _PLAN_REGION), ec2, types, eligible)
    quotas = client("service-quotas", region)
    yield from _quotas(quotas, "spot", types, region, vcpus, machines)
    yield from _quotas(quotas, "on-demand", types, region, vcpus, machines)
    if not subnet_ids:
        yield _default_vpc(ec2, region)
    yield from _subnets(ec2, subnet_ids)
    yield _key_pair(ec2, key_pair, region)
    yield _image(client("ssm", region), region)
    yield from _permissions(client("iam", region), caller, region, project)
    yield _plugin()


def _ask(subject: str, question: Callable[[], Any]) -> Any:
    """The answer, or a finding that there was none."""
    try:
        return question()
    except CloudForbidden as error:
        return Finding(subject, "warn", f"could not be checked, these credentials may not: {error}")
    except CloudError as error:
        return Finding(subject, "warn", f"could not be checked: {error}")


def _types(ec2: Any, types: Sequence[str], region: str, vcpus: dict[str, int], eligible: set[str]) -> Iterator[Finding]:
    """Where each type is offered; fills ``vcpus`` for those that are, and which of them are free-tier-eligible."""
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
    known = _ask("types", lambda: describe(ec2, types))
    if not isinstance(known, Finding):
        vcpus.update({name: found["VCpuInfo"]["DefaultVCpus"] for name, found in known.items()})
        eligible |= {name for name, found in known.items() if found.get("FreeTierEligible")}
    for wanted in types:
        where = ", ".join(sorted(zones.get(wanted, [])))
        if where:
            yield Finding("types", "ok", f"{wanted} in {where}")
        else:
            fix = "leave it out of instance_types, or choose another region"
            yield Finding("types", "warn" if zones else "fail", f"{wanted} is not offered in {region}", fix)


def account_plan(freetier: Any, ec2: Any, types: Sequence[str], eligible: set[str]) -> Finding:
    """Accounts made since July 2025 begin on the Free plan, unless their owner chose the other one."""
    answer = _ask("account plan", lambda: call(freetier, "get_account_plan_state"))
    if isinstance(answer, Finding):
        if "ResourceNotFoundException" in answer.said:  # an account that is older than plans
            return Finding("account plan", "ok", "none: no restriction to free-tier-eligible types")
        return answer
    plan, status = answer.get("accountPlanType", "?"), answer.get("accountPlanStatus", "?")
    if plan != "FREE":
        return Finding("account plan", "ok", f"{plan}: no restriction to free-tier-eligible types")
    left = answer.get("accountPlanRemainingCredits", {})
    said = f"Free plan ({status}, {left.get('amount', '?')} {left.get('unit', 'USD')} of credits left)"
    if status == "EXPIRED":
        return Finding("account plan", "fail", f"{said}: nothing can be launched any more", _UPGRADE)
    refused = [kind for kind in types if kind not in eligible]
    if not refused:
        return Finding("account plan", "ok", f"{said}; all wanted types are free-tier-eligible")
    said += f" launches free-tier-eligible types only, as spot too; not eligible: {', '.join(refused)}"
    if len(refused) < len(types):
        return Finding("account plan", "warn", said, f"leave them out of instance_types, or {_UPGRADE}")
    others = _eligible_types(ec2)
    instead = f"or train on the CPU of {' or '.join(others)}" if others else "or name free-tier-eligible types"
    return Finding("account plan", "fail", said, f"{_UPGRADE}, {instead}")


def _eligible_types(ec2: Any) -> list[str]:
    """x86-64 types that the Free plan launches and that have memory for a training; empty where nobody says."""
    asked = {"free-tier-eligible": "true", "processor-info.supported-architecture": "x86_64"}
    filters = [{"Name": name, "Values": [value]} for name, value in asked.items()]
    found = _ask("account plan", lambda: call(ec2, "describe_instance_types", Filters=filters))
    if isinstance(found, Finding) or found is None:
        return []
    enough = [kind for kind in found["InstanceTypes"] if kind["MemoryInfo"]["SizeInMiB"] >= _ENOUGH_MIB]
    return sorted(kind["InstanceType"] for kind in enough)


def _quotas(
    quotas: Any,
    bought: Literal["spot", "on-demand"],
    types: Sequence[str],
    region: str,
    vcpus: Mapping[str, int],
    machines: int,
) -> Iterator[Finding]:
    """Of every family that is wanted: new accounts have 0."""
    unknown = list(types)
    for covers, code, name in _QUOTAS[bought]:
        wanted = [kind for kind in types if covers.match(kind)]
        unknown = [kind for kind in unknown if kind not in wanted]
        if wanted:
            need = min((vcpus[kind] for kind in wanted if kind in vcpus), default=4)
            yield _quota(quotas, bought, code, name, need, region, machines)
    if unknown:
        said = f"could not be checked for {', '.join(unknown)}: a family with its own"
        yield Finding(f"{bought} quota", "warn", said)


def _quota(
    quotas: Any,
    bought: Literal["spot", "on-demand"],
    code: str,
    name: str,
    need: int,
    region: str,
    machines: int,
) -> Finding:
    """:param need: vCPUs of the smallest type that is wanted"""
    subject = f"{bought} quota"
    answer = _ask(subject, lambda: call(quotas, "get_service_quota", ServiceCode="ec2", QuotaCode=code))
    if isinstance(answer, Finding):
        return answer
    if answer is None:
        return Finding(subject, "warn", f"{name}: could not be checked, {region} does not know it as {code}")
    value = answer["Quota"]["Value"]
    said = f"{name}: {value:g} vCPUs in {region}"
    if value >= need * machines:
        return Finding(subject, "ok", said)
    fix = (
        f"aws service-quotas request-service-quota-increase --region {region} --service-code ec2 "
        f"--quota-code {code} --desired-value {max(8, need * machines)}   (granted within hours, sometimes days)"
    )
    if value >= need:
        said += f"; {machines} machines of the smallest wanted type need {need * machines}: {value // need:g} of them"
        return Finding(subject, "warn", f"{said} run at once, the others wait until one of these has ended", fix)
    said += f"; the smallest wanted type needs {need}"
    if bought == "spot":
        return Finding(subject, "fail", said, fix)
    return Finding(subject, "warn", f"{said}, with use_spot = false", fix)


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


def _subnets(ec2: Any, ids: Sequence[str]) -> Iterator[Finding]:
    """Whether a worker in each can reach anything."""
    asked: dict[str, Any] = {"SubnetIds": list(ids)}
    if not ids:
        asked = {"Filters": [{"Name": "default-for-az", "Values": ["true"]}]}
    found = _ask("subnets", lambda: call(ec2, "describe_subnets", **asked))
    if isinstance(found, Finding):
        yield found
        return
    subnets = found["Subnets"] if found is not None else []
    if not subnets:
        if ids:
            said = f"not all of {', '.join(ids)} are in this region"
            yield Finding("subnets", "fail", said, "name existing ones in subnet_ids")
        return
    obstacles = _ask("subnets", lambda: ways_out(ec2, subnets))
    if isinstance(obstacles, Finding):
        yield obstacles
        return
    open_ones = sorted(subnet for subnet, obstacle in obstacles.items() if obstacle is None)
    for subnet, obstacle in sorted(obstacles.items()):
        if obstacle is not None:
            fix = "leave it out of subnet_ids, let it give public addresses, or route it to a NAT gateway"
            said = f"{subnet}: {obstacle}; a worker there reaches nothing, and is replaced until max_runtime_hours"
            yield Finding("subnets", "fail", said, fix)
    if open_ones:
        yield Finding("subnets", "ok", f"a way to the internet from {', '.join(open_ones)}")


def _permissions(iam: Any, caller: Mapping[str, Any], region: str, project: str) -> Iterator[Finding]:
    """Whether whoever asks may do what ``apply`` does."""
    partition = caller["Arn"].split(":")[1]
    wanted = needs(account=caller["Account"], region=region, partition=partition, project=project)

    def simulate() -> list[tuple[str, list[str]]]:
        principal = principal_of(iam, caller["Arn"])
        if principal is None:
            return []
        return [(need.purpose, refused) for need, refused in missing(iam, principal, wanted, region=region)]

    found = _ask("permissions", simulate)
    if isinstance(found, Finding):
        fix = "allow iam:GetRole and iam:SimulatePrincipalPolicy, or see what terraform apply says"
        yield Finding("permissions", "warn", found.said, fix)
        return
    refused = [action for purpose, actions in found if purpose == "apply" for action in actions]
    if refused:
        fix = "ask for a policy that allows them for " + project
        yield Finding("permissions", "fail", f"terraform apply and destroy also need {', '.join(refused)}", fix)
    else:
        yield Finding("permissions", "ok", "all that terraform apply and destroy need")
    for purpose, actions in found:
        if purpose != "apply":
            yield Finding("permissions", "warn", f"{purpose} would also need {', '.join(actions)}")


def _plugin() -> Finding:
    if shutil.which(_PLUGIN):
        return Finding("session manager", "ok", f"{_PLUGIN} is installed")
    fix = 'install it for session_command and journalctl_command: AWS\'s page "Install the Session Manager plugin"'
    return Finding("session manager", "warn", f"{_PLUGIN} is not on PATH: no shell on the worker", fix)


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
