"""Population-based training: four runs whose learning rates change on the way, the worse ones beginning anew from the
better ones' checkpoints.

    python examples/ray/pbt.py examples/pendulum_sac.yaml s3://my-bucket/lab

Call it on a node of a cluster, or anywhere to have Ray start one of this machine's cores. Called again with the same
folder, it goes on.
"""

import sys
from pathlib import Path

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

import train_cloud.ray

run_file, store = sys.argv[1:]
results = Path("~/ray_results/pbt").expanduser()
trainable = train_cloud.ray.trainable(run_file, store=store)

if tune.Tuner.can_restore(results):
    tuner = tune.Tuner.restore(str(results), trainable, resume_errored=True)
else:
    scheduler = PopulationBasedTraining(
        time_attr="timesteps_total",
        perturbation_interval=10_000,
        hyperparam_mutations={"hyperparameters.learning_rate": tune.loguniform(1e-5, 1e-2)},
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"hyperparameters.learning_rate": tune.loguniform(1e-5, 1e-2)},
        tune_config=tune.TuneConfig(metric="episode_return", mode="max", num_samples=4, scheduler=scheduler),
        run_config=tune.RunConfig(
            name=results.name,
            storage_path=str(results.parent),
            failure_config=tune.FailureConfig(max_failures=-1),  # a spot machine that goes is one
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
        ),
    )
best = tuner.fit().get_best_result(metric="episode_return", mode="max")
print(best.metrics["run_id"], best.metrics["episode_return"])
