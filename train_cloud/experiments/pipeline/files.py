"""What a pipeline leaves for its readers, below ``pipelines/<id>/``: made from the runs, read by nobody of ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_cloud.artifacts.uploads import now
from train_cloud.config.pipeline import PipelineConfig
from train_cloud.errors import CorruptCheckpoint, StoreError
from train_cloud.experiments.pipeline.criteria import last_evaluation
from train_cloud.experiments.pipeline.progress import BAD, SessionStanding
from train_cloud.experiments.standing import run_store
from train_cloud.run import layout
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.runtime.kept_models import FINAL_MODEL
from train_cloud.store import ObjectStore, open_store
from train_cloud.whole_file import write_whole

log = logging.getLogger(__name__)

STATE, REPORT = "pipeline_state.json", "pipeline_report.json"
_STATUS = {"open": "pending", "waiting": "pending"}


def summary(
    root: str, pipeline: PipelineConfig, found: Sequence[SessionStanding]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of both files.

    :raises StoreError: a run cannot be read
    """
    by_name = {one.name: one for one in found}
    sessions = [_session(root, by_name[session.name]) for session in pipeline.sessions]
    known = [session["started_at"] for session in sessions if session["started_at"] is not None]
    ended = [session["completed_at"] for session in sessions if session["completed_at"] is not None]
    over = all(one.state not in ("open", "waiting") for one in found)
    running = [session["session"] for session in sessions if session["status"] == "running"]
    done = [session["session"] for session in sessions if session["status"] == "completed"]
    failed = sum(one.state in BAD for one in found)
    state = {
        "pipeline": pipeline.written.name,
        "id": pipeline.id,
        "status": "failed" if failed and (over or not pipeline.written.continue_on_error) else
        "completed" if over else "running" if running else "pending",
        "sessions_completed": done,
        "current_session": running[0] if running else None,
        "current_sessions": running,
        "started_at": min(known, default=None),
        "last_updated": now(),
        "checkpoints": {session["session"]: session["checkpoint"] for session in sessions if session["checkpoint"]},
    }  # fmt: skip
    report = {
        "pipeline": pipeline.written.name,
        "id": pipeline.id,
        "started_at": min(known, default=None),
        "completed_at": max(ended, default=None) if over else None,
        "sessions": sessions,
        "summary": {
            "total_sessions": len(sessions),
            "completed": len(done),
            "failed": failed,
            "total_duration": round(sum(session["duration_seconds"] or 0.0 for session in sessions), 3),
        },
    }
    return state, report


def write(root: str, pipeline: PipelineConfig, found: Sequence[SessionStanding], beside: Path | None = None) -> None:
    """Write both. A store that does not let it ends no training.

    :param beside: a local folder that gets them too
    """
    try:
        state, report = summary(root, pipeline, found)
        store = open_store(pipeline_url(root, pipeline.id))
        for name, content in ((STATE, state), (REPORT, report)):
            body = json.dumps(content, indent=2).encode()
            store.put(name, body)
            if beside is not None:
                beside.mkdir(parents=True, exist_ok=True)
                write_whole(beside / name, body)
    except (StoreError, CorruptCheckpoint, OSError) as error:
        log.warning("the files of the pipeline %s are not up to date: %s", pipeline.id, error)


def pipeline_url(root: str, pipeline_id: str) -> str:
    """URL of a pipeline's own folder under a store root."""
    return f"{root.rstrip('/')}/{layout.pipeline_folder(pipeline_id)}"


def final_model(store: ObjectStore) -> str | None:
    """URL of the model that a run ended with; None where it has left none."""
    found = sorted(info.key for info in store.list(f"{layout.ARTIFACTS}{FINAL_MODEL}."))
    return f"{store.url}/{found[-1]}" if found else None  # a zip before safetensors


def _session(root: str, one: SessionStanding) -> dict[str, Any]:
    store = run_store(root, one.run_id)
    records = read_sessions(store) if one.run is not None and one.run.state != "new" else []
    ids = one.session.run_ids
    before = [read_sessions(run_store(root, run_id)) for run_id in ids[: ids.index(one.run_id)]]
    whole = [record for attempt in before for record in attempt] + records
    evaluation = None
    if one.run is not None and one.run.outcome is not None:
        evaluation = one.judged.evaluation if one.judged is not None else last_evaluation(store, one.run.timesteps)
    over = one.run is not None and one.run.outcome is not None
    status = _STATUS.get(one.state, one.state)
    if one.state == "open" and records and records[-1].end is None:
        status = "running"
    elif one.state == "open" and records:
        status = "interrupted"
    ended = _ended(records[-1]) if over and records else None
    model = one.config.initial_model if one.config is not None else None
    return {
        "session": one.name,
        "run_id": one.run_id,
        "status": status,
        "started_at": whole[0].start.get("started") if whole else None,
        "completed_at": ended,
        "duration_seconds": _seconds(whole),
        "checkpoint": final_model(store) if one.state == "completed" else None,
        "timesteps": one.run.timesteps if one.run is not None else 0,
        "total_timesteps": (one.config or one.session.config).total_timesteps,
        "begins_with": None if model is None else {"source": model.source, "digest": model.digest},
        "boots": len(records),
        "attempts": one.attempts + (one.state == "completed"),
        "evaluation": None if evaluation is None else {
            "timesteps": evaluation.timesteps,
            "mean_return": evaluation.overall.returns.mean,
            "success_rate": evaluation.overall.success_rate,
        },
        "error": one.reason if one.state in BAD else None,
    }  # fmt: skip


def _ended(record: SessionRecord) -> str | None:
    found = (record.end or record.progress or {}).get("ended" if record.end else "at")
    return found if isinstance(found, str) else None


def _seconds(records: Sequence[SessionRecord]) -> float | None:
    """Of all attempts and boots together, without what lay between them."""
    known = [(record.end or record.progress or {}).get("seconds") for record in records]
    return round(sum(float(seconds) for seconds in known if isinstance(seconds, int | float)), 3) if records else None
