"""Every attribute that can be reached in a running training is equal after a resume in a fresh process, or listed with
a reason, or named as not kept: walked on real objects of real trainings. A part that is left out on purpose is found.
"""

from __future__ import annotations

import array
import contextlib
import functools
import importlib
import io
import itertools
import pickle
import random
import re
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import reached
import torch
from sb3_contrib import RecurrentPPO
from sessions import forking
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from test_objects import Memory

from train_cloud.config import parse_run_file
from train_cloud.envs.make import FAILURES
from train_cloud.envs.trial import Choice, stateful
from train_cloud.sb3 import capture, kinds, multiagent, objects
from train_cloud.sb3.accounting import END, RESTORED, SNAPSHOT, Account, Graph, account, read, record_to, walk
from train_cloud.sb3.callback import learn
from train_cloud.sb3.pickling import LEFT
from train_cloud.trainer import TrainingStopped

STOP_AT = 75


def envs(kind: Any, count: int, normalized: bool) -> Any:
    def wrapped(env: Any) -> Any:
        return stateful(reached.Drifts(env), Choice("pickle", True, ""))

    made = make_vec_env(kind, count, seed=5, wrapper_class=wrapped)
    return VecNormalize(made) if normalized else made


def sac() -> tuple[Any, Any]:
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1))
    model = SAC("MlpPolicy", envs(reached.Rooms, 1, False), seed=3, device="cpu", learning_starts=20, batch_size=8,
                buffer_size=60, action_noise=noise, use_sde=True, sde_sample_freq=4, train_freq=8,
                policy_kwargs={"net_arch": [8]})  # fmt: skip
    return model, reached.Everything


def ppo() -> tuple[Any, Any]:
    model = PPO("MlpPolicy", envs(reached.Rooms, 2, True), seed=3, device="cpu", n_steps=16, batch_size=16, n_epochs=2,
                clip_range=lambda left: 0.1 + 0.1 * left, policy_kwargs={"net_arch": [8]})  # fmt: skip
    return model, reached.Everything


def recurrent_ppo() -> tuple[Any, Any]:
    model = RecurrentPPO("MlpLstmPolicy", envs(reached.Rooms, 2, False), seed=3, device="cpu", n_steps=16,
                         batch_size=16, n_epochs=1,
                         policy_kwargs={"net_arch": [8], "lstm_hidden_size": 8})  # fmt: skip
    return model, reached.Everything


def several() -> tuple[Any, Any]:
    run = {
        "run_id": "a-run", "algorithm": "sac_multiagent", "seed": 3, "device": "cpu", "total_timesteps": 200,
        "save_frequency": 32, "environment": {"id": "several_agents:walkers", "wrappers": ["several_agents:Gust"]},
        "hyperparameters": {"learning_starts": 20, "batch_size": 8, "buffer_size": 60, "train_freq": 2,
                            "policy_kwargs": {"net_arch": [8]}},
    }  # fmt: skip
    return multiagent.build(parse_run_file(run), Choice("pickle", True, "")), reached.Everything


def hiding() -> tuple[Any, Any]:
    return ppo()[0], reached.Hides


PROGRAMS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "SAC": sac, "PPO": ppo, "RecurrentPPO": recurrent_ppo, "several agents": several, "what hides": hiding,
}  # fmt: skip


def stretch(program: str, fault: str, stop_at: int | None, begin: str | None, out: str) -> None:
    """In a process of its own: train from ``begin``, or from the start, to ``stop_at``, or to the end."""
    try:
        found = _stretch(program, fault, stop_at, begin, out)
    except FAILURES:  # the parent tells it
        found = {"failed": traceback.format_exc()}
    Path(out).write_bytes(pickle.dumps(found))


def _stretch(program: str, fault: str, stop_at: int | None, begin: str | None, out: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    if fault:
        FAULTS[fault][0]()
    restored = pickle.loads(pickle.loads(Path(begin).read_bytes())["state"]) if begin else None
    model, kind = PROGRAMS[program]()
    model.set_logger(Logger(None, []))
    host: Any = Memory(restored, stop_at)
    record_to(Path(f"{out}-graphs"))
    with contextlib.suppress(TrainingStopped):
        learn(model, host, [CallbackList([kind()])], Choice("pickle", True, ""))
    return {"state": host.kept}


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    with forking("test_accounting") as found:
        yield found


def accounted(context: Any, folder: Path, program: str, fault: str = "", whole: bool = True) -> list[Account]:
    """Of the moment of the resume, and of the end compared with the uninterrupted training's."""
    parts = [("first", STOP_AT, None), ("second", None, "first"), *([("whole", None, None)] if whole else [])]
    state: dict[str, Any] = {}
    for part, stop_at, begin in parts:
        out = folder / part
        arguments = (program, fault, stop_at, begin and str(folder / begin), str(out))
        process = context.Process(target=stretch, args=arguments)
        process.start()
        process.join(240)
        assert process.exitcode == 0, process.exitcode
        state[part] = pickle.loads(out.read_bytes())
        assert "failed" not in state[part], state[part]["failed"]
    not_kept = pickle.loads(state["second"]["state"]).facts.get("not_kept", [])
    first, second = folder / "first-graphs", folder / "second-graphs"
    ((at, after),) = read(second, RESTORED).items()
    assert STOP_AT <= at < 200
    found = [account(read(first, SNAPSHOT)[at], after, not_kept)]
    if whole:
        (one,), (other,) = (read(folder / f"{name}-graphs", END).values() for name in ("whole", "second"))
        found.append(account(one, other, not_kept))
    return found


# ------------------------------------------------------------------------------------------------------ what is planted


def _excluded(module: str, name: str, added: set[str]) -> Callable[[], None]:
    """A set of names in which more stands than should."""

    def plant() -> None:
        space = vars(importlib.import_module(module))
        space[name] = frozenset({*space[name], *added})

    return plant


def _cells() -> None:
    """The variables of functions are passed over."""
    vars(kinds)["_cell_content"] = lambda cell: LEFT


def _modules() -> None:
    vars(objects)["own_modules"] = list


def _sharing() -> None:
    """What algorithm, policy and buffer share becomes several objects."""
    right = objects.Objects._note

    def wrong(self: Any, path: str, obj: Any, kind: str) -> None:
        if not isinstance(obj, gymnasium.Space):
            right(self, path, obj, kind)

    objects.Objects._note = wrong  # type: ignore[method-assign]


def _moments() -> None:
    """Of the optimisers' states, one number."""
    right = capture._set_tensors

    def wrong(model: Any, noise: Any, tensors: Any, rest: Any) -> None:
        right(model, noise, {k: v * 0 if k.endswith("|exp_avg") else v for k, v in tensors.items()}, rest)

    vars(capture)["_set_tensors"] = wrong


def _spawned() -> None:
    right = kinds._set_generator
    vars(kinds)["_set_generator"] = lambda generator, state: right(
        generator, state[0] if isinstance(state, tuple) and isinstance(state[0], dict) else state
    )


#: Fault → how it is planted, the program in which it shows, and paths one of which must be named.
FAULTS: dict[str, tuple[Callable[[], None], str, str]] = {
    "an attribute of a callback": (
        _excluded("train_cloud.sb3.capture", "OF_A_CALLBACK", {"space"}), "PPO", r"callbacks.* Everything\.space",
    ),
    "an attribute of the algorithm": (
        _excluded("train_cloud.sb3.capture", "_ELSEWHERE", {"_last_lstm_states"}), "RecurrentPPO",
        r"algorithm\._last_lstm_states",
    ),
    "an attribute of a wrapper": (
        _excluded("train_cloud.envs.state", "MADE_WITH", {"best"}), "SAC", r"algorithm\..*\.best\['all'\]\.reward",
    ),
    "an attribute of a vector environment": (
        _excluded("train_cloud.sb3.vectorized", "_OF_THE_VECENV", {"ret_rms"}), "PPO", r"algorithm\..*\.ret_rms\.",
    ),
    "variables of functions": (_cells, "PPO", r".*average\.average"),
    "modules of the user's own": (_modules, "several agents", r"module reached\.EPSILON"),
    "sharing": (_sharing, "SAC", r"algorithm\.policy\.action_space: the same as algorithm\.action_space"),
    "an optimiser's moments": (_moments, "several agents", r"algorithm\.learners\['walker_\d'\].*exp_avg"),
    "what a generator has spawned": (_spawned, "PPO", r".*\.rng\.bit_generator\.seed_seq"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.slow
@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "what hides"])
def test_every_attribute_is_accounted_for(context: Any, tmp_path: Path, program: str) -> None:
    resumed, ended = accounted(context, tmp_path, program)
    assert resumed.unaccounted == [] and resumed.named == {}
    assert ended.unaccounted == [] and ended.named == {}
    assert resumed.equal > 2000, "it has looked into everything"
    assert all(resumed.listed.values())


@pytest.mark.slow
def test_what_is_named_as_not_kept_is_accounted_for_and_nothing_besides(context: Any, tmp_path: Path) -> None:
    (resumed,) = accounted(context, tmp_path, "what hides", whole=False)
    assert resumed.unaccounted == []
    assert resumed.named and all(".hidden" in path and "generator" in why for path, why in resumed.named.items())


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_left_out_is_found(context: Any, tmp_path: Path, fault: str) -> None:
    _, program, path = FAULTS[fault]
    (resumed,) = accounted(context, tmp_path, program, fault, whole=False)
    assert any(re.match(path, told) for told in resumed.unaccounted), "\n".join(resumed.unaccounted)


def changed(one: Any, change: Callable[[Any], None], **names: Any) -> list[str]:
    """Paths that differ after a change, or on a second look without one."""
    before = walk({"it": one}, names)
    assert account(before, walk({"it": one}, names)).unaccounted == []
    change(one)
    return [told.partition(": ")[0] for told in account(before, walk({"it": one}, names)).unaccounted]


def setting(value: Any, *path: Any) -> Callable[[Any], None]:
    def change(obj: Any) -> None:
        for name in path[:-1]:
            obj = obj[name] if not isinstance(name, str) or isinstance(obj, dict) else getattr(obj, name)
        if isinstance(path[-1], str) and not isinstance(obj, dict):
            setattr(obj, path[-1], value)
        else:
            obj[path[-1]] = value

    return change


def counting() -> Iterator[int]:
    yield from range(9)


def holding(value: Any) -> Any:
    return types.SimpleNamespace(value=value)


@pytest.mark.parametrize(
    ("obj", "change", "path"),
    [
        (holding(1), setting(2, "value"), "it.value"),
        (holding(0.0), setting(-0.0, "value"), "it.value"),
        ({"a": {"b": [1, 2]}}, setting(3, "a", "b", 1), "it['a']['b'][1]"),
        ({"a": 1, "b": 2}, lambda obj: obj.update(a=obj.pop("a")), "it"),
        (reached.Point(), setting(1.0, "_x"), "it._x"),
        (reached.Best(), lambda obj: obj.when.append(3), "it.when"),
        (holding({1, 2}), lambda obj: obj.value.add(3), "it.value"),
        (holding(deque([1], maxlen=3)), lambda obj: obj.value.append(1), "it.value"),
        (holding(np.zeros(3)), setting(-0.0, "value", 1), "it.value"),
        (holding(np.array([{"a": 1}], dtype=object)), setting(2, "value", 0, "a"), "it.value.flat[0]['a']"),
        (holding(torch.zeros(3)), setting(1.0, "value", 1), "it.value"),
        (holding(torch.ones(2, dtype=torch.bfloat16)), setting(2.0, "value", 0), "it.value"),
        (np.random.default_rng(1), lambda obj: obj.random(), "it.bit_generator"),
        (np.random.default_rng(1), lambda obj: obj.spawn(1), "it.bit_generator.seed_seq"),
        (np.random.RandomState(1), lambda obj: obj.rand(), "it"),
        (random.Random(1), lambda obj: obj.random(), "it"),
        (torch.Generator(), lambda obj: torch.rand((), generator=obj), "it"),
        (holding(counting()), lambda obj: next(obj.value), "it.value"),
        (holding(itertools.count()), lambda obj: next(obj.value), "it.value.<state>[0]"),
        (holding(iter([7, 8])), lambda obj: next(obj.value), "it.value.<state>[1]"),
        (reached.averaging(0.5), lambda obj: obj(3.0), "it.average.cell_contents"),
        (functools.partial(print, [1]), lambda obj: obj.args[0].append(2), "it.args[0]"),
        (reached.Tracker(3).recent.append, lambda obj: obj(2.0), "it.__self__"),
        (holding(io.BytesIO(b"abc")), lambda obj: obj.value.read(1), "it.value"),
        (holding(array.array("i", [1])), lambda obj: obj.value.append(2), "it.value"),
        (torch.nn.BatchNorm1d(2), lambda obj: obj.running_mean.add_(1), "it.running_mean"),
        (torch.nn.Linear(1, 1), lambda obj: obj.register_forward_hook(counting), "it._forward_hooks"),
        (torch.nn.Dropout(0.1), setting(0.2, "p"), "it.p"),
    ],
)  # fmt: skip
def test_each_change_is_seen_where_it_was_made(obj: Any, change: Callable[[Any], None], path: str) -> None:
    assert path in changed(obj, change)


def test_what_is_shared_and_what_is_equal_are_told_apart() -> None:
    point = reached.Point()
    assert changed([point, point], setting(reached.Point(), 1))[:1] == ["it[1]"]
    table = np.zeros((2, 3))
    assert changed([table, table[1]], setting(np.zeros(3), 1)) == ["it[1]"]
    assert changed([np.zeros(3), torch.zeros(3)], lambda obj: obj.__setitem__(1, torch.from_numpy(obj[0]))) != []


def test_a_handle_is_listed_with_its_reason_and_what_is_beside_it_is_not(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        graph = walk({"it": {"file": file, "lock": threading.Lock(), "both": [file, 1]}}, {})
    assert sorted(graph.listed) == ["it['both'][0]", "it['file']", "it['lock']"]
    assert graph.entries["it['both'][1]"] == "1"


def test_an_account_has_each_path_once() -> None:
    before = Graph({"a": "1", "a.b": "2", "c": "3", "d[0]": "4", "d": "list(1)", "e": "5"}, {"f.g": "a clock"})
    after = Graph({"a": "1", "a.b": "0", "c": "3", "d": "list(0)", "f.g": "6"}, {})
    found = account(before, after, ["d[0]: a socket", "x: nothing of this"])
    assert (found.equal, found.listed) == (2, {"f.g": "a clock"})
    assert found.named == {"d[0]": "a socket", "d": "a socket"}
    assert found.unaccounted == ["a.b: 2, and 0 after the resume", "e: 5, and nothing after the resume"]
