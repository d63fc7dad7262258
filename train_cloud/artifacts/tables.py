"""Tables that grow by a row at a time and stay one table over all sessions: ``progress.csv``, ``monitor.csv``.

Their first column is ``timesteps``. Whatever stands beyond the head is logged again, as with event files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from train_cloud.whole_file import write_whole

_LINE = 1 << 16
"""Bytes. Few lines are longer; of one that is, the whole table is an end."""


def cut(path: Path, timesteps: int) -> bool:
    """Remove the rows beyond ``timesteps``, and a torn last one. Lines before the first row stay.

    :return: whether the file changed
    """
    if not path.exists():
        return False
    body = path.read_bytes()
    kept = []
    for line in body.splitlines(keepends=True):
        first = line.partition(b",")[0]
        if line.endswith(b"\n") and not (first.isdigit() and int(first) > timesteps):
            kept.append(line)
    left = b"".join(kept)
    if left == body:
        return False
    write_whole(path, left)
    return True


def end(path: Path, start: int) -> bytes:
    """The table's head, and its rows from the one on that byte ``start`` is in. A row that has begun stays out."""
    with path.open("rb") as file:
        top = b"".join(_head(iter(file.readline, b"")))
        for at in (max(len(top), start - _LINE), len(top)):
            file.seek(at)
            body = file.read()
            first = body.rfind(b"\n", 0, max(0, start - at)) + 1
            if first > 0 or at == len(top):  # a row begins there
                break
    return top + body[first : body.rfind(b"\n") + 1]


def extend(path: Path, more: bytes) -> None:
    """Append the rows of another table that this one lacks, columns by their names; new ones go to the right. A torn
    last row goes.
    """
    top, columns, rows = _parsed(path.read_bytes() if path.exists() else b"")
    if not columns:  # nor a row
        write_whole(path, more)
        return
    _, others, candidates = _parsed(more)
    known = {_content(columns, row) for row in rows}
    missing = [row for row in candidates if _content(others, row) not in known]
    if not missing:
        return
    wide = [*columns, *(column for column in others if column not in columns)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(wide)
    writer.writerows([*row, *[""] * (len(wide) - len(row))] for row in rows)
    for row in missing:
        cells = dict(zip(others, row, strict=False))
        writer.writerow([cells.get(column, "") for column in wide])
    write_whole(path, top + text.getvalue().encode())


def _head(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Comments, and the names of the columns."""
    for line in lines:
        yield line
        if not line.startswith(b"#"):
            return


def _parsed(body: bytes) -> tuple[bytes, list[str], list[list[str]]]:
    """Comments, columns, rows."""
    lines = body[: body.rfind(b"\n") + 1].splitlines(keepends=True)
    comments = [line for line in _head(lines) if line.startswith(b"#")]
    cells = list(csv.reader(line.decode() for line in lines[len(comments) :]))
    return b"".join(comments), cells[0] if cells else [], cells[1:]


def _content(columns: list[str], row: list[str]) -> frozenset[tuple[str, str]]:
    """Of a row, whatever columns came after it."""
    return frozenset((column, cell) for column, cell in zip(columns, row, strict=False) if cell)
