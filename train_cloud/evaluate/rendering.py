"""What draws an environment on a machine without a screen, and whether there is anything to be seen.

SDL (pygame) and OpenGL (MuJoCo, PyOpenGL, pyglet) take their driver from environment variables when they are first
used in a process. A driver that is not there raises, or draws nothing: highway-env leaves its frames black where
``SDL_VIDEODRIVER`` is ``dummy``, and each of the others has its own conditions. So frames are looked at, and where
there is nothing in them, other drivers are tried, each in a fresh process.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from train_cloud.child_process import WORKERS, restore_variables, starting_workers
from train_cloud.errors import TrainCloudError

#: Environment variables by name; None for one that is not set.
Settings: TypeAlias = Mapping[str, str | None]
Frame: TypeAlias = npt.NDArray[np.uint8]
T = TypeVar("T")

#: SDL's drivers that need no screen (SDL wiki, "SDL_VIDEODRIVER"), and its own choice. ``offscreen`` has OpenGL too.
_SDL: tuple[Settings, ...] = tuple({"SDL_VIDEODRIVER": name} for name in ("offscreen", "dummy", None))
#: MuJoCo's documentation, "Python: Rendering"; PyOpenGL's, "PYOPENGL_PLATFORM"; pyglet's, "headless".
_OPENGL: tuple[Settings, ...] = (
    {"MUJOCO_GL": "egl"},
    {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"},
    {"MUJOCO_GL": None, "PYOPENGL_PLATFORM": None},
    {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl", "PYGLET_HEADLESS": "1"},
)
_CHOICES = ("SDL_VIDEODRIVER", "MUJOCO_GL", "PYOPENGL_PLATFORM", "PYGLET_HEADLESS")
#: No sound card, and no greeting in the log; set where nobody has decided.
_QUIET = {"SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}

#: Of a process that has answered; then it is ended.
_LEAVING_SECONDS = 10.0


def candidates(environment: Mapping[str, str], last: Settings | None = None) -> list[Settings]:
    """What to try, in this order.

    SDL and OpenGL vary at the same time: hardly any environment draws with both.

    :param environment: what is set now comes first, completed by what needs no screen
    :param last: what worked the last time, if anything; it comes before all others
    """
    own = {name: environment.get(name) for name in _CHOICES}
    first: Settings = {**own, **{name: own[name] or value for name, value in {**_SDL[0], **_OPENGL[0]}.items()}}
    axes = [[each for each in axis if not each.items() <= first.items()] for axis in (_SDL, _OPENGL)]
    others: list[Settings] = [{**first, **sdl, **opengl} for sdl, opengl in itertools.zip_longest(*axes, fillvalue={})]
    found: list[Settings] = []
    for each in [*([{**first, **last}] if last else []), first, *others]:
        if each not in found:
            found.append(each)
    return found


@contextlib.contextmanager
def applied(settings: Settings) -> Iterator[None]:
    """Set while this lasts, for what is first used now and for processes that are started now."""
    before = {name: os.environ.get(name) for name in {**_QUIET, **settings}}
    restore_variables({**{name: os.environ.get(name, value) for name, value in _QUIET.items()}, **settings})
    try:
        yield
    finally:
        restore_variables(before)


def shown(settings: Settings) -> str:
    """For messages: only the two that decide most often."""
    return ", ".join(f"{name} {settings.get(name) or 'unset'}" for name in _CHOICES[:2])


def as_picture(frame: Any) -> Frame:
    """What ``render()`` gave, as (height, width, 3) of bytes, in memory of its own.

    Numbers that are not whole are taken to go from 0 to 1, where none is larger.

    :raises ValueError: it is no picture, saying what it is
    """
    if not isinstance(frame, np.ndarray) or frame.ndim not in (2, 3) or frame.shape[2:] not in ((), (1,), (3,), (4,)):
        found = getattr(frame, "shape", type(frame).__name__)
        raise ValueError(f"render() gives {found}, not an array of (height, width, 3)")
    picture = frame[..., None] if frame.ndim == 2 else frame
    if picture.dtype == np.bool_ or (np.issubdtype(picture.dtype, np.floating) and picture.max(initial=0) <= 1):
        picture = picture * 255.0
    picture = picture[..., :3].clip(0, 255).astype(np.uint8)
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


class Seen:
    """What a series of frames shows, looked at one by one."""

    def __init__(self) -> None:
        self.frames = 0
        self.changes = False
        """Whether any frame differs from the first."""
        self._blank = 0
        self._first: Frame | None = None
        self._colour: tuple[int, ...] = ()

    def add(self, frame: Frame) -> None:
        self.frames += 1
        # Hardly ever is a whole frame compared: a few of its pixels differ already.
        if (frame[::16, ::16] == frame[0, 0]).all() and (frame == frame[0, 0]).all():
            self._blank += 1
            self._colour = tuple(map(int, frame[0, 0]))
        if self._first is None:
            self._first = frame.copy()
        elif not self.changes:
            self.changes = not np.array_equal(frame, self._first)

    @property
    def blank(self) -> str | None:
        """What is wrong where most frames are of a single colour; None where they are not."""
        if not self.frames or 2 * self._blank <= self.frames:
            return None
        which = "every frame is" if self._blank == self.frames else f"{self._blank} of {self.frames} frames are"
        return f"{which} of one colour, RGB {self._colour}"

    @property
    def still(self) -> bool:
        """Whether several frames are one and the same picture."""
        return self.frames > 1 and not self.changes


class Died(TrainCloudError):
    """A fresh process ended without an answer."""


def in_a_fresh_process(
    settings: Settings, function: Callable[..., T], *arguments: Any, seconds: float | None = None
) -> T:
    """``function(*arguments)``, where no driver has been chosen yet.

    :param function: of a module, as it is pickled; what it raises is raised here
    :param seconds: it may take, None for any
    :raises Died: it took longer, or the process died, as drivers make it do
    """
    context: Any = multiprocessing.get_context(WORKERS)
    here, there = context.Pipe(duplex=False)
    with applied(settings):
        # They are sent along: a fork server may be older than what was set since.
        process = context.Process(target=_answer, args=(there, dict(os.environ), function, arguments))
        with starting_workers():
            process.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise Died(f"it took more than {seconds:.0f} seconds")
        done, answer = here.recv()
        process.join(_LEAVING_SECONDS)
    except EOFError:
        process.join()
        raise Died(f"the process died, exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        here.close()
    if not done:
        raise answer
    return answer  # type: ignore[no-any-return]


def _answer(
    to: Connection, variables: Mapping[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    restore_variables({**dict.fromkeys(os.environ), **variables})
    try:
        answer = (True, function(*arguments))
    except Exception as error:  # noqa: BLE001 - it is raised in the other process
        answer = (False, error)
    to.send(answer)
