"""What a run needs to be installed, besides the package."""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

from train_cloud.config import RunFile


def pip_arguments(run_file: RunFile) -> list[str]:
    """For ``pip install``: the requirements of the package's extras that the run needs, and the user's own file."""
    arguments = []
    for line in requires("train-cloud") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is not None and any(
            marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}) for extra in run_file.extras
        ):
            arguments.append(f"{requirement.name}{requirement.specifier}")
    if run_file.requirements is not None:
        arguments += ["-r", str(run_file.requirements)]
    return arguments
