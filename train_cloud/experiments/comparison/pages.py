"""What a comparison and a search leave in a folder: a page, pictures, tables, and all of it as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from pydantic import BaseModel

from train_cloud.experiments.comparison.pictures import Picture
from train_cloud.whole_file import write_whole


def write_page(
    out: Path, page: str, pictures: Sequence[Picture], tables: Mapping[str, str], found: BaseModel, name: str
) -> Path:
    """Files of other names stay.

    :param out: a folder, which is made
    :param page: HTML
    :param tables: CSV by file name
    :param name: of the JSON file with what was found
    :return: the page's path
    """
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        write_whole(out / f"{picture.name}.png", picture.body)
    for file, text in tables.items():
        write_whole(out / file, text.encode())
    write_whole(out / name, (found.model_dump_json(indent=1) + "\n").encode())
    path = out / "index.html"
    write_whole(path, page.encode())
    return path


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """With all columns of all rows; empty where there is no row."""
    every = list(rows)
    if not every:
        return ""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in every for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _as_text(value) for key, value in row.items()} for row in every)
    return file.getvalue()


def _as_text(value: Any) -> Any:
    """A spreadsheet would compute a text that begins so; the apostrophe shows it what is meant."""
    if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return value
    try:
        return value if [float(word) for word in value.split()] else f"'{value}"
    except ValueError:
        return f"'{value}"


@cache
def template(name: str) -> jinja2.Template:
    """:param name: of a file beside this one"""
    loader = jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(name)
