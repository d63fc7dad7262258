"""The other processes of a data-parallel run, as the session sees them: it starts them, reads their part of each
checkpoint, notices when one is gone or stands still, and ends them.

Rank 0 is the session's own process: it alone has the store's lease, the deadline, the log, the evaluations. The others
(:mod:`train_cloud.runtime.rank`) train beside it and decide nothing. Each has one connection to rank 0, over which it
is told what to train, and asked for its part of a checkpoint. The checkpoint's parameters are rank 0's: the others send
a checksum of theirs, and no checkpoint is committed in which they differ.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
from awscrt import checksums

from train_cloud import child_process
from train_cloud.config import RunFile
from train_cloud.errors import InputError
from train_cloud.run.head import Reference, read_head
from train_cloud.snapshot import Array, Part, Rows, Snapshot

if TYPE_CHECKING:
    import torch

    from train_cloud.runtime.inputs import Inputs
    from train_cloud.sb3.ranks import RankLost, Ranks

log = logging.getLogger(__name__)

#: So long the others wait for a rank that uses no processor time before it counts as hung.
_HUNG_SECONDS = 6.0
_LOOK_SECONDS = 0.25
#: Processor seconds in :data:`_HUNG_SECONDS` below which a process does nothing: its other threads take some.
_IDLE_SECONDS = 0.1
_END_SECONDS = 5.0
SEED_STEP = 1000
"""Between the seeds of two ranks: each has as many environments as a run may have."""


@dataclass(frozen=True)
class Order:
    """What a rank is told when the session has acquired its run."""

    config: RunFile
    rank: int
    size: int
    store: str
    """URL of the run."""
    state_dir: Path
    manifest: Reference | None
    """Of the checkpoint to go on from."""
    trial: Mapping[str, Any]
    """Of the environments' state, as rank 0 has found it."""
    train_on: bool
    """Whether to train on where a callback had ended the run before its total."""
    threads: int
    rendezvous: str


@dataclass(frozen=True)
class Share:
    """A rank's part of a checkpoint."""

    timesteps: int
    shared: int
    """Checksum of what all ranks have in common: see :func:`sum_of_shared`."""
    part: Part
    """The rest of its model's part."""
    streams: Mapping[str, Rows]


def sum_of_shared(part: Part) -> int:
    """CRC64NVME of a learner's parameters and optimisers' variables."""
    from train_cloud.sb3.ranks import is_shared

    value = 0
    for name in sorted(filter(is_shared, part.arrays)):
        value = checksums.crc64nvme(name.encode(), value)
        value = checksums.crc64nvme(part.arrays[name].tobytes(), value)
    return value


def prefix_of(rank: int) -> str:
    """Of the names of its parts and streams."""
    return f"rank{rank}/"


class RankProcesses:
    """:param state_dir: where each rank leaves what it prints, as ``rank1.log`` and so on
    :ivar size: how many ranks there are, rank 0 included
    """

    def __init__(self, size: int, state_dir: Path) -> None:
        self.size = size
        self._folder = Path(tempfile.mkdtemp(prefix="train-cloud-ranks-"))
        self._logs = [state_dir / f"rank{rank}.log" for rank in range(1, size)]
        waiting = self._folder / "waiting"
        waiting.write_bytes(bytes(size))
        with waiting.open("r+b") as file:
            self._waiting = mmap.mmap(file.fileno(), size)
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closing = threading.Event()
        self._failed, self._noticed = threading.Event(), threading.Event()
        self._reason = ""
        for rank in range(1, size):
            self._start(rank)

    def _start(self, rank: int) -> None:
        own, theirs = socket.socketpair()
        with theirs, self._logs[rank - 1].open("wb") as output:
            command = child_process.command(
                "train_cloud.runtime.rank", str(theirs.fileno()), str(os.getpid()), str(self._folder / "waiting")
            )
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env=child_process.environment(),
                )
            )
        self._connections.append(Connection(own.detach()))

    @contextlib.contextmanager
    def joined(
        self, inputs: Inputs, trial: Mapping[str, Any], device: torch.device, *, train_on: bool
    ) -> Iterator[Ranks]:
        """All ranks train from here on, from the checkpoint that the run's head names.

        :param trial: of the environments' state
        :param train_on: whether to train on where a callback had ended the run before its total
        :raises RankLost: one of them ends before it has begun
        """
        import torch

        from train_cloud.sb3.ranks import Ranks

        threading.Thread(target=self._watch, name="train-cloud-ranks", daemon=True).start()
        rendezvous = str(self._folder / "rendezvous")
        read = read_head(inputs.store)
        for rank, connection in enumerate(self._connections, 1):
            order = Order(
                config=inputs.config,
                rank=rank,
                size=self.size,
                store=inputs.store.url,
                state_dir=inputs.state_dir,
                manifest=read[0].manifest if read is not None else None,
                trial=trial,
                train_on=train_on,
                threads=torch.get_num_threads(),
                rendezvous=rendezvous,
            )
            with contextlib.suppress(OSError):  # it is gone: which the watch tells of
                connection.send(order)
        ranks = Ranks(0, self.size, self._why, self._wait)
        self._wait_for_all()
        with ranks.joined(rendezvous, device):
            yield ranks

    def _wait_for_all(self) -> None:
        """Until each has built its model."""
        self._wait(True)
        for connection in self._connections:
            while not connection.poll(_LOOK_SECONDS):
                if self._failed.is_set():
                    raise self._lost()
            try:
                connection.recv()
            except (EOFError, OSError) as error:
                raise self._lost() from error
        self._wait(False)

    def _lost(self) -> RankLost:
        from train_cloud.sb3.ranks import RankLost

        return RankLost(self._why())

    def collect(self, snapshot: Snapshot) -> list[Share]:
        """The other ranks' parts of a checkpoint, in their order. To be called in the commit's thread.

        :param snapshot: rank 0's own
        :raises RankLost: one is gone, or its parameters are others
        """
        from train_cloud.sb3.ranks import RankLost

        own = sum_of_shared(snapshot.parts["model"])
        shares = []
        for rank, connection in enumerate(self._connections, 1):
            try:
                connection.send(snapshot.timesteps)
                while not connection.poll(_LOOK_SECONDS):
                    if self._failed.is_set():
                        raise self._lost()
                share = cast("Share", connection.recv())
            except (EOFError, OSError) as error:
                raise self._lost() from error
            if share.shared != own:
                raise RankLost(
                    f"rank {rank} has other parameters than rank 0 at {snapshot.timesteps} timesteps: what changes "
                    "them besides the optimisers is not the same on all ranks (a callback, a network with buffers)"
                )
            shares.append(share)
        return shares

    def close(self) -> None:
        """End them; those that do not leave are killed."""
        self._closing.set()
        for connection in self._connections:
            connection.close()
        until = time.monotonic() + _END_SECONDS
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -------------------------------------------------------------------------------------------- in the watch's thread

    def _watch(self) -> None:
        used: dict[int, tuple[float, float]] = {}
        while not self._closing.wait(_LOOK_SECONDS):
            for rank, process in enumerate(self._processes, 1):
                if process.poll() is not None and not self._closing.is_set():
                    self._fail(f"rank {rank} {self._end_of(rank, process.returncode)}")
                    return
            hung = self._hung(used)
            if hung is not None:
                self._fail(
                    f"rank {hung} stands still: it has done nothing for {_HUNG_SECONDS:.0f} s, and the others wait"
                )
                return

    def _hung(self, used: dict[int, tuple[float, float]]) -> int | None:
        """The first rank that does nothing while rank 0 waits for it.

        :param used: of each rank, since when its processor time is what it is
        """
        now = time.monotonic()
        for rank, process in enumerate(self._processes, 1):
            seconds = _processor_seconds(process.pid)
            since, before = used.get(rank, (now, seconds))
            busy = seconds - before > _IDLE_SECONDS or not self._waiting[0]
            stopped = _is_stopped(process.pid)
            if busy or (self._waiting[rank] and not stopped):  # it waits itself
                used[rank] = (now, seconds)
            else:
                used[rank] = (since, before)
                if now - since > _HUNG_SECONDS:
                    return rank
        return None

    def _fail(self, reason: str) -> None:
        """End all of them, which ends rank 0's own waiting for them."""
        self._reason = reason
        self._failed.set()
        log.error("%s", reason)
        self._kill()
        if not self._noticed.wait(_END_SECONDS):  # it waits where nothing tells it of this: a restart goes on
            os._exit(1)

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                for child in _descendants(process.pid):
                    with contextlib.suppress(psutil.Error):
                        child.kill()
                process.kill()
                process.wait()

    def _end_of(self, rank: int, code: int) -> str:
        last = ""
        with contextlib.suppress(OSError):
            lines = [line for line in self._logs[rank - 1].read_text(errors="replace").splitlines() if line.strip()]
            last = f": {lines[-1][:300]}" if lines else ""
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}{last}"
        return f"ended with exit code {code}{last}"

    def _why(self) -> str:
        """Once something with another rank has failed: what is known of it, within a second."""
        self._noticed.set()
        self._failed.wait(1.0)
        return self._reason or "another rank is gone"

    def _wait(self, waits: bool) -> None:
        self._waiting[0] = waits


def stored(shares: Sequence[Share]) -> tuple[dict[str, Part], dict[str, Rows]]:
    """The ranks' parts and streams, as a checkpoint names them."""
    parts = {prefix_of(rank) + "model": share.part for rank, share in enumerate(shares, 1)}
    streams = {
        prefix_of(rank) + name: rows for rank, share in enumerate(shares, 1) for name, rows in share.streams.items()
    }
    return parts, streams


def check_devices(config: RunFile, size: int) -> None:
    """:raises InputError: more ranks than GPUs, where they are to use them"""
    import torch

    there = torch.cuda.device_count()
    if config.device != "cpu" and there and size > there:
        raise InputError("data_parallel", size, f"this machine has {there} GPUs: give at most so many, or device: cpu")


def _processor_seconds(pid: int) -> float:
    total = 0.0
    for process in _descendants(pid, itself=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _descendants(pid: int, *, itself: bool = False) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        found = process.children(recursive=True)
    except psutil.Error:
        return []
    return [process, *found] if itself else found


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def rows_in_memory(rows: Rows) -> Rows:
    """With the columns copied: they can be sent."""
    chunks: list[tuple[int, Mapping[str, Array]]] = [(first, dict(columns)) for first, columns in rows.chunks]
    return Rows(rows.first, rows.last, rows.capacity, chunks, rows.successors)
