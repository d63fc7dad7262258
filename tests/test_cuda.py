"""Snapshots of a model on a GPU. Without one there is nothing to test here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sessions import Rehearsed

from train_cloud.checkpoint.format import pack, unpack
from train_cloud.learn.capture import _copied
from train_cloud.learn.compare import differences
from train_cloud.snapshot import Part

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = {f"weight {n}": torch.randn(64, n + 1, generator=generator).cuda() for n in range(20)}
    made["transposed"] = torch.randn(30, 40, generator=generator).cuda().T
    made["double"] = torch.randn(5, generator=generator, dtype=torch.float64).cuda()
    made["number"] = torch.tensor(3.0, device="cuda")
    made["empty"] = torch.zeros(0, 3, device="cuda")
    made["steps"] = torch.tensor(7.0)  # Adam keeps its count in ordinary memory
    return made


def test_a_copy_is_of_the_moment_at_which_it_was_taken() -> None:
    """The next update is queued right behind the copy, while the GPU is busy with what came before."""
    live = tensors()
    expected = {name: tensor.cpu().numpy().copy() for name, tensor in live.items()}
    taken = []
    for step in range(50):
        busy = torch.randn(1000, 1000, device="cuda")
        for _ in range(20):
            busy = busy @ busy * 1e-3
        taken.append((step, _copied(live)))
        for tensor in live.values():
            tensor.add_(1.0)
    for step, copied in taken:
        assert set(copied) == set(expected)
        found = unpack(pack(Part(copied)), "taken").arrays
        for name, before in expected.items():
            added = before
            for _ in range(step):
                added = (added + added.dtype.type(1)).astype(before.dtype)
            assert found[name].shape == before.shape and found[name].tobytes() == added.tobytes(), (step, name)


def test_taking_a_copy_does_not_wait_for_the_gpu() -> None:
    live = tensors()
    _copied(live)["number"]  # allocates what is allocated once
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # type: ignore[no-untyped-call]  # cycles: about a second
    began = time.perf_counter()
    copied = _copied(live)
    took = time.perf_counter() - began
    assert float(copied["number"]) == 3.0
    assert took < 0.5 * (time.perf_counter() - began)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
def test_interrupted_on_a_gpu(warm: Any, tmp_path: Path, algorithm: str) -> None:
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}}
    kwargs |= {"learning_starts": 100} if algorithm == "sac" else {"n_steps": 64, "batch_size": 32}
    content = {
        "algorithm": algorithm,
        "seed": 3,
        "device": "cuda",
        "total_timesteps": 640,
        "save_frequency": 128,
        "environment": {"id": "Pendulum-v1", "normalize": {}},
        "hyperparameters": kwargs,
        "callbacks": ["interrupting:InterruptAt"],
    }
    twin, run = (Rehearsed(warm, tmp_path / name, content) for name in ("twin", "run"))
    assert twin.session() == 0, twin.log()
    assert run.session("SIGTERM@237") == 75, run.log()
    assert run.session("SIGKILL@431") == -9, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
