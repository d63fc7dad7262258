"""Curricula: what is decided and when, which level an episode plays, and what an interruption brings back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corridor import Corridor
from ruamel.yaml import YAML
from sessions import Rehearsed
from stable_baselines3.common.vec_env import DummyVecEnv

from train_cloud.config import RunFile, check_fork, dump_run_file, identity_changes, parse_run_file
from train_cloud.config.curriculum import Curriculum, Result, measured, next_stage
from train_cloud.config.load import read_yaml
from train_cloud.envs.curriculum import Levels, Staged, check_together, choose_all
from train_cloud.envs.known import recall, record
from train_cloud.envs.pickling import dumps, loads
from train_cloud.envs.trial import Choice
from train_cloud.errors import InputError, NotYet
from train_cloud.evaluate.play import at_category, check
from train_cloud.operations.html_report import write_page
from train_cloud.operations.prove import prove
from train_cloud.operations.rollback import rollback
from train_cloud.report.status import run_status
from train_cloud.sb3.build import build_callbacks
from train_cloud.sb3.compare import differences
from train_cloud.sb3.curriculum import StageChanges
from train_cloud.sb3.environment import StateTrial, stages_of
from train_cloud.sb3.vector_environments import make_vec_env

LENGTHS = (2, 4, 8)
NAMES = ("short", "longer", "longest")
BY_KWARGS: list[dict[str, Any]] = [
    {"name": name, "kwargs": {"length": length}} for name, length in zip(NAMES, LENGTHS, strict=True)
]
BY_METHOD: list[dict[str, Any]] = [
    {"name": name, "method": "set_length", "args": [length]} for name, length in zip(NAMES, LENGTHS, strict=True)
]
SMALL = {"n_steps": 40, "batch_size": 40, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}}


def run(
    stages: list[dict[str, Any]] = BY_KWARGS, environment: dict[str, Any] | None = None, **curriculum: Any
) -> dict[str, Any]:
    return {
        "run_id": "a-run",
        "algorithm": "ppo",
        "seed": 3,
        "total_timesteps": 960,
        "save_frequency": 200,
        "environment": {"id": "Corridor-v0", "module": "corridor", **(environment or {})},
        "curriculum": {"stages": stages, "advance": {"success": 0.5, "window": 8}, **curriculum},
        "hyperparameters": SMALL,
    }


def parsed(*arguments: Any, **named: Any) -> RunFile:
    return parse_run_file(run(*arguments, **named))


def curriculum_of(**values: Any) -> Curriculum:
    found = parsed(**values).curriculum
    assert found is not None
    return found


# --------------------------------------------------------------------------------------------------------- decisions


def results(successes: int, of: int, mean: float = 0.0) -> list[Result]:
    return [Result(number < successes, mean) for number in range(of)]


@pytest.mark.parametrize(
    ("values", "stage", "window", "then"),
    [
        ({}, 0, results(2, 4), 1),
        ({}, 0, results(1, 4), 0),
        ({}, 0, results(3, 3), 0),
        ({}, 2, results(8, 8), 2),
        ({"advance": {"success": 0.5, "window": 8, "min_episodes": 8}}, 0, results(7, 7), 0),
        ({"advance": {"success": 0.5, "window": 8, "min_episodes": 8}}, 0, results(4, 8), 1),
        ({"advance": {"return": 4.5, "window": 8}}, 1, results(0, 4, 4.5), 2),
        ({"advance": {"return": 4.5, "window": 8}}, 1, results(4, 4, 4.4), 1),
        ({"advance": {"success": 0.5, "return": 4.5, "window": 8}}, 1, results(4, 4, 4.4), 1),
        ({"advance": {"success": 0.5, "return": 4.5, "window": 8}}, 1, results(4, 4, 4.6), 2),
        ({"regress": {"success": 0.25}}, 1, results(1, 4), 0),
        ({"regress": {"success": 0.25}}, 1, results(2, 5), 1),
        ({"regress": {"success": 0.25}}, 0, results(0, 8), 0),
        ({"regress": {"success": 0.25, "return": -3}}, 1, results(0, 8, -2.5), 1),
        ({"regress": {"return": -3}}, 2, results(0, 8, -3), 1),
        ({}, 0, [Result(None, 9.0)] * 8, 0),
    ],
)
def test_a_stage_follows_from_the_window_alone(
    values: dict[str, Any], stage: int, window: list[Result], then: int
) -> None:
    assert next_stage(curriculum_of(**values), stage, window) == then


def test_what_nobody_tells_is_not_counted() -> None:
    assert measured([Result(True, 1.0), Result(None, 2.0), Result(False, 3.0)]) == {"success": 0.5, "return": 2.0}
    assert measured([Result(None, 2.0)]) == {"return": 2.0}
    assert measured([]) == {}


def test_a_level_is_a_function_of_seed_environment_episode_and_stage() -> None:
    levels = Levels(3, 4, 0.25)
    there = [(env, episode, stage) for env in range(3) for episode in range(800) for stage in range(4)]
    played = {place: levels.of(*place) for place in there}
    assert {place: Levels(3, 4, 0.25).of(*place) for place in reversed(there)} == played
    assert all(level <= stage for (_, _, stage), level in played.items())
    for stage in range(4):
        counted = Counter(level for (_, _, at), level in played.items() if at == stage)
        others = sum(count for level, count in counted.items() if level != stage)
        assert set(counted) == set(range(stage + 1))
        assert abs(others / 2400 - (0.25 if stage else 0)) < 0.03
    for changed in (Levels(4, 4, 0.25), Levels(3, 4, 0.3)):
        assert {place: changed.of(*place) for place in there} != played
    # No version of Python or NumPy may draw others: runs go on over them.
    assert "".join(str(levels.of(1, episode, 3)) for episode in range(30)) == "303333330133333332033333332330"
    every = {Levels(3, 4, 0.5, all_stages=True).of(0, episode, 1) for episode in range(100)}
    assert every == {0, 1, 2, 3}
    assert {Levels(3, 4).of(0, episode, 2) for episode in range(100)} == {2}


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"advances": 1}, "curriculum.advances: 1: unknown key: did you mean advance?"),
        ({"stages": [{"name": "a", "level": 1}, {"name": "b"}]}, "curriculum.stages.0.level: 1: unknown key"),
        ({"start": 3}, "curriculum.start: 3: there are 3 stages: give 0 to 2"),
        ({"start": -1}, "curriculum.start: -1: give a number of at least 0"),
        ({"stages": BY_KWARGS[:1]}, r"curriculum.stages: \['short'\]: give 2 to 100; with one stage leave"),
        ({"stages": []}, r"curriculum.stages: \[\]: give 2"),
        ({"stages": [*BY_KWARGS, {"name": "short", "kwargs": {"length": 9}}]}, "stages.3.name: 'short': two stages"),
        ({"stages": [*BY_KWARGS, {"name": "again", "kwargs": {"length": 8}}]}, "stages.3: 'again': it is the same as"),
        ({"stages": [BY_KWARGS[0], BY_METHOD[1]]}, "stages.1: 'longer': stage short has kwargs: give kwargs to all"),
        ({"stages": [{"name": "overall"}, BY_KWARGS[0]]}, "stages.0.name: 'overall': an evaluation's summary"),
        ({"stages": [{"name": "Too Loud"}, BY_KWARGS[0]]}, "stages.0.name: 'Too Loud': use lower-case"),
        ({"stages": [{"name": "a", "args": [1]}, BY_KWARGS[0]]}, "a has args, and no method"),
        ({"stages": [{**BY_METHOD[0], "kwargs": {"a": 1}}, BY_KWARGS[0]]}, "short has kwargs and method"),
        ({"stages": [{**BY_METHOD[0], "args": 3}, BY_METHOD[1]]}, "stages.0.args: 3: give a list"),
        ({"advance": {}}, "curriculum.advance: {}: give success, a rate such as 0.7, or return"),
        ({"advance": {"window": 10}}, "curriculum.advance: {'window': 10}: give success"),
        ({"advance": None}, "curriculum.advance: None: "),
        ({"advance": {"success": 70}}, "curriculum.advance.success: 70: give a number of at most 1"),
        ({"advance": {"success": 0.7, "window": 9, "min_episodes": 10}}, "min_episodes: 10: give at most .* is 9"),
        ({"advance": {"success": 0.7, "min": 10}}, "curriculum.advance.min: 10: unknown key"),
        ({"regress": {}}, "curriculum.regress: {}: give success, a rate such as 0.3"),
        (
            {"regress": {"success": 0.5}},
            "regress.success: 0.5: give less than curriculum.advance.success",
        ),
        ({"regress": {"success": 0.1, "window": 3}}, "curriculum.regress.window: 3: unknown key: use one of"),
        ({"mix": 1.5}, "curriculum.mix.share: 1.5: give a number below 1"),
        ({"mix": {"share": 0.2, "stages": "all"}}, "curriculum.mix.stages: 'all': unknown key"),
        ({"success": "often"}, r"curriculum.success: 'often': write info.<key>, or a comparison"),
    ],
)
def test_what_cannot_be_meant_is_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_run_file(run(**changes))


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"algorithm": "sac_multiagent"}, NotYet, "curriculum: .*not for several agents"),
        (
            {"entry_point": "my:main", "algorithm": None, "environment": None, "hyperparameters": {}},
            InputError,
            r"curriculum: \['short', 'longer', 'longest'\]: the script my:main decides this",
        ),
    ],
)
def test_who_has_no_curriculum(changes: dict[str, Any], kind: type[InputError], told: str) -> None:
    values = {name: value for name, value in {**run(), **changes}.items() if value is not None}
    with pytest.raises(kind, match=told):
        parse_run_file(values)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (
            [BY_KWARGS[0], {"name": "wide", "kwargs": {"seen": 3}}],
            r"curriculum.stages.1: 'observations': its observations are Box\(-100.0, 100.0, \(3,\).* first stage Box",
        ),
        (
            [BY_KWARGS[0], {"name": "pushed", "kwargs": {"discrete": False}}],
            r"curriculum.stages.1: 'actions': its actions are Box.*first stage Discrete\(3\)",
        ),
        (
            [BY_KWARGS[0], {"name": "too-long", "kwargs": {"length": 51}}],
            "stages.1.kwargs.length: 51: .*longer than 50",
        ),
        ([BY_KWARGS[0], {"name": "odd", "kwargs": {"lenght": 5}}], "curriculum.stages.1.kwargs.lenght: 5: Corridor-v0"),
        (
            [BY_METHOD[0], {**BY_METHOD[1], "method": "set_lenght"}],
            "curriculum.stages.1.method: 'set_lenght': neither Corridor nor .*: did you mean set_length?",
        ),
        (
            [BY_METHOD[0], {**BY_METHOD[1], "args": [0]}],
            r"stages.1.method: 'set_length': calling it with \[0\] raises ValueError: a corridor has a length",
        ),
        (
            [BY_METHOD[0], {**BY_METHOD[1], "args": []}],
            r"stages.1.method: 'set_length': calling it with \[\] raises TypeError: .*missing 1 required",
        ),
    ],
)
def test_a_stage_that_cannot_be_played_is_one_line(stages: list[dict[str, Any]], told: str) -> None:
    config = parsed(stages)
    assert config.environment is not None and config.curriculum is not None
    with pytest.raises(InputError, match=told):
        check_together(stages_of(config.environment, config.curriculum))


@pytest.mark.slow
def test_it_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    stages = [BY_KWARGS[0], {"name": "wide", "kwargs": {"seen": 3}}]
    YAML().dump({**run(stages, {"n_envs": 2, "vectorization": "subproc"})}, path)
    command = [sys.executable, "-m", "train_cloud", "train", str(path), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 64, done.stderr
    assert "curriculum.stages.1: 'observations': its observations are" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_condition_of_ones_own_is_there() -> None:
    with pytest.raises(InputError, match=r"corridor has no finish: did you mean finished"):
        build_callbacks(parsed(success="corridor:finish"))
    assert len(build_callbacks(parsed(success="corridor:finished"))) == 1


# ---------------------------------------------------------------------------------------------------------- run files


def test_it_is_part_of_the_identity_and_can_be_written_down(tmp_path: Path) -> None:
    config = parsed(mix=0.2, regress={"success": 0.1}, advance={"success": 0.5, "return": 3, "window": 8})
    text = dump_run_file(config, tmp_path, "a comment")
    assert parse_run_file(read_yaml(text, "text")) == config
    other = parse_run_file(run(mix=0.2, regress={"success": 0.1}), ["curriculum.advance.return=3"])
    assert identity_changes(config.identity(), other.identity()) == []
    changed = parse_run_file(run(mix=0.2, regress={"success": 0.1}), ["curriculum.advance.return=4"])
    assert [change[0] for change in identity_changes(config.identity(), changed.identity())] == [
        "curriculum.advance.return"
    ]
    without = {name: value for name, value in run().items() if name != "curriculum"}
    before = {name: value for name, value in parse_run_file(without).identity().items() if name != "curriculum"}
    assert identity_changes(before, parse_run_file(without).identity()) == []  # of a run of an earlier version


@pytest.mark.parametrize(
    ("written", "played"),
    [
        (None, {"short": {"length": 2}, "longer": {"length": 4}, "longest": {"length": 8}}),
        ({}, {"short": {"length": 2}, "longer": {"length": 4}, "longest": {"length": 8}}),
        (
            {"categories": {"huge": {"kwargs": {"length": 20}}, "longer": {"kwargs": {"length": 5}}}},
            {"short": {"length": 2}, "longer": {"length": 5}, "longest": {"length": 8}, "huge": {"length": 20}},
        ),
    ],
)
def test_an_evaluation_plays_all_stages(written: dict[str, Any] | None, played: dict[str, Any]) -> None:
    config = parse_run_file({**run(), "evaluation": written})
    assert {name: category.kwargs for name, category in config.evaluated.categories.items()} == played


def test_a_category_calls_a_method_before_each_reset() -> None:
    config = parsed(BY_METHOD)
    category = config.evaluated.categories["longest"]
    env = at_category(Corridor(), category, "longest")
    for seed in range(2):
        env.reset(seed=seed)
        assert isinstance(env.unwrapped, Corridor) and env.unwrapped.length == 8
        env.unwrapped.set_length(3)
    check(parse_run_file({**run(BY_METHOD), "evaluation": {}}))
    wrong = {"categories": {"odd": {"method": "set_lenght", "args": [3]}}}
    told = "evaluation.categories.odd.*: 'set_lenght': neither Corridor nor .*: did you mean set_length?"
    with pytest.raises(InputError, match=told):
        check(parse_run_file({**run(BY_METHOD), "evaluation": wrong}))
    with pytest.raises(InputError, match="args are for a method"):
        parse_run_file({**run(BY_METHOD), "evaluation": {"categories": {"odd": {"args": [3]}}}})


def test_a_fork_cannot_change_it() -> None:
    old, new = parsed().identity(), parsed(mix=0.5).identity()
    assert check_fork(old, parsed().identity(), replays=False) == []
    with pytest.raises(InputError, match=r"curriculum.mix: .*a fork cannot change it"):
        check_fork(old, new, replays=False)


# -------------------------------------------------------------------------------------------------------- environments


def chosen(config: RunFile, provider: str = "pickle") -> Choice:
    assert config.curriculum is not None
    one = Choice(provider, True, "")
    return Choice(provider, True, "", stages=(one,) * len(config.curriculum.stages))


def vector(config: RunFile, provider: str = "pickle") -> Any:
    assert config.environment is not None
    env = make_vec_env(config.environment, config.seed, chosen(config, provider), config.curriculum)
    assert isinstance(env, DummyVecEnv)
    return env


def played(env: Any, steps: int, seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    seen = []
    for _ in range(steps):
        observation, rewards, dones, infos = env.step(random.integers(0, 3, env.num_envs))
        ends = [(info["episode"]["r"], info["episode"]["l"], info["episode"]["stage"])
                for info in infos if "episode" in info]  # fmt: skip
        seen.append((observation.tolist(), rewards.tolist(), dones.tolist(), ends))
    return seen


@pytest.mark.parametrize("stages", [BY_KWARGS, BY_METHOD], ids=["kwargs", "method"])
@pytest.mark.parametrize(
    ("environment", "provider"), [("Corridor", "pickle"), ("KeptCorridor", "own"), ("LockedCorridor", "replay")]
)
def test_the_state_of_all_stages_goes_into_another_process(
    stages: list[dict[str, Any]], environment: str, provider: str
) -> None:
    config = parsed(stages, {"id": f"{environment}-v0", "n_envs": 2}, mix={"share": 0.4, "all_stages": True})
    one, other = vector(config, provider), vector(config, provider)
    for env in (one, other):
        env.seed(1)
        env.reset()
    played(other, 5, 9)
    played(one, 30, 0)
    one.env_method("train_cloud_set_stage", 2)
    played(one, 33, 1)
    for index in range(2):
        before, after = one.envs[index], other.envs[index]
        assert isinstance(before, Staged) and isinstance(after, Staged)
        blob = dumps(before.get_states(lambda env: provider), before.train_cloud_envs)
        assert after.set_states(loads(blob, after.train_cloud_envs)) is None
    expected = played(one, 80, 2)
    assert played(other, 80, 2) == expected
    stages_played = {end[2] for *_, ends in expected for end in ends}
    assert stages_played == {0, 1, 2}
    assert len(one.envs[0].train_cloud_envs) == (3 if stages is BY_KWARGS else 1)


def test_a_stage_whose_first_episode_goes_on_is_replayed_from_then_on_as_ever() -> None:
    config = parsed(environment={"id": "LockedCorridor-v0"})
    one, other = vector(config, "replay"), vector(config, "replay")
    for env in (one, other):
        env.seed(1)
        env.reset()
    one.env_method("train_cloud_set_stage", 2)
    played(one, 14, 0)
    here, there = one.envs[0], other.envs[0]
    assert here.env is here.train_cloud_envs[2] and here.env.record.seed is not None
    there.set_states(loads(dumps(here.get_states(lambda env: "replay"), here.train_cloud_envs), there.train_cloud_envs))
    assert played(other, 40, 2) == played(one, 40, 2)
    lasting = [loads(each.env.record.before, each.train_cloud_envs).base for each in (here, there)]
    assert lasting[0] == lasting[1], "the next checkpoint would have more in it than the uninterrupted run's"


def test_an_episode_ends_in_the_stage_in_which_it_began() -> None:
    config = parsed(BY_METHOD)
    env = vector(config)
    env.seed(0)
    env.reset()
    env.step(np.array([1]))
    env.env_method("train_cloud_set_stage", 2)
    corridor = env.envs[0].unwrapped
    assert isinstance(corridor, Corridor) and corridor.length == 2
    ends = [end for *_, ends in played(env, 40, 0) for end in ends]
    assert [stage for _, _, stage in ends] == [0] + [2] * (len(ends) - 1) and len(ends) > 2
    assert corridor.length == 8


def test_a_stage_that_cannot_be_resumed_begins_a_new_episode() -> None:
    config = parsed(environment={"n_envs": 1})
    one, other = vector(config), vector(config)
    for env in (one, other):
        env.seed(0)
        env.reset()
    state = one.envs[0].get_states(lambda env: "pickle")
    state.envs[0].wrappers = []
    anew = other.envs[0].set_states(state)
    assert anew is not None and "wrappers" in anew.because
    assert np.array_equal(anew.observation, other.envs[0].unwrapped.see())


@pytest.mark.slow
def test_how_the_state_is_saved_is_tried_at_each_stage() -> None:
    config = parsed([{"name": "short"}, BY_KWARGS[1]], {"id": "LockedCorridor-v0"})
    trial = StateTrial(config, None)
    choice = trial.choice()
    assert [stage.provider for stage in choice.stages] == ["pickle", "replay"] and choice.exact
    known = record(choice, {"asked": 1}, [])
    assert recall(json.loads(json.dumps(known)), {"asked": 1}) == choice
    assert config.environment is not None and config.curriculum is not None
    short = [BY_METHOD[0], BY_METHOD[1]]
    config = parsed(short, {"id": "LockedCorridor-v0", "kwargs": {"length": 1}})
    assert config.environment is not None and config.curriculum is not None
    choice = choose_all(stages_of(config.environment, config.curriculum), "auto")
    assert [stage.provider for stage in choice.stages] == ["replay", "replay"] and choice.exact


# -------------------------------------------------------------------------------------------------------- the callback


class _Logger:
    def __init__(self) -> None:
        self.recorded: dict[str, float] = {}

    def record(self, name: str, value: float) -> None:
        self.recorded[name] = value


class _Model:
    """As much of an algorithm as the callback asks for."""

    def __init__(self, env: DummyVecEnv) -> None:
        self.env, self.logger, self.num_timesteps = env, _Logger(), 0

    def get_env(self) -> DummyVecEnv:
        return self.env


def ended(callback: StageChanges, stage: int, success: bool | None, value: float = 0.0) -> None:
    info: dict[str, Any] = {"episode": {"r": value, "l": 5, "t": 0.0, "stage": stage}}
    callback.locals = {"infos": [{}, info if success is None else {**info, "is_success": success}]}
    callback.num_timesteps += 2
    assert callback._on_step()


def told_of(**curriculum: Any) -> tuple[StageChanges, Any]:
    config = parsed(environment={"n_envs": 2}, **curriculum)
    env = vector(config)
    (callback,) = build_callbacks(config)
    assert isinstance(callback, StageChanges)
    callback.model = _Model(env)  # type: ignore[assignment]
    return callback, env


def test_only_episodes_of_the_present_stage_count() -> None:
    callback, env = told_of(start=1, regress={"success": 0.1})
    for _ in range(6):
        ended(callback, 0, True)
    callback._on_rollout_start()
    assert callback.stage == 1 and callback.window == []
    for success in (True, False, True, False):
        ended(callback, 1, success)
    assert callback.stage == 1, "nothing is decided in mid-rollout"
    callback._on_rollout_start()
    assert callback.stage == 2 and callback.window == []
    assert [single._stage for single in env.envs] == [2, 2]
    assert callback.changes == [(0, 1), (20, 2)]
    ended(callback, 1, True)  # it had begun before
    assert callback.window == [] and callback.played == [6, 5, 0] and callback.succeeded == [6, 3, 0]
    for _ in range(9):
        ended(callback, 2, False, -3.0)
    assert len(callback.window) == 8
    callback._on_rollout_end()
    assert callback.logger.recorded == {  # type: ignore[attr-defined]
        "curriculum/stage": 2,
        "curriculum/success_rate": 0.0,
        "curriculum/mean_return": -3.0,
    }
    shown = callback.summary()
    assert (shown["stage"], shown["name"], shown["since"], shown["episodes"]) == (2, "longest", 20, 8)
    callback._on_rollout_start()
    assert callback.stage == 1 and callback.changes[-1] == (40, 1)
    assert json.loads(json.dumps(callback.summary())) == callback.summary()


def test_nobody_says_whether_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    callback, _ = told_of()
    for _ in range(10):
        ended(callback, 0, None)
    callback._on_rollout_start()
    assert callback.stage == 0
    assert callback.summary()["succeeded"] is None
    assert [entry.message for entry in caplog.records] == [
        "curriculum: none of 4 episodes tells whether it succeeded: nothing is found of curriculum.success, "
        "info.is_success"
    ]
    callback, _ = told_of(advance={"return": 1.0, "window": 4})
    for _ in range(4):
        ended(callback, 0, None, 1.0)
    callback._on_rollout_start()
    assert callback.stage == 1


# ------------------------------------------------------------------------------------------------------------ sessions

RUNS = {
    "kwargs, ppo, normalised": {
        **run(environment={"n_envs": 2, "normalize": True}, regress={"success": 0.2}, mix=0.2),
        "evaluation": {"every": 480, "episodes": 2},
        "callbacks": ["interrupting:InterruptAt"],
    },
    "method, dqn, processes": {
        **run(BY_METHOD, {"n_envs": 2, "vectorization": "subproc"}, mix={"share": 0.3, "all_stages": True}),
        "algorithm": "dqn",
        "evaluation": {"episodes": 1, "categories": {"huge": {"method": "set_length", "args": [20]}}},
        "total_timesteps": 500,
        "save_frequency": 90,
        "hyperparameters": {"learning_starts": 40, "batch_size": 16, "buffer_size": 120, "train_freq": 4,
                            "policy_kwargs": {"net_arch": [8]}},
        "callbacks": ["interrupting:InterruptAt"],
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_anywhere_it_has_the_same_stages(warm: Any, tmp_path: Path, name: str) -> None:
    twin = Rehearsed(warm, tmp_path / "twin", RUNS[name])
    assert twin.session() == 0, twin.log()
    run = Rehearsed(warm, tmp_path / "run", RUNS[name])
    assert run.session("SIGTERM@187") == 75, run.log()
    assert run.session("SIGKILL@391") == -9, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
    assert len({value for _, value in twin.scalars()["curriculum/stage"]}) > 1
    told = run_status(twin.root, "a-run").curriculum
    assert told is not None and len(told["changes"]) > 2
    assert run_status(run.root, "a-run").curriculum == told
    columns, *rows = (tmp_path / "run" / "state" / "artifacts" / "monitor.csv").read_text().splitlines()[1:]
    assert columns == "timesteps,r,l,t,env,stage"
    assert Counter(int(row.rpartition(",")[2]) for row in rows) == Counter(dict(enumerate(told["played"])))
    _check_what_is_shown(run, told, [*NAMES, *RUNS[name]["evaluation"].get("categories", ())])
    back = read_checkpoints(run)[1]
    rollback(run.root, "a-run", back)
    earlier = run_status(run.root, "a-run").curriculum
    assert earlier is not None and earlier["episodes"] is None
    assert earlier["changes"] == [change for change in told["changes"] if change[0] <= back]
    assert (earlier["since"], earlier["stage"]) == tuple(earlier["changes"][-1])


@pytest.mark.slow
def test_a_longer_total_goes_on_with_the_decision_that_was_due(warm: Any, tmp_path: Path) -> None:
    values = {name: value for name, value in RUNS["kwargs, ppo, normalised"].items() if name != "evaluation"}
    twin = Rehearsed(warm, tmp_path / "twin", values)
    assert twin.session() == 0, twin.log()
    run = Rehearsed(warm, tmp_path / "run", values)
    assert run.session(options=("--set", "total_timesteps=480")) == 0, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    told, shown = (run_status(each.root, "a-run").curriculum for each in (twin, run))
    assert told is not None and told == shown
    # Decided when the run of 480 timesteps had ended: else this would say nothing of it.
    assert 480 in [at for at, _ in told["changes"]]


@pytest.mark.slow
def test_every_attribute_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAIN_CLOUD_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    YAML().dump(run(environment={"n_envs": 2}, regress={"success": 0.2}, mix=0.2), path)
    proof = prove(path, steps=330, quick=True)
    assert proof.equal and proof.reproducible and proof.because is None, proof
    assert proof.attributes > 500 and not proof.unaccounted, proof


def read_checkpoints(run: Rehearsed) -> list[int]:
    found = run_status(run.root, "a-run", checkpoints=True).checkpoints
    return [each.timesteps for each in found or ()]


def _check_what_is_shown(run: Rehearsed, told: dict[str, Any], categories: list[str]) -> None:
    evaluated = json.loads((run.folder / "state" / "artifacts" / "eval_results.json").read_text())["evaluations"]
    assert {tuple(each["categories"]) for each in evaluated} == {tuple(categories)}
    lengths = {episode["category"]: episode["length"] for episode in evaluated[-1]["episodes"]}
    assert lengths["longest"] >= 6, "no step is longer than 1.5"
    page = write_page(run.root, "a-run", run.folder / "page.html").read_text()
    assert f"<span>stage {told['stage'] + 1} of 3</span>" in page
    assert "<h2>Curriculum</h2>" in page and '<path class="stage"' in page
    for name, episodes in zip(NAMES, told["played"], strict=True):
        assert re.search(rf"<tr><td>{name}.*?<td>{episodes}</td>", page, re.DOTALL)
    shown = subprocess.run(
        [sys.executable, "-m", "train_cloud", "status", "a-run", "--store", run.root],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert f"curriculum: stage {told['name']} ({told['stage'] + 1} of 3) since" in " ".join(shown.split())
