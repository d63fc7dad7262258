"""From names to objects: environments, and whatever else a run file names as ``module:attribute``.

Without torch, so that a process that only tries an environment out need not load it. Every refusal names the field that
it comes from.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import gymnasium

from train_cloud.envs.parallel import NEEDED, Together
from train_cloud.errors import InputError, NotInstalled, TrainCloudError, suggestion
from train_cloud.installed import is_installed

Env: TypeAlias = gymnasium.Env[Any, Any]
MakeEnv: TypeAlias = Callable[[], Env]

#: What user code, or the pickling of its objects, raises when a state cannot be taken, carried or put back: anything,
#: as environments define exceptions of their own. KeyboardInterrupt and SystemExit are none of it.
FAILURES = (Exception,)


#: The learner's name where all agents share one.
SHARED = "shared"
#: Agents' names stand in names of parts, of scalars and of folders.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class CodeFailed(TrainCloudError):
    """User code raised this in another process; the message is :func:`in_words`'s."""


# ---------------------------------------------------------------------------------------------------- names to objects


def load_object(reference: str, field: str, kind: type | None = None) -> Any:
    """What ``module:attribute`` stands for.

    :param field: the run file's field, for errors
    :param kind: the class that it must be a subclass of
    :raises InputError: not importable, not there, or not of that kind
    """
    module_name, _, path = reference.partition(":")
    found: Any = import_module(module_name, field, reference)
    for name in path.split("."):
        if not hasattr(found, name):
            public = tuple(known for known in vars(found) if not known.startswith("_"))
            near = suggestion(name, public)
            raise InputError(field, reference, f"{module_name} has no {path}{': ' + near if near else ''}")
        found = getattr(found, name)
    if kind is not None and not (isinstance(found, type) and issubclass(found, kind)):
        raise InputError(field, reference, f"name a subclass of {kind.__module__}.{kind.__qualname__}")
    return found


def import_module(name: str, field: str, value: object) -> Any:
    """Import a module of the user's; what it raises becomes one line that says where.

    :raises InputError: under ``field``
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            fix = f"there is no module {error.name}: install it, or put it below code.folder"
        else:
            fix = f"importing {name} needs {error.name}, which is not installed"
        raise InputError(field, value, fix) from error
    except (*FAILURES, SystemExit) as error:
        raise InputError(field, value, f"importing {name} raises {in_words(error)}") from error


#: Where code lies that is not the user's either: a place in it tells them nothing.
_OTHERS = (str(Path(__file__).parent.parent), "<")
_MOST_CHARACTERS = 300


def in_words(error: BaseException) -> str:
    """An exception in one line, with the last place in the user's own code that it went through."""
    if isinstance(error, CodeFailed):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split()) or _statement(frames)
    if len(text) > _MOST_CHARACTERS:
        text = text[:_MOST_CHARACTERS] + " …"
    places = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    own = [(Path(name).name, line) for name, line in places if not (name.startswith(_OTHERS) or is_installed(name))]
    return f"{type(error).__name__}: {text}" + (f" ({own[-1][0]}, line {own[-1][1]})" if own else "")


def _statement(frames: traceback.StackSummary) -> str:
    """Of an exception without a message, an ``assert`` often: what raised it, in whoever's code."""
    line = " ".join((frames[-1].line or "").split()) if frames else ""
    return f"no message, from {line!r} in {Path(frames[-1].filename).name}" if line else "no message"


@contextlib.contextmanager
def refusing(field: str, value: object, fix: str) -> Iterator[None]:
    """Whatever is raised inside becomes an InputError of this field."""
    try:
        yield
    except (InputError, NotInstalled):
        raise
    except (*FAILURES, SystemExit) as error:
        raise InputError(field, value, f"{fix} {in_words(error)}") from error


# -------------------------------------------------------------------------------------------------------- environments


class _Closes(Protocol):
    def close(self) -> object: ...


def close(env: _Closes) -> str | None:
    """Close an environment. What that raises ends nothing: its work is done.

    :return: what it raised, in words
    """
    try:
        env.close()
    except FAILURES as error:
        return f"its close() raises {in_words(error)}"
    return None


@dataclass(frozen=True)
class One:
    """Makes one environment of one agent, with the run file's wrappers around it, and nothing of ours."""

    id: str
    module: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: Sequence[str] = ()

    def __call__(self) -> Env:
        """:raises InputError: a field that Gymnasium or the user's own code refuses"""
        if self.module is not None:
            import_module(self.module, "environment.module", self.module)
        env = self._make()
        for reference in self.wrappers:
            wrap = load_object(reference, "environment.wrappers")
            with refusing("environment.wrappers", reference, "calling it with the environment raises"):
                env = wrap(env)
            if not isinstance(env, gymnasium.Wrapper):
                raise InputError("environment.wrappers", reference, "name a subclass of gymnasium.Wrapper")
        return env

    def _make(self) -> Env:
        try:
            return gymnasium.make(self.id, **self.kwargs)
        except gymnasium.error.UnregisteredEnv as error:
            fix = f"{error}"
            if self.module is None:
                fix += " If it is your own, name the module that registers it under environment.module."
            raise InputError("environment.id", self.id, fix) from error
        except ModuleNotFoundError as error:
            fix = f"install {error.name}, which it needs" if error.name else str(error)
            raise InputError("environment.id", self.id, fix) from error
        except InputError:
            raise  # an adapter of ours, which names the field itself
        except FAILURES as error:
            for name, value in self.kwargs.items():
                if self._can_be_made_without(name):
                    field = f"environment.kwargs.{name}"
                    raise InputError(field, value, f"{self.id} refuses it: {in_words(error)}") from error
            raise InputError("environment.id", self.id, f"making it raises {in_words(error)}") from error

    def _can_be_made_without(self, argument: str) -> bool:
        fewer = {name: value for name, value in self.kwargs.items() if name != argument}
        try:
            close(gymnasium.make(self.id, **fewer))
        except FAILURES:
            return False
        return True


@dataclass(frozen=True)
class Several:
    """Makes the environment of several agents: what ``id`` names makes a ``ParallelEnv``."""

    id: str
    module: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: Sequence[str] = ()

    def __call__(self) -> Together:
        """:raises InputError: no ``ParallelEnv``, one with agents that cannot be trained, or what user code refuses"""
        if self.module is not None:
            import_module(self.module, "environment.module", self.module)
        make = load_object(self.id, "environment.id")
        with refusing("environment.kwargs", dict(self.kwargs), f"{self.id} raises"):
            parallel = make(**self.kwargs)
        for reference in self.wrappers:
            wrap = load_object(reference, "environment.wrappers")
            with refusing("environment.wrappers", reference, "calling it with the environment raises"):
                parallel = wrap(parallel)
        missing = [name for name in NEEDED if not hasattr(parallel, name)]
        if missing:
            fix = f"it has no {', '.join(missing)}: make a PettingZoo ParallelEnv"
            raise InputError("environment.id", self.id, fix)
        with refusing("environment.id", self.id, "its spaces raise"):
            together = Together(parallel)
        _check_agents(together, self.id)
        return together


def _check_agents(together: Together, where: str) -> None:
    if not together.possible_agents:
        raise InputError("environment.id", where, "its possible_agents are empty: give it at least one agent")
    for name in together.possible_agents:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == SHARED:
            fix = f"the agent {name!r}: use letters, digits, _, - and . in its name, at most 64, and not {SHARED!r}"
            raise InputError("environment.id", where, fix)
        space = together.action_space[name]
        if not isinstance(space, gymnasium.spaces.Box):
            fix = f"agent {name} has the action space {space}: SAC needs a Box, that is, continuous actions"
            raise InputError("environment.id", where, fix)
