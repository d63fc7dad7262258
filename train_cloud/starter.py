"""A folder to begin in: a run file, an environment's skeleton, a Terraform root module ready for ``terraform init``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from train_cloud import shipped
from train_cloud.errors import InputError

_EXAMPLE = "examples/starter"
_NAME, _RUN_FILE = "run_id: my-run ", 'run_file = "../examples/pendulum_sac.yaml"'
_IGNORED = """\
.train-cloud/
store/
rehearsal/
__pycache__/
.terraform/
*.tfstate*
"""

#: What is never there before.
_WRITTEN = ("run.yaml", "code", "terraform")


def begin(folder: Path) -> list[Path]:
    """Write the folder; where it exists, beside what lies there.

    :return: what was written, the outermost paths
    :raises InputError: one of them is there already, or cannot be
    """
    run_id = re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower())[:40].strip("-") or "my-run"
    for path in (folder / name for name in _WRITTEN):
        if path.exists() or path.is_symlink():
            raise InputError("DIR", str(path), "it is there already and is never overwritten: name another folder")
    try:
        example = shipped.find(_EXAMPLE)
    except FileNotFoundError as error:
        raise InputError("init", str(folder), f"run it elsewhere: {error}") from error
    try:
        return _write(folder, example, run_id)
    except (OSError, shutil.Error) as error:
        why = getattr(error, "strerror", None) or "not all of it could be copied"
        raise InputError("DIR", str(folder), f"name a folder that can be made and written to: {why}") from error


def _write(folder: Path, example: Path, run_id: str) -> list[Path]:
    run_file, code, terraform, ignored = (folder / name for name in (*_WRITTEN, ".gitignore"))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(example / "code", code, ignore=shutil.ignore_patterns("__pycache__"))
    run_file.write_text(_replaced(example / "run.yaml", _NAME, f"run_id: {run_id} "), encoding="utf-8")
    shipped.copy_terraform(terraform)
    variables = _replaced(terraform / "terraform.tfvars.example", _RUN_FILE, 'run_file = "../run.yaml"')
    (terraform / "terraform.tfvars").write_text(variables.replace("Copy to terraform.tfvars. Only", "Only"))
    written = [run_file, code, terraform]
    if not ignored.exists():
        ignored.write_text(_IGNORED)
        written.append(ignored)
    return written


def _replaced(path: Path, before: str, after: str) -> str:
    text = path.read_text(encoding="utf-8")
    assert before in text, f"{path} has no line {before}"
    return text.replace(before, after)
