"""The rehearsal's timeline: what happened when, for people to read along."""

from __future__ import annotations

import sys
import threading
import time

from rich.console import Console
from rich.markup import escape

_COLOURS = {
    "terraform": "magenta",
    "group": "blue",
    "aws": "yellow",
    "train": "green",
    "watch": "cyan",
    "finish": "bright_blue",
    "control": "white",
    "result": "bold",
}


class Timeline:
    """Prints a line per event, with the seconds since the start and who did it. Safe from any thread.

    :param of: what stands before each line, where several timelines are told at once
    """

    def __init__(self, of: str = "") -> None:
        self._of = f"[bold]{escape(of)}[/bold]  " if of else ""
        self._began = time.time()
        self._lock = threading.Lock()
        self._console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
        self.events: list[tuple[float, str, str]] = []
        """(seconds since the start, who, what)"""

    def add(self, who: str, what: str, *, at: float | None = None) -> None:
        """:param at: seconds since the epoch, of what was written down before it is told; by default now"""
        seconds = (time.time() if at is None else at) - self._began
        colour = _COLOURS.get(who, "white")
        with self._lock:
            self.events.append((seconds, who, what))
            self._console.print(f"{self._of}[dim]{seconds:7.1f} s[/dim]  [{colour}]{who:<9}[/{colour}]  {escape(what)}")

    def title(self, text: str) -> None:
        with self._lock:
            self._console.print(f"\n[bold]{escape(text)}[/bold]")
