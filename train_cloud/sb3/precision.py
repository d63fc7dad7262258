"""``precision`` and ``deterministic``: in which arithmetic the updates are computed, and whether a GPU repeats it."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager

import torch

from train_cloud.config import RunFile

#: cuBLAS adds up in the same order each time only with one of these: NVIDIA, "cuBLAS, Results Reproducibility".
_WORKSPACE, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
NOT_REPEATED = "a GPU computes in another order each time: deterministic: true makes it repeat what it computes"


def begin(run_file: RunFile) -> None:
    """Set what torch does on a GPU. To be called before anything is computed on one."""
    tf32 = run_file.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if run_file.deterministic:
        if os.environ.get(_WORKSPACE) not in _WORKSPACES:
            os.environ[_WORKSPACE] = _WORKSPACES[0]
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)


def updating(run_file: RunFile, device: torch.device) -> AbstractContextManager[object]:
    """While an update is computed. With ``bf16`` networks and losses are bfloat16 where torch holds that to be safe;
    parameters, gradients and optimisers stay float32, and bfloat16 has float32's range, so that no loss is scaled
    (PyTorch, "Automatic Mixed Precision package").
    """
    if run_file.precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
