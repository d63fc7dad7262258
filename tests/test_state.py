"""Environment state: taken in mid-episode, put back in another process; the next episodes are the same, bit for bit."""

from __future__ import annotations

import copy
import functools
import logging
import math
import os
import pickle
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.utils import EzPickle

from train_cloud.envs.make import CodeFailed
from train_cloud.envs.state import (
    PROVIDERS,
    Actions,
    StatefulEnv,
    dumps,
    get_state,
    loads,
    set_state,
)
from train_cloud.envs.trial import Choice, choose, choose_for
from train_cloud.errors import InputError, TrainCloudError

HERE = Path(__file__).parent


class Walk(gym.Env[Any, Any]):
    """A random walk that ends outside of ±3 or after 40 steps; every episode starts elsewhere."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.place, self.steps, self.episodes = 0.0, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.normal()), 0
        self.episodes += 1
        return self._see(), {"noise": random.Random().random()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 0.3 * float(action[0]) + 0.1 * self.draw()
        self.steps += 1
        return self._see(), math.exp(-(self.place**2)), abs(self.place) > 3, self.steps >= 40, {"place": self.place}

    def draw(self) -> float:
        return float(self.np_random.normal())

    def _see(self) -> Any:
        return np.array([self.place, self.steps], dtype=np.float64)


class Curriculum(Walk):
    """Later episodes are harder: what happened before the last reset matters, and no replay of one episode sees it."""

    def draw(self) -> float:
        return super().draw() * self.episodes


class Own(Walk):
    """Cannot be pickled, but says what its state is; forgets the generator, as people do."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def get_state(self) -> tuple[float, int, int]:
        return self.place, self.steps, self.episodes

    def set_state(self, state: tuple[float, int, int]) -> None:
        self.place, self.steps, self.episodes = state


class ForgetfulOwn(Walk):
    """Its get_state leaves out what matters."""

    def get_state(self) -> float:
        return self.place

    def set_state(self, state: float) -> None:
        self.place = state


class Locked(Walk):
    """Cannot be pickled, and has no other way."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.harder: Callable[[float], float] = lambda value: 2 * value

    def draw(self) -> float:
        with self.lock:
            return float(self.harder(super().draw()))


class InPlace(Locked):
    """Scales the very action that it is given."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action *= 0.5
        return super().step(action)


class LockedCurriculum(Locked, Curriculum):
    """Its number of episodes is an attribute, which is carried beside the replay."""


class HiddenCurriculum(Locked):
    """Its number of episodes is where nobody can look."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = (number for number in range(1, 1000))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.level = next(self.numbers)
        return super().reset(seed=seed, options=options)

    def draw(self) -> float:
        return super().draw() * self.level


class GetState(Walk):
    """Pickled in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.lock = threading.Lock()


class Ez(Walk, EzPickle):
    """Pickles as its constructor's arguments; all the same its attributes are its whole state."""

    def __init__(self) -> None:
        Walk.__init__(self)
        EzPickle.__init__(self)


class Simulator(EzPickle):
    def __init__(self) -> None:
        EzPickle.__init__(self)
        self.drift = 0.0


class Liar(Walk):
    """Pickles without an error and comes back with a fresh simulator: the copy plays on in another episode."""

    def __init__(self) -> None:
        super().__init__()
        self.simulator = Simulator()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.simulator.drift = 0.0
        return super().reset(seed=seed, options=options)

    def draw(self) -> float:
        self.simulator.drift += 0.01
        return super().draw() + self.simulator.drift


class Global(Walk):
    """Draws from NumPy's global generator."""

    def draw(self) -> float:
        return float(np.random.normal())


class LockedGlobal(Locked, Global):
    pass


class Part:
    def __init__(self, env: Walk) -> None:
        self.env = env


class BackReference(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part(self)

    def draw(self) -> float:
        return super().draw() + self.part.env.steps * 0.01


class Tired(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper with a state of its own, a generator of its own and a lambda."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.tiredness = 0.0
        self.dice = np.random.default_rng(0)
        self.rest: Callable[[], float] = lambda: 0.9 * self.tiredness

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.tiredness = self.rest()
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.tiredness += self.dice.random() * 0.1
        return self.env.step(np.clip(action * math.exp(-self.tiredness), -1, 1))


def _wrapped(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    env = wrappers.RescaleAction(env, np.float32(-2.0), np.float32(2.0))
    env = wrappers.TimeLimit(wrappers.NormalizeObservation(wrappers.FrameStackObservation(env, 3)), 70)
    return wrappers.RecordEpisodeStatistics(wrappers.DelayObservation(env, 1))


def _monitored(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    from stable_baselines3.common.monitor import Monitor

    return Monitor(env)


def _racetrack() -> gym.Env[Any, Any]:
    pytest.importorskip("highway_env")
    return _monitored(gym.make("racetrack-v1"))


#: name → (how it is made, the provider that must be found, whether a resumed session is exact)
CASES: dict[str, tuple[Callable[[], gym.Env[Any, Any]], str, bool]] = {
    "pendulum": (functools.partial(gym.make, "Pendulum-v1"), "pickle", True),
    "cartpole": (functools.partial(gym.make, "CartPole-v1"), "pickle", True),
    "mountain car": (functools.partial(gym.make, "MountainCarContinuous-v0"), "pickle", True),
    "pendulum, wrapped": (lambda: _wrapped(gym.make("Pendulum-v1")), "pickle", True),
    "pendulum, monitored": (lambda: _monitored(_wrapped(gym.make("Pendulum-v1"))), "pickle", True),
    "racetrack": (_racetrack, "pickle", True),
    "own": (lambda: wrappers.TimeLimit(Own(), 30), "own", True),
    "own, wrapped": (lambda: Tired(_wrapped(Own())), "own", True),
    "own, forgetful": (ForgetfulOwn, "pickle", True),
    "curriculum": (Curriculum, "pickle", True),
    "own getstate": (lambda: Tired(GetState()), "pickle", True),
    "constructor arguments": (Ez, "pickle", True),
    "back reference": (BackReference, "pickle", True),
    "lock": (Locked, "replay", True),
    "in place": (InPlace, "replay", True),
    "lock, wrapped": (lambda: Tired(_wrapped(Locked())), "replay", True),
    "liar": (lambda: _wrapped(Liar()), "replay", True),
    "global generator": (Global, "pickle", True),
    "lock and curriculum": (LockedCurriculum, "replay", True),
    "hidden curriculum": (HiddenCurriculum, "episode", False),
    "lock and global generator": (LockedGlobal, "episode", False),
}
EXACT = [name for name, (_, _, exact) in CASES.items() if exact]


def actions(env: gym.Env[Any, Any], count: int, seed: int) -> list[Any]:
    space = pickle.loads(pickle.dumps(env.action_space))
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def play(env: gym.Env[Any, Any], sequence: list[Any]) -> list[Any]:
    """What SB3's vectorised environments see: a reset after every end."""
    seen: list[Any] = []
    for action in sequence:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((np.asarray(observation).tobytes(), float(reward).hex(), terminated, truncated))
        if terminated or truncated:
            episode = info.get("episode", {})
            seen.append((float(episode.get("r", 0)).hex(), episode.get("l")))
            seen.append(np.asarray(env.reset()[0]).tobytes())
    return seen


def process_generators() -> list[Any]:
    numpy_state: Any = np.random.get_state(legacy=False)
    return [random.getstate(), numpy_state["state"]["key"].tobytes(), numpy_state["state"]["pos"]]


def continue_in_child(name: str, folder: str) -> None:
    """In another process: a fresh environment takes the state and plays on."""
    make, provider, _ = CASES[name]
    env = StatefulEnv(make(), provider)
    env.reset(seed=99)
    env.step(env.action_space.sample())
    state, numpy_state, sequence = loads((Path(folder) / "state").read_bytes(), [env])
    set_state(env, state)
    np.random.set_state(numpy_state)
    (Path(folder) / "seen").write_bytes(pickle.dumps(play(env, sequence)))


@pytest.mark.parametrize("name", CASES)
def test_choice(name: str) -> None:
    make, provider, exact = CASES[name]
    before = process_generators()
    choice = choose(make)
    assert choice.because
    assert (choice.provider, choice.exact) == (provider, exact), choice.because
    assert process_generators() == before


@pytest.mark.parametrize(
    ("name", "steps"), [*((name, 47) for name in EXACT), ("pendulum", 1), ("own", 1), ("lock, wrapped", 1)]
)
def test_another_process_goes_on_with_the_episode(name: str, steps: int, tmp_path: Path) -> None:
    make, provider, _ = CASES[name]
    env = StatefulEnv(make(), provider)
    env.reset(seed=5)
    play(env, actions(env, steps, seed=6))
    coming = actions(env, {"mountain car": 1200, "racetrack": 60}.get(name, 260), seed=7)
    blob = dumps((get_state(env), np.random.get_state(legacy=False), coming), [env])
    (tmp_path / "state").write_bytes(blob)
    expected = play(env, coming)
    assert any(len(item) == 2 for item in expected if isinstance(item, tuple)), "no episode ended: nothing is shown"
    subprocess.run(
        [sys.executable, "-c", f"import test_state; test_state.continue_in_child({name!r}, {str(tmp_path)!r})"],
        cwd=HERE, check=True, timeout=120,
    )  # fmt: skip
    assert pickle.loads((tmp_path / "seen").read_bytes()) == expected


@pytest.mark.parametrize(
    ("name", "requested", "reason"),
    [
        ("pendulum", "own", "no get_state"),
        ("pendulum", "mujoco", "not a MuJoCo environment"),
        ("pendulum", "ale", "not an environment of the Arcade"),
        ("lock", "pickle", "cannot pickle"),
        ("liar", "pickle", "another way"),
        ("own, forgetful", "own", "another way"),
        ("hidden curriculum", "replay", "did not lead to"),
        ("global generator", "replay", "global generator"),
        ("lock", "snapshot", "auto"),
    ],
)
def test_a_requested_provider_must_pass_too(name: str, requested: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        choose(CASES[name][0], requested)
    assert caught.value.field == "environment.state"
    assert caught.value.value == requested


@pytest.mark.parametrize(("name", "requested"), [("pendulum", "replay"), ("own", "replay"), ("own getstate", "pickle")])
def test_a_requested_provider_that_passes_is_taken(name: str, requested: str) -> None:
    assert choose(CASES[name][0], requested) == Choice(requested, True, choose(CASES[name][0], requested).because)


def test_a_refusal_names_every_reason() -> None:
    choice = choose(CASES["lock and global generator"][0])
    assert "pickle: taking the state: TypeError: cannot pickle '_thread.lock' object" in choice.because
    assert "replay: the environment draws from" in choice.because
    assert "MuJoCo" not in choice.because


def test_replay_is_refused_where_episodes_may_be_longer() -> None:
    make = CASES["lock"][0]
    assert choose(lambda: wrappers.TimeLimit(make(), 100), replay_max_steps=100).provider == "replay"
    choice = choose(lambda: wrappers.TimeLimit(make(), 101), replay_max_steps=100)
    assert (choice.provider, choice.exact) == ("episode", False)
    assert "replay_max_steps" in choice.because
    assert choose(make, recorded=False).provider == "episode"


def test_an_episode_that_outgrew_its_record_is_saved_at_its_end() -> None:
    env = StatefulEnv(Locked(), "replay", replay_max_steps=5)
    env.reset(seed=0)
    play(env, actions(env, 5, seed=0))
    assert get_state(env).provider == "replay"
    play(env, actions(env, 1, seed=0))
    assert get_state(env).provider == "episode"
    env.reset()
    assert get_state(env).provider == "replay"


ACTIONS: dict[str, list[Any]] = {
    "arrays": [np.array([n, -n], np.float32) for n in range(5)],
    "matrices": [np.asfortranarray(np.arange(6.0).reshape(2, 3) + n) for n in range(3)],
    "numpy's numbers": [np.int64(n) for n in range(5)],
    "numbers": [1, 2, 3],
    "shapes": [np.zeros(2), np.zeros(2), np.zeros(3), np.zeros(2)],
    "kinds": [np.float32(1), np.float64(1), 1.0, np.ones(1)],
    "parts": [(1, np.ones(2)), {"a": np.zeros(1)}, np.zeros(2)],
    "nothing": [np.zeros((0, 2))] * 3,
    "none": [],
}


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_are_recorded_as_they_were(name: str) -> None:
    recorded = Actions()
    for action in ACTIONS[name]:
        given = copy.deepcopy(action)
        recorded.append(given)
        if isinstance(given, np.ndarray):
            given += 1  # the caller's own: it may use it again
    found = loads(dumps(recorded))
    assert len(found) == len(recorded) == len(ACTIONS[name])
    for action in found:
        if isinstance(action, np.ndarray):
            action += 1  # so may the environment
    for _ in range(2):
        assert [type(action) for action in found] == [type(action) for action in ACTIONS[name]]
        np.testing.assert_equal([*found], ACTIONS[name])
    found.append("another")
    assert [*found][-1] == "another" and len([*found]) == len(found) == len(ACTIONS[name]) + 1


def test_what_monitor_remembers_comes_back() -> None:
    from stable_baselines3.common.monitor import Monitor  # not above: the trials' processes import this module

    def restored() -> Any:
        other = StatefulEnv(Monitor(Walk()), "pickle")
        other.reset(seed=9)
        set_state(other, loads(dumps(get_state(env), [env]), [other]))
        assert isinstance(other.env, Monitor)
        return other.env

    def lists(monitor: Any) -> list[Any]:
        return [monitor.rewards, monitor.episode_returns, monitor.episode_lengths, monitor.episode_times]

    env = StatefulEnv(Monitor(Walk()), "pickle")
    live = env.env
    assert isinstance(live, Monitor)
    env.reset(seed=1)
    for change in range(7):
        for action in actions(env, 30, seed=change):
            if any(env.step(action)[2:4]):
                env.reset()
        if change == 3:
            live.episode_returns = [5.0, *live.episode_returns[1:]]  # somebody puts another list there
        if change == 5:
            live.episode_lengths.clear()
        found = restored()
        assert lists(found) == lists(live)
        for one, other in zip(lists(found), lists(live), strict=True):
            assert [type(number) for number in one] == [type(number) for number in other]
    assert len(live.episode_returns) > 3


def test_a_replay_that_leads_elsewhere_begins_a_new_episode() -> None:
    env = StatefulEnv(Locked(), "replay")
    env.reset(seed=0)
    play(env, actions(env, 5, seed=0))
    state = loads(dumps(get_state(env), [env]), [env])
    played = [*state.base.actions]
    state.base.actions = Actions()
    for action in played[:-1]:
        state.base.actions.append(action)
    other = StatefulEnv(Locked(), "replay")
    other.reset(seed=1)
    with pytest.raises(TrainCloudError, match="replaying 4 steps"):
        PROVIDERS["replay"].set(other, state)
    anew = set_state(other, state)
    assert anew is not None and "replaying 4 steps" in anew.because
    assert anew.observation.tobytes() == env.reset()[0].tobytes(), "as the next one would have been"


class Taught(Locked):
    """Can only be replayed; callbacks make it harder."""

    def __init__(self) -> None:
        super().__init__()
        self.lesson, self.gust, self.total = 1.0, np.ones(2), 0
        self.book: dict[str, Any] = {"pages": [1.0], "lock": threading.Lock()}

    def teach(self, lesson: float, *, gust: Any = None) -> None:
        self.lesson = lesson
        if gust is not None:
            self.gust = gust

    def turn_page(self) -> None:
        self.book["pages"].append(len(self.book["pages"]) / 3)

    def draw(self) -> float:
        self.total += 1
        pages = float(sum(self.book["pages"]))
        return super().draw() * self.lesson * float(self.gust.sum()) + pages + 1e-3 * self.total


CHANGES: dict[str, Callable[[StatefulEnv], object]] = {
    "a call": lambda env: env.get_wrapper_attr("teach")(3.0),
    "a call that changes what an attribute holds": lambda env: env.get_wrapper_attr("turn_page")(),
    "a large call": lambda env: env.get_wrapper_attr("teach")(2.0, gust=np.full(2000, 0.001)),
    "an attribute of the base": lambda env: setattr(env.unwrapped, "lesson", 5.0),
    "an array of the base": lambda env: setattr(env.unwrapped, "gust", np.array([2.0, -1.0])),
    "an attribute of a wrapper": lambda env: setattr(env.env, "tiredness", 0.7),
    "nothing": lambda env: env.get_wrapper_attr("action_masks") if env.has_wrapper_attr("action_masks") else None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_from_outside_is_done_again(change: str) -> None:
    """At its place in the episode that is saved, and in those before; counters of the base go on."""
    env = StatefulEnv(Tired(Taught()), "replay")
    env.reset(seed=0)
    for episode in range(3):
        play(env, actions(env, 3, seed=episode))
        CHANGES[change](env)
        play(env, actions(env, 40, seed=episode + 9))  # an episode's end, and into the next
        CHANGES[change](env)
        play(env, actions(env, 2, seed=episode + 17))
    blob = dumps(get_state(env), [env])
    other = StatefulEnv(Tired(Taught()), "replay")
    other.reset(seed=1)
    assert set_state(other, loads(blob, [other])) is None
    sequence = actions(env, 90, seed=3)
    assert play(other, sequence) == play(env, sequence)
    assert vars(other.unwrapped)["total"] == vars(env.unwrapped)["total"] > 0
    blob = dumps(get_state(other), [other])  # it can be saved again
    assert set_state(env, loads(blob, [env])) is None
    assert play(other, sequence) == play(env, sequence)


LOST: dict[str, tuple[Callable[[StatefulEnv], object], str]] = {
    "a call": (lambda env: env.get_wrapper_attr("teach")(3.0, gust=_Handle()), r"teach\(\) was called from outside"),
    "an attribute": (lambda env: setattr(env.unwrapped, "lesson", _Handle()), "Taught.lesson was changed from outside"),
    "in an attribute": (lambda env: env.unwrapped.book["pages"].append(9.0), "replaying 5 steps did not lead to"),  # type: ignore[attr-defined]
}


class _Handle(float):
    """Cannot be pickled."""

    def sum(self) -> float:
        return 2.0

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a handle")


@pytest.mark.parametrize("what", LOST)
def test_what_cannot_be_done_again_begins_a_new_episode(what: str) -> None:
    change, reason = LOST[what]
    env = StatefulEnv(Taught(), "replay")
    env.reset(seed=0)
    play(env, actions(env, 3, seed=0))
    change(env)
    play(env, actions(env, 2, seed=1))
    blob = dumps(get_state(env), [env])
    other = StatefulEnv(Taught(), "replay")
    other.reset(seed=1)
    anew = set_state(other, loads(blob, [other]))
    assert anew is not None and re.search(reason, anew.because), anew
    play(other, actions(env, 60, seed=2))
    assert get_state(other).provider == "replay"


def test_what_callbacks_set_on_the_outermost_layer_stays_there() -> None:
    """SB3's set_attr: the environment itself does not see it, get_attr does."""
    for provider, make in (("pickle", Walk), ("replay", Locked), ("episode", Walk)):
        env, other = (StatefulEnv(make(), provider) for _ in range(2))
        env.reset(seed=0)
        other.reset(seed=1)
        env.difficulty = 3  # type: ignore[attr-defined]
        set_state(other, loads(dumps(get_state(env), [env]), [other]))
        assert other.get_wrapper_attr("difficulty") == 3


@pytest.mark.parametrize("provider", ["own", "pickle"])
def test_a_state_that_cannot_be_put_back_begins_a_new_episode(provider: str) -> None:
    class Own(Walk):
        def get_state(self) -> Any:
            return self.place

        def set_state(self, state: Any) -> None:
            self.place = float("nan")
            raise ConnectionError("the simulator is another one")

    env = StatefulEnv(Tired(Own()), provider)
    env.reset(seed=0)
    play(env, actions(env, 5, seed=0))
    state = get_state(env)
    if provider == "pickle":
        state.wrappers.pop()  # it was made in another way then
    other = StatefulEnv(Tired(Own()), provider)
    other.reset(seed=1)
    anew = set_state(other, state)
    assert anew is not None and ("another one" in anew.because or "wrappers" in anew.because)
    play(other, actions(env, 60, seed=1))
    assert np.isfinite(other.unwrapped.place)  # type: ignore[attr-defined]


class Noted(gym.Wrapper[Any, Any, Any, Any]):
    """Writes what it plays into a file, as many wrappers do."""

    def __init__(self, env: gym.Env[Any, Any], path: Path = Path(os.devnull)) -> None:
        super().__init__(env)
        self.file, self.lock, self.log = path.open("w"), threading.Lock(), logging.getLogger("noted")
        self.state: dict[str, Any] = {"steps": 0, "file": self.file}

    def step(self, action: Any) -> Any:
        self.state["steps"] += 1
        print(self.state["steps"], file=self.file)
        observation, reward, *rest = self.env.step(action)
        return observation, float(reward) + self.state["steps"], *rest


def test_a_wrapper_with_a_file_is_saved_but_for_the_file() -> None:
    choice = choose(lambda: Noted(Walk()))
    assert (choice.provider, choice.exact) == ("pickle", True), choice.because


class Connected(gym.Wrapper[Any, Any, Any, Any]):
    """What is at the other end nobody knows."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.ends = [socket.socket()]


def test_a_wrapper_with_a_connection_is_named() -> None:
    choice = choose(lambda: Connected(Walk()))
    assert (choice.provider, choice.exact) == ("episode", False)
    assert "Connected.ends[0], a socket.socket, cannot be saved" in choice.because


def test_where_the_episode_is_lost_the_next_one_is_as_it_would_have_been() -> None:
    env = StatefulEnv(Tired(Locked()), "episode")
    env.reset(seed=0)
    play(env, actions(env, 9, seed=0))
    blob = dumps(get_state(env), [env])
    other = StatefulEnv(Tired(Locked()), "episode")
    other.reset(seed=1)
    anew = set_state(other, loads(blob, [other]))
    assert anew is not None and anew.observation.tobytes() == env.reset()[0].tobytes()
    sequence = actions(env, 60, seed=1)
    assert play(other, sequence) == play(env, sequence)


def test_shared_objects_stay_shared() -> None:
    """SB3's model holds environment 0's action space, parts of an environment hold the environment."""
    env, other = StatefulEnv(BackReference(), "pickle"), StatefulEnv(BackReference(), "pickle")
    env.reset(seed=0)
    other.reset(seed=1)
    env.action_space.seed(3)
    loaded = loads(dumps({"model": env.action_space, "env": get_state(env)}, [env]), [other])
    assert set_state(other, loaded["env"]) is None
    assert other.action_space is loaded["model"]
    assert other.action_space is not env.action_space
    assert other.action_space.sample() == env.action_space.sample()
    assert other.unwrapped.part.env is other.unwrapped  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["pendulum", "own", "lock"])
def test_a_space_keeps_its_generator(name: str) -> None:
    make, provider, _ = CASES[name]
    env, other = StatefulEnv(make(), provider), StatefulEnv(make(), provider)
    env.reset(seed=0)
    other.reset(seed=1)
    env.action_space.seed(3)
    env.action_space.sample()
    set_state(other, loads(dumps(get_state(env), [env]), [other]))
    assert other.action_space.sample() == env.action_space.sample()


def test_windows_and_surfaces_are_left_behind() -> None:
    pytest.importorskip("pygame")
    env, other = (StatefulEnv(gym.make("Pendulum-v1", render_mode="rgb_array"), "pickle") for _ in range(2))
    env.reset(seed=0)
    env.render()
    assert env.unwrapped.screen is not None  # type: ignore[attr-defined]
    other.reset(seed=1)
    set_state(other, loads(dumps(get_state(env), [env]), [other]))
    assert np.array_equal(np.asarray(other.render()), np.asarray(env.render()))
    env.close()
    other.close()


def test_errors_of_the_environment_itself_come_through() -> None:
    class Broken(Walk):
        def reset(self, **_: Any) -> Any:
            raise ConnectionError("no simulator at port 4242")

    with pytest.raises(CodeFailed, match="ConnectionError: no simulator at port 4242"):
        choose(Broken)


@pytest.mark.parametrize("name", ["Ant-v5", "HalfCheetah-v5", "Pusher-v5"])
def test_mujoco(name: str) -> None:
    pytest.importorskip("mujoco")
    assert choose(lambda: gym.make(name)).provider == "mujoco"


def test_what_mujoco_sizes_anew_at_each_step_is_not_kept() -> None:
    mujoco = pytest.importorskip("mujoco")
    from train_cloud.envs.mujoco import get_data

    env: Any = gym.make("HalfCheetah-v5").unwrapped
    env.reset(seed=0)
    fresh = get_data(mujoco.MjData(env.model))[1]
    for _ in range(30):
        env.step(np.ones(6))
    assert {name: value.shape for name, value in get_data(env.data)[1].items()} == {
        name: value.shape for name, value in fresh.items()
    }


def test_ale() -> None:
    gym.register_envs(pytest.importorskip("ale_py"))
    assert choose(lambda: gym.make("ale_py:ALE/Breakout-v5")).provider == "ale"


@pytest.mark.parametrize(
    ("game", "repeats"), [("Breakout", 0.0), ("Breakout", 0.9), ("Breakout", 1.0), ("Pong", 0.9), ("Qbert", 0.25)]
)
def test_ale_repeats_what_it_would_have_repeated(game: str, repeats: float) -> None:
    """Its own clone has the generator, but not the action in force: at 0.9 nearly every state went on otherwise."""
    gym.register_envs(pytest.importorskip("ale_py"))

    def make() -> StatefulEnv:
        sticky = gym.make(f"ALE/{game}-v5", obs_type="ram", repeat_action_probability=repeats)
        return StatefulEnv(wrappers.TimeLimit(sticky, 300), "ale")

    def noted(env: StatefulEnv) -> Any:
        machine, _, windows = get_state(env).base
        return machine.serialize(), [(state.serialize(), calls) for state, calls in windows]

    env, other = make(), make()
    env.reset(seed=5)
    other.reset(seed=99)
    for steps in (0, 1, 2, 5, 100, *[17] * 15):  # into windows of calls, across their ends and the episode's
        play(env, actions(env, steps, seed=steps))
        blob = dumps(get_state(env), [env])
        coming = actions(env, 12, seed=steps + 1)
        expected = play(env, coming)
        set_state(other, loads(blob, [other]))
        assert play(other, coming) == expected
        assert noted(other) == noted(env)


def test_ale_goes_on_from_a_state_without_its_past() -> None:
    """As it was saved before the action in force was."""
    gym.register_envs(pytest.importorskip("ale_py"))
    env, other = (StatefulEnv(gym.make("ALE/Pong-v5", repeat_action_probability=0.0), "ale") for _ in range(2))
    env.reset(seed=5)
    other.reset(seed=99)
    play(env, actions(env, 30, seed=6))
    state = get_state(env)
    state.base = state.base[:2]
    blob, coming = dumps(state, [env]), actions(env, 30, seed=7)
    expected = play(env, coming)
    set_state(other, loads(blob, [other]))
    assert play(other, coming) == expected


class Sized(Walk):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


class Given(gym.Wrapper[Any, Any, Any, Any]):
    """Rewards as a function says, without which it cannot be made."""

    def __init__(self, env: gym.Env[Any, Any], rewarded: Callable[[Any], float]) -> None:
        super().__init__(env)
        self.rewarded = rewarded

    def step(self, action: Any) -> Any:
        observation, _, *rest = self.env.step(action)
        return observation, self.rewarded(self), *rest


def _of_itself(wrapper: Given) -> Given:
    wrapper.rewarded = lambda _: float(wrapper.unwrapped.place)  # type: ignore[attr-defined]
    return wrapper


@pytest.mark.parametrize(
    ("make", "expected", "reason"),
    [
        (lambda: _monitored(gym.make("Pendulum-v1", g=9.0)), ("pickle", True), "the same for"),
        (lambda: _monitored(_wrapped(Ez())), ("pickle", True), "the same for"),
        (lambda: Tired(Own()), ("own", True), "the same for"),
        (lambda: _wrapped(Liar()), ("episode", False), "pickle: the restored environment went another way"),
        (lambda: _monitored(Sized(3)), ("pickle", True), "the same for"),
        (lambda: Given(Walk(), lambda env: 2.0 + env.unwrapped.place), ("pickle", True), "the same for"),
        (lambda: _of_itself(Given(Walk(), len)), ("pickle", True), "the same for"),
    ],
)
def test_an_environment_of_somebody_elses_making(
    make: Callable[[], gym.Env[Any, Any]], expected: tuple[str, bool], reason: str
) -> None:
    env = make()
    env.reset(seed=0)
    sequence = actions(env, 20, seed=0)
    before = dumps(get_state(env, "pickle" if expected[0] != "own" else "own"), [env])
    choice = choose_for(env)
    assert (choice.provider, choice.exact) == expected, choice.because
    assert reason in choice.because
    after = play(env, sequence)
    set_state(env, loads(before, [env]))
    assert play(env, sequence) == after, "the trial changed the environment that it was for"


class _Tells(gym.Wrapper[Any, Any, Any, Any]):
    """Every reset tells another number."""

    def reset(self, **arguments: Any) -> Any:
        observation, _ = self.env.reset(**arguments)
        return observation, {"number": float(self.unwrapped.np_random.random())}


@pytest.mark.parametrize("provider", ["pickle", "replay", "episode"])
def test_what_the_last_reset_told_goes_on_in_its_place(provider: str) -> None:
    """A process of SubprocVecEnv sends it along with every step, from the dict that reset() gave it."""
    one, other = (StatefulEnv(_Tells(gym.make("Pendulum-v1")), provider) for _ in range(2))
    _, told = one.reset(seed=1)
    _, held = other.reset(seed=2)
    other_number = held["number"]
    one.step(one.action_space.sample())
    begun = other.train_cloud_set_state(one.train_cloud_get_state()[0])
    assert (begun is None) == (provider != "episode")
    if begun is None:
        assert held == told
    else:
        assert held["number"] not in (told["number"], other_number)
