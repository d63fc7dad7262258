"""doctor and relaunch as a person runs them, against moto and a quota service of the tests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from groups import machines, make_group

from train_cloud.checkpoint import Committer
from train_cloud.cli import main
from train_cloud.errors import InputError
from train_cloud.instance.account import IMAGE_PARAMETER, INSTANCE_TYPES, Finding, examine
from train_cloud.instance.group import Group
from train_cloud.run.head import Head, Lease, Outcome, Token, read_head
from train_cloud.run.layout import run_url
from train_cloud.run.overrides import read_overrides, write_overrides
from train_cloud.snapshot import Snapshot
from train_cloud.store import ObjectStore, open_store

TERRAFORM = Path(__file__).parents[1] / "terraform"


class Quotas(ThreadingHTTPServer):
    """GetServiceQuota of AWS's JSON protocol: a value by code, or a refusal."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.values: dict[str, float | str] = {}


class _Exchange(BaseHTTPRequestHandler):
    server: Quotas

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        value = self.server.values.get(asked["QuotaCode"], "NoSuchResourceException")
        refused = isinstance(value, str)
        answer: dict[str, Any] = {"__type": value, "message": "no"} if refused else {"Quota": {"Value": value}}
        body = json.dumps(answer).encode()
        self.send_response(400 if refused else 200)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def quotas(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Quotas]:
    with Quotas() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", f"http://127.0.0.1:{server.server_port}")
        server.values = {"L-3819A6DF": 8.0, "L-34B43A08": 32.0, "L-7212CCBC": 0.0}
        yield server
        server.shutdown()
        thread.join()


def findings(**options: Any) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in examine(**options):
        found.setdefault(finding.subject, []).append(finding)
    return found


# -------------------------------------------------------------------------------------------------------------- doctor


def test_every_point_has_its_line(quotas: Quotas) -> None:
    found = findings()
    assert list(found) == ["credentials", "region", "types", "spot quota", "default VPC", "key pair", "image"]
    verdicts = {subject: {finding.verdict for finding in lines} for subject, lines in found.items()}
    # moto has no Deep Learning images.
    assert verdicts.pop("image") == {"fail"} and IMAGE_PARAMETER in found["image"][0].said
    assert set.union(*verdicts.values()) == {"ok"}
    assert [finding.said.split()[0] for finding in found["types"]] == list(INSTANCE_TYPES)
    assert "us-east-1a" in found["types"][1].said
    assert all(finding.fix for lines in found.values() for finding in lines if finding.verdict == "fail")


def test_new_accounts_have_no_quota_and_are_told_what_to_do(quotas: Quotas) -> None:
    quotas.values["L-3819A6DF"] = 0.0
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
def test_each_family_has_its_quota(quotas: Quotas, types: list[str], verdicts: list[str]) -> None:
    assert [finding.verdict for finding in findings(types=types)["spot quota"]] == verdicts


@pytest.mark.parametrize("refusal", ["AccessDeniedException", "NoSuchResourceException", "ThrottlingException"])
def test_what_may_not_be_asked_could_not_be_checked(quotas: Quotas, refusal: str) -> None:
    quotas.values["L-3819A6DF"] = refusal
    (finding,) = findings()["spot quota"]
    assert finding.verdict == "warn" and "could not be checked" in finding.said


def test_types_that_are_not_offered(quotas: Quotas) -> None:
    found = findings(types=["g5.xlarge", "g9.xlarge"])["types"]
    assert [finding.verdict for finding in found] == ["ok", "warn"]
    assert "g9.xlarge is not offered in us-east-1" in found[1].said
    assert [finding.verdict for finding in findings(types=["g9.xlarge"])["types"]] == ["fail"]


def test_key_pairs(quotas: Quotas) -> None:
    boto3.client("ec2").create_key_pair(KeyName="mine")
    assert findings(key_pair="mine")["key pair"] == [Finding("key pair", "ok", "mine")]
    (finding,) = findings(key_pair="yours")["key pair"]
    assert finding.verdict == "fail" and "create-key-pair --region us-east-1 --key-name yours" in finding.fix


def test_a_region_without_a_default_vpc(quotas: Quotas) -> None:
    ec2 = boto3.client("ec2", region_name="eu-north-1")
    for vpc in ec2.describe_vpcs()["Vpcs"]:
        for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["Subnets"]:
            ec2.delete_subnet(SubnetId=subnet["SubnetId"])
        ec2.delete_vpc(VpcId=vpc["VpcId"])
    (finding,) = findings(region="eu-north-1")["default VPC"]
    assert finding.verdict == "fail" and "create-default-vpc --region eu-north-1" in finding.fix


def test_without_credentials_it_ends_there(quotas: Quotas, monkeypatch: pytest.MonkeyPatch) -> None:
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
    quotas: Quotas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--instance-type", "c5.large"]) == 1
    lines = capsys.readouterr().out.splitlines()
    marked = [line for line in lines if not line.startswith("    → ")]
    assert len(marked) == 7 and len(lines) == 8
    assert [line[0] for line in marked] == ["✓"] * 6 + ["✗"]


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
    assert default is not None and tuple(json.loads(default[1])) == INSTANCE_TYPES
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
