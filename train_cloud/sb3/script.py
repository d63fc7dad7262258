"""A script of the user's own, run as if it had been started by itself: with its own ``sys.argv``, and free to leave by
``sys.exit``.

``module:function`` is imported and called; a file, ``train.py``, is run as ``python train.py`` runs it, so that what
stands under ``if __name__ == "__main__"`` is done.
"""

from __future__ import annotations

import contextlib
import importlib.util
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from stable_baselines3.common.utils import set_random_seed

from train_cloud.config import RunFile
from train_cloud.envs.make import load_object
from train_cloud.errors import InputError, TrainCloudError

_NO_ARGUMENTS = "its arguments stand under arguments in the run file"


class ScriptLeft(TrainCloudError):
    """The run's own code has called ``sys.exit``, with something other than 0 or before its training was over."""


def prepare(run_file: RunFile) -> Callable[[], object]:
    """What runs the script. A module is imported for it, a file is only compiled.

    :raises InputError: it is not there, cannot be read, or ends the process when it is imported
    """
    assert run_file.entry_point is not None
    set_random_seed(run_file.seed)
    with _own_arguments(run_file):
        try:
            run = _file(run_file) if run_file.script is not None else _function(run_file.entry_point)
        except SystemExit as error:
            raise InputError("entry_point", run_file.entry_point, f"importing it {_in_words(error)}") from error

    def started() -> object:
        set_random_seed(run_file.seed)  # a script that seeds no generator of its own is the same each time, too
        with _own_arguments(run_file):
            return run()

    return started


def left_early(error: SystemExit, *, trained: bool = False) -> ScriptLeft | None:
    """None where leaving so is a normal end: with 0, after the training.

    :param trained: whether the training is over
    """
    if trained and error.code in (None, 0):
        return None
    when = "after its training" if trained else "before its training was over"
    return ScriptLeft(f"the run's own code {_in_words(error, when)}")


def _function(entry_point: str) -> Callable[[], object]:
    found = load_object(entry_point, "entry_point")
    if not callable(found):
        raise InputError("entry_point", entry_point, "name a function")
    return found  # type: ignore[no-any-return]


def _file(run_file: RunFile) -> Callable[[], object]:
    path = run_file.script
    assert path is not None
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise InputError("entry_point", run_file.entry_point, f"{path.name}{where} cannot be read: {error}") from error
    except OSError as error:
        raise InputError("entry_point", run_file.entry_point, f"make it readable: {error.strerror}") from error

    def run() -> None:
        folder = str(path.parent)
        sys.path.insert(0, folder)  # as Python itself does
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)

    return run


@contextlib.contextmanager
def _own_arguments(run_file: RunFile) -> Iterator[None]:
    before = sys.argv
    sys.argv = [_name(run_file), *run_file.arguments]
    try:
        yield
    finally:
        sys.argv = before


def _name(run_file: RunFile) -> str:
    assert run_file.entry_point is not None
    if run_file.script is not None:
        return str(run_file.script)
    module = run_file.entry_point.partition(":")[0]
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            return spec.origin
    return module


def _in_words(error: SystemExit, when: str = "") -> str:
    """``calls sys.exit(2) in train.py, line 9``: the user's own line, also where argparse did it for them."""
    own = Path(__file__).parent.parent
    places = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(own) and not frame.filename.startswith("<")
    ]
    libraries = ("argparse.py", "runpy.py", "click", "typer", "absl", "fire")
    mine = [frame for frame in places if not any(part in libraries for part in Path(frame.filename).parts)]
    where = f" in {Path(mine[-1].filename).name}, line {mine[-1].lineno}" if mine else ""
    code = "" if error.code is None else " ".join(str(error.code).split())
    parsed = any(Path(frame.filename).name == "argparse.py" for frame in places)
    said = f"calls sys.exit({code}){where}{when and f', {when}'}"
    return said + (f": see what it says above; {_NO_ARGUMENTS}" if parsed else "")
