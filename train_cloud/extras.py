"""What is not installed with the package alone, and which of its extras brings it.

The package alone is enough to look at runs, to take them home and to check a run file. What trains is in ``sb3``.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from train_cloud.errors import NotInstalled
from train_cloud.installed import is_installed

#: Top-level module → the extra that brings it. A test compares this with pyproject.toml and with what is imported.
BROUGHT_BY = {
    "cloudpickle": "sb3",
    "gymnasium": "sb3",
    "highway_env": "examples",
    "imageio_ffmpeg": "sb3",
    "minari": "demonstrations",
    "minigrid": "examples",
    "moto": "rehearsal",
    "mpe2": "examples",
    "optuna": "search",
    "pyarrow": "demonstrations",
    "pygame": "examples",
    "pynvml": "sb3",
    "ray": "ray",
    "sb3_contrib": "contrib",
    "stable_baselines3": "sb3",
    "torch": "sb3",
    "torch_geometric": "graphs",
    "tqdm": "sb3",
    "wandb": "wandb",
}


def is_here(module: str) -> bool:
    """Whether a top-level module can be imported. A folder without code, as W&B's client leaves, is none."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def need(module: str, what: str) -> None:
    """Begin nothing that will stop for want of ``module``.

    :param what: that needs it, as the subject of a sentence
    :raises NotInstalled: it cannot be imported
    """
    if not is_here(module):
        raise NotInstalled(module, BROUGHT_BY[module], what)


def need_all(named: Iterable[str], what: str) -> None:
    """The same for every module that these extras bring.

    :param named: extras
    :raises NotInstalled: one of them cannot be imported
    """
    wanted = set(named)
    for module, extra in BROUGHT_BY.items():
        if extra in wanted:
            need(module, what)


def explained(error: ModuleNotFoundError, what: str = "this command") -> NotInstalled | None:
    """What to install, where code of ours or of a package has missed a module of an extra; None for all else."""
    module = (error.name or "").partition(".")[0]
    extra = BROUGHT_BY.get(module)
    if extra is None or is_here(module):
        return None
    places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    last = next((place for place in reversed(places) if not place.startswith("<")), "")
    if not is_installed(last) and not Path(last).resolve().is_relative_to(Path(__file__).resolve().parent):
        return None  # a user's own code says best itself what it lacks
    return NotInstalled(module, extra, what)
