"""Which part of a run file is the run's identity, and how two identities differ.

The identity never changes under a run id: a run resumed with another network or another environment would be neither
the old experiment nor a new one. The budget part may change and takes effect at the next session.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from train_cloud.errors import InputError

#: Every field of the run file, once. A test compares it with the model.
PARTS: Mapping[str, Literal["identity", "budget"]] = {
    "run_id": "identity",
    "experiment": "identity",
    "algorithm": "identity",
    "policy": "identity",
    "seed": "identity",
    "device": "identity",
    "environment": "identity",
    "hyperparameters": "identity",
    "initial_model": "identity",
    "callbacks": "identity",
    "entry_point": "identity",
    "code": "identity",
    "data": "identity",
    "env": "identity",
    "seeds": "identity",
    "total_timesteps": "budget",
    "schedule_total": "budget",
    "save_frequency": "budget",
    "max_seconds_at_risk": "budget",
    "secrets": "budget",
    "artifacts": "budget",
    "evaluation": "budget",
    "wandb": "budget",
    "webhook": "budget",
    "limits": "budget",
    "preservation": "budget",
}

#: Never part of the user's code: made by tools, not by people. ``code.exclude`` adds to it.
ALWAYS_EXCLUDED = (
    ".git/**",
    ".venv/**",
    "**/__pycache__/**",
    "**/*.pyc",
    "**/.DS_Store",
    "**/.ipynb_checkpoints/**",
    "**/.terraform/**",
    "**/*.tfstate*",
    "runs/**",
    "rehearsal/**",
)


def identity_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The fields in which two identities differ, as ``(dotted name, old, new)``.

    A field that one side lacks counts as empty, so that a field added by a later version changes no older run.
    """
    changes: list[tuple[str, Any, Any]] = []
    for field in sorted(old.keys() | new.keys()):
        before, after = old.get(field), new.get(field)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += [(f"{field}.{name}", *values) for name, *values in identity_changes(before, after)]
        elif before != after and not (not (field in old and field in new) and _empty(before) and _empty(after)):
            changes.append((field, before, after))
    return changes


def _empty(value: object) -> bool:
    return value is None or value == [] or value == {}


def code_files(folder: Path, exclude: Iterable[str] = ()) -> list[str]:
    """Relative paths, sorted, of the files in a code folder, without the excluded ones."""
    patterns = [glob_pattern(glob) for glob in (*ALWAYS_EXCLUDED, *exclude)]
    try:
        paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise InputError("code.folder", str(folder), f"make it readable: {error}") from error
    return [path for path in paths if not any(pattern.fullmatch(path) for pattern in patterns)]


def code_digest(folder: Path, exclude: Iterable[str] = ()) -> str:
    """SHA-256 (hexadecimal) over the lines ``<sha256>  <path>`` of a code folder's files, sorted by path.

    The form is ``sha256sum``'s, so that a shell and Terraform can compute it too.
    """
    if not folder.is_dir():
        raise InputError("code.folder", str(folder), "name an existing folder")
    lines = [f"{file_digest(folder / path)}  {path}\n" for path in code_files(folder, exclude)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hexadecimal) of one file's bytes."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError("code.folder", str(path), f"make it readable: {error}") from error


@cache
def glob_pattern(glob: str) -> re.Pattern[str]:
    """A glob in the syntax of Terraform's ``fileset``: ``*`` and ``?`` stay within a folder, ``**`` crosses them."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob.removeprefix("./"))
    return re.compile("".join(pieces.get(part, re.escape(part)) for part in parts), re.DOTALL)
