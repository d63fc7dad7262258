"""The package that a stack uploads, with a sixth of its files.

Terraform reads and writes each file as an object of its own, at every verb. Where only the stack is looked at, a few
files stand for all. Where machines are started, in test_rehearse.py for one, the whole is uploaded: they run it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from train_cloud.rehearsal.terraform import Terraform

_KEPT = {"__init__.py", "errors.py", "py.typed", "run"}


def with_small_package(folder: Path, terraform: Terraform) -> Terraform:
    """:param folder: the stack's"""
    for path in (folder / "train_cloud").iterdir():
        if path.name in _KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return terraform
