"""All but one thing about the package is said in pyproject.toml: the folders at the top travel in the wheel too."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TOP = Path(__file__).absolute().parent
sys.path.insert(0, str(TOP))

from train_cloud import shipped  # noqa: E402


class BuildWithFolders(build_py):
    """Copies what is no Python module to ``train_cloud/_shipped``. A worker, which builds the package too, has
    not all of it, and needs none.
    """

    def run(self) -> None:
        package = Path(self.build_lib) / "train_cloud"
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(package, ignore_errors=True)  # modules that are gone would travel for ever
        super().run()
        there = [name for name in shipped.SHIPPED if (TOP / name).exists()]
        shipped.copy(there, package / "_shipped", top=TOP)


setup(cmdclass={"build_py": BuildWithFolders})
