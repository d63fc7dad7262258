"""State in variables of functions, in classes that functions make, in defaults and attributes: of environments and
their wrappers it comes back, or is named.
"""

from __future__ import annotations

from typing import Any

import closed_over
import numpy as np
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv

from train_cloud.envs.shared import Shared, put_shared
from train_cloud.envs.state import StatefulEnv, dumps, left_out, loads, take_apart
from train_cloud.sb3.vectorized import get_vecenv, set_vecenv


def rewards(env: Any, steps: int) -> list[float]:
    return [float(env.step(0)[1]) for _ in range(steps)]


@pytest.mark.parametrize("name", closed_over.STAYING)
def test_what_functions_hold_comes_back(name: str) -> None:
    one, other = (StatefulEnv(closed_over.STAYING[name](), "pickle") for _ in range(2))
    one.reset(seed=1)
    other.reset(seed=2)
    first = rewards(one, 4)
    state = one.train_cloud_get_state()[0]
    assert other.train_cloud_set_state(state) is None
    expected = rewards(one, 3)
    assert rewards(other, 3) == expected and expected[0] != first[0]
    assert not [left for left in left_out(one, "pickle") if not left.harmless]


def test_another_function_in_its_place_begins_a_new_episode() -> None:
    one, other = (StatefulEnv(made(), "pickle") for made in (closed_over.variable, closed_over.of_a_module))
    one.reset()
    other.reset()
    anew = other.train_cloud_set_state(one.train_cloud_get_state()[0])
    assert anew is not None and "counter.<locals>.counted was, another function is, or none" in anew.because


def test_what_cannot_be_saved_in_a_function_is_named() -> None:
    env = closed_over.connected()
    (left,) = [left for left in left_out(env, "pickle") if not left.harmless]
    assert str(left) == "Rewarded.held: variable connection, a socket.socket, cannot be saved"
    take_apart(env)
    env.close()


@pytest.mark.parametrize("name", closed_over.SHARED)
def test_what_classes_and_modules_hold_in_functions_is_carried(name: str) -> None:
    made = closed_over.SHARED[name]
    one = made()
    one.reset()
    shared = Shared([one])
    rewards(one, 3)
    changed = dumps(shared.changed(), [one])
    expected = rewards(one, 2)
    other = made()
    other.reset()
    put_shared(loads(changed, [other]), [other])
    assert rewards(other, 2) == expected


def test_it_comes_back_in_processes_of_their_own() -> None:
    def vector() -> Any:
        return SubprocVecEnv([lambda: StatefulEnv(closed_over.Classed(), "pickle")], start_method="fork")

    def stepped(env: Any, steps: int) -> list[Any]:
        return [env.step(np.zeros(1, int))[1].tolist() for _ in range(steps)]

    one, other = vector(), vector()
    try:
        for env in (one, other):
            env.reset()
        stepped(one, 3)
        stepped(other, 1)
        state = get_vecenv(one, lambda _: "pickle")
        assert set_vecenv(other, state) == {}
        assert stepped(other, 2) == stepped(one, 2)
    finally:
        one.close()
        other.close()
