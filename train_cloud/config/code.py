"""What is code: which files of a code folder travel to a worker, and which of them make a run another one.

People keep everything in one folder: scripts, run files, the store, what their tools leave, and what the script writes
while it trains. Only the first of these is what was launched. So a file is one of

- nothing to the run (:data:`NEVER`, run files, experiment files and pipeline files, stores, environments and caches by
  their own marks): neither sent to a worker nor compared
- program text (:data:`PROGRAM`): any that is changed, new or gone makes another run
- anything else, data for example: compared with what was there when the run was launched, unless it is for people
  (:data:`INERT`), or was written while the run trained, which makes it the run's own output. What was not there is none
  of it.

Terraform uploads by the same rule (``terraform/storage.tf``; a test compares both).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from train_cloud.errors import InputError

#: Never part of the user's code: made by tools, not by people. ``code.exclude`` adds to it.
NEVER = (
    "**/.git",
    "**/.git/**",
    "**/.venv/**",
    "**/__pycache__/**",
    "**/*.pyc",
    "**/*.egg-info/**",
    "**/.ipynb_checkpoints/**",
    "**/.mypy_cache/**",
    "**/.pytest_cache/**",
    "**/.ruff_cache/**",
    "**/.hypothesis/**",
    "**/.coverage",
    "**/.idea/**",
    "**/.vscode/**",
    "**/.DS_Store",
    "**/.terraform/**",
    "**/*.tfstate*",
    "**/.train-cloud/**",
    "runs/**",
    "rehearsal/**",
    "wandb/**",
    "**/wandb/*run-*/**",
    "mlruns/**",
    "**/events.out.tfevents.*",
    "**/monitor.csv",
    "**/*.monitor.csv",
    "**/nohup.out",
)
#: What was left out before there were lists of files in checkpoints: their digests were made by it.
FORMERLY_NEVER = (".git/**", ".venv/**", "**/__pycache__/**", "**/*.pyc", "**/.DS_Store", "**/.ipynb_checkpoints/**",
                  "**/.terraform/**", "**/*.tfstate*", "runs/**", "rehearsal/**")  # fmt: skip
#: A file of this name in a folder says that all of it was made by a tool: https://bford.info/cachedir/, PEP 405.
MARKS = ("CACHEDIR.TAG", "pyvenv.cfg")
#: What Python imports, and what it is built from.
PROGRAM = frozenset(
    (".py", ".pyi", ".pyx", ".pxd", ".pxi", ".so", ".pyd", ".dll", ".dylib", ".pth",
     ".c", ".cc", ".cpp", ".cxx", ".cu", ".cuh", ".h", ".hpp", ".rs", ".jl")
)  # fmt: skip
#: Sent to a worker, for setup.py may read them, and compared with nothing: written for people.
INERT = ("**/*.md", "**/*.rst", "**/*.ipynb", "**/*.log", "**/logs/**", "**/LICENSE*", "**/.gitignore")

_RUN_FILE = re.compile(rb"""^(\{\s*)?["']?run_id["']?\s*:""", re.MULTILINE)
_PIPELINE_FILE = (
    re.compile(rb"""^(\{\s*)?["']?name["']?\s*:""", re.MULTILINE),
    re.compile(rb"""^(\{\s*)?["']?sessions["']?\s*:""", re.MULTILINE),
)
_EXPERIMENT_FILE = (
    re.compile(rb"""^(\{\s*)?["']?experiment["']?\s*:""", re.MULTILINE),
    re.compile(rb"""^(\{\s*)?["']?(base|vary)["']?\s*:""", re.MULTILINE),
)
_MOST_NAMED = 5
OUTPUT = ""
"""Instead of a digest: this file was found to be what the run itself writes."""


class Changes(NamedTuple):
    """Paths below the code folder, sorted."""

    changed: list[str]
    new: list[str]
    gone: list[str]

    def __bool__(self) -> bool:
        return bool(self.changed or self.new or self.gone)

    def in_words(self) -> str:
        """``a.py and b.py are changed, c.py is new``, with a few names of each."""
        told = []
        for names, word in ((self.changed, "changed"), (self.new, "new"), (self.gone, "gone")):
            shown = [*names[:_MOST_NAMED], *([f"{len(names) - _MOST_NAMED} more"] if names[_MOST_NAMED:] else [])]
            if shown:
                listed = " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
                told.append(f"{listed} {'is' if len(names) == 1 else 'are'} {word}")
        return ", ".join(told)


def code_files(folder: Path, exclude: Iterable[str] = (), never: Iterable[str] = NEVER) -> list[str]:
    """Relative paths, sorted, of what travels to a worker."""
    patterns = [glob_pattern(glob) for glob in (*never, *exclude)]
    try:
        found = sorted(_walk(folder, patterns))
    except OSError as error:
        raise InputError("code.folder", str(folder), f"make it readable: {error}") from error
    return [path for path in found if not (path.endswith((".yaml", ".yml")) and _is_run_file(folder / path))]


def code_digests(folder: Path, exclude: Iterable[str] = ()) -> dict[str, str]:
    """SHA-256 (hexadecimal) of each of :func:`code_files`."""
    if not folder.is_dir():
        raise InputError("code.folder", str(folder), "name an existing folder")
    return {path: file_digest(folder / path) for path in code_files(folder, exclude)}


def program_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 (hexadecimal) over the lines ``<sha256>  <path>`` of the program text among a folder's files."""
    lines = [f"{digest}  {path}\n" for path, digest in sorted(digests.items()) if is_program(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def former_digest(folder: Path, exclude: Iterable[str] = ()) -> str:
    """What checkpoints of former versions have: over all files, whatever they are."""
    patterns = [glob_pattern(glob) for glob in (*FORMERLY_NEVER, *exclude)]
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    kept = [path for path in paths if not any(pattern.fullmatch(path) for pattern in patterns)]
    return hashlib.sha256("".join(f"{file_digest(folder / path)}  {path}\n" for path in kept).encode()).hexdigest()


def compare_code(
    launched: Mapping[str, str],
    here: Mapping[str, str],
    *,
    exclude: Iterable[str] = (),
    is_output: Callable[[str], bool] = lambda path: False,
) -> tuple[Changes, dict[str, str]]:
    """What makes the code another one than was launched.

    :param launched: digests by path, as they were then
    :param here: as they are now
    :param exclude: what the run file leaves out now; it may mend what was not left out then
    :param is_output: whether a file was written by the run itself; asked only of data that differs
    :return: the changes; and the digests to compare with the next time, outputs marked as such
    """
    patterns = [glob_pattern(glob) for glob in (*NEVER, *exclude)]
    kept = {path: was for path, was in launched.items() if not any(pattern.fullmatch(path) for pattern in patterns)}
    changes = Changes([], sorted(path for path in here.keys() - kept.keys() if is_program(path)), [])
    known = dict(launched)
    for path, was in sorted(kept.items()):
        if was == OUTPUT or here.get(path) == was or (_is_inert(path) and not is_program(path)):
            continue
        if path not in here:
            changes.gone.append(path)
        elif not is_program(path) and is_output(path):
            known[path] = OUTPUT
        else:
            changes.changed.append(path)
    return changes, known


def is_program(path: str) -> bool:
    """Whether Python imports it, or it is built to be imported."""
    return Path(path).suffix.lower() in PROGRAM


def mark_as_cache(folder: Path) -> None:
    """Say of a folder of ours that it is no code and needs no backup, as its specification wants it."""
    with contextlib.suppress(OSError):
        (folder / MARKS[0]).write_text("Signature: 8a477f597d28d172789f06886806bc55\n# Made by train-cloud.\n")


def file_digest(path: Path) -> str:
    """SHA-256 (hexadecimal) of one file's bytes."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
    except OSError as error:
        raise InputError("code.folder", str(path), f"make it readable: {error}") from error
    return found.hexdigest()


@cache
def glob_pattern(glob: str) -> re.Pattern[str]:
    """A glob in the syntax of Terraform's ``fileset``: ``*`` and ``?`` stay within a folder, ``**`` crosses them."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob.removeprefix("./"))
    return re.compile("".join(pieces.get(part, re.escape(part)) for part in parts), re.DOTALL)


def _walk(folder: Path, patterns: list[re.Pattern[str]]) -> Iterator[str]:
    """Files, without what lies in folders that are left out as a whole: they are not even looked into."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, below, names in os.walk(folder, onerror=refuse):
        here = Path(parent)
        inside = here.relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        if prefix and any((here / mark).is_file() for mark in MARKS):
            below.clear()
            continue
        left_out = _of_a_store(here) if "runs" in below else set()
        below[:] = [
            name
            for name in below
            # A pattern that matches a name below whatever that name is has the folder as a whole.
            if name not in left_out and not any(pattern.fullmatch(f"{prefix}{name}/\0") for pattern in patterns)
        ]
        for name in names:
            path = f"{prefix}{name}"
            if not any(pattern.fullmatch(path) for pattern in patterns) and (here / name).is_file():
                yield path


def _of_a_store(folder: Path) -> set[str]:
    """The folders that are a store's, where runs are kept here."""
    kept = any((run / name).is_file() for run in (folder / "runs").glob("*") for name in ("run.json", "head.json"))
    return {"runs", "experiments", "pipelines"} if kept else set()


def _is_run_file(path: Path) -> bool:
    """Or an experiment file, or a pipeline file."""
    text = path.read_bytes()
    kinds = (_EXPERIMENT_FILE, _PIPELINE_FILE)
    return _RUN_FILE.search(text) is not None or any(all(key.search(text) for key in keys) for keys in kinds)


def _is_inert(path: str) -> bool:
    return any(glob_pattern(glob).fullmatch(path) for glob in INERT)
