"""What commands print: names and messages may come from anybody's store, and none of them commands the terminal."""

from __future__ import annotations

import typer

from train_cloud.safe_text import clean


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a line."""
    typer.echo(clean(text), err=err, nl=nl)
