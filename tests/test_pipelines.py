"""Pipelines: what a file may say, and sessions that are trained one after the other, killed at any instant."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML
from test_config import default_as_yaml
from until import until

import train_cloud
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.cli import main
from train_cloud.config.code import code_files
from train_cloud.config.pipeline import (
    Aws,
    PipelineFile,
    SageMaker,
    SessionEntry,
    SuccessCriteria,
    is_pipeline,
    load_pipeline,
)
from train_cloud.errors import Findings, InputError
from train_cloud.operations.cancel import cancel
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head
from train_cloud.run.session import read_sessions
from train_cloud.runtime.evaluations import model_checksum
from train_cloud.store import open_store

DOCS = Path(__file__).parent.parent / "docs" / "pipelines.md"
EXAMPLES = Path(__file__).parent.parent / "examples" / "pipeline"
BASE: dict[str, Any] = {
    "run_id": "base",
    "algorithm": "ppo",
    "total_timesteps": 512,
    "save_frequency": 128,
    "environment": {"id": "CartPole-v1"},
    "hyperparameters": {"n_steps": 128, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}},
    "evaluation": {"episodes": 1, "max_steps": 30, "every": 256},
    "reproducibility": {"replay": "never"},
    "preservation": {"last": 1},
}
#: Two that begin with what the first has learned, and may be trained side by side; and one after both.
PIPELINE: dict[str, Any] = {
    "name": "Steps",
    "threads": 1,
    "max_parallel": 2,
    "sessions": [
        {"name": "stand_up", "config": "base.yaml", "success_criteria": {"min_reward": 1, "min_episodes": 2}},
        {
            "name": "left",
            "config": "base.yaml",
            "timesteps": 384,
            "use_previous_checkpoint": True,
            "overrides": {"hyperparameters": {"learning_rate": 1e-4}},
        },
        {"name": "right", "config": "base.yaml", "after": ["stand_up"], "overrides": {"seed": 3}},
        {
            "name": "last",
            "config": "base.yaml",
            "timesteps": 256,
            "after": ["left", "right"],
            "checkpoint": "session:left",
            "checkpoint_choice": "final",
        },
    ],
}
IDS = ("steps-stand-up", "steps-left", "steps-right", "steps-last")


def session(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "config": "base.yaml", **more}


def write(folder: Path, *sessions: dict[str, Any], base: dict[str, Any] | None = None, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    YAML().dump({**BASE, **(base or {})}, folder / "base.yaml")
    path = folder / "pipeline.yaml"
    YAML().dump({**PIPELINE, **({"sessions": list(sessions)} if sessions else {}), **changed}, path)
    return path


def refused(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as refusal:
        load_pipeline(path, overrides)
    error = refusal.value
    return [str(each) for each in (error.every if isinstance(error, Findings) else (error,))]


# What a file may say.


def test_a_file_as_others_have_it_is_understood(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "name": "session1_stand",
            "description": "first",
            "config": "base.yaml",
            "timesteps": None,
            "use_previous_checkpoint": False,
            "checkpoint": None,
            "overrides": {"hyperparameters": {"gamma": 0.9}, "policy": "MlpPolicy"},
            "aws_overrides": {"sagemaker": {"instance_type": "ml.g5.xlarge", "max_run_seconds": 3600}},
            "success_criteria": {"min_reward": 5.0, "min_episodes": 100},
        },
        {"name": "session2_walk", "config": "base.yaml", "timesteps": 1e4, "use_previous_checkpoint": True},
        name="A Pipeline of Many Different Environments",
        description="as it stands",
        continue_on_error=False,
        enable_transfer_learning=True,
        save_all_checkpoints=True,
        aws={
            "use_s3": False,
            "s3_bucket": "models",
            "region": "us-east-1",
            "sagemaker": {
                "enabled": True,
                "instance_type": "ml.g4dn.xlarge",
                "instance_count": 1,
                "max_run_seconds": 86400,
                "warm_pool": {"enabled": True, "max_instances": 1, "retention_period_seconds": 600},
                "use_spot_instances": False,
                "container_image_uri": None,
                "vpc_config": {"security_group_ids": [], "subnets": []},
                "role_arn": None,
            },
        },
    )
    found = load_pipeline(path)
    assert is_pipeline(path) and not is_pipeline(tmp_path / "base.yaml")
    assert found.id == "a-pipeline-of-many-diff-c6de05" or len(found.id) <= 30
    first, second = found.sessions
    assert (first.run_id, second.run_id) == (f"{found.id}-session1-stand", f"{found.id}-session2-walk")
    assert first.config.hyperparameters == {**BASE["hyperparameters"], "gamma": 0.9}, "merged, deep"
    assert second.after == ("session1_stand",) and second.begins_with == "session1_stand"
    assert second.config.total_timesteps == 10_000 and first.config.total_timesteps == 512
    assert second.choice == "best", "as there are evaluations on the way"
    assert first.config.preservation.every == 128, "save_all_checkpoints"
    assert found.is_chain and found.s3_store is None
    assert load_pipeline(write(tmp_path, name="Steps", id="s")).session("left").run_id == "s-left"


def test_an_order_that_is_no_chain(tmp_path: Path) -> None:
    found = load_pipeline(write(tmp_path, threads=None))
    assert [one.after for one in found.sessions] == [(), ("stand_up",), ("stand_up",), ("left", "right")]
    assert [one.name for one in found.in_order()] == ["stand_up", "left", "right", "last"]
    assert not found.is_chain and found.threads == 1
    assert found.before("last") == {"stand_up", "left", "right"}
    assert found.beginning_with("stand_up") == {"left", "last"}
    backwards = write(tmp_path, session("b", after=["a"], use_previous_checkpoint=True), session("a", after=[]))
    assert [one.name for one in load_pipeline(backwards).in_order()] == ["a", "b"]
    off = load_pipeline(write(tmp_path, enable_transfer_learning=False))
    assert [one.begins_with for one in off.sessions] == [None] * 4
    assert all(one.config.initial_model is None for one in off.sessions)
    told = load_pipeline(write(tmp_path), ["seed=7", "sessions.right.seed=8", "max_parallel=3"])
    assert [one.config.seed for one in told.sessions] == [7, 7, 8, 7] and told.written.max_parallel == 3


@pytest.mark.parametrize(
    ("sessions", "changed", "said"),
    [
        ([session("a", after=["b"]), session("b")], {}, "each would wait for the other, a after b after a"),
        ([session("a"), session("b", after=["c"])], {}, "sessions.b.after: 'c': unknown session: name one of a, b"),
        ([session("a", after=["a"])], {}, "it cannot come after itself"),
        ([session("a"), session("a")], {}, "sessions.a.name: 'a': another session is called so too"),
        ([session("a b"), session("a_b")], {}, "another session would have the same run id as a b"),
        ([session("a", use_previous_checkpoint=True)], {}, "it comes after no other session: set it to false"),
        ([session("a"), session("b", after=[]), session("c", after=["a", "b"], use_previous_checkpoint=True)], {},
         "sessions.c.use_previous_checkpoint: True: it comes after a and b: write checkpoint: session:a instead"),
        ([session("a"), session("b", checkpoint="session:c")], {}, "name one that comes before it (a)"),
        ([session("a", checkpoint="absent.zip")], {}, "sessions.a: initial_model: "),
        ([session("a", checkpoint_choice="best")], {}, "it begins with no session: remove it"),
        ([session("a", config="absent.yaml")], {}, "name an existing run file, relative to the pipeline file"),
        ([session("a", config="pipeline.yaml")], {}, "it is no run file: name one"),
        ([session("a", overrides={"polcy": "x"})], {}, "sessions.a.overrides.polcy: 'x': unknown key: did you mean"),
        ([session("a", overrides={"seeds": [1]})], {}, "a session is one run: remove it"),
        ([session("a", overrides={"environment": {"name": "x"}})], {}, "unknown key: a run file has environment.id"),
        ([session("a", overrides={"training": {"eval_freq": 9}})], {}, "unknown key: a run file has total_timesteps"),
        ([session("a", timesteps=300, overrides={"total_timesteps": 400})], {}, "its overrides say 400: keep one"),
        ([session("a", success_criteria="mean_return > 1", overrides={"evaluation": None})], {},
         "its run file has no evaluation to judge it by"),
        ([session("a", success_criteria="hard.mean_return > 1")], {}, "no such category: name one of default"),
        ([session("a", success_criteria="reward > 1")], {}, "write for example mean_return >= 200"),
        ([session("a", success_criteria={"retries": 2})], {}, "say what has to hold"),
        ([session("a", success_criteria={"min_reward": 1, "retry_overrides": [{}]})], {}, "set retries to 1"),
        ([session("a", success_criteria={"min_reward": 1, "retries": 1, "retry_overrides": [{"seed": -1}]})], {},
         "sessions.a.success_criteria.retry_overrides: seed: -1"),
        ([session("a"), session("b", use_previous_checkpoint=True, overrides={"initial_model": "run:x"})], {},
         "its run file has an initial_model: keep one of the two"),
        ([session("a", overrides={"evaluation": {"every": None}}), session("b", use_previous_checkpoint=True)],
         {"checkpoint_choice": "best"}, "set evaluation.every for a, or take final"),
        ([session("a", config=BASE | {"evaluation": {"episodes": 1}}), session("b", use_previous_checkpoint=True)],
         {"checkpoint_choice": "best"}, "set evaluation.every for a, or take final"),
        ([session("a", overrides={"preservation.every": 384}), session("b", use_previous_checkpoint=True)], {},
         "sessions.a: preservation.every: 384: b begins with the best"),
        ([session("a", success_criteria={"min_reward": 1, "retries": 1}), session("a-retry1")], {},
         "a retry of a has the run id steps-a-retry1: call it otherwise"),
        ([session("é")], {}, "use letters and digits, for example stand_up"),
        ([session("a")], {"aws": {"use_s3": True}}, "aws.s3_bucket: None: use_s3 needs it"),
        ([session("a")], {"aws": {"sagemaker": {"use_spot_instances": True, "warm_pool": {"enabled": True}}}},
         'a warm pool "cannot be used with spot instances"'),
        ([session("a")], {"aws": {"sagemaker": {"instance_count": 2}}}, "aws.sagemaker.instance_count: 2: use 1"),
        ([session("a")], {"monitoring": {"save_report": True}}, "nobody would act on it"),
        ([session("a")], {"max_paralel": 2}, "unknown key: did you mean max_parallel?"),
        ([session("a")], {"name": "!"}, "use letters and digits, or add an id"),
        ([session("a" * 70)], {}, "too long for a run id"),
        ([session("a")], {"sessions": []}, "give a list"),
        ([session("a")], {"sessions": ["a"]}, "sessions.1: 'a': give a map"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(
    sessions: list[dict[str, Any]], changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, *sessions, **changed)
    (line,) = refused(path)
    assert said in line, line


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", "run", str(EXAMPLES / "refused.yaml"), "--store", str(tmp_path / "store")]) == 64
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("train-cloud: ") for line in lines)
    for place in (
        "monitoring:",
        "post_pipeline:",
        "aws.s3_bucket:",
        "aws.sagemaker.use_spot_instances:",
        "sessions.stand_up.use_previous_checkpoint:",
        "sessions.stand_up.overrides.environment.name:",
        "sessions.stand_up.overrides.training:",
        "sessions.stand_up.success_criteria.min_rewards:",
        "sessions.keep_standing.after:",
        "sessions.keep_standing.timesteps:",
        "sessions.keep standing.name:",
        "sessions.keep standing.config:",
        "sessions.keep standing.checkpoint:",
    ):
        assert sum(line.startswith(f"train-cloud: {place}") for line in lines) == 1, place
    assert len(lines) == 13 and not (tmp_path / "store").exists()
    load_pipeline(EXAMPLES / "pipeline.yaml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--start-from", "lift"], "session: 'lift': did you mean left?"),
        (["--start-from", "last"], "it comes after left, which is not completed in this store"),
        (["--platform", "sagemker"], "--platform: 'sagemker'"),
        (["--platform", "sagemaker", "--rerun"], "only on this machine"),
        (["--role-arn", "x"], "only --platform sagemaker takes it"),
        (["--s3-bucket", "x"], "add --use-s3"),
        (["--set", "sessions.lift.seed=1"], "unknown session: did you mean left?"),
        (["--set", "secrets={KEY: /a/b}"], "set the environment variable KEY"),
    ],
)
def test_options_that_are_wrong_begin_nothing(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert main(["pipeline", "run", str(path), "--store", str(tmp_path / "store"), *options]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "store").exists()


def test_it_is_no_run_file_and_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    (tmp_path / "data.yaml").write_text("name: a\n")
    assert code_files(tmp_path) == ["data.yaml"]
    assert main(["pipeline", "run", str(path)]) == 64 and "--store: None" in capsys.readouterr().err
    assert main(["pipeline", "run", str(tmp_path / "base.yaml"), "--store", "x"]) == 64
    assert "it is a run file: train-cloud train is for these" in capsys.readouterr().err


def with_fields(document: str) -> str:
    """The tables of docs/pipelines.md."""
    text = ""
    for title, model in (
        ("", PipelineFile),
        ("each of `sessions`", SessionEntry),
        ("`success_criteria`", SuccessCriteria),
        ("`aws`", Aws),
        ("`aws.sagemaker`", SageMaker),
    ):
        text += f"\n### {title}\n" if title else ""
        text += "\n| field | default | meaning |\n|---|---|---|\n"
        if not title:
            text += "| `sessions` | required | The sessions, at least one; see below. |\n"
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{default_as_yaml(field.default)}`"
            text += f"| `{name}` | {default} | {field.description} |\n"
    begin, end = "<!-- fields: written by python tests/test_pipelines.py -->\n", "<!-- end -->"
    before, _, rest = document.partition(begin)
    return before + begin + text + "\n" + end + rest.partition(end)[2]


def test_the_documented_fields_are_the_programs() -> None:
    assert DOCS.read_text() == with_fields(DOCS.read_text()), "run python tests/test_pipelines.py"


# Trained on this machine.


def command(path: Path, *options: str) -> list[str]:
    places = ["--store", str(path.parent / "store"), "--output-dir", str(path.parent / "out")]
    return [sys.executable, "-m", "train_cloud", "pipeline", "run", str(path), *places, *options]


def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, *options), capture_output=True, text=True, timeout=600)


def head(path: Path, run_id: str) -> Head | None:
    read = read_head(open_store(layout.run_url(str(path.parent / "store"), run_id)))
    return read[0] if read is not None else None


def outcomes(path: Path, run_ids: tuple[str, ...] = IDS) -> list[str | None]:
    found = [head(path, run_id) for run_id in run_ids]
    return [None if one is None else one.outcome for one in found]


def boots(path: Path, run_id: str) -> int:
    return len(read_sessions(open_store(layout.run_url(str(path.parent / "store"), run_id))))


def begun_or_over(path: Path, process: subprocess.Popen[str]) -> bool:
    return head(path, IDS[0]) is not None or process.poll() is not None


def parameters(path: Path, run_id: str) -> tuple[int, str]:
    store = open_store(layout.run_url(str(path.parent / "store"), run_id))
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    snapshot = restore(store, read_manifest(store, read[0].manifest), parts={"model"})
    return read[0].timesteps, model_checksum(snapshot.parts["model"])


def file(path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path.parent / "store/pipelines/steps" / name).read_text())
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write(tmp_path_factory.mktemp("uninterrupted"))
    done = run(path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.slow
def test_sessions_begin_with_what_those_before_have_learned(uninterrupted: Path) -> None:
    path = uninterrupted
    assert outcomes(path) == ["completed"] * 4 and [boots(path, one) for one in IDS] == [1] * 4
    state, report = file(path, "pipeline_state.json"), file(path, "pipeline_report.json")
    assert json.loads((path.parent / "out/pipeline_state.json").read_text()) == state
    assert state["sessions_completed"] == ["stand_up", "left", "right", "last"] and state["current_session"] is None
    assert Path(state["checkpoints"]["left"]).name == "final_model.zip" and Path(state["checkpoints"]["left"]).is_file()
    assert report["summary"] == {**report["summary"], "total_sessions": 4, "completed": 4, "failed": 0}
    by_name = {one["session"]: one for one in report["sessions"]}
    assert {"status", "started_at", "completed_at", "duration_seconds", "checkpoint"} <= by_name["left"].keys()
    assert by_name["stand_up"]["begins_with"] is None and by_name["right"]["begins_with"] is None
    begun = by_name["last"]["begins_with"]
    assert begun["source"] == "run:steps-left@384" and len(begun["digest"]) == 64
    store = open_store(layout.run_url(str(path.parent / "store"), "steps-last"))
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    facts = read_manifest(store, read[0].manifest).facts
    assert facts["initial_model"]["digest"] == begun["digest"] == facts["identity"]["initial_model"]["digest"]
    assert by_name["left"]["begins_with"]["source"] in ("run:steps-stand-up@256", "run:steps-stand-up@512")


@pytest.mark.slow
def test_the_same_command_does_nothing_again(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file(uninterrupted, "pipeline_report.json")
    for options in ((), ("--resume",), ("--start-from", "last")):
        assert run(uninterrupted, *options).returncode == 0
    assert [boots(uninterrupted, one) for one in IDS] == [1] * 4
    assert file(uninterrupted, "pipeline_report.json") == before
    where = ["--store", str(uninterrupted.parent / "store")]
    assert main(["pipeline", "status", str(uninterrupted), *where]) == 0
    assert "steps: completed, 4 of 4 sessions completed" in capsys.readouterr().out
    assert main(["pipeline", "report", str(uninterrupted), *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before


@pytest.mark.slow
def test_a_session_that_was_changed_since_is_refused(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pipeline", "run", str(uninterrupted), "--store", str(uninterrupted.parent / "store")]
    for changed, said in (
        ("sessions.stand_up.hyperparameters.gamma=0.5", "hyperparameters.gamma"),
        ("sessions.left.total_timesteps=640", "steps-left: total_timesteps: 640: it was completed with 384"),
        ("sessions.right.total_timesteps=256", "it was completed with 512"),
        ("sessions.last.seed=9", "seed: 9"),
    ):
        assert main([*arguments, "--set", changed]) == 64
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line and "or add --rerun" in line
    assert outcomes(uninterrupted) == ["completed"] * 4 and [boots(uninterrupted, one) for one in IDS] == [1] * 4


def kill_tree(process: subprocess.Popen[str]) -> None:
    above = psutil.Process(process.pid)
    tree = [above, *above.children(recursive=True)]
    for each in tree:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(tree, timeout=60)


KILLS, SEED = int(os.environ.get("PIPELINE_KILLS", "8")), int(os.environ.get("PIPELINE_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_any_instant_it_ends_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    """SIGKILL of all its processes, or of the one that decides; SIGINT; each at a random instant."""
    draw, kills, times = random.Random(SEED), 0, 0
    path = write(tmp_path / "0")
    while True:
        completed = {one: boots(path, one) for one, outcome in zip(IDS, outcomes(path), strict=True) if outcome}
        process = subprocess.Popen(command(path), stderr=subprocess.PIPE, text=True)
        if kills < KILLS:
            until(partial(begun_or_over, path, process), "the first session's beginning")
            time.sleep(draw.choice((0.5, 2.0, 6.0, 6.0)) * draw.random() + 0.2)
        if kills < KILLS and process.poll() is None:
            kills += 1
            how = draw.choice(("tree", "tree", "alone", "interrupt"))
            if how == "tree":
                kill_tree(process)
            elif how == "alone":
                tree = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                process.wait()
                assert not psutil.wait_procs(tree, timeout=120)[1], "they stop with a commit"
            else:
                process.send_signal(signal.SIGINT)
                said = process.communicate(timeout=120)[1]
                assert process.returncode in (75, 0, -signal.SIGINT), said
        else:
            said = process.communicate(timeout=600)[1]
            assert process.returncode == 0, said
        assert {one: boots(path, one) for one in completed} == completed, "what is completed is not trained again"
        if outcomes(path) == ["completed"] * 4 and process.returncode == 0:
            assert [parameters(path, one) for one in IDS] == [parameters(uninterrupted, one) for one in IDS]
            if kills >= KILLS:
                return
            times += 1
            path = write(tmp_path / str(times))


@pytest.mark.slow
def test_a_session_has_to_meet_its_criteria(tmp_path: Path) -> None:
    criteria = {"condition": "mean_return >= 1000", "retries": 1, "retry_overrides": [{"hyperparameters.gamma": 0.9}]}
    sessions = [
        session("a", timesteps=128, success_criteria=criteria),
        session("b", timesteps=128, use_previous_checkpoint=True),
        session("c", timesteps=128, after=["b"]),
    ]
    path = write(tmp_path, *sessions, base={"save_frequency": 128, "evaluation": BASE["evaluation"] | {"every": 128}})
    done = run(path)
    assert (
        done.returncode == 1
        and "session a does not meet its criteria in 2 attempts: mean_return >= 1000: it is" in (done.stderr)
    )
    ids = ("steps-a", "steps-a-retry1", "steps-b", "steps-c")
    assert outcomes(path, ids) == ["completed", "completed", None, None]
    store = open_store(layout.run_url(str(path.parent / "store"), "steps-a-retry1"))
    start = read_sessions(store)[0].start["run_file"]
    assert (start["seed"], start["hyperparameters"]["gamma"]) == (1, 0.9)
    state = file(path, "pipeline_state.json")
    assert state["status"] == "failed" and state["sessions_completed"] == []
    first = read_sessions(open_store(layout.run_url(str(path.parent / "store"), "steps-a")))[0]
    told = file(path, "pipeline_report.json")["sessions"][0]
    assert told["started_at"] == first.start["started"], "all attempts are counted"
    assert first.end is not None and told["duration_seconds"] > first.end["seconds"]
    # What does not begin with it is trained all the same, where the file says so.
    sessions[1]["after"], sessions[1]["use_previous_checkpoint"] = ["a"], False
    done = run(write(tmp_path, *sessions, continue_on_error=True))
    assert done.returncode == 1 and "follows" not in done.stderr
    assert outcomes(path, ids) == ["completed"] * 4 and boots(path, "steps-a") == 1
    # A criterion that is met now: judged again, trained no more; and what it lets begin is there.
    sessions[0]["success_criteria"] = {"condition": "mean_return >= 1"}
    assert run(write(tmp_path, *sessions)).returncode == 0
    assert [boots(path, one) for one in ids] == [1, 1, 1, 1]


@pytest.mark.slow
def test_a_session_that_was_cancelled_ends_it_until_somebody_resumes_and_rerun_trains_anew(tmp_path: Path) -> None:
    small = {"save_frequency": 128, "evaluation": None}
    sessions = [session("a", timesteps=128), session("b", timesteps=128, use_previous_checkpoint=True)]
    path = write(tmp_path, *sessions, base=small)
    root, ids = str(path.parent / "store"), ("steps-a", "steps-b")
    cancel(root, "steps-a", begun=False)
    done = run(path)
    assert (
        done.returncode == 1 and "session a was cancelled" in done.stderr and outcomes(path, ids) == ["stopped", None]
    )
    assert run(path, "--resume").returncode == 0 and outcomes(path, ids) == ["completed", "completed"]
    before = parameters(path, "steps-b")
    done = run(path, "--set", "sessions.a.seed=5", "--rerun")
    assert done.returncode == 0, done.stderr
    assert "steps-a is deleted" in done.stderr and "steps-b is deleted" in done.stderr
    assert "steps-a: trains from 0 of 128" in done.stderr, "not from where the deleted run was"
    assert parameters(path, "steps-b") != before and [boots(path, one) for one in ids] == [1, 1]


@pytest.mark.slow
def test_what_cannot_be_trained_is_told_before_the_first_session_begins(tmp_path: Path) -> None:
    sessions = [session("a"), session("b", overrides={"hyperparameters": {"learning_rat": 1}})]
    path = write(tmp_path, *sessions)
    done = run(path)
    assert done.returncode == 64 and "steps-b: hyperparameters.learning_rat: 1: PPO has no such arg" in done.stderr
    assert outcomes(path, ("steps-a", "steps-b")) == [None, None]
    # Also what only a retry would come to.
    another = {"hyperparameters": {"policy_kwargs": {"net_arch": [16]}}}
    sessions[0]["success_criteria"] = {"min_reward": 1, "retries": 1, "retry_overrides": [another]}
    sessions[1] = session("b", use_previous_checkpoint=True)
    done = run(write(tmp_path, *sessions))
    assert done.returncode == 64 and "steps-b: initial_model: 'run:steps-a-retry1': it does not fit" in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_orchestration_of_ones_own(tmp_path: Path) -> None:
    criteria = {"condition": "mean_return >= 1000"}
    sessions = [
        session("a", timesteps=128, success_criteria=criteria),
        session("b", timesteps=128, use_previous_checkpoint=True),
    ]
    path = write(tmp_path, *sessions, base={"save_frequency": 128, "evaluation": {"episodes": 1, "max_steps": 10}})
    pipeline = train_cloud.Pipeline(path, store=str(tmp_path / "store"), output_dir=tmp_path / "out")
    results = []
    for one in pipeline.sessions:
        result = pipeline.run_session(one)
        if not result.meets_success_criteria:
            rate = one.config.hyperparameters.get("learning_rate", 3e-4)
            result = pipeline.run_session(one, overrides={"hyperparameters.learning_rate": 0.5 * rate})
        results.append(result)
    assert [result.status for result in results] == ["completed", "completed"]
    assert results[0].run_id.startswith("steps-a-") and results[0].meets_success_criteria is False
    assert results[0].evaluation is not None and "mean_return >= 1000" in (results[0].reason or "")
    assert results[1].run_id == "steps-b" and results[1].meets_success_criteria
    assert Path(results[1].checkpoint or "").is_file()
    store = open_store(layout.run_url(str(tmp_path / "store"), "steps-b"))
    begun = read_sessions(store)[0].start["run_file"]["initial_model"]["source"]
    assert begun == f"run:{results[0].run_id}@128", "with what was handed over last"
    again = pipeline.run_session("b")
    assert again == results[1] and len(read_sessions(store)) == 1
    with pytest.raises(InputError, match=r"^b: polcy"):
        pipeline.run_session("b", overrides={"polcy": 1})
    with pytest.raises(InputError, match=r"it is open: .* comes first"):
        train_cloud.Pipeline(path, store=str(tmp_path / "other")).run_session("b")


@pytest.mark.slow
def test_validate_builds_each_and_tries_what_is_handed_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sessions = [session("a"), session("b", use_previous_checkpoint=True)]
    path = write(tmp_path, *sessions, base={"evaluation": None})
    assert main(["pipeline", "validate", str(path)]) == 0
    out = capfd.readouterr().out
    assert "b: begins with a: it fits" in out and "all 2 sessions can be trained" in out
    sessions[1]["overrides"] = {"hyperparameters": {"policy_kwargs": {"net_arch": [16]}}}
    assert main(["pipeline", "validate", str(write(tmp_path, *sessions, base={"evaluation": None}))]) == 64
    assert "steps-b: initial_model: 'run:steps-a': it does not fit this run" in capfd.readouterr().err


def test_it_can_be_looked_at_before_it_has_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    (tmp_path / "store").mkdir()
    assert main(["pipeline", "status", str(path), "--store", str(tmp_path / "store"), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert state["status"] == "pending" and state["sessions_completed"] == [] and state["started_at"] is None
    assert main(["pipeline", "report", str(path), "--store", str(tmp_path / "store")]) == 0
    assert "0 of 4 sessions completed" in capsys.readouterr().out
    assert not list((tmp_path / "store").iterdir())


if __name__ == "__main__":
    DOCS.write_text(with_fields(DOCS.read_text()))
