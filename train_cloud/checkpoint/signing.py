"""A keyed checksum of each object of a checkpoint: who may write to a store, but has no key, can forge none.

HMAC-SHA256 (RFC 2104) over the run's id, the object's place in it and its bytes. It stands where the object is named:
in the manifest, and for the manifest in the head. It is compared before anybody reads the bytes: parts of a checkpoint
are pickles, and a CRC has no key.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from train_cloud.errors import CorruptCheckpoint, InputError
from train_cloud.run import layout
from train_cloud.run.head import Reference
from train_cloud.store import ObjectStore

#: Names the variable that holds the key. ``train`` and ``evaluate`` take it from the run file; children inherit it.
VARIABLE = "TRAIN_CLOUD_SIGNED_WITH"
LEAST_BYTES = 16


def use(name: str | None) -> None:
    """Sign and check with what this variable holds, here and in processes started from here.

    :param name: as in the run file's ``signing_key``; None leaves it as it is
    """
    if name is not None:
        os.environ[VARIABLE] = name
        _key()


def signature(store: ObjectStore, key: str, body: memoryview) -> str | None:
    """What stands beside an object's size and CRC; None where nothing is signed.

    :raises InputError: the key is not set, or short
    """
    secret = _key()
    if secret is None:
        return None
    run_id = layout.run_id_of(store.url)
    made = hmac.new(secret, f"train-cloud checkpoint 1\0{run_id}\0{key}\0".encode(), hashlib.sha256)
    made.update(body)
    return made.hexdigest()


def check(store: ObjectStore, reference: Reference, body: memoryview) -> None:
    """:raises CorruptCheckpoint: not signed with this key, or not at all where it has to be"""
    wanted = signature(store, reference.key, body)
    if wanted is None:
        return
    name = f"{store.url}/{reference.key}"
    if reference.hmac is None:
        raise CorruptCheckpoint(
            f"{name} is not signed, and signing_key asks for it: a run is signed from its first checkpoint on"
        )
    if not hmac.compare_digest(wanted, reference.hmac):
        raise CorruptCheckpoint(
            f"{name} is not signed with the key in {os.environ[VARIABLE]}: it was forged, or the key is another one"
        )


def check_key(store: ObjectStore, reference: Reference) -> None:
    """Before anything that may be a pickle is read.

    :raises InputError: it is signed, and there is no key here to check it with
    """
    if reference.hmac is not None and _key() is None:
        fix = f"{store.url} is signed: set {VARIABLE} to the name of the variable that holds its key, and that variable"
        raise InputError("signing_key", None, fix)


def _key() -> bytes | None:
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    secret = os.environ.get(name, "").strip().encode()
    if len(secret) < LEAST_BYTES:
        state = "it is not set" if not secret else f"it has fewer than {LEAST_BYTES} bytes"
        raise InputError("signing_key", name, f"{state}: give that variable the key that the run is signed with")
    return secret
