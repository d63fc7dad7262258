"""What a plan sends to AWS, and what the role of a worker may do, against AWS's own models and documentation."""

from __future__ import annotations

import ast
import base64
import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from aws_limits import ACROSS, RULES, as_list, complaints
from aws_requests import DATA, RESOURCES, Complaint, requests
from botocore import xform_name
from policy_sentry.querying.actions import get_action_data
from small_package import with_small_package

from train_cloud.cli import main
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.terraform import PROVIDER, Terraform, find_mirror, worker_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[1]
MODULE = REPOSITORY / "terraform"
#: As long as names may be.
REGION = "ap-southeast-1"
PROJECT = "abcdefghij-abcdefghi"
RUN_ID = "a-run-id-that-is-sixty-three-characters-long-0123456789012345-0"
EXPERIMENT = "an-experiment-of-fifty-eight-characters-0123456789-0123456"
BUCKET = "a-bucket-name-of-sixty-three-characters-012345678901234567890-x"
RUN_FILE = f"""\
run_id: {RUN_ID}
experiment: an-experiment-with-a-name-of-sixty-three-characters-0123456789x
algorithm: sac
total_timesteps: 1000
environment: {{id: Mine-v0, module: mine}}
initial_model: s3://somebodys-models/sac/best/model.zip
secrets: {{WANDB_API_KEY: /our-lab/wandb, OTHER: plain-name}}
code: {{folder: project}}
"""


class Plans:
    """Of one AWS, each made when it is first asked for: everything on, everything off, a bucket that was there, and an
    experiment.
    """

    def __init__(self, aws: EmbeddedAws, folder: Path) -> None:
        self._aws, self._folder = aws, folder
        self._made: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self._made:
            terraform = Terraform(self._folder / name, self._aws, lifecycle_rule=True)
            self._made[name] = getattr(self, name)(with_small_package(self._folder / name, terraform))
        return self._made[name]

    def off(self, terraform: Terraform) -> dict[str, Any]:
        return terraform.plan({"run_file": REPOSITORY / "examples" / "pendulum_sac.yaml"})

    def on(self, terraform: Terraform) -> dict[str, Any]:
        """What user-data and policies are made of is applied first, so that the plan knows them."""
        aws, project = self._aws, self._folder / "project"
        (project / "mine").mkdir(parents=True)
        (project / "mine" / "__init__.py").write_text("# näme and spaces\n")
        (project / "wéird näme.txt").write_text("x")
        first, second = self._folder / "first.yaml", self._folder / "second.yaml"
        first.write_text(RUN_FILE)
        second.write_text("run_id: b\nalgorithm: ppo\ninitial_model: run:earlier@100\ncode: {folder: project}\n")
        self._service_role()
        variables = {
            "run_files": [first, second],
            "training_type": "sac",
            "total_timesteps": 100,
            "save_frequency": 10,
            "project_name": PROJECT,
            "aws_region": REGION,
            "subnet_ids": [found["SubnetId"] for found in aws.client("ec2").describe_subnets()["Subnets"]],
            "instance_types": ["g6.xlarge", "g5.xlarge", "g4dn.xlarge", "p5.48xlarge", "c7i-flex.large"],
            "root_volume_gb": 16384,
            "max_runtime_hours": 719.5,
            "s3_bucket_name": BUCKET,
            "prefix": "p" * 100,
            "delete_artifacts_on_destroy": True,
            "key_pair_name": "k" * 255,
            "allowed_cidrs": ["203.0.113.7/32", "2001:db8::/64", "0.0.0.0/0"],
            "allow_open_ingress": True,
            "kms_key_arn": aws.client("kms").create_key()["KeyMetadata"]["Arn"],
            "notification_emails": ["me@example.org"],
            "cloudwatch_log_days": 731,
        }
        known = ("terraform_data.launched", "aws_sns_topic.runs", "aws_cloudwatch_log_group.worker")
        terraform.apply(variables, only=known)
        return terraform.plan(variables)

    def experiment(self, terraform: Terraform) -> dict[str, Any]:
        """With names as long as they may be, and limits over all runs."""
        folder = self._folder / "experiment of mine"
        (folder / "project" / "mine").mkdir(parents=True)
        (folder / "project" / "mine" / "__init__.py").touch()
        (folder / "base.yaml").write_text(RUN_FILE.replace("total_timesteps", "save_frequency: 10\ntotal_timesteps"))
        path = folder / "experiment.yaml"
        path.write_text(
            f"experiment: {EXPERIMENT}\nbase: base.yaml\nvary: {{net: {{a: {{}}, b: {{gamma: 0.9}}}}}}\n"
            "seeds: [1]\nlimits: {hours: 10, dollars: 5.5}\n".replace("gamma", "hyperparameters.gamma")
        )
        assert main(["expand", str(path)]) == 0
        key = self._aws.client("kms").create_key()["KeyMetadata"]["Arn"]
        self._service_role()
        return terraform.plan(
            {
                "experiment_file": path,
                "project_name": PROJECT,
                "aws_region": REGION,
                "s3_bucket_name": BUCKET,
                "prefix": "p" * 100,
                "kms_key_arn": key,
            }
        )

    def _service_role(self) -> None:
        """AWS's own, once."""
        iam, name = self._aws.client("iam"), "AWSServiceRoleForAutoScaling"
        if name not in [role["RoleName"] for role in iam.list_roles()["Roles"]]:
            path = "/aws-service-role/autoscaling.amazonaws.com/"
            iam.create_role(RoleName=name, Path=path, AssumeRolePolicyDocument="{}")

    def elsewhere(self, terraform: Terraform) -> dict[str, Any]:
        self._aws.client("s3").create_bucket(
            Bucket="somebodys-bucket", CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        image = self._aws.client("ec2").describe_images()["Images"][0]["ImageId"]
        return terraform.plan(
            {
                "run_file": REPOSITORY / "examples" / "pendulum_sac.yaml",
                "aws_region": REGION,
                "availability_zones": [f"{REGION}a"],
                "use_spot": False,
                "ami_id": image,
                "s3_bucket_name": "somebodys-bucket",
                "existing_bucket": True,
            }
        )


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plans]:
    folder = tmp_path_factory.mktemp("plans")
    with EmbeddedAws(region=REGION, log=folder / "aws.log") as aws:
        yield Plans(aws, folder)


@pytest.mark.parametrize("name", ["off", "on", "elsewhere", "experiment"])
def test_aws_takes_all_that_a_plan_sends(plans: Plans, name: str) -> None:
    assert [str(found) for found in complaints(plans[name])] == []


def test_the_plans_hold_all_that_the_module_can_make(plans: Plans) -> None:
    """So that nothing of the module escapes the test above."""
    written = "".join(file.read_text() for file in MODULE.glob("*.tf"))
    for block, mode, kinds in (("resource", "managed", RESOURCES), ("data", "data", DATA)):
        declared = set(re.findall(rf'^{block} "(aws_\w+)"', written, re.MULTILINE)) - {"aws_partition"}
        planned = set()
        for name in ("off", "on", "elsewhere"):
            made = plans[name]
            listed = [*made["resource_changes"], *made["prior_state"]["values"]["root_module"]["resources"]]
            planned |= {found["type"] for found in listed if found["mode"] == mode}
        assert declared <= planned and declared == set(kinds), block


def test_the_requests_are_those_that_the_provider_makes(plans: Plans) -> None:
    """Spot checks of the mapping, by hand; above all that what matters is known and so was looked at."""
    made, _ = requests(plans["on"])
    by_operation = {request.operation: request.parameters for request in made if f'["{RUN_ID}"]' in request.address}
    template = by_operation["ec2:CreateLaunchTemplate"]
    assert template["LaunchTemplateName"] == f"{PROJECT}-{RUN_ID}"
    assert template["LaunchTemplateData"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 16384
    assert isinstance(template["LaunchTemplateData"]["UserData"], str)
    assert isinstance(by_operation["iam:PutRolePolicy"]["PolicyDocument"], str)
    stop = by_operation["autoscaling:PutScheduledUpdateGroupAction"]
    assert "MinSize" not in stop and isinstance(stop["StartTime"], str) and isinstance(stop["Recurrence"], str)
    group = by_operation["autoscaling:CreateAutoScalingGroup"]
    assert group["Tags"] == [{"Key": "train-cloud-run", "Value": RUN_ID, "PropagateAtLaunch": True}]
    assert re.fullmatch(r"subnet-\w+(,subnet-\w+)+", group["VPCZoneIdentifier"])
    (image,) = [
        found
        for found in plans["off"]["prior_state"]["values"]["root_module"]["resources"]
        if found["type"] == "aws_ami"
    ]
    (root,) = image["values"]["block_device_mappings"]
    assert int(root["ebs"]["volume_size"]) > 0, "with which root_volume_gb is compared"
    (ports,) = [
        request.parameters["IpPermissions"]
        for request in made
        if request.operation == "ec2:AuthorizeSecurityGroupIngress" and '::/64 22"]' in request.address
        if f'["{RUN_ID} ' in request.address
    ]
    assert ports == [
        {
            "FromPort": 22,
            "ToPort": 22,
            "IpProtocol": "tcp",
            "Ipv6Ranges": [{"CidrIpv6": "2001:db8::/64", "Description": "SSH"}],
        }
    ]


def test_an_image_of_ones_own_asks_for_no_newest(plans: Plans) -> None:
    asked = {name: {request.operation for request in requests(plans[name])[0]} for name in ("off", "elsewhere")}
    assert "ssm:GetParameter" in asked["off"] and "ssm:GetParameter" not in asked["elsewhere"]


def test_roles_of_two_regions_have_two_names_and_the_longest_fits(plans: Plans) -> None:
    names = {
        name: {
            found["change"]["after"]["name"]
            for found in plans[name]["resource_changes"]
            if found["type"] in ("aws_iam_role", "aws_iam_instance_profile")
        }
        for name in ("off", "on", "elsewhere")
    }
    assert names["off"] == {"train-cloud-pendulum-sac-us-east-1"}
    assert names["elsewhere"] == {f"train-cloud-pendulum-sac-{REGION}"}
    short, long = sorted(names["on"], key=len)
    assert short == f"{PROJECT}-b-{REGION}"
    assert len(long) == 64 and re.fullmatch(rf"{PROJECT}-a-run-id-[a-z-]+-[0-9a-f]{{8}}-{REGION}", long)


def test_the_runs_of_an_experiment_fit_with_the_longest_names(plans: Plans) -> None:
    made, _ = requests(plans["experiment"])
    run_ids = [f"{EXPERIMENT}-{level}-s1" for level in "ab"]
    assert [len(run_id) for run_id in run_ids] == [63, 63]
    groups = [request.parameters for request in made if request.operation == "autoscaling:CreateAutoScalingGroup"]
    assert sorted(group["AutoScalingGroupName"] for group in groups) == [f"{PROJECT}-{run_id}" for run_id in run_ids]
    roles = {request.parameters["RoleName"] for request in made if request.operation == "iam:CreateRole"}
    assert len(roles) == 2 and all(len(role) == 64 for role in roles), "two that differ in their middle only"
    (found,) = [request.parameters for request in made if request.address == "aws_s3_object.experiment[0]"]
    assert found["Key"] == f"{'p' * 100}/experiments/{EXPERIMENT}/experiment.json"
    policies = [
        json.dumps(json.loads(request.parameters["PolicyDocument"]), separators=(",", ":"))
        for request in made
        if request.operation == "iam:PutRolePolicy" and "aws_iam_role_policy.worker" in request.address
    ]
    assert len(policies) == 2 and all(len(policy) < 10240 for policy in policies), "as many runs as there may be"
    assert all(policy.count(f"runs/{EXPERIMENT}-*/") == 3 for policy in policies)


# A mistake of each kind is noticed.

Mistake = tuple[str, str, str, Any]
"""The kind of the complaint, the resource's type (data sources with ``data.``), its attribute, and the wrong value; a
callable makes it of the right one."""

TEXT, ARN = "S3, AWS's interfaces", "arn:aws:s3:::b"


def _policy(**changed: Any) -> str:
    statement = {"Sid": "A", "Effect": "Allow", "Action": "s3:GetObject", "Resource": ARN} | changed
    return json.dumps({"Version": "2012-10-17", "Statement": [{k: v for k, v in statement.items() if v is not None}]})


MISTAKES: list[Mistake] = [
    # AWS's own models.
    ("type", "aws_autoscaling_group", "max_size", "one"),
    ("type", "aws_autoscaling_schedule", "start_time", "tomorrow"),
    ("required", "aws_iam_role_policy", "policy", None),
    ("required", "aws_sns_topic_subscription", "protocol", None),
    ("length", "aws_iam_role", "name", "r" * 65),
    ("length", "aws_iam_instance_profile", "name", "r" * 129),
    ("length", "aws_autoscaling_group", "name", "g" * 256),
    ("length", "aws_cloudwatch_log_group", "name", "/" + "l" * 512),
    ("range", "aws_iam_role", "max_session_duration", 60),
    ("pattern", "aws_iam_role", "name", "train cloud"),
    ("pattern", "aws_iam_role", "path", "workers"),
    ("pattern", "aws_iam_role", "description", "a worker\u2019s"),
    ("pattern", "aws_cloudwatch_log_group", "name", "/train cloud"),
    ("pattern", "aws_kms_grant", "name", "train cloud"),
    ("pattern", "aws_autoscaling_group", "initial_lifecycle_hook.0.name", "final commit"),
    ("enum", "aws_launch_template", "instance_type", "g6.huge"),
    ("enum", "aws_launch_template", "instance_initiated_shutdown_behavior", "hibernate"),
    ("enum", "aws_launch_template", "metadata_options.0.http_tokens", "yes"),
    ("enum", "aws_launch_template", "block_device_mappings.0.ebs.0.volume_type", "gp4"),
    ("enum", "aws_kms_grant", "operations", ["Read"]),
    ("enum", "aws_s3_bucket_versioning", "versioning_configuration.0.status", "On"),
    ("enum", "aws_s3_bucket_server_side_encryption_configuration", "rule.0.apply_server_side_encryption_by_default.0"
     ".sse_algorithm", "AES128"),
    ("unmapped attribute", "aws_security_group", "colour", "red"),
    ("unmapped attribute", "aws_launch_template", "metadata_options.0.colour", "red"),
    ("unmapped attribute", "data.aws_subnet", "colour", "red"),
    # AWS's documentation.
    ("security group text", "aws_security_group", "description", TEXT),
    ("security group text", "aws_security_group", "name", "größe"),
    ("security group text", "aws_security_group", "description", "d" * 256),
    ("security group name", "aws_security_group", "name", "sg-worker"),
    ("rule text", "aws_vpc_security_group_egress_rule", "description", TEXT),
    ("rule text", "aws_vpc_security_group_ingress_rule", "description", "SSH?"),
    ("rule text", "aws_vpc_security_group_ingress_rule", "description", "d" * 256),
    ("IPv4 network", "aws_vpc_security_group_ingress_rule", "cidr_ipv4", "203.0.113.7/24"),
    ("IPv6 network", "aws_vpc_security_group_ingress_rule", "cidr_ipv6", "203.0.113.7/32"),
    ("ports", "aws_vpc_security_group_ingress_rule", "from_port", 6007),
    ("ports", "aws_vpc_security_group_egress_rule", "ip_protocol", "http"),
    ("launch template name", "aws_launch_template", "name", "train cloud"),
    ("launch template name", "aws_launch_template", "name", "t" * 129),
    ("user data", "aws_launch_template", "user_data", "A" * 21848 + "AA=="),
    ("user data", "aws_launch_template", "user_data", "#!/bin/bash"),
    ("image", "aws_launch_template", "image_id", "ubuntu"),
    ("key pair", "aws_launch_template", "key_name", "my key"),
    ("volume", "aws_launch_template", "block_device_mappings.0.ebs.0.volume_size", 20000),
    ("volume", "aws_launch_template", "block_device_mappings.0.ebs.0.throughput", 800),
    ("volume", "aws_launch_template", "block_device_mappings.0.ebs.0.iops", 100),
    ("device", "aws_launch_template", "block_device_mappings.0.device_name", "sda1"),
    ("key's ARN", "aws_launch_template", "block_device_mappings.0.ebs.0.kms_key_id", "alias/mine"),
    ("hop limit", "aws_launch_template", "metadata_options.0.http_put_response_hop_limit", 65),
    ("spot in the template", "aws_launch_template", "instance_market_options", [{"market_type": "spot"}]),
    ("instance type", "aws_autoscaling_group", "mixed_instances_policy.0.launch_template.0.override.1.instance_type",
     "g5.huge"),
    ("overrides", "aws_autoscaling_group", "mixed_instances_policy.0.launch_template.0.override",
     [{"instance_type": "g5.xlarge"}] * 41),
    ("group name", "aws_autoscaling_group", "name", "train:cloud"),
    ("group sizes", "aws_autoscaling_group", "desired_capacity", 2),
    ("group sizes", "aws_autoscaling_group", "min_size", -1),
    ("subnets", "aws_autoscaling_group", "vpc_zone_identifier", ["us-east-1a"]),
    ("spot allocation strategy", "aws_autoscaling_group",
     "mixed_instances_policy.0.instances_distribution.0.spot_allocation_strategy", "cheapest"),
    ("on-demand share", "aws_autoscaling_group",
     "mixed_instances_policy.0.instances_distribution.0.on_demand_percentage_above_base_capacity", 101),
    ("processes", "aws_autoscaling_group", "suspended_processes", ["Rebalance"]),
    ("hook timeout", "aws_autoscaling_group", "initial_lifecycle_hook.0.heartbeat_timeout", 7201),
    ("hook transition", "aws_autoscaling_group", "initial_lifecycle_hook.0.lifecycle_transition", "terminating"),
    ("hook result", "aws_autoscaling_group", "initial_lifecycle_hook.0.default_result", "WAIT"),
    ("recurrence", "aws_autoscaling_schedule", "recurrence", "61 * * * *"),
    ("recurrence", "aws_autoscaling_schedule", "recurrence", "rate(1 hour)"),
    ("trust policy", "aws_iam_role", "assume_role_policy", _policy(Resource=None, Action="sts:AssumeRole")),
    ("trust policy", "aws_iam_role", "assume_role_policy", _policy(Principal="*" + "x" * 2048)),
    ("role policy", "aws_iam_role_policy", "policy", "{'Version': 1}"),
    ("role policy", "aws_iam_role_policy", "policy", _policy(Sid="not-a-sid")),
    ("role policy", "aws_iam_role_policy", "policy", _policy(Effect="allow")),
    ("role policy", "aws_iam_role_policy", "policy", _policy(Action="GetObject")),
    ("role policy", "aws_iam_role_policy", "policy", _policy(Resource="s3://b")),
    ("role policy", "aws_iam_role_policy", "policy", _policy(Resources=ARN)),
    ("role policy", "aws_iam_role_policy", "policy", _policy(Condition={"StringLikes": {}})),
    ("role policy", "aws_iam_role_policy", "policy", _policy(Resource=[f"{ARN}{n}" for n in range(1000)])),
    ("bucket policy", "aws_s3_bucket_policy", "policy", _policy()),
    ("bucket name", "aws_s3_bucket", "bucket", "My_Bucket"),
    ("bucket name", "aws_s3_bucket", "bucket", "b" * 64),
    ("bucket name", "aws_s3_bucket", "bucket", "192.168.5.4"),
    ("bucket name", "aws_s3_bucket", "bucket", "runs--x-s3"),
    ("object key", "aws_s3_object", "key", "ä" * 513),
    ("header", "aws_s3_object", "content_type", "text/plain\n"),
    ("object tags", "aws_s3_object", "tags_all", {f"k{n}": "v" for n in range(11)}),
    ("object tags", "aws_s3_object", "tags_all", {"run": "it's"}),
    ("encryption", "aws_s3_bucket_server_side_encryption_configuration",
     "rule.0.apply_server_side_encryption_by_default.0.kms_master_key_id", None),
    ("lifecycle days", "aws_s3_bucket_lifecycle_configuration",
     "rule.0.noncurrent_version_expiration.0.noncurrent_days", 0),
    ("lifecycle id", "aws_s3_bucket_lifecycle_configuration", "rule.0.id", "i" * 256),
    ("lifecycle expiration", "aws_s3_bucket_lifecycle_configuration", "rule.0.expiration.0.days", 3),
    ("topic name", "aws_sns_topic", "name_prefix", "train.cloud-"),
    ("topic name", "aws_sns_topic", "name_prefix", "t" * 231),
    ("subscription", "aws_sns_topic_subscription", "protocol", "e-mail"),
    ("e-mail address", "aws_sns_topic_subscription", "endpoint", "me"),
    ("retention", "aws_cloudwatch_log_group", "retention_in_days", 2),
    ("parameter name", "data.aws_ssm_parameter", "name", "/aws service"),
    ("tag key", "aws_security_group", "tags_all", {"aws:project": "x"}),
    ("tag key", "aws_iam_role", "tags_all", {"k" * 129: "x"}),
    ("tag key", "aws_autoscaling_group", "tag.0.key", "what?"),
    ("tag value", "aws_s3_bucket", "tags_all", {"project": "it's"}),
    ("tag value", "aws_sns_topic", "tags_all", {"project": "v" * 257}),
    ("tag value", "aws_launch_template", "tag_specifications.0.tags", {"Name": "a;b"}),
    ("tags", "aws_security_group", "tags_all", {f"k{n}": "v" for n in range(51)}),
    ("tag map", "aws_cloudwatch_log_group", "tags_all", {"AWS:project": "x"}),
    (ACROSS, "aws_iam_role_policy", "policy", _policy(Resource=[ARN + "x" * 8000])),
]  # fmt: skip


def planted(plan: dict[str, Any], kind: str, attribute: str, wrong: Any) -> dict[str, Any]:
    """A copy of the plan with nothing but the resources of one type, and in each of them the mistake."""
    mode, name = ("data", kind.removeprefix("data.")) if kind.startswith("data.") else ("managed", kind)
    known = plan["prior_state"]["values"]["root_module"]["resources"] if mode == "data" else plan["resource_changes"]
    found = copy.deepcopy([entry for entry in known if (entry["mode"], entry["type"]) == (mode, name)])
    assert found, f"the plan has no {kind}"
    for entry in found:
        if mode == "data":
            _set(entry["values"], attribute, wrong)
        else:
            _set(entry["change"]["after"], attribute, wrong)
            entry["change"]["actions"] = ["create"]
            # Known now, the rest as unknown as it was.
            entry["change"]["after_unknown"].pop(attribute.split(".")[0], None)
    made: dict[str, Any] = {
        **plan,
        "resource_changes": [],
        "prior_state": {"values": {"root_module": {"resources": []}}},
    }
    if mode == "data":
        made["prior_state"] = {"values": {"root_module": {"resources": found}}}
        made["configuration"] = {"root_module": {"resources": [{**found[0], "expressions": {attribute: {}}}]}}
    else:
        made["resource_changes"] = found
    return made


def _set(values: Any, attribute: str, wrong: Any) -> None:
    *path, last = attribute.split(".")
    for step in path:
        values = values[int(step)] if isinstance(values, list) else values[step]
    values[last] = wrong


def found_in(plans: Plans, mistake: Mistake) -> list[Complaint]:
    kind, resource, attribute, wrong = mistake
    plan = plans["off" if resource == "data.aws_ssm_parameter" else "on"]
    return [found for found in complaints(planted(plan, resource, attribute, wrong)) if found.kind == kind]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake[0]}-{mistake[1]}-{mistake[2]}")
def test_a_mistake_is_noticed(plans: Plans, mistake: Mistake) -> None:
    found = found_in(plans, mistake)
    assert found, "AWS would refuse it"
    resource = mistake[1]
    assert all(resource in complaint.where or complaint.kind == ACROSS for complaint in found)


def test_there_is_a_mistake_of_each_kind() -> None:
    """A rule that nothing breaks could be one that holds always."""
    models = {"type", "required", "length", "range", "pattern", "enum", "unmapped attribute"}
    assert {mistake[0] for mistake in MISTAKES} == models | {rule.name for rule in RULES} | {ACROSS}


def test_a_type_that_nobody_mapped_is_noticed(plans: Plans) -> None:
    plan = planted(plans["on"], "aws_security_group", "name", "right")
    for entry in plan["resource_changes"]:
        entry["type"] = "aws_lambda_function"
    assert {found.kind for found in complaints(plan)} == {"unmapped type"}


# What the worker's role may do.


def statements(plans: Plans) -> list[dict[str, Any]]:
    """Of all roles, with every option on."""
    made = [request for name in ("on", "experiment") for request in requests(plans[name])[0]]
    policies = [request.parameters["PolicyDocument"] for request in made if request.operation == "iam:PutRolePolicy"]
    return [statement for policy in policies for statement in json.loads(policy)["Statement"]]


def resource_formats(action: str) -> set[str]:
    """The ARNs that an action may be limited to; empty: it knows no resources.

    :raises AssertionError: AWS knows no such action
    """
    service, _, name = action.partition(":")
    found = get_action_data(service, name)
    assert found, f"{action} is no action of AWS"
    return {entry["resource_arn_format"] for entry in found[service]} - {"*"}


@lru_cache(None)
def intersect(first: str, second: str) -> bool:
    """Whether two patterns in which ``*`` stands for anything have a text in common."""
    if not first or not second:
        return not (first + second).strip("*")
    if first[0] == "*":
        return intersect(first[1:], second) or intersect(first, second[1:])
    if second[0] == "*":
        return intersect(second, first)
    return first[0] == second[0] and intersect(first[1:], second[1:])


def too_much(statement: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the resources of a statement's actions."""
    for action in as_list(statement["Action"]):
        formats = {re.sub(r"\$\{\w+\}", "*", found) for found in resource_formats(action)}
        for resource in as_list(statement["Resource"]):
            if resource == "*" and formats and action not in EVERYWHERE:
                yield f"{action} is allowed everywhere and could be limited"
            if resource != "*" and not any(intersect(resource, found) for found in formats):
                yield f"{action} cannot be limited to {resource}"


EVERYWHERE = {"ssm:UpdateInstanceInformation"}
"""Could be limited, and AWS does not: its minimal policy for Session Manager ("Verify or add instance permissions for
Session Manager", Systems Manager User Guide) has it with ``*``. It tells AWS of the agent and reads nothing."""


def test_each_permission_is_one_of_aws_and_limited_as_far_as_can_be(plans: Plans) -> None:
    assert [said for statement in statements(plans) for said in too_much(statement)] == []


@pytest.mark.parametrize(
    ("action", "resource", "said"),
    [
        ("s3:ReadObject", ARN, "is no action"),
        ("s3:GetObject", "*", "could be limited"),
        ("s3:ListBucket", "arn:aws:sns:us-east-1:123456789012:topic", "cannot be limited"),
        ("pricing:GetProducts", ARN, "cannot be limited"),
        ("autoscaling:DescribeAutoScalingGroups", "arn:aws:autoscaling:*:*:autoScalingGroup:*", "cannot be limited"),
        ("ssm:GetParameter", "*", "could be limited"),
    ],
)
def test_a_wrong_permission_is_noticed(action: str, resource: str, said: str) -> None:
    try:
        found = list(too_much({"Action": action, "Resource": resource}))
    except AssertionError as error:
        found = [str(error)]
    assert len(found) == 1 and said in found[0]


#: What the AWS CLI's own verbs ask for.
COPIES = {"s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:AbortMultipartUpload"}
#: Operations whose permission has another name ("Actions, resources, and condition keys for Amazon S3").
NAMED = {
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:HeadObject": "s3:GetObject",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:UploadPart": "s3:PutObject",
    "s3:UploadPartCopy": "s3:PutObject",
    "s3:CompleteMultipartUpload": "s3:PutObject",
}
#: What is called by commands that run elsewhere, with their user's permissions; nothing of the worker may import it.
ELSEWHERE = {
    **dict.fromkeys(("account.py", "fit.py", "permissions.py", "routes.py")),
    "group.py": {"capacity", "closing_time", "find_groups", "resume", "suspended"},
}
#: What the agent of Session Manager asks for, and AWS's services in the worker's name.
NOT_OURS = {"ssm:UpdateInstanceInformation", "kms:Decrypt", "kms:GenerateDataKey"}


def operations() -> dict[str, str]:
    """Of the services that are called: Python's names of the operations and the actions that allow them."""
    session = botocore.session.Session()
    found = {}
    for service in ("autoscaling", "ec2", "logs", "pricing", "s3", "sns", "ssm"):
        for name in session.get_service_model(service).operation_names:
            action = f"{service}:{name}"
            found[xform_name(name)] = NAMED.get(action, action)
    return found


def called_in_python(known: dict[str, str]) -> set[str]:
    """Actions behind each operation that the worker's part of the package names, as a text or as a method."""
    found = set()
    for file in [*(REPOSITORY / "train_cloud/platforms/ec2").glob("*.py"), REPOSITORY / "train_cloud/store/s3.py"]:
        elsewhere = ELSEWHERE.get(file.name, set())
        if elsewhere is None:
            continue
        tree = ast.parse(file.read_text())
        skipped = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name in elsewhere
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if node in skipped:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in known:
                found.add(known[node.value])
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in known:
                found.add(known[node.func.attr])
    return found


def called_in_shell(known: dict[str, str]) -> set[str]:
    found: set[str] = set()
    for file in [*(REPOSITORY / "bootstrap").glob("*.sh"), MODULE / "user_data.sh.tftpl"]:
        for service, verb in re.findall(r"\baws ([a-z0-9]+) ([a-z0-9-]+)", file.read_text()):
            if service == "s3":
                assert verb == "cp", f"{file.name}: say here what aws s3 {verb} asks for"
                found |= COPIES
            else:
                found.add(known[verb.replace("-", "_")])
    return found


def test_the_role_allows_what_the_worker_calls_and_nothing_else(plans: Plans) -> None:
    known = operations()
    store = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"}  # obstore's get, put, delete and list
    called = called_in_python(known) | called_in_shell(known) | store
    allowed = {action for statement in statements(plans) for action in as_list(statement["Action"])}
    ours = {action for action in allowed - NOT_OURS if not action.startswith("ssmmessages:")}
    assert ours == called


def test_nothing_of_the_worker_calls_what_it_may_not() -> None:
    """The commands of the user's own machine may: they are in ``cli`` and ``report``."""
    names = {name for names in ELSEWHERE.values() if names for name in names}
    for folder in ("runtime", "artifacts", "run", "checkpoint", "store", "platforms", "platforms/ec2"):
        for file in (REPOSITORY / "train_cloud" / folder).glob("*.py"):
            text = file.read_text()
            if file.name not in ELSEWHERE:
                assert not re.search(r"ec2\.(account|permissions|routes)\b", text), file
            if "ec2.group" in text:
                assert not re.search(rf"\.({'|'.join(names)})\(|import .*\bfind_groups\b", text), file


def test_a_session_reads_no_parameter(plans: Plans) -> None:
    (actions,) = {tuple(as_list(entry["Action"])) for entry in statements(plans) if entry["Sid"] == "SessionManager"}
    assert [action for action in actions if not action.startswith("ssmmessages:")] == ["ssm:UpdateInstanceInformation"]
    assert "AmazonSSMManagedInstanceCore" not in (MODULE / "iam.tf").read_text().replace("# Ama", "")


# Instance types and regions that cannot work.


def refusing(variable: str) -> list[re.Pattern[str]]:
    """The variable's own patterns of what it refuses, whatever else is given; RE2's, which Python reads too."""
    written = (MODULE / "variables.tf").read_text()
    block = written.split(f'variable "{variable}" {{')[1].split("\nvariable ")[0]
    found = re.findall(r'condition += [^\n]*!can\(regex\((?:"(.*?)"|local\.(\w+)), (?:type|var)', block)
    named = dict(re.findall(r'^  (\w+) += "(\^.*)"$', written, re.MULTILINE))
    patterns = [pattern or named[name] for pattern, name in found]
    assert patterns
    return [re.compile(pattern.replace("\\\\", "\\")) for pattern in patterns]


@pytest.mark.parametrize(
    "types",
    [
        "a1.large c6g.large c7gn.large m8gd.large t4g.micro r8g.large x2gd.large im4gn.large is4gen.large g5g.xlarge "
        "hpc7g.4xlarge p6e-gb200.36xlarge mac1.metal mac2-m2.metal",
        "g4ad.xlarge inf1.xlarge inf2.xlarge trn1.2xlarge trn1n.32xlarge trn2.48xlarge dl1.24xlarge dl2q.24xlarge "
        "f1.2xlarge f2.6xlarge vt1.3xlarge g2.2xlarge p2.xlarge",
        "t1.micro m1.small c1.medium m2.xlarge",
        "g3.4xlarge g3s.xlarge p3.2xlarge p3dn.24xlarge g6f.large gr6f.4xlarge",
    ],
    ids=["not x86_64", "no CUDA", "paravirtual", "not by the default image"],
)
def test_a_type_that_cannot_work_is_refused_by_one_validation(types: str) -> None:
    for name in types.split():
        assert len([refused for refused in refusing("instance_types") if refused.search(name)]) == 1, name


def test_no_other_type_is_refused() -> None:
    """Of all that AWS has, by its own list: those with NVIDIA's GPUs from Turing on, and those without any."""
    shape = botocore.session.Session().get_service_model("ec2").shape_for("InstanceType")
    driven = re.compile(r"(g4dn|g5|g6|g6e|g7e?|gr6|p4d|p4de|p5|p5e|p5en|p6-b\d+)\.")
    plain = re.compile(r"(c|m|r|t|x|z|i|d|h|hpc|im|hs|cc|cr)\d[^g.]*\.|u\d?-|u7")
    patterns = refusing("instance_types")
    for name in shape.metadata["enum"]:
        if driven.match(name):
            assert not any(refused.search(name) for refused in patterns), name
        if any(refused.search(name) for refused in patterns):
            assert not plain.match(name) or name.split(".")[0] in {"t1", "m1", "c1", "m2"}, name


@pytest.mark.parametrize(
    "region", ["cn-north-1", "cn-northwest-1", "us-iso-east-1", "us-isob-east-1", "eusc-de-east-1"]
)
def test_a_region_with_endpoints_of_its_own_is_refused(region: str) -> None:
    assert any(refused.search(region) for refused in refusing("aws_region"))


def test_every_region_with_the_usual_endpoints_is_accepted() -> None:
    session = botocore.session.Session()
    for partition in session.get_available_partitions():
        for region in session.get_available_regions("ec2", partition):
            refused = any(pattern.search(region) for pattern in refusing("aws_region"))
            assert refused is (partition not in ("aws", "aws-us-gov")), region


# The provider.


def test_the_tested_provider_is_locked_and_the_next_major_refused(tmp_path: Path) -> None:
    """In version 6 the check of an existing bucket's region would pass for every bucket."""
    lock = (MODULE / ".terraform.lock.hcl").read_text()
    version = re.search(r'version     = "(5\.\d+\.\d+)"', lock)
    assert version is not None
    assert len(re.findall(r'"zh:[0-9a-f]{64}"', lock)) >= 10, "the platforms that others have"
    assert subprocess.run(["git", "check-ignore", "-q", MODULE / ".terraform.lock.hcl"], cwd=REPOSITORY).returncode == 1
    platform = json.loads(subprocess.check_output(["terraform", "version", "-json"]))["platform"]
    mirror = find_mirror()

    def init(*offered: str, locked: bool) -> str:
        """What Terraform says where exactly these versions are to be had."""
        work, offer = tmp_path / "work", tmp_path / "mirror"
        for folder in (work, offer):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for name in ("versions.tf", *[".terraform.lock.hcl"] * locked):
            shutil.copy(MODULE / name, work)
        (work / "variables.tf").write_text('variable "aws_region" {}\nvariable "project_name" {}\n')
        for number in offered:
            (offer / PROVIDER / number).mkdir(parents=True)
            package = offer / PROVIDER / number / platform
            if mirror is not None and (mirror / PROVIDER / number / platform).exists():
                package.symlink_to(mirror / PROVIDER / number / platform)
            else:
                package.mkdir()
        rc = tmp_path / "terraform.rc"
        rc.write_text(f'provider_installation {{\n  filesystem_mirror {{\n    path = "{offer}"\n  }}\n}}\n')
        done = subprocess.run(
            ["terraform", f"-chdir={work}", "init", "-no-color", "-backend=false"],
            env={"PATH": os.environ["PATH"], "TF_CLI_CONFIG_FILE": str(rc), "CHECKPOINT_DISABLE": "1"},
            capture_output=True,
            text=True,
        )
        return " ".join((done.stdout + done.stderr).split())

    assert "no available releases match the given constraints" in init("6.0.0", locked=False)
    assert f"the previously-selected version {version[1]} is no longer available" in init("6.0.0", locked=True)
    if mirror is not None:
        assert f"Installed hashicorp/aws v{version[1]}" in init(version[1], "6.0.0", locked=True)


def test_user_data_of_everything_is_readable(plans: Plans) -> None:
    """The largest there is, decoded: what the checks of its size looked at."""
    made, _ = requests(plans["on"])
    (user_data,) = [
        base64.b64decode(request.parameters["LaunchTemplateData"]["UserData"]).decode()
        for request in made
        if request.operation == "ec2:CreateLaunchTemplate" and f'["{RUN_ID}"]' in request.address
    ]
    environment = worker_environment(user_data)
    assert environment["TRAIN_CLOUD_RUN_ID"] == RUN_ID and environment["AWS_REGION"] == REGION
    assert environment["TRAIN_CLOUD_LOG_GROUP"] == f"/{PROJECT}-{RUN_ID}"
