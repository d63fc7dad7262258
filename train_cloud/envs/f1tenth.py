"""The F1TENTH gym made fit for training: one car as a Gymnasium environment, several as a ``ParallelEnv``.

What the gym (``f1tenth_gym``, branch v1.0.0 and its descendants) leaves to others is done here: flat observations and
actions between -1 and 1, a reward for each car, a time limit, an end for each car, tracks without a download, and a
state that can be saved. Importing this registers ``F1Tenth-v0``::

    environment: {id: F1Tenth-v0, module: train_cloud.envs.f1tenth, kwargs: {track: oval}}
    environment: {id: "train_cloud.envs.f1tenth:parallel_env", kwargs: {track: circuit, cars: 2}}
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from train_cloud.envs.tracks import Track, make_track, progress
from train_cloud.errors import InputError

Floats = npt.NDArray[np.float32]

_STEERING = 0.4189  # rad, the gym's limit
_STEP = 0.01  # seconds of the gym's physics
_REPEAT = 5  # steps of physics per action: a car's controller runs at 20 Hz
_BEAMS = 1080  # of the gym's LiDAR
_RANGE = 10.0  # metres; what is farther away is shown as this
_VELOCITIES = 4  # forward, sideways, turning, steering angle
_GAP = 2.5  # metres between cars at the start
_CRASH = 5.0  # what a crash costs, in metres of progress
_FEATURES = ["scan", "linear_vel_x", "linear_vel_y", "ang_vel_z", "delta", "pose_x", "pose_y"]


class _Race:
    """A race of some cars in the gym: what one car's and several cars' environment have in common.

    :param track: ``oval`` or ``circuit``
    :param track_seed: of the circuit
    :param width: of the track, metres
    :param beams: of the scan that the car sees; evenly taken from the gym's 1080
    :param max_speed: m/s at the action 1; the action -1 stands still
    :param time_limit: seconds of an episode
    :param random_start: begin anywhere on the track; otherwise at its first point
    """

    #: What the gym keeps on its class: its first environment decides for the process.
    _settings: tuple[Any, ...] | None = None

    def __init__(
        self,
        cars: int,
        track: str = "oval",
        track_seed: int = 0,
        width: float = 2.2,
        beams: int = 36,
        max_speed: float = 6.0,
        time_limit: float = 30.0,
        random_start: bool = True,
    ) -> None:
        _check(beams=beams, max_speed=max_speed, time_limit=time_limit)
        self.track = make_track(track, seed=track_seed, width=width)
        if cars * _GAP > self.track.length:
            raise InputError("environment.kwargs.cars", cars, f"only {int(self.track.length / _GAP)} fit on this track")
        self._claim((track, track_seed if track == "circuit" else 0, width))
        self.cars, self.max_speed, self.random_start = cars, max_speed, random_start
        self.beams = np.linspace(0, _BEAMS - 1, beams).round().astype(int)
        self.most_steps = round(time_limit / _STEP / _REPEAT)
        self.observation_space = spaces.Box(-1.0, 1.0, (beams + _VELOCITIES,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.gym: Any = _make_gym(self.track, cars)
        self.steps = 0
        self.along = np.zeros(cars)
        self.driven = np.zeros(cars)

    @classmethod
    def _claim(cls, settings: tuple[Any, ...]) -> None:
        """:raises InputError: this process has an environment with another track"""
        if _Race._settings is not None and _Race._settings != settings:
            names = ("track", "track_seed", "width")
            had = dict(zip(names, _Race._settings, strict=True))
            fix = (
                f"this process has an environment with {had} already, and the gym keeps its map and LiDAR for all "
                "environments of a process: use one track in each, another process for another"
            )
            raise InputError("environment.kwargs", dict(zip(names, settings, strict=True)), fix)
        _Race._settings = settings

    def reset(self, random: np.random.Generator) -> dict[int, Floats]:
        """:return: observations by car"""
        start = random.uniform(0, self.track.length) if self.random_start else 0.0
        sides = random.uniform(-0.15, 0.15, self.cars) * self.track.width
        poses = [self.track.pose(start - number * _GAP, sides[number]) for number in range(self.cars)]
        # Without a seed: the gym would seed NumPy's global generator with it.
        seen, _ = self.gym.reset(options={"poses": np.array(poses)})
        self.steps = 0
        self.along = np.array([self.track.along(pose[0], pose[1]) for pose in poses])
        self.driven = np.zeros(self.cars)
        return {number: self._observation(seen, number) for number in range(self.cars)}

    def step(self, actions: Mapping[int, Any]) -> tuple[dict[int, Floats], dict[int, float], dict[int, bool], bool]:
        """:return: observations, rewards and crashes of the cars that act; whether time is up. The others stand."""
        controls = np.zeros((self.cars, 2))
        for number, action in actions.items():
            steering, speed = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
            controls[number] = steering * _STEERING, (speed + 1) / 2 * self.max_speed
        crashed = dict.fromkeys(actions, False)
        for _ in range(_REPEAT):
            seen, *_ = self.gym.step(controls)
            for number in actions:
                crashed[number] = crashed[number] or bool(self.gym.sim.collisions[number])
        self.steps += 1
        rewards = {}
        for number in actions:
            car = seen[self.gym.agent_ids[number]]
            now = self.track.along(float(car["pose_x"]), float(car["pose_y"]), near=self.along[number])
            gained = float(progress(self.along[number], now, self.track.length))
            self.along[number] = now
            self.driven[number] += gained
            rewards[number] = gained - (_CRASH if crashed[number] else 0.0)
        observations = {number: self._observation(seen, number) for number in actions}
        return observations, rewards, crashed, self.steps >= self.most_steps

    def info(self, number: int) -> dict[str, Any]:
        x, y, heading = self.gym.sim.agent_poses[number]
        laps = self.driven[number] / self.track.length
        return {"x": float(x), "y": float(y), "heading": float(heading), "laps": float(laps)}

    def _observation(self, seen: Mapping[str, Any], number: int) -> Floats:
        car = seen[self.gym.agent_ids[number]]
        scan = np.clip(np.asarray(car["scan"])[self.beams] / _RANGE, 0.0, 1.0) * 2 - 1
        own = [
            car["linear_vel_x"] / 20.0,
            car["linear_vel_y"] / 20.0,
            car["ang_vel_z"] / (2 * np.pi),
            car["delta"] / _STEERING,
        ]
        return np.concatenate([scan, np.clip(own, -1.0, 1.0)]).astype(np.float32)

    def get_state(self) -> dict[str, Any]:
        """What changes while cars drive: numbers, arrays and generators of the gym's objects. Its map does not."""
        return {
            "race": (self.steps, self.along.copy(), self.driven.copy()),
            "gym": [_changing(part) for part in self._parts()],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.steps, along, driven = state["race"]
        self.along, self.driven = along.copy(), driven.copy()
        for part, saved in zip(self._parts(), state["gym"], strict=True):
            vars(part).update(saved)
        self.gym._update_state()

    def _parts(self) -> list[Any]:
        return [self.gym, self.gym.sim, *self.gym.sim.agents]

    def close(self) -> None:
        self.gym.close()


def _changing(part: Any) -> dict[str, Any]:
    kinds = (bool, int, float, np.ndarray, np.generic, np.random.Generator)
    return {name: value for name, value in vars(part).items() if isinstance(value, kinds)}


def _check(**values: float) -> None:
    rules = {"beams": (4, _BEAMS), "max_speed": (0.5, 20.0), "time_limit": (1.0, 3600.0)}
    for name, value in values.items():
        least, most = rules[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise InputError(f"environment.kwargs.{name}", value, f"give a number from {least:g} to {most:g}")
    if not isinstance(values["beams"], int):
        raise InputError("environment.kwargs.beams", values["beams"], "give a whole number")


def _make_gym(track: Track, cars: int) -> Any:
    """The gym's environment on ``track``, which it reads from files that are gone afterwards."""
    try:
        from f1tenth_gym.envs import F110Env
        from f1tenth_gym.envs.track import Raceline
        from f1tenth_gym.envs.track import Track as GymTrack
    except ModuleNotFoundError as error:
        fix = f"it needs {error.name}: pip install -r examples/f1tenth/requirements.txt"
        raise InputError("environment.id", "F1Tenth", fix) from error
    with tempfile.TemporaryDirectory(prefix="train-cloud-track-") as name:
        folder = Path(name)
        track.write(folder)
        occupied, _ = track.occupancy()
        made = GymTrack(
            spec=GymTrack.load_spec(track=track.name, filespec=str(folder / f"{track.name}_map.yaml")),
            filepath=str(folder / f"{track.name}_map"),
            ext=".png",
            occupancy_map=occupied.astype(np.float32),
            centerline=Raceline.from_centerline_file(folder / f"{track.name}_centerline.csv"),
            raceline=Raceline.from_raceline_file(folder / f"{track.name}_raceline.csv"),
        )
    config = {
        "map": made,
        "num_agents": cars,
        "timestep": _STEP,
        "control_input": ["speed", "steering_angle"],
        "observation_config": {"type": "features", "features": _FEATURES},
        "reset_config": {"type": "cl_grid_static"},
    }
    return F110Env(config=config)


class F1Tenth(gymnasium.Env[Floats, Floats]):
    """One car. The action is (steering, speed), the observation the scan, then forward, sideways and turning velocity
    and the steering angle, all between -1 and 1; the reward is metres of progress along the track's middle.

    Keyword arguments are :class:`_Race`'s.
    """

    def __init__(self, **settings: Any) -> None:
        self.race = _Race(1, **settings)
        self.observation_space, self.action_space = self.race.observation_space, self.race.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        super().reset(seed=seed)
        return self.race.reset(self.np_random)[0], self.race.info(0)

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        observations, rewards, crashed, late = self.race.step({0: action})
        return observations[0], rewards[0], crashed[0], late, self.race.info(0)

    def get_state(self) -> dict[str, Any]:
        return self.race.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.race.set_state(state)

    def close(self) -> None:
        self.race.close()


class F1TenthRace:
    """Several cars, ``car_0``, ``car_1``, …, as a ``ParallelEnv``: each sees, acts and is rewarded as one alone. Who
    crashes is out and stands in the others' way.

    :param cars: at least 2
    """

    def __init__(self, cars: int = 2, **settings: Any) -> None:
        if not isinstance(cars, int) or isinstance(cars, bool) or cars < 2:
            raise InputError("environment.kwargs.cars", cars, "give at least 2; one car is F1Tenth-v0 with sac")
        self.race = _Race(cars, **settings)
        self.possible_agents = [f"car_{number}" for number in range(cars)]
        self.agents: list[str] = []
        self.np_random = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.race.observation_space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.race.action_space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        return self._named(self.race.reset(self.np_random)), self._infos(self.agents)

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        living, numbers = self.agents, {name: number for number, name in enumerate(self.possible_agents)}
        observations, rewards, crashed, late = self.race.step({numbers[name]: actions[name] for name in living})
        terminations, truncations = self._named(crashed), dict.fromkeys(living, late)
        self.agents = [name for name in living if not (terminations[name] or late)]
        return self._named(observations), self._named(rewards), terminations, truncations, self._infos(living)

    def _named(self, each: Mapping[int, Any]) -> dict[str, Any]:
        return {self.possible_agents[number]: value for number, value in each.items()}

    def _infos(self, agents: list[str]) -> dict[str, dict[str, Any]]:
        return {name: self.race.info(self.possible_agents.index(name)) for name in agents}

    def get_state(self) -> dict[str, Any]:
        return {**self.race.get_state(), "agents": list(self.agents), "np_random": self.np_random}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.race.set_state(state)
        self.agents, self.np_random = list(state["agents"]), state["np_random"]

    def close(self) -> None:
        self.race.close()


def parallel_env(cars: int = 2, **settings: Any) -> F1TenthRace:
    """For ``environment.id: train_cloud.envs.f1tenth:parallel_env``."""
    return F1TenthRace(cars, **settings)


gymnasium.register("F1Tenth-v0", "train_cloud.envs.f1tenth:F1Tenth")
