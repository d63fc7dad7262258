"""How long a PyTorch loop waits for a snapshot, beside the time it takes to clone each of its tensors.

``python benchmarks/loop_stall.py``: for networks of several sizes with Adam, the least of both in milliseconds, and
whether the snapshot takes at most three times as long plus a millisecond.
"""

from __future__ import annotations

import collections
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from loops import RecordingHost

from train_cloud.pytorch.loop import resumable
from train_cloud.trainer import hosting

REPEATS = 15


class TimedHost(RecordingHost):
    """Takes a checkpoint at each step, and notes how long the loop waited."""

    save_frequency = 1

    def __init__(self, total: int) -> None:
        super().__init__(total, None, None)
        self.stalls: list[float] = []

    def stalled(self, milliseconds: float) -> None:
        self.stalls.append(milliseconds)


def measured(width: int, depth: int) -> tuple[int, float, float]:
    """:return: bytes of all tensors, and milliseconds of a snapshot and of cloning each tensor"""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters())
    recent: collections.deque[float] = collections.deque(maxlen=100)
    host, clones = TimedHost(REPEATS), []
    with hosting(host), resumable(model=model, optimizer=optimizer) as run:
        for _ in run.steps():
            loss = model(torch.randn(8, width)).pow(2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            recent.append(loss.item())
            state = optimizer.state_dict()["state"]
            tensors = [*model.state_dict().values(), *(one for each in state.values() for one in each.values())]
            began = time.perf_counter()
            copies = [tensor.clone() for tensor in tensors]
            clones.append(1e3 * (time.perf_counter() - began))
            del copies
    size = sum(tensor.nbytes for tensor in tensors)
    return size, min(host.stalls), min(clones)


def main() -> int:
    torch.set_num_threads(1)
    print("tensors (MB)  snapshot (ms)  cloning (ms)  3 x cloning + 1 ms")
    missed = 0
    for width, depth in ((64, 2), (256, 4), (512, 12), (1024, 12)):
        size, stall, clone = measured(width, depth)
        within = stall <= 3 * clone + 1
        missed += not within
        print(f"{size / 1e6:12.1f}  {stall:13.2f}  {clone:12.2f}  {'within' if within else 'MISSED'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
