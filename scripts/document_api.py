"""Writes docs/api.md from the docstrings of what ``train_cloud`` offers; with --check it says whether it is current."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import train_cloud

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "api.md"
HEAD = """\
# The Python API

`scripts/document_api.py` writes this page from the docstrings; `make check` refuses one that is not current. These
names are the public ones: they keep their meaning within a major version. Everything else in the package may change.

"""
GROUPS = {
    "In a training script": (
        "run_file",
        "checkpoints",
        "stateful",
        "resumable",
        "batches",
        "frames",
        "artifact_folder",
    ),
    "From outside": ("load_run_file", "train", "Pipeline", "open_store", "run_ids", "run_status", "export"),
    "What these return": ("RunFile", "RunStatus", "ObjectStore", "PipelineSession", "SessionResult"),
    "What they raise": ("TrainCloudError", "InputError", "Interrupted", "Fenced"),
}


def words(text: str) -> str:
    """reStructuredText's marks as Markdown's."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    return text.replace("``", "`").replace("::\n", ":\n")


def documentation(text: str) -> str:
    """A docstring with its fields as a list."""
    head, *fields = re.split(r"^(?=:(?:param|return|raises))", inspect.cleandoc(text), flags=re.MULTILINE)
    lines = [words(head.strip()), ""]
    for field in fields:
        mark, _, said = field[1:].partition(":")
        kind, _, name = mark.partition(" ")
        said = " ".join(words(said).split())
        shown = {"param": f"`{name}`", "return": "returns", "raises": f"raises `{name}`"}[kind]
        lines.append(f"- {shown}: {said}")
    return "\n".join(lines).rstrip() + "\n"


class _AsWritten:
    """An annotation that is shown as its text in the source, without quotes and modules."""

    def __init__(self, text: str) -> None:
        self.text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)

    def __repr__(self) -> str:
        return self.text


def signature(name: str, function: Any) -> str:
    """On one line where that fits."""
    found = inspect.signature(function)
    own = [
        each.replace(annotation=_AsWritten(each.annotation))
        for each in found.parameters.values()
        if each.name != "self"
    ]
    found = found.replace(parameters=own, return_annotation=_AsWritten(found.return_annotation))
    whole = f"{name}{found}"
    if len(whole) <= 100:
        return whole
    lines = []
    for before, each in zip([None, *own], own, strict=False):
        only = inspect.Parameter.KEYWORD_ONLY
        lines += ["    *,"] if each.kind is only and (before is None or before.kind is not only) else []
        lines.append(f"    {each},")
    return "\n".join([f"{name}(", *lines, f") -> {found.return_annotation}"])


def fields(kind: type) -> list[str]:
    """Of a model: each field, its type, and the text below it."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    lines = []
    for node, below in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or ast.unparse(node.target) == "model_config":
            continue
        said = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            said = ": " + " ".join(words(str(below.value.value)).split())
        lines.append(f"- `{ast.unparse(node.target)}: {ast.unparse(node.annotation)}`{said}")
    return lines


def methods(kind: type) -> list[str]:
    lines = []
    for name, function in vars(kind).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            lines += [f"```python\n{signature(name, function)}\n```\n", documentation(function.__doc__ or "")]
    return lines


def section(name: str) -> str:
    found = getattr(train_cloud, name)
    lines = [f"### {name}", ""]
    if not inspect.isclass(found):
        return "\n".join([*lines, f"```python\n{signature(name, found)}\n```\n", documentation(found.__doc__ or "")])
    lines.append(documentation(found.__doc__ or ""))
    if name == "RunFile":
        lines.append("Its fields are those of the file: [run-file.md](run-file.md).\n")
    elif name == "RunStatus":
        lines += [*fields(found), ""]
    elif name == "ObjectStore":
        lines += methods(found)
    return "\n".join(lines)


def page() -> str:
    named = [name for names in GROUPS.values() for name in names]
    assert sorted([*named, "__version__"]) == sorted(train_cloud.__all__), "GROUPS and train_cloud.__all__ differ"
    parts = [HEAD + documentation(train_cloud.__doc__ or "") + "\n`train_cloud.__version__` is the version, as text.\n"]
    for title, names in GROUPS.items():
        parts += [f"## {title}\n", *(section(name) for name in names)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    text = page()
    if arguments != ["--check"]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.relative_to(REPOSITORY)} is not what the docstrings say: run scripts/{Path(__file__).name}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
