"""Runs that an earlier version began: at commit bf7ba95 of 2026-11-20, before whatever a callback, an algorithm or a
policy holds was kept. ``old_checkpoint/`` has their stores, stopped by a signal in the middle.
"""

from __future__ import annotations

import contextlib
import pickle
import tarfile
import traceback
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from sessions import Rehearsed
from test_objects import Memory

from train_cloud.checkpoint import read_manifest, restore
from train_cloud.run.session import read_sessions
from train_cloud.sb3.compare import differences, read_state
from train_cloud.snapshot import Snapshot

OLD = Path(__file__).parent / "old_checkpoint"
AT = {"ppo": 192, "sac": 150}
END = {"ppo": 448, "sac": 300}


def old(warm: Any, folder: Path, name: str) -> Rehearsed:
    store = folder / "store" / "runs" / "a-run"
    store.mkdir(parents=True)
    with tarfile.open(OLD / f"{name}.tar.xz") as archive:
        archive.extractall(store, filter="data")
    run = YAML(typ="safe").load(store / "run.yaml")
    del run["run_id"]
    return Rehearsed(warm, folder, run)


def stored(run: Rehearsed) -> Snapshot:
    manifest = run.head().manifest
    assert manifest is not None
    return restore(run.store, read_manifest(run.store, manifest))


class AtOnce(Memory):
    """Keeps what was restored."""

    first: bytes | None = None

    def save_requested(self) -> bool:
        return self.first is None

    def submit(self, snapshot: Any) -> None:
        super().submit(snapshot)
        self.first = self.first or self.kept

    def finish(self, snapshot: Any) -> bool:
        self.submit(snapshot)
        return False


def resume(run: dict[str, Any], state: bytes, out: str) -> None:
    """In a process of its own: restore, keep that at once, and stop."""
    import torch
    from stable_baselines3.common.logger import Logger

    from train_cloud.config import parse_run_file
    from train_cloud.envs.make import FAILURES
    from train_cloud.sb3.build import build_callbacks, build_model
    from train_cloud.sb3.callback import learn
    from train_cloud.trainer import TrainingStopped

    try:
        torch.set_num_threads(1)
        config = parse_run_file(run)
        built = build_model(config)
        built.model.set_logger(Logger(None, []))
        host: Any = AtOnce(pickle.loads(state), 1)
        host.total_timesteps = host.schedule_timesteps = config.total_timesteps
        with contextlib.suppress(TrainingStopped):
            learn(built.model, host, build_callbacks(config), built.choice)
        Path(out).write_bytes(host.first or b"")
    except FAILURES:
        Path(out).write_text(traceback.format_exc())


@pytest.mark.slow
@pytest.mark.parametrize("name", AT)
def test_all_that_an_old_checkpoint_has_is_restored_and_the_run_completes(warm: Any, tmp_path: Path, name: str) -> None:
    run = old(warm, tmp_path, name)
    before = stored(run)
    assert before.timesteps == AT[name] and "not_kept" not in before.facts and "digests" not in before.facts

    content = YAML(typ="safe").load(run.run_file)
    rows = {}
    for stream, chunks in before.streams.items():
        made = [(first, {key: chunk[key].copy() for key in chunk}) for first, chunk in chunks.chunks]
        rows[stream] = type(chunks)(chunks.first, chunks.last, chunks.capacity, made, chunks.successors)
    state = pickle.dumps(Snapshot(before.timesteps, before.parts, rows, before.facts))
    process = warm.Process(target=resume, args=(content, state, str(tmp_path / "kept")))
    process.start()
    process.join(240)
    kept = (tmp_path / "kept").read_bytes()
    assert not kept.startswith(b"Traceback"), kept.decode()
    after = pickle.loads(kept)
    told = differences(Snapshot(before.timesteps, before.parts, {}, {}), Snapshot(after.timesteps, after.parts, {}, {}))
    # Nothing has another value; what is only in one is what a checkpoint has gained, or has under another name.
    others = [one for one in told if not one.endswith("only in one")]
    assert all("<algorithm." in one for one in others), others
    assert not [one for one in told if one.startswith(("tensors", "state.callbacks", "state.rest"))], told

    assert run.session() == 0, run.log()
    assert f"session 2 goes on at {AT[name]} timesteps" in run.log()
    final = run.final()
    assert final.timesteps == END[name]
    callbacks = [read_state(snapshot.parts["model"])["callbacks"] for snapshot in (before, final)]
    counted = [next(one["rollouts"] for one in each if "rollouts" in one) for each in callbacks]
    rollout = 64 if name == "ppo" else 1
    assert counted[1] - counted[0] == (END[name] - AT[name]) // rollout - 1, "the checkpoint's had begun"
    (_, second) = read_sessions(run.store)
    assert second.progress is not None and second.progress["not_kept"] == []
