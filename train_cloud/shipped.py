"""Where the files lie that travel with the package and are no Python modules of it: the Terraform module, the worker's
boot scripts and units, the examples, and what the worker builds the package from.

In a checkout they lie at its top; ``setup.py`` copies them into the wheel. Only the standard library is imported:
``setup.py`` itself uses this module.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

#: What a worker installs the package from and boots with; ``terraform/storage.tf`` uploads the same.
WORKER = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "train_cloud", "bootstrap", "systemd")
#: All that travels, the package itself apart.
SHIPPED = (
    "terraform",
    "bootstrap",
    "systemd",
    "examples",
    "docker",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)

_PACKAGE = Path(__file__).absolute().parent
_INSTALLED = _PACKAGE / "_shipped"
_CACHES = shutil.ignore_patterns("__pycache__", "*.pyc", "_shipped", ".train-cloud")
# State and variables of somebody's own use of the module; what only tests need. The lock file travels.
_OF_TERRAFORM = shutil.ignore_patterns(
    *("tests", "package", ".terraform", "*.tfstate*", "*.tfvars", "*.tfvars.json", "*_override.tf", "__pycache__")
)


def checkout() -> Path | None:
    """The checkout that this package is imported from; None where it was installed from a wheel."""
    top = _PACKAGE.parent
    return top if (top / "terraform" / "worker.tf").is_file() and (top / "pyproject.toml").is_file() else None


def find(name: str) -> Path:
    """The file or folder, one of :data:`SHIPPED` or ``train_cloud``.

    :raises FileNotFoundError: on a worker, which has only what it needs
    """
    found = _PACKAGE if name == "train_cloud" else (checkout() or _INSTALLED) / name
    if not found.exists():
        raise FileNotFoundError(f"{name} is not installed with train-cloud here")
    return found


def copy(names: Iterable[str], target: Path, *, top: Path | None = None) -> None:
    """Copy these into a folder, without what somebody's use of them has left there.

    :param top: the folder in which they lie, by default where :func:`find` finds them
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        source = find(name) if top is None else top / name
        if source.is_dir():
            left_out = _OF_TERRAFORM if name == "terraform" else _CACHES
            shutil.copytree(source, target / name, ignore=left_out, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target / name)


def copy_terraform(target: Path) -> None:
    """Make ``target`` a Terraform root module that needs nothing beside it: ``terraform init`` there is the next step.

    :param target: does not exist yet
    """
    shutil.copytree(find("terraform"), target, ignore=_OF_TERRAFORM)
    shutil.copyfile(find("examples") / "ray" / "cluster.yaml", target / "ray" / "cluster.yaml")
    copy(WORKER, target / "package")


def cache() -> Path:
    """For what is made once and kept: ``TRAIN_CLOUD_CACHE``, else the user's cache folder. May be deleted."""
    named = os.environ.get("TRAIN_CLOUD_CACHE")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "train-cloud"


def tools() -> Path:
    """Programs that were fetched for this project: ``.tools`` of the checkout, else a folder of :func:`cache`."""
    top = checkout()
    return cache() / "tools" if top is None else top / ".tools"
