"""An ordinary Stable-Baselines3 script. One line makes it resumable: ``callback=train_cloud.checkpoints()``."""

from __future__ import annotations

from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import train_cloud


def main() -> None:
    run = train_cloud.run_file()  # total_timesteps and seed, with what --set overrides
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=run.seed), gamma=0.98)
    judge = VecNormalize(make_vec_env("Pendulum-v1", seed=99), training=False, norm_reward=False)
    model = SAC(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        gamma=0.98,
        learning_starts=200,
        train_freq=4,
        gradient_steps=4,
        policy_kwargs={"net_arch": [32, 32]},
        seed=run.seed,
        device="cpu",
    )
    # The script is run again from its first line after an interruption, and builds all of this anew. At the first
    # step of learn() the callback overwrites everything with what it was: networks, buffer, environments, generators.
    evaluation = EvalCallback(judge, n_eval_episodes=2, eval_freq=500, verbose=0)
    model.learn(run.total_timesteps, callback=[evaluation, train_cloud.checkpoints()])


if __name__ == "__main__":
    main()
