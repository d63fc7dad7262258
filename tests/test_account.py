"""doctor and relaunch as a person runs them, against moto and, for what it does not know, a server of the tests."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest
from groups import machines, make_group

from train_cloud.checkpoint import Committer
from train_cloud.cli import main
from train_cloud.errors import CloudError, InputError
from train_cloud.platforms.ec2.account import IMAGE_PARAMETER, Finding, account_plan, examine
from train_cloud.platforms.ec2.api import client
from train_cloud.platforms.ec2.fit import DEFAULT_TYPES
from train_cloud.platforms.ec2.group import Group
from train_cloud.platforms.ec2.permissions import principal_of
from train_cloud.platforms.ec2.routes import ways_out
from train_cloud.run.head import Head, Lease, Outcome, Token, read_head
from train_cloud.run.layout import run_url
from train_cloud.run.overrides import read_overrides, write_overrides
from train_cloud.snapshot import Snapshot
from train_cloud.store import ObjectStore, open_store

TERRAFORM = Path(__file__).parents[1] / "terraform"


class Account(ThreadingHTTPServer):
    """What moto does not know of an account, in the words of AWS's API references.

    :ivar quotas: GetServiceQuota: a value by code, or the code of a refusal
    :ivar plan: GetAccountPlanState, or the code of a refusal
    :ivar allowed: SimulatePrincipalPolicy: whether an action on a resource is allowed; or the code of a refusal
    :ivar simulated: what it was asked, as (action, resource)
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.quotas: dict[str, float | str] = {
            **{"L-3819A6DF": 8.0, "L-34B43A08": 32.0, "L-7212CCBC": 0.0},
            **{"L-DB2E81BA": 8.0, "L-1216C47A": 32.0, "L-417A185B": 0.0},
        }
        self.plan: dict[str, Any] | str = {"accountPlanType": "PAID", "accountPlanStatus": "ACTIVE"}
        self.allowed: Callable[[str, str], bool] | str = lambda action, resource: True
        self.simulated: list[tuple[str, str]] = []
        self.principals: set[str] = set()

    def json(self, target: str, asked: dict[str, Any]) -> dict[str, Any] | str:
        if target == "AWSFreeTierService.GetAccountPlanState":
            return self.plan
        assert target == "ServiceQuotasV20190624.GetServiceQuota", target
        value = self.quotas.get(asked["QuotaCode"], "NoSuchResourceException")
        return value if isinstance(value, str) else {"Quota": {"Value": value}}

    def query(self, asked: dict[str, str]) -> str:
        """IAM's two calls; three results to a page. A refusal has a code only."""
        if asked["Action"] == "GetRole":
            path = "aws-reserved/sso.amazonaws.com/" if asked["RoleName"].startswith("AWSReservedSSO_") else ""
            role = f"<Arn>arn:aws:iam::123456789012:role/{path}{asked['RoleName']}</Arn>"
            return f"<GetRoleResponse><GetRoleResult><Role>{role}</Role></GetRoleResult></GetRoleResponse>"
        assert asked["Action"] == "SimulatePrincipalPolicy"
        if isinstance(self.allowed, str):
            return self.allowed
        self.principals.add(asked["PolicySourceArn"])
        names = [value for name, value in asked.items() if name.startswith("ActionNames.member.")]
        resource, first = asked["ResourceArns.member.1"], int(asked.get("Marker", 0))
        assert asked["ContextEntries.member.1.ContextKeyValues.member.1"] == "us-east-1"
        results = ""
        for name in names[first : first + 3]:
            self.simulated.append((name, resource))
            decision = "allowed" if self.allowed(name, resource) else "implicitDeny"
            results += (
                f"<member><EvalActionName>{name}</EvalActionName><EvalDecision>{decision}</EvalDecision></member>"
            )
        more = first + 3 < len(names)
        page = f"<IsTruncated>{str(more).lower()}</IsTruncated>" + (f"<Marker>{first + 3}</Marker>" if more else "")
        result = f"<EvaluationResults>{results}</EvaluationResults>{page}"
        return (
            "<SimulatePrincipalPolicyResponse><SimulatePrincipalPolicyResult>"
            f"{result}</SimulatePrincipalPolicyResult></SimulatePrincipalPolicyResponse>"
        )


class _Exchange(BaseHTTPRequestHandler):
    server: Account

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        target = self.headers.get("X-Amz-Target")
        if target is not None:
            answer = self.server.json(target, json.loads(body))
            refused = isinstance(answer, str)
            text = json.dumps({"__type": answer, "message": "no"} if refused else answer)
        else:
            text = self.server.query({name: values[0] for name, values in parse_qs(body).items()})
            refused = not text.startswith("<")
            if refused:
                text = f"<ErrorResponse><Error><Code>{text}</Code><Message>no</Message></Error></ErrorResponse>"
        self.send_response(400 if refused else 200)
        self.send_header("Content-Type", "application/x-amz-json-1.1" if target else "text/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def account(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Account]:
    with Account() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        for service in ("SERVICE_QUOTAS", "FREETIER", "IAM"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", f"http://127.0.0.1:{server.server_port}")
        (tmp_path / "bin").mkdir()
        plugin = tmp_path / "bin" / "session-manager-plugin"
        plugin.write_text("#!/bin/sh\n")
        plugin.chmod(0o755)
        monkeypatch.setenv("PATH", f"{plugin.parent}{os.pathsep}{os.environ['PATH']}")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def gateway(aws_endpoint: str) -> str:
    """The default VPC's way out, as AWS makes it and moto does not."""
    ec2 = boto3.client("ec2")
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    gateway = str(ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"])
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc["VpcId"])
    (table,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["RouteTables"]
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    return gateway


def findings(**options: Any) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in examine(**options):
        found.setdefault(finding.subject, []).append(finding)
    return found


# -------------------------------------------------------------------------------------------------------------- doctor


SUBJECTS = [
    *("credentials", "region", "types", "account plan", "spot quota", "on-demand quota", "default VPC", "subnets"),
    *("key pair", "image", "permissions", "session manager"),
]


def test_every_point_has_its_line(account: Account, gateway: str) -> None:
    found = findings()
    assert list(found) == SUBJECTS
    verdicts = {subject: {finding.verdict for finding in lines} for subject, lines in found.items()}
    # moto has no Deep Learning images.
    assert verdicts.pop("image") == {"fail"} and IMAGE_PARAMETER in found["image"][0].said
    assert set.union(*verdicts.values()) == {"ok"}
    assert [finding.said.split()[0] for finding in found["types"]] == list(DEFAULT_TYPES)
    assert "us-east-1a" in found["types"][1].said
    assert all(finding.fix for lines in found.values() for finding in lines if finding.verdict == "fail")


def test_new_accounts_have_no_quota_and_are_told_what_to_do(account: Account) -> None:
    account.quotas["L-3819A6DF"] = 0.0
    (finding,) = findings()["spot quota"]
    assert (finding.verdict, finding.said) == (
        "fail",
        "All G and VT Spot Instance Requests: 0 vCPUs in us-east-1; the smallest wanted type needs 4",
    )
    assert "request-service-quota-increase --region us-east-1" in finding.fix and "L-3819A6DF" in finding.fix


@pytest.mark.parametrize(
    ("types", "verdicts"),
    [
        (["g5.xlarge"], ["ok"]),
        (["g5.4xlarge"], ["fail"]),
        (["g5.4xlarge", "g4dn.xlarge"], ["ok"]),
        (["c5.large", "m5.large"], ["ok"]),
        (["g5.xlarge", "p3.2xlarge"], ["ok", "fail"]),
        (["inf1.xlarge"], ["warn"]),
        (["c5.large", "dl1.24xlarge"], ["ok", "warn"]),
    ],
)
def test_each_family_has_its_quota(account: Account, types: list[str], verdicts: list[str]) -> None:
    assert [finding.verdict for finding in findings(types=types)["spot quota"]] == verdicts


@pytest.mark.parametrize(("machines", "verdict"), [(2, "ok"), (3, "warn"), (42, "warn")])
def test_an_experiments_runs_need_their_quota_all_at_once(account: Account, machines: int, verdict: str) -> None:
    account.quotas["L-3819A6DF"] = 8.0
    (finding,) = findings(types=["g5.xlarge"], machines=machines)["spot quota"]
    assert finding.verdict == verdict
    if verdict == "warn":
        need = 4 * machines
        assert f"{machines} machines of the smallest wanted type need {need}: 2 of them run at once" in finding.said
        assert f"--desired-value {need} " in finding.fix


@pytest.mark.parametrize("refusal", ["AccessDeniedException", "NoSuchResourceException", "ThrottlingException"])
def test_what_may_not_be_asked_could_not_be_checked(account: Account, refusal: str) -> None:
    account.quotas["L-3819A6DF"] = refusal
    (finding,) = findings()["spot quota"]
    assert finding.verdict == "warn" and "could not be checked" in finding.said


def test_each_family_has_its_on_demand_quota_too(account: Account) -> None:
    """Without one, use_spot = false is no way out; with spot it is not needed."""
    account.quotas |= {"L-DB2E81BA": 0.0, "L-1216C47A": 1.0}
    first, second = findings(types=["g5.xlarge", "c5.large"])["on-demand quota"]
    assert (first.verdict, second.verdict) == ("warn", "warn")
    assert first.said.startswith("Running On-Demand G and VT instances: 0 vCPUs in us-east-1")
    assert "use_spot = false" in first.said and "--quota-code L-DB2E81BA" in first.fix
    assert second.said.startswith("Running On-Demand Standard instances: 1 vCPUs")


FREE = {
    "accountPlanType": "FREE",
    "accountPlanStatus": "ACTIVE",
    "accountPlanRemainingCredits": {"amount": 87.5, "unit": "USD"},
}


@pytest.mark.parametrize(
    ("plan", "verdict", "said"),
    [
        ({"accountPlanType": "PAID", "accountPlanStatus": "ACTIVE"}, "ok", "PAID: no restriction"),
        ("ResourceNotFoundException", "ok", "none: no restriction"),
        ("AccessDeniedException", "warn", "could not be checked, these credentials may not"),
        (FREE, "fail", "launches free-tier-eligible types only, as spot too; not eligible: g6.xlarge, g5.xlarge"),
        ({**FREE, "accountPlanStatus": "EXPIRED"}, "fail", "nothing can be launched any more"),
    ],
)
def test_the_free_plan_launches_few_types(account: Account, plan: Any, verdict: str, said: str) -> None:
    account.plan = plan
    (finding,) = findings()["account plan"]
    assert finding.verdict == verdict and said in finding.said
    if verdict == "fail":
        assert "87.5 USD of credits left" in finding.said
        assert "aws freetier upgrade-account-plan --region us-east-1 --account-plan-type PAID" in finding.fix


def test_on_the_free_plan_types_that_it_launches_are_told_from_others() -> None:
    """moto knows nothing of it: answers by hand, as DescribeInstanceTypes gives them."""

    class Ec2:
        def describe_instance_types(self, Filters: list[dict[str, Any]]) -> dict[str, Any]:
            asked = {entry["Name"]: entry["Values"] for entry in Filters}
            assert asked == {"free-tier-eligible": ["true"], "processor-info.supported-architecture": ["x86_64"]}
            sizes = {"t3.micro": 1024, "m7i-flex.large": 8192, "c7i-flex.large": 4096}
            return {
                "InstanceTypes": [
                    {"InstanceType": name, "MemoryInfo": {"SizeInMiB": size}} for name, size in sizes.items()
                ]
            }

    class FreeTier:
        def get_account_plan_state(self) -> dict[str, Any]:
            return FREE

    wanted, eligible = ["c7i-flex.large", "g5.xlarge"], {"c7i-flex.large", "t3.micro"}
    verdicts = [account_plan(FreeTier(), Ec2(), types, eligible) for types in (wanted[:1], wanted, wanted[1:])]
    assert [finding.verdict for finding in verdicts] == ["ok", "warn", "fail"]
    assert "not eligible: g5.xlarge" in verdicts[1].said
    assert verdicts[2].fix.endswith("or train on the CPU of c7i-flex.large or m7i-flex.large")


def test_a_subnet_without_a_way_out_is_named(account: Account, gateway: str) -> None:
    ec2 = boto3.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    ids = [ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24")["Subnet"]["SubnetId"] for n in range(4)]
    own = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=own, VpcId=vpc)
    nat = ec2.create_nat_gateway(SubnetId=ids[1])["NatGateway"]["NatGatewayId"]
    # The first has the VPC's main table, with no route out.
    for subnet, target in ((ids[1], {"GatewayId": own}), (ids[2], {"GatewayId": own}), (ids[3], {"NatGatewayId": nat})):
        table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
        ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", **target)
        ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
    ec2.modify_subnet_attribute(SubnetId=ids[2], MapPublicIpOnLaunch={"Value": True})
    found = findings(subnet_ids=ids)
    assert "default VPC" not in found
    failed = {line.said.split(": ")[0]: line for line in found["subnets"] if line.verdict == "fail"}
    assert set(failed) == {ids[0], ids[1]}
    assert "no route to 0.0.0.0/0; a worker there reaches nothing" in failed[ids[0]].said
    assert f"its way out is {own}, and machines get no public address there" in failed[ids[1]].said
    assert all("NAT gateway" in line.fix for line in failed.values())
    (good,) = (line for line in found["subnets"] if line.verdict == "ok")
    assert set(good.said.removeprefix("a way to the internet from ").split(", ")) == {ids[2], ids[3]}
    (absent,) = findings(subnet_ids=["subnet-0123456789abcdef0"])["subnets"]
    assert absent.verdict == "fail" and "subnet-0123456789abcdef0" in absent.said


def test_a_route_to_something_that_is_gone_is_none() -> None:
    """A NAT gateway that was deleted leaves its routes, in the state blackhole."""

    class Ec2:
        def describe_route_tables(self, Filters: object) -> dict[str, Any]:
            route = {"DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": "nat-0", "State": "blackhole"}
            return {"RouteTables": [{"VpcId": "vpc-0", "Associations": [{"Main": True}], "Routes": [route]}]}

    (said,) = ways_out(Ec2(), [{"SubnetId": "subnet-0", "VpcId": "vpc-0", "MapPublicIpOnLaunch": True}]).values()
    assert said is not None and "leads to something that is gone" in said


def test_what_apply_needs_and_what_only_options_need(account: Account) -> None:
    lacking = {"iam:PassRole", "s3:PutBucketPolicy", "sns:Subscribe"}
    account.allowed = lambda action, resource: action not in lacking
    first, second = findings()["permissions"]
    assert (first.verdict, second.verdict) == ("fail", "warn")
    assert first.said == "terraform apply and destroy also need iam:PassRole, s3:PutBucketPolicy"
    assert second.said == "notification_emails would also need sns:Subscribe"
    asked = dict(account.simulated)
    assert (
        len(asked) > 80
        and asked["s3:PutObject"] == "arn:aws:s3:::train-cloud-123456789012-us-east-1/runs/a-run/run.yaml"
    )
    assert asked["iam:PassRole"] == "arn:aws:iam::123456789012:role/train-cloud-a-run-us-east-1"


@pytest.mark.parametrize(
    ("caller", "principal"),
    [
        ("arn:aws:iam::123456789012:user/path/me", "arn:aws:iam::123456789012:user/path/me"),
        ("arn:aws:sts::123456789012:assumed-role/mine/session", "arn:aws:iam::123456789012:role/mine"),
        (
            "arn:aws-us-gov:sts::123456789012:assumed-role/AWSReservedSSO_Admin_0a/me@example.org",
            "arn:aws:iam::123456789012:role/aws-reserved/sso.amazonaws.com/AWSReservedSSO_Admin_0a",
        ),
        ("arn:aws:iam::123456789012:root", None),
    ],
)
def test_policies_are_attached_to_users_and_roles_not_to_sessions(
    account: Account, caller: str, principal: str | None
) -> None:
    assert principal_of(client("iam"), caller) == principal


@pytest.mark.parametrize("caller", ["arn:aws:sts::123456789012:federated-user/me", "nonsense"])
def test_other_callers_cannot_be_simulated(account: Account, caller: str) -> None:
    with pytest.raises(CloudError):
        principal_of(client("iam"), caller)


def test_where_the_simulation_is_forbidden_that_is_said(account: Account) -> None:
    account.allowed = "AccessDenied"
    (finding,) = findings()["permissions"]
    assert finding.verdict == "warn" and "could not be checked, these credentials may not" in finding.said
    assert "iam:SimulatePrincipalPolicy" in finding.fix


def test_without_the_plugin_there_is_no_shell(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings()["session manager"][0].verdict == "ok"
    monkeypatch.setenv("PATH", "/nowhere")
    (finding,) = findings()["session manager"]
    assert finding.verdict == "warn" and "session-manager-plugin" in finding.said and finding.fix


def test_types_that_are_not_offered(account: Account) -> None:
    found = findings(types=["g5.xlarge", "g9.xlarge"])["types"]
    assert [finding.verdict for finding in found] == ["ok", "warn"]
    assert "g9.xlarge is not offered in us-east-1" in found[1].said
    assert [finding.verdict for finding in findings(types=["g9.xlarge"])["types"]] == ["fail"]


def test_key_pairs(account: Account) -> None:
    boto3.client("ec2").create_key_pair(KeyName="mine")
    assert findings(key_pair="mine")["key pair"] == [Finding("key pair", "ok", "mine")]
    (finding,) = findings(key_pair="yours")["key pair"]
    assert finding.verdict == "fail" and "create-key-pair --region us-east-1 --key-name yours" in finding.fix


def test_a_region_without_a_default_vpc(account: Account) -> None:
    ec2 = boto3.client("ec2", region_name="eu-north-1")
    for vpc in ec2.describe_vpcs()["Vpcs"]:
        for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["Subnets"]:
            ec2.delete_subnet(SubnetId=subnet["SubnetId"])
        ec2.delete_vpc(VpcId=vpc["VpcId"])
    (finding,) = findings(region="eu-north-1")["default VPC"]
    assert finding.verdict == "fail" and "create-default-vpc --region eu-north-1" in finding.fix


def test_without_credentials_it_ends_there(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (finding,) = examine()
    assert (finding.subject, finding.verdict) == ("credentials", "fail")
    assert "aws configure" in finding.fix


def test_without_a_region_it_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    (finding,) = examine()
    assert (finding.subject, finding.verdict) == ("region", "fail")


def test_the_command_prints_a_line_each_and_its_exit_code_counts(
    account: Account, gateway: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--instance-type", "c5.large"]) == 1
    lines = capsys.readouterr().out.splitlines()
    marked = [line for line in lines if not line.startswith("    → ")]
    assert len(marked) == len(SUBJECTS) and len(lines) == len(SUBJECTS) + 1
    assert sorted(line[0] for line in marked) == ["✓"] * (len(SUBJECTS) - 1) + ["✗"]


def test_nothing_failed_is_exit_code_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from train_cloud.rehearsal.aws import EmbeddedAws

    with EmbeddedAws() as aws:
        for name, value in aws.environment().items():
            monkeypatch.setenv(name, value)
        assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "✗" not in said and "could not be checked" in said and "ami-" in said


def test_what_is_asked_for_is_what_terraform_asks_for() -> None:
    variables = (TERRAFORM / "variables.tf").read_text()
    block = variables[variables.index('variable "instance_types"') :]
    default = re.search(r"default\s*=\s*(\[.*\])", block)
    assert default is not None and tuple(json.loads(default[1])) == DEFAULT_TYPES
    assert f'"{IMAGE_PARAMETER}"' in (TERRAFORM / "worker.tf").read_text()


# ------------------------------------------------------------------------------------------------------------- relaunch


@pytest.fixture
def group(aws_endpoint: str) -> str:
    """A group at capacity 0, tagged with a run id that is its name."""
    name = make_group()
    Group(name).set_capacity(0)
    return name


def ended(root: str, run_id: str, outcome: Outcome | None) -> Head:
    lease = Lease.take(open_store(run_url(root, run_id)), Token(1, 0), "i-0abc")
    return lease.conclude(outcome, "as it were") if outcome else lease.head


def standing(root: str, run_id: str) -> Head:
    read = read_head(open_store(run_url(root, run_id)))
    assert read is not None
    return read[0]


@pytest.mark.parametrize("outcome", ["stopped", "failed", None])
@pytest.mark.parametrize("named", ["by url", "by id", "by file"])
def test_a_run_goes_on(
    s3_root: str, group: str, tmp_path: Path, outcome: Outcome | None, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended(s3_root, group, outcome)
    file = tmp_path / "run.yaml"
    rest = "algorithm: sac\ntotal_timesteps: 2000\nsave_frequency: 500\nenvironment: {id: Pendulum-v1}\n"
    file.write_text(f"run_id: {group}\n{rest}")
    run = {
        "by url": [run_url(s3_root, group)],
        "by id": [group, "--store", s3_root],
        "by file": [str(file), "--store", s3_root],
    }[named]
    assert main(["relaunch", *run]) == 0
    head = standing(s3_root, group)
    assert (head.outcome, head.reason, head.attempts) == (None, None, 0)
    assert Group(group).capacity() == 1 and len(machines(group)) == 1
    said = capsys.readouterr().out
    assert "desired capacity 1" in said and ("as it were" in said) == (outcome is not None)


RUN = "algorithm: sac\ntotal_timesteps: 2000\nsave_frequency: 500\nenvironment: {id: Pendulum-v1}\n"


def test_a_group_that_aws_has_suspended_is_named_and_launches_again(
    s3_root: str, group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a day without capacity AWS stops trying ("administrative suspension")."""
    ended(s3_root, group, None)
    boto3.client("autoscaling").suspend_processes(
        AutoScalingGroupName=group, ScalingProcesses=["AZRebalance", "Launch"]
    )
    assert main(["status", run_url(s3_root, group)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "launches nothing, because AWS has suspended it (Launch: " in said
    assert f"train-cloud relaunch {group}" in said
    assert main(["status", run_url(s3_root, group), "--json"]) == 0
    assert "Launch: " in json.loads(capsys.readouterr().out)["suspended"]
    assert main(["relaunch", run_url(s3_root, group)]) == 0
    assert f"resumed what was suspended in {group}: Launch (" in capsys.readouterr().out
    assert Group(group).suspended() == {} and Group(group).capacity() == 1
    assert main(["status", run_url(s3_root, group)]) == 0
    assert "suspended" not in capsys.readouterr().out


def completed(root: str, run_id: str, *, launched: str = RUN, **facts: Any) -> ObjectStore:
    """A run at 2000 timesteps, as Terraform had launched it."""
    store = open_store(run_url(root, run_id))
    store.create("run.yaml", f"run_id: {run_id}\ncode: {{folder: ./not-here}}\n{launched}".encode())
    store.create("overrides-0.json", b'{"save_frequency": 400}')
    committer = Committer(store, Lease.take(store, Token(1, 0), "i-0abc"), None)
    committer.submit(Snapshot(2000, {}, facts=facts), outcome="completed")
    committer.wait()
    return store


def overrides(store: ObjectStore) -> dict[str, Any]:
    """Content of each, by key."""
    return {info.key: json.loads(bytes(store.get(info.key).body)) for info in store.list("overrides-")}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ([], "run_id"),
        (["--set", "save_frequency=100"], "run_id"),
        (["--set", "total_timesteps=2000"], "run_id"),
        (["--set", "total_timesteps=-1"], "total_timesteps"),
        (["--set", "total_timestep=3000"], "total_timestep"),
        (["--set", "total_timesteps=3000", "--set", "seed=2"], "seed"),
        (["--set", "total_timesteps=3000", "--set", "hyperparameters.gamma=0.9"], "hyperparameters.gamma"),
        (["--set", "total_timesteps=3000", "--set", "training_type=ppo"], "training_type"),
    ],
)
def test_a_budget_that_leaves_nothing_to_do_or_is_none_is_refused(
    s3_root: str, group: str, changes: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = completed(s3_root, group)
    assert main(["relaunch", run_url(s3_root, group), *changes]) == 64
    assert capsys.readouterr().err.startswith(f"train-cloud: {field}: ")
    assert standing(s3_root, group).outcome == "completed" and Group(group).capacity() == 0
    assert list(overrides(store)) == ["overrides-0.json"]


def test_a_completed_run_goes_on_with_a_larger_total(
    s3_root: str, group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = completed(s3_root, group)
    assert main(["relaunch", run_url(s3_root, group), "--set", "total_timesteps=3e3", "--set", "limits.hours=5"]) == 0
    assert "overrides-1.json: total_timesteps=3000.0, limits.hours=5" in capsys.readouterr().out
    head = standing(s3_root, group)
    assert (head.outcome, head.timesteps) == (None, 2000) and Group(group).capacity() == 1
    newest = {"save_frequency": 400, "total_timesteps": 3000, "limits.hours": 5}
    assert overrides(store)["overrides-1.json"] == newest
    assert main(["relaunch", run_url(s3_root, group), "--set", "limits={hours: 7}"]) == 0
    assert overrides(store)["overrides-2.json"] == {**newest, "limits": {"hours": 7}}
    assert list(overrides(store)["overrides-2.json"])[-1] == "limits", "what comes last counts"
    assert main(["relaunch", run_url(s3_root, group)]) == 0
    assert len(overrides(store)) == 3


def test_a_run_that_a_callback_has_ended_goes_on_if_that_is_asked(
    s3_root: str, group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    launched = "algorithm: ppo\nenvironment: {id: CartPole-v1}\ntotal_timesteps: 3000\n"
    store = completed(s3_root, group, launched=launched, ended_early={"by": "Enough", "total_timesteps": 3000})
    run = ["relaunch", run_url(s3_root, group)]
    assert main(run) == 64
    assert "Enough ended it at 2000 timesteps: --continue trains on" in capsys.readouterr().err
    assert not list(store.list("continued/")) and standing(s3_root, group).outcome == "completed"
    assert main([*run, "--continue"]) == 0
    assert [info.key for info in store.list("continued/")] == ["continued/000000002000.json"]
    assert standing(s3_root, group).outcome is None and Group(group).capacity() == 1
    assert main([*run, "--continue"]) == 0, "said twice"


def test_with_a_schedule_it_is_said_over_what(s3_root: str, group: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = completed(s3_root, group, schedules={"names": ["learning_rate"], "timesteps": 2000})
    run = ["relaunch", run_url(s3_root, group), "--set", "total_timesteps=3000"]
    assert main(run) == 64
    said = capsys.readouterr().err
    assert "total_timesteps: 3000: learning_rate would run over 3000 timesteps" in said and "--schedule-total" in said
    assert len(overrides(store)) == 1
    assert main([*run, "--schedule-total", "2000"]) == 0
    assert overrides(store)["overrides-1.json"]["schedule_total"] == 2000


def test_the_newest_overrides_are_those_with_the_largest_number(store_root: str) -> None:
    store = open_store(store_root)
    assert read_overrides(store) == (-1, {})
    for number in range(12):
        assert write_overrides(store, {"a": number, f"b{number}": 1}) == number
    number, content = read_overrides(store)
    assert number == 11 and content["a"] == 11 and len(content) == 13
    store.put("overrides-12.json", b"[]")
    with pytest.raises(InputError, match="overrides-12"):
        read_overrides(store)


def test_a_completed_run_whose_file_is_elsewhere_goes_on_there(
    s3_root: str, group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended(s3_root, group, "completed")
    assert main(["relaunch", run_url(s3_root, group)]) == 64
    assert "there is no run.yaml" in capsys.readouterr().err
    assert standing(s3_root, group).outcome == "completed" and Group(group).capacity() == 0


@pytest.mark.parametrize("arguments", [[], ["--group", "no-such-group"]])
def test_without_its_group_nothing_is_changed(
    s3_root: str, aws_endpoint: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ended(s3_root, "lonely", "failed")
    assert main(["relaunch", run_url(s3_root, "lonely"), *arguments]) == 64
    assert "terraform apply" in capsys.readouterr().err
    assert standing(s3_root, "lonely").outcome == "failed"


def test_a_run_that_nobody_launched_is_refused(s3_root: str, group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["relaunch", run_url(s3_root, group)]) == 64
    assert "nothing is stored" in capsys.readouterr().err
    assert Group(group).capacity() == 0


@pytest.mark.parametrize(("hours", "hinted"), [(-2, True), (2, False)])
def test_a_group_whose_time_is_up_is_said_to_close_again(
    s3_root: str, group: str, hours: int, hinted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    boto3.client("autoscaling").put_scheduled_update_group_action(
        AutoScalingGroupName=group,
        ScheduledActionName="stop-at-limit",
        StartTime=datetime.now(timezone.utc) + timedelta(hours=hours),
        Recurrence="5 * * * *",
        DesiredCapacity=0,
    )
    ended(s3_root, group, "stopped")
    assert main(["relaunch", run_url(s3_root, group)]) == 0
    assert ("max_runtime_hours" in capsys.readouterr().out) == hinted
