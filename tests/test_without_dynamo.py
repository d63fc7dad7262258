"""torch's compiler is loaded when something asks for it, and not by an optimiser's first step."""

from __future__ import annotations

import subprocess
import sys

import pytest

_TRAINED = """
import pickle, sys
{before}
import torch
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
optimizers = [kind(model.parameters(), lr=0.01) for kind in (torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD)]
def train():
    for optimizer in optimizers:
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
train()
optimizers[0].load_state_dict(optimizers[0].state_dict())
pickle.dumps(len)  # asks every module for a name
print(model.weight.tolist(), "torch._dynamo.eval_frame" in sys.modules)
{after}
"""
_DEFERRED = "import train_cloud.sb3"


def _run(before: str, after: str = "") -> list[str]:
    code = _TRAINED.format(before=before, after=after)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.slow
def test_training_is_the_same_and_loads_no_compiler() -> None:
    with_compiler, deferred = _run(""), _run(_DEFERRED)
    assert with_compiler[0].endswith(" True"), "torch does this itself now: the module can go"
    assert deferred[0].endswith(" False")
    assert deferred[0].removesuffix(" False") == with_compiler[0].removesuffix(" True")


@pytest.mark.slow
@pytest.mark.parametrize(
    "asking",
    [
        'torch.compile(train, backend="eager")()',
        "from torch._dynamo.backends.registry import list_backends; list_backends()",
        "import torch._dynamo.config",
        "torch._dynamo.reset()",
        "torch.compiler.disable(train)()",
    ],
)
def test_whoever_asks_gets_the_real_one(asking: str) -> None:
    report = 'print(sys.modules["torch._dynamo"].__file__ is not None, torch._dynamo is sys.modules["torch._dynamo"])'
    after = f"""
{asking}
train()
{report}
assert all("__dynamo_disable" not in vars(f.__wrapped__) or vars(f.__wrapped__)["__dynamo_disable"] is not f.__wrapped__
           for f in vars(torch.optim.Optimizer).values() if hasattr(f, "__wrapped__"))
"""
    assert _run(_DEFERRED, after)[-1] == "True True"


@pytest.mark.slow
def test_a_name_that_it_has_not_loads_nothing() -> None:
    after = 'print(hasattr(torch._dynamo, "no_such_name_at_all"), "torch._dynamo.eval_frame" in sys.modules)'
    assert _run(_DEFERRED, after)[-1] == "False False"
