"""Checksums of what a training computes: the same wherever it is cut, and a difference is named by step and layer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from test_callback import Late

from train_cloud.envs.trial import Choice
from train_cloud.sb3.callback import Checkpoints
from train_cloud.sb3.digest import (
    LAYERS,
    Difference,
    Digests,
    Recording,
    Rolled,
    Table,
    first_difference,
    read_table,
    row_sums,
    sum_of,
    sums_of,
)
from train_cloud.snapshot import Part

torch.set_num_threads(1)
RNG = np.random.default_rng(7)
ROWS = RNG.integers(0, 2**64, (len(LAYERS), 3000), np.uint64)


def recorded(rows: Any, *cuts: int, per_row: int = 1, digests: Digests | None = None) -> Digests:
    """Added in blocks that end at these rows."""
    digests = digests or Digests()
    for first, last in zip((0, *cuts), (*cuts, rows.shape[1]), strict=True):
        digests.add(rows[:, first:last], last * per_row, per_row)
    return digests


def test_where_blocks_and_sessions_end_makes_no_difference() -> None:
    whole = recorded(ROWS)
    assert recorded(ROWS, 1, 64, 1000, 1001).now() == whole.now()
    first = recorded(ROWS[:, :1234], 700)
    second = Digests()
    second.resume(1234, first.now())
    second.add(ROWS[:, 1234:], 3000, 1)
    assert second.now() == whole.now()
    other = ROWS.copy()
    other[2, 17] ^= np.uint64(1 << 63)
    assert [layer for layer in LAYERS if recorded(other).now()[layer] != whole.now()[layer]] == ["reward"]


def test_values_are_the_same_in_every_process_and_version() -> None:
    """A change of these would call every run that goes on contradicted."""
    code = """
import numpy as np
from train_cloud.sb3.digest import *
from train_cloud.snapshot import Part
columns = {"reward": {"rewards": np.arange(6, dtype=np.float32).reshape(3, 2)}, "action": {"actions": np.ones((3, 1))},
           "observation": {"a": np.arange(3 * 2000, dtype=np.uint8).reshape(3, 2000), "b": np.eye(3)}}
digests = Digests()
digests.add(sums_of(columns, 3), 6, 2)
print(digests.now(), sum_of({"model": Part({"w": np.eye(2, dtype=np.float32), "n": np.array(3)})}))
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {FROZEN}


FROZEN = (
    "{'timesteps': 6, 'since': 0, 'observation': '38cb3e3187e62d69', 'action': '474c7058d683ccd6', "
    "'reward': '6e7cdb5aecb16f4c', 'end': '0000000000000000'} af3e13df3b1651ed\n"
)


def test_bytes_and_not_values_count() -> None:
    rows = np.array([[0.0], [-0.0], [1.0], [1.0 + 2**-52]])
    assert len({*row_sums(rows).tolist()}) == 4
    small = {"model": Part({"w": np.zeros(2)})}
    assert (
        sum_of(small) != sum_of({"model": Part({"w": np.zeros((2, 1))})}) != sum_of({"model": Part({"v": np.zeros(2)})})
    )
    swapped = (
        sums_of({"observation": {"a": rows, "b": rows[::-1]}}, 4),
        sums_of({"observation": {"b": rows, "a": rows[::-1]}}, 4),
    )
    assert (swapped[0] != swapped[1])[0].all()


@pytest.mark.parametrize("per_row", [1, 4])
@pytest.mark.parametrize(("layer", "row"), [("observation", 0), ("reward", 1700), ("end", 2999)])
def test_the_first_difference_is_named_by_step_and_layer(layer: str, row: int, per_row: int) -> None:
    before = recorded(ROWS, 1500, per_row=per_row).recording("what session 1 computed")
    other = ROWS.copy()
    other[LAYERS.index(layer), row] ^= np.uint64(1)
    told: list[Difference] = []
    digests = Digests()
    digests.expect([before])
    digests.on_difference = told.append
    digests.resume(0, Rolled().facts())
    recorded(other, 64, 128, 2000, per_row=per_row, digests=digests)
    step = (row + 1) * per_row
    assert (
        told == [Difference(row * per_row, step, (layer,), "what session 1 computed", per_row)] == [digests.difference]
    )
    assert str(told[0]) == f"since step {step:,}: the environment's {layer} differs from what session 1 computed"
    assert digests.compared == row * per_row
    assert first_difference(digests.recording("a"), before) == told[0]


def test_what_is_equal_is_counted_and_not_reported() -> None:
    before = recorded(ROWS[:, :2000])
    before.kept(1500, "00000000000000aa")
    digests = Digests()
    digests.expect(
        [before.recording("what was computed here before"), Recording.of("what session 1 computed", before.reported())]
    )
    digests.resume(0, Rolled().facts())
    recorded(ROWS, 700, digests=digests).kept(1500, "00000000000000aa")
    assert (digests.difference, digests.compared) == (None, 2000)
    digests.kept(1500, "bb")
    assert str(digests.difference) == (
        "since the update before step 1,500: the parameters differ from what was computed here before"
    )


def test_a_report_of_a_kilobyte_names_a_range() -> None:
    reported = recorded(ROWS).reported()
    assert len(str(reported)) < 1500
    digests = Digests()
    digests.expect([Recording.of("what session 1 computed", reported)])
    digests.resume(0, Rolled().facts())
    other = ROWS.copy()
    other[0, 2100] = other[1, 2105] = 0
    recorded(other, 1500, digests=digests)
    assert digests.difference is not None and digests.difference.layers == ("observation", "action")
    assert digests.difference.after <= 2100 < digests.difference.timesteps <= digests.difference.after + 400
    assert str(digests.difference).startswith("since a step after 2,0")


def test_steps_of_another_history_are_not_compared() -> None:
    before = recorded(ROWS[::-1], 1000)
    digests = Digests()
    digests.expect([before.recording("what session 1 computed")])
    digests.resume(1000, recorded(ROWS[:, :1000]).now())
    digests.add(ROWS[:, 1000:], 3000, 1)
    assert digests.difference is None and digests.compared == 0


def test_a_full_table_thins_out_and_its_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    table, rolled = Table(path, "run-a", entries=100), Rolled()
    table.anchor(rolled)
    for first in range(0, 3000, 60):
        after = rolled.add(ROWS[:, first : first + 60], first + 60)
        table.add(np.arange(first + 1, first + 61), after, 1)
    table.keep(2000, "00ab")
    left = read_table(path, "what was computed here before", "run-a")
    assert left is not None and left.parameters == table.parameters() == {2000: f"{0xAB:016x}"}
    rows = left.rows
    assert 50 <= len(rows) <= 100 and table.stride == 32
    assert rows["timesteps"].tolist() == [0, *range(32, 3000, 32)]
    assert rows.tobytes() == table.rows().tobytes()
    full = {int(row["timesteps"]): row["rolled"].tolist() for row in recorded(ROWS).recording("").rows}
    assert all(row["rolled"].tolist() == full[int(row["timesteps"])] for row in rows)
    torn = bytearray(path.read_bytes())
    torn[32 + 48 * (64 + 3) + 10] ^= 1
    path.write_bytes(torn)
    rest = read_table(path, "", "run-a")
    assert rest is not None and len(rest.rows) == len(rows) - 1 and 96 not in rest.rows["timesteps"]
    assert read_table(path, "", "run-b") is None and read_table(tmp_path / "none", "", "run-a") is None
    table.anchor(rolled)
    assert table.rows()["timesteps"].tolist() == [3000] and table.stride == 1


class Forgets(Late):
    """Keeps no checkpoint."""

    def settle(self) -> None:
        self.waiting = None


class Flips:
    """An environment's step that answers otherwise at one call."""

    def __init__(self, env: Any, at: int) -> None:
        self.step_as_it_is, self.left = env.step, at
        env.step = self

    def __call__(self, action: Any) -> Any:
        self.left -= 1
        observation, reward, *rest = self.step_as_it_is(action)
        return (observation, reward + (0.5 if self.left == 0 else 0.0), *rest)


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [(PPO, {"n_steps": 64, "batch_size": 32}), (DQN, {"learning_starts": 50, "buffer_size": 90})],
)
def test_what_a_model_stores_is_read(algorithm: Any, arguments: dict[str, Any]) -> None:
    def train(flipped: int | None) -> Digests:
        env = make_vec_env("CartPole-v1", 2, seed=1)
        if flipped is not None:
            Flips(env.envs[1], flipped)  # type: ignore[attr-defined]
        model = algorithm("MlpPolicy", env, seed=1, device="cpu", policy_kwargs={"net_arch": [4]}, **arguments)
        host = Forgets(256, 100)
        model.learn(256, callback=Checkpoints(host, Choice("pickle", True, "")))
        return host.digests

    once, again, other = train(None), train(None), train(33)
    assert once.now() == again.now() and once.timesteps == 256
    found = first_difference(once.recording("one"), other.recording("the other"))
    assert found is not None and (found.timesteps, found.after, found.layers) == (66, 64, ("reward",))
