"""Tables that grow by a row at a time and stay one table over all sessions: ``progress.csv``, ``monitor.csv``.

Their first column is ``timesteps``. Whatever stands beyond the head is logged again, as with event files.
"""

from __future__ import annotations

from pathlib import Path

from train_cloud.artifacts.sync import write_whole


def cut(path: Path, timesteps: int) -> bool:
    """Remove the rows beyond ``timesteps``, and a torn last one. Lines before the first row stay.

    :return: whether the file changed
    """
    if not path.exists():
        return False
    body = path.read_bytes()
    kept = []
    for line in body.splitlines(keepends=True):
        first = line.partition(b",")[0]
        if line.endswith(b"\n") and not (first.isdigit() and int(first) > timesteps):
            kept.append(line)
    left = b"".join(kept)
    if left == body:
        return False
    write_whole(path, left)
    return True
