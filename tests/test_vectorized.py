"""Vectorised environments of any make: what comes back is exact, what does not is named, and nothing ends a run."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import vectors
from one_only import Walk
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)

from train_cloud.envs.pickling import dumps, loads
from train_cloud.envs.state import StatefulEnv
from train_cloud.sb3 import vectorized
from train_cloud.sb3.vectorized import choice_of, get_vecenv, look, plan_of, prepare, set_vecenv


def play(env: VecEnv, actions: list[Any]) -> list[Any]:
    seen = []
    for action in actions:
        observations, rewards, dones, _ = env.step(action)
        seen.append((np.asarray(observations).tobytes(), rewards.tobytes(), dones.tobytes()))
    return seen


def actions(env: VecEnv, count: int, seed: int) -> list[Any]:
    dice = np.random.default_rng(seed)
    return [dice.uniform(-1, 1, (env.num_envs, 1)).astype(np.float32) for _ in range(count)]


def begun(make: Callable[[], VecEnv]) -> VecEnv:
    """As a script's training begins."""
    env = make()
    prepare(env)
    env.reset()
    return env


def known(env: VecEnv) -> list[Any]:
    return plan_of(env).tree.all()


def taken(env: VecEnv) -> bytes:
    return dumps(get_vecenv(env, lambda single: choice_of(single).provider), known(env))


KINDS: dict[str, tuple[Callable[[], VecEnv], str]] = {
    "by hand": (vectors.Pool, "tree"),
    "asked for its state": (vectors.Asks, "own"),
    "SB3's with something of its own": (vectors.Counting, "dummy"),
    "SB3's, replayed": (lambda: DummyVecEnv([vectors.Locked] * 2), "dummy"),
    "Gymnasium's, replayed": (vectors.OfGymnasium, "tree"),
    "several agents": (vectors.OfAgents, "tree"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_state_comes_back(name: str) -> None:
    make, how = KINDS[name]
    env = begun(make)
    assert (plan_of(env).how, look(env)) == (how, [])
    play(env, actions(env, 31, 1))
    blob = taken(env)
    coming = actions(env, 40, 2)
    expected = play(env, coming)
    other = begun(make)
    play(other, actions(other, 3, 3))
    assert set_vecenv(other, loads(blob, known(other))) == {}
    assert play(other, coming) == expected
    env.close()
    other.close()


LOST: dict[str, tuple[Callable[[], VecEnv], str]] = {
    "a dead copy": (vectors.WithEngine, "WithEngine: restored, it went another way at step 1"),
    "a handle": (vectors.ByHandle, "ByHandle: whether its state comes back could not be tried: KeyError: 1"),
    "a thread": (vectors.WithThread, "WithThread: worker, a threading.Thread, cannot be saved"),
    "processes of Gymnasium's": (lambda: vectors.OfGymnasium("async"), "OfGymnasium: inner.env.error_queue"),
    "processes of SB3's": (
        lambda: SubprocVecEnv([vectors.Locked], start_method="fork"),
        "wrap each, outermost, with train_cloud.stateful",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOST)
def test_what_does_not_come_back_is_named_and_begins_anew(name: str) -> None:
    make, reason = LOST[name]
    env = begun(make)
    (told,) = look(env)
    assert plan_of(env).how == "anew" and reason in told, told
    play(env, actions(env, 5, 1))
    blob = taken(env)
    env.close()
    other = begun(make)
    anew = set_vecenv(other, loads(blob, known(other)))
    assert [*anew] == [*range(other.num_envs)]
    assert all(reason in one.because and one.observation.shape == (2,) for one in anew.values())
    play(other, actions(other, 30, 2))
    other.close()


def test_a_tree_that_has_changed_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectorized, "_tried", lambda *_: "")  # what the trial finds is tested above
    env, other = begun(vectors.Pool), begun(lambda: VecNormalize(vectors.Pool()))
    blob = taken(env)
    anew = set_vecenv(other, loads(blob, known(other)))
    assert len(anew) == 3 and "it had 1 layers, and has 2" in anew[0].because
    several = begun(vectors.OfGymnasium)
    anew = set_vecenv(several, loads(blob, known(several)))
    assert "and holds" in anew[0].because and len(anew) == 2
    play(several, actions(several, 20, 0))


def _walk() -> StatefulEnv:
    return StatefulEnv(Walk(), "pickle")


class _Sends(VecEnvWrapper):
    """Reports somewhere."""

    def __init__(self, venv: VecEnv, what: Any) -> None:
        super().__init__(venv)
        self.what = what

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (threading.Lock(), None),
        (lambda step: step % 100 == 0, None),
        ({"steps": 3, "lock": threading.Lock()}, None),
        (multiprocessing.Process(target=print), "_Sends.what"),
        ([(number for number in range(3))], "_Sends.what[0], a generator, cannot be saved"),
    ],
)
def test_wrappers_with_handles(tmp_path: Path, what: Any, told: str | None) -> None:
    def make() -> VecEnv:
        return _Sends(VecMonitor(DummyVecEnv([_walk] * 2), str(tmp_path / "log")), what)

    env = begun(make)
    found = look(env)
    assert [told in one for one in found] == ([] if told is None else [True]), found  # type: ignore[operator]
    play(env, actions(env, 25, 1))
    blob = taken(env)
    other = begun(make)
    assert set_vecenv(other, loads(blob, known(other))) == {}
    coming = actions(env, 30, 2)
    assert play(other, coming) == play(env, coming)
    assert (tmp_path / "log.monitor.csv").read_text().count("\n") > 2
    for one, live in ((env, other), (other, env)):
        assert vars(one.venv)["results_writer"] is not vars(live.venv)["results_writer"]  # type: ignore[attr-defined]


def test_a_script_s_environments_are_recorded_before_their_first_reset() -> None:
    env = DummyVecEnv([vectors.Locked, lambda: gymnasium.make("CartPole-v1")][:1])
    prepare(env)
    (single,) = env.envs
    assert isinstance(single, StatefulEnv) and single.train_cloud_provider == "replay"
    prepare(env)
    assert env.envs == [single], "once"


class TellsAtReset(Walk):
    """Its resets tell where they begin, and with ``map`` hand out an object of its own."""

    def __init__(self, told: str) -> None:
        super().__init__()
        self.told = told

    def reset(self, **options: Any) -> Any:
        observation, _ = super().reset(**options)
        what = {"start": np.array(observation), "draws": [float(self.np_random.random())]}
        return observation, {**what, "map": self.np_random} if self.told == "map" else what


@pytest.mark.parametrize("told", ["data", "map"])
def test_what_a_reset_has_told(told: str) -> None:
    """A callback may read it at any time until the next one."""

    def make() -> VecEnv:
        return DummyVecEnv([lambda: TellsAtReset(told)] * 2)

    env = begun(make)
    play(env, actions(env, 31, 1))
    before, blob = env.reset_infos, taken(env)
    other = begun(make)
    set_vecenv(other, loads(blob, known(other)))
    same = str(other.reset_infos) == str(before)
    assert same is (told == "data"), "objects are the environment's, and stay its own"
