"""A restore needs little memory beside the ring, and says how far it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train_cloud.checkpoint import Committer
from train_cloud.run import layout
from train_cloud.run.head import Lease, Token
from train_cloud.snapshot import Part, Rows, Snapshot
from train_cloud.store import open_store

ROWS, WIDTH = 75_000, 1000
RESTORE = """
import dataclasses, json, re, sys, time
from pathlib import Path
import numpy as np, psutil
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.sb3.replay import Ring
from train_cloud.run.head import read_head
from train_cloud.store import open_store

rows, width, url = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
box = spaces.Box(-1, 1, (width,), np.float32)
buffer = ReplayBuffer(rows, box, spaces.Box(-1, 1, (2,), np.float32), device="cpu")
store = open_store(url)
manifest = read_manifest(store, read_head(store)[0].manifest)
before = psutil.Process().memory_info().rss
received, beside, filled = [], [], 0

def slowly(chunks):
    global filled
    for number, (first, columns) in enumerate(chunks):
        yield first, columns
        filled += sum(column.nbytes for column in columns.values())
        if number < 2:
            time.sleep(2)  # all that may be ahead is there
        beside.append(psutil.Process().memory_info().rss - before - filled)

stream = restore(store, manifest, received=received.append).streams["replay"]
Ring(buffer).load(dataclasses.replace(stream, chunks=slowly(stream.chunks)), {})
# of this program alone: ru_maxrss counts what the process was before exec, a copy of pytest
peak = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
sizes = [segment.size for segment in manifest.streams["replay"].segments]
right = (buffer.observations[:, 0, 0] == np.arange(rows)).all() and (buffer.next_observations[:, 0, 1] == 7).all()
print(json.dumps({
    "before": before, "peak": peak, "right": bool(right), "segments": sum(sizes), "count": len(sizes),
    "received": sum(received), "beside": max(beside), "total": manifest.bytes(),
}))
"""


@pytest.mark.slow
def test_memory_stays_below_the_buffer_and_500_mb(tmp_path: Path) -> None:
    """With 600 MB of rows, which all at once would take as much again."""
    store = open_store(layout.run_url(str(tmp_path / "store"), "a-run"))
    committer = Committer(store, Lease.take(store, Token(1, 0), "i-1"), None)
    observations = np.full((ROWS, 1, WIDTH), 7, np.float32)
    observations[:, 0, 0] = np.arange(ROWS)
    after = np.concatenate([observations[1:], observations[:1]])
    names = ("actions", "rewards", "dones", "timeouts")
    small = {name: np.zeros((ROWS, 1, 2) if name == "actions" else (ROWS, 1), np.float32) for name in names}
    columns = {"observations": observations, "next_observations": after, **small}
    rows = Rows(0, ROWS, ROWS, [(0, columns)], {"next_observations": "observations"})
    committer.submit(Snapshot(ROWS, {"model": Part()}, {"replay": rows}))
    committer.wait()
    done = subprocess.run(
        [sys.executable, "-c", RESTORE, str(ROWS), str(WIDTH), store.url], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["right"] and found["count"] >= 8
    buffer = sum(column.nbytes for column in columns.values())
    assert found["segments"] < 0.6 * buffer
    assert found["received"] == found["total"] > found["segments"]
    assert found["peak"] - found["before"] - buffer < 500e6
    # A ring of some GB would have as much beside it at its end as this one has at its beginning.
    assert found["beside"] < 280e6
