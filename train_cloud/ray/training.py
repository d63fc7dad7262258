"""One run that is trained on this node, by whoever Ray lets work here: a task of a launch, a trial of Tune.

The training is a process of its own, with nothing of Ray in it. What it needs comes with the order; what it has done is
in the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from train_cloud import child_process
from train_cloud.config import Code, code_files, variables
from train_cloud.config.code import mark_as_cache
from train_cloud.errors import Interrupted, StoreError
from train_cloud.experiments.processes import OUTPUT, is_locked, last_words, training_environment
from train_cloud.experiments.standing import run_store
from train_cloud.platforms.ec2.notices import NOTICE_FILE, Notice, local_form, record_form
from train_cloud.platforms.ray_node import NODE, SHARE
from train_cloud.ray.node import NodeNotices, drain
from train_cloud.run.head import read_head
from train_cloud.run.session import Session, last_session, record_notice
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.whole_file import write_local, write_whole

log = logging.getLogger(__name__)

#: Where the sessions' files lie on a node, below the home folder of Ray's user.
FOLDER = Path(".train-cloud") / "ray"
#: How long the training of this run that was here before may take for its last commit.
_PREDECESSOR_SECONDS = 150.0
_LIMIT_FILE = "limit.txt"


@dataclass(frozen=True)
class Order:
    """What is to be trained. Travels to the node."""

    run_id: str
    run_file: str
    """Its text, with paths that hold where it was written."""
    store: str
    threads: int
    folder: str | None = None
    """Of the sessions' folders on the node; :data:`FOLDER` by default."""
    code: str | None = None
    """Digest of the code folder's archive."""
    needs: Mapping[str, float] = field(default_factory=dict)
    """What it takes of the node."""
    train_on: bool = False
    warm: bool = True
    """Whether it may be forked from a process that has imported what it needs."""
    modules: tuple[str, ...] = ()
    """Of the code folder; they must not be those of that process."""


def pack_code(code: Code) -> bytes | None:
    """The code folder as an archive, the same for the same files; None where there is none.

    :raises InputError: it cannot be read
    """
    if code.folder is None:
        return None
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in code_files(code.folder, code.exclude):
            info = tarfile.TarInfo(path)
            body = (code.folder / path).read_bytes()
            info.size, info.mode = len(body), (code.folder / path).stat().st_mode & 0o777
            archive.addfile(info, io.BytesIO(body))
    return packed.getvalue()


def digest(archive: bytes) -> str:
    return hashlib.sha256(archive).hexdigest()


def node_folder(folder: str | None) -> Path:
    return Path(folder) if folder is not None else Path.home() / FOLDER


class Keeper:
    """This process's keeper (:mod:`train_cloud.ray.keeper`), as seen from here."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            child_process.command("train_cloud.ray.keeper", user_code=True),
            env=child_process.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._rest = b""

    def say(self, **order: object) -> None:
        """What a keeper that is gone is asked for, nobody does: :meth:`ended` tells."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def ended(self) -> int | None:
        """The exit code of the training, once it has ended; of a keeper that was killed, that signal."""
        assert self.process.stdout is not None
        read = self.process.stdout.read()
        self._rest += read or b""
        line, end, rest = self._rest.partition(b"\n")
        if end:
            self._rest = rest
            return int(json.loads(line)["ended"])
        return self.process.poll()

    def leave(self) -> None:
        """End it, and its training with a commit."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_PREDECESSOR_SECONDS)

    @property
    def lives(self) -> bool:
        return self.process.poll() is None


_keeper: Keeper | None = None


def _kept() -> Keeper:
    """Of this process, for one training after the other."""
    global _keeper
    if _keeper is None or not _keeper.lives:
        _keeper = Keeper()
    return _keeper


class Training:
    """Of one run. To be asked several times a second, from the thread that has made it.

    :param node: Ray's number of this node
    :param share: which part of it the run has
    """

    def __init__(self, order: Order, node: str, share: float = 1.0) -> None:
        self.order, self._node, self._share = order, node, share
        self._folder = node_folder(order.folder)
        self._state_dir = self._folder / order.run_id
        self._store = run_store(order.store, order.run_id)
        self._notices = NodeNotices(node)
        self._keeper: Keeper | None = None
        self._wait_until = time.monotonic() + _PREDECESSOR_SECONDS
        self._began = time.monotonic()
        self._code: int | None = None
        self._to_record: list[Notice] = []
        self._stops = 0
        self.notice: Notice | None = None
        """For which this node is left."""

    @property
    def begun(self) -> bool:
        """Whether its process was started; before, one that was here before may still commit."""
        return self._keeper is not None

    def poll(self, archive: bytes | None) -> int | None:
        """Look at it, and do what is due.

        :param archive: of the code folder
        :return: exit code; None while it is trained
        :raises OSError: nothing can be written here
        """
        if self._code is not None:
            return self._code
        for notice in self._notices.look():
            self._act(notice)
        if self._keeper is None:
            if not self._stops and not is_locked(self._state_dir):
                self._start(archive)
            elif self._stops or time.monotonic() > self._wait_until:
                self._code = Interrupted.exit_code
            return self._code
        self._record()
        self._code = self._keeper.ended()
        return self._code

    def close(self) -> None:
        self._notices.close()

    def leave(self) -> int:
        """Have it stop with a commit, and wait for that; for who was interrupted, no matter where.

        :return: exit code
        """
        global _keeper
        if _keeper is not None:
            _keeper.leave()
            _keeper = None
        return Interrupted.exit_code

    def send_signal(self, number: int) -> None:
        self._stops += number != signal.SIGUSR1
        if self._keeper is not None:
            self._keeper.say(signal=number)

    def end(self, reason: str) -> None:
        """Have it stop with a commit and the outcome ``stopped``."""
        path = self._state_dir / _LIMIT_FILE
        if self._keeper is not None and not path.exists():
            write_whole(path, reason.encode())

    @property
    def timesteps(self) -> int:
        """That it has reached; 0 where that is not known."""
        try:
            return read_timesteps(self._state_dir) if self._keeper is not None else 0
        except OSError:
            return 0

    @property
    def hours(self) -> float:
        session = self._session()
        return session.seconds / 3600 if session is not None else 0.0

    def last_words(self) -> str | None:
        return last_words(self._state_dir / OUTPUT)

    def _session(self) -> Session | None:
        """Of this training; None before it has begun."""
        session = last_session(self._state_dir)
        return session if session is not None and session.began >= self._began else None

    # ---------------------------------------------------------------------------------------------------------- begin

    def _start(self, archive: bytes | None) -> None:
        order = self.order
        self._forget_former()
        self._state_dir.mkdir(parents=True, exist_ok=True)
        mark_as_cache(self._folder)
        for name in (NOTICE_FILE, _LIMIT_FILE):
            (self._state_dir / name).unlink(missing_ok=True)
        path = self._folder / "files" / f"{order.run_id}.yaml"
        write_whole(path, order.run_file.encode())
        environment = training_environment(order.threads, self._state_dir / _LIMIT_FILE, train_on=order.train_on)
        environment |= {NODE: self._node, SHARE: repr(self._share)}
        if order.code is not None and archive is not None:
            environment["TRAIN_CLOUD_CODE"] = str(unpack(archive, order.code, self._folder / "code"))
        arguments = ["train", str(path), "--store", order.store, "--state-dir", str(self._state_dir)]
        arguments += ["--continue"] if order.train_on else []
        self._began = time.monotonic()
        keeper = _kept()
        keeper.say(
            start={
                "command": child_process.command("train_cloud", *arguments, user_code=True),
                "environment": environment,
                "parent": variables.PARENT,
                "folder": str(self._folder),
                "output": str(self._state_dir / OUTPUT),
                "warm": order.warm,
                "modules": list(order.modules),
            }
        )
        self._keeper = keeper

    def _forget_former(self) -> None:
        """Files of a session that was not the run's last one: others have gone on elsewhere since."""
        former = last_session(self._state_dir)
        if not self._state_dir.is_dir():
            return
        try:
            read = read_head(self._store)
        except StoreError as error:  # the training will say so itself
            log.warning("%s", error)
            return
        if former is None or read is None or read[0].session != former.number:
            shutil.rmtree(self._state_dir, ignore_errors=True)

    # -------------------------------------------------------------------------------------------------------- notices

    def _act(self, notice: Notice) -> None:
        """The stop comes first: whoever is to know of it is told afterwards."""
        if notice.kind == "drain" and self.notice is not None:
            return  # our own, of which Ray tells us too
        log.warning("%s: %s at %s", notice.kind, notice.action, notice.time.isoformat(timespec="seconds"))
        self._to_record.append(notice)
        if not notice.ends:
            if self._session() is not None:  # before, it has no handler for the signal
                self.send_signal(signal.SIGUSR1)
            return
        self.notice = self.notice or notice
        if self._keeper is not None:
            write_local(self._state_dir / NOTICE_FILE, local_form(notice, self._node))
        self.send_signal(signal.SIGTERM)
        if notice.kind != "drain":
            drain(self._node, notice)

    def _record(self) -> None:
        session = self._session() if self._to_record else None
        if session is None:
            return
        try:
            record_notice(self._store, session, record_form(self._to_record[0]))
        except StoreError as error:
            log.warning("a notice is not recorded: %s", error)
        self._to_record.pop(0)


def unpack(archive: bytes, name: str, folder: Path) -> Path:
    """The code folder below ``folder``, made once for all runs that have the same code."""
    found, whole = folder / name, folder / f"{name}.whole"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock", timeout=300):
        if not whole.exists():
            shutil.rmtree(found, ignore_errors=True)
            found.mkdir()
            with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
                packed.extractall(found, filter="data")
            whole.touch()
    return found


def own_modules(folder: Path | None) -> Sequence[str]:
    """Names that can be imported from a code folder."""
    if folder is None:
        return ()
    return sorted(path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir())
