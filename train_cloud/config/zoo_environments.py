"""Environments that rl-baselines3-zoo names: where each is registered now, and under which id.

Sources: rl_zoo3 2.9, ``import_envs.py``; Gymnasium 1.3, "Release notes" and its registry; the registrations of
gymnasium-robotics 1.4, panda-gym 3.0, pybullet_envs_gymnasium 0.6 and MiniGrid 3.2.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Place(NamedTuple):
    """Of an environment.

    :ivar environment: its id now
    :ivar module: imported first, because it registers the id; None where Gymnasium does
    :ivar notes: for people
    """

    environment: str
    module: str | None
    notes: list[str]


class _Family(NamedTuple):
    ids: str
    module: str
    had_by: str


_FAMILIES = (
    _Family(r"(ale_py:)?ALE/.*|.*NoFrameskip-v\d+", "ale_py", "pip install ale-py"),
    _Family(r"(MiniGrid|BabyAI)-.*", "minigrid", "pip install minigrid"),
    _Family(r"Panda(Reach|Push|Slide|PickAndPlace|Stack|Flip).*", "panda_gym", "pip install panda-gym"),
    _Family(r".*NoVel-v\d+", "rl_zoo3.import_envs", "pip install rl_zoo3"),
    _Family(r"(?!Minitaur).*BulletEnv-v\d+", "pybullet_envs_gymnasium", "pip install pybullet_envs_gymnasium"),
    _Family(r"(Fetch|Hand(Reach|Manipulate)|PointMaze|AntMaze|AdroitHand|FrankaKitchen).*", "gymnasium_robotics",
            "pip install gymnasium-robotics"),
    _Family(r"(parking|highway|merge|roundabout|intersection|racetrack|exit|u-turn|two-way|lane-keeping)(-.*)?-v\d+",
            "highway_env", "pip install highway-env"),
    _Family(r"donkey-.*", "gym_donkeycar", "install it from its repository"),
    _Family(r"RocketLander-v\d+", "rocket_lander_gym", "install it from its repository"),
    _Family(r"flappy-bird.*|FlappyBird.*", "flappy_bird_gymnasium", "pip install flappy-bird-gymnasium"),
)  # fmt: skip

#: Former ids, what they are now, and why.
_CHANGED = (
    (r"LunarLander(Continuous)?(NoVel)?-v[012]", r"-v\d+$", "-v3", "Gymnasium 1.0 mended its physics"),
    (r"CarRacing-v[012]", r"-v\d+$", "-v3", "Gymnasium 1.0 mended it"),
    (r"BipedalWalker(Hardcore)?-v[012]", r"-v\d+$", "-v3", "earlier versions are gone"),
    (r"Pendulum(NoVel)?-v0", r"-v\d+$", "-v1", "v0 is gone"),
    (r"(Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|InvertedPendulum|InvertedDoublePendulum|Reacher|Swimmer|Walker2d)"
     r"-v[123]", r"-v\d+$", "-v4", "earlier versions need mujoco-py, which is no longer maintained"),
    (r"Pusher-v[1234]", r"-v\d+$", "-v5", "earlier versions need mujoco-py, or MuJoCo before 3"),
    (r"Fetch(Reach|Push|Slide|PickAndPlace)(Dense)?-v[123]", r"-v\d+$", "-v4",
     "gymnasium-robotics mended its resets, and v1 needs mujoco-py"),
    (r"HandReach(Dense)?-v[012]", r"-v\d+$", "-v3", "earlier versions need mujoco-py"),
    (r"HandManipulate.*-v0", r"-v\d+$", "-v1", "v0 needs mujoco-py"),
    (r"Panda.*-v[12]", r"-v\d+$", "-v3", "panda-gym 3 is the one for Gymnasium"),
)  # fmt: skip
#: Of Gymnasium itself.
_GYMNASIUM = re.compile(
    r"(phys2d/|tabular/)?(Acrobot|Ant|BipedalWalker(Hardcore)?|Blackjack|CarRacing|CartPole|CliffWalking|FrozenLake(8x8)?|"
    r"HalfCheetah|Hopper|Humanoid(Standup)?|Inverted(Double)?Pendulum|LunarLander(Continuous)?|MountainCar(Continuous)?|"
    r"Pendulum|Pusher|Reacher|Swimmer|Taxi|Walker2d)-v\d+"
)


def find(name: str) -> Place:
    """Where the environment that a zoo file calls ``name`` is to be had today."""
    environment, notes = name, []
    for former, version, now, why in _CHANGED:
        if re.fullmatch(former, name):
            environment = re.sub(version, now, name)
            notes.append(f"{name} is {environment} here, whose results differ: {why}")
            break
    family = next((each for each in _FAMILIES if re.fullmatch(each.ids, environment)), None)
    if family is not None:
        notes.append(f"environment.module: {family.module} registers it: {family.had_by}")
        return Place(environment, family.module, notes)
    if ":" not in environment and not _GYMNASIUM.fullmatch(environment):
        notes.append("environment.module: which module registers it is not known here: install it, and name it there")
    return Place(environment, None, notes)
