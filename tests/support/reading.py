"""A training that reads frames and notes a digest of each batch: ``python reading.py URL CACHE BYTES OUT``.

It is meant to be killed: each line of OUT is written in one go, ``epoch position digest``. It goes on where its state
file says, which is written after each batch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pictures import digest

from train_cloud.data.frames import frames


def main(url: str, cache: str, limit: str, out: str, workers: int, batches: int) -> None:
    state = Path(f"{out}.state")
    data = frames(url, 4, 5, decode="rgb", workers=workers, cache=cache, cache_bytes=int(limit), tensors=False)
    if state.exists():
        data.load_state_dict(json.loads(state.read_text()))
    with Path(out).open("a") as file:
        while data.epoch * data.batches_per_epoch + data.position < batches:
            at = f"{data.epoch} {data.position}"
            file.write(f"{at} {digest(next(data))}\n")
            file.flush()
            unfinished = Path(f"{out}.unfinished")
            unfinished.write_text(json.dumps(data.state_dict()))
            unfinished.replace(state)
    data.close()


if __name__ == "__main__":
    url, cache, limit, out, workers, batches = sys.argv[1:]
    main(url, cache, limit, out, int(workers), int(batches))
