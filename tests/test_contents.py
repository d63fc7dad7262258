"""What is large and lasts is sent once: a table of prices in environments' states, a table of a callback's."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import trading
from sessions import Rehearsed
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from train_cloud.checkpoint import Committer, read_manifest, restore
from train_cloud.cli import main
from train_cloud.envs.pickling import LARGE_BYTES, Sections, check, dumps, dumps_apart, fingerprint, loads
from train_cloud.envs.state import StatefulEnv
from train_cloud.run import layout
from train_cloud.run.head import Lease, Token, read_head
from train_cloud.sb3.capture import Capture
from train_cloud.sb3.compare import _compare as compared
from train_cloud.sb3.compare import differences
from train_cloud.sb3.contents import Contents
from train_cloud.snapshot import Snapshot
from train_cloud.store import open_store

torch.set_num_threads(1)
MB = 1 << 20

# --------------------------------------------------------------------------------------------------------- the pickle

LINE = np.arange(40_000.0)
FIXED = np.arange(30_000.0)
FIXED.flags.writeable = False
LARGE: dict[str, Any] = {
    "array": LINE,
    "array in Fortran's order": np.asfortranarray(LINE.reshape(200, 200)),
    "array that may not be changed": FIXED,
    "every other column": LINE.reshape(200, 200)[:, ::2],
    "records": np.zeros(9000, [("price", "f8"), ("volume", "i8")]),
    "table": trading.prices(20_000),
    "table with texts and times": pd.DataFrame({"at": pd.date_range("2020", periods=20_000), "name": ["x"] * 20_000}),
    "bytes": bytes(300_000),
    "text": "ä" * 200_000,
    "bytearray": bytearray(range(256)) * 1000,
    "tensor": torch.arange(40_000.0),
}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        alike = left.strides == right.strides if right.flags.forc else left.shape == right.shape
        return bool(alike and left.dtype == right.dtype and left.tobytes() == right.tobytes())
    if isinstance(left, torch.Tensor):
        return bool(torch.equal(left, right))
    equal: bool = left.equals(right) if isinstance(left, pd.DataFrame) else bool(left == right)
    return equal


@pytest.mark.parametrize("kind", LARGE)
def test_what_is_large_is_kept_out_and_comes_back(kind: str) -> None:
    state = {"large": LARGE[kind], "again": LARGE[kind], "small": [1, "two"]}
    packed, names = dumps_apart(state, ())
    assert isinstance(packed, Sections) and names and len(packed.rest) < LARGE_BYTES
    assert b"".join(packed.whole()) == dumps(state), "nothing but the pickle, in sections"
    found = loads(pickle.loads(pickle.dumps(packed)))
    assert same(found["large"], LARGE[kind]) and found["again"] is found["large"] and found["small"] == [1, "two"]
    if isinstance(found["large"], np.ndarray):
        assert found["large"].flags.writeable == (kind != "array that may not be changed")
    known, again = dumps_apart(state, names)
    assert isinstance(known, Sections) and again == names and all(content is None for content in known.large)
    assert fingerprint(state) == fingerprint(state) != fingerprint({**state, "small": [2, "two"]})


def test_a_difference_in_a_table_is_seen() -> None:
    one, other = trading.prices(20_000), trading.prices(20_000)
    other.iloc[300, 1] += 1
    states = [dumps_apart({"table": table}, ())[0] for table in (one, one.copy(), other)]
    assert compared("state", states[0], states[1]) == []
    assert compared("state", states[0], states[2]) == ["state.table: the DataFrame has other values"]


@pytest.mark.parametrize("size", [1000, 40_000])
def test_a_view_stays_one_however_often_it_is_restored(size: int) -> None:
    whole = np.arange(float(size)).reshape(10, -1)
    state = {"whole": whole, "half": whole[:5], "turned": whole.T}
    for number in range(3):
        state = loads(dumps_apart(state, ())[0])
        state["half"][0, 0] = number
        assert state["whole"][0, 0] == state["turned"][0, 0] == number


def test_equal_arrays_have_memory_of_their_own() -> None:
    packed, names = dumps_apart([LINE, LINE.copy(), LINE], ())
    assert isinstance(packed, Sections) and len(names) == 2 and [content is None for content in packed.large] == [0, 1]
    first, second, third = loads(Sections(packed.rest, packed.at, [packed.large[0]] * 2))
    first[0] = 7
    assert (first is third, second[0], packed.large[0][:8]) == (True, 0.0, bytes(8))


def test_memory_is_not_held() -> None:
    """An array that grows in place, or a bytearray, refuses to while somebody looks at it."""
    grows = bytearray(300_000)
    looks: list[Callable[[object], object]] = [lambda obj: dumps_apart(obj, ()), fingerprint, check]
    for look in looks:
        look(grows)
        grows += b"x"


def test_what_changes_each_time_is_no_object_of_its_own() -> None:
    contents = Contents()
    kept: list[set[str]] = []
    last = np.zeros(LARGE_BYTES, np.uint8)
    for number in range(7):
        volatile = last if number == 5 else np.full(LARGE_BYTES, number, np.uint8)
        last = volatile
        stream = contents.begin()
        stream.write(LINE.data.cast("B"))
        stream.write(volatile.data)
        learned = torch.full((LARGE_BYTES,), 10.0 * (number if number < 3 else 3))
        contents.end(stream, {"own|#t0": learned})
        kept.append({name.removeprefix("own|#") for name in contents.names})
        assert contents.arrays["own|#0"].tobytes() == LINE.tobytes()
        assert contents.arrays["own|#1"].tobytes() == volatile.tobytes()
        assert contents.arrays["own|#t0"].tobytes() == learned.numpy().tobytes()
    assert kept == [{"0", "1"}, {"0", "1"}, {"0"}, {"0"}, {"0", "t0"}, {"0", "1", "t0"}, {"0", "1", "t0"}]


# ------------------------------------------------------------------------------------------------------------ the bytes


class Sent:
    """A store that counts what is written to it."""

    def __init__(self, url: str) -> None:
        self.inner = open_store(url)
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put(self, key: str, body: Any) -> str:
        self.bytes += len(body)
        return self.inner.put(key, body)

    def taken(self) -> int:
        """Bytes since the last call."""
        taken, self.bytes = self.bytes, 0
        return taken


class Training:
    """A model with checkpoints, without its loop."""

    def __init__(self, env: VecEnv, root: str, session: int, callback: BaseCallback | None = None) -> None:
        self.model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=3, device="cpu")
        self.model._setup_learn(0)
        self.store: Any = Sent(layout.run_url(root, "a-run"))
        self.capture = Capture(self.model, CallbackList([callback] if callback else []), None, lambda env: "pickle")
        self.lease = Lease.take(self.store, Token(session, 0), "i-1")
        named = self.lease.head.manifest
        manifest = read_manifest(self.store, named) if named else None
        self.committer = Committer(self.store, self.lease, manifest)
        if manifest is not None:
            self.capture.begin()
            self.capture.restore(restore(self.store, manifest))
        self.store.taken()

    def commit(self) -> int:
        """:return: bytes that were sent"""
        self.play(20)
        self.model.num_timesteps += 20
        self.committer.submit(self.capture.snapshot(0))
        self.committer.wait()
        return int(self.store.taken())

    def play(self, steps: int) -> list[Any]:
        env = self.model.get_env()
        assert env is not None
        return [env.step(np.full(env.num_envs, number % 2)) for number in range(steps)]

    def committed(self) -> Snapshot:
        read = read_head(self.store)
        assert read is not None and read[0].manifest is not None
        return restore(self.store, read_manifest(self.store, read[0].manifest))


def pickled(env: Any) -> StatefulEnv:
    """Without a trial."""
    return StatefulEnv(env, "pickle")


def environments(kind: type[DummyVecEnv] | type[SubprocVecEnv], count: int) -> VecEnv:
    started = {"start_method": "fork"} if kind is SubprocVecEnv else None  # quicker, and they open no store
    return make_vec_env("Trading-v0", count, seed=5, vec_env_cls=kind, wrapper_class=pickled, vec_env_kwargs=started)


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_each_content_is_sent_once(store_root: str, kind: type[DummyVecEnv] | type[SubprocVecEnv]) -> None:
    """Of four environments; with a change in one of them that one's, once; in the next session nothing again."""
    env = environments(kind, 4)
    training = Training(env, store_root, 1)
    sent = [training.commit() for _ in range(3)]
    named = training.lease.head.manifest
    assert named is not None
    whole = sum(part.size for part in read_manifest(training.store, named).parts.values())
    assert trading.TABLE_BYTES < sent[0] < trading.TABLE_BYTES + MB and max(sent[1:]) < MB / 4, sent
    assert trading.TABLE_BYTES < whole < trading.TABLE_BYTES + MB
    expected = training.play(5)

    resumed = Training(environments(kind, 4), store_root, 2)
    for one, other in zip(expected, resumed.play(5), strict=True):
        assert all(np.array_equal(left, right) for left, right in zip(one[:3], other[:3], strict=True))
    assert resumed.commit() < MB / 4

    resumed.model.get_env().env_method("revise", 7, indices=[1])  # type: ignore[union-attr]
    table = 8 * trading.ROWS
    assert 2 * table < resumed.commit() < 3 * table + MB and resumed.commit() < MB / 4
    again = Training(environments(kind, 4), store_root, 3)
    signals = again.model.get_env().get_attr("signals")  # type: ignore[union-attr]
    assert [each[7, 0] - signals[0][7, 0] for each in signals] == [0, 1, 0, 0]
    again.model.get_env().env_method("revise", 7, indices=[2])  # type: ignore[union-attr]
    assert again.model.get_env().env_method("together") == [True] * 4  # type: ignore[union-attr]
    signals = again.model.get_env().get_attr("signals")  # type: ignore[union-attr]
    assert [each[7, 0] - signals[0][7, 0] for each in signals] == [0, 1, 1, 0]
    for each in (training, resumed, again):
        each.model.get_env().close()  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------- whole sessions


@pytest.mark.slow
def test_a_run_with_a_table_ends_where_the_uninterrupted_one_ends(warm: Any, tmp_path: Path) -> None:
    """Environments that correct their tables in processes of their own, a callback with a table; killed, rolled back,
    forked.
    """
    run_file = {
        "algorithm": "ppo",
        "seed": 3,
        "total_timesteps": 320,
        "save_frequency": 64,
        "preservation": {"last": 9},
        "environment": {
            "id": "Trading-v0",
            "module": "trading",
            "kwargs": {"revises": True},
            "n_envs": 2,
            "vectorization": "subproc",
            "state": "pickle",
        },
        "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}},
        "callbacks": ["trading:Table", "interrupting:InterruptAt"],
    }
    whole = Rehearsed(warm, tmp_path / "whole", run_file)
    assert whole.session() == 0, whole.log()
    run = Rehearsed(warm, tmp_path / "interrupted", run_file)
    assert run.session("SIGTERM@120") == 75, run.log()
    assert run.session("SIGKILL@250") == -9, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), whole.final()) == [] and run.final().facts["exact"], run.final().facts

    assert main(["rollback", "a-run", "--store", run.root, "--to", "192"]) == 0
    assert run.session() == 0, run.log()
    assert differences(run.final(), whole.final()) == []
    head = run.head()
    assert head.manifest is not None
    manifest = read_manifest(run.store, head.manifest)
    named = manifest.keys().union(*(read_manifest(run.store, kept.manifest).keys() for kept in manifest.kept))
    stored = {info.key for info in run.store.list(layout.CHECKPOINTS) if f"/{layout.CONTENT}" in info.key}
    assert stored == {key for key in named if f"/{layout.CONTENT}" in key}, "no more than is named, and no less"

    changes = ["--set", "total_timesteps=640", "--out", str(tmp_path / "child.yaml")]
    assert main(["fork", "a-run", "--as", "child", "--store", run.root, *changes]) == 0
    run.store.delete(sorted(stored))
    child = open_store(layout.run_url(run.root, "child"))
    read = read_head(child)
    assert read is not None and read[0].manifest is not None
    assert differences(restore(child, read_manifest(child, read[0].manifest)), whole.final()) == []
