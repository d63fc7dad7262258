"""An experiment file on AWS: its runs from one stack, and where all of them stop together."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from ruamel.yaml import YAML
from small_package import with_small_package

from train_cloud.cli import main
from train_cloud.config import load_experiment, load_run_file
from train_cloud.config.code import code_files
from train_cloud.errors import InputError
from train_cloud.operations.cancel import cancel
from train_cloud.operations.expand import LISTING
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.scenario import Scenario
from train_cloud.rehearsal.terraform import Terraform
from train_cloud.rehearsal.timeline import Timeline
from train_cloud.run import layout
from train_cloud.run.cost import cost
from train_cloud.run.head import read_head
from train_cloud.run.session import read_sessions
from train_cloud.store import open_store

BASE: dict[str, Any] = {
    "run_id": "base",
    "algorithm": "ppo",
    "total_timesteps": 100_000,
    "save_frequency": 16,
    "environment": {"id": "Slow-v0", "module": "slow"},
    "hyperparameters": {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [4]}},
    "reproducibility": {"replay": "never"},
    "preservation": {"last": 1},
    "code": {"folder": "."},
}
EXPERIMENT: dict[str, Any] = {
    "experiment": "nets",
    "base": "base.yaml",
    "vary": {"net": {"small_net": {}, "large": {"hyperparameters.policy_kwargs.net_arch": [8]}}},
    "seeds": [1, 2],
}
#: A machine's time, not its processor's: several share the two cores of a test.
SLOW = """\
import time

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Slow(CartPoleEnv):
    def step(self, action):
        time.sleep(0.05)
        return super().step(action)


gymnasium.register("Slow-v0", Slow, max_episode_steps=50)
"""
IDS = ["nets-small-net-s1", "nets-small-net-s2", "nets-large-s1", "nets-large-s2"]


def write(folder: Path, base: dict[str, Any] | None = None, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    YAML().dump({**BASE, **(base or {})}, folder / "base.yaml")
    (folder / "slow.py").write_text(SLOW)
    path = folder / "experiment.yaml"
    YAML().dump({**EXPERIMENT, **changed}, path)
    return path


# Its run files.


def test_expand_writes_them_beside_it_with_a_listing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    folder = tmp_path / "nets-runs"
    assert main(["expand", str(path)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / f"{run_id}.yaml") for run_id in IDS]
    for cell in load_experiment(path).cells:
        assert load_run_file(folder / f"{cell.run_id}.yaml") == cell.config
    listing = json.loads((folder / LISTING).read_text())
    assert list(listing["runs"]) == IDS and set(listing["sources"]) == {"../experiment.yaml", "../base.yaml"}
    assert listing["runs"][IDS[0]] | {"sha256": ""} == {"sha256": "", "levels": {"net": "small_net"}, "seed": 1}
    assert code_files(tmp_path) == ["slow.py"], "neither the experiment nor its runs are code"

    assert main(["expand", str(path), "--set", "seeds=[2]", "--set", "limits.dollars=3"]) == 0
    assert sorted(file.name for file in folder.glob("*.yaml")) == ["nets-large-s2.yaml", "nets-small-net-s2.yaml"]
    listing = json.loads((folder / LISTING).read_text())
    assert listing["options"] == "--set 'seeds=[2]' --set limits.dollars=3"
    assert listing["limits"] == {"hours": None, "dollars": 3}


def test_expand_refuses_before_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {"total_timesteps": 0})
    assert main(["expand", str(path)]) == 64 and not (tmp_path / "nets-runs").exists()
    assert "nets-small-net-s1: total_timesteps" in capsys.readouterr().err
    path = write(tmp_path)
    (tmp_path / "nets-runs").mkdir()
    (tmp_path / "nets-runs" / "notes.yaml").write_text("mine")
    assert main(["expand", str(path)]) == 64
    assert "move what is in this folder elsewhere" in capsys.readouterr().err
    assert (tmp_path / "nets-runs" / "notes.yaml").read_text() == "mine"


def test_elsewhere_expand_writes_the_run_files_alone(tmp_path: Path) -> None:
    assert main(["expand", str(write(tmp_path)), "--out", str(tmp_path / "mine")]) == 0
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == sorted(f"{run_id}.yaml" for run_id in IDS)


# One stack, in the tests' order: it is applied, lived in, changed and destroyed.

PREFIX = "lab"
BUCKET = "train-cloud-123456789012-us-east-1"
#: A g6.xlarge has it spent after some 45 seconds, three of them after 15.
DOLLARS = 0.0045


@dataclass
class Stack:
    aws: EmbeddedAws
    terraform: Terraform
    path: Path
    outputs: dict[str, Any]
    events: list[tuple[str, str]]
    folder: Path

    @property
    def root(self) -> str:
        return str(self.outputs["s3_bucket_url"])

    def scenario(self, run_id: str) -> Scenario:
        group = self.outputs["runs"][run_id]["autoscaling_group_name"]
        config = load_run_file(self.path.parent / "nets-runs" / f"{run_id}.yaml")
        return Scenario(self.aws, group, config, self.folder / run_id, Timeline(run_id), limit=300)

    def record(self) -> Any:
        key = f"{PREFIX}/experiments/nets/experiment.json"
        return json.loads(self.aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read())


@contextlib.contextmanager
def as_owner(aws: EmbeddedAws) -> Iterator[None]:
    """With the credentials that count at this moment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws.environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("experiment")
    path = write(folder / "mine", limits={"dollars": DOLLARS})
    main(["expand", str(path), "--set", "vary.net=[small_net]", "--set", "seeds=[1, 2, 3]"])
    events: list[tuple[str, str]] = []
    with EmbeddedAws(log=folder / "aws.log") as aws, as_owner(aws):
        terraform = Terraform(folder / "work", aws, on_event=lambda address, done: events.append((address, done)))
        with_small_package(folder / "work", terraform)
        variables = {"experiment_file": path, "prefix": PREFIX, "delete_artifacts_on_destroy": True}
        outputs = terraform.apply(variables)
        yield Stack(aws, terraform, path, outputs, events, folder)


RUNS = ["nets-small-net-s1", "nets-small-net-s2", "nets-small-net-s3"]


@pytest.mark.slow
def test_each_run_has_a_group_and_all_have_one_record(stack: Stack) -> None:
    assert sorted(stack.outputs["runs"]) == RUNS
    groups = stack.aws.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    assert sorted(group["AutoScalingGroupName"] for group in groups) == [f"train-cloud-{run_id}" for run_id in RUNS]
    record = stack.record()
    assert record["limits"] == {"hours": None, "dollars": DOLLARS} and sorted(record["runs"]) == RUNS
    assert record["runs"][RUNS[1]] == {"levels": {"net": "small_net"}, "seed": 2}
    order = [address for address, _ in stack.events]
    assert order.index("aws_s3_object.experiment[0]") < order.index(f'aws_autoscaling_group.worker["{RUNS[0]}"]')


@pytest.mark.slow
def test_a_worker_reads_what_the_others_have_recorded_and_no_more(stack: Stack) -> None:
    s3 = stack.aws.client("s3")
    other = f"{PREFIX}/runs/{RUNS[1]}"
    stays = [f"{PREFIX}/runs/networks-s1/head.json", f"{other}/checkpoints/x", f"{other}/sessions/000001/start.json"]
    for key in stays:
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    with stack.aws.permissions_enforced():
        mine = stack.aws.client("s3", stack.aws.assume(f"train-cloud-{RUNS[0]}-us-east-1", "i-0123"))
        mine.get_object(Bucket=BUCKET, Key=f"{PREFIX}/experiments/nets/experiment.json")
        mine.get_object(Bucket=BUCKET, Key=f"{other}/sessions/000001/start.json")
        for prefix in (f"{other}/", f"{other}/sessions/"):
            mine.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        for forbidden in (
            partial(mine.put_object, Bucket=BUCKET, Key=f"{PREFIX}/experiments/nets/experiment.json", Body=b""),
            partial(mine.put_object, Bucket=BUCKET, Key=f"{other}/head.json", Body=b""),
            partial(mine.delete_object, Bucket=BUCKET, Key=f"{other}/sessions/000001/start.json"),
            *[partial(mine.get_object, Bucket=BUCKET, Key=key) for key in stays[:2]],
            partial(mine.get_object, Bucket=BUCKET, Key=f"{other}/run.yaml"),
        ):
            with pytest.raises(ClientError) as refusal:
                forbidden()
            assert refusal.value.response["Error"]["Code"] in ("AccessDenied", "403"), forbidden
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in stays]})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_stop_where_their_sum_reaches_the_limit_and_a_cancelled_one_before(stack: Stack) -> None:
    lives = {run_id: stack.scenario(run_id) for run_id in RUNS}
    with contextlib.ExitStack() as machines:
        for life in lives.values():
            machines.callback(life.close)

        def live(run_id: str) -> None:
            machine = lives[run_id].boot()
            if run_id == RUNS[2]:
                lives[run_id].reach(machine, 32)
                assert cancel(stack.root, run_id).outcome == "stopped"
                lives[run_id].until(None, "capacity 0", lambda: lives[run_id].desired_capacity() == 0)
                return
            lives[run_id].complete(machine)

        with stack.aws.permissions_enforced(), as_owner(stack.aws), ThreadPoolExecutor(3) as pool:
            list(pool.map(live, RUNS))
    assert [life.desired_capacity() for life in lives.values()] == [0, 0, 0]
    spent = []
    for run_id in RUNS:
        store = open_store(layout.run_url(stack.root, run_id))
        read = read_head(store)
        assert read is not None and read[0].outcome == "stopped" and read[0].timesteps < BASE["total_timesteps"]
        cancelled = (read[0].reason or "").startswith("cancelled")
        assert cancelled or read[0].reason == f"limits of the experiment nets: {DOLLARS} dollars are spent"
        assert cancelled is (run_id == RUNS[2])
        sessions = read_sessions(store)
        assert [(each.end or {}).get("ended_by") for each in sessions] == ["fenced" if cancelled else "limit"]
        spent.append(cost(sessions).dollars or 0.0)
    assert sum(spent) >= DOLLARS, "and no run has a limit of its own"


@pytest.mark.full
def test_a_change_is_refused_until_it_is_expanded_and_a_raised_limit_reaches_the_workers(stack: Stack) -> None:
    options = "--set 'vary.net=[small_net]' --set 'seeds=[1, 2, 3]'"
    variables = {"experiment_file": stack.path, "prefix": PREFIX, "delete_artifacts_on_destroy": True}
    write(stack.path.parent, limits={"dollars": 2, "hours": 7.5})
    with pytest.raises(InputError, match=r"^experiment_file: .*before \.\./experiment\.yaml was changed") as refusal:
        stack.terraform.apply(variables)
    assert f"run train-cloud expand {stack.path} {options} and then this again" in str(refusal.value)
    assert main(["expand", str(stack.path), *shlex.split(options)]) == 0
    del stack.events[:]
    stack.terraform.apply(variables)
    assert stack.events == [("aws_s3_object.experiment[0]", "updated")], "no run and no role is touched"
    assert stack.record()["limits"] == {"hours": 7.5, "dollars": 2}


@pytest.mark.slow
def test_destroy_asks_for_no_expansion(stack: Stack) -> None:
    write(stack.path.parent, limits={"dollars": 9})
    stack.terraform.destroy()
    assert stack.aws.resources_left() == []


def small_stack(folder: Path, aws: EmbeddedAws, **options: Any) -> Terraform:
    """Whose workers are forked here, and run the package that is loaded."""
    return with_small_package(folder, Terraform(folder, aws, **options))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_an_experiment_is_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train_cloud.rehearsal.experiment.Terraform", small_stack)
    path = write(tmp_path / "mine", {"total_timesteps": 480, "save_frequency": 48}, limits={"dollars": 1})
    assert main(["rehearse", str(path), "--set", "seeds=[1]"]) == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "rehearsal" / "nets" / "report.json").read_text())
    assert sorted(report["runs"]) == ["nets-large-s1", "nets-small-net-s1"]
    for run_id, run in report["runs"].items():
        assert (run["outcome"], run["timesteps"], run["final_desired_capacity"]) == ("completed", 480, 0)
        assert run["sessions"] == 1 + (run_id == "nets-small-net-s1") and run["repeated"] == 0
        assert 0 < run["dollars"] < 1
    assert report["differences"] == report["resources_left_after_destroy"] == []
    assert sorted(file.name for file in path.parent.iterdir()) == ["base.yaml", "experiment.yaml", "slow.py"]


def test_a_rehearsal_that_this_machine_cannot_take_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "mine")
    for options, said in (
        (["--set", "seeds=[1, 2, 3, 4, 5]"], "vary: '10 runs': at most 8 at once on one machine"),
        (["--machine"], "--machine: "),
    ):
        assert main(["rehearse", str(path), "--out", str(tmp_path / "out"), *options]) == 64
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
