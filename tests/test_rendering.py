"""Pictures: each kind of renderer that is installed draws without a screen; what draws nothing is noticed and named."""

from __future__ import annotations

import ctypes.util
import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import drawn
import imageio_ffmpeg
import numpy as np
import pytest
from paths import PYTHONPATH

from train_cloud.config import parse_run_file
from train_cloud.config.evaluation import Routes
from train_cloud.envs.copies import copied, copied_whole
from train_cloud.errors import InputError
from train_cloud.evaluate import rendering
from train_cloud.evaluate.routes import Route

FRAMES = 12


class Kind(NamedTuple):
    """A kind of renderer, an environment of it, and colours that must be in its pictures, each with its pixels."""

    environment: str
    module: str | None
    needs: tuple[str, ...]
    """Modules."""
    colours: dict[tuple[int, int, int], int]


KINDS = {
    "pygame": Kind("CartPole-v1", None, ("pygame",), {(255, 255, 255): 100_000, (0, 0, 0): 500, (202, 152, 101): 500}),
    "highway-env": Kind(
        "racetrack-v0", "highway_env", ("highway_env",), {(100, 100, 100): 100_000, (200, 200, 0): 100}
    ),
    "Box2D": Kind("LunarLander-v3", None, ("Box2D", "pygame"), {(0, 0, 0): 50_000, (128, 102, 230): 100}),
    "MuJoCo": Kind("HalfCheetah-v5", None, ("mujoco", "OpenGL"), {}),
    "ALE": Kind("ALE/Pong-v5", "ale_py", ("ale_py",), {(144, 72, 17): 10_000, (92, 186, 92): 50}),
    "minigrid": Kind("MiniGrid-Empty-8x8-v0", "minigrid", ("minigrid",), {(255, 76, 76): 100, (0, 255, 0): 500}),
    "OpenGL": Kind("Triangle-v0", "drawn", ("pygame", "OpenGL"), {(26, 51, 102): 1000}),
}
#: What MuJoCo and PyOpenGL load, and the Debian packages that have it.
LIBRARIES = {"EGL": "libegl1", "GL": "libgl1"}


def lacking(kind: Kind) -> str | None:
    modules = [name for name in kind.needs if importlib.util.find_spec(name) is None]
    packages = [package for name, package in LIBRARIES.items() if ctypes.util.find_library(name) is None]
    if modules:
        return f"pip install -e '.[environments,examples]': there is no {', '.join(modules)}"
    if "OpenGL" in kind.needs and packages:
        return f"apt-get install {' '.join(packages)}"
    return None


def frames_of(environment: str, module: str | None, kwargs: dict[str, Any]) -> Any:
    """Frames of random steps, as they come, copied."""
    import gymnasium

    if module is not None:
        imported = importlib.import_module(module)
        if module == "ale_py":
            gymnasium.register_envs(imported)
    env = gymnasium.make(environment, render_mode="rgb_array", **kwargs)
    env.reset(seed=0)
    env.action_space.seed(0)
    found = []
    for _ in range(FRAMES):
        found.append(rendering.as_picture(env.render()))
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    return np.stack(found)


def frames_with(settings: rendering.Settings, environment: str, module: str | None, **kwargs: Any) -> Any:
    return rendering.in_a_fresh_process(settings, frames_of, environment, module, kwargs, seconds=120)


@pytest.fixture(autouse=True)
def no_drivers_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SDL_VIDEODRIVER", "MUJOCO_GL", "PYOPENGL_PLATFORM", "PYGLET_HEADLESS", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_renderer_draws_without_a_screen(name: str) -> None:
    kind = KINDS[name]
    if (reason := lacking(kind)) is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    frames = frames_with(rendering.candidates({})[0], kind.environment, kind.module)
    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3
    seen = rendering.Seen()
    for frame in frames:
        seen.add(frame)
    assert seen.blank is None and seen.changes
    pixels = frames[-1].reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    found = {tuple(map(int, colour)): int(count) for colour, count in zip(colours, counts, strict=True)}
    assert len(found) >= 4 and pixels.max() > 150
    lacks = {colour: found.get(colour, 0) for colour, least in kind.colours.items() if found.get(colour, 0) < least}
    assert not lacks, (lacks, sorted(found.items(), key=lambda pair: -pair[1])[:8])


@pytest.mark.slow
def test_a_driver_that_draws_nothing_is_noticed() -> None:
    """highway-env's frames are black with SDL's dummy; so this is what the others are there for."""
    kind = KINDS["highway-env"]
    if (reason := lacking(kind)) is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    seen = rendering.Seen()
    for frame in frames_with({"SDL_VIDEODRIVER": "dummy"}, kind.environment, kind.module):
        seen.add(frame)
    assert seen.blank == "every frame is of one colour, RGB (0, 0, 0)"


def test_what_somebody_has_set_is_tried_first_and_everything_else_afterwards() -> None:
    nothing = rendering.candidates({})
    assert [(each["SDL_VIDEODRIVER"], each["MUJOCO_GL"]) for each in nothing] == [
        ("offscreen", "egl"),
        ("dummy", "osmesa"),
        (None, None),
        ("offscreen", "egl"),
    ]
    assert nothing[3]["PYOPENGL_PLATFORM"] == "egl" and nothing[0]["PYOPENGL_PLATFORM"] is None
    own = rendering.candidates({"SDL_VIDEODRIVER": "dummy", "MUJOCO_GL": "osmesa"})
    assert (own[0]["SDL_VIDEODRIVER"], own[0]["MUJOCO_GL"]) == ("dummy", "osmesa")
    assert {each["SDL_VIDEODRIVER"] for each in own} == {"dummy", "offscreen", None}
    assert {each["MUJOCO_GL"] for each in own} == {"osmesa", "egl", None}
    last = rendering.candidates({}, {"SDL_VIDEODRIVER": None, "MUJOCO_GL": "osmesa"})
    assert (last[0]["SDL_VIDEODRIVER"], last[0]["MUJOCO_GL"]) == (None, "osmesa") and last[1:] == nothing


def test_settings_hold_for_a_while_and_for_what_is_started_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with rendering.applied({"SDL_VIDEODRIVER": "offscreen", "MUJOCO_GL": None}):
        assert os.environ["SDL_VIDEODRIVER"] == "offscreen" and "MUJOCO_GL" not in os.environ
    assert os.environ["MUJOCO_GL"] == "glfw" and "SDL_VIDEODRIVER" not in os.environ
    assert rendering.in_a_fresh_process({"SDL_VIDEODRIVER": "dummy"}, os.getenv, "SDL_VIDEODRIVER") == "dummy"


def _refuse() -> None:
    raise InputError("a.field", 3, "give 4")


@pytest.mark.parametrize(
    ("function", "arguments", "error", "said"),
    [
        (_refuse, (), InputError, "a.field: 3: give 4"),
        (os._exit, (3,), rendering.Died, "exit code 3"),
        (os.abort, (), rendering.Died, "exit code -6"),
        (__import__, ("no_such_module",), ModuleNotFoundError, "no_such_module"),
    ],
)
def test_what_goes_wrong_in_a_fresh_process_is_raised_here(
    function: Any, arguments: tuple[Any, ...], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        rendering.in_a_fresh_process({}, function, *arguments)


def test_a_driver_that_hangs_is_ended() -> None:
    with pytest.raises(rendering.Died, match="more than 1 seconds"):
        rendering.in_a_fresh_process({}, __import__("time").sleep, 600, seconds=1.0)


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        (np.full((2, 2, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 2, 4), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 2, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 2), 7, np.int64), (7, 7, 7)),
        (np.full((2, 2), True), (255, 255, 255)),
        (np.full((2, 2, 3), 0.2), (51, 51, 51)),
        (np.full((2, 2, 3), 200.0), (200, 200, 200)),
        (np.full((2, 2, 3), 999, np.int64), (255, 255, 255)),
    ],
)
def test_a_frame_of_any_usual_kind_is_a_picture(frame: Any, shown: tuple[int, int, int]) -> None:
    picture = rendering.as_picture(frame)
    assert picture.dtype == np.uint8 and picture.shape == (2, 2, 3)
    assert (picture == shown).all() and not np.shares_memory(picture, frame)


@pytest.mark.parametrize("frame", [None, "text", [1, 2], np.zeros(3), np.zeros((2, 2, 2)), np.zeros((1, 2, 2, 3))])
def test_what_is_no_frame_is_said(frame: Any) -> None:
    with pytest.raises(ValueError, match="render"):
        rendering.as_picture(frame)


def test_frames_are_told_apart() -> None:
    black, bright = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 90, np.uint8)
    dot = black.copy()
    dot[17, 17] = 1  # not among the pixels that are looked at first
    for frames, blank, still in (
        ([black, black], "every frame", True),
        ([black, bright], "every frame", False),
        ([dot, dot], None, True),
        ([dot, black, bright], "2 of 3", False),
        ([dot, dot, black], None, False),
        ([dot], None, False),
    ):
        seen = rendering.Seen()
        for frame in frames:
            seen.add(frame)
        assert (seen.blank is None) == (blank is None) and (blank or "") in (seen.blank or "")
        assert seen.still is still


# ------------------------------------------------------------------------------------------------------ in evaluations


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model for ``drawn.Walk``, not trained."""
    from stable_baselines3 import PPO

    folder = tmp_path_factory.mktemp("model")
    PPO("MlpPolicy", drawn.Walk(), n_steps=8, batch_size=8, policy_kwargs={"net_arch": [4]}).save(folder / "model.zip")
    return folder


def played(model: Path, out: Path, kwargs: dict[str, Any], **section: Any) -> Any:
    from train_cloud.evaluate.play import Player, play

    environment = {"id": "Walk-v0", "module": "drawn", "kwargs": kwargs}
    evaluation = {"episodes": 2, **section}
    config = parse_run_file(
        {"run_id": "a-run", "algorithm": "ppo", "total_timesteps": 100, "save_frequency": 50}
        | {"environment": environment, "evaluation": evaluation}
    )
    assert config.environment is not None and config.evaluation is not None
    algorithm = "stable_baselines3.ppo.ppo:PPO"
    return play(Player("a-run", 100, model, algorithm, config.environment, config.evaluation, None, out))


def video_of(path: Path) -> rendering.Seen:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    seen = rendering.Seen()
    for frame in reader:
        seen.add(np.frombuffer(frame, np.uint8).reshape(height, width, 3))
    return seen


@pytest.mark.slow
def test_another_driver_is_taken_where_one_shows_nothing_or_fails(model: Path, tmp_path: Path) -> None:
    kwargs = {"black": "SDL_VIDEODRIVER=offscreen", "raises": "SDL_VIDEODRIVER=dummy"}
    found = played(model, tmp_path, kwargs, video={})
    assert not found.warnings
    assert found.rendering is not None and found.rendering["SDL_VIDEODRIVER"] is None
    first, second = found.episodes["default"]
    assert first.video is not None and second.video is None
    assert (first.episode_return, first.length) == (drawn.LENGTH, drawn.LENGTH)
    seen = video_of(tmp_path / first.video)
    assert seen.blank is None and seen.changes and seen.frames == drawn.LENGTH + 1
    assert "SDL_VIDEODRIVER" not in os.environ


@pytest.mark.slow
def test_what_no_driver_draws_costs_its_video_and_says_which_were_tried(model: Path, tmp_path: Path) -> None:
    found = played(model, tmp_path, {"black": "SDL_AUDIODRIVER=dummy"}, video={})
    (warning,) = found.warnings
    assert warning.startswith("no videos of default: every frame is of one colour, RGB (0, 0, 0) with SDL_VIDEODRIVER")
    assert all(each in warning for each in ("offscreen", "SDL_VIDEODRIVER dummy", "unset", "egl", "MUJOCO_GL osmesa"))
    assert found.rendering is None and not list(tmp_path.rglob("*.mp4"))
    assert [episode.length for episode in found.episodes["default"]] == [drawn.LENGTH] * 2


@pytest.mark.full
def test_a_picture_that_never_changes_is_kept_and_said(model: Path, tmp_path: Path) -> None:
    found = played(model, tmp_path, {"still": True, "kind": "f4"}, video={})
    (warning,) = found.warnings
    assert warning.startswith("videos of default: the picture never changes with SDL_VIDEODRIVER offscreen")
    video = found.episodes["default"][0].video
    assert video is not None and video_of(tmp_path / video).blank is None


def where(env: Any, info: Any) -> Any:
    return env.unwrapped.position


@pytest.mark.parametrize("position", ["test_rendering:where", "info.position"])
def test_a_route_has_every_position_of_an_array_that_moves_in_place(position: str) -> None:
    env = drawn.Walk()
    env.reset(seed=0)
    route = Route(Routes(position=position), env)
    for step in range(5):
        info = env.step(np.zeros(1))[-1]
        route.add(env, info)
        assert route.is_a_point is False or step == 0
    assert [tuple(point) for point in route.positions] == [(n + 1.0, (n + 1) / 2) for n in range(5)]


def test_an_episode_is_judged_by_its_own_last_info(model: Path, tmp_path: Path) -> None:
    """Which the environment clears at the reset that follows at once."""
    found = played(model, tmp_path, {}, success="info.laps >= 2", routes={"per_category": 1})
    assert [episode.success for episode in found.episodes["default"]] == [True, True]
    assert not found.warnings and found.episodes["default"][0].route is not None


class Pair(NamedTuple):
    left: Any
    right: Any


class NoCopy:
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a socket")


def test_what_is_handed_out_is_copied_and_what_cannot_be_is_kept() -> None:
    array, thing = np.zeros(2), [1]
    socket = NoCopy()
    info = {"array": array, "pair": Pair(array, [array]), "nested": {"list": thing}, "socket": socket}
    one, whole = copied(info), copied_whole(info)
    array += 1
    thing.append(2)
    for copy in (one, whole):
        assert not copy["array"].any() and not copy["pair"].left.any() and not copy["pair"].right[0].any()
        assert copy["nested"] == {"list": [1]} and copy["socket"] is socket and type(copy["pair"]) is Pair
