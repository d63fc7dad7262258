"""A session's life as a process: what it refuses, what it leaves, how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from sessions import Rehearsed
from stable_baselines3 import SAC

from train_cloud.config import load_run_file
from train_cloud.operations.export import export
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.head import Lease, Token, conclude, read_head
from train_cloud.run.session import read_sessions
from train_cloud.sb3.check import check
from train_cloud.sb3.compare import differences

pytestmark = pytest.mark.slow

RUN: dict[str, Any] = {
    "algorithm": "sac",
    "seed": 3,
    "total_timesteps": 400,
    "save_frequency": 100,
    "environment": {"id": "Pendulum-v1", "normalize": {}},
    "hyperparameters": {"learning_starts": 50, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}},
    "callbacks": ["interrupting:InterruptAt"],
}


@pytest.fixture
def run(warm: Any, tmp_path: Path) -> Rehearsed:
    return Rehearsed(warm, tmp_path, RUN)


@pytest.fixture(scope="module")
def done(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """A completed run, for tests that only read."""
    run = Rehearsed(warm, tmp_path_factory.mktemp("done"), RUN)
    assert run.session() == 0, run.log()
    return run


@pytest.fixture
def worker() -> Iterator[dict[str, str]]:
    """Variables of a worker in a group, with a metadata service."""
    with MetadataService("i-0123456789abcdef0") as metadata:
        yield {
            "TRAIN_CLOUD_AUTOSCALING_GROUP": "a-group",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.endpoint,
        }


def ends(process: Any) -> int:
    """The exit code of a session in whose state folder nothing is changed meanwhile."""
    process.join(120)
    assert process.exitcode is not None
    return int(process.exitcode)


def contents(run: Rehearsed) -> dict[str, bytes]:
    return {info.key: bytes(run.store.get(info.key).body) for info in run.store.list("")}


# ------------------------------------------------------------------------------------------------------ what it leaves


def test_a_completed_run(done: Rehearsed) -> None:
    head = done.head()
    assert (head.outcome, head.timesteps, head.session) == ("completed", 400, 1)
    (session,) = read_sessions(done.store)
    assert session.end is not None and session.progress is not None
    assert (session.end["ended_by"], session.end["first_timestep"], session.end["last_timestep"]) == (
        "completed",
        0,
        400,
    )
    assert session.progress["exact"] is True
    assert session.start["run_file"]["total_timesteps"] == 400
    launched = json.loads(bytes(done.store.get(layout.RUN_JSON).body))
    assert launched["run_id"] == "a-run"
    assert bytes(done.store.get(layout.RUN_YAML).body) == done.run_file.read_bytes()


def test_a_checkpoint_is_as_large_as_was_estimated(done: Rehearsed) -> None:
    (session,) = read_sessions(done.store)
    assert session.progress is not None
    estimated = check(load_run_file(done.run_file))
    sent = session.progress["sent_bytes"]
    assert sent == pytest.approx(estimated.parts_bytes + 100 * estimated.row_bytes, rel=0.3)


@pytest.mark.parametrize("at", [None, 300])
def test_an_export_loads_with_plain_sb3_and_plays(done: Rehearsed, tmp_path: Path, at: int | None) -> None:
    folder = export(str(done.folder / "store"), "a-run", at=at, out=tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "model.zip", "vecnormalize.pkl", "run.yaml", "requirements.lock", "play.py",
    }  # fmt: skip
    model = SAC.load(folder / "model.zip")
    assert model.num_timesteps == (at or 400)
    stored = done.final() if at is None else None
    if stored is not None:
        for name, value in model.policy.state_dict().items():
            assert value.numpy().tobytes() == stored.parts["model"].arrays[f"policy|{name}"].tobytes()
        assert model.log_ent_coef is not None
        assert model.log_ent_coef.detach().numpy() == stored.parts["model"].arrays["variable|log_ent_coef"]
    played = subprocess.run([sys.executable, folder / "play.py", "2"], capture_output=True, text=True, timeout=120)
    assert played.returncode == 0 and played.stdout.count("return") == 2, played.stderr
    assert "torch==" in (folder / "requirements.lock").read_text()


CONTRIB: dict[str, dict[str, Any]] = {
    "recurrent_ppo": {
        "policy": "MlpLstmPolicy",
        "environment": {"id": "Pendulum-v1", "frame_stack": 2, "normalize": {}, "kwargs": {"max_episode_steps": 20}},
        "hyperparameters": {"n_steps": 32, "policy_kwargs": {"lstm_hidden_size": 4}},
    },
    "maskable_ppo": {
        "environment": {"id": "MaskedWalk-v0", "module": "interrupting", "kwargs": {"discrete": True}},
        "hyperparameters": {"n_steps": 32},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", CONTRIB)
def test_frames_memory_and_masks_are_played_too(warm: Any, tmp_path: Path, algorithm: str) -> None:
    run = {"algorithm": algorithm, "seed": 1, "total_timesteps": 32, "save_frequency": 32, **CONTRIB[algorithm]}
    trained = Rehearsed(warm, tmp_path / "run", run)
    assert trained.session() == 0, trained.log()
    folder = export(trained.root, "a-run", out=tmp_path / "out")
    played = subprocess.run([sys.executable, folder / "play.py", "2"], capture_output=True, text=True, timeout=120)
    assert played.returncode == 0 and played.stdout.count("return") == 2, played.stderr


def test_the_final_model_lies_in_the_store(done: Rehearsed, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(done.store.get(layout.FINAL + "model.zip").body)
    assert SAC.load(tmp_path / "model.zip").num_timesteps == 400


# ---------------------------------------------------------------------------------------------------- what it refuses


def test_a_completed_run_is_refused(done: Rehearsed) -> None:
    before = contents(done)
    assert done.session() == 64
    assert "run_id: 'a-run': completed already" in done.log()
    assert contents(done) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("seed=4", "seed"),
        ("hyperparameters.batch_size=32", "hyperparameters.batch_size"),
        ("environment.n_envs=2", "environment.n_envs"),
        ("policy=sb3:Other", "policy"),
    ],
)
def test_another_identity_is_refused(run: Rehearsed, change: str, field: str) -> None:
    assert run.session("SIGTERM@150") == 75
    before = contents(run)
    assert run.session(options=("--set", change)) == 64, run.log()
    assert f"train-cloud: {field}:" in run.log()
    assert contents(run) == before


def test_the_budget_may_change(run: Rehearsed) -> None:
    assert run.session("SIGTERM@150") == 75
    assert run.session(options=("--set", "total_timesteps=300", "--set", "save_frequency=50")) == 0, run.log()
    assert run.head().timesteps == 300


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("save_frequency=0", "save_frequency"),
        ("save_frequency=1e9", "save_frequency"),
        ("environment.id=Nowhere-v0", "environment.id"),
        ("environment.module=no_such_module", "environment.module"),
        ("algorithm=sax", "algorithm"),
        ("colour=red", "colour"),
        ("hyperparameters.batch_size=-1", "hyperparameters.batch_size"),
        ("callbacks=[interrupting:Wind]", "callbacks"),
    ],
)
def test_bad_input_creates_nothing(run: Rehearsed, change: str, field: str) -> None:
    assert run.session(options=("--set", change)) == 64, run.log()
    assert f"train-cloud: {field}" in run.log()
    assert not [key for key in contents(run) if key.startswith((layout.CHECKPOINTS, layout.REPLAY, layout.HEAD))]


@pytest.mark.parametrize("what", ["head.json", "/manifest.json", "/model", "replay/"])
def test_a_corrupt_checkpoint_is_an_error_and_never_a_start_from_zero(run: Rehearsed, what: str) -> None:
    assert run.session("SIGTERM@150") == 75
    read = (info.key for info in run.store.list("") if what in info.key)
    key = next(key for key in read if not key.startswith(layout.CHECKPOINTS) or "/000000000150-" in key)
    body = bytearray(run.store.get(key).body)
    body[len(body) // 2] ^= 0x80
    run.store.put(key, bytes(body))
    before = {
        key: body for key, body in contents(run).items() if not key.startswith((layout.SESSIONS, layout.ARTIFACTS))
    }
    assert run.session() == 1, run.log()
    assert key.rsplit("/", 1)[-1] in run.log()
    after = {
        key: body for key, body in contents(run).items() if not key.startswith((layout.SESSIONS, layout.ARTIFACTS))
    }
    before.pop(layout.HEAD)
    after.pop(layout.HEAD)  # the run was taken before its checkpoint was read
    assert after == before


def test_a_missing_bucket_is_an_error(run: Rehearsed, aws_endpoint: str) -> None:
    assert run.session(options=("--store", "s3://no-such-bucket-anywhere/x")) == 1, run.log()
    assert "no-such-bucket-anywhere" in run.log()


def test_one_trainer_per_state_folder(run: Rehearsed) -> None:
    from filelock import FileLock

    (run.folder / "state").mkdir()
    with FileLock(run.folder / "state" / "train.lock"):
        assert run.session() == 64
    assert "state-dir" in run.log()


# ------------------------------------------------------------------------------------------------------- how it ends


def test_a_newer_worker_fences_it(run: Rehearsed, worker: dict[str, str]) -> None:
    """A newer session takes the run before this boot's trainer is started again: exit 73, and its head stands."""
    assert run.session("SIGTERM@150", env=worker) == 75
    taken = Lease.take(run.store, Token(50, 0), "i-newer")
    assert run.session(env=worker) == 73, run.log()
    assert "i-newer" in run.log()
    assert run.head() == taken.head


def test_fenced_in_mid_training(run: Rehearsed) -> None:
    assert run.session(env={"FENCE_AT": "250", "FENCE_STORE": run.store.url}) == 73, run.log()
    assert run.head().owner == "i-newer"
    assert run.head().timesteps == 200
    (session,) = read_sessions(run.store)
    assert session.end is not None and session.end["ended_by"] == "fenced"


def test_training_code_that_raises(run: Rehearsed) -> None:
    assert run.session(env={"RAISE_AT": "250"}) == 1
    assert "ArithmeticError: on purpose" in run.log()
    assert run.head().outcome is None and "ArithmeticError: on purpose" in (run.head().reason or "")
    assert run.head().timesteps == 200
    (session,) = read_sessions(run.store)
    assert session.end is not None and session.end["ended_by"] == "failure" and session.end["last_timestep"] == 249
    assert session.end["because"] == "ArithmeticError: on purpose"
    found = run_status(run.root, "a-run")
    assert (found.state, found.sessions[0].ended_by, found.seconds_left) == ("interrupted", "failure", None)
    assert run.session() == 0, run.log()
    assert run.head().reason is None
    found = run_status(run.root, "a-run")
    assert (found.interruptions, found.repeated_timesteps, found.repeated_at_most) == (1, 49, 49)


def test_a_sudden_death_is_counted_to_the_step_by_who_finds_the_state_folder(run: Rehearsed) -> None:
    assert ends(run.start(env={"INTERRUPT": "SIGKILL@250"})) == -9
    found = run_status(run.root, "a-run")
    assert (found.state, found.timesteps >= 200) == ("interrupted", True)
    assert ends(run.start(env={"INTERRUPT": "SIGTERM@230"})) == 75
    found = run_status(run.root, "a-run")
    assert (found.repeated_timesteps, found.repeated_at_most) == (49, 49)
    assert (found.sessions[0].ended_by, found.sessions[0].last_timestep) == ("lost", 249)
    assert "taken over" not in run.log()


def test_who_takes_the_run_from_another_machine_says_from_whom(run: Rehearsed) -> None:
    """The first one trains on until its next commit, and is fenced."""
    first = run.start(env={"SLEEP_AT": "150"})
    deadline = time.monotonic() + 120
    while not (found := read_head(run.store)) or found[0].timesteps < 100:
        assert time.monotonic() < deadline and first.exitcode is None, run.log()
        time.sleep(0.05)
    second = run.start(state="elsewhere")
    second.join(120)
    first.join(120)
    assert (first.exitcode, second.exitcode) == (73, 0), run.log()
    assert re.search(r"taken over from session 1 \(\S+\), last heard of \d+ s ago at 1\d\d timesteps", run.log())
    ends = [record.end["ended_by"] for record in read_sessions(run.store) if record.end is not None]
    assert ends == ["fenced", "completed"]


def test_on_a_worker_it_fails_after_so_many_attempts(run: Rehearsed, worker: dict[str, str]) -> None:
    worker = {**worker, "TRAIN_CLOUD_MAX_ATTEMPTS": "2", "RAISE_AT": "250"}
    assert [ends(run.start(env=worker)) for _ in range(3)] == [1, 1, 1]
    head = run.head()
    assert head.outcome == "failed" and "ArithmeticError: on purpose" in (head.reason or "")
    assert head.session == 1, "one boot is one session, however often its trainer restarts"
    ended = [json.loads(bytes(run.store.get(layout.end_key(1, restart)).body)) for restart in range(3)]
    assert [end["ended_by"] for end in ended] == ["failure"] * 3 and "attempts without" in ended[2]["because"]
    (session,) = read_sessions(run.store)
    assert session.end == ended[2]
    assert run_status(run.root, "a-run").repeated_timesteps == 49, "by the second attempt, from 200 on"
    assert run.session(env=worker) == 0
    assert "nothing to do" in run.log()


def test_a_limit_is_the_outcome_stopped_and_a_raised_limit_goes_on(run: Rehearsed, done: Rehearsed) -> None:
    assert run.session(options=("--set", "limits.hours=1e-6"), env={"SLEEP_AT": "100"}) == 0, run.log()
    head = run.head()
    assert (head.outcome, head.reason) == ("stopped", "limits.hours: 1e-06 instance hours are used")
    assert head.timesteps < 400
    assert run.session() == 0, run.log()
    assert differences(run.final(), done.final()) == []


def test_a_rebalance_recommendation_is_a_checkpoint_out_of_turn(run: Rehearsed) -> None:
    assert run.session("SIGUSR1@130", options=("--set", "save_frequency=400")) == 0, run.log()
    assert any(info.key.startswith(f"{layout.CHECKPOINTS}000000000130-") for info in run.store.list(""))


def test_a_stop_before_the_training_began_leaves_the_run_as_it_is(run: Rehearsed) -> None:
    assert run.session("SIGTERM@150") == 75
    before = run.head()
    assert run.session(env={"STOP_AT_IMPORT": "1"}) == 75, run.log()
    assert (run.head().timesteps, run.head().manifest) == (before.timesteps, before.manifest)


def test_an_outcome_from_outside_ends_it_on_a_worker(run: Rehearsed, worker: dict[str, str]) -> None:
    assert run.session("SIGTERM@150", env=worker) == 75
    conclude(run.store, "stopped", "by hand", session=9, owner="somebody")
    assert run.session(env=worker) == 0
    assert run.head().timesteps == 150


# ------------------------------------------------------------------------------------------- code of the user's own


@pytest.mark.parametrize("example", ["own_environment", "own_script"])
def test_examples_of_ones_own_are_interrupted_and_resumed_exactly(warm: Any, tmp_path: Path, example: str) -> None:
    examples = Path(__file__).parents[1] / "examples"
    content = YAML(typ="safe").load((examples / f"{example}.yaml").read_text())
    content["code"]["folder"] = str(examples / content["code"]["folder"])
    content |= {"run_id": "a-run", "total_timesteps": 1200, "save_frequency": 300}
    twin, run = (Rehearsed(warm, tmp_path / name, content) for name in ("twin", "run"))
    assert twin.session() == 0, twin.log()
    assert run.session("SIGTERM@500", outside=True) == 75, run.log()
    assert run.session("SIGKILL@1000", outside=True) == -9, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
    assert [session.end and session.end["ended_by"] for session in read_sessions(run.store)] == [
        "signal", None, "completed",
    ]  # fmt: skip
