"""``upload`` and ``pack``: data to S3, and many small objects as few large ones."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError

_SAY_EVERY_S = 10.0


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.DATA)(upload)
    app.command(rich_help_panel=options.DATA)(pack)


def upload(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of data.", show_default=False)],
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Where it goes: s3://bucket/prefix, or a folder.", show_default=False)
    ],
) -> None:
    """Send a folder of data to S3.

    What is there already, byte for byte, does not travel: an upload that broke off goes on when it is repeated.

    `train-cloud upload ./frames s3://bucket/frames`
    """
    if not folder.is_dir():
        raise InputError("DIR", str(folder), "name an existing folder")
    from train_cloud.data.upload import upload as send

    say = _Progress("files")
    done = send(folder, url, each=lambda files, of, size: say(files, of, f", {size / 1e6:,.1f} MB sent"))
    echo(f"{done.files:,} files under {url}: {done.sent:,} sent ({done.sent_bytes / 1e6:,.1f} MB), {done.kept:,} there")


def pack(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The objects: s3://bucket/prefix, or a folder.", show_default=False)
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Where the shards go: an empty place.", show_default=False)],
    include: Annotated[
        str, typer.Option("--include", metavar="GLOB", help="Only keys that this matches, for example *.png.")
    ] = "*",
) -> None:
    """Pack many small objects into shards of 16 MB, which train_cloud.frames reads at the speed of the line.

    S3 serves about 5,500 objects a second per prefix, however small. A packing that broke off goes on when it is
    repeated.

    `train-cloud pack s3://bucket/frames s3://bucket/frames-packed`
    """
    from train_cloud.data.pack import pack as pack_objects

    done = pack_objects(url, out, include=include, each=_Progress("shards"))
    kept = f", {done.kept:,} of them there already" if done.kept else ""
    echo(f"{done.samples:,} objects ({done.bytes / 1e6:,.1f} MB) in {done.shards:,} shards under {out}{kept}")


class _Progress:
    """A line that is written over on a terminal; elsewhere one every few seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __call__(self, done: int, of: int, more: str = "") -> None:
        now = time.monotonic()
        last = done == of
        if now - self._said < (0.1 if self._terminal else _SAY_EVERY_S) and not (last and self._terminal):
            return
        self._said = now
        text = f"{done:,} of {of:,} {self._what}{more}"
        echo(f"\r{text}" if self._terminal else text, err=True, nl=last or not self._terminal)
