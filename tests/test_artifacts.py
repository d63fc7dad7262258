"""What a run leaves behind, interrupted or not: files, tables, manifest; and that nobody trains otherwise for it."""

from __future__ import annotations

import csv
import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed
from stable_baselines3 import SAC
from stable_baselines3.common.monitor import load_results
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from test_sync import check_manifest, objects, write

from train_cloud.artifacts import tables
from train_cloud.artifacts.tensorboard import event_files, read_scalars
from train_cloud.artifacts.uploads import MANIFEST
from train_cloud.platforms.ec2.finish import send_artifacts
from train_cloud.run import layout
from train_cloud.run.session import Session
from train_cloud.sb3.compare import differences
from train_cloud.store import ObjectStore, open_store

RUN: dict[str, Any] = {
    "algorithm": "sac",
    "seed": 3,
    "total_timesteps": 900,
    "save_frequency": 100,
    "environment": {"id": "Pendulum-v1", "wrappers": ["interrupting:SlowBy2"]},
    "hyperparameters": {"learning_starts": 50, "train_freq": 4, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}},
    "callbacks": ["interrupting:InterruptAt"],
    "artifacts": {"sync_seconds": 0.3},
    "preservation": {"last": 2, "every": 400},
}


def there(run: Rehearsed) -> ObjectStore:
    return open_store(f"{run.store.url}/{layout.ARTIFACTS.rstrip('/')}")


def rows(body: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in body.decode().splitlines() if not line.startswith("#")))


def untimed(body: bytes) -> list[dict[str, str]]:
    return [
        {name: value for name, value in row.items() if not name.startswith("time/") and name != "t"}
        for row in rows(body)
    ]


@pytest.fixture(scope="module")
def done(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    run = Rehearsed(warm, tmp_path_factory.mktemp("done") / "run", RUN)
    assert run.session() == 0, run.log()
    return run


@pytest.mark.slow
def test_what_a_run_leaves(done: Rehearsed, tmp_path: Path) -> None:
    store = there(done)
    found, manifest = objects(store), check_manifest(store)
    assert manifest.experiment_name == "a-run"
    names = {name for name in found if not name.startswith(("tensorboard/", "final/"))}
    assert names == {
        "training_config.json", "progress.csv", "monitor.csv", "final_model.zip", "logs/session-000001.log",
        "checkpoints/checkpoint_400.zip", "checkpoints/checkpoint_800.zip", "checkpoints/checkpoint_900.zip",
    }  # fmt: skip
    assert found["final_model.zip"] == found["final/model.zip"]
    for name, timesteps in {"final_model.zip": 900, "checkpoints/checkpoint_400.zip": 400}.items():
        (tmp_path / "model.zip").write_bytes(found[name])
        assert SAC.load(tmp_path / "model.zip").num_timesteps == timesteps
    config = json.loads(found["training_config.json"])
    assert config["run_file"]["total_timesteps"] == 900 and config["versions"]["torch"]
    assert b"completed at 900 timesteps" in found["logs/session-000001.log"]


@pytest.mark.slow
def test_tables_as_people_read_them(done: Rehearsed, tmp_path: Path) -> None:
    found = objects(there(done))
    (tmp_path / "monitor.csv").write_bytes(found["monitor.csv"])
    episodes = load_results(str(tmp_path))
    assert list(episodes["l"]) == [200] * 4 and list(episodes["timesteps"]) == [200, 400, 600, 800]
    progress = rows(found["progress.csv"])
    logged = dict(done.scalars()["rollout/ep_rew_mean"])
    assert {int(row["timesteps"]): float(row["rollout/ep_rew_mean"]) for row in progress} == pytest.approx(logged)


INTERRUPTIONS = [("SIGTERM", False), ("SIGKILL", False), ("SIGKILL", True), ("SIGTERM", True), ("SIGKILL", False)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, *(pytest.param(seed, marks=pytest.mark.full) for seed in (1, 2, 3))])
def test_interrupted_at_random_instants(
    warm: Any, done: Rehearsed, tmp_path: Path, s3_root: str, aws_endpoint: str, seed: int
) -> None:
    """On S3, with everything on, half of the times on another machine: what lies there is right after each, and at the
    end it is what the uninterrupted run left.
    """
    chance = random.Random(seed)
    run = Rehearsed(warm, tmp_path, RUN, root=s3_root)
    at = 0
    for name, moves in INTERRUPTIONS:
        at += chance.randrange(60, 150)
        code = run.session(f"{name}@{at}", outside=True, env={"AWS_ENDPOINT_URL": aws_endpoint})
        assert code in (75, -9), run.log()
        manifest = check_manifest(there(run), pending=True) if MANIFEST in listing(run) else None
        if code == 75:
            assert manifest is not None and not manifest.pending
        if moves:
            shutil.rmtree(tmp_path / "state")
    assert run.session(env={"AWS_ENDPOINT_URL": aws_endpoint}) == 0, run.log()
    assert differences(run.final(), done.final()) == []
    assert run.scalars() == done.scalars()
    check_manifest(there(run))
    found, expected = objects(there(run)), objects(there(done))
    shown, scalars = shown_by_tensorboard(found, tmp_path / "board")
    assert "_hparams_/experiment" in shown and "session 1: signal at" in shown["system/interruptions/text_summary"]
    assert {"system/cpu_percent", "system/process_memory_gb", "system/steps_per_second", "system/stall_ms"} <= scalars
    for table in ("progress.csv", "monitor.csv"):
        assert untimed(found[table]) == untimed(expected[table]), table
    assert zipped(found) == zipped(expected)


@pytest.mark.slow
def test_no_head_stands_without_its_scalars(warm: Any, done: Rehearsed, tmp_path: Path) -> None:
    """Killed, and the disk gone, before anything was sent but checkpoints: curves and tables go on from these."""
    run = Rehearsed(warm, tmp_path, {**RUN, "artifacts": {"sync_seconds": 600}})
    for at in (430, 770):
        assert run.session(f"SIGKILL@{at}") == -9, run.log()
        shutil.rmtree(tmp_path / "state")
    assert run.session() == 0, run.log()
    assert run.scalars() == done.scalars()
    found, expected = objects(there(run)), objects(there(done))
    for table in ("progress.csv", "monitor.csv"):
        assert untimed(found[table]) == untimed(expected[table]), table


def listing(run: Rehearsed) -> set[str]:
    return {info.key for info in there(run).list()}


def zipped(found: dict[str, bytes]) -> dict[str, list[str]]:
    """Names of the models, with what is in them."""
    models = {}
    for name, body in found.items():
        if name.endswith(".zip"):
            path = Path(name).name
            with zipfile.ZipFile(_file(body)) as archive:
                models[name] = [path, *sorted(archive.namelist())]
    return models


def _file(body: bytes) -> Any:
    import io

    return io.BytesIO(body)


@pytest.mark.slow
def test_files_of_the_users_own_reach_the_store_while_it_trains(warm: Any, tmp_path: Path) -> None:
    run = Rehearsed(warm, tmp_path, {**RUN, "callbacks": ["interrupting:WritesFiles", "interrupting:InterruptAt"]})
    assert run.session("SIGKILL@450") == -9
    found = objects(there(run))
    assert found["plots/early.png"] == b"at 100"
    assert run.session() == 0, run.log()
    assert objects(there(run))["plots/late.png"] == b"at 500"
    check_manifest(there(run))


@pytest.mark.slow
def test_a_failing_script_leaves_its_log(warm: Any, tmp_path: Path) -> None:
    run = Rehearsed(warm, tmp_path, RUN)
    assert run.session(env={"RAISE_AT": "250"}) == 1
    assert b"ArithmeticError: on purpose" in objects(there(run))["logs/session-000001.log"]
    check_manifest(there(run))


def test_a_table_is_cut_where_the_head_is(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert not tables.cut(path, 10)
    path.write_text('#{"t_start": 1}\ntimesteps,r\n5,1\n10,2\n15,3\n2')
    assert tables.cut(path, 10)
    assert path.read_text() == '#{"t_start": 1}\ntimesteps,r\n5,1\n10,2\n'
    assert not tables.cut(path, 10)
    assert tables.cut(path, 0)
    assert path.read_text() == '#{"t_start": 1}\ntimesteps,r\n'


def test_columns_that_come_later(tmp_path: Path) -> None:
    from train_cloud.sb3.scalars import Table

    path = tmp_path / "progress.csv"
    Table(path).write({"b": 1.5, "hidden": 2}, {"b": (), "hidden": ("csv",)}, 10)
    Table(path).write({"a": "x,y", "b": 2}, {"a": (), "b": ()}, 20)
    assert path.read_text() == 'timesteps,b,a\n10,1.5,\n20,2,"x,y"\n'


@pytest.mark.slow
def test_of_a_run_that_is_given_up_finish_sends_what_there_is(warm: Any, tmp_path: Path) -> None:
    """The trainer was killed for good before anything but its scalars had travelled."""
    run = Rehearsed(warm, tmp_path, {**RUN, "artifacts": {"sync_seconds": 3600}})
    assert run.session("SIGKILL@450") == -9
    write(tmp_path / "state" / "artifacts", plots__last="drawn")
    session = Session(number=1, restart=0, instance_id="i", boot_id="b")
    send_artifacts(run.store, tmp_path / "state", session, export=True)
    found = objects(there(run))
    check_manifest(there(run))
    assert found["plots/last"] == b"drawn" and found["logs/session-000001.log"]
    (tmp_path / "model.zip").write_bytes(found["final_model.zip"])
    assert SAC.load(tmp_path / "model.zip").num_timesteps == run.head().timesteps == 400
    newer = Session(number=2, restart=0, instance_id="i", boot_id="b")
    send_artifacts(run.store, tmp_path / "state", newer, export=False)
    write(tmp_path / "state" / "artifacts", plots__late="from the dead")
    send_artifacts(run.store, tmp_path / "state", session, export=False)
    assert "plots/late" not in objects(there(run))


def shown_by_tensorboard(found: dict[str, bytes], folder: Path) -> tuple[dict[str, str], set[str]]:
    """Texts and other summaries by tag, and the tags of scalars."""
    for name, body in found.items():
        if name.startswith("tensorboard/"):
            write(folder, **{name: body})
    texts: dict[str, str] = {}
    for path in event_files(folder):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                texts.setdefault(value.tag, str(value.tensor.string_val) + str(value.metadata.plugin_data.plugin_name))
    return texts, set(read_scalars(folder))


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "codes"), [("60", [0]), ("0", [75, 0])])
def test_a_notice_at_the_very_end(warm: Any, done: Rehearsed, tmp_path: Path, seconds: str, codes: list[int]) -> None:
    """The head goes first. Where there is time left for the artifacts the run completes, else the next session does."""
    run = Rehearsed(warm, tmp_path, RUN)
    found = [run.session("SIGTERM@900", env={"TRAIN_CLOUD_STOP_SECONDS": seconds})]
    assert run.head().timesteps == 900, run.log()
    if found == [75]:
        assert run.head().outcome is None
        found.append(run.session())
    assert found == codes, run.log()
    assert differences(run.final(), done.final()) == []
    check_manifest(there(run))
    assert zipped(objects(there(run))) == zipped(objects(there(done)))
