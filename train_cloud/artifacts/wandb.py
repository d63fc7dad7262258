"""Weights & Biases, in a process of its own, told by a line how far to go.

It reads ``progress.csv``, and sends what is committed: a row beyond the head may yet be logged otherwise. The row's
timesteps are its step there, and a step that the server has is not sent again; so one run of theirs grows over all
sessions, whoever was killed when. Its import draws random numbers, starts threads and installs hooks: none of that
happens in the process that trains.

Offline, what no earlier segment has is written as one more, at a session's beginning for those before it that were
killed, and at its end: ``wandb sync`` makes one run of them.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from train_cloud import child_process
from train_cloud.config.artifacts import Wandb as Settings
from train_cloud.errors import InputError
from train_cloud.safe_text import adopt, clean, guard, masked, masked_values

PROGRESS = "progress.csv"
SEGMENTS = "wandb"
KEY = "WANDB_API_KEY"
_SEGMENT = re.compile(r"(\d+)-(\d+)")
_INIT_SECONDS = 30.0
_RETRY_SECONDS = 60.0
_LAST_SECONDS = 120.0

log = logging.getLogger(__name__)


def check(settings: Settings, environment: Mapping[str, str]) -> None:
    """:raises InputError: the package or the key is not there"""
    # A folder `wandb/` that the client has left here is a package too, of the kind without a file.
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:
        raise InputError("wandb", settings.project, "its package is not here: pip install wandb")
    if settings.mode == "online" and not environment.get(KEY):
        raise InputError("wandb", settings.project, f"set {KEY}: name its SSM parameter under secrets, or set it here")


class Wandb:
    """The process, as the trainer has it. Nothing here waits for it, but :meth:`finish`.

    :param folder: artifact folder, which has ``progress.csv``
    :param scratch: for the client's own files
    :param config: shown there as the run's
    """

    def __init__(self, settings: Settings, run_id: str, folder: Path, scratch: Path, config: Mapping[str, Any]) -> None:
        told = {
            "settings": settings.model_dump(mode="json"),
            "run_id": run_id,
            "folder": str(folder),
            "scratch": str(scratch),
            "config": masked_values(config),
        }
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "wandb.json").write_text(json.dumps(told))
        command = child_process.command("train_cloud.artifacts.wandb", str(scratch / "wandb.json"))
        # A session of its own: Ctrl-C is the trainer's affair.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env=child_process.environment(),
        )

    def committed(self, timesteps: int) -> None:
        """Rows up to here are there to stay."""
        self._tell(f"{timesteps}\n")

    def finish(self, seconds: float) -> None:
        """Have the rest sent. What has not arrived in time is sent by the next session."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            log.warning("Weights & Biases has not got everything: %s has it, and the next session sends it", PROGRESS)
            self.kill()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it has died; it said why
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def rows(path: Path, after: int, until: int) -> Iterator[tuple[int, dict[str, float]]]:
    """The table's rows in ``(after, until]``: timesteps and what is a number."""
    with contextlib.suppress(FileNotFoundError), path.open(newline="") as file:
        for row in csv.DictReader(file):
            timesteps = row.pop("timesteps", "") or ""
            if not timesteps.isdigit() or not after < int(timesteps) <= until:
                continue
            values = {}
            for name, text in row.items():
                with contextlib.suppress(TypeError, ValueError):
                    values[name] = float(text)
            yield int(timesteps), values


# ------------------------------------------------------------------------------------------------------- in the process


class _Sender:
    def __init__(self, told: Mapping[str, Any]) -> None:
        self.settings = Settings.model_validate(told["settings"])
        self.folder, self.scratch = Path(told["folder"]), Path(told["scratch"])
        self._run_id, self._config = told["run_id"], told["config"]
        self._run: Any = None
        self._sent = -1
        self._next_attempt = 0.0

    def send(self, until: int) -> None:
        """Online: what is new up to there. A server that does not answer is asked again a minute later."""
        if self._run is None and time.monotonic() >= self._next_attempt:
            self._run = self._reached()
        if self._run is None:
            return
        for timesteps, values in rows(self.folder / PROGRESS, self._sent, until):
            self._run.log({**values, "timesteps": timesteps}, step=timesteps, commit=True)
            self._sent = timesteps

    def segment(self, until: int) -> None:
        """Offline: a segment of what no earlier one has."""
        there = self.folder / SEGMENTS
        names = [path.name for path in there.iterdir()] if there.is_dir() else []
        after = max((int(found[2]) for name in names if (found := _SEGMENT.fullmatch(name))), default=-1)
        new = list(rows(self.folder / PROGRESS, after, until))
        if not new:
            return
        unfinished = there / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        run = self._init(unfinished, mode="offline")
        for timesteps, values in new:
            run.log({**values, "timesteps": timesteps}, step=timesteps, commit=True)
        run.finish()
        for path in unfinished.rglob("*"):
            if path.is_symlink():
                path.unlink()
        unfinished.rename(there / f"{new[0][0]:012d}-{new[-1][0]:012d}")

    def finish(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _reached(self) -> Any:
        import wandb

        try:
            run = self._init(self.scratch, mode="online", resume="allow")
        except (wandb.errors.Error, OSError, TimeoutError) as error:
            if self._next_attempt == 0.0:
                said = " ".join(str(error).split())
                words = f"Weights & Biases is not reached; the training goes on without: {said}"
                print(clean(masked(words)), file=sys.stderr)
            self._next_attempt = time.monotonic() + _RETRY_SECONDS
            return None
        self._sent = run.starting_step - 1
        return run

    def _init(self, folder: Path, **more: Any) -> Any:
        import wandb

        run = wandb.init(
            project=self.settings.project,
            entity=self.settings.entity,
            name=self.settings.name or self._run_id,
            group=self.settings.group,
            tags=list(self.settings.tags) or None,
            id=self._run_id,
            dir=str(folder),
            config=self._config,
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, init_timeout=_INIT_SECONDS
            ),
            **more,
        )
        run.define_metric("*", step_metric="timesteps")
        return run


def main(path: str) -> None:
    """Lines on standard input say up to which timesteps all is committed; its end, that this was the last."""
    adopt()
    guard()
    sender = _Sender(json.loads(Path(path).read_text()))
    if sender.settings.base_url is not None:
        os.environ["WANDB_BASE_URL"] = sender.settings.base_url
    if hasattr(os, "nice"):
        os.nice(10)
    news, over = threading.Event(), threading.Event()
    committed = -1

    def listen() -> None:
        nonlocal committed
        for line in sys.stdin:
            committed = int(line)
            news.set()
        over.set()
        news.set()
        # A trainer that was killed waits for nobody: nor does this process for a server that does not answer.
        time.sleep(_LAST_SECONDS)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    offline = sender.settings.mode == "offline"
    first = True
    while not over.is_set():
        news.wait(_RETRY_SECONDS)
        news.clear()
        if committed >= 0 and not offline:
            sender.send(committed)
        elif committed >= 0 and first:
            sender.segment(committed)
            first = False
    if offline:
        sender.segment(committed)
    else:
        sender.send(committed)
        sender.finish()


if __name__ == "__main__":
    main(sys.argv[1])
