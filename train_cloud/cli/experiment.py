"""What ``train`` and ``validate`` do with an experiment file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train_cloud import extras
from train_cloud.cli.experiment_view import plan, show, showing, summary
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError

if TYPE_CHECKING:
    from train_cloud.config import Cell, Experiment
    from train_cloud.experiments.files import Member
    from train_cloud.experiments.search.study import Trial
    from train_cloud.experiments.standing import Standing

_TRAINER = "stable_baselines3"
_EXAMPLES = 3


@dataclass(frozen=True)
class Group:
    """The runs of an experiment that a command is asked for."""

    name: str
    root: str
    members: list[Member]
    file: Experiment | None = None
    """None where it was named without its file."""
    trials: Sequence[Trial] = ()
    """Of a search."""


def found_members(run: str | None, experiment: str | None, store: str | None) -> Group | None:
    """The experiment that is meant, by its file or by its name; None where it is a run, or a whole store.

    :raises InputError: both are named; no store is; the store knows no experiment of that name
    """
    from train_cloud.config import is_experiment, load_experiment

    named = run is not None and is_experiment(run)
    if not named and experiment is None:
        return None
    if run is not None and experiment is not None:
        raise InputError("--experiment", experiment, f"leave it out, or {run}")
    if store is None:
        raise InputError("--store", None, "name a folder or s3://bucket/prefix, or set TRAIN_CLOUD_STORE")
    from train_cloud.experiments.files import members, recorded_members
    from train_cloud.store import check_exists

    check_exists(store, "--store")
    if experiment is not None:
        return Group(experiment, store, recorded_members(store, experiment))
    assert run is not None
    found = load_experiment(run)
    trials = _drawn(found, store)
    return Group(found.experiment, store, members(found), found, trials)


def _drawn(experiment: Experiment, root: str) -> Sequence[Trial]:
    """The trials of a search so far, whose runs belong to the experiment from now on."""
    if experiment.search is None:
        return ()
    extras.need("optuna", "a search")
    from train_cloud.experiments.search.trials import drawn

    return drawn(experiment, root)


def train_experiment(
    path: Path,
    store: str,
    state_dir: Path | None,
    overrides: Sequence[str],
    *,
    parallel: int | None,
    train_on: bool,
    dry_run: bool,
) -> None:
    """Train all runs of an experiment that are not over."""
    from train_cloud.config import load_experiment

    experiment = load_experiment(path, overrides)
    if dry_run:
        show_runs(experiment, store)
        return
    extras.need(_TRAINER, "train")
    trials = None
    if experiment.search is not None:
        extras.need("optuna", "a search")
        from train_cloud.experiments.search.trials import Trials

        trials = Trials(experiment, store, train_on=train_on)
    for cell in experiment.cells:
        extras.need_all(cell.config.extras, cell.run_id)
    from train_cloud.experiments.engine import Engine
    from train_cloud.experiments.processes import usable_cores

    at_once = parallel or experiment.max_parallel or max(1, usable_cores() // experiment.threads)
    with showing() as changed:
        engine = Engine(
            experiment,
            source=path.name,
            root=store,
            folder=state_dir or Path(".train-cloud"),
            parallel=at_once if trials is not None else min(at_once, len(experiment.cells)),
            train_on=train_on,
            trials=trials,
            changed=changed,
        )
        engine.run()
    echo(f"experiment {experiment.experiment}: {summary(engine.rows)}")


def validate_experiment(
    path: Path,
    store: str | None,
    instance_types: Sequence[str],
    overrides: Sequence[str],
    *,
    prove_too: bool,
) -> None:
    """Check all runs of an experiment, and say what they will take."""
    from train_cloud.config import load_experiment

    experiment = load_experiment(path, overrides)
    if experiment.search is not None:
        _validate_search(experiment, path.name, store, instance_types, prove_too=prove_too)
        return
    found = show_plan(experiment, store, instance_types[0] if instance_types else None)
    if not extras.is_here(_TRAINER):
        echo(f"{experiment.experiment}: the experiment file and its run files are right in themselves")
        echo("  not tried     whether they can be trained: that takes pip install 'train-cloud[sb3]'")
        return
    from train_cloud.experiments.check import distinct

    # What is over cannot be refused any more, and is not looked at in the store again.
    cells = [one.cell for one in found if one.state in ("new", "open")]
    chosen = distinct(cells)
    _build(chosen, path.name, store, instance_types, prove_too=prove_too)
    echo(f"{experiment.experiment}: all {len(experiment.cells)} runs can be trained")
    echo(f"  built         {len(chosen)} of them, one for each combination of levels; a seed changes no model")


def _validate_search(
    experiment: Experiment, source: str, store: str | None, instance_types: Sequence[str], *, prove_too: bool
) -> None:
    cells = show_search(experiment, store)
    if experiment.cells:
        echo(f"{experiment.experiment}: it is the search that these trials were drawn by")
        return
    if not cells or not extras.is_here(_TRAINER):
        echo(f"{experiment.experiment}: the experiment file is right in itself, as far as bounds and choices tell it")
        echo("  not tried     whether trials can be trained: that takes pip install 'train-cloud[sb3,search]'")
        return
    _build(cells, source, store, instance_types, prove_too=prove_too)
    echo(f"{experiment.experiment}: these {len(cells)} trials can be trained; each other is checked when it begins")


def _build(
    cells: Sequence[Cell], source: str, store: str | None, instance_types: Sequence[str], *, prove_too: bool
) -> None:
    from train_cloud.experiments.check import check
    from train_cloud.experiments.processes import usable_cores

    options = [*(part for name in instance_types for part in ("--instance-type", name))]
    options += ["--store", store] if store is not None else []
    options += ["--prove"] if prove_too else []
    check(cells, source, options, usable_cores(), lambda cell, said: echo(_exactness(cell.run_id, said)))


def show_runs(experiment: Experiment, store: str) -> None:
    """What would be trained: the runs of its levels and seeds, or the trials of its search."""
    if experiment.search is None:
        show_plan(experiment, store, None)
    else:
        show_search(experiment, store)


def show_search(experiment: Experiment, store: str | None) -> list[Cell]:
    """Print what is searched, and the trials that there are, or else the first ones.

    :return: a run of each of the first ones; empty without Optuna, and where there are trials
    """
    from train_cloud.cli.search_view import examples, space, trials

    assert experiment.search is not None
    show(space(experiment))
    if not extras.is_here("optuna"):
        echo("  not shown     the first trials: that takes pip install 'train-cloud[search]'")
        return []
    known = _drawn(experiment, store) if store is not None else ()
    if known:
        show(trials(experiment, known))
        return []
    from train_cloud.experiments.search.study import examples as first

    found = first(experiment, _EXAMPLES)
    show(examples(experiment, found))
    return [experiment.trial(number, values)[0] for number, values in enumerate(found)]


def show_plan(experiment: Experiment, store: str | None, machine: str | None) -> list[Standing]:
    """Print the table of runs.

    :param machine: that they are to be trained on; None for this one
    :raises InputError: a run was begun with something else than its run file says now
    """
    from train_cloud.experiments.estimate import estimates, here, paces
    from train_cloud.experiments.standing import Standing, standings

    if store is None:
        found = [Standing(cell, "new") for cell in experiment.cells]
    else:
        found = standings(store, experiment.cells, experiment.max_attempts)
    known = paces(store) if store is not None else {}
    show(plan(experiment, estimates(found, known, machine or here()), machine or "this machine"))
    return found


def _exactness(run_id: str, said: str) -> str:
    """What ``validate`` has said of how a run goes on after an interruption, in one line."""
    line = next((line for line in said.splitlines() if line.strip().startswith("resume")), "")
    return f"  {run_id}: {' '.join(line.split()) or 'it can be trained'}"
