"""What the launch says of a run, beside its run file: ``run.json``, which Terraform writes and the worker may not."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta, timezone
from typing import Any

from train_cloud.errors import ObjectMissing
from train_cloud.run import layout
from train_cloud.store import ObjectStore

OUTER_STOP = timedelta(minutes=30)
"""After the deadline the run's group is taken to 0 from outside, as ``terraform/worker.tf`` schedules it."""
log = logging.getLogger(__name__)


def read_deadline(store: ObjectStore) -> datetime | None:
    """When the run ends by itself at the latest, as launched or as set since; None where nobody has said.

    :raises StoreError: unknown
    """
    text = _launch(store).get("deadline")
    try:
        found = None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))
        return found.replace(tzinfo=timezone.utc) if found is not None and found.tzinfo is None else found
    except (ValueError, AttributeError) as error:  # the outer stop holds all the same
        log.warning("%s/%s says no deadline: %s", store.url, layout.RUN_JSON, error)
        return None


def read_volume(store: ObjectStore) -> dict[str, Any] | None:
    """The workers' root volume: ``type``, ``gb``, ``iops``, ``throughput`` in MiB/s; None where nobody has said.

    :raises StoreError: unknown
    """
    found = _launch(store).get("volume")
    return found if isinstance(found, dict) else None


def read_experiment_name(store: ObjectStore) -> str | None:
    """Of the experiment file that the run was launched from; None where it was launched by itself.

    :raises StoreError: unknown
    """
    found = _launch(store).get("experiment")
    return found if isinstance(found, str) and layout.is_run_id(found) else None


def _launch(store: ObjectStore) -> dict[str, Any]:
    try:
        found: Any = json.loads(bytes(store.get(layout.RUN_JSON).body))
    except ObjectMissing:
        return {}
    except ValueError as error:
        log.warning("%s/%s cannot be read: %s", store.url, layout.RUN_JSON, error)
        return {}
    return found if isinstance(found, dict) else {}
