"""One agent, with the package as a library: train, stop and go on, export, play.

    python examples/one_agent.py

Run it again, or stop it with Ctrl-C and run it then: it goes on with the very next step.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium
from stable_baselines3 import SAC

from train_cloud.config import load_run_file
from train_cloud.errors import InputError, Interrupted
from train_cloud.operations.export import export
from train_cloud.operations.train import train
from train_cloud.sb3.check import check

HERE = Path(__file__).parent
STORE = "./store"  # or s3://bucket/prefix


def main(timesteps: int = 2000) -> None:
    path = HERE / "pendulum_sac.yaml"
    changes = [f"total_timesteps={timesteps}"]  # as --set on the command line
    run_file = load_run_file(path, changes)

    # Builds everything, trains one step: a mistake in the run file shows here, with the field's name.
    report = check(run_file)
    assert report.choice is not None
    print(f"an interruption is exact: {report.choice.exact} ({report.choice.because})")

    # One session: until the total, or until SIGTERM or Ctrl-C.
    try:
        train(path, store=STORE, overrides=changes)
    except Interrupted as stop:
        print(stop)  # everything is committed
        return
    except InputError as error:
        print(error)  # the run is completed: its model is only played

    # A folder that plain Stable-Baselines3 reads, made from the newest checkpoint.
    out = Path(f"one_agent-{timesteps}")
    folder = out if (out / "model.zip").exists() else export(STORE, run_file.run_id, out=out)
    model = SAC.load(folder / "model.zip", device="cpu")
    env = gymnasium.make("Pendulum-v1")
    observation, _ = env.reset(seed=0)
    total = 0.0
    for _ in range(200):
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, _, _, _ = env.step(action)
        total += float(reward)
    print(f"return of one episode: {total:.0f}")


if __name__ == "__main__":
    main()
