"""Kill the examples of examples/pytorch/ at random moments: ``python tests/pytorch_kills.py [KILLS] [SEED]``."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

from loops import killed

from train_cloud.sb3.compare import differences

EXAMPLES = Path(__file__).parent.parent / "examples" / "pytorch"
#: Arguments that make each small, iterations and iterations between two checkpoints.
SMALL = {
    "classifier": ("--steps 40 --batch-size 8 --width 4 --images 64", 40, 6),
    "gan": ("--steps 60 --batch-size 8 --width 8", 60, 7),
    "ppo": ("--iterations 12 --num-envs 2 --num-steps 16 --width 8", 12, 2),
    "language": ("--steps 40 --batch-size 2 --length 16 --width 8 --numbers 400", 40, 5),
}


def check(name: str, kills: int, chance: random.Random, folder: Path) -> int:
    """:return: how often it was killed; it ended as the uninterrupted one did"""
    arguments, total, every = SMALL[name]
    script = EXAMPLES / name / "train.py"
    whole, _ = killed(script, arguments.split(), total, every, folder / "whole", 0, chance)
    pieces, done = killed(script, arguments.split(), total, every, folder / "pieces", kills, chance)
    assert pieces.facts["exact"], pieces.facts["exact_because"]
    found = differences(whole, pieces, script.parent)
    assert not found, found[:5]
    return done


if __name__ == "__main__":
    import torch

    import train_cloud.pytorch.loop  # noqa: F401 - what each process would import

    torch.set_num_threads(1)
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    chance, done = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1), 0
    while done < wanted:
        for name in SMALL:
            with tempfile.TemporaryDirectory() as folder:
                now = check(name, 10, chance, Path(folder))
            done += now
            print(f"{name}: {now} kills, equal bit for bit; {done} in all", flush=True)
