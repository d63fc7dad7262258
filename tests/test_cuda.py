"""What is promised on a GPU: capture, restore and resume work, and checkpoints move between CPU and GPU. That two runs
are equal is not promised there. The pair of CPUs runs everywhere, and shows that the comparison itself can pass.
"""

from __future__ import annotations

import math
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import exactness
import pytest
import torch

from train_cloud.sb3.compare import differences
from train_cloud.snapshot import Snapshot

_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

PAIRS = [
    pytest.param("cpu", "cpu"),
    pytest.param("cuda", "cuda", marks=_GPU),
    pytest.param("cuda", "cpu", marks=_GPU),
    pytest.param("cpu", "cuda", marks=_GPU),
]
CASES = {
    "sac, gSDE": exactness.Case("sac", "Pendulum-v1", "dummy", True, True),
    "td3": exactness.Case("td3", "Pendulum-v1", "dummy", False, False),
    "crossq": exactness.Case("crossq", "Pendulum-v1", "dummy", False, False),
    "ppo": exactness.Case("ppo", "CartPole-v1", "dummy", True, False),
    "recurrent_ppo": exactness.Case("recurrent_ppo", "Pendulum-v1", "dummy", False, False),
    "dqn, processes": exactness.Case("dqn", "CartPole-v1", "subproc", False, False),
}


class _Trained:
    """Stretches of one run, each in a process of its own."""

    def __init__(self, context: Any, case: exactness.Case, folder: Path) -> None:
        self.context, self.case, self.folder = context, case, folder

    def stretch(
        self, name: str, device: str, *, begin: str | None = None, stop_at: int | None = None
    ) -> dict[str, Any]:
        run = {**self.case.run(), "device": device}
        began = str(self.folder / begin) if begin else None
        exactness.in_a_process(self.context, run, self.case.choice(), stop_at, began, self.folder / name)
        found: dict[str, Any] = pickle.loads((self.folder / name).read_bytes())
        assert "failed" not in found, found["failed"]
        return found


def _state(found: dict[str, Any]) -> Snapshot:
    snapshot: Snapshot = pickle.loads(found["state"])
    return snapshot


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_checkpoint_is_restored_and_gone_on_with(
    warm: Any, tmp_path: Path, name: str, before: str, after: str
) -> None:
    run = _Trained(warm, CASES[name], tmp_path)
    saved = _state(run.stretch("first", before, stop_at=exactness.STOP_AT))
    assert saved.timesteps >= exactness.STOP_AT
    for array in saved.parts["model"].arrays.values():
        assert type(array).__module__ == "numpy", "nothing of the GPU's travels"
    # Restored and captured again, before anything is trained.
    again = _state(run.stretch("again", after, begin="first", stop_at=0))
    told = [text for text in differences(_without_rows(saved), _without_rows(again)) if ".cuda" not in text]
    assert told == []
    end = run.stretch("end", after, begin="first")
    final = _state(end)
    assert final.timesteps > saved.timesteps
    assert all(math.isfinite(float(array.sum())) for array in final.parts["model"].arrays.values())
    assert all(step > saved.timesteps for step, _ in end["scalars"])


def _without_rows(snapshot: Snapshot) -> Snapshot:
    return Snapshot(snapshot.timesteps, snapshot.parts, {}, snapshot.facts)


@_GPU
def test_the_model_is_on_the_gpu_and_its_generator_is_restored(warm: Any, tmp_path: Path) -> None:
    run = _Trained(warm, CASES["sac, gSDE"], tmp_path)
    saved = _state(run.stretch("first", "cuda", stop_at=exactness.STOP_AT))
    again = _state(run.stretch("again", "cuda", begin="first", stop_at=0))
    assert differences(_without_rows(saved), _without_rows(again)) == []
    assert saved.facts["device"].startswith("cuda")


def test_processes_are_forked_where_cuda_was_not_touched(warm: Any) -> None:
    """CUDA does not survive a fork: the process that everything is forked from must not have begun it."""
    multiprocessing.forkserver.ensure_running()
    queue = warm.SimpleQueue()
    process = warm.Process(target=_cuda_begun, args=(queue,))
    process.start()
    assert queue.get() is False
    process.join(60)


def _cuda_begun(queue: Any) -> None:
    queue.put(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
