"""Who should write large observations: a thread that reads the ring, or a process that reads it in shared memory?

``python -m benchmarks.writer``: SAC on 1080 floats with a full ring of 100,000 rows; a server of 625 MB/s and 30 ms.
In each cycle it trains without a commit, with one by a thread and with one by a spawned process whose ring is shared
memory, in random order; lost is what the steps beside a commit took longer than those without. What the training thread
waited for a core that another program had does not count (``/proc/thread-self/schedstat``), so that a busy machine will
do; waiting for the interpreter lock does. Prints the figures of docs/checkpoint-cost.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from benchmarks.measure import interval
from benchmarks.server import Server
from benchmarks.worker import STORE, isolate
from train_cloud.checkpoint.commit import _PARALLEL, _split, _Writes
from train_cloud.checkpoint.format import drop_successors, pack
from train_cloud.sb3.replay import Ring
from train_cloud.snapshot import Array, Part, Rows
from train_cloud.store import open_store

_ROWS, _WIDTH = 100_000, 1080


class Noise(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (_WIDTH,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def write(rows: Rows, name: str, at_once: int) -> None:
    """What a commit does with rows, from the ring to the store."""
    segments = list(_split(rows))
    with _Writes(open_store(f"{STORE}/{name}"), lambda: at_once > 1) as writes:
        for first, columns in segments:
            writes.put(f"segment-{first}", pack(Part(drop_successors(columns, rows.successors))))


def writer(memory: dict[str, tuple[str, tuple[int, ...], str]], pipe: Connection) -> None:
    """The process: rows come as numbers and small columns, observations are read in shared memory."""
    blocks = {name: SharedMemory(where) for name, (where, _, _) in memory.items()}
    ring = {name: np.ndarray(shape, dtype, blocks[name].buf) for name, (_, shape, dtype) in memory.items()}
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        first, last, capacity, successors, small, at_once = asked
        columns = {name: array[first % capacity :][: last - first] for name, array in ring.items()}
        write(Rows(first, last, capacity, [(first, {**columns, **small})], successors), "process", at_once)
        pipe.send(time.monotonic())
    ring.clear()


def shared(array: Array) -> tuple[SharedMemory, Array]:
    block = SharedMemory(create=True, size=array.nbytes)
    view = np.ndarray(array.shape, array.dtype, block.buf)
    view[:] = array
    return block, view


def now() -> float:
    """Seconds in which this thread computed, or was blocked; not those in which it waited for a core."""
    waited = int(
        Path("/proc/thread-self/schedstat").read_text().split()[1]
    )  # kernel: Documentation/scheduler/sched-stats
    return time.perf_counter() - waited / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.writer", description=__doc__)
    parser.add_argument("--new", type=int, default=_ROWS, help="new rows per commit")
    parser.add_argument("--cycles", type=int, default=12)
    options = parser.parse_args()
    isolate()
    torch.set_num_threads(1)
    model = SAC("MlpPolicy", Noise(), buffer_size=_ROWS, policy_kwargs={"net_arch": [256, 256]}, device="cpu", seed=1)
    model.set_logger(Logger(None, []))
    buffer: Any = model.replay_buffer
    generator = np.random.default_rng(1)
    buffer.observations[:] = generator.random(buffer.observations.shape, dtype=np.float32)
    buffer.next_observations[:-1] = buffer.observations[1:]
    blocks = {}
    for name in ("observations", "next_observations"):
        blocks[name], view = shared(getattr(buffer, name))
        setattr(buffer, name, view)
    buffer.full = True
    ring = Ring(buffer)
    with Server(rate=625e6, latency=0.030, discard_above=1 << 20) as server:
        os.environ["AWS_ENDPOINT_URL_S3"] = server.url
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        memory = {
            name: (b.name, ring._columns[name].shape, ring._columns[name].dtype.str) for name, b in blocks.items()
        }
        process = context.Process(target=writer, args=(memory, there), daemon=True)
        process.start()
        assert here.recv() == "ready"

        def by_thread(at_once: int) -> Callable[[], bool]:
            thread = threading.Thread(target=write, args=(ring.rows(0, options.new), "thread", at_once))
            thread.start()
            return lambda: not thread.is_alive()

        def by_process(at_once: int) -> Callable[[], bool]:
            rows = ring.rows(0, options.new)
            small = {name: column for name, column in next(iter(rows.chunks))[1].items() if name not in memory}
            here.send((rows.first, rows.last, rows.capacity, rows.successors, small, at_once))
            return lambda: here.poll() and here.recv() is not None

        def step() -> None:
            model.train(gradient_steps=1, batch_size=256)

        for _ in range(10):
            step()
        ways = {
            f"{name}, {at_once} PUT at a time": (begin, at_once)
            for name, begin in (("thread", by_thread), ("process", by_process))
            for at_once in (1, _PARALLEL)
        }
        lost: dict[str, list[float]] = {name: [] for name in ways}
        lasted: dict[str, list[float]] = {name: [] for name in ways}
        plain: list[float] = []
        for _ in range(options.cycles):
            for name, (begin, at_once) in random.sample(list(ways.items()), len(ways)):
                began = now()
                for _ in range(20):
                    step()
                base = (now() - began) / 20
                began, steps = now(), 0
                done = begin(at_once)
                finished = None
                while finished is None or steps < 20:
                    step()
                    steps += 1
                    if finished is None and done():
                        finished = now() - began
                took = now() - began
                began = now()
                for _ in range(20):
                    step()
                base = (base + (now() - began) / 20) / 2
                plain.append(base)
                lost[name].append(took - steps * base)
                lasted[name].append(finished)
        here.send(None)
        process.join(10)
    for block in blocks.values():
        block.unlink()
    print(f"{options.new} new rows, {options.cycles} cycles, a step without a commit {1e3 * np.median(plain):.1f} ms")
    for name, values in lost.items():
        print(f"{name}: lost {_told(values)}; a commit lasts {_told(lasted[name])}")


def _told(seconds: list[float]) -> str:
    found = interval(seconds)
    return f"{found.value:.3f} s ({found.low:.3f} to {found.high:.3f})"


if __name__ == "__main__":
    main()
