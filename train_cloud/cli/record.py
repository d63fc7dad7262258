"""``record``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from train_cloud import extras
from train_cloud.cli import options
from train_cloud.cli.terminal import echo


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.TRAIN)(record)


def record(
    run_file: options.RunFile,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="PATH",
            help="A file that ends in .npz, or a folder for a Minari dataset.",
            show_default=False,
        ),
    ],
    episodes: Annotated[int, typer.Option("--episodes", metavar="NUMBER", min=1, help="How many to keep.")] = 20,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="NUMBER", min=0, help="Of the first episode; the next ones follow. It decides everything."
        ),
    ] = 0,
    successful: Annotated[
        bool, typer.Option("--successful", help="Keep only what evaluation.success calls a success.")
    ] = False,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN_ID", help="The model of this run plays; needs --store.")
    ] = None,
    store: options.OptionalStore = None,
    at: Annotated[
        int | None,
        typer.Option(
            "--at", metavar="TIMESTEPS", help="Of a preserved checkpoint of the run.", show_default="the newest one"
        ),
    ] = None,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Draw the model's actions instead of taking the most probable ones.")
    ] = False,
    expert: Annotated[
        str | None,
        typer.Option(
            "--expert",
            metavar="MODULE:NAME",
            help="A function (env, observation) -> action plays, or a class that is made with env and called so.",
        ),
    ] = None,
    keyboard: Annotated[bool, typer.Option("--keyboard", help="You play; needs pygame and a screen.")] = False,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            metavar="FILE",
            help='JSON with keys that are held and an action, {"a": 0, "ad": 2, "": 1}; "" is for none.',
            show_default="the environment's own",
        ),
    ] = None,
    overrides: options.Overrides = None,
) -> None:
    """Record demonstrations for the section `pretraining`: episodes of the run file's environment.

    Played by a run's model, an expert of yours, or you. What is recorded is what the environment gives and is given,
    with the run file's wrappers, and not normalised. The same seed records the same bytes, unless you play.

    `train-cloud record run.yaml --expert my_project.experts:drive --episodes 50 --out demonstrations.npz`
    """
    extras.need("stable_baselines3", "record")
    from train_cloud.operations.record import Source, record_demonstrations

    source = Source(run, store, at, stochastic, expert, keyboard, keys)
    found = record_demonstrations(
        run_file, out, source, episodes=episodes, seed=seed, successful=successful, overrides=overrides or ()
    )
    kept = f"{len(found.returns)} episodes"
    if found.played != len(found.returns):
        kept += f" of {found.played} that were played"
    echo(f"{found.out}: {found.steps:,} steps, {kept}")
    spread = f"{found.returns.min():.2f} to {found.returns.max():.2f}"
    echo(f"  return        {found.returns.mean():.2f} on average, {spread}")
