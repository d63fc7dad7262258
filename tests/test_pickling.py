"""What environments of other people's hold: views, environments inside, generators that the process has one of, parts
of a simulator. It comes back as what it was, and refers to what it referred to.
"""

from __future__ import annotations

import io
import pickle
import random
import site
import sysconfig
import types
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from train_cloud.envs.make import One, in_words
from train_cloud.envs.pickling import fingerprint
from train_cloud.envs.pieces import Pieces, Taking, put
from train_cloud.envs.state import StatefulEnv, dumps, get_state, loads, set_state
from train_cloud.envs.trial import choose
from train_cloud.errors import TrainCloudError
from train_cloud.generators import get_unseeded, unseeded_follow
from train_cloud.installed import is_installed
from train_cloud.sb3.compare import AnyEnvironment, _compare
from train_cloud.sb3.pickling import LearnerPickler

Env = gymnasium.Env[Any, Any]
BOX = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)


class Counts(Env, gymnasium.utils.EzPickle):
    """EzPickle makes another one of it from its arguments, at 0."""

    observation_space, action_space = BOX, BOX

    def __init__(self, least: int = 0) -> None:
        gymnasium.utils.EzPickle.__init__(self, least)
        self.count = least

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return self._seen(), float(self.count), self.count > 50, False, {}

    def _seen(self) -> Any:
        return np.full(3, self.count / 100, np.float32)


class Around(Env):
    """Somebody's adapter: holds another environment, and what every environment draws from."""

    observation_space, action_space = BOX, BOX

    def __init__(self) -> None:
        self.env = gymnasium.wrappers.TimeLimit(Counts(), 60)
        self.grid = np.zeros((4, 4))
        self.border = self.grid[0]
        self.draws: Any = np.random.mtrand._rand
        self.python: Any = vars(random)["_inst"]
        self.unseeded = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.env.reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.border[:] += self.draws.random() + self.python.random()
        observation, reward, *rest = self.env.step(action)
        return observation, float(reward) + float(self.grid.sum()), *rest


def played(env: Env, steps: int) -> StatefulEnv:
    made = StatefulEnv(env, "pickle")
    made.reset(seed=1)
    for _ in range(steps):
        made.step(np.zeros(3, np.float32))
    return made


def test_what_an_environment_refers_to_is_referred_to_by_the_restored_one() -> None:
    one = played(Around(), 7)
    blob = dumps(get_state(one), [one])
    other = played(Around(), 2)
    inner = vars(other.unwrapped)["env"].unwrapped
    assert set_state(other, loads(blob, [other])) is None
    base: Any = other.unwrapped
    assert base.env.unwrapped is inner and inner.count == 7, "the one inside goes on"
    assert base.env._elapsed_steps == 7
    assert base.draws is np.random.mtrand._rand and base.python is vars(random)["_inst"]
    assert np.shares_memory(base.border, base.grid)
    random.seed(5), np.random.seed(5)
    expected = [one.step(np.zeros(3, np.float32))[1] for _ in range(5)]
    random.seed(5), np.random.seed(5)
    assert [other.step(np.zeros(3, np.float32))[1] for _ in range(5)] == expected
    assert _compare("", *(loads(dumps(get_state(env), [env]), AnyEnvironment()) for env in (one, other))) == []


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_view_stays_one_unless_what_it_is_of_is_far_larger(order: Any) -> None:
    whole = np.asarray(np.arange(24.0).reshape(4, 6), order=order)
    views = [whole[1:3, ::2], whole[::-1], np.broadcast_to(whole[0], (2, 6)), whole]
    read = loads(dumps(views))
    assert [array.tolist() for array in read] == [array.tolist() for array in views]
    assert all(np.shares_memory(array, read[-1]) for array in read)
    assert not read[2].flags.writeable and read[0].flags.writeable
    large = np.zeros(1 << 20)
    assert len(dumps([large[3:5]])) < 1000
    fields = np.zeros(3, [("a", "i4"), ("b", "f8")])
    assert loads(dumps([fields["b"], fields]))[1].dtype == fields.dtype


def test_what_a_simulator_computes_with_is_one_wherever_it_is_held() -> None:
    mujoco = pytest.importorskip("mujoco")

    class Simulated(Env):
        observation_space, action_space = BOX, BOX

        def __init__(self) -> None:
            text = "<mujoco><worldbody><body name='b'><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
            self.model = mujoco.MjModel.from_xml_string(text)
            self.data = mujoco.MjData(self.model)
            self.inside = types.SimpleNamespace(data=self.data, model=self.model)
            self.spare = mujoco.MjData(self.model)
            self.place = self.data.body("b").xpos

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(3, np.float32), {}

        def step(self, action: Any) -> Any:
            mujoco.mj_step(self.inside.model, self.inside.data)
            self.spare.qpos[0] += 1
            return self.place.astype(np.float32), float(self.spare.qpos[0]), False, False, {}

    envs = [StatefulEnv(Simulated(), "mujoco") for _ in range(2)]
    for env, steps in zip(envs, (9, 4), strict=True):
        env.reset(seed=1)
        for _ in range(steps):
            env.step(np.zeros(3))
    one, other = envs
    blob = dumps(get_state(one), [one])
    assert set_state(other, loads(blob, [other])) is None
    base: Any = other.unwrapped
    assert base.inside.data is base.data and base.inside.model is base.model
    assert np.shares_memory(base.place, base.data.xpos)
    for _ in range(5):
        assert [str(part) for part in one.step(np.zeros(3))] == [str(part) for part in other.step(np.zeros(3))]
    assert _compare("", *(loads(dumps(get_state(env), [env]), AnyEnvironment()) for env in envs)) == []


class Draws(Counts):
    """Its state is taken with a generator that nobody seeds, and with a draw."""

    def get_state(self) -> Any:
        return np.random.default_rng(), random.random(), self.count

    def set_state(self, state: Any) -> None:
        self.count = state[2]


def test_taking_a_state_draws_nothing_from_the_training() -> None:
    with unseeded_follow(1):
        env = StatefulEnv(Draws(), "own")
        env.reset(seed=1)
        before = get_unseeded(), random.getstate()
        assert env.train_cloud_get_state()
        assert (get_unseeded(), random.getstate()) == before


def test_a_dict_keyed_by_what_cannot_be_pickled_is_taken_apart() -> None:
    def local() -> None: ...

    def is_pickled(value: object) -> bytes:
        return dumps(value)

    content: dict[Any, Any] = {types.FunctionType: "a type", local: 3, "plain": [1], "made": lambda: None}
    taking = Taking(is_pickled)
    taken = taking.take(content, "table")
    assert isinstance(taken, Pieces) and fingerprint(taken)
    assert {left.path.partition(" at ")[0]: left.harmless for left in taking.left} == {
        "table[<class 'function'>]": False,
        f"table[<function {local.__qualname__}": False,
    }
    live: dict[Any, Any] = {types.FunctionType: "its own", "plain": [2], "made": len}
    assert put(live, loads(dumps(taken))) == {types.FunctionType: "its own", "plain": [1], "made": len}
    with pytest.raises(TrainCloudError, match="another function is"):
        put({**live, "made": lambda: 1}, taken)


def test_mujoco_is_compared_by_what_it_computes_with() -> None:
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><joint/><geom size='1'/></body></worldbody></mujoco>"
    )
    one, other = mujoco.MjData(model), mujoco.MjData(model)
    for data in (one, other):
        data.ctrl[:] = 1
        mujoco.mj_step(model, data)
    other.timer[0].duration += 1  # a clock
    assert _compare("it", [one], [other]) == []
    other.qpos[0] += 1
    assert "1 of" in _compare("it", [one], [other])[0]


class Player:
    def __init__(self) -> None:
        self.level = 1


def test_dicts_keyed_by_objects_are_compared_in_their_order() -> None:
    one, other = ({Player(): [1], Player(): [2]} for _ in range(2))
    assert _compare("it", one, other) == []
    next(iter(other)).level = 2
    assert _compare("it", one, other) == ["it[0][0].level: 1 and 2"]


class Proxy:
    """Hands on all questions to another object, as simulators' global objects do."""

    __slots__ = ("__dict__", "beside")

    def __init__(self) -> None:
        self.held, self.beside = {"a": [1]}, 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self.held, name)


@pytest.mark.parametrize("learner", [False, True])
def test_what_hands_on_all_questions_comes_back(learner: bool) -> None:
    proxy = Proxy()
    if learner:
        file = io.BytesIO()
        LearnerPickler(file).dump([proxy, proxy.held])
        again, held = pickle.loads(file.getvalue())
    else:
        again, held = loads(dumps([proxy, proxy.held]))
    assert type(again) is Proxy and again.held is held and (held, again.beside) == ({"a": [1]}, 2)


class Whose:
    paths: ClassVar = {
        f"{sysconfig.get_path('purelib')}/torch/nn.py": True,
        f"{sysconfig.get_path('stdlib')}/json/decoder.py": True,
        f"{site.getusersitepackages()}/cloudpickle/x.py": True,
        "/usr/lib/python3/dist-packages/yaml/nodes.py": True,
        "/venv/below/lib/python3.10/site-packages/typing_extensions.py": True,
        "/home/me/project/mine.py": False,
        "/home/me/site-packages-of-mine/mine.py": False,
    }


@pytest.mark.parametrize("path", Whose.paths)
def test_a_package_of_whatever_layer_is_installed(path: str) -> None:
    assert is_installed(path) is Whose.paths[path]


def test_tables_are_compared_by_what_they_hold() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"price": [1.0, np.nan], "name": ["a", "b"], "at": pandas.to_datetime(["2020", "2021"])})
    held = {"table": table, "column": table.price, "rows": [table]}
    assert _compare("it", held, {"table": table.copy(), "column": table.price.copy(), "rows": [table.copy()]}) == []
    other = table.copy()
    other.loc[0, "name"] = "c"
    assert _compare("it", held, {**held, "rows": [other]}) == ["it.rows[0]: the DataFrame has other values"]
    assert _compare("it", {"c": table.price}, {"c": table.price + 1}) == ["it.c: the Series has other values"]


def test_clocks_and_names_of_temporary_files_are_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    one = {"episode_start_time": 1.0, "time_queue": [2.0], "file": f"{tmp_path}/a.xml", "_pid": 3, "left": 1.0}
    other = {"episode_start_time": 3.0, "time_queue": [4.0], "file": f"{tmp_path}/b.xml", "_pid": 4, "left": 2.0}
    assert _compare("it", one, other) == ["it.left: 1.0 and 2.0"]


def test_what_is_long_is_shown_in_short() -> None:
    (told_of,) = _compare("it", {"model": b"a" * 10_000}, {"model": b"b" * 10_000})
    assert len(told_of) < 400 and "(10,000)" in told_of


def test_an_exception_without_a_message_says_where() -> None:
    limit = 3
    with pytest.raises(AssertionError) as caught:
        exec(compile("assert limit > 4", __file__, "exec"), {"limit": limit})
    assert in_words(caught.value).startswith("AssertionError: no message, from '")
    assert in_words(ValueError()) == "ValueError: no message"


@pytest.mark.slow
@pytest.mark.parametrize(("each_step", "provider"), [(False, "replay"), (True, "episode")])
def test_generators_that_a_reset_makes_without_a_seed_are_made_again(each_step: bool, provider: str) -> None:
    choice = choose(One("Unseeded-v0", "unseeded", {"each_step": each_step}))
    assert (choice.provider, choice.exact) == (provider, not each_step), choice.because
    assert each_step is ("makes generators without a seed in its step()" in choice.because)
