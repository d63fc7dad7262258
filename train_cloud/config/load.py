"""From a file on disk to a checked :class:`RunFile`: YAML 1.2, aliases, overrides, errors that name field and fix."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from train_cloud.config.architecture import Architecture
from train_cloud.config.artifacts import Artifacts, Wandb
from train_cloud.config.curriculum import Advance, Curriculum, Mix, Regress, Stage
from train_cloud.config.environment import Environment
from train_cloud.config.evaluation import Category, Evaluation, Routes, Video
from train_cloud.config.initial_model import InitialModel
from train_cloud.config.pretraining import MINARI, Keep, Pretraining
from train_cloud.config.pretraining import placed as placed_demonstrations
from train_cloud.config.ray import Ray
from train_cloud.config.reproducibility import Reproducibility
from train_cloud.config.run_file import Code, Limits, Preservation, RunFile
from train_cloud.config.sagemaker import SageMaker
from train_cloud.config.score import Score
from train_cloud.errors import InputError, suggestion

#: Names that users of the predecessor know; ``total_timesteps`` and ``save_frequency`` are the same in both. And what a
#: loop of one's own has instead of timesteps.
ALIASES = {"training_type": "algorithm", "total_steps": "total_timesteps"}

_MOST_CHARACTERS, _MOST_VALUES = 1_000_000, 50_000

INSTEAD = {"save_frequency": "max_seconds_at_risk", "max_seconds_at_risk": "save_frequency"}
"""Of these fields one is enough, and takes the other's place."""

_SECTIONS: dict[str, type[BaseModel]] = {
    "": RunFile,
    "architecture": Architecture,
    "environment": Environment,
    "curriculum": Curriculum,
    "curriculum.stages.*": Stage,
    "curriculum.advance": Advance,
    "curriculum.regress": Regress,
    "curriculum.mix": Mix,
    "code": Code,
    "initial_model": InitialModel,
    "pretraining": Pretraining,
    "pretraining.keep": Keep,
    "limits": Limits,
    "preservation": Preservation,
    "score": Score,
    "reproducibility": Reproducibility,
    "sagemaker": SageMaker,
    "ray": Ray,
    "artifacts": Artifacts,
    "wandb": Wandb,
    "evaluation": Evaluation,
    "evaluation.environment": Environment,
    "evaluation.categories.*": Category,
    "evaluation.video": Video,
    "evaluation.routes": Routes,
}


class _Constructor(SafeConstructor):
    """YAML 1.2 has no timestamps; ruamel would turn ``run_id: 2024-01-01`` into a date."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def read_yaml(text: str, source: str) -> Any:
    """One YAML 1.2 document as plain Python values.

    :param source: named in errors: the file, or the option that the text came from
    :raises InputError: not YAML, a key written twice, more than one document, or YAML 1.1 asked for; larger, deeper or,
        by its aliases, longer than any run file
    """
    if len(text) > _MOST_CHARACTERS:
        raise InputError(
            source, f"{len(text):,} characters", f"name a run file: none has more than {_MOST_CHARACTERS:,}"
        )
    if text.lstrip().startswith("%YAML") and not text.lstrip().startswith("%YAML 1.2"):
        raise InputError(source, text.split("\n", 1)[0], "remove this line: run files are YAML 1.2")
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    yaml.Constructor = _Constructor
    try:
        if _is_long(yaml.compose(text)):
            fix = f"write it out: with its aliases (*name) it has more than {_MOST_VALUES:,} values, or contains itself"
            raise InputError(source, text[:40], fix)
        return yaml.load(text)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(source, text[:40], "correct the YAML: it is nested too deeply") from error
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1]
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(key, f"{source}, line {line}", "it is written twice: keep one") from error
    except MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else "?"
        problem = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise InputError(source, where, f"correct the YAML: {problem}") from error
    except (YAMLError, ValueError, LookupError, TypeError) as error:  # as of a tag with a value that it does not have
        raise InputError(source, text[:40], f"correct the YAML: {' '.join(str(error).split())}") from error


def _is_long(root: Any) -> bool:
    """Whether a text has more values than any run file: with aliases a short one may mean much, or contain itself.

    :param root: its node, in which aliases are not yet followed
    """
    count, waiting = 0, [root]
    while waiting and count <= _MOST_VALUES:
        value = getattr(waiting.pop(), "value", None)
        for below in value if isinstance(value, list) else ():
            waiting += below if isinstance(below, tuple) else (below,)
            count += 1
    return count > _MOST_VALUES


def load_run_file(
    path: str | Path, overrides: Sequence[str] = (), *, extra: Mapping[str, object] | None = None
) -> RunFile:
    """Read and check a run file. The file is overruled by ``extra``, and both by ``overrides``.

    :param overrides: ``key=value`` or ``key.sub=value`` as given with ``--set``; values are YAML
    :param extra: the same keys with parsed values, as Terraform uploads them; by default what lies in the JSON file
        named by the variable ``TRAIN_CLOUD_OVERRIDES``, where that is set
    :raises InputError: naming field, value and fix
    """
    path = Path(path)
    values = read_mapping(path, "run file", "run_id")
    if describes_experiment(values):
        fix = "it is an experiment file, and stands for many runs: train-cloud expand writes a run file for each"
        raise InputError("run file", str(path), fix)
    if describes_pipeline(values):
        raise InputError("run file", str(path), "it is a pipeline file: train-cloud pipeline is for these")
    return parse_run_file(values, overrides, extra=launched_with() if extra is None else extra, base=path.parent)


def describes_experiment(values: Mapping[Any, Any]) -> bool:
    """Whether a file's content is that of an experiment file (config/experiment.py), and no run file's."""
    return bool(values.keys() & {"base", "vary", "search"})


def describes_pipeline(values: Mapping[Any, Any]) -> bool:
    """The same of a pipeline file (config/pipeline.py)."""
    return "sessions" in values and ("run_id" not in values or values.get("launched") is True)


def read_mapping(path: Path, what: str, first: str) -> dict[Any, Any]:
    """The map that a YAML file holds.

    :param what: the file is, for errors
    :param first: the key that such a file begins with
    :raises InputError: it cannot be read, or holds something else
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(what, str(path), "name an existing file") from None
    except UnicodeDecodeError:
        raise InputError(what, str(path), "save it as UTF-8 text") from None
    except OSError as error:
        raise InputError(what, str(path), f"make it readable: {error.strerror}") from error
    values = read_yaml(text, path.name)
    if not isinstance(values, dict):
        raise InputError(what, str(path), f"write a mapping that begins with {first}: <name>")
    return values


def parse_run_file(
    values: Mapping[str, object],
    overrides: Sequence[str] = (),
    *,
    extra: Mapping[str, object] | None = None,
    base: Path | None = None,
) -> RunFile:
    """Check a run file's content that is in memory already.

    Of fields that stand for each other one is enough to overrule the other.

    :param base: the folder that relative paths refer to, by default the current one
    """
    tree = _canonical(values)
    for key, value in [*(extra or {}).items(), *parse_overrides(overrides).items()]:
        put(tree, key, value)
    _place_paths(tree, (base or Path()).absolute())
    try:
        return RunFile.model_validate(tree)
    except ValidationError as error:
        raise explain(error) from error


def dump_run_file(run_file: RunFile, folder: Path, comment: str) -> str:
    """A run file's text: what differs from the defaults.

    :param folder: where it will lie, to which its paths are relative
    :param comment: one line at its top
    """
    values = run_file.model_dump(mode="json", exclude_defaults=True)
    for name in ("folder", "requirements"):
        path = getattr(run_file.code, name)
        if path is not None:
            values["code"][name] = Path(os.path.relpath(path, folder)).as_posix()
    if run_file.initial_model is not None and run_file.initial_model.path is not None:
        values["initial_model"]["source"] = Path(os.path.relpath(run_file.initial_model.path, folder)).as_posix()
    if run_file.pretraining is not None and run_file.pretraining.path is not None:
        path = Path(os.path.relpath(run_file.pretraining.path, folder)).as_posix()
        values["pretraining"]["demonstrations"] = path
    text = io.StringIO()
    YAML().dump(values, text)
    return f"# {comment}\n{text.getvalue()}"


def parse_overrides(overrides: Sequence[str]) -> dict[str, object]:
    """``key=value`` as given with ``--set``, in order; of one key the last counts."""
    parsed: dict[str, object] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError("--set", override, "write key=value, for example total_timesteps=2e6")
        key = key.strip()
        parsed.pop(key, None)
        parsed[key] = read_yaml(text, f"--set {key}")
    return parsed


def launched_with() -> Mapping[str, object]:
    """Keys with parsed values that overrule the run file, in the JSON file that ``TRAIN_CLOUD_OVERRIDES`` names."""
    path = os.environ.get("TRAIN_CLOUD_OVERRIDES")
    if not path:
        return {}
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError("TRAIN_CLOUD_OVERRIDES", path, f"name a file that holds a JSON object: {error}") from error
    if not isinstance(content, dict):
        raise InputError("TRAIN_CLOUD_OVERRIDES", path, "name a file that holds a JSON object")
    return content


def _canonical(values: Mapping[str, object]) -> dict[str, Any]:
    """The top level with its aliases resolved."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise InputError(str(key), value, "this key is not text: put it in quotes")
        name = ALIASES.get(key, key)
        if name in tree:
            raise InputError(key, value, f"{name} is given twice ({' and '.join(sorted({key, name}))}): keep one")
        tree[name] = value
    return tree


def merge(values: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, Any]:
    """A run file's content with other content laid over it: maps are merged key by key, all else is replaced.

    :param changes: their keys may be dotted
    :raises InputError: a key of ``changes`` goes through something that is no map
    """
    tree = _canonical(values)
    for key, value in changes.items():
        if not isinstance(key, str):
            raise InputError(str(key), value, "this key is not text: put it in quotes")
        if not all(key.split(".")):
            raise InputError(key, value, "write key or key.sub, as in the run file")
        put(tree, key, value, merging=True)
    return tree


def _merged(below: object, value: object) -> object:
    if not isinstance(below, dict) or not isinstance(value, dict):
        return value
    return {**below, **{key: _merged(below.get(key), item) for key, item in value.items()}}


def put(tree: dict[str, Any], key: str, value: object, *, merging: bool = False) -> None:
    """Set ``a.b.c`` in a run file's content; the maps on the way are copied, because the caller's must not change.

    Of fields that stand for each other, the other one goes.

    :param merging: a map is merged into the one that is there
    """
    names = key.split(".")
    names[0] = ALIASES.get(names[0], names[0])
    if key in INSTEAD and value is not None:
        tree[INSTEAD[key]] = None
    if not all(names):
        raise InputError("--set", key, "write key=value or key.sub=value")
    for depth, name in enumerate(names[:-1], start=1):
        below = tree.get(name)
        if below is not None and not isinstance(below, dict):
            raise InputError(key, value, f"{'.'.join(names[:depth])} is {below!r}, not a map: set it as a whole")
        tree[name] = dict(below or {})
        tree = tree[name]
    tree[names[-1]] = _merged(tree.get(names[-1]), value) if merging else value


def _place_paths(tree: dict[str, Any], base: Path) -> None:
    """Paths in a run file are relative to it. On a worker the code lies where ``TRAIN_CLOUD_CODE`` says."""
    code = dict(tree["code"]) if isinstance(tree.get("code"), dict) else {}
    written = code["folder"] if isinstance(code.get("folder"), str) else None
    on_worker = os.environ.get("TRAIN_CLOUD_CODE")

    def place(path: str) -> Path:
        if on_worker and written is not None:  # only the folder is there
            return Path(os.path.normpath(Path(on_worker) / os.path.relpath(Path(path).expanduser(), written)))
        return (base / Path(path).expanduser()).resolve()

    if written is not None:
        code["folder"] = Path(on_worker) if on_worker else place(written)
        if not code["folder"].is_dir():
            raise InputError("code.folder", written, f"name an existing folder; {code['folder']} is none")
    if isinstance(code.get("requirements"), str):
        code["requirements"] = place(code["requirements"])
    if code:
        tree["code"] = code
    model = tree.get("initial_model")
    source = model.get("source") if isinstance(model, dict) else model
    if isinstance(source, str) and not source.startswith(("run:", "s3:")):
        tree["initial_model"] = {**(model if isinstance(model, dict) else {}), "source": str(place(source))}
    learned = tree.get("pretraining")
    source = learned.get("demonstrations") if isinstance(learned, dict) else learned
    if isinstance(source, str) and not source.startswith(("s3:", MINARI)):
        path = placed_demonstrations(source, place(source))
        tree["pretraining"] = {**(learned if isinstance(learned, dict) else {}), "demonstrations": path}


def explain(error: ValidationError, sections: Mapping[str, type[BaseModel]] = _SECTIONS) -> InputError:
    """The first of pydantic's findings as one sentence; an unknown key first, as it often explains a missing one.

    :param sections: dotted name of a section → what may stand in it; the run file's by default
    """
    findings = sorted(error.errors(include_url=False), key=lambda finding: finding["type"] != "extra_forbidden")
    first = _finding(findings[0], sections)
    # What stands above the field is told only because it might have been of another type.
    names = dict.fromkeys(_name(finding) for finding in findings[1:])
    others = [name for name in names if not f"{first.field}.".startswith(f"{name}.")]
    told = type(first)(first.field, first.value, f"{first.fix} (also: {', '.join(others)})") if others else first
    told.beside = (first, *(_finding(one, sections) for one in findings[1:] if _name(one) in others))
    return told


def every_finding(error: InputError) -> tuple[InputError, ...]:
    """All that :func:`explain` has found, or this error alone."""
    return error.beside or (error,)


def _name(finding: ErrorDetails) -> str:
    # pydantic appends pseudo-fields for a map's keys and for members of a union: no such name stands in the file.
    return ".".join(str(part) for part in finding["loc"] if not (isinstance(part, str) and "[" in part))


def _finding(finding: ErrorDetails, sections: Mapping[str, type[BaseModel]]) -> InputError:
    kind, context, name, value = finding["type"], finding.get("ctx", {}), _name(finding), finding["input"]
    raised = context.get("error")
    if isinstance(raised, InputError):
        return raised
    if kind == "extra_forbidden":
        section, _, key = name.rpartition(".")
        if section not in sections:  # of a map from names to sections
            section = next(name for name in sections if name.endswith("*") and section.startswith(name[:-1]))
        known = (*sections[section].model_fields, *(ALIASES if sections[section] is RunFile else ()))
        return InputError(name, value, f"unknown key: {suggestion(key, known) or 'use one of ' + ', '.join(known)}")
    fixes = {
        "missing": "it is required: add it",
        "int_type": "give a whole number, without quotes",
        "float_type": "give a number, without quotes",
        "string_type": "give text; put it in quotes if it looks like a number",
        "string_too_short": "it is empty: give a name",
        "dict_type": "give a map: {name: value}",
        "model_type": "give a map: {name: value}",
        "tuple_type": "give a list: [first, second]",
        "path_type": "give a path, as text",
        "finite_number": "give a finite number",
        "bool_type": "give true or false",
        "literal_error": f"use {context.get('expected', '')}".replace("'", ""),
        "greater_than_equal": f"give a number of at least {context.get('ge')}",
        "greater_than": f"give a number above {context.get('gt')}",
        "less_than_equal": f"give a number of at most {context.get('le')}",
        "less_than": f"give a number below {context.get('lt')}",
        "too_short": f"it has {context.get('actual_length')}, give at least {context.get('min_length')}",
        "too_long": f"it has {context.get('actual_length')}, give at most {context.get('max_length')}",
    }
    if kind == "missing":
        value = None
    return InputError(name, value, fixes.get(kind) or (str(raised) if raised else finding["msg"]))
