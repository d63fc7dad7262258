"""What ``launch`` and ``stop`` do with a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from train_cloud import extras
from train_cloud.cli.experiment_view import showing, summary
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError

if TYPE_CHECKING:
    from train_cloud.config import Cell, Experiment
    from train_cloud.experiments.search.trials import Trials
    from train_cloud.ray.cluster import Node, NodeType

_MOST_AT_ONCE = 1000


def launch_on_ray(
    path: Path,
    store: str,
    *,
    address: str | None = None,
    state_dir: Path | None = None,
    overrides: Sequence[str] = (),
    parallel: int | None = None,
    train_on: bool = False,
    dry_run: bool = False,
) -> None:
    """Train all runs of an experiment that are not over on the nodes of a cluster, and look on until they are.

    :param address: ``host:port`` of the cluster's head
    :param state_dir: of the sessions' folders, on each node
    """
    from train_cloud.config import is_experiment, load_experiment

    if not is_experiment(path):
        fix = "name an experiment file; for one run, one that says `experiment: NAME` and `base: run.yaml`"
        raise InputError("FILE", str(path), fix)
    experiment = load_experiment(path, overrides)
    if dry_run:
        from train_cloud.cli.experiment import show_runs

        show_runs(experiment, store)
        return
    for module in ("ray", "stable_baselines3"):
        extras.need(module, "launch --platform ray")
    for cell in experiment.cells:
        extras.need_all(cell.config.extras, cell.run_id)
    trials = None
    if experiment.search is not None:
        extras.need("optuna", "a search")
        from train_cloud.experiments.search.trials import Trials

        trials = Trials(experiment, store, train_on=train_on)
    from train_cloud.ray.cluster import connected, may_come

    with connected(address) as here:
        _train_on_ray(experiment, path.name, store, state_dir, here, may_come(), trials, parallel, train_on=train_on)


def _train_on_ray(
    experiment: Experiment,
    source: str,
    store: str,
    state_dir: Path | None,
    here: Sequence[Node],
    later: Sequence[NodeType],
    trials: Trials | None,
    parallel: int | None,
    *,
    train_on: bool,
) -> None:
    from train_cloud.experiments.engine import Engine
    from train_cloud.ray.place import Cluster

    folder = str(state_dir.absolute()) if state_dir is not None else None
    place = Cluster(experiment, source=source, root=store, here=here, later=later, folder=folder, train_on=train_on)
    some = _some(experiment)
    if trials is not None:
        place.check_runs({cell.run_id: cell.config for cell in some})
    at_once = parallel or experiment.max_parallel
    if at_once is None:
        at_once = min(_MOST_AT_ONCE, place.room([cell.config for cell in some]))
    with showing() as changed:
        engine = Engine(
            experiment,
            source=source,
            root=store,
            folder=Path(".train-cloud"),
            parallel=at_once if trials is not None else min(at_once, len(experiment.cells)),
            train_on=train_on,
            trials=trials,
            changed=changed,
            place=place,
        )
        engine.run()
    echo(f"experiment {experiment.experiment}: {summary(engine.rows)}")


def _some(experiment: Experiment) -> Sequence[Cell]:
    """Its runs; of a search the first one that may be drawn."""
    if experiment.search is None:
        return experiment.cells
    from train_cloud.experiments.search.study import examples

    return experiment.trial(0, examples(experiment, 1)[0])


def stop_on_ray(path: str, store: str, address: str | None = None) -> None:
    """Have the launch of an experiment stop with a commit of each of its runs."""
    from train_cloud.config import is_experiment, load_experiment

    extras.need("ray", "stop --platform ray")
    name = load_experiment(path).experiment if is_experiment(path) else path
    from train_cloud.ray.cluster import connected
    from train_cloud.ray.place import stop

    with connected(address):
        stop(store, name)
    echo(f"experiment {name}: its launch stops once each run has committed")
