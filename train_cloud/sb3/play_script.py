"""Plays the trained model: python play.py [episodes] [--render | --film FILE.mp4].

Needs stable-baselines3, gymnasium, what the algorithm and the environment come from, and for a film imageio-ffmpeg;
train-cloud is not needed. Code of the run's own is looked for where it lay when the run was trained, in the folder that
this is started from, and in the one that --code names.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

# What was trained; written when the model was exported.
RUN: dict[str, Any] = {}

HERE = Path(__file__).resolve().parent


def main() -> None:
    asked = _arguments()
    for folder in (RUN["code_folder"], asked.code):
        if folder is not None and Path(folder).is_dir():
            sys.path.insert(0, str(folder))
    sys.path.append(str(Path.cwd()))  # last: it may hold anything
    if asked.film or asked.render:
        _choose_drivers(asked.film is not None)
    mode = "human" if asked.render else "rgb_array" if asked.film else None
    try:
        for needed in _own_modules():  # before all else: it takes seconds
            importlib.import_module(needed)
        film = _Film(asked.film) if asked.film else None
        play = _play_together if RUN["learner_of"] else _play
        play(asked, mode, film)
        if film is not None:
            film.close()
    except ModuleNotFoundError as error:
        _give_up(_missing(error))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Play the trained model.")
    parser.add_argument("episodes", type=int, nargs="?", help="how many; 5 by default, of a film 1")
    parser.add_argument("--seed", type=int, help="of the first episode; each has one more than the one before")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--render", action="store_true", help="show the episodes in a window")
    shown.add_argument("--film", metavar="FILE.mp4", help="film the episodes")
    parser.add_argument("--code", metavar="DIR", help="folder of the run's own code")
    parser.add_argument("--env", metavar="ID", help="another environment with the same spaces")
    asked = parser.parse_args()
    asked.env = asked.env or RUN["environment"]["id"]
    if asked.env is None:
        parser.error("the run's script made its environment itself: name it with --env ID")
    if asked.film and Path(asked.film).suffix != ".mp4":
        parser.error("--film: give a name that ends in .mp4")
    if asked.episodes is None:
        asked.episodes = 1 if asked.film else 5
    return asked


def _named(reference: str) -> Any:
    """What ``module:attribute`` stands for."""
    module, _, path = reference.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _play(asked: argparse.Namespace, mode: str | None, film: _Film | None) -> None:
    import gymnasium
    import numpy as np
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

    environment = RUN["environment"]

    def make() -> Any:
        if environment["module"]:
            importlib.import_module(environment["module"])
        arguments = {**environment["kwargs"], **({"render_mode": mode} if mode else {})}
        try:
            env = gymnasium.make(asked.env, **arguments)
        except gymnasium.error.UnregisteredEnv as error:
            _give_up(f"{error} Name the module that registers it before the id: --env module:{asked.env}")
        except TypeError as error:
            if mode is None or "render_mode" not in str(error):
                raise
            _give_up(f"this environment cannot be drawn: it takes no render_mode ({error})")
        for wrapper in environment["wrappers"]:
            env = _named(wrapper)(env)
        return _Watched(env, mode, film)

    class _Watched(gymnasium.Wrapper):
        """Draws before a VecEnv begins the next episode."""

        def __init__(self, env: Any, mode: str | None, film: _Film | None) -> None:
            super().__init__(env)
            self.mode, self.film = mode, film

        def reset(self, **arguments: Any) -> Any:
            if environment["call"] and asked.env == environment["id"]:
                name, *given = environment["call"]
                self.env.get_wrapper_attr(name)(*given)
            found = super().reset(**arguments)
            self._draw(first=True)
            return found

        def step(self, action: Any) -> Any:
            found = super().step(action)
            self._draw()
            return found

        def _draw(self, first: bool = False) -> None:
            if self.mode == "human":
                self.env.render()
            elif self.film is not None and not (first and self.film.frames):
                self.film.add(self.env.render(), self.env.metadata.get("render_fps"))

    kind = _named(RUN["algorithm"])
    env: Any = DummyVecEnv([make])
    if environment["frame_stack"]:
        env = VecFrameStack(env, environment["frame_stack"])
    if (HERE / "vecnormalize.pkl").exists():
        env = VecNormalize.load(str(HERE / "vecnormalize.pkl"), env)
        env.training = env.norm_reward = False
    model = kind.load(HERE / "model.zip", device="cpu")
    masked = "action_masks" in inspect.signature(model.predict).parameters
    for episode in range(asked.episodes):
        if asked.seed is not None:
            env.seed(asked.seed + episode)
        observation, total, length, done = env.reset(), 0.0, 0, False
        state, dones = None, np.ones(1, bool)  # of a recurrent policy
        while not done:
            masks = {"action_masks": np.stack(env.env_method("action_masks"))} if masked else {}
            action, state = model.predict(observation, state=state, episode_start=dones, deterministic=True, **masks)
            observation, rewards, dones, _ = env.step(action)
            total, length, done = total + float(rewards[0]), length + 1, bool(dones[0])
        print(f"episode {episode + 1}: return {total:.2f} in {length} steps")
    env.close()


def _play_together(asked: argparse.Namespace, mode: str | None, film: _Film | None) -> None:
    environment, learner_of = RUN["environment"], RUN["learner_of"]
    if environment["module"]:
        importlib.import_module(environment["module"])
    kind = _named(RUN["algorithm"])
    arguments = {**environment["kwargs"], **({"render_mode": mode} if mode else {})}
    try:
        env = _named(asked.env)(**arguments)
    except TypeError as error:
        if mode is None or "render_mode" not in str(error):
            raise
        _give_up(f"this environment cannot be drawn: it takes no render_mode ({error})")
    for wrapper in environment["wrappers"]:
        env = _named(wrapper)(env)
    models = {name: kind.load(HERE / name / "model.zip", device="cpu") for name in set(learner_of.values())}
    for episode in range(asked.episodes):
        observations, _ = env.reset(seed=None if asked.seed is None else asked.seed + episode)
        totals = dict.fromkeys(learner_of, 0.0)
        while env.agents:
            if film is not None:
                film.add(env.render(), env.metadata.get("render_fps"))
            elif mode == "human":
                env.render()
            actions = {
                name: models[learner_of[name]].predict(observations[name], deterministic=True)[0] for name in env.agents
            }
            observations, rewards, _, _, _ = env.step(actions)
            for name, reward in rewards.items():
                totals[name] += float(reward)
        shown = ", ".join(f"{name} {total:.2f}" for name, total in totals.items())
        print(f"episode {episode + 1}: {shown}")
    env.close()


class _Film:
    """H.264 in an MP4 file, frame by frame."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        if not self._path.absolute().parent.is_dir():
            _give_up(f"--film: there is no folder {self._path.absolute().parent}")
        self._ffmpeg = importlib.import_module("imageio_ffmpeg")
        self._writer: Any = None
        self._first: Any = None
        self.frames = 0
        self._changes = False

    def add(self, frame: Any, fps: float | None) -> None:
        import numpy as np

        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] < 3:
            found = getattr(frame, "shape", type(frame).__name__)
            _give_up(f"this environment cannot be filmed: render() gives {found}, not (height, width, 3)")
        height, width = (side // 2 * 2 for side in frame.shape[:2])  # yuv420p has a colour for each four pixels
        picture = np.ascontiguousarray(frame[:height, :width, :3], dtype=np.uint8)
        if self._writer is None:
            self._first = picture.copy()
            self._writer = self._ffmpeg.write_frames(
                str(self._path), (width, height), fps=fps or 30, codec="libx264", macro_block_size=1,
                ffmpeg_log_level="error",
            )  # fmt: skip
            self._writer.send(None)
        self._changes = self._changes or not np.array_equal(picture, self._first)
        self._writer.send(picture)
        self.frames += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        print(f"{self._path}: {self.frames} frames")
        if not self._changes:
            drivers = {name: os.environ.get(name, "unset") for name in ("SDL_VIDEODRIVER", "MUJOCO_GL")}
            print(f"all frames are equal: another driver may draw more than {drivers}", file=sys.stderr)


def _choose_drivers(filmed: bool) -> None:
    """Without a screen: set before anything draws, and only where nobody has decided."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    screen = sys.platform != "linux" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if screen:
        return
    if not filmed:
        _give_up("--render: there is no screen here (DISPLAY is not set): film it with --film FILE.mp4")
    os.environ.setdefault("SDL_VIDEODRIVER", "offscreen")
    os.environ.setdefault("MUJOCO_GL", "egl")


def _own_modules() -> list[str]:
    """Of the environment, beside Gymnasium's."""
    environment = RUN["environment"]
    named = [environment["module"], *environment["wrappers"], *([environment["id"]] if RUN["learner_of"] else [])]
    return [each.partition(":")[0] for each in named if each]


def _missing(error: ModuleNotFoundError) -> str:
    name = (error.name or "").partition(".")[0]
    if name == "imageio_ffmpeg":
        return "a film needs imageio-ffmpeg: pip install imageio-ffmpeg"
    if name in {each.partition(".")[0] for each in _own_modules()}:
        lay = f", which lay in {RUN['code_folder']}" if RUN["code_folder"] else ""
        return f"there is no module {name} here: install it, or name the folder of the run's code with --code DIR{lay}"
    return f"{error}: install it; requirements.lock beside this file has the versions that it was trained with"


def _give_up(words: str) -> NoReturn:
    print(f"play.py: {words}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
