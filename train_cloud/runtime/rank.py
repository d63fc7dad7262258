"""``python -m train_cloud.runtime.rank FD PARENT WAITING``: a rank of a data-parallel run other than rank 0.

It trains as rank 0 does, with a seed of its own, writes nothing and decides nothing; at each point at which rank 0
commits it keeps its part, until rank 0 asks for it over the connection (:mod:`train_cloud.runtime.ranks`).
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from train_cloud import warm_process
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.child_process import code_on_path
from train_cloud.config.current import training
from train_cloud.runtime.ranks import SEED_STEP, Order, Share, prefix_of, rows_in_memory, sum_of_shared
from train_cloud.sb3 import precision
from train_cloud.sb3.build import build_callbacks, build_model
from train_cloud.sb3.callback import IdleHost, learn
from train_cloud.sb3.ranks import Ranks, is_shared
from train_cloud.snapshot import Part, Snapshot
from train_cloud.store import open_store
from train_cloud.trainer import TrainingStopped

#: Where it ends because rank 0 has; which says why.
_ENDED_WITH_RANK_0 = 3


class RankHost(IdleHost):
    """Keeps snapshots until rank 0 asks for them.

    :param connection: to rank 0
    :param waits: is told whether this process waits for something else than its own work
    """

    def __init__(
        self,
        total_timesteps: int,
        restored: Snapshot | None,
        connection: Connection,
        waits: Callable[[bool], None],
    ) -> None:
        super().__init__(total_timesteps, restored=restored)
        self._connection, self._waits = connection, waits
        self._known = threading.Condition()
        self._kept: dict[int, Snapshot] = {}
        self._wanted: int | None = None
        """Timesteps of a checkpoint that rank 0 commits for certain, and has not asked for yet."""
        self._asked_to_stop = False
        signal.signal(signal.SIGTERM, self._stop)
        threading.Thread(target=self._answer, name="train-cloud-rank", daemon=True).start()

    def _stop(self, number: int, frame: object) -> None:
        self._asked_to_stop = True

    def stop_deadline(self) -> float | None:
        return float("inf") if self._asked_to_stop else None  # when, is rank 0's to say

    def phase(self, name: str) -> None:
        self._waits(name == "restore")  # for the store

    def busy(self) -> bool:
        return True  # it begins no commit

    def keep(self, snapshot: Snapshot) -> None:
        """Rank 0 may ask for it until there is another; for one that it commits for certain until it has it."""
        with self._known:
            wanted = {at: kept for at, kept in self._kept.items() if at == self._wanted}
            self._kept = {**wanted, snapshot.timesteps: snapshot}
            self._known.notify_all()

    def submit(self, snapshot: Snapshot) -> None:
        with self._known:
            self._wanted = snapshot.timesteps
        self.keep(snapshot)

    def settle(self) -> None:
        with self._known:
            self._known.wait_for(lambda: self._wanted is None)

    def finish(self, snapshot: Snapshot) -> bool:
        self.keep(snapshot)
        return False

    # ------------------------------------------------------------------------------------------ in the answering thread

    def _answer(self) -> None:
        """Until rank 0 closes the connection."""
        try:
            while True:
                timesteps = self._connection.recv()
                with self._known:
                    self._known.wait_for(lambda at=timesteps: at in self._kept)  # type: ignore[misc]
                    snapshot = self._kept[timesteps]
                self._connection.send(_share(snapshot))
                with self._known:
                    if self._wanted == timesteps:
                        self._wanted = None
                    self._known.notify_all()
        except (EOFError, OSError):
            # What the training waits for, in an exchange or in an environment, does not come any more.
            os._exit(_ENDED_WITH_RANK_0)


def _share(snapshot: Snapshot) -> Share:
    part = snapshot.parts["model"]
    own = Part({name: array for name, array in part.arrays.items() if not is_shared(name)}, part.blob, part.contents)
    streams = {name: rows_in_memory(rows) for name, rows in snapshot.streams.items()}
    return Share(snapshot.timesteps, sum_of_shared(part), own, streams)


def _restored(order: Order) -> Snapshot | None:
    """As this rank had it: the parameters that all have in common, and the rest of its own."""
    if order.manifest is None:
        return None
    store = open_store(order.store)
    manifest = read_manifest(store, order.manifest)
    prefix = prefix_of(order.rank)
    own = {name for name in manifest.streams if name.startswith(prefix)}
    snapshot = restore(store, manifest, parts={"model", prefix + "model", "skeleton"}, streams=own)
    common, rest = snapshot.parts["model"], snapshot.parts[prefix + "model"]
    arrays: dict[str, Any] = {name: array for name, array in common.arrays.items() if is_shared(name)}
    parts = {**snapshot.parts, "model": replace(rest, arrays={**arrays, **rest.arrays})}
    streams: Mapping[str, Any] = {name.removeprefix(prefix): rows for name, rows in snapshot.streams.items()}
    return replace(snapshot, parts=parts, streams=streams)


def _train(order: Order, connection: Connection, waiting: mmap.mmap) -> None:
    import torch

    torch.set_num_threads(order.threads)
    seed = (order.config.seed + SEED_STEP * order.rank) % 2**32
    config = order.config.model_copy(update={"seed": seed, "device": device_of(order.config.device, order.rank)})
    folder = order.state_dir / f"rank{order.rank}"
    folder.mkdir(parents=True, exist_ok=True)

    def waits(now: bool) -> None:
        waiting[order.rank] = now

    with code_on_path(config.code.folder), training(config, folder):
        precision.begin(config)
        callbacks = build_callbacks(config)
        built = build_model(config, order.trial)
        if config.initial_model is not None and order.manifest is None:
            from train_cloud.runtime.initial_model import begin_with

            begin_with(built.model, config.initial_model, order.store)
        connection.send(order.rank)  # its model is built
        host = RankHost(config.total_timesteps, _restored(order), connection, waits)
        host.schedule_timesteps, host.train_on = config.schedule_timesteps, order.train_on
        ranks = Ranks(order.rank, order.size, waiting=waits)
        ranks.keep = host.keep
        with ranks.joined(order.rendezvous, built.model.device):
            with contextlib.suppress(TrainingStopped):
                learn(built.model, host, callbacks, built.choice, ranks=ranks, run_file=config)
            threading.Event().wait()  # rank 0's end ends this process


def device_of(device: str, rank: int) -> str:
    """Each rank has a GPU of its own, where there are any."""
    import torch

    return f"cuda:{rank}" if device != "cpu" and torch.cuda.is_available() else device


def main() -> None:
    connection, parent, waiting = Connection(int(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3])
    warm_process.die_with_parent(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: rank 0 decides
    logging.basicConfig(level=logging.WARNING)
    with waiting.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    try:
        order = connection.recv()
    except EOFError:
        sys.exit(_ENDED_WITH_RANK_0)
    _train(order, connection, memory)


if __name__ == "__main__":
    main()
