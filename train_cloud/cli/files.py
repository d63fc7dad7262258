"""``expand`` and ``import-zoo``: commands that write run files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError

_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that the run files are written to.")]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.TRAIN)(expand)
    app.command("import-zoo", rich_help_panel=options.TRAIN)(import_zoo)


def expand(
    run_file: options.RunFile,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder that the run files are written to.",
            show_default="here; of an experiment, EXPERIMENT-runs beside its file",
        ),
    ] = None,
    overrides: options.Overrides = None,
) -> None:
    """Write a run file for each of a run file's seeds, or for each run of an experiment file.

    Each is a run of its own. Of seeds it is named RUN_ID-sSEED, in one experiment; Terraform's run_files launches all.
    Of an experiment Terraform's experiment_file finds them in EXPERIMENT-runs: call this again after each change.

    Of a pipeline file one file is written, with all its run files in it, for Terraform's pipeline_file.

    `train-cloud expand sweep.yaml --out seeds && train-cloud validate seeds/sweep-s1.yaml`
    """
    from train_cloud.config import is_experiment, load_experiment, load_run_file
    from train_cloud.config.pipeline import is_pipeline
    from train_cloud.operations.expand import expand_experiment, refuse_search
    from train_cloud.operations.expand_pipeline import expand_pipeline
    from train_cloud.operations.seeds import write_cell, write_each

    if is_pipeline(run_file):
        if out is not None:
            raise InputError("--out", str(out), "what is made of a pipeline file goes beside it: leave it out")
        echo(str(expand_pipeline(run_file, overrides or ())))
        return
    if is_experiment(run_file):
        if out is None:
            written = expand_experiment(run_file, overrides or ())
        else:
            experiment = load_experiment(run_file, overrides or ())
            refuse_search(experiment)
            written = [write_cell(cell, out, run_file.name) for cell in experiment.cells]
        for path in written:
            echo(str(path))
        return
    checked = load_run_file(run_file, overrides or ())
    if checked.seeds is None:
        raise InputError("seeds", None, "add it, for example seeds: [1, 2, 3]")
    for path in write_each(checked, out or Path(), run_file.name):
        echo(str(path))


def import_zoo(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The zoo's YAML, such as ppo.yml.", show_default=False)],
    environments: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="ID", help="An environment of it. Repeatable.", show_default="all but Atari's"),
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option("--algorithm", metavar="NAME", help="What it is for.", show_default="the file's name")
    ] = None,
    out: _Out = Path(),
) -> None:
    """Write run files from hyperparameters of rl-baselines3-zoo.

    What cannot be carried over is named, here and at the top of the run file. Nothing in the file is executed.

    `train-cloud import-zoo hyperparams/ppo.yml --env Pendulum-v1`
    """
    from train_cloud.config.zoo import import_zoo as import_from

    imported = import_from(file, environments or (), algorithm)
    taken = [out / f"{one.run_file.run_id}.yaml" for one in imported if one.run_file is not None]
    there = [path for path in taken if path.exists()]
    if there:
        raise InputError("--out", str(there[0]), "it is there already: remove it, or name another folder")
    out.mkdir(parents=True, exist_ok=True)
    for one in imported:
        if one.run_file is None:
            echo(f"{one.name}: no run file")
        else:
            path = out / f"{one.run_file.run_id}.yaml"
            path.write_text(one.text(out.absolute(), file.name), encoding="utf-8")
            echo(f"{one.name}: {path}")
        for note in one.notes:
            echo(f"  {note}")
        for key, why in one.left_out:
            echo(f"  not carried over: {key}: {why}")
    if not taken:
        raise InputError("FILE", str(file), "none of its entries can be carried over, see above")
