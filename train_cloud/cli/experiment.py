"""What ``train`` and ``validate`` do with an experiment file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from train_cloud import extras
from train_cloud.cli.experiment_view import showing, summary
from train_cloud.cli.terminal import echo

_TRAINER = "stable_baselines3"


def train_experiment(
    path: Path,
    store: str,
    state_dir: Path | None,
    overrides: Sequence[str],
    *,
    parallel: int | None,
    go_on: bool,
    dry_run: bool,
) -> None:
    """Train all runs of an experiment that are not over."""
    from train_cloud.config import load_experiment

    experiment = load_experiment(path, overrides)
    extras.need(_TRAINER, "train")
    from train_cloud.experiments.engine import Engine, usable_cores

    at_once = parallel or experiment.max_parallel or max(1, usable_cores() // experiment.threads)
    with showing() as changed:
        engine = Engine(
            experiment,
            source=path.name,
            root=store,
            folder=state_dir or Path(".train-cloud"),
            parallel=min(at_once, len(experiment.cells)),
            go_on=go_on,
            changed=changed,
        )
        engine.run()
    echo(f"experiment {experiment.experiment}: {summary(engine.rows)}")
