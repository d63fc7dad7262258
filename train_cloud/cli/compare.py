"""``compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from train_cloud.config import Experiment
    from train_cloud.experiments.comparison.result import Comparison


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.LOOK)(compare)


def compare(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[EXPERIMENT]", help="An experiment file, or the name of a group of runs.", show_default=False
        ),
    ] = None,
    store: options.OptionalStore = None,
    experiment: Annotated[
        str | None,
        typer.Option(
            "--experiment",
            metavar="NAME",
            help="Instead of a file: the runs whose run files name this experiment. What stands before -s<seed> in a "
            "run id is its level.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="What decides, instead of the file's.", show_default=False),
    ] = None,
    overrides: options.Overrides = None,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency/--no-latency",
            help="Measure how long each level's model takes for an action: one observation, one thread.",
        ),
    ] = True,
    as_json: options.AsJson = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for page, pictures (PNG) and tables (CSV); with --json nothing is written without it.",
            show_default="./EXPERIMENT-comparison",
        ),
    ] = None,
) -> None:
    """Compare an experiment's levels, and say who won and how sure that is.

    From final and periodic evaluations: interquartile means with intervals, learning curves over timesteps and dollars,
    differences by seed, costs, latency, and a decision matrix. Equal levels have no winner; failed and missing runs
    are shown. Of a search: its trials, and which keys mattered.

    `train-cloud compare experiment.yaml --store ./store`
    """
    from train_cloud.cli.report import is_run_file
    from train_cloud.store import check_exists

    if (file is None) == (experiment is None):
        raise InputError("EXPERIMENT", file, "name an experiment file or, with --experiment, a group of runs")
    named: Path | str = Path(file) if file is not None and is_run_file(file) else str(experiment or file)
    if isinstance(named, str) and overrides:
        raise InputError("--set", list(overrides), "it changes an experiment file: name one")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError("--out", str(out), "it is a file: name a folder")
    if store is None:
        raise InputError("--store", None, "name a folder or s3://bucket/prefix, or set TRAIN_CLOUD_STORE")
    check_exists(store, "--store")
    if isinstance(named, Path) and (searched := _searched(named, overrides or (), metric)) is not None:
        _compare_trials(searched, store, as_json=as_json, out=out)
        return
    from train_cloud.experiments.comparison.compare import compare_experiment, write_comparison

    found = compare_experiment(store, named, metric=metric, overrides=overrides or (), latency=latency)
    if as_json:
        echo(found.model_dump_json(indent=1))
    else:
        _print(found)
    if out is not None or not as_json:
        page = write_comparison(found, out or Path(f"{found.experiment}-comparison"), store)
        if not as_json:
            echo(str(page))


def _searched(path: Path, overrides: Sequence[str], metric: str | None) -> Experiment | None:
    """The experiment, where its file holds a search, whose trials are compared instead of levels."""
    from train_cloud.config import load_experiment

    experiment = load_experiment(path, overrides)
    if experiment.search is None:
        return None
    if metric not in (None, experiment.search.metric):
        fix = f"the trials were chosen by {experiment.search.metric}: leave it out"
        raise InputError("--metric", metric, fix)
    return experiment


def _compare_trials(experiment: Experiment, root: str, *, as_json: bool, out: Path | None) -> None:
    from train_cloud import extras

    extras.need("optuna", "a search")
    from train_cloud.experiments.search.pictures import draw
    from train_cloud.experiments.search.results import caution, headline, search_results, write_search

    assert experiment.search is not None
    found = search_results(experiment, root)
    if as_json:
        echo(found.model_dump_json(indent=1))
    else:
        echo(headline(found))
        echo(caution())
        for key, share in (found.importances or {}).items():
            echo(f"  {share:4.0%}  {key}")
    if out is not None or not as_json:
        folder = out or Path(f"{found.experiment}-comparison")
        path = write_search(found, draw(found, experiment.search.space), folder, root)
        if not as_json:
            echo(str(path))


def _print(found: Comparison) -> None:
    import sys

    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(_view(found))


def _view(found: Comparison) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from train_cloud.experiments.comparison.page import decision, headline, levels_table, reason, sensitivity

    columns, rows = levels_table(found)
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    lines = [f"[bold]{escape(headline(found))}[/bold]", escape(reason(found))]
    after = [escape(f"- {note}") for note in found.notes]
    if found.matrix is not None:
        after += [escape(decision(found)), *(escape(f"- {change}") for change in sensitivity(found.matrix))]
    return Group("\n".join(lines), "", table, "", "\n".join(after))
