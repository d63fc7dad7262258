"""Plays the episodes of an evaluation with an exported model, one after the other, as somebody with that model would.

The model is loaded from the same ``model.zip`` and ``vecnormalize.pkl`` that people take home, so whoever plays it with
plain Stable-Baselines3 on the same seeds finds the same returns.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from train_cloud.config import Environment, RunFile
from train_cloud.config.current import current, training
from train_cloud.config.evaluation import Category, Evaluation, below, level_paths
from train_cloud.envs.copies import copied, copied_whole
from train_cloud.envs.curriculum import AtLevel, method_of
from train_cloud.envs.make import FAILURES, load_object, refusing
from train_cloud.envs.trial import sample
from train_cloud.errors import InputError, NotYet, TrainCloudError
from train_cloud.evaluate import rendering
from train_cloud.evaluate.rendering import Settings
from train_cloud.evaluate.results import Episode
from train_cloud.evaluate.routes import Route, draw, read_centreline, read_map
from train_cloud.evaluate.video import Film
from train_cloud.sb3.environment import at_start
from train_cloud.sb3.success import succeeded
from train_cloud.sb3.vector_environments import MakeEnv

log = logging.getLogger(__name__)

#: Names under which environments report collisions: highway-env; F1TENTH; MetaDrive, CARLA and many others.
COLLISIONS = ("crashed", "collisions", "collision", "crash", "is_collision")
VIDEOS = "videos"
ROUTES = "route_visualizations"
#: Random steps of a trial of a renderer, and seconds that it may take with all that it has to import.
_LOOK_STEPS, _LEAST_LOOKS, _LOOK_SECONDS = 30, 3, 60.0
_STILL = "the picture never changes"


@dataclass(frozen=True)
class Player:
    """Everything that a process needs to play a category.

    :ivar model: folder with ``model.zip`` and, where the run normalises, ``vecnormalize.pkl``
    :ivar algorithm: ``module:Class`` of the model
    :ivar out: artifact folder, in which videos and routes are put
    :ivar rendering: what the run's videos were drawn with the last time
    """

    run_id: str
    timesteps: int
    model: Path
    algorithm: str
    environment: Environment
    evaluation: Evaluation
    code_folder: Path | None
    out: Path
    rendering: Settings | None = None


class Played(NamedTuple):
    """A category's episodes, what could not be done, and why there is nothing to be seen in its videos, or None."""

    episodes: tuple[Episode, ...]
    warnings: tuple[str, ...]
    unseen: str | None


class Performance(NamedTuple):
    """Every category's episodes, what could not be done, and with which drivers the videos were drawn."""

    episodes: dict[str, tuple[Episode, ...]]
    warnings: tuple[str, ...]
    rendering: Settings | None


def play(player: Player) -> Performance:
    """Play every category.

    Where a category's videos show nothing, it is played again with other drivers, in a fresh process.

    :raises InputError: the environment, or something of the user's code, refuses
    """
    tried = rendering.candidates(os.environ, player.rendering)
    used, drawn = tried[0], False
    episodes: dict[str, tuple[Episode, ...]] = {}
    warnings: list[str] = []
    for name in player.evaluation.categories:
        fresh = player.evaluation.separate or used is not tried[0]
        played = _play_with(used, player, name) if fresh else _play_here(used, player, name)
        if played.unseen is not None:
            # A model may well stand still, and here a driver may have been chosen long ago: then it is not the driver.
            again = [used] if played.unseen == _STILL or player.evaluation.mode == "inline" else []
            found, told = _look_for(player, name, [*again, *(each for each in tried if each is not used)])
            if found is not None and (found is not used or played.unseen != _STILL):
                used, played = found, _play_with(found, player, name)
            if played.unseen is not None and (found is None or played.unseen != _STILL):
                warnings.append(f"{_videos_of(name, played)}: {played.unseen} with {rendering.shown(used)}{told}")
                log.warning("%s", warnings[-1])
        drawn = drawn or any(episode.video for episode in played.episodes)
        episodes[name] = played.episodes
        warnings.extend(played.warnings)
    return Performance(episodes, tuple(dict.fromkeys(warnings)), used if drawn else None)


def _videos_of(name: str, played: Played) -> str:
    return f"{'videos' if any(episode.video for episode in played.episodes) else 'no videos'} of {name}"


def _play_here(settings: Settings, player: Player, name: str) -> Played:
    with rendering.applied(settings):
        return play_category(player, name)


def _play_with(settings: Settings, player: Player, name: str) -> Played:
    played: Played = rendering.in_a_fresh_process(settings, _trained_for, current(), play_category, player, name)
    return played


def _look_for(player: Player, name: str, tried: list[Settings]) -> tuple[Settings | None, str]:
    """The first settings with which something is to be seen, and what became of the others."""
    told: dict[str, list[str]] = {}
    for settings in tried:
        arguments = (current(), look, player, name)
        try:
            unseen = rendering.in_a_fresh_process(settings, _trained_for, *arguments, seconds=_LOOK_SECONDS)
        except TrainCloudError as error:
            unseen = str(error)
        if unseen is None:
            log.info("%s is drawn with %s", name, rendering.shown(settings))
            return settings, ""
        told.setdefault(unseen, []).append(rendering.shown(settings))
    return None, "".join(f"; with {' or '.join(each)}: {unseen}" for unseen, each in told.items())


def _trained_for(run_file: RunFile | None, function: Any, *arguments: Any) -> Any:
    """In another process, where the same run file is to be the one that is trained."""
    if run_file is None:
        return function(*arguments)
    with training(run_file):
        return function(*arguments)


def look(player: Player, name: str) -> str | None:
    """Play a few random steps of a category: why there is nothing to be seen, or None."""
    category = player.evaluation.categories[name]
    level = next(iter(level_paths(category, player.code_folder, name)), None)
    drawn = _Drawn(player, name, [])
    with refusing("evaluation", name, "playing it raises"):
        env = drawn.make(category, level)
        if drawn.unseen is None and drawn.films:
            drawn.unseen = _look(drawn.watched)
        env.close()
    return drawn.unseen or next(iter(drawn.warnings), None)


def _look(env: gymnasium.Env[Any, Any]) -> str | None:
    seen, space = rendering.Seen(), env.action_space
    space.seed(0)
    env.reset(seed=0)
    began = time.monotonic()
    for step in range(_LOOK_STEPS):
        seen.add(rendering.as_picture(env.render()))
        if seen.changes and not seen.blank:
            return None
        if step > _LEAST_LOOKS and time.monotonic() - began > _LOOK_SECONDS / 2:
            break
        masks = env.get_wrapper_attr("action_masks")() if env.has_wrapper_attr("action_masks") else None
        _, _, terminated, truncated, _ = env.step(sample(space, masks))
        if terminated or truncated:
            env.reset()
    return seen.blank or (_STILL if seen.still else None)


def play_category(player: Player, name: str) -> Played:
    """The episodes of one category."""
    torch.set_num_threads(1)
    category, warnings = player.evaluation.categories[name], list[str]()
    levels = level_paths(category, player.code_folder, name)
    seeds = category.seeds or tuple(range(player.evaluation.seed, player.evaluation.seed + player.evaluation.episodes))
    if len(seeds) < len(levels):
        fix = f"the category {name} has {len(levels)} levels: give at least as many, so that each is played"
        raise InputError("evaluation.episodes", len(seeds), fix)
    drawn = _Drawn(player, name, warnings)
    episodes = []
    with refusing("evaluation", name, "playing it raises"):
        kind = load_object(player.algorithm, "algorithm", BaseAlgorithm)
        model = kind.load(player.model / "model.zip", device="cpu")
        for place, level in enumerate(levels or (None,)):
            env = drawn.make(category, level)
            for index in range(place, len(seeds), max(1, len(levels))):
                episodes.append(_play(drawn, env, model, name, index, seeds[index], level))
            env.close()
    return Played(tuple(sorted(episodes, key=lambda episode: episode.index)), tuple(warnings), drawn.fault())


class _Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Innermost of what is put around the environment: sees each step before a VecEnv resets it."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.film: Film | None = None
        self.route: Route | None = None
        self.info: Mapping[str, Any] = {}
        self.hits: list[float] = []
        self.collisions: str | None = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        if self.film is not None and not self.film.frames:  # a VecEnv begins the next episode at once
            self.film.add(self.env)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        # At once: the environment may change this very dict, and does so at the reset that a VecEnv makes of an end.
        self.info = copied_whole(info) if terminated or truncated else copied(info)
        if self.film is not None:
            self.film.add(self.env)
        if self.route is not None:
            self.route.add(self.env, info)
        for key in (self.collisions,) if self.collisions else COLLISIONS:
            if key in info:
                self.hits.append(float(np.sum(info[key])))
                break
        return observation, reward, terminated, truncated, info


class _Drawn:
    """A category's environments; and whether videos and routes can be made of them."""

    def __init__(self, player: Player, name: str, warnings: list[str]) -> None:
        self.player = player
        self.name = name
        self.warnings = warnings
        self.films = player.evaluation.video is not None
        self.unseen: str | None = None
        """Why there is nothing to be seen in a video, or none could be made."""
        self.moves: bool | None = None
        """Whether the picture changes in any video; None before the first."""
        routes = player.evaluation.routes
        self.centreline = self.map = None
        if routes is not None and isinstance(routes.centreline, Path):
            field = "evaluation.routes.centreline"
            self.centreline = read_centreline(below(player.code_folder, routes.centreline, field))
        if routes is not None and routes.map is not None:
            self.map = read_map(below(player.code_folder, routes.map, "evaluation.routes.map"))
        self.watched: _Watched

    def make(self, category: Category, level: Path | None) -> VecEnv:
        kwargs = {**self.player.environment.kwargs, **category.kwargs}
        if level is not None and category.argument is not None:
            kwargs[category.argument] = str(level)
        env = self._render(kwargs) if self.films else None
        env = env if env is not None else self._env(kwargs)
        if category.method is not None:
            env = at_category(env, category, self.name)
        self.watched = _Watched(env)
        collisions = self.player.evaluation.collisions
        self.watched.collisions = collisions.removeprefix("info.") if collisions else None
        vec_env: VecEnv = DummyVecEnv([lambda: self.watched])
        if self.player.environment.frame_stack is not None:
            vec_env = VecFrameStack(vec_env, self.player.environment.frame_stack)
        normalizer = self.player.model / "vecnormalize.pkl"
        if normalizer.exists():
            normalized = VecNormalize.load(str(normalizer), vec_env)
            normalized.training = normalized.norm_reward = False
            vec_env = normalized
        return vec_env

    def _env(self, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
        return MakeEnv(self.player.environment.model_copy(update={"kwargs": dict(kwargs)}))()

    def _render(self, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any] | None:
        """The environment with a renderer; None where it has none, which costs the videos and nothing else."""
        try:
            env = self._env({**kwargs, "render_mode": "rgb_array"})
        except (InputError, *FAILURES) as error:
            knows_none = isinstance(error.__cause__, TypeError) and "render_mode" in str(error.__cause__)
            because = "its class has no render_mode: give it that argument, and a render() that returns a picture"
            self._no_films(because if knows_none else str(error), final=knows_none)
            return None
        try:
            env.reset(seed=0)
            frame = env.render()
        except FAILURES as error:
            modes = env.metadata.get("render_modes") or ["rgb_array"]
            env.close()
            because = f"render() raises {type(error).__name__}: {error}"
            self._no_films(because, final=isinstance(error, NotImplementedError) or "rgb_array" not in modes)
            return None
        try:
            rendering.as_picture(frame)
        except ValueError as error:
            env.close()
            self._no_films(str(error), final=True)
            return None
        return env

    def _no_films(self, because: str, *, final: bool) -> None:
        """:param final: no other driver would change it"""
        self.films = False
        if not final:
            self.unseen = self.unseen or because
            return
        self.warnings.append(f"no videos of {self.name}: {because}")
        log.warning("%s", self.warnings[-1])

    def look_at(self, film: Film) -> None:
        """Note what a finished film shows."""
        if film.seen.blank:
            self.unseen = film.seen.blank
        self.moves = self.moves or not film.seen.still

    def fault(self) -> str | None:
        """Why nothing is to be seen in the category's videos, now that all are made."""
        return self.unseen or (_STILL if self.moves is False else None)


def _play(
    drawn: _Drawn, env: VecEnv, model: BaseAlgorithm, category: str, index: int, seed: int, level: Path | None
) -> Episode:
    player, watched = drawn.player, drawn.watched
    settings = player.evaluation
    watched.hits, watched.info = [], {}
    video = settings.video
    film = drawn.films and video is not None and index < video.per_category
    watched.film = Film(player.out / VIDEOS / category, video, watched.env) if film and video is not None else None
    route = settings.routes if settings.routes is not None and index < settings.routes.per_category else None
    watched.route = Route(route, watched.env) if route is not None else None

    env.seed(seed)
    observation: Any = env.reset()
    state, started = None, np.ones(1, dtype=bool)
    total = seconds = 0.0
    length, done = 0, False
    infos: list[dict[str, Any]] = [{}]
    masked = "action_masks" in inspect.signature(model.predict).parameters
    while not done and (settings.max_steps is None or length < settings.max_steps):
        arguments = {"action_masks": np.stack(env.env_method("action_masks"))} if masked else {}
        began = time.perf_counter()
        action, state = model.predict(
            observation, state=state, episode_start=started, deterministic=settings.deterministic, **arguments
        )
        seconds += time.perf_counter() - began
        observation, rewards, dones, infos = env.step(action)
        total, length, done, started = total + float(rewards[0]), length + 1, bool(dones[0]), dones
    terminated = done and not infos[0].get("TimeLimit.truncated", False)
    success = succeeded(settings.success, "evaluation.success", total, length, watched.info)
    said = {True: "success", False: "failure", None: "episode"}[success]
    name = f"{category}_{index:03d}_{said}"
    file = None
    if watched.film is not None:
        file = watched.film.close(name, drawn.warnings)
        drawn.look_at(watched.film)
    picture = None
    if watched.route is not None:
        picture = player.out / ROUTES / f"route_step{player.timesteps:09d}_{category}_{_level_id(level, seed)}.png"
        facts = f"{player.run_id}, {player.timesteps:,} timesteps · {category}, {_level_id(level, seed)}"
        title = f"{facts}\nreturn {total:.2f} in {length} steps{'' if success is None else f' · {said}'}"
        if not draw(watched.route, picture, title, drawn.centreline, drawn.map):
            drawn.warnings.append(f"no route of {category}: nothing reports a position, see evaluation.routes.position")
            picture = None
        elif watched.route.is_a_point:
            drawn.warnings.append(f"a route of {category} is one point: its position is the same at all {length} steps")
    watched.film = watched.route = None
    return Episode(
        category=category,
        index=index,
        seed=seed,
        level=level.stem if level is not None else None,
        episode_return=total,
        length=length,
        terminated=terminated,
        success=success,
        collisions=_collisions(watched.hits),
        inference_ms=1000 * seconds / length,
        video=file and file.relative_to(player.out).as_posix(),
        route=picture and picture.relative_to(player.out).as_posix(),
    )


def _level_id(level: Path | None, seed: int) -> str:
    return f"seed{seed}" if level is None else level.stem


def _collisions(hits: list[float]) -> float | None:
    """Steps with a collision, or the count that the environment itself keeps, which never falls and exceeds 1."""
    if not hits:
        return None
    counted = max(hits) > 1 and all(later >= earlier for earlier, later in itertools.pairwise(hits))
    return hits[-1] if counted else float(sum(hit > 0 for hit in hits))


def check(run_file: RunFile) -> None:
    """Whether every category can be made, with the spaces that the model is trained on; before anything is trained.

    :raises InputError: naming the category
    """
    if run_file.evaluation is None:
        return
    settings = run_file.evaluated
    if run_file.algorithm == "sac_multiagent":
        fix = "not for several agents in this version: leave it out, and play each agent's exported model.zip"
        raise NotYet("evaluation", "sac_multiagent", fix)
    environment = settings.environment or run_file.environment
    if environment is None:
        fix = f"the script {run_file.entry_point} makes its own environment: say here which to evaluate on"
        raise InputError("evaluation.environment", None, fix)
    for condition in (settings.success, settings.collisions or ""):
        if ":" in condition:
            load_object(condition, "evaluation")
    trained = None
    if run_file.environment is not None and not settings.separate:
        trained = _spaces(at_start(run_file.environment, run_file.curriculum))
    for name, category in settings.categories.items():
        levels = level_paths(category, run_file.code.folder, name)
        kwargs = {**environment.kwargs, **category.kwargs}
        if levels and category.argument is not None:
            kwargs[category.argument] = str(levels[0])
        if trained is None:
            continue
        try:
            found = _spaces(environment.model_copy(update={"kwargs": kwargs}), category, name)
        except InputError as error:
            raise InputError(f"evaluation.categories.{name}", error.value, error.fix) from error
        if found != trained:
            fix = f"its spaces are {found}, and the training's {trained}: give arguments that keep them"
            raise InputError(f"evaluation.categories.{name}", dict(category.kwargs), fix)


def at_category(env: gymnasium.Env[Any, Any], category: Category, name: str) -> gymnasium.Env[Any, Any]:
    """An environment whose method is called before each reset, as the category says.

    :raises InputError: it has no such method
    """
    assert category.method is not None
    field = f"evaluation.categories.{name}.method"
    method_of(env, category.method, field)
    return AtLevel(env, ((category.method, category.args),), 0, [field])


def _spaces(environment: Environment, category: Category | None = None, name: str = "") -> tuple[Any, Any]:
    env = MakeEnv(environment)()
    try:
        if category is not None and category.method is not None:
            env = at_category(env, category, name)
            env.reset(seed=0)
        return env.observation_space, env.action_space
    finally:
        env.close()
