"""In which arithmetic updates are computed, and what makes a GPU repeat itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from train_cloud.config import parse_run_file
from train_cloud.errors import InputError
from train_cloud.sb3.build import build_model
from train_cloud.sb3.callback import IdleHost, learn

SAC: dict[str, Any] = {
    "run_id": "a-run",
    "algorithm": "sac",
    "device": "cpu",
    "environment": {"id": "Pendulum-v1"},
    "hyperparameters": {"learning_starts": 10, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    "total_timesteps": 20,
    "save_frequency": 20,
}


@pytest.mark.parametrize(("precision", "expected"), [(None, torch.float32), ("bf16", torch.bfloat16)])
def test_updates_are_in_bf16_and_parameters_and_rollouts_in_fp32(precision: str | None, expected: torch.dtype) -> None:
    config = parse_run_file({**SAC, "precision": precision})
    built = build_model(config)
    model: Any = built.model
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen[torch.is_grad_enabled()].add(output.dtype)

    model.actor.mu.register_forward_hook(note)
    try:
        learn(model, IdleHost(20), [], built.choice, run_file=config)
    finally:
        built.close()
    assert seen[True] == {expected}
    assert seen[False] <= {torch.float32, expected} and torch.float32 in seen[False], "rollouts are in float32"
    assert {parameter.dtype for parameter in model.policy.parameters()} == {torch.float32}
    moments = {state["exp_avg"].dtype for state in model.actor.optimizer.state.values()}
    assert moments == {torch.float32}


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("precision", "fp16", "nobody scales: use bf16"),
        ("precision", "fp8", "fp32"),
        ("deterministic", "yes", ""),
    ],
)
def test_what_is_refused(field: str, value: str, why: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_run_file({**SAC, field: value})
    assert refused.value.field == field and why in str(refused.value)


def test_a_script_decides_its_precision() -> None:
    with pytest.raises(InputError, match="the script"):
        parse_run_file(
            {"run_id": "a", "entry_point": "a:b", "precision": "bf16", "total_timesteps": 1, "save_frequency": 1}
        )


@pytest.mark.parametrize("given", [None, ":16:8", "wrong"])
def test_deterministic_asks_torch_and_cublas(given: str | None) -> None:
    """In a process of its own: it is for the whole process."""
    script = f"""
import os, torch
from train_cloud.config import parse_run_file
from train_cloud.sb3 import precision
precision.begin(parse_run_file({SAC | {"deterministic": True, "precision": "tf32"}!r}))
assert torch.are_deterministic_algorithms_enabled()
assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
precision.begin(parse_run_file({SAC!r}))
assert not torch.backends.cudnn.allow_tf32
print(os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""
    variables = {**os.environ, **({"CUBLAS_WORKSPACE_CONFIG": given} if given else {})}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (given if given == ":16:8" else ":4096:8")


def test_earlier_runs_have_no_precision() -> None:
    """A field that a later version has added changes no run's identity."""
    from train_cloud.config import identity_changes

    config = parse_run_file(SAC)
    before = {name: value for name, value in config.identity().items() if name not in ("precision", "deterministic")}
    assert identity_changes(before, config.identity()) == []
