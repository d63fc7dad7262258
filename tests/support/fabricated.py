"""Runs in a store that nobody has trained: sessions, heads and evaluations written by the code that writes those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train_cloud.evaluate.results import Episode, Evaluation, summarise
from train_cloud.run import layout
from train_cloud.run.head import Lease, Reference
from train_cloud.run.session import begin_session, end_session, write_progress
from train_cloud.store import open_store

#: Of a machine: two dollars an hour.
PRICE = {"spot": 2.0, "on_demand": 5.0, "life_cycle": "spot"}


def episode(reward: float = 1.0, **changes: Any) -> Episode:
    """:param changes: of the fields, by their names in the record"""
    values: dict[str, Any] = {
        "category": "a",
        "index": 0,
        "seed": 0,
        "level": None,
        "return": reward,
        "length": 10,
        "terminated": True,
        "success": None,
        "collisions": None,
        "inference_ms": 0.5,
    }
    return Episode.model_validate({**values, **changes})


def evaluation_of(timesteps: int, played: Mapping[str, Sequence[Episode]], warnings: Sequence[str] = ()) -> Evaluation:
    """:param played: category → its episodes"""
    return Evaluation(
        timesteps=timesteps,
        model="0",
        at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        deterministic=True,
        overall=summarise(played),
        categories={name: summarise({name: each}) for name, each in played.items()},
        episodes=tuple(episode for each in played.values() for episode in each),
        warnings=tuple(warnings),
    )


def evaluation(timesteps: int, returns: Mapping[str, Sequence[float]], solved: float | None = 0.5) -> Evaluation:
    """:param returns: category → each episode's
    :param solved: from this return on an episode has succeeded; None where nothing tells
    """

    def episodes(name: str, values: Sequence[float]) -> list[Episode]:
        succeeded = [None if solved is None else value >= solved for value in values]
        return [
            episode(value, category=name, index=index, seed=index, success=succeeded[index])
            for index, value in enumerate(values)
        ]

    return evaluation_of(timesteps, {name: episodes(name, values) for name, values in returns.items()})


def fabricate(
    root: Path | str,
    run_id: str,
    evaluations: Mapping[int, Mapping[str, Sequence[float]]],
    *,
    outcome: str | None = "completed",
    reason: str | None = None,
    priced: bool = True,
    run_file: Mapping[str, Any] | None = None,
    speed: float = 100.0,
    solved: float | None = 0.5,
    hours: float = 1.0,
    folder: Path | None = None,
    logged: Mapping[str, Mapping[int, float]] | None = None,
) -> None:
    """A run of one session whose last evaluation is at its end.

    :param evaluations: timesteps → category → returns of episodes
    :param outcome: None for a run that is being trained
    :param folder: for files of sessions, where the root is no folder
    :param logged: for ``progress.csv``: one name → timesteps → value
    """
    store = open_store(layout.run_url(str(root), run_id))
    end = max([*evaluations, *(at for points in (logged or {}).values() for at in points)], default=0)
    if logged is not None:
        ((name, points),) = logged.items()
        text = "\n".join([f"timesteps,{name}", *(f"{at},{value}" for at, value in points.items()), ""])
        store.put(f"{layout.ARTIFACTS}progress.csv", text.encode())
    details: dict[str, Any] = {"run_file": {"total_timesteps": max(1000, end), **(run_file or {})}}
    if priced:
        details |= {"instance_type": "g5.xlarge", "setup_seconds": 3600.0 * hours, "price": PRICE}
    session = begin_session(
        store,
        (folder or Path(root)) / ".state" / run_id,
        instance_id="i-1",
        boot_id=run_id,
        details=details,
        persist=False,
    )
    lease = Lease.take(store, session.token, "i-1")
    lease.commit(Reference(key="checkpoints/x", size=1, crc64nvme=0), end)
    progress = {"first_timestep": 0, "timesteps": end, "committed_timesteps": end, "steps_per_second": speed}
    write_progress(store, session, exact=True, exact_because="", **progress)
    for timesteps, returns in evaluations.items():
        body = evaluation(timesteps, returns, solved).model_dump_json(by_alias=True).encode()
        store.put(layout.evaluation_key(timesteps), body)
    if outcome is not None:
        end_session(store, session, ended_by=outcome, first_timestep=0, last_timestep=end)
        lease.conclude(outcome, reason)  # type: ignore[arg-type]
