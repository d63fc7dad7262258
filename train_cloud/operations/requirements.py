"""What a run needs to be installed, besides the package."""

from __future__ import annotations

import re
from importlib.metadata import requires

from packaging.requirements import Requirement

from train_cloud.config import Environment, RunFile

#: Folder of ``gymnasium.envs`` → Gymnasium's extra for it, and whether it is needed for drawing only.
_GYMNASIUM_EXTRAS = {
    "box2d": ("box2d", False),
    "classic_control": ("classic-control", True),
    "mujoco": ("mujoco", False),
    "phys2d": ("jax", False),
    "tabular": ("jax", False),
    "toy_text": ("toy-text", True),
}


def pip_arguments(run_file: RunFile) -> list[str]:
    """For ``pip install``: :func:`packages`, and the user's own file."""
    arguments = packages(run_file)
    if run_file.requirements is not None:
        arguments += ["-r", str(run_file.requirements)]
    return arguments


def packages(run_file: RunFile) -> list[str]:
    """The requirements of the package's extras that the run needs, and of Gymnasium's for its own environments."""
    found = []
    for line in requires("train-cloud") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is not None and any(
            marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}) for extra in run_file.extras
        ):
            found.append(f"{requirement.name}{requirement.specifier}")
    return [*found, *_gymnasium(run_file)]


def _gymnasium(run_file: RunFile) -> list[str]:
    """Gymnasium's own environments come with Gymnasium; what they compute and draw with does not."""
    evaluation = run_file.evaluation
    asked: list[tuple[Environment | None, bool]] = [(run_file.environment, False)]
    if evaluation is not None:
        asked.append((evaluation.environment or run_file.environment, evaluation.video is not None))
    extras = set()
    for environment, drawn in asked:
        extra, only_drawn = _GYMNASIUM_EXTRAS.get(_folder(environment), ("", False))
        if extra and (drawn or not only_drawn):
            extras.add(extra)
    return [f"gymnasium[{extra}]" for extra in sorted(extras)]


def _folder(environment: Environment | None) -> str:
    """Of ``gymnasium.envs``, in which a registered environment lies; empty for everybody else's."""
    import gymnasium

    spec = None if environment is None else gymnasium.registry.get(environment.id)
    own = re.match(r"gymnasium\.envs\.(\w+)", str(spec.entry_point)) if spec is not None else None
    return own[1] if own else ""
