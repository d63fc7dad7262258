"""What the trial of an environment's state found, kept in the checkpoint: the next session need not try it again.

The trial (:func:`train_cloud.envs.state.choose`) is about code: whether what is taken from one instance and put into
another makes it do the same. So what it found holds as long as the code does:

- what asked for the environment, the user's code folder by its digest in it, and Python itself
- installed packages, by their ``RECORD`` (PyPA, "Recording installed projects"), which has a digest of each file
- the packages that the environment and its wrappers come from, file by file, wherever they lie
- every other loaded module that neither Python nor an installed package has brought, by its bytes

Whatever differs, and whatever cannot be told, is tried again. So what one run of an experiment has found holds for all
others with the same environment, and lies in a folder of the experiment's meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from train_cloud.envs import TRIALS
from train_cloud.envs.make import FAILURES
from train_cloud.envs.state import PROVIDERS
from train_cloud.envs.trial import Choice
from train_cloud.installed import is_installed
from train_cloud.whole_file import write_whole


def record(choice: Choice, asked: Mapping[str, Any], sources: Collection[str]) -> dict[str, Any]:
    """For a checkpoint's facts, as JSON values. Call when the training's environments are made: what they have loaded
    counts.

    :param asked: all that decides how an environment is made, as JSON values
    :param sources: modules that it comes from; the packages that these are in count as a whole
    """
    packages = {name: _package(name) for name in sorted({source.split(".")[0] for source in sources})}
    modules = sorted(_loose_modules(set(packages)))
    return {
        **_as_json(choice),
        "stages": [_as_json(stage) for stage in choice.stages],
        "asked": _told(asked),
        "python": _python(),
        "installed": _installed(),
        "packages": packages,
        "modules": modules,
        "content": _told([_module(name) for name in modules]),
    }


def recall(recorded: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> Choice | None:
    """The choice that was recorded; None where it must be made anew.

    :param recorded: what :func:`record` gave; None where nothing is known
    """
    if recorded is None or recorded["provider"] not in PROVIDERS:
        return None
    if (recorded["asked"], recorded["python"], recorded["installed"]) != (_told(asked), _python(), _installed()):
        return None
    if any(digest is None or _package(name) != digest for name, digest in recorded["packages"].items()):
        return None
    if recorded["content"] != _told([_module(name) for name in recorded["modules"]]):
        return None
    return replace(_from_json(recorded), stages=tuple(map(_from_json, recorded.get("stages", ()))))


def shared(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What another run of the experiment has recorded for the same; None outside of one, and where nobody has."""
    try:
        path = _shared_file(_told(asked))
        found = json.loads(path.read_text()) if path is not None else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def share(recorded: Mapping[str, Any]) -> None:
    """For the other runs of the experiment; a disk that is full costs them no more than a trial."""
    if (path := _shared_file(recorded["asked"])) is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            write_whole(path, json.dumps(recorded).encode())


def _shared_file(asked: str) -> Path | None:
    folder = os.environ.get(TRIALS)
    return Path(folder) / f"{asked}.json" if folder else None


def _as_json(choice: Choice) -> dict[str, Any]:
    return {
        "provider": choice.provider,
        "exact": choice.exact,
        "because": choice.because,
        "notes": list(choice.notes),
        "uncopied": list(choice.uncopied),
    }


def _from_json(recorded: Mapping[str, Any]) -> Choice:
    notes, uncopied = (tuple(recorded.get(name, ())) for name in ("notes", "uncopied"))
    return Choice(recorded["provider"], recorded["exact"], recorded["because"], notes, uncopied)


def _told(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()} {platform.system()} {platform.machine()}"


def _installed() -> str:
    """Of every distribution where Python looks for one."""
    records = {}
    for folder in dict.fromkeys(sys.path):
        for path in Path(folder).glob("*.dist-info") if folder else ():
            files = path / "RECORD"
            records[path.name] = hashlib.sha256(files.read_bytes() if files.exists() else b"").hexdigest()
    return _told(records)


def _package(name: str) -> str | None:
    """Of all Python files of a package, or of a module that is one file; None where it cannot be found."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
        files = {str(path.relative_to(folder)): path for folder in folders for path in folder.rglob("*.py")}
        if not folders and spec.origin is not None:
            files = {name: Path(spec.origin)}
        return _told({place: _digest(path) for place, path in files.items()})
    except FAILURES:  # whatever a loader of the user's raises
        return None


def _loose_modules(without: Collection[str]) -> Iterator[str]:
    """Names of the loaded modules that neither Python nor an installed package has brought.

    :param without: packages
    """
    for name, module in list(sys.modules.items()):
        path, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
        if path is None or spec is None or name != spec.name or name.split(".")[0] in without:
            continue
        if name.split(".")[0] == __package__.split(".")[0] and not name.startswith(f"{__package__}."):
            continue  # of this package only what makes the trial has a part in what it finds
        if not is_installed(path):
            yield name


def _module(name: str) -> str | None:
    """Of the file that an import would read now; its packages are imported for that, the module itself is not."""
    try:
        spec = importlib.util.find_spec(name)
        return _digest(Path(spec.origin)) if spec is not None and spec.origin is not None else None
    except FAILURES:  # of the user's packages, or a module that is there no longer
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def loaded_code() -> dict[str, Any]:
    """What this process runs that neither Python nor an installed package nor this one has brought: JSON values for
    :func:`is_unchanged`.
    """
    ours = __package__.split(".")[0]
    modules = sorted(name for name in _loose_modules(()) if name.split(".")[0] != ours)
    return {"modules": modules, "content": _told([_module(name) for name in modules])}


def is_unchanged(code: Mapping[str, Any]) -> bool:
    """Whether an import would find the same now.

    :param code: what :func:`loaded_code` gave, in this process or another one
    """
    return bool(code["content"] == _told([_module(name) for name in code["modules"]]))
