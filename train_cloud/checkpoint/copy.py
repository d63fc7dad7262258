"""A checkpoint in another run's folder: every object is read, verified and written there under a name of its own, so
that neither run depends on the other afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from train_cloud.checkpoint.format import pack
from train_cloud.checkpoint.manifest import Manifest, Segment, read_verified, refer
from train_cloud.run import layout
from train_cloud.run.head import Reference, Token
from train_cloud.run.session import now
from train_cloud.snapshot import Part
from train_cloud.store import ObjectStore

#: Bodies in memory at a time.
_PARALLEL = 4


def copy(
    source: ObjectStore,
    manifest: Manifest,
    target: ObjectStore,
    *,
    token: Token,
    parts: Mapping[str, Part],
    facts: Mapping[str, Any],
) -> Reference:
    """Write the checkpoint as the first one of another run; nothing refers to it until a head does.

    :param token: of the writer, in the objects' names
    :param parts: instead of those with the same names
    :return: its manifest
    :raises CorruptCheckpoint: an object is missing or changed
    """
    # Two that copy to one place at the same time write under names of their own: one of them gets the head.
    number = secrets.randbelow(1_000_000)
    folder = layout.checkpoint_prefix(manifest.timesteps, token, number)

    def write(key: str, body: memoryview) -> Reference:
        target.put(key, body)
        return refer(target, key, body)

    def part(name: str) -> Reference:
        replaced = parts.get(name)
        return write(folder + name, pack(replaced) if replaced else read_verified(source, manifest.parts[name]))

    def segment(stream: str, old: Segment) -> Segment:
        key = layout.segment_key(stream, old.first, old.last, token, number)
        return old.model_copy(update={"key": write(key, read_verified(source, old)).key})

    with ThreadPoolExecutor(_PARALLEL) as pool:
        references = dict(zip(manifest.parts, pool.map(part, manifest.parts), strict=True))
        streams = {
            name: stream.model_copy(
                update={"segments": tuple(pool.map(segment, [name] * len(stream.segments), stream.segments))}
            )
            for name, stream in manifest.streams.items()
        }
    copied = Manifest(
        timesteps=manifest.timesteps,
        session=token.session,
        restart=token.restart,
        created=now(),
        parts=references,
        streams=streams,
        kept=(),
        facts=dict(facts),
    )
    return write(folder + "manifest.json", memoryview(copied.model_dump_json().encode()))
