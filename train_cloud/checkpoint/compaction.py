"""Many small segments become few: frequent saves must not make a restore slow.

Neighbours of like size are joined, and the result again with its likes, as in a log-structured merge tree (O'Neil et
al., "The Log-Structured Merge-Tree", 1996). So each row is sent once more per level: twice for rows of 100 bytes that
are saved by the thousand, never where segments are large from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from train_cloud.checkpoint.manifest import Segment

#: One PUT in one part. Eight of them in flight, as a restore has, fill a line of 625 MB/s with 30 ms latency, and need
#: 400 MB while they are unpacked.
MERGED_BYTES = 16 << 20
#: As many objects are restored in a second, at 30 ms each and eight at a time. A merge sends their rows again: from
#: 64 on it made what a checkpoint of 5,000 rows of 106 bytes sends a quarter larger (docs/benchmarks.md, figure 3).
MANY = 256
#: Segments that become one, where they are small.
FAN_IN = 32


def due(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Neighbours, the oldest first, that are worth being one; none while there are few segments.

    One merge per commit keeps up: a commit adds one segment, a merge takes one or more away.
    """
    if len(segments) <= MANY:
        return ()
    # Large ones have a level of their own, which is left alone.
    levels = groupby(segments, lambda segment: -1 if segment.size >= MERGED_BYTES // 2 else segment.merged)
    return next((chosen for level, group in levels if level >= 0 and (chosen := _chosen([*group]))), ())


def _chosen(alike: Sequence[Segment]) -> tuple[Segment, ...]:
    size = 0
    for count, segment in enumerate(alike):
        size += segment.size
        if size > MERGED_BYTES:  # without this one, which is not large, they are more than half of it
            return tuple(alike[:count])
        if count + 1 == FAN_IN:
            return tuple(alike[:FAN_IN])
    return ()
