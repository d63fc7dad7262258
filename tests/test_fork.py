"""A fork begins with its parent's state, goes on as its parent did, and needs its parent for nothing."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sessions import Rehearsed

from train_cloud.checkpoint import Committer, copy, find, restore
from train_cloud.cli import main
from train_cloud.config import Preservation, load_run_file, parse_run_file, read_yaml
from train_cloud.errors import CorruptCheckpoint, InputError
from train_cloud.operations.export import export
from train_cloud.operations.fork import fork
from train_cloud.report.preflight import check_before_training
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, Token, read_head
from train_cloud.run.session import begin_session
from train_cloud.sb3.compare import differences
from train_cloud.snapshot import Part, Rows, Snapshot
from train_cloud.store import ObjectStore, open_store

RUN = """\
run_id: parent
training_type: sac
total_timesteps: 100
save_frequency: 10
environment: {id: Pendulum-v1}
hyperparameters: {learning_rate: 1e-3, buffer_size: 30}
"""
#: Set beside the file, as by Terraform or --set.
EXTRA = {"total_timesteps": 80, "seed": 5}


def columns(first: int, last: int) -> dict[str, Any]:
    return {"reward": np.arange(first, last, dtype=np.float32)[:, None]}


def live(root: str, tmp_path: Path, *, policy: Preservation, text: str = RUN, rows: bool = True) -> ObjectStore:
    """A run with the id ``parent``, at 80 timesteps, with a checkpoint at every ten."""
    run_file = parse_run_file(read_yaml(text, "RUN"), extra=EXTRA)
    store = open_store(layout.run_url(root, "parent"))
    store.create(layout.RUN_YAML, text.encode())
    details = {"run_file": run_file.model_dump(mode="json")}
    session = begin_session(store, tmp_path, instance_id="i-1", boot_id="b", details=details, persist=False)
    committer = Committer(store, Lease.take(store, session.token, "i-1"), None, policy=policy)
    for at in range(10, 90, 10):
        parts = {"model": Part({"weight": np.full(3, at)}, b"state"), "run": Part(blob=text.encode())}
        chunks = [(at - 10, columns(at - 10, at))]
        streams = {"replay": Rows(at - 10, at, 30, chunks)} if rows else {}
        facts = {
            "run_id": "parent", "identity": run_file.identity(), "machine": {"threads": 1}, "set_anew": ["old"],
            "schedules": {"names": ["learning_rate"], "timesteps": 80},
        }  # fmt: skip
        committer.submit(Snapshot(at, parts, streams, facts), outcome="completed" if at == 80 else None)
        committer.wait()
    return store


def head_of(root: str, run_id: str) -> Head:
    read = read_head(open_store(layout.run_url(root, run_id)))
    assert read is not None
    return read[0]


def contents(store: ObjectStore) -> dict[str, bytes]:
    return {info.key: bytes(store.get(info.key).body) for info in store.list()}


@pytest.mark.parametrize("at", [None, 70])
def test_it_is_whole_without_its_parent(store_root: str, tmp_path: Path, at: int | None) -> None:
    parent = live(store_root, tmp_path, policy=Preservation(last=3))
    before = contents(parent)
    changes = ["hyperparameters.learning_rate=lin_1e-4", "total_timesteps=200", "hyperparameters.gamma=0.9"]
    made = fork(store_root, "parent", "child", at=at, overrides=changes, out=tmp_path / "child.yaml")
    assert contents(parent) == before
    parent.delete(list(before))
    at = at or 80
    head = head_of(store_root, "child")
    assert (head.timesteps, head.outcome, head.session) == (at, None, 0)
    assert head.parent == f"{parent.url}@{at}" and head.manifest is not None
    store = open_store(layout.run_url(store_root, "child"))
    manifest = find(store, head.manifest)
    assert manifest.keys() | {head.manifest.key, *("head.json", "run.yaml", "run.json")} == set(contents(store))
    assert manifest.kept == ()
    found = restore(store, manifest)
    assert (found.parts["model"].arrays["weight"] == at).all() and found.parts["model"].blob == b"state"
    rows = np.concatenate([chunk["reward"] for _, chunk in found.streams["replay"].chunks])
    assert (rows == columns(at - 30, at)["reward"]).all()
    assert found.facts["forked_from"] == head.parent and found.facts["machine"] == {"threads": 1}
    assert found.facts["set_anew"] == ["gamma", "learning_rate"] and "schedules" not in found.facts
    assert [change[0] for change in made.changes] == ["hyperparameters.gamma", "hyperparameters.learning_rate"]
    assert json.loads(bytes(store.get(layout.RUN_JSON).body))["forked_from"] == head.parent

    run_file = load_run_file(tmp_path / "child.yaml")
    assert (run_file.run_id, run_file.algorithm, run_file.seed) == ("child", "sac", 5)
    assert (run_file.total_timesteps, run_file.save_frequency) == (200, 10)
    assert run_file.hyperparameters == {"learning_rate": "lin_1e-4", "buffer_size": 30, "gamma": 0.9}
    assert (tmp_path / "child.yaml").read_bytes() == found.parts["run"].blob == bytes(store.get("run.yaml").body)
    check_before_training(store_root, run_file)
    assert run_status(store_root, "child").state == "waiting"
    with pytest.raises(InputError, match="begun with"):
        check_before_training(store_root, load_run_file(tmp_path / "child.yaml", ["hyperparameters.gamma=0.8"]))


def test_the_next_session_goes_on_from_it(store_root: str, tmp_path: Path) -> None:
    live(store_root, tmp_path, policy=Preservation())
    fork(store_root, "parent", "child", overrides=["total_timesteps=200"], out=tmp_path / "child.yaml")
    store = open_store(layout.run_url(store_root, "child"))
    session = begin_session(store, tmp_path / "s", instance_id="i-2", boot_id="c", details={}, persist=False)
    lease = Lease.take(store, session.token, "i-2")
    assert session.number == 1 and lease.head.manifest is not None
    committer = Committer(store, lease, find(store, lease.head.manifest))
    for at in range(90, 140, 10):
        streams = {"replay": Rows(at - 10, at, 30, [(at - 10, columns(at - 10, at))])}
        committer.submit(Snapshot(at, {"model": Part(blob=b"x")}, streams))
        committer.wait()
    left = [key for key in contents(store) if "-000000.0000-" in key]
    assert not left, "what came with the fork goes as any other checkpoint goes"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("hyperparameters.buffer_size=60", "hyperparameters.buffer_size"),
        ("hyperparameters.policy_kwargs={net_arch: [8]}", "hyperparameters.policy_kwargs"),
        ("hyperparameters.ent_coef=0.1", "hyperparameters.ent_coef"),
        ("hyperparameters.n_steps=3", "hyperparameters.n_steps"),
        ("environment.id=Other-v0", "environment.id"),
        ("environment.n_envs=2", "environment.n_envs"),
        ("algorithm=td3", "algorithm"),
        ("policy=CnnPolicy", "policy"),
        ("seed=6", "seed"),
        ("callbacks=[a:B]", "callbacks"),
        ("total_timesteps=80", "total_timesteps"),
        ("code.folder=nowhere", "code.folder"),
        ("colour=red", "colour"),
    ],
)
def test_what_its_state_does_not_fit_is_refused(tmp_path: Path, change: str, field: str) -> None:
    root = str(tmp_path / "store")
    live(root, tmp_path, policy=Preservation())
    with pytest.raises(InputError) as caught:
        fork(root, "parent", "child", overrides=["total_timesteps=200", change], out=tmp_path / "child.yaml")
    assert caught.value.field == field
    assert not list(open_store(layout.run_url(root, "child")).list()) and not (tmp_path / "child.yaml").exists()


def test_without_a_buffer_more_may_change(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    text = RUN.replace("sac", "ppo").replace("buffer_size: 30", "n_steps: 64")
    live(root, tmp_path, policy=Preservation(last=1, every=20), text=text, rows=False)
    changes = ["total_timesteps=200", "hyperparameters.n_steps=128", "hyperparameters.ent_coef=0.01"]
    made = fork(root, "parent", "child", at=40, overrides=changes, out=tmp_path / "child.yaml")
    assert made.rows and len(made.changes) == 2, "nothing is missing where there were no rows"


def test_a_checkpoint_without_its_rows_is_forked_when_it_is_said(store_root: str, tmp_path: Path) -> None:
    live(store_root, tmp_path, policy=Preservation(last=1, every=20))
    options: dict[str, Any] = {"at": 40, "overrides": ["total_timesteps=200"], "out": tmp_path / "child.yaml"}
    with pytest.raises(InputError, match="--without-buffer"):
        fork(store_root, "parent", "child", **options)
    made = fork(store_root, "parent", "child", **options, with_rows=False)
    assert not made.rows
    head = head_of(store_root, "child")
    store = open_store(layout.run_url(store_root, "child"))
    assert head.manifest is not None and head.timesteps == 40
    found = restore(store, find(store, head.manifest))
    assert (found.streams["replay"].last, found.streams["replay"].capacity) == (0, 30)
    assert not list(store.list(layout.REPLAY))


def test_what_stands_in_the_way_stays(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    parent = live(root, tmp_path, policy=Preservation())
    more = ["total_timesteps=200"]
    out = tmp_path / "child.yaml"
    for new_id, field in (("parent", "--as"), ("Child", "run_id")):
        with pytest.raises(InputError) as caught:
            fork(root, "parent", new_id, overrides=more, out=out)
        assert caught.value.field == field
    with pytest.raises(InputError, match="there are: 60, 70, 80"):
        fork(root, "parent", "child", at=50, overrides=more, out=out)
    with pytest.raises(InputError, match="no checkpoint"):
        fork(root, "absent", "child", overrides=more, out=out)
    out.write_text("mine")
    with pytest.raises(InputError, match="not there yet"):
        fork(root, "parent", "child", overrides=more, out=out)
    assert out.read_text() == "mine"
    key = next(info.key for info in parent.list(layout.REPLAY))
    parent.put(key, b"damaged")
    with pytest.raises(CorruptCheckpoint):
        fork(root, "parent", "child", at=60, overrides=more, out=tmp_path / "b.yaml")
    assert read_head(open_store(layout.run_url(root, "child"))) is None, "half a fork is none"
    fork(root, "parent", "child", at=80, overrides=more, out=tmp_path / "b.yaml")
    assert head_of(root, "child").timesteps == 80
    with pytest.raises(InputError, match="there is a run of this name"):
        fork(root, "parent", "child", overrides=more, out=tmp_path / "c.yaml")


def test_a_checkpoint_that_goes_while_it_is_copied_is_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "store")
    parent = live(root, tmp_path, policy=Preservation(last=2))

    def going(*arguments: Any, **named: Any) -> Any:
        """Meanwhile the parent's next session commits, and collects."""
        lease = Lease.take(parent, Token(9, 0), "i-9")
        assert lease.head.manifest is not None
        committer = Committer(parent, lease, find(parent, lease.head.manifest), policy=Preservation(last=1))
        streams = {"replay": Rows(80, 90, 30, [(80, columns(80, 90))])}
        committer.submit(Snapshot(90, {"model": Part(blob=b"x")}, streams))
        committer.wait()
        return copy(*arguments, **named)

    monkeypatch.setattr("train_cloud.operations.fork.copy", going)
    with pytest.raises(InputError, match="there are: 90"):
        fork(root, "parent", "child", at=70, overrides=["total_timesteps=200"], out=tmp_path / "child.yaml")
    assert read_head(open_store(layout.run_url(root, "child"))) is None


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By the run's file, whose code lies beside it."""
    (tmp_path / "project" / "code").mkdir(parents=True)
    (tmp_path / "project" / "code" / "a.py").write_text("a = 1\n")
    file = tmp_path / "project" / "run.yaml"
    text = RUN + "code: {folder: ./code, exclude: ['b/**']}\n"
    file.write_text(text)
    monkeypatch.chdir(tmp_path / "project")
    root = str(tmp_path / "store")
    live(root, tmp_path, policy=Preservation(), text=text)
    monkeypatch.chdir(tmp_path)
    command = ["fork", str(file), "--store", root, "--as", "child", "--set", "total_timesteps=200"]
    assert main([*command, "--at", "70", "--set", "hyperparameters.learning_rate=1e-4"]) == 0
    said = capsys.readouterr().out
    assert "hyperparameters.learning_rate: 0.001 becomes 0.0001" in said and "child begins at 70 timesteps" in said
    child = load_run_file(tmp_path / "child.yaml")
    assert child.code.folder == tmp_path / "project" / "code" and child.code.exclude == ("b/**",)
    check_before_training(root, child)
    assert main(["fork", "parent", "--store", root, "--as", "other", "--set", "total_timesteps=200"]) == 64
    assert "code.folder" in capsys.readouterr().err, "it does not lie where this was asked from"
    (tmp_path / "project" / "code" / "a.py").write_text("a = 2\n")
    assert main([*command[:4], "--as", "newer", "--set", "total_timesteps=200"]) == 0
    assert "code: files differ" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- real training

SMALL = {"learning_starts": 100, "batch_size": 32, "buffer_size": 5000, "policy_kwargs": {"net_arch": [16, 16]}}
REAL: dict[str, Any] = {
    "algorithm": "sac",
    "seed": 3,
    "total_timesteps": 600,
    "save_frequency": 150,
    "environment": {"id": "Pendulum-v1", "normalize": {}},
    "hyperparameters": SMALL,
    "callbacks": ["interrupting:Rollouts", "interrupting:InterruptAt"],
    "preservation": {"last": 2, "every": 150},
}


@pytest.fixture(scope="module")
def parent(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    made = Rehearsed(warm, tmp_path_factory.mktemp("parent"), REAL)
    assert made.session() == 0, made.log()
    return made


def forked(parent: Rehearsed, folder: Path, name: str, *changes: str, at: int, with_rows: bool = True) -> Rehearsed:
    root = str(parent.folder / "store")
    fork(root, "a-run", name, at=at, overrides=changes, with_rows=with_rows, out=folder / "made.yaml")
    child = Rehearsed(parent.context, folder, {})
    (folder / "made.yaml").replace(child.run_file)
    child.store = open_store(layout.run_url(root, name))
    return child


def train(child: Rehearsed, parent: Rehearsed, interrupt: str = "") -> int:
    return child.session(interrupt, options=("--store", str(parent.folder / "store")))


@pytest.mark.slow
def test_with_nothing_changed_it_ends_where_its_parent_ended(parent: Rehearsed, tmp_path: Path) -> None:
    child = forked(parent, tmp_path, "same", at=450)
    assert train(child, parent, "SIGTERM@520") == 75, child.log()
    assert train(child, parent) == 0, child.log()
    assert differences(child.final(), parent.final()) == []
    facts = child.final().facts
    assert facts["forked_from"].endswith("runs/a-run@450") and "set_anew" not in facts


@pytest.mark.slow
def test_what_it_sets_anew_counts_from_there_on(parent: Rehearsed, tmp_path: Path) -> None:
    changes = ("hyperparameters.learning_rate=1e-5", "hyperparameters.gamma=0.5", "hyperparameters.batch_size=16")
    child = forked(parent, tmp_path, "anew", *changes, "hyperparameters.action_noise={normal: 0.1}", at=450)
    assert train(child, parent, "SIGTERM@500") == 75, child.log()
    assert train(child, parent) == 0, child.log()
    assert differences(child.final(), parent.final()) != []
    folder = export(str(parent.folder / "store"), "anew", out=tmp_path / "out")
    with zipfile.ZipFile(folder / "model.zip") as saved:
        data = json.loads(saved.read("data"))
    assert (data["gamma"], data["batch_size"], data["learning_rate"]) == (0.5, 16, 1e-5)
    rates = [group["lr"] for name in child.final().facts["optimizers"] if name.endswith("|groups")
             for group in child.final().facts["optimizers"][name]]  # fmt: skip
    assert rates and set(rates) == {1e-5}


@pytest.mark.slow
def test_it_goes_on_without_the_rows(parent: Rehearsed, tmp_path: Path) -> None:
    child = forked(parent, tmp_path, "lean", at=150, with_rows=False)
    assert train(child, parent, "SIGKILL@350") == -9, child.log()
    assert train(child, parent) == 0, child.log()
    final = child.final()
    assert final.timesteps == 600 and final.streams["replay"].last == 450


HINDSIGHT: dict[str, Any] = {
    **REAL,
    "policy": "MultiInputPolicy",
    "environment": {"id": "Walk-v0", "module": "interrupting", "kwargs": {"shown": "goal"}, "n_envs": 2},
    "hyperparameters": {**SMALL, "buffer_size": 300, "replay_buffer_class": "stable_baselines3:HerReplayBuffer"},
}


@pytest.mark.slow
def test_hindsight_with_and_without_its_rows(warm: Any, tmp_path: Path) -> None:
    parent = Rehearsed(warm, tmp_path / "parent", HINDSIGHT)
    assert parent.session() == 0, parent.log()
    child = forked(parent, tmp_path, "same", at=450)
    assert train(child, parent, "SIGKILL@520") == -9, child.log()
    assert train(child, parent) == 0, child.log()
    assert differences(child.final(), parent.final()) == []
    with pytest.raises(InputError, match="more than 150 plus an episode") as caught:
        forked(parent, tmp_path, "lean", at=150, with_rows=False)
    assert (caught.value.field, caught.value.value) == ("hyperparameters.learning_starts", 100)
    assert not list(open_store(layout.run_url(str(parent.folder / "store"), "lean")).list())
    folder = tmp_path / "lean"
    folder.mkdir()
    lean = forked(parent, folder, "lean", "hyperparameters.learning_starts=300", at=150, with_rows=False)
    assert train(lean, parent, "SIGKILL@350") == -9, lean.log()
    assert train(lean, parent) == 0, lean.log()
    assert (lean.final().timesteps, lean.final().streams["replay"].last) == (600, 225)


@pytest.mark.slow
@pytest.mark.parametrize("at", [150, 300])
def test_what_is_kept_without_its_rows_is_exported(parent: Rehearsed, tmp_path: Path, at: int) -> None:
    folder = export(str(parent.folder / "store"), "a-run", at=at, out=tmp_path / "out")
    from stable_baselines3 import SAC

    assert SAC.load(folder / "model.zip").num_timesteps == at
