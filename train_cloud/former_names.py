"""Modules that had another name once, which still stands in old checkpoints' pickles, people's scripts and launches.

A pickle names the module of each class and function in it. Importing a former name gives the very module of today, so
that nothing exists twice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import InspectLoader, MetaPathFinder
else:
    # The package imports this before `python -m train_cloud` has taken the working directory from its path, and those
    # import a dozen modules more, which a user's folder may have files of the same names for.
    InspectLoader = MetaPathFinder = object

#: Former name → today's, without ``train_cloud.``; of a package all modules in it.
FORMER = {
    "learn": "sb3",
    "instance": "platforms.ec2",
    "report.page": "report.html_report",
    "report.standing": "report.preflight",
    "run.launch": "run.run_deadline",
    "worker": "runtime",
    "worker.announce": "platforms.notifications",
    "worker.artifacts": "runtime.artifacts",
    "worker.by_hand": "operations.rollback",
    "worker.code_folder": "runtime.code_folder",
    "worker.endings": "run.exit_record",
    "worker.evaluate": "runtime.evaluate",
    "worker.evaluations": "runtime.evaluations",
    "worker.evidence": "runtime.evidence",
    "worker.export": "operations.export",
    "worker.finish": "platforms.ec2.finish",
    "worker.fork": "operations.fork",
    "worker.initial": "runtime.initial_model",
    "worker.keep": "runtime.kept_models",
    "worker.limits": "runtime.limits",
    "worker.line": "runtime.commit_estimate",
    "worker.machine": "runtime.reproducibility",
    "worker.page": "operations.html_report",
    "worker.predecessor": "runtime.predecessor",
    "worker.private": "runtime.masking",
    "worker.prove": "operations.prove",
    "worker.pulse": "runtime.heartbeat",
    "worker.recorded": "report.recorded_run_file",
    "worker.relaunch": "operations.relaunch",
    "worker.repair": "operations.repair",
    "worker.replay": "runtime.replay",
    "worker.requirements": "operations.requirements",
    "worker.seeds": "operations.seeds",
    "worker.stop": "runtime.deadline",
    "worker.train": "runtime.train",
    "worker.trial": "runtime.proof_session",
    "worker.units": "platforms.ec2.units",
    "worker.watch": "platforms.ec2.watch",
}


_PACKAGES = {"learn", "instance"}
"""Whose modules have kept their own names."""


def today(name: str) -> str | None:
    """Today's full name of a module that is asked for by a former one; None where it is none."""
    package, _, rest = name.partition(".")
    if package != "train_cloud":
        return None
    if rest in FORMER:
        return f"train_cloud.{FORMER[rest]}"
    folder, _, module = rest.partition(".")
    return f"train_cloud.{FORMER[folder]}.{module}" if module and folder in _PACKAGES else None


class _FormerName(InspectLoader):
    """Hands out the module of today."""

    def __init__(self, name: str) -> None:
        self._today = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self._today)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run under its name of today; the import system has only given it the former one's spec."""
        module.__spec__ = self._spec

    def get_code(self, fullname: str) -> CodeType | None:
        """For ``python -m``."""
        spec = find_spec(self._today)
        assert spec is not None
        return cast("InspectLoader", spec.loader).get_code(self._today)

    def get_source(self, fullname: str) -> str | None:
        spec = find_spec(self._today)
        assert spec is not None
        return cast("InspectLoader", spec.loader).get_source(self._today)


class FormerNames(MetaPathFinder):
    """A finder (:pep:`451`) in front of all others: a package's own path would have its modules loaded twice."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = today(fullname)
        if found is None or find_spec(found) is None:
            return None
        return ModuleSpec(fullname, _FormerName(found), is_package=fullname.count(".") == 1)


def understand() -> None:
    """Make former names importable."""
    if not any(isinstance(finder, FormerNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, FormerNames())
