"""``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.report import find, is_run_file
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.LOOK)(evaluate)


def evaluate(
    run: options.Run,
    store: options.OptionalStore = None,
    at: Annotated[
        int | None,
        typer.Option(
            "--at", metavar="TIMESTEPS", help="Of a preserved checkpoint.", show_default="the newest checkpoint"
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results, videos and routes.")] = Path(
        "evaluation"
    ),
    events: Annotated[Path | None, typer.Option("--events", metavar="DIR", help="TensorBoard folder.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Keep it with the run, as the trainer does.")] = False,
    overrides: options.Overrides = None,
    json: options.AsJson = False,
) -> None:
    """Play a checkpoint's model as the run file's section `evaluation` says, and show what it reaches.

    Without a run file, what the run's own records say counts. The run stays as it is: results, videos and routes go
    into a folder here.

    `train-cloud evaluate run.yaml --store ./store --set evaluation.episodes=20 --out tried`
    """
    from train_cloud.runtime.evaluate import evaluate as evaluate_run

    root, run_id = find(run, store)
    if run_id is None:
        raise InputError("run", run, "name one run: its file, its id, or its folder's URL")
    which = Path(run) if is_run_file(run) else run_id
    found = evaluate_run(root, which, at=at, out=out, events=events, record=record, overrides=overrides or ())
    if json:
        echo(found.model_dump_json(by_alias=True, indent=2))
        return
    echo(f"at {found.timesteps:,} timesteps")
    echo(f"  {'category':<20} {'episodes':>8} {'return':>10} {'95 %':>22} {'length':>8} {'success':>8}")
    for name, summary in {**found.categories, "overall": found.overall}.items():
        interval, rate = summary.returns.interval, summary.success_rate
        within = "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
        succeeded = "" if rate is None else f"{rate:.0%}"
        figures = f"{summary.returns.mean:>10.2f} {within:>22} {summary.lengths.mean:>8.1f} {succeeded:>8}"
        echo(f"  {name:<20} {summary.episodes:>8} {figures}")
    for warning in found.warnings:
        echo(f"  {warning}", err=True)
    echo(f"  see {out / 'eval_results.json'}")
