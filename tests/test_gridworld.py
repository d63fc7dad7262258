"""The example examples/gridworld: its observations, its experts, and that it goes on exactly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from sessions import Rehearsed

from train_cloud.child_process import code_on_path
from train_cloud.cli import main
from train_cloud.config import load_run_file
from train_cloud.config.architecture import ARCHITECTURES
from train_cloud.config.experiment import load_experiment
from train_cloud.experiments.comparison.models import parameters
from train_cloud.operations.export import export
from train_cloud.sb3.check import check
from train_cloud.sb3.compare import differences

EXAMPLE = Path(__file__).parents[1] / "examples" / "gridworld"
CODE = EXAMPLE / "code"
LEVELS = ("simple", "medium", "complex", "mine-heavy", "exploration")


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    with code_on_path(CODE):
        yield


def make(level: Any, **arguments: Any) -> gymnasium.Env[Any, Any]:
    import gridworld  # noqa: F401 - registers the id

    return gymnasium.make("Gridworld-v0", level=level, **arguments)


@pytest.mark.parametrize("level", LEVELS)
def test_an_expert_reaches_its_end_and_all_that_is_seen_is_within_its_space(level: str) -> None:
    from gridworld.expert import bot

    env = make(level)
    for seed in range(5):
        observation, info = env.reset(seed=seed)
        over = False
        while not over:
            assert env.observation_space.contains(observation)
            observation, reward, terminated, truncated, info = env.step(bot(env, observation))
            over = terminated or truncated
        assert info["is_success"] and float(reward) > 0


@pytest.mark.parametrize("level", LEVELS)
def test_the_graph_is_the_world(level: str) -> None:
    env = make(level)
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        nodes, edges = (int(observation[f"graph_{what}_mask"].sum()) for what in ("node", "edge"))
        types, pairs = observation["graph_node_types"][:nodes], observation["graph_edges"][:, :edges]
        assert types[0] == 0 and set(types[1:]) <= {1, 2}, "the agent is the first"
        assert pairs.max() < nodes
        both = {(int(source), int(target)) for source, target in pairs.T}
        assert both == {(target, source) for source, target in both}, "each edge has one back"
        world: Any = env.unwrapped.world  # type: ignore[attr-defined]
        things = sum(cell is not None and cell.type != "wall" for cell in world.grid.grid)
        assert (types == 2).sum() == min(things, 31)
        relations = pairs[:, observation["graph_edge_types"][:edges] == 1]
        assert relations.shape[1] == 2 * (types == 2).sum() and (relations == 0).any(0).all()
        assert not observation["graph_nodes"][nodes:].any() and not observation["graph_edges"][:, edges:].any()


def test_the_mission_names_a_node() -> None:
    env = make("medium")
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        world: Any = env.unwrapped.world  # type: ignore[attr-defined]
        named = observation["graph_nodes"][:, -1] == 1
        assert named.sum() >= 1
        wanted = world.instrs.desc
        assert named.sum() == len(wanted.obj_set)


def test_an_episode_follows_from_the_seed_whatever_came_before() -> None:
    def played(env: gymnasium.Env[Any, Any], seed: int) -> list[Any]:
        observation, _ = env.reset(seed=seed)
        seen = [observation]
        for action in np.random.default_rng(0).integers(0, 3, 30):
            observation, _, terminated, truncated, info = env.step(int(action))
            seen.append((observation, info["level"]))
            if terminated or truncated:
                seen.append(env.reset()[0])
        return seen

    used, fresh = make(list(LEVELS)), make(list(LEVELS))
    played(used, 1)
    first, second = played(used, 2), played(fresh, 2)
    assert str(first) == str(second)
    assert str(first) != str(played(fresh, 3))


def test_levels_are_drawn_and_set() -> None:
    env = make(list(LEVELS))
    game: Any = env.unwrapped
    env.reset(seed=0)
    drawn = set()
    for _ in range(60):
        env.reset()
        drawn.add(game.level)
    assert drawn == set(LEVELS)
    game.set_level("complex")
    assert game.level in LEVELS
    env.reset()
    assert game.level == "complex"
    with pytest.raises(ValueError, match=r"no level 'hard': use simple"):
        game.set_level("hard")


def test_it_can_be_drawn() -> None:
    env = make("exploration", render_mode="rgb_array")
    env.reset(seed=0)
    frame: Any = env.render()
    assert frame.shape == (400, 400, 3) and len(np.unique(frame.reshape(-1, 3), axis=0)) > 4


def test_a_level_that_is_none_is_refused_by_name() -> None:
    from train_cloud.errors import InputError

    with pytest.raises(InputError) as caught:
        check(load_run_file(EXAMPLE / "run.yaml", ["environment.kwargs.level=hard"]))
    assert caught.value.field == "environment.kwargs.level" and "use simple, medium" in caught.value.fix


def test_all_of_the_experiment_can_be_trained_and_is_evaluated_on_each_level() -> None:
    experiment = load_experiment(EXAMPLE / "experiment.yaml")
    assert len(experiment.cells) == 7 * 2 * 3
    assert {cell.levels["architecture"] for cell in experiment.cells} == set(ARCHITECTURES)
    for cell in experiment.cells:
        assert set(cell.config.evaluated.categories) == set(LEVELS)
        assert cell.config.architecture is not None and cell.config.architecture.name == cell.levels["architecture"]
        assert (cell.config.pretraining is not None) == (cell.levels["pretraining"] == "with_pretrain")


def test_the_demonstrations_are_the_experts(tmp_path: Path) -> None:
    """Whoever changes levels, observations or expert records anew: the first lines of experiment.yaml say how."""
    command = ["record", str(EXAMPLE / "run.yaml"), "--expert", "gridworld.expert:bot", "--episodes", "4"]
    level = f"environment.kwargs.level=[{', '.join(LEVELS)}]"
    assert main([*command, "--successful", "--out", str(tmp_path / "found.npz"), "--set", level]) == 0
    with np.load(tmp_path / "found.npz") as found, np.load(CODE / "demonstrations.npz") as kept:
        count = len(found["actions"])
        assert count > 20 and set(found.files) == set(kept.files)
        for name in found.files:
            if found[name].ndim:
                assert np.array_equal(found[name], kept[name][:count]), name


def small(architecture: str) -> dict[str, Any]:
    return {
        "algorithm": "ppo",
        "architecture": {"name": architecture, "kwargs": {"width": 16, "features_dim": 16}},
        "seed": 3,
        "device": "cpu",
        "total_timesteps": 128,
        "save_frequency": 32,
        "code": {"folder": str(CODE)},
        "environment": {
            "id": "Gridworld-v0",
            "module": "gridworld",
            "kwargs": {"level": ["simple", "complex", "exploration", "mine-heavy"]},
            "n_envs": 2,
        },
        "hyperparameters": {"n_steps": 16, "batch_size": 16, "n_epochs": 2},
        "callbacks": ["interrupting:InterruptAt"],
    }


#: No module of train-cloud can be imported there.
PLAIN = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "train_cloud":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from stable_baselines3 import PPO
model = PPO.load(sys.argv[1], device="cpu")
observation = {key: np.zeros(part.shape, part.dtype) for key, part in model.observation_space.items()}
print(int(model.predict(observation, deterministic=True)[0]), sum(each.numel() for each in model.policy.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gat", "full_hgt"])
def test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends(
    warm: Any, tmp_path: Path, architecture: str
) -> None:
    twin = Rehearsed(warm, tmp_path / "twin", small(architecture))
    assert twin.session() == 0, twin.log()
    run = Rehearsed(warm, tmp_path / "run", small(architecture))
    assert run.session("SIGTERM@43") == 75, run.log()
    assert run.session("SIGKILL@87") == -9, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
    counted = parameters(run.root, ["a-run"])["a-run"]
    folder = export(run.root, "a-run", at=None, out=tmp_path / "final")
    command = [sys.executable, "-c", PLAIN, str(folder / "model.zip")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    action, learned = done.stdout.split()
    assert action in "0123456" and int(learned) == counted
