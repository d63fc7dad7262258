"""Training jobs of SageMaker: what a run file may ask for, what AWS is asked for, and what a job does and leaves.

The service is the rehearsal's own over HTTP, S3 is moto's, the entry point a process with an ``/opt/ml`` of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from until import until

from train_cloud.cli import main
from train_cloud.config import RunFile, parse_run_file
from train_cloud.config.aws_model import findings, service_model
from train_cloud.config.pipeline import load_pipeline
from train_cloud.errors import CloudError, CorruptCheckpoint, InputError
from train_cloud.experiments.pipeline_jobs import PipelineJobs
from train_cloud.operations.sagemaker.launch import create, plan_run
from train_cloud.platforms.here import here
from train_cloud.platforms.sagemaker import jobs as asked_of_aws
from train_cloud.platforms.sagemaker.job import PLACE, Job, Place
from train_cloud.platforms.sagemaker.jobs import Jobs
from train_cloud.platforms.sagemaker.launched import Launched, fetch_code, put_code, put_launch, read_launch
from train_cloud.platforms.sagemaker.request import job_name, refuse_pool_and_spot, training_job, unlike
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.sagemaker.containers import Container, Process, lacking
from train_cloud.rehearsal.sagemaker.life import Life
from train_cloud.rehearsal.sagemaker.service import Job as Played
from train_cloud.rehearsal.sagemaker.service import SageMaker, refusals
from train_cloud.run import layout
from train_cloud.run.head import Head, conclude, pack_head, read_head
from train_cloud.store import open_store

ROLE = "arn:aws:iam::123456789012:role/jobs"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train-cloud:1"
SECTION: dict[str, Any] = {"role": ROLE, "image": IMAGE}
RUN: dict[str, Any] = {
    "run_id": "a-run",
    "algorithm": "ppo",
    "total_timesteps": 64,
    "save_frequency": 64,
    "environment": {"id": "Pendulum-v1"},
    "hyperparameters": {"n_steps": 32, "batch_size": 32, "policy_kwargs": {"net_arch": [4]}},
    "sagemaker": SECTION,
}
BUCKET = "of-jobs"
in_a_mount_namespace = pytest.mark.skipif(
    lacking() is not None and "CI" not in os.environ, reason=f"an /opt/ml of its own: {lacking()}"
)
ROOT = f"s3://{BUCKET}/lab"


def config(**changes: Any) -> RunFile:
    return parse_run_file({**RUN, "sagemaker": {**SECTION, **changes}})


def request(**changes: Any) -> dict[str, Any]:
    section = config(**changes).sagemaker
    assert section is not None
    return training_job(section, "a-job", store=ROOT, launch="runs/a-run/launches/0.json", tags={"a": "b"})


# ------------------------------------------------------------------------------------------ what a run file may ask for


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("role", "arn:aws:iam::12:role/x", "arn:aws:iam::123456789012:role/name"),
        ("role", "jobs", "arn:aws:iam::123456789012:role/name"),
        ("image", "python:3.11", "name an image in ECR with its tag"),
        ("image", IMAGE.removesuffix(":1"), "name an image in ECR with its tag"),
        ("image", IMAGE.replace("train-cloud", "Train"), "ECR calls no repository so"),
        ("image", IMAGE.replace("us-east-1", "us-east-9"), "SageMaker is not in us-east-9"),
        ("region", "mars-1", "SageMaker is in"),
        ("region", "eu-west-1", "SageMaker pulls images of its own region"),
        ("instance_type", "ml.g5.huge", "did you mean ml.g5"),
        ("instance_type", "g5.xlarge", "did you mean ml.g5.xlarge?"),
        ("job_name", "my_job", "letters, digits and inner hyphens"),
        ("job_name", "-a", "letters, digits and inner hyphens"),
        ("job_name", "a" * 64, "letters, digits and inner hyphens"),
        ("max_runtime_hours", 673, "at most 672"),
        ("max_runtime_hours", 0, "above 0"),
        ("max_wait_hours", 1, "at least max_runtime_hours, which is 24"),
        ("keep_alive_seconds", 3601, "at most 3600"),
        ("retry_attempts", 31, "at most 30"),
        ("retry_attempts", 0, "at least 1"),
        ("volume_gb", 0, "at least 1"),
        ("volume_kms_key", "my key", "AWS wants it in the form"),
        ("security_groups", ["sg-1"], "give subnets and security_groups, or neither"),
        ("tags", {"aws:mine": "x"}, "AWS keeps names that begin with aws:"),
        ("tags", {"k": "what?"}, "AWS wants it in the form"),
        ("environment", {"AWS_REGION": "x"}, "the job sets it"),
        ("environment", {"A": "x" * 513}, "at most 512"),
        ("spott", True, "did you mean spot?"),
    ],
)
def test_what_aws_would_refuse_is_refused_when_the_file_is_read(field: str, value: object, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        config(**{field: value})
    assert caught.value.field.startswith(f"sagemaker.{'subnets' if field == 'security_groups' else field}")
    assert fix in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 800


def test_waiting_is_for_spot_alone() -> None:
    with pytest.raises(InputError, match="only spot waits"):
        config(spot=False, max_wait_hours=30)
    section = config(max_runtime_hours=660).sagemaker
    assert section is not None and section.wait_hours == 672, "not beyond what AWS takes"


def test_where_a_run_is_trained_is_none_of_its_identity() -> None:
    assert config().identity() == parse_run_file({**RUN, "sagemaker": None}).identity()


# --------------------------------------------------------------------------------------------- what AWS is asked for


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spot": False, "keep_alive_seconds": 600},
        {"retry_attempts": 3, "subnets": ["subnet-1"], "security_groups": ["sg-1"], "volume_kms_key": "alias/mine"},
        {"tags": {"lab": 7}, "environment": {"A": 1}, "max_runtime_hours": 0.01, "job_name": "mine"},
    ],
)
def test_requests_are_what_the_service_takes(changes: dict[str, Any]) -> None:
    asked = request(**changes)
    assert findings("sagemaker", "CreateTrainingJob", asked) == [] and refusals(asked, "us-east-1") == []
    assert ("MaxWaitTimeInSeconds" in asked["StoppingCondition"]) is asked["EnableManagedSpotTraining"]
    assert asked["HyperParameters"] == {"store": ROOT, "launch": "runs/a-run/launches/0.json"}


@pytest.mark.parametrize("length", [1, 43, 44, 45, 63])
def test_a_jobs_name_is_one_that_aws_takes_whatever_the_runs_id(length: int) -> None:
    run_id = ("an-id-with--many-hyphens-" * 3)[: length - 1] + "x"
    names = {
        job_name(run_id, datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), chance) for chance in ("0a1b", "0a1c")
    }
    pattern = service_model("sagemaker").shape_for("TrainingJobName").metadata["pattern"]
    assert len(names) == 2
    for name in names:
        assert len(name) <= 63 and not findings("sagemaker", "DescribeTrainingJob", {"TrainingJobName": name}), pattern


def test_ids_that_differ_at_their_end_only_make_different_names() -> None:
    at = datetime(2026, 1, 2, tzinfo=timezone.utc)
    assert job_name("r" * 62 + "a", at, "0000") != job_name("r" * 62 + "b", at, "0000")


def test_a_pool_and_spot_are_refused_with_what_each_would_cost() -> None:
    section = config(keep_alive_seconds=1800).sagemaker
    assert section is not None
    for hourly, told in ((2.0, ("$2.00 an hour", "$1.00 more after each job")), (None, ("its price on demand",))):
        with pytest.raises(InputError, match='AWS: a warm pool "cannot be used with spot instances"') as caught:
            refuse_pool_and_spot(section, hourly)
        assert all(words in str(caught.value) for words in told)


def test_what_a_pool_cannot_match_is_named() -> None:
    first, second = config().sagemaker, config(instance_type="ml.g5.2xlarge", volume_gb=50).sagemaker
    assert first is not None and second is not None
    assert unlike(first, second) == ["instance type", "volume"]
    assert unlike(first, first.model_copy(update={"max_runtime_hours": 1.0})) == []


@pytest.mark.parametrize(
    ("member", "wrong"),
    [
        ("TrainingJobName", "a_b"),
        ("RoleArn", 7),
        ("ResourceConfig", {"InstanceType": "ml.g5.xlarge", "Instances": 1}),
        ("ResourceConfig", {"InstanceType": "ml.nothing"}),
        ("EnableManagedSpotTraining", "yes"),
        ("Environment", {"1A": "x"}),
        ("HyperParameters", {"store": "s" * 2501}),
        ("StoppingCondition", {"MaxRuntimeInSeconds": 0}),
        ("Tags", [{"Key": "a"}]),
    ],
)
def test_the_model_finds_what_botocore_does_not_look_for(member: str, wrong: object) -> None:
    (found,) = findings("sagemaker", "CreateTrainingJob", {**request(), member: wrong})
    assert found.member.startswith(member)


# ------------------------------------------------------------------------------------------------- what is launched


def test_what_was_launched_is_found_by_its_digest_or_not_at_all(tmp_path: Path) -> None:
    root = open_store(str(tmp_path / "store"))
    launched = Launched(command=("train",), main="run.yaml", files={"run.yaml": "run_id: a"}, run_ids=("a",))
    key = put_launch(root, "runs/a", launched)
    assert put_launch(root, "runs/a", launched) == key and read_launch(root, key) == launched
    root.put(key, bytes(root.get(key).body).replace(b"run_id: a", b"run_id: b"))
    with pytest.raises(CorruptCheckpoint, match=r"not what was launched.*launch it again"):
        read_launch(root, key)
    with pytest.raises(CorruptCheckpoint, match="not what was launched"):
        read_launch(root, key.replace("launches/", "launches/0"))


def test_code_travels_by_digest_and_a_changed_file_is_noticed(tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "mine").mkdir(parents=True)
    (code / "mine" / "__init__.py").write_text("X = 1\n")
    (code / "größe und mehr.txt").write_text("ü")
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "x.pyc").write_text("no")
    one = parse_run_file({**RUN, "code": {"folder": str(code)}})
    root = open_store(str(tmp_path / "store"))
    digest = put_code(root, one)
    assert digest is not None and put_code(root, one) == digest
    fetch_code(root, digest, tmp_path / "there")
    assert parse_run_file({**RUN, "code": {"folder": str(tmp_path / "there")}}).identity() == one.identity()
    assert not (tmp_path / "there" / "__pycache__").exists()
    root.put(f"code/{digest}/user/mine/__init__.py", b"X = 2\n")
    with pytest.raises(CorruptCheckpoint, match="not what was launched"):
        fetch_code(root, digest, tmp_path / "again")
    assert put_code(root, config()) is None


# -------------------------------------------------------------------------------------------------- a job, from inside


def test_a_job_is_a_platform_where_nobody_looks_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = {"instance_type": "ml.g5.xlarge", "price": {"on_demand": 1.4, "life_cycle": "spot"}}
    monkeypatch.setenv(PLACE, Place(job="a-job", boot_id="b1", machine=machine).model_dump_json())
    platform = here()
    assert isinstance(platform, Job) and platform.begins_early and platform.max_attempts == 5
    store = open_store(str(tmp_path / "runs" / "a-run"))
    session = platform.begin(store, tmp_path, {}, 0)
    assert session.instance_id == "a-job" and platform.begin(store, tmp_path, {}, 0).restart == 1
    start = json.loads(bytes(store.get(layout.start_key(1)).body))
    price = platform.price(start)
    assert start["instance_type"] == "ml.g5.xlarge" and price is not None and price.at_most == 1.4
    monkeypatch.setenv(PLACE, Place(job="a-job", boot_id="b2").model_dump_json())
    assert here().begin(store, tmp_path, {}, 0).number == 2, "after an interruption another session"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedAws]:
    with EmbeddedAws(log=tmp_path_factory.mktemp("aws") / "log") as found:
        found.client("s3").create_bucket(Bucket=BUCKET)
        yield found


class Idle:
    """A container that computes nothing: its run is over when the test says so."""

    def __init__(self, place: Path, variables: dict[str, str], log: Path) -> None:
        self.code: int | None = None
        self.launch = json.loads((place / "input/config/hyperparameters.json").read_text())["launch"]

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.code = 0

    def kill(self) -> None:
        self.code = self.code or 0

    def complete(self) -> None:
        run_id = self.launch.split("/")[1]
        head = Head(session=1, restart=0, owner="idle", commit="c", timesteps=64, outcome="completed")
        open_store(f"{ROOT}/runs/{run_id}").put(layout.HEAD, pack_head(head))
        self.code = 0


class Account:
    """SageMaker, and what befell its jobs."""

    def __init__(self, aws: EmbeddedAws, folder: Path) -> None:
        self.aws, self.folder = aws, folder
        self.idle = False
        self.lives: list[Life] = []
        self.service = SageMaker(self._play, trusts=lambda role: role == ROLE, quota=2)

    def _play(self, job: Played) -> None:
        folder = self.folder / job.name
        folder.mkdir()
        life = Life(job, folder, self._start, lambda said: None)
        self.lives.append(life)
        life.play()

    def _start(self, place: Path, variables: dict[str, str], log: Path) -> Container:
        if self.idle:
            return Idle(place, variables, log)
        own = {"AWS_ENDPOINT_URL_SAGEMAKER": self.service.endpoint, "PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1"}
        return Process(place, {**self.aws.environment(), **own, **variables}, log)

    def ends(self, number: int) -> Life:
        until(lambda: len(self.lives) >= number and self.lives[number - 1].job.over, "the job to end", seconds=300)
        return self.lives[number - 1]


@pytest.fixture
def account(aws: EmbeddedAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    found = Account(aws, tmp_path / "jobs")
    found.folder.mkdir()
    with found.service:
        for name, value in aws.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", found.service.endpoint)
        yield found
        for life in found.lives:
            life.close()


def run_file(tmp_path: Path, run_id: str, **changes: Any) -> Path:
    path = tmp_path / f"{run_id}.yaml"
    path.write_text(json.dumps({**RUN, "run_id": run_id, **changes}))
    return path


@in_a_mount_namespace
@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["completed", "failed"])
def test_a_run_that_ended_is_not_trained_again(account: Account, tmp_path: Path, outcome: Any) -> None:
    """As where the machine was taken between the outcome and the exit code, and the job was started again."""
    store = open_store(f"{ROOT}/runs/ended-{outcome}")
    planned = plan_run(run_file(tmp_path, f"ended-{outcome}"), ROOT)
    conclude(store, outcome, "it is over", session=1, owner="o")
    before = read_head(store)
    key = put_launch(open_store(ROOT), planned.folder, planned.launched)
    asked = {**request(), "TrainingJobName": f"again-{outcome}", "HyperParameters": {"store": ROOT, "launch": key}}
    account.service.answer("CreateTrainingJob", asked)
    life = account.ends(1)
    assert life.exit_codes == [0 if outcome == "completed" else 1]
    assert life.job.status == ("Completed" if outcome == "completed" else "Failed")
    if outcome == "failed":
        assert life.job.failure == "AlgorithmError: it is over, exit code: 1"
    assert read_head(store) == before and not list(store.list(layout.SESSIONS))


@in_a_mount_namespace
@pytest.mark.slow
def test_a_job_that_cannot_train_says_why_where_sagemaker_looks(account: Account, tmp_path: Path) -> None:
    """The run file is right in itself; the environment is not there. What no restart mends ends the run."""
    path = run_file(tmp_path, "no-such-world", environment={"id": "Nowhere-v0"})
    create(plan_run(path, ROOT), ROOT)
    life = account.ends(1)
    assert life.job.seen == ["Starting", "Downloading", "Training", "Uploading", "Failed"]
    assert life.exit_codes == [64]
    failure = life.job.failure or ""
    assert "environment.id: 'Nowhere-v0'" in failure and "\n" not in failure and len(failure) <= 1100
    read = read_head(open_store(f"{ROOT}/runs/no-such-world"))
    assert read is not None and read[0].outcome == "failed"


# ---------------------------------------------------------------------------------------------- launch, status and stop


def test_bad_input_creates_nothing(account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (["--store", str(tmp_path / "local")], {}, "a job reaches no folder of this machine"),
        ([], {"sagemaker": None}, "add the section to the run file"),
        ([], {"seeds": [1, 2]}, "train-cloud expand"),
        ([], {"sagemaker": {**SECTION, "keep_alive_seconds": 60}}, "cannot be used with spot instances"),
        (
            [],
            {"limits": {"dollars": 5}, "sagemaker": {**SECTION, "instance_type": "ml.trn1.2xlarge"}},
            "without a price",
        ),
        (["--parallel", "2"], {}, "only an experiment takes it"),
        (["--platform", "sagmaker"], {}, "did you mean sagemaker?"),
    ]
    for number, (options, changes, words) in enumerate(cases):
        path = run_file(tmp_path, f"bad-{number}", **changes)
        given = ["launch", str(path), "--platform", "sagemaker", "--store", ROOT, *options]
        assert main(given) == 64, words
        assert words in capsys.readouterr().err
        assert not list(open_store(f"{ROOT}/runs/bad-{number}").list())
    assert account.service.jobs == {}


def test_what_aws_refuses_is_said_and_leaves_no_job(account: Account, tmp_path: Path, capsys: Any) -> None:
    path = run_file(tmp_path, "refused", sagemaker={**SECTION, "role": f"{ROLE}-of-others"})
    assert main(["launch", str(path), "--platform", "sagemaker", "--store", ROOT]) == 1
    assert "Could not assume role" in capsys.readouterr().err
    assert main(["status", "refused", "--store", ROOT]) == 0
    assert "AWS knows no such job" in capsys.readouterr().out
    assert main(["stop", "refused", "--platform", "sagemaker", "--store", ROOT]) == 0
    assert "no job of refused is at work" in capsys.readouterr().out


def test_status_and_logs_know_the_jobs(account: Account, tmp_path: Path, capsys: Any) -> None:
    account.idle = True
    command = ["launch", str(run_file(tmp_path, "looked-at")), "--platform", "sagemaker", "--store", ROOT]
    assert main(command) == 0
    wait_for(account, 1)
    (name,) = account.service.jobs
    capsys.readouterr()
    assert main(command) == 64
    assert f"the job {name} is at work already, InProgress, Training" in capsys.readouterr().err
    assert main(["status", "looked-at", "--store", ROOT]) == 0
    assert f"job {name}: InProgress, Training" in capsys.readouterr().out
    logs, group = account.aws.client("logs"), "/aws/sagemaker/TrainingJobs"
    logs.create_log_group(logGroupName=group)
    for stream in (f"{name}/algo-1-1", "another/algo-1-1"):
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
        event = {"timestamp": int(datetime.now(timezone.utc).timestamp() * 1000), "message": f"said by {stream}"}
        logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=[event])
    assert main(["logs", "looked-at", "--store", ROOT, "--job"]) == 0
    assert capsys.readouterr().out == f"said by {name}/algo-1-1\n"
    assert main(["logs", "never", "--store", ROOT, "--job"]) == 64
    assert "no job of this run was ever launched" in capsys.readouterr().err


def test_a_dry_run_shows_the_request_and_creates_nothing(account: Account, tmp_path: Path, capsys: Any) -> None:
    path = run_file(tmp_path, "dry")
    options = ["--platform", "sagemaker", "--store", ROOT, "--set", "sagemaker.volume_gb=77"]
    assert main(["launch", str(path), *options, "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ResourceConfig"]["VolumeSizeInGB"] == 77 and shown["TrainingJobName"].startswith("dry-")
    assert account.service.jobs == {} and not list(open_store(f"{ROOT}/runs/dry").list())


def test_a_lost_reply_makes_no_second_job(account: Account, tmp_path: Path) -> None:
    jobs = Jobs("us-east-1")
    asked = {**request(), "TrainingJobName": "twice"}
    assert jobs.create(asked) == jobs.create(asked)
    with pytest.raises(CloudError, match="must be unique"):
        jobs.create({**asked, "HyperParameters": {**asked["HyperParameters"], "launch": "another"}})
    assert jobs.state("nobody") is None
    account.lives[0].close()


def test_prices_of_training_are_those_of_the_price_list(account: Account) -> None:
    assert asked_of_aws.hourly_price("ml.g5.xlarge", "us-east-1") == pytest.approx(1.4084)
    with pytest.raises(CloudError, match="0 prices for training on"):
        asked_of_aws.hourly_price("ml.g5.48xlarge", "us-east-1")


def experiment_file(tmp_path: Path, name: str, **changes: Any) -> Path:
    run_file(tmp_path, f"{name}-base")
    path = tmp_path / f"{name}.yaml"
    vary = {"net": {"a": {}, "b": {"hyperparameters.gamma": 0.9}}}
    content = {"experiment": name, "base": f"{name}-base.yaml", "vary": vary}
    path.write_text(json.dumps({**content, "seeds": [1, 2], "max_parallel": 2, **changes}))
    return path


def at_work(account: Account) -> list[Idle]:
    """Containers of jobs that have been started and are not over."""
    found = [life.container for life in account.lives if life.container is not None and not life.job.over]
    return [container for container in found if isinstance(container, Idle)]


def wait_for(account: Account, number: int) -> None:
    """Until so many jobs train, and all others are over."""

    def there() -> bool:
        return len(at_work(account)) == number == sum(not life.job.over for life in account.lives)

    until(there, f"{number} jobs at work", seconds=60)


def test_an_experiment_has_a_job_for_each_run_and_no_more_at_once_than_may_be(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    account.idle = True
    path = str(experiment_file(tmp_path, "grid"))
    command = ["launch", path, "--platform", "sagemaker", "--store", ROOT, "--no-wait"]
    seen: list[int] = []
    for left in (2, 1, 0):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert ("not launched:" in said) is bool(left) and (f"not launched: {left} runs" in said) is bool(left)
        wait_for(account, 2)
        seen.append(len(at_work(account)))
        at_work(account)[0].complete()
        wait_for(account, 1)
    assert max(seen) == 2 and len(account.lives) == 4
    names = [life.job.name for life in account.lives]
    assert sorted(name[: len("grid-a-s1")] for name in names) == ["grid-a-s1", "grid-a-s2", "grid-b-s1", "grid-b-s2"]
    record = json.loads(bytes(open_store(ROOT).get(layout.experiment_key("grid")).body))
    assert set(record["runs"]) == {"grid-a-s1", "grid-a-s2", "grid-b-s1", "grid-b-s2"}
    launched = json.loads(bytes(open_store(f"{ROOT}/runs/grid-a-s1").get(layout.RUN_JSON).body))
    assert launched["experiment"] == "grid", "its worker looks after the limits over all"
    assert main(["stop", path, "--platform", "sagemaker", "--store", ROOT]) == 0
    assert capsys.readouterr().out.count("is asked to stop") == 1
    until(lambda: all(life.job.over for life in account.lives), "the stop", seconds=60)
    assert [life.job.status for life in account.lives].count("Stopped") == 1
    assert main([*command, "--dry-run"]) == 0
    assert "1 jobs, 1 at once" in capsys.readouterr().out, "what was stopped goes on, what is completed does not"


def test_a_quota_lets_jobs_wait_and_a_limit_over_all_ends_the_launch(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    account.idle = True
    path = str(experiment_file(tmp_path, "quota", max_parallel=4, limits={"hours": 1}))
    command = ["launch", path, "--platform", "sagemaker", "--store", ROOT, "--no-wait"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert len(account.service.jobs) == 2 and "waits: " in said and "'ml.g5.xlarge for training job usage' is 2" in said
    start = {"session": 1, "started": "2026-01-01T00:00:00+00:00", "instance_id": "i", "boot_id": "b"}
    store = open_store(f"{ROOT}/runs/quota-a-s1")
    store.create(layout.start_key(1), json.dumps(start).encode())
    store.create(layout.end_key(1), json.dumps({"seconds": 3700.0, "ended_by": "signal"}).encode())
    wait_for(account, 2)
    at_work(account)[0].complete()
    wait_for(account, 1)
    assert main(command) == 0
    assert "is not launched: limits.hours: 1 hours are used by all runs" in capsys.readouterr().out
    assert len(account.service.jobs) == 2


SESSIONS = """
name: Two steps
continue_on_error: false
save_all_checkpoints: true
aws: {use_s3: true, s3_bucket: elsewhere, sagemaker: {use_spot_instances: false, instance_type: ml.g5.xlarge}}
sessions:
  - {name: stand up, config: first.yaml, overrides: {hyperparameters.gamma: 0.9}}
  - name: walk
    config: ../more/second.yaml
    timesteps: 96
    use_previous_checkpoint: true
    success_criteria: {min_episodes: 1, retries: 2, retry_overrides: [{hyperparameters: {gamma: 0.95}}]}
  - {name: beside, config: first.yaml, after: [stand up], overrides: {seed: 7}}
"""


def pipeline_file(tmp_path: Path, name: str, text: str = SESSIONS) -> Path:
    (tmp_path / "more").mkdir(exist_ok=True)
    (tmp_path / name).mkdir()
    for place, values in (
        (tmp_path / name / "first.yaml", RUN),
        (tmp_path / "more" / "second.yaml", {**RUN, "hyperparameters": {**RUN["hyperparameters"], "gamma": 0.8}}),
    ):
        place.write_text(json.dumps({**values, "code": {"folder": "code"}}))
        (place.parent / "code").mkdir(exist_ok=True)
    path = tmp_path / name / "pipeline.yaml"
    path.write_text(text.replace("Two steps", name))
    return path


def test_a_pipelines_job_takes_one_file_that_says_the_same(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pipeline_file(tmp_path, "same")
    # A job has one code folder: both files name the same one.
    (tmp_path / "more" / "second.yaml").write_text(
        (tmp_path / "more" / "second.yaml").read_text().replace('"code"}', '"../same/code"}')
    )
    jobs = PipelineJobs(path, ROOT, ["sessions.walk.seed=5"], None)
    (part,) = jobs.parts
    there = tmp_path / "there"
    (there / "code").mkdir(parents=True)
    (there / "pipeline.yaml").write_text(part.launch.launched.files["pipeline.yaml"])
    monkeypatch.setenv("TRAIN_CLOUD_CODE", str(there / "code"))
    travelled = load_pipeline(there / "pipeline.yaml")
    assert travelled.id == jobs.config.id and travelled.threads == jobs.config.threads
    assert [one.run_ids for one in travelled.sessions] == [one.run_ids for one in jobs.config.in_order()]
    for ours, away in zip(jobs.config.in_order(), travelled.sessions, strict=True):
        assert (away.name, away.after, away.begins_with, away.criteria, away.choice) == (
            ours.name, ours.after, ours.begins_with, ours.criteria, ours.choice
        )  # fmt: skip
        for one, other in zip(ours.attempts, away.attempts, strict=True):
            assert one.model_dump(exclude={"code"}) == other.model_dump(exclude={"code"})
            assert one.identity() == other.identity()


def test_another_machine_takes_another_job_and_is_warned_about(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    account.idle = True
    text = SESSIONS.replace(
        "- {name: beside,", "- {name: beside, aws_overrides: {sagemaker: {instance_type: ml.g5.2xlarge}},"
    )
    text = text.replace("config: ../more/second.yaml", "config: first.yaml").replace("timesteps: 96", "timesteps: 64")
    path = pipeline_file(tmp_path, "machines", text.replace("instance_type: ml.g5.xlarge", "max_run_seconds: 3600"))
    assert main(["launch", str(path), "--platform", "sagemaker", "--store", ROOT, "--no-wait"]) == 0
    said = capsys.readouterr()
    assert "beside: another instance type: it begins in a job of its own" in said.err
    assert "trains stand up, walk\n" in said.out
    wait_for(account, 1)
    assert main(["stop", str(path), "--platform", "sagemaker", "--store", ROOT]) == 0
    assert capsys.readouterr().out.count("is asked to stop") == 1


@in_a_mount_namespace
@pytest.mark.slow
def test_a_pipeline_is_one_job_that_goes_from_session_to_session(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "name: chain\nsessions:\n  - {name: a, config: first.yaml}\n"
    text += "  - {name: b, config: first.yaml, use_previous_checkpoint: true, overrides: {seed: 3}}\n"
    path = pipeline_file(tmp_path, "chain", text)
    command = ["launch", str(path), "--platform", "sagemaker", "--store", ROOT]
    assert main(command) == 0
    life = account.ends(1)
    assert life.job.status == "Completed", life.log()
    for run_id in ("chain-a", "chain-b"):
        read = read_head(open_store(f"{ROOT}/runs/{run_id}"))
        assert read is not None and read[0].outcome == "completed"
    start = json.loads(bytes(open_store(f"{ROOT}/runs/chain-b").get(layout.start_key(1)).body))
    assert start["instance_id"] == life.job.name and start["run_file"]["initial_model"]["source"].startswith(
        "run:chain-a"
    )
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing to launch" in capsys.readouterr().out and len(account.lives) == 1
