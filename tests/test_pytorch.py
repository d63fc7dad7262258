"""Training loops of one's own: interrupted, they end where they end uninterrupted, or say why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from train_cloud.operations.prove import prove

HEAD = """
import collections, random
import numpy as np, torch, train_cloud
from torch import nn

"""

MIXED = """
class Net(nn.Sequential):
    calls = 0
    def __init__(self, *layers):
        super().__init__(*layers)
        self.seen = []
    def forward(self, x):
        self.seen.append(len(self.seen))
        return super().forward(x) * (1 + 0.001 * len(self.seen))

def main():
    settings = train_cloud.run_file()
    torch.manual_seed(settings.seed), np.random.seed(settings.seed), random.seed(settings.seed)
    model = Net(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.parameters["lr"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 100))
    x = torch.randn(128, 8)
    dataset = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
    data = train_cloud.batches(torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True))
    average, best, recent, history = 0.0, float("inf"), collections.deque(maxlen=10), []
    with train_cloud.resumable(model=model, optimizer=optimizer, scheduler=scheduler, data=data) as run:
        for step in run.steps():
            inputs, labels = next(data)
            inputs = inputs + 0.01 * torch.randn_like(inputs) + np.random.rand() * 0.01 + random.random() * 0.01
            loss = nn.functional.cross_entropy(model(inputs), labels) * (1 + 0.1 * average)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            average = 0.9 * average + 0.1 * loss.item()
            recent.append(loss.item())
            if step % 7 == 0:
                best = min(best, sum(recent) / len(recent))
                history.append(best)
            run.log(loss=loss, average=average, best=best, number=len(history))

if __name__ == "__main__":
    main()
"""


def written(folder: Path, body: str, more: str = "") -> Path:
    """A run file of a loop in ``folder``."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "looping.py").write_text(HEAD + body)
    text = "run_id: loop\nentry_point: looping.py\ntotal_steps: 60\nsave_frequency: 12\ncode: {folder: code}\n"
    text += "reproducibility: {replay: never}\n"
    (folder / "run.yaml").write_text(text + more)
    return folder / "run.yaml"


@pytest.mark.slow
def test_an_interrupted_loop_ends_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    proof = prove(written(tmp_path, MIXED, "parameters: {lr: 0.01}\n"), steps=60)
    assert proof.equal and proof.because is None
    assert not proof.unaccounted and proof.attributes > 100
    assert "60 iterations" in proof.reached and not proof.missed
