"""The manifest: what one checkpoint consists of, each object with its size and checksum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from train_cloud.checkpoint import signing
from train_cloud.checkpoint.format import crc64nvme
from train_cloud.errors import CorruptCheckpoint, InputError, ObjectMissing
from train_cloud.run.head import Reference
from train_cloud.store import ObjectStore

_FORMAT = 1
CURE = ": train-cloud rollback --to TIMESTEPS, or train-cloud repair, goes back to a checkpoint that is whole"


class Segment(Reference):
    """Rows ``[first, last)`` of a stream."""

    first: int
    last: int
    merged: int = 0
    """How often its rows were sent again to be one with their neighbours."""


class Stream(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    capacity: int
    last: int
    successors: dict[str, str]
    segments: tuple[Segment, ...]
    """In ascending order without gaps; the newest ``capacity`` rows are alive."""


class Kept(BaseModel):
    """An earlier checkpoint that is preserved."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    timesteps: int
    manifest: Reference
    rows: bool = True
    """Whether its segments are preserved with it. Its own manifest names them still, and cannot know."""
    episode_return: float | None = None


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = Field(default=_FORMAT, ge=_FORMAT, le=_FORMAT)
    timesteps: int
    session: int
    restart: int
    created: str
    parts: dict[str, Reference]
    streams: dict[str, Stream]
    kept: tuple[Kept, ...]
    """Newest first; without this one."""
    facts: dict[str, Any]
    """Identity of the run, versions and machine; figures of the algorithm."""

    @property
    def episode_return(self) -> float | None:
        """Mean return of the episodes before it; None where none had ended. Of a loop of the user's own its score."""
        found = self.facts.get("episode_return")
        return None if found is None else float(found)

    @property
    def lower_is_better(self) -> bool:
        """Of :attr:`episode_return`, where it is a score of the run file's."""
        return (self.facts.get("score") or {}).get("direction") == "min"

    def keys(self, *, rows: bool = True) -> set[str]:
        """Every object that this checkpoint needs, without the manifest's own key.

        :param rows: with its segments
        """
        streams = self.streams.values() if rows else ()
        return {part.key for part in self.parts.values()} | {
            segment.key for stream in streams for segment in stream.segments
        }

    def bytes(self) -> int:
        """What a restore reads."""
        segments = (segment for stream in self.streams.values() for segment in stream.segments)
        return sum(reference.size for reference in (*self.parts.values(), *segments))

    def lacks_rows(self) -> bool:
        """Whether there were rows, and none is left."""
        return self.timesteps > 0 and any(not stream.segments for stream in self.streams.values())

    def without_rows(self) -> Manifest:
        """The same checkpoint with empty streams: what is left of it, or what a fork takes of it."""
        empty = {name: stream.model_copy(update={"last": 0, "segments": ()}) for name, stream in self.streams.items()}
        return self.model_copy(update={"streams": empty})


def encoded(manifest: Manifest, known: dict[str, bytes]) -> bytes:
    """As ``model_dump_json``. There may be hundreds of segments, nearly all of which the manifest before had: none is
    encoded twice, as the training stands still for as long.

    :param known: what earlier calls have encoded, by key; afterwards what this one has
    """
    before = dict(known)
    known.clear()

    def several(found: Iterable[tuple[str, BaseModel]]) -> bytes:
        texts = [(key, before.get(key) or each.model_dump_json().encode()) for key, each in found]
        known.update(texts)
        return b"[" + b",".join(text for _, text in texts) + b"]"

    def stream_of(stream: Stream) -> bytes:
        segments = several((segment.key, segment) for segment in stream.segments)
        rest = {name: _json(getattr(stream, name)) for name in Stream.model_fields if name != "segments"}
        return _object({**rest, "segments": segments})  # the last of its fields

    plain = {name: _json(getattr(manifest, name)) for name in Manifest.model_fields if name not in ("streams", "kept")}
    own = {
        "streams": _object({name: stream_of(stream) for name, stream in manifest.streams.items()}),
        "kept": several((f"{each.manifest.key} {each.rows}", each) for each in manifest.kept),
    }
    return _object({name: own[name] if name in own else plain[name] for name in Manifest.model_fields})


def _json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null")


def _object(texts: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(_json(name) + b":" + text for name, text in texts.items()) + b"}"


def read_verified(store: ObjectStore, reference: Reference) -> memoryview:
    """The object's bytes, after its size and checksum were found right.

    :raises CorruptCheckpoint: it is missing, or its bytes are other ones
    """
    try:
        body = memoryview(store.get(reference.key).body)
    except ObjectMissing as error:
        raise CorruptCheckpoint(f"{store.url}/{reference.key} is missing, and a checkpoint names it{CURE}") from error
    if len(body) != reference.size:
        raise CorruptCheckpoint(
            f"{store.url}/{reference.key} has {len(body)} bytes; its manifest says {reference.size}{CURE}"
        )
    found = crc64nvme(body)
    if found != reference.crc64nvme:
        raise CorruptCheckpoint(
            f"{store.url}/{reference.key} has the CRC64NVME {found:016x}; its manifest says "
            f"{reference.crc64nvme:016x}{CURE}"
        )
    signing.check(store, reference, body)
    return body


def refer(store: ObjectStore, key: str, body: memoryview) -> Reference:
    """What names an object of a run from now on."""
    return Reference(key=key, size=len(body), crc64nvme=crc64nvme(body), hmac=signing.signature(store, key, body))


def read_manifest(store: ObjectStore, reference: Reference) -> Manifest:
    """:raises CorruptCheckpoint: missing, changed, or of another format"""
    body = read_verified(store, reference)
    try:
        return Manifest.model_validate_json(bytes(body))
    except ValidationError as error:
        raise CorruptCheckpoint(f"{store.url}/{reference.key} is not a manifest of format {_FORMAT}{CURE}") from error


def find(store: ObjectStore, newest: Reference, at: int | None = None) -> Manifest:
    """The manifest at ``at`` timesteps, or the newest. One that is preserved without its rows has empty streams.

    :raises InputError: no checkpoint at these timesteps is preserved
    """
    manifest = read_manifest(store, newest)
    if at is None or manifest.timesteps == at:
        return manifest
    for kept in manifest.kept:
        if kept.timesteps == at:
            found = read_manifest(store, kept.manifest)
            return found if kept.rows else found.without_rows()
    there = [str(kept.timesteps) for kept in reversed(manifest.kept)] + [str(manifest.timesteps)]
    raise InputError("at", at, f"no checkpoint at these timesteps is preserved; there are: {', '.join(there)}")
