"""What checkpoints lie in a store, whatever its head says: their manifests, and what is there of what they name."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import ValidationError

from train_cloud.checkpoint.manifest import CURE, Kept, Manifest, find, read_manifest, read_verified, refer
from train_cloud.errors import CorruptCheckpoint, HeadMissing, InputError, ObjectMissing
from train_cloud.run import layout
from train_cloud.run.head import Head, Reference, Token, lost, read_head, refuse_lost
from train_cloud.store import ObjectStore

_PARALLEL = 8


@dataclass(frozen=True)
class Standing:
    """A checkpoint that lies in the store."""

    manifest: Manifest
    reference: Reference
    token: Token
    seq: int
    lacks: tuple[str, ...]
    """Keys of what its manifest names and is not there, or has another size; of a run's rows too."""
    exportable: bool
    """Whether all but rows is there."""

    @property
    def timesteps(self) -> int:
        return self.manifest.timesteps

    @property
    def whole(self) -> bool:
        return not self.lacks


@dataclass(frozen=True)
class Survey:
    """What lies there."""

    checkpoints: tuple[Standing, ...]
    """The one that was committed last comes first."""
    unreadable: tuple[str, ...]
    """Keys of manifests that are none."""
    highest: Token
    """Of all that write or have written checkpoints."""
    seq: int
    """The highest in any key."""

    def whole(self) -> list[Standing]:
        return [each for each in self.checkpoints if each.whole]

    def kept_before(self, chosen: Standing) -> tuple[Kept, ...]:
        """What a head that names ``chosen`` can name besides: the earlier ones that are there."""
        found: dict[int, Kept] = {}
        for each in self.checkpoints:
            if each.timesteps < chosen.timesteps and each.exportable and each.timesteps not in found:
                found[each.timesteps] = Kept(
                    timesteps=each.timesteps,
                    manifest=each.reference,
                    rows=each.whole,
                    episode_return=each.manifest.episode_return,
                )
        return tuple(found[at] for at in sorted(found, reverse=True))


def survey(store: ObjectStore) -> Survey:
    """Look at all of them, by names and sizes; :func:`damage` reads a single one."""
    sizes = {info.key: info.size for prefix in _PREFIXES for info in store.list(prefix)}
    keys = [key for key in sizes if layout.manifest_of(key) is not None]
    with ThreadPoolExecutor(_PARALLEL) as threads:
        read = list(threads.map(lambda key: _read(store, key), keys))
    found, tokens, seqs = [], [Token(0, 0)], [0]
    for key, standing in zip(keys, read, strict=True):
        named = layout.manifest_of(key)
        if standing is None or named is None:
            continue
        manifest, reference = standing
        lacks = tuple(sorted(_lacking(manifest, sizes, rows=True)))
        exportable = not _lacking(manifest, sizes, rows=False)
        found.append(Standing(manifest, reference, Token(*named[1]), named[2], lacks, exportable))
    for key in sizes:
        name = layout.manifest_of(key)
        token, seq = (name[1], name[2]) if name is not None else layout.segment_of(key) or ((0, 0), 0)
        tokens.append(Token(*token))
        seqs.append(seq)
    return Survey(
        checkpoints=tuple(sorted(found, key=lambda each: (each.token, each.seq), reverse=True)),
        unreadable=tuple(key for key, standing in zip(keys, read, strict=True) if standing is None),
        highest=max(tokens),
        seq=max(seqs),
    )


def damage(store: ObjectStore, standing: Standing) -> str | None:
    """What is wrong with a checkpoint, every byte of it read; None where it is whole."""
    if standing.lacks:
        return f"{store.url}/{standing.lacks[0]} is missing, or not as long as its manifest says"
    manifest = standing.manifest
    references = [*manifest.parts.values(), *(s for stream in manifest.streams.values() for s in stream.segments)]
    with ThreadPoolExecutor(_PARALLEL) as threads:
        try:
            for _ in threads.map(lambda reference: _verify(store, reference), references):
                pass
        except CorruptCheckpoint as error:
            return str(error).removesuffix(CURE)
    return None


def refuse(store: ObjectStore, head: Head | None) -> None:
    """As :func:`refuse_lost`, naming the newest whole checkpoint.

    :raises HeadMissing:
    """
    try:
        refuse_lost(store, head)
    except HeadMissing as error:
        found = survey(store)
        whole = found.whole()
        if not whole:
            raise
        raise HeadMissing(
            lost(store, f"checkpoints, the newest whole one at {whole[0].timesteps} timesteps")
        ) from error


def committed(store: ObjectStore, run_id: str) -> tuple[Head, Reference]:
    """The head of a run that has a checkpoint, and that checkpoint's manifest.

    :raises InputError: there is no such run, or none yet
    :raises HeadMissing: the run has left checkpoints, and its head is gone
    """
    read = read_head(store)
    head = read[0] if read else None
    refuse(store, head)
    if head is None or head.manifest is None:
        root = layout.root_of(store.url)
        fix = f"it has no checkpoint under {root}: check the id, or wait for the first commit"
        raise InputError("run", run_id, fix)
    return head, head.manifest


def cure(store: ObjectStore, newest: Reference) -> str:
    """What a person can do about a newest checkpoint that is damaged, in words."""
    run_id = layout.run_id_of(store.url)
    try:
        kept = [each for each in read_manifest(store, newest).kept if each.rows]
        sizes = {info.key: info.size for prefix in _PREFIXES for info in store.list(prefix)}
        for each in kept:
            if not _lacking(find(store, newest, each.timesteps), sizes, rows=True):
                return f"train-cloud rollback {run_id} --to {each.timesteps} goes back to the one before"
    except CorruptCheckpoint:
        pass  # of a manifest, without which there is nothing to go back by
    return f"train-cloud repair {run_id} goes back to the newest one that is whole"


_PREFIXES = (layout.CHECKPOINTS, layout.REPLAY)


def _read(store: ObjectStore, key: str) -> tuple[Manifest, Reference] | None:
    """A manifest and what a head must say of it; None where it is none, or another one than its key says."""
    try:
        body = memoryview(store.get(key).body)
        manifest = Manifest.model_validate_json(bytes(body))
    except (ObjectMissing, ValidationError):
        return None
    named = layout.manifest_of(key)
    if named is None or named[0] != manifest.timesteps:
        return None
    return manifest, refer(store, key, body)


def _lacking(manifest: Manifest, sizes: Mapping[str, int], *, rows: bool) -> set[str]:
    streams = manifest.streams.values() if rows else ()
    references = [*manifest.parts.values(), *(segment for stream in streams for segment in stream.segments)]
    return {reference.key for reference in references if sizes.get(reference.key) != reference.size}


def _verify(store: ObjectStore, reference: Reference) -> None:
    read_verified(store, reference)
