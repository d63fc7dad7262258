"""A checkpoint's modules for people: ``model.safetensors`` and what describes it, readable without this project.

    tensors = safetensors.torch.load_file("model.safetensors")
    model.load_state_dict(tensors)

A module's tensors have the names of its ``state_dict``. Where several modules are registered, the first one is
``model.safetensors`` if it is called ``model``, and each has a file of its own: ``<name>.safetensors``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train_cloud.snapshot import Array, Snapshot
from train_cloud.whole_file import write_whole

MODEL = "model.safetensors"
METADATA = "model.json"
#: safetensors' names of types (github.com/huggingface/safetensors, "Format").
_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64",
}  # fmt: skip


def write_export(snapshot: Snapshot, folder: Path, *, run_yaml: str, lock: str) -> None:
    """Write each registered module as ``<name>.safetensors``, ``model.json``, ``run.yaml`` and ``requirements.lock``.

    :param snapshot: needs the part ``model``
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in files_of(snapshot).items():
        (folder / name).write_bytes(body)
    (folder / METADATA).write_text(json.dumps(description(snapshot), indent=1, sort_keys=True) + "\n")
    (folder / "run.yaml").write_text(run_yaml)
    (folder / "requirements.lock").write_text(lock)


def write_model(snapshot: Snapshot, path: Path) -> None:
    """All modules in one file; of several each tensor has its module's name before its own."""
    modules = snapshot.facts["modules"]
    prefixed = len(modules) != 1
    tensors = {
        f"{name}.{key}" if prefixed else key: tensor
        for name in modules
        for key, tensor in tensors_of(snapshot, name).items()
    }
    write_whole(path, _safetensors(tensors, {"timesteps": str(snapshot.timesteps)}))


def files_of(snapshot: Snapshot) -> dict[str, bytes]:
    """Name of a file → its content."""
    modules: Mapping[str, Any] = snapshot.facts["modules"]
    alone = len(modules) == 1
    return {
        MODEL if alone else f"{name}.safetensors": _safetensors(
            tensors_of(snapshot, name), {"class": module["class"], "steps": str(snapshot.timesteps)}
        )
        for name, module in modules.items()
    }


def tensors_of(snapshot: Snapshot, module: str) -> dict[str, tuple[str, Array]]:
    """Of a registered module: name in its ``state_dict`` → type and content. One that is tied to another has its own
    copy.
    """
    part, facts = snapshot.parts["model"], snapshot.facts
    found = {}
    for key, stored in facts["modules"][module]["tensors"].items():
        array = part.arrays[stored]
        found[key] = (facts["dtypes"].get(stored, str(array.dtype)), array)
    return found


def description(snapshot: Snapshot) -> dict[str, Any]:
    """JSON values: what people and programs need to know to use the files."""
    facts = snapshot.facts
    modules = facts["modules"]
    return {
        "run_id": facts.get("run_id"),
        "steps": snapshot.timesteps,
        "score": facts.get("score"),
        "code_folder": facts.get("code_folder"),
        "machine": facts.get("machine"),
        "parameters": (facts.get("identity") or {}).get("parameters"),
        "modules": {
            name: {
                "file": MODEL if len(modules) == 1 else f"{name}.safetensors",
                "class": module["class"],
                "tensors": {
                    key: {"type": kind, "shape": list(array.shape)}
                    for key, (kind, array) in tensors_of(snapshot, name).items()
                },
            }
            for name, module in modules.items()
        },
    }


def _safetensors(tensors: Mapping[str, tuple[str, Array]], metadata: Mapping[str, str]) -> bytes:
    """The format in full: 8 bytes of length, a JSON header padded to 8 bytes, the tensors' bytes without gaps.

    Written here and not by the library, as NumPy has no bfloat16 that it could be given.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    bodies, at = [], 0
    # By alignment first, as the library does: then every tensor begins at a multiple of its size.
    for name, (kind, array) in sorted(tensors.items(), key=lambda item: (-item[1][1].dtype.itemsize, item[0])):
        body = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": _TYPES[kind], "shape": list(array.shape), "data_offsets": [at, at + len(body)]}
        bodies.append(body)
        at += len(body)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(bodies)


def read_safetensors(body: bytes, source: str) -> dict[str, tuple[str, Array]]:
    """The counterpart of a file in this format; views of ``body``.

    :raises ValueError: it is none
    """
    (length,) = struct.unpack_from("<Q", body)
    header = json.loads(body[8 : 8 + length])
    known = {short: long for long, short in _TYPES.items()}
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        kind = known.get(entry["dtype"])
        if kind is None:
            raise ValueError(f"{source}: {name} has the type {entry['dtype']}")
        plain = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}.get(kind, kind)
        raw = np.frombuffer(body, np.uint8)[8 + length + first : 8 + length + last]
        found[name] = (kind, raw.view(plain).reshape(entry["shape"]))
    return found
