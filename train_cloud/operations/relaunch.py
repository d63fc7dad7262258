"""relaunch: a run whose worker has gone gets another one, perhaps with another budget."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence

from train_cloud.config import ALIASES, PARTS, parse_overrides, parse_run_file, read_yaml
from train_cloud.errors import ConditionFailed, InputError, ObjectMissing
from train_cloud.report.preflight import check_budget
from train_cloud.run import layout
from train_cloud.run.head import Head
from train_cloud.run.overrides import read_overrides
from train_cloud.run.session import now
from train_cloud.store import ObjectStore


def check_relaunch(
    store: ObjectStore, head: Head | None, overrides: Sequence[str], *, train_on: bool = False
) -> Mapping[str, object]:
    """Whether the run may go on, with ``overrides`` on top of what was set before. Writes nothing.

    :param overrides: ``key=value``, of the budget
    :param train_on: also where a callback has ended it before its total
    :return: what is to be written as the run's next overrides
    :raises InputError: a field that is no part of the budget, that is wrong, or that leaves nothing to do
    """
    changes = parse_overrides(overrides)
    for key, value in changes.items():
        field = key.split(".")[0]
        if PARTS.get(ALIASES.get(field, field)) == "identity":
            raise InputError(key, value, "it belongs to what the run is, which stays: fork it with train-cloud fork")
    try:
        launched = read_yaml(bytes(store.get(layout.RUN_YAML).body).decode(), layout.RUN_YAML)
    except ObjectMissing:
        if changes or (head is not None and head.outcome == "completed"):
            fix = "it lies where the run was launched from: train there, with the larger total"
            raise InputError("run", store.url, f"there is no {layout.RUN_YAML}; {fix}") from None
        return changes
    # Its folder need not be here, and is none of the budget.
    values = {key: value for key, value in launched.items() if key != "code"}
    run_file = parse_run_file(values, extra={**read_overrides(store)[1], **changes})
    if head is not None:
        check_budget(store, head, run_file, train_on=train_on)
    return changes


def write_continued(store: ObjectStore, head: Head) -> None:
    """Leave word for the next session that the run goes on where a callback had ended it."""
    with contextlib.suppress(ConditionFailed):  # it stands there already
        store.create(layout.continued_key(head.timesteps), json.dumps({"written": now()}).encode())
