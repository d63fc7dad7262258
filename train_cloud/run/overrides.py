"""Overrides: what is set on top of a run's file since it was launched, numbered objects of which the newest counts.

Each holds everything that is set, because a worker's boot fetches that one only (``terraform/user_data.sh.tftpl``).
Terraform writes number 0; the worker's role may write none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from train_cloud.errors import ConditionFailed, InputError
from train_cloud.run import layout
from train_cloud.store import ObjectStore


def read_overrides(store: ObjectStore) -> tuple[int, dict[str, Any]]:
    """Number and content of the newest; -1 and nothing where there is none.

    :raises InputError: it is no JSON object
    """
    numbers = [layout.overrides_number(info.key) for info in store.list(layout.OVERRIDES)]
    newest = max((number for number in numbers if number is not None), default=-1)
    if newest < 0:
        return -1, {}
    key = layout.overrides_key(newest)
    try:
        content = json.loads(bytes(store.get(key).body))
    except ValueError as error:
        raise InputError(key, store.url, f"restore an earlier version of it: {error}") from error
    if not isinstance(content, dict):
        raise InputError(key, store.url, "restore an earlier version of it: it must be a JSON object")
    return newest, content


def write_overrides(store: ObjectStore, changes: Mapping[str, Any]) -> int:
    """Write the next number: the newest with ``changes`` on top, which come last. Returns the number."""
    while True:
        newest, content = read_overrides(store)
        content = {key: value for key, value in content.items() if key not in changes} | dict(changes)
        try:
            store.create(layout.overrides_key(newest + 1), json.dumps(content, indent=1).encode())
        except ConditionFailed:
            continue  # somebody else's, whose changes stand below ours
        return newest + 1
