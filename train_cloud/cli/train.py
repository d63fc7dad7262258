"""``validate`` and ``train``."""

from __future__ import annotations

import os
from textwrap import shorten

import typer

from train_cloud.cli import options


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.TRAIN)(validate)
    app.command(rich_help_panel=options.TRAIN)(train)


def validate(
    run_file: options.RunFile, store: options.OptionalStore = None, overrides: options.Overrides = None
) -> None:
    """Check a run file by building what it describes.

    Makes model and environment, steps twice, trains once, takes one snapshot; writes nothing. With `--store`
    also whether the run id may be used there.

    `train-cloud validate run.yaml --set environment.n_envs=4`
    """
    from train_cloud.config import load_run_file

    checked = load_run_file(run_file, overrides or ())
    if store is not None:
        from train_cloud.report.standing import check_standing

        check_standing(store, checked)
    os.environ.update(checked.env)  # before torch, which reads some when it is imported
    from train_cloud.learn.check import check

    found = check(checked)
    what = f"script {checked.entry_point}"
    if checked.environment is not None:
        what = f"{checked.algorithm} on {checked.environment.id}"
    pace = f"a commit every {checked.save_frequency:,}"
    if checked.save_frequency is None:
        pace = f"at most {checked.max_seconds_at_risk:g} seconds at risk"
    typer.echo(f"{checked.run_id}: {what}, {checked.total_timesteps:,} timesteps, {pace}")
    for name, space in (("observations", found.observation_space), ("actions", found.action_space)):
        if space is not None:
            typer.echo(f"  {name:<13} {shorten(str(space), 100, placeholder=' …')}")
    if found.buffer_bytes:
        typer.echo(f"  replay buffer {found.buffer_bytes / 1e6:,.0f} MB of memory when full")
    if found.choice is not None:
        exact = "exact" if found.choice.exact else f"not exact, because {found.choice.because}"
        typer.echo(f"  resume        {exact} (environment's state: {found.choice.provider})")
    typer.echo("  it can be trained")


def train(
    run_file: options.RunFile,
    store: options.Store,
    state_dir: options.StateDir = None,
    overrides: options.Overrides = None,
    schedule_total: options.ScheduleTotal = None,
) -> None:
    """Train, or go on from where this run was interrupted.

    Ctrl-C or SIGTERM stops it after a commit (exit code 75); the same command goes on with the very next step. A
    completed run goes on if total_timesteps is larger than what it has reached.

    `train-cloud train run.yaml --store ./store --set total_timesteps=2e6`
    """
    from train_cloud.worker.train import train as train_run

    changes = options.with_schedule_total(overrides, schedule_total)
    raise typer.Exit(train_run(run_file, store=store, state_dir=state_dir, overrides=changes))
