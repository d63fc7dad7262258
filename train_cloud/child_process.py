"""Python processes of ours: which modules they find does not depend on where they happen to run.

``python -m`` and ``python -c`` put the working directory first on the module path, and a user's working directory is
full of names that others have too: ``gym/``, ``torch.py``, ``random.py``, ``types.py``. The switch that leaves it out
(``-P``, ``PYTHONSAFEPATH``) came with Python 3.11. So each child is told its path, and takes it before it imports
anything.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

# `sys` is built in: importing it reads no file. All that comes after it is found on the path that was set.
_START = (
    "import sys; sys.path[:] = {path!r}; sys.argv = sys.argv[1:]; "
    "from runpy import run_module; run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
_PYTHONPATH, _SAFE = "PYTHONPATH", "PYTHONSAFEPATH"
WORKERS = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""How processes of ``multiprocessing`` are started."""
_ours = str(Path(__file__).parent.parent)
_user_folders: list[str] = []


def command(module: str, *arguments: str, user_code: bool = False) -> list[str]:
    """How to run a module as a process of its own, as ``python -m module arguments`` does.

    :param user_code: it needs what this process was started with: where the user has put the working directory on the
        path (``PYTHONPATH=.``), it stays there. The run's code folder, which a child adds itself, is left out.
    """
    return [sys.executable, "-c", _START.format(path=_path(user_code)), module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """This process's variables for a child, without the run's code folder in ``PYTHONPATH``: an interpreter would find
    its own modules there while it starts.
    """
    found = dict(os.environ)
    kept = [entry for entry in found.pop(_PYTHONPATH, "").split(os.pathsep) if entry not in ("", *_user_folders)]
    return found | ({_PYTHONPATH: os.pathsep.join(kept)} if kept else {}) | more


@contextlib.contextmanager
def code_on_path(folder: Path | None) -> Iterator[None]:
    """The run's code folder first on the module path; also, by ``PYTHONPATH``, in what the user's code starts."""
    if folder is None:
        yield
        return
    name = str(folder)
    before = os.environ.get(_PYTHONPATH)
    sys.path.insert(0, name)
    _user_folders.append(name)
    os.environ[_PYTHONPATH] = os.pathsep.join([name, *([before] if before else [])])
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have taken it away
            sys.path.remove(name)
        _user_folders.remove(name)
        restore_variables({_PYTHONPATH: before})


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """While ``multiprocessing`` starts processes: with ``-c``, whose path begins with the working directory.

    Its fork server starts in an empty folder, and takes nothing from it; to the processes that it forks, this one's
    working directory and module path are sent. Where there is no such server (Windows), Python 3.11 and later know the
    switch.
    """
    before = {name: os.environ.get(name) for name in (_PYTHONPATH, _SAFE)}
    restore_variables({_PYTHONPATH: environment().get(_PYTHONPATH)})
    try:
        if WORKERS == "forkserver":
            _start_server()
        else:
            os.environ[_SAFE] = "1"
        yield
    finally:
        restore_variables(before)


def _start_server() -> None:
    """Where it does not run already."""
    from multiprocessing import forkserver

    inside, empty = _working_directory(), tempfile.mkdtemp(prefix="train-cloud-")
    atexit.register(shutil.rmtree, empty, ignore_errors=True)  # the server starts in it at its leisure
    os.chdir(empty)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(inside or os.sep)


def restore_variables(variables: Mapping[str, str | None]) -> None:
    """Set environment variables; None removes one."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _path(user_code: bool) -> list[str]:
    left_out = {*_user_folders} if user_code else {"", _working_directory(), *_user_folders}
    found = [entry for entry in sys.path if entry not in left_out]
    # Where the package itself lies in the working directory, as in a checkout, that comes after everything else.
    return found if any(os.path.realpath(entry) == os.path.realpath(_ours) for entry in found) else [*found, _ours]


def _working_directory() -> str:
    """Empty where it was deleted."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""
