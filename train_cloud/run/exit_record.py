"""How the attempt before this one ended: left on the machine's disk by whoever knew, read when the run is taken again.

A trainer that is killed cannot say why, and its head would not either. systemd knows, and tells what it runs after each
attempt (``ExecStopPost=``); what stood still is seen by the trainer's own heartbeat. And one that left by itself with
all committed has not failed, whoever starts it again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import BaseModel, ValidationError

from train_cloud.safe_text import masked
from train_cloud.whole_file import write_local

_LEFT, _KILLED, _STOOD = "left.json", "killed.json", "stood.txt"
#: Names of these, below the state folder.
FILES = (_LEFT, _KILLED, _STOOD)
_LONGEST = 4000
"""Characters: it goes into the head."""


class Ending(NamedTuple):
    failed: bool
    """Whether it counts as an attempt."""
    words: str | None
    """What ended it, where it could not say so itself."""


class Attempt(Protocol):
    """What the machine's supervisor knows of the trainer's process."""

    @property
    def killed(self) -> bool:
        """What ended it was no exit of its own."""

    def in_words(self) -> str:
        """How it ended, as the end of a sentence that begins with "the trainer"."""


class _Left(BaseModel):
    boot_id: str
    restart: int


class _Killed(BaseModel):
    boot_id: str
    words: str


def leave(state_dir: Path, boot_id: str, restart: int) -> None:
    """By the trainer: it goes, and all is committed."""
    write_local(state_dir / _LEFT, {"boot_id": boot_id, "restart": restart})


def stand_still(state_dir: Path, words: str) -> None:
    """By the trainer's heartbeat: systemd is about to kill it, and this is where it stands."""
    (state_dir / _STOOD).write_text(masked(words))


def note_kill(state_dir: Path, boot_id: str, train: Attempt) -> None:
    """By what systemd runs after the trainer: it had no last word."""
    if train.killed:
        write_local(state_dir / _KILLED, {"boot_id": boot_id, "words": f"the trainer {train.in_words()}"})


def last_ending(state_dir: Path, boot_id: str, restart: int) -> Ending:
    """How the process before restart number ``restart`` ended. Asked once: the next one finds nothing of it."""
    left, killed, stood = (_take(state_dir / name) for name in (_LEFT, _KILLED, _STOOD))
    try:
        gone = _Left.model_validate_json(left)
        failed = (gone.boot_id, gone.restart) != (boot_id, restart - 1)
    except ValidationError:
        failed = True
    words = []
    try:
        found = _Killed.model_validate_json(killed)
        words = [found.words] if found.boot_id == boot_id else []
    except ValidationError:
        pass
    if stood:
        words.append(stood[-_LONGEST:])
    return Ending(failed, "\n".join(words) or None)


def _take(path: Path) -> str:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ""
    path.unlink(missing_ok=True)
    return text
