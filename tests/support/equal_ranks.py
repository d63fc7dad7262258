"""``python equal_ranks.py FOLDER RANK``: two ranks with the same data come to what one process comes to, bit for bit;
with data of their own they come to the same parameters. Every algorithm in turn; prints what went wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from train_cloud.config import parse_run_file
from train_cloud.sb3.build import build_model
from train_cloud.sb3.callback import IdleHost, learn
from train_cloud.sb3.ranks import Ranks


class Masked(CartPoleEnv):
    """Forbids an action at the rim."""

    def action_masks(self) -> np.ndarray[Any, Any]:
        place = 0.0 if self.state is None else float(self.state[0])
        return np.array([place > -0.1, place < 0.1])


gymnasium.register("Masked-v0", entry_point="equal_ranks:Masked", max_episode_steps=100)
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}}
ON: dict[str, Any] = {"n_steps": 32, **SMALL}
OFF: dict[str, Any] = {"buffer_size": 200, "learning_starts": 20, "batch_size": 16, **SMALL}
PPO = {**ON, "batch_size": 16, "n_epochs": 3}
#: Algorithm, environment, hyperparameters, steps. ``target_kl`` is reached in every rollout.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ppo": ("ppo", "CartPole-v1", {**PPO, "target_kl": 1e-3, "learning_rate": 3e-3}),
    "a2c": ("a2c", "CartPole-v1", ON),
    "recurrent_ppo": (
        "recurrent_ppo",
        "CartPole-v1",
        {**PPO, "policy_kwargs": {"net_arch": [16], "lstm_hidden_size": 8}},
    ),
    "sac": ("sac", "Pendulum-v1", OFF),
    "td3": ("td3", "Pendulum-v1", OFF),
    "ddpg": ("ddpg", "Pendulum-v1", OFF),
    "tqc": ("tqc", "Pendulum-v1", OFF),
    "dqn": ("dqn", "CartPole-v1", {**OFF, "target_update_interval": 20}),
    "qrdqn": ("qrdqn", "CartPole-v1", {**OFF, "target_update_interval": 20}),
    "maskable_ppo": ("maskable_ppo", "Masked-v0", {**PPO, "target_kl": 1e-3, "learning_rate": 3e-3}),
}
STEPS = 96
TRIALS: dict[str, Any] = {}


def trained(case: str, seed: int, ranks: Ranks | None = None) -> dict[str, torch.Tensor]:
    """:return: its parameters and optimisers' variables"""
    algorithm, environment, hyperparameters = CASES[case]
    size = ranks.size if ranks is not None else 1
    starts = {"learning_starts": 20 * size} if "learning_starts" in hyperparameters else {}
    of_our_own = {"module": "equal_ranks"} if environment == "Masked-v0" else {}
    config = parse_run_file({
        "run_id": "a-run", "algorithm": algorithm, "seed": seed, "device": "cpu",
        "environment": {"id": environment, **of_our_own},
        "policy": "MlpLstmPolicy" if algorithm == "recurrent_ppo" else "MlpPolicy",
        "hyperparameters": {**hyperparameters, **starts}, "total_timesteps": STEPS * size, "save_frequency": STEPS,
    })  # fmt: skip
    built = build_model(config, TRIALS.get(environment))
    TRIALS[environment] = built.trial
    learn(built.model, IdleHost(config.total_timesteps), [], built.choice, ranks=ranks)
    built.close()
    assert built.model.num_timesteps == config.total_timesteps
    found: dict[str, torch.Tensor] = {}
    for name, state in built.model.get_parameters().items():
        if "param_groups" in state:
            found.update({f"{name} {at} {key}": v for at, one in state["state"].items() for key, v in one.items()})
        else:
            found.update({f"{name} {key}": value for key, value in state.items()})
    return found


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    return sorted(name for name in {*left, *right} if not torch.equal(left[name], right[name]))


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    alone = {case: trained(case, 1) for case in CASES} if rank == 0 else {}
    ranks = Ranks(rank, 2)
    with ranks.joined(str(folder / "rendezvous"), torch.device("cpu")):
        for case in CASES:
            same = trained(case, 1, ranks)
            if rank == 0 and differing(alone[case], same):
                print(f"{case}: two ranks with the same data differ from one in {differing(alone[case], same)}")
            own = trained(case, 1 + rank, ranks)
            torch.save(own, folder / f"{case}-{rank}.pt")
            ranks.agree(0)
            if rank == 0:
                other = torch.load(folder / f"{case}-1.pt")
                if differing(own, other):
                    print(f"{case}: ranks with their own data differ in {differing(own, other)}")
                if not differing(own, same):
                    print(f"{case}: what the other rank has seen changes nothing")
    assert ranks.sent_bytes > 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
