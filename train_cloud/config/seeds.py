"""One run file for several seeds: a run of its own for each, in one experiment."""

from __future__ import annotations

from train_cloud.config.run_file import RunFile


def expand(run_file: RunFile) -> list[RunFile]:
    """A run file for each of its seeds, named ``<run_id>-s<seed>``; the run file itself where it has none."""
    if run_file.seeds is None:
        return [run_file]
    experiment = run_file.experiment or run_file.run_id
    return [
        run_file.model_copy(
            update={"run_id": seeded_id(run_file.run_id, seed), "seed": seed, "seeds": None, "experiment": experiment}
        )
        for seed in run_file.seeds
    ]


def seeded_id(run_id: str, seed: int) -> str:
    return f"{run_id}-s{seed}"
