"""The figures: what is run, and what is read off it."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.environment import COUNT, read_count
from benchmarks.measure import Figure, Waited, interval
from benchmarks.probes import PLAN, Plan, Span
from benchmarks.server import Request, Server
from benchmarks.worker import ROOT, STORE, Worker, begin, in_warm_process, run_file

#: Bytes per second of the paced server: a small instance's line to S3, and 5 Gbit/s; a round trip.
RATES = (94e6, 625e6)
LATENCY = 0.030
_WARM = 300
_ROLLOUT = 2048
_RAW_PART = 16 << 20


@dataclass(frozen=True)
class Sizes:
    """How much of everything: ``make bench``, or ``--quick`` with the same steps and no meaning."""

    every: int
    """New rows per checkpoint."""
    net: tuple[int, ...]
    batch: int
    blocks: tuple[tuple[int, int, float, int, int, int], ...]
    """Observation, buffer, limit (figure 1), cycles on each line, steps per block, stock in each so-manieth of them."""
    lines: tuple[float | None, ...]
    """Bytes per second, None for loopback."""
    notices: int
    restores: int
    sac: tuple[int, int]
    """Slices of a process, and steps of a slice."""
    ppo: tuple[int, int]
    pairs: int
    """Pairs of processes."""
    starts: int
    slow: float
    """Seconds that a step of the slow environment takes; 0 leaves it out."""
    rollouts: int
    """Pairs of rollouts, with checksums and without."""
    experiment: tuple[int, int]
    """Pairs of four runs, side by side and one after the other, and steps of a run."""


FULL = Sizes(
    every=5000,
    net=(256, 256),
    batch=256,
    blocks=((24, 1_000_000, 1 / 200, 40, 24, 4), (1080, 100_000, 1 / 50, 16, 40, 4)),
    lines=(None, *reversed(RATES)),
    notices=7,
    restores=9,
    sac=(30, 60),
    ppo=(10, 2 * 2048),
    pairs=5,
    starts=7,
    slow=0.020,
    rollouts=40,
    experiment=(3, 20_480),
)
LARGE = Sizes(
    every=5000,
    net=(256, 256),
    batch=256,
    blocks=((1080, 1_000_000, 1 / 300, 12, 40, 4),),
    lines=(None, RATES[1]),
    notices=0,
    restores=0,
    sac=(0, 0),
    ppo=(0, 0),
    pairs=0,
    starts=0,
    slow=0.0,
    rollouts=0,
    experiment=(0, 0),
)
QUICK = Sizes(
    every=200,
    net=(32, 32),
    batch=16,
    blocks=((24, 1000, 1 / 200, 2, 10, 2),),
    lines=(None, RATES[1]),
    notices=1,
    restores=1,
    sac=(2, 10),
    ppo=(0, 2048),
    pairs=1,
    starts=1,
    slow=0.0,
    rollouts=2,
    experiment=(1, 128),
)


def hyperparameters(sizes: Sizes, capacity: int) -> dict[str, Any]:
    return {
        "buffer_size": capacity,
        "batch_size": sizes.batch,
        "learning_starts": 100,
        "policy_kwargs": {"net_arch": list(sizes.net)},
    }


# ----------------------------------------------------------------------------------------- 1, 2, 3 and 5: one run each


def checkpoints(folder: Path, sizes: Sizes, wanted: set[int]) -> Iterator[Figure]:
    """What a checkpoint costs the training, against stock in the same process, and what it sends. Then its restore."""
    for size, capacity, limit, on_each, block, stock_every in sizes.blocks:
        cycles = on_each * len(sizes.lines)
        setting = f"{size} floats, {_thousands(capacity)} rows"
        discard_above = float("inf") if 5 in wanted else float(1 << 20)
        with Server(discard_above=discard_above) as server:
            first = -(-capacity // sizes.every)
            path = run_file(
                folder,
                f"blocks-{size}-{capacity}",
                size=size,
                total=(first + cycles) * sizes.every,
                every=sizes.every,
                probe="Blocks",
                **hyperparameters(sizes, capacity),
            )
            plan = folder / "plan.json"
            output = folder / "blocks.json"
            lines = tuple((rate or 0.0, LATENCY if rate else 0.0) for rate in sizes.lines)
            wishes = Plan(capacity, sizes.every, cycles, block, stock_every, str(output), lines)
            plan.write_text(json.dumps(asdict(wishes)))
            begin(path, server.url, env={PLAN: str(plan)}).wait()
            measured = json.loads(output.read_text())
            for index, rate in enumerate(sizes.lines):
                of_it = [cycle for cycle in measured["cycles"] if cycle["line"] == index]
                yield _lost(f"{setting}, {_line(rate)}", of_it, limit)
            yield _stall(setting, measured["cycles"], sizes)
            yield _sent(setting, server.log(), measured, sizes, cycles)
            if 5 in wanted:
                yield from _restores(folder, sizes, setting, path, server)


def _lost(setting: str, cycles: list[dict[str, Any]], limit: float) -> Figure:
    lost = [_beside(cycle, _wall) for cycle in cycles]
    saved = [cycle["stock"] for cycle in cycles if cycle["stock"]]
    stock = [sum(map(_wall, spans)) for spans in saved]
    ours, theirs = interval(lost), interval(stock)
    return Figure(
        1,
        setting,
        interval(lost, stock, of=lambda a, b: a / b),
        limit,
        detail={
            "lost, ms": ours.value * 1e3,
            "from, ms": ours.low * 1e3,
            "to, ms": ours.high * 1e3,
            "without waits for a core, ms": statistics.median(_beside(cycle, _own) for cycle in cycles) * 1e3,
            "stock, ms": theirs.value * 1e3,
            "of it saving, ms": statistics.median(_wall(spans[0]) for spans in saved) * 1e3,
            "stock's checkpoints": len(stock),
            "one step, ms": statistics.median(_wall(step) for cycle in cycles for step in cycle["before"]) * 1e3,
            "steps compared": statistics.median(len(cycle["block"]) for cycle in cycles),
        },
    )


def _own(span: Span) -> float:
    """Seconds without those in which others had the core."""
    return span[0] - span[1]


def _wall(span: Span) -> float:
    return span[0]


def _beside(cycle: dict[str, Any], seconds: Callable[[Span], float]) -> float:
    """What the steps from the checkpoint on took longer than as many steps around it: the median of such stretches."""
    block = [seconds(step) for step in cycle["block"]]
    around = [[seconds(step) for step in cycle[name]] for name in ("before", "after")]
    count = len(block)
    stretches = [
        sum(steps[start : start + count]) for steps in around for start in range(0, len(steps) - count + 1, count)
    ]
    if not stretches:  # a commit that took longer than what was to be compared with it
        stretches = [count * statistics.mean(around[0] + around[1])]
    return sum(block) - statistics.median(stretches)


def _stall(setting: str, cycles: list[dict[str, Any]], sizes: Sizes) -> Figure:
    stalls = [_wall(cycle["stall"]) for cycle in cycles]
    clones = [statistics.mean(map(_wall, cycle["clones"])) for cycle in cycles]
    return Figure(
        2,
        f"{setting}, nets {'x'.join(map(str, sizes.net))}",
        interval([stall / (3 * clone + 1e-3) for stall, clone in zip(stalls, clones, strict=True)]),
        1.0,
        detail={
            "stall, ms": statistics.median(stalls) * 1e3,
            "clone loop, ms": statistics.median(clones) * 1e3,
            "allowed, ms": 3 * statistics.median(clones) * 1e3 + 1,
        },
    )


def _sent(setting: str, log: list[Request], measured: dict[str, Any], sizes: Sizes, cycles: int) -> Figure:
    """All that the worker sent from one head to the next: parts, segments, manifest, head, scalars, progress."""
    ours = [request for request in log if request.key.startswith("bench/")]
    heads = [i for i, request in enumerate(ours) if _swaps_head(request)]
    # The last head is the end of the run, with the final model.
    heads = heads[-cycles - 2 : -1]
    sums = [sum(r.received for r in ours[a + 1 : b + 1]) for a, b in pairwise(heads)]
    rows, tensors = sizes.every * measured["row_bytes"], measured["tensor_bytes"]
    allowed = 0.6 * rows + 1.05 * tensors
    # What is sent now and then counts at every checkpoint, so the mean is what matters, not the median.
    return Figure(
        3,
        setting,
        interval([value / allowed for value in sums], middle=np.mean),
        1.0,
        detail={
            "sent, MB": statistics.mean(sums) / 1e6,
            "new rows raw, MB": rows / 1e6,
            "tensors, MB": tensors / 1e6,
            "allowed, MB": allowed / 1e6,
        },
    )


def _restores(folder: Path, sizes: Sizes, setting: str, path: Path, server: Server) -> Iterator[Figure]:
    for rate in sizes.lines:
        server.pace(rate, LATENCY if rate else 0.0)
        repeats = sizes.restores if rate != RATES[0] else max(2, sizes.restores // 3)
        output = folder / "restores.json"
        in_warm_process(restore_often, str(path), server.url, repeats, str(output))
        measured = json.loads(output.read_text())
        yield Figure(
            5,
            f"{setting}, {_line(rate)}",
            interval([ours / raw for ours, raw in zip(measured["restore"], measured["get"], strict=True)]),
            1.5,
            detail={
                "restore, s": statistics.median(measured["restore"]),
                "raw GET, s": statistics.median(measured["get"]),
                "MB": measured["bytes"] / 1e6,
                "objects": measured["objects"],
            },
        )


def restore_often(path: str, endpoint: str, repeats: int, output: str) -> None:
    """Restore the run's newest checkpoint into a model, and GET the same objects, in turn. In a process of its own."""
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    import torch
    from obstore.store import S3Store
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList

    from train_cloud.checkpoint import read_manifest, restore
    from train_cloud.config import load_run_file
    from train_cloud.run import layout
    from train_cloud.run.head import read_head
    from train_cloud.sb3.build import build_model
    from train_cloud.sb3.capture import Capture
    from train_cloud.store import open_store

    class Idle(BaseCallback):
        """Stands where one of the probe's stood."""

        def _on_step(self) -> bool:
            return True

    torch.set_num_threads(1)
    config = load_run_file(Path(path))
    store = open_store(layout.run_url(STORE, config.run_id))
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    built = build_model(config)
    built.model.learn(1)
    idle = CallbackList([Idle(), Idle()])
    idle.init_callback(built.model)
    capture = Capture(built.model, idle, None, lambda env: built.choice.provider)
    prefix = store.url.removeprefix(f"{STORE}/")
    raw = S3Store(
        STORE.removeprefix("s3://"),
        prefix=prefix,
        aws_endpoint_url=endpoint,
        client_options={"allow_http": True},
    )
    manifest = read_manifest(store, read[0].manifest)
    keys = sorted(manifest.keys())
    times: dict[str, list[float]] = {"restore": [], "get": []}
    received = 0

    def get_all() -> int:
        with ThreadPoolExecutor(8) as pool:
            return sum(pool.map(lambda key: len(raw.get(key).bytes()), keys))

    def restore_all() -> int:
        return capture.restore(restore(store, manifest))

    for turn in range(repeats + 1):
        for name in ("restore", "get") if turn % 2 else ("get", "restore"):
            began = time.perf_counter()
            result = get_all() if name == "get" else restore_all()
            if turn:  # the first touches the ring's memory and opens connections
                times[name].append(time.perf_counter() - began)
            received = result if name == "get" else received
    Path(output).write_text(json.dumps({**times, "bytes": received, "objects": len(keys)}))


# ---------------------------------------------------------------------------------------------- 4: notice → committed


def notices(folder: Path, sizes: Sizes, wanted: set[int]) -> Iterator[Figure]:
    """SIGTERM to a worker that trains, until the server has answered the head's swap."""
    for size in sorted({size for size, *_ in sizes.blocks}):
        for rate in filter(None, sizes.lines):
            with Server(rate=rate, latency=LATENCY) as server:
                measured = [_notice(folder, sizes, size, server, turn) for turn in range(sizes.notices)]
            bounds = [sent / rate + 2 * LATENCY for _, sent, _ in measured]
            yield Figure(
                4,
                f"{size} floats, {_line(rate)}",
                interval([seconds / bound for (seconds, _, _), bound in zip(measured, bounds, strict=True)]),
                1.5,
                detail={
                    "notice to committed, ms": statistics.median(seconds for seconds, _, _ in measured) * 1e3,
                    "bytes/rate + 2 round trips, ms": statistics.median(bounds) * 1e3,
                    "the same bytes and a swap by themselves, ms": statistics.median(raw for _, _, raw in measured)
                    * 1e3,
                    "sent, MB": statistics.median(sent for _, sent, _ in measured) / 1e6,
                },
            )


def _notice(folder: Path, sizes: Sizes, size: int, server: Server, turn: int) -> tuple[float, int, float]:
    """:return: seconds, bytes received until then, seconds for as many bytes and a small object after them: what this
    server and this machine can do
    """
    # A first checkpoint, and none on its way when the notice comes: a quick machine takes hundreds of steps a second.
    before = max(sizes.every * 3 // 2, 3_000)
    path = run_file(
        folder,
        f"notice-{size}-{turn}-{server.url.rpartition(':')[2]}",
        size=size,
        total=1_000_000,
        every=before,
        probe="Filled",
        **hyperparameters(sizes, 100_000),
    )
    plan = folder / "plan.json"
    plan.write_text(json.dumps(asdict(Plan(before + sizes.every))))
    worker = begin(path, server.url, env={PLAN: str(plan)})
    worker.wait_for_steps(before + sizes.every + 20)
    heads, deadline = 0, time.monotonic() + 300
    while heads < 2:  # the run is taken, its first checkpoint is committed
        heads += sum(_swaps_head(request) for request in server.log())
        if time.monotonic() > deadline:
            raise RuntimeError(f"no checkpoint was committed: {worker.log.read_text()[-3000:]}")
        time.sleep(0.05)
    time.sleep(0.5 + random.Random(turn).uniform(0, 0.05))  # merged and collected, too; anywhere within a step
    server.log()
    noticed = time.monotonic()
    os.kill(worker.pid, signal.SIGTERM)
    worker.wait(expected=75)
    log = server.log()
    head = next(i for i, request in enumerate(log) if _swaps_head(request))
    sent = sum(request.received for request in log[: head + 1])
    return log[head].at - noticed, sent, _put_raw(server.url, sent)


def _put_raw(endpoint: str, size: int) -> float:
    from obstore.store import S3Store

    raw = S3Store("raw", aws_endpoint_url=endpoint, unsigned_payload=True, client_options={"allow_http": True})
    raw.put("warm", b"")
    began = time.perf_counter()
    raw.put("body", bytes(size), chunk_size=_RAW_PART, max_concurrency=8)
    raw.put("head", b"")
    return time.perf_counter() - began


def _swaps_head(request: Request) -> bool:
    return request.method == "PUT" and request.key.endswith("/head.json")


# ------------------------------------------------------------------------------------------ 6: against plain learn()


def throughput(folder: Path, sizes: Sizes, wanted: set[int]) -> Iterator[Figure]:
    """Two processes, of which one is stopped while the other runs, in turn; both count their steps."""
    # Timesteps between checkpoints, of a slice: of PPO whole rollouts, so that each has its share of updates.
    settings: list[tuple[str, int, int, int, dict[str, Any]]] = [
        ("SAC", 1000, *sizes.sac, hyperparameters(sizes, 100_000)),
        ("PPO", 10 * _ROLLOUT, *sizes.ppo, {"n_steps": _ROLLOUT}),
    ]
    with Server() as server:
        for name, every, slices, steps, arguments in settings:
            if not slices:
                continue
            found: list[tuple[Span, Span]] = []
            for pair in range(sizes.pairs):
                path = run_file(
                    folder,
                    f"{name.lower()}-{pair}",
                    size=24,
                    total=1_000_000_000,
                    every=every,
                    algorithm=name.lower(),
                    **arguments,
                )
                found += _slices(folder, path, server, slices, steps)
            yield Figure(
                6,
                name,
                interval([_wall(plain) / _wall(ours) for ours, plain in found]),
                0.98,
                at_least=True,
                detail={
                    "worker, steps/s": statistics.median(1 / _wall(ours) for ours, _ in found),
                    "plain learn(), steps/s": statistics.median(1 / _wall(plain) for _, plain in found),
                    "without waits for a core": statistics.median(_own(plain) / _own(ours) for ours, plain in found),
                },
            )


def _slices(folder: Path, path: Path, server: Server, slices: int, steps: int) -> Iterator[tuple[Span, Span]]:
    """:return: what a step of the worker took, and one of plain learn(), in slices side by side"""
    counts = [folder / "worker.count", folder / "plain.count"]
    for count in counts:
        count.write_bytes(bytes(16))
    log = path.with_suffix(".plain.log")
    worker = begin(path, server.url, fresh=True, env={COUNT: str(counts[0])})
    with log.open("wb") as out:
        plain = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.plain", str(path)],
            env={**os.environ, COUNT: str(counts[1])},
            stdout=out,
            stderr=out,
            cwd=ROOT,
        )
    pids = (worker.pid, plain.pid)
    try:
        worker.wait_for_steps(_WARM)  # its environments have been tried before, and counted that
        os.kill(worker.pid, signal.SIGSTOP)
        _wait_for_count(counts[1], plain.pid, _WARM)
        os.kill(plain.pid, signal.SIGSTOP)
        for turn in range(slices):
            pair = [(0.0, 0.0), (0.0, 0.0)]
            for which in (0, 1) if turn % 2 else (1, 0):
                pair[which] = _slice(counts[which], pids[which], steps)
            yield pair[0], pair[1]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        plain.wait()
        worker.kill()


def _slice(count: Path, pid: int, steps: int) -> Span:
    """Let the process run for so many steps, or a few more; the seconds that one took."""
    before, _ = read_count(count)
    waited = Waited(pid)
    os.kill(pid, signal.SIGCONT)
    first, began = _wait_for_count(count, pid, before + 1)
    waited_before = waited()
    last, ended = _wait_for_count(count, pid, first + steps)
    delay = waited() - waited_before
    waited.close()
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.0005)
    return (ended - began) / (last - first), delay / (last - first)


def _wait_for_count(count: Path, pid: int, wanted: int) -> tuple[int, float]:
    deadline = time.monotonic() + 300
    while True:
        found = read_count(count)
        if found[0] >= wanted:
            return found
        if time.monotonic() > deadline or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError(f"process {pid} did not get to {wanted} steps")
        time.sleep(0.0005)


# ----------------------------------------------------------------------------------------------------- 7: the start


def starts(folder: Path, sizes: Sizes, wanted: set[int]) -> Iterator[Figure]:
    """A run is resumed by a process of its own; its parts are read off the server's log and two notes of a probe."""
    note = folder / "started.json"
    settings = [("SAC, 500 rows", 500, 0.0)]
    if sizes.slow:
        settings.append((f"SAC, 150 rows, an environment of {sizes.slow * 1e3:.0f} ms a step", 150, sizes.slow))
    with Server() as server:
        for setting, rows, seconds in settings:
            path = run_file(
                folder,
                f"start-{rows}",
                size=24,
                seconds=seconds,
                total=1_000_000,
                every=1_000_000,
                probe="Started",
                **hyperparameters(sizes, 10_000),
            )
            worker = begin(path, server.url, env={PLAN: str(note)})
            worker.wait_for_steps(rows)
            os.kill(worker.pid, signal.SIGTERM)
            worker.wait(expected=75)
            parts = [_start(path, server, note) for _ in range(sizes.starts)]
            whole = interval([sum(part.values()) for part in parts])
            detail = {f"{name}, s": statistics.median(part[name] for part in parts) for name in parts[0]}
            yield Figure(7, setting, whole, None, detail=detail)


def _start(path: Path, server: Server, note: Path) -> dict[str, float]:
    note.unlink(missing_ok=True)
    server.log()
    worker: Worker = begin(path, server.url, fresh=True, env={PLAN: str(note)})
    deadline = time.monotonic() + 300
    while not note.exists() and worker.exit_code() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if worker.exit_code() is None:
        os.kill(worker.pid, signal.SIGTERM)
    worker.wait(expected=75)
    noted = json.loads(note.read_text())
    log = [request for request in server.log() if request.at < noted["stepped"]]
    begun = next(request.at for request in log if request.key.endswith("/start.json"))
    taken = next(request.at for request in log if _swaps_head(request))
    fetched = max(
        request.at
        for request in log
        if request.method == "GET" and ("/checkpoints/" in request.key or "/replay/" in request.key)
    )
    return {
        "imports": noted["imported"] - worker.started,
        "build": begun - noted["imported"],
        "take": taken - begun,
        "fetch": fetched - taken,
        "first step": noted["stepped"] - fetched,
    }


def _thousands(count: int) -> str:
    return f"{count // 1_000_000}M" if count % 1_000_000 == 0 else f"{count // 1000}k"


def _line(rate: float | None) -> str:
    return f"{rate / 1e6:.0f} MB/s, {LATENCY * 1e3:.0f} ms" if rate else "loopback"
