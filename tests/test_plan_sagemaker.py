"""What the module for SageMaker sends to AWS, and what its role may do, against AWS's own models and documentation."""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from aws_limits import as_list, complaints
from aws_requests import OF_JOBS, requests
from botocore import xform_name
from test_plan import NAMED, planted, too_much

from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.terraform import Terraform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[1]
MODULE = REPOSITORY / "terraform" / "sagemaker"
REGION = "ap-southeast-1"
PROJECT = "abcdefghij-abcdefghi"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """With everything on, and names as long as they may be; what policies are made of is applied first."""
    folder = tmp_path_factory.mktemp("plan")
    with EmbeddedAws(region=REGION, log=folder / "aws.log") as aws:
        subnets = [found["SubnetId"] for found in aws.client("ec2").describe_subnets()["Subnets"]]
        variables = {
            "project_name": PROJECT,
            "aws_region": REGION,
            "s3_bucket_name": "a-bucket-name-of-sixty-three-characters-012345678901234567890-x",
            "prefix": "p" * 100,
            "subnet_ids": subnets,
            "secret_parameters": ["/our-lab/wandb", "plain-name"],
            "read_s3_urls": ["s3://somebodys-models/sac/best/", "s3://demonstrations/"],
            "kms_key_arn": aws.client("kms").create_key()["KeyMetadata"]["Arn"],
            "notification_emails": ["me@example.org"],
            "log_days": 731,
            "delete_images_on_destroy": True,
        }
        terraform = Terraform(folder / "stack", aws, module="sagemaker")
        known = (
            "aws_iam_role.job",
            "aws_ecr_repository.image",
            "aws_security_group.job",
            "aws_cloudwatch_event_rule.ended",
        )
        terraform.apply(variables, only=(*known, "aws_sns_topic.jobs"))
        yield terraform.plan(variables)


def test_aws_takes_all_that_the_plan_sends(plan: dict[str, Any]) -> None:
    assert [str(found) for found in complaints(plan)] == []
    written = "".join(file.read_text() for file in MODULE.glob("*.tf"))
    declared = set(re.findall(r'^resource "(aws_\w+)"', written, re.MULTILINE))
    assert declared == {found["type"] for found in plan["resource_changes"] if found["mode"] == "managed"}
    assert declared >= set(OF_JOBS)


@pytest.mark.parametrize(
    ("kind", "resource", "attribute", "wrong"),
    [
        ("pattern", "aws_ecr_repository", "name", "Train Cloud"),
        ("enum", "aws_ecr_repository", "image_tag_mutability", "FIXED"),
        ("length", "aws_ecr_lifecycle_policy", "policy", "{}"),
        ("pattern", "aws_cloudwatch_event_rule", "name", "ends of jobs"),
        ("length", "aws_cloudwatch_event_rule", "description", "d" * 513),
        ("length", "aws_cloudwatch_event_target", "target_id", "t" * 65),
        ("pattern", "aws_cloudwatch_event_target", "input_transformer.0.input_paths", {"the job": "$.detail"}),
        ("unmapped attribute", "aws_sns_topic_policy", "colour", "red"),
        ("unmapped attribute", "aws_ecr_repository", "colour", "red"),
    ],
)
def test_a_mistake_is_noticed(plan: dict[str, Any], kind: str, resource: str, attribute: str, wrong: Any) -> None:
    found = [each for each in complaints(planted(plan, resource, attribute, wrong)) if each.kind == kind]
    assert found and all(resource in each.where for each in found)


def statements(plan: dict[str, Any]) -> list[dict[str, Any]]:
    (policy,) = [
        request.parameters["PolicyDocument"]
        for request in requests(plan)[0]
        if request.operation == "iam:PutRolePolicy"
    ]
    found: list[dict[str, Any]] = json.loads(policy)["Statement"]
    return found


def test_each_permission_is_one_of_aws_and_limited_as_far_as_can_be(plan: dict[str, Any]) -> None:
    assert [said for statement in statements(plan) for said in too_much(statement)] == []
    loose = copy.deepcopy(statements(plan))
    loose[1]["Resource"] = "*"
    assert [said for statement in loose for said in too_much(statement)] == [
        "s3:GetObject is allowed everywhere and could be limited"
    ]


#: What SageMaker does in the job's name ("CreateTrainingJob API: Execution Role Permissions", SageMaker AI Developer
#: Guide), and what S3 and the volume do with a key.
OF_SAGEMAKER = {
    *(
        "ecr:BatchCheckLayerAvailability",
        "ecr:BatchGetImage",
        "ecr:GetDownloadUrlForLayer",
        "ecr:GetAuthorizationToken",
    ),
    *("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"),
    *("cloudwatch:PutMetricData", "kms:Decrypt", "kms:GenerateDataKey", "kms:CreateGrant", "kms:DescribeKey"),
    *("ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface"),
    *("ec2:DeleteNetworkInterfacePermission", "ec2:DescribeDhcpOptions", "ec2:DescribeNetworkInterfaces"),
    *("ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:DescribeVpcs"),
}


def test_the_role_allows_what_a_job_calls_and_nothing_else(plan: dict[str, Any]) -> None:
    """A job asks S3, SSM for its secrets, and how it stands itself; all else of platforms/sagemaker is the launch's."""
    session, known = botocore.session.Session(), {}
    for service in ("s3", "ssm"):
        for name in session.get_service_model(service).operation_names:
            known[xform_name(name)] = NAMED.get(f"{service}:{name}", f"{service}:{name}")
    called = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"}  # obstore's
    for file in ("store/s3.py", "platforms/ec2/parameters.py"):
        tree = ast.parse((REPOSITORY / "train_cloud" / file).read_text())
        names = {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        names |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        called |= {known[name] for name in names & known.keys()}
    container = (REPOSITORY / "train_cloud/operations/sagemaker/container.py").read_text()
    assert re.findall(r"Jobs\(.*?\)\.(\w+)", container) == ["state"]
    called.add("sagemaker:DescribeTrainingJob")
    allowed = {action for statement in statements(plan) for action in as_list(statement["Action"])}
    assert allowed - OF_SAGEMAKER == called and allowed >= OF_SAGEMAKER


def test_what_was_launched_cannot_be_written_by_a_job(plan: dict[str, Any]) -> None:
    (write,) = [statement for statement in statements(plan) if statement["Sid"] == "Write"]
    patterns = [re.compile(re.escape(entry).replace(r"\*", ".*")) for entry in as_list(write["Resource"])]
    root = f"arn:aws:s3:::a-bucket-name-of-sixty-three-characters-012345678901234567890-x/{'p' * 100}"
    for name, may in (
        ("runs/a/head.json", True),
        ("runs/a/checkpoints/1/manifest.json", True),
        ("runs/a/run.yaml", False),
        ("runs/a/run.json", False),
        ("runs/a/launches/0.json", False),
        ("runs/a/jobs/0.json", False),
        ("code/0/SHA256SUMS", False),
        ("experiments/a/experiment.json", False),
    ):
        assert any(pattern.fullmatch(f"{root}/{name}") for pattern in patterns) is may, name


def test_each_validation_has_a_test_and_says_what_it_checks() -> None:
    variables = (MODULE / "variables.tf").read_text()
    tests = (MODULE / "tests" / "validation.tftest.hcl").read_text()
    blocks = dict(re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', variables, re.DOTALL | re.MULTILINE))
    for name, block in blocks.items():
        assert re.search(r"^  description = \".+\.\"$", block, re.MULTILINE), name
        messages = re.findall(r'error_message = "(.*)"$', block, re.MULTILINE)
        assert all(message.startswith(f"{name}: ") and message.endswith(".") for message in messages), name
        assert len(re.findall(rf"expect_failures = \[var\.{name}\]", tests)) >= len(messages), name
        assert messages or "= bool" in block, name


def test_both_modules_are_made_with_the_same_provider() -> None:
    lock = ".terraform.lock.hcl"
    assert (MODULE / lock).read_bytes() == (MODULE.parent / lock).read_bytes()
