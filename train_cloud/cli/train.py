"""``validate``, ``prove`` and ``train``."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from train_cloud import extras
from train_cloud.cli import options
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError, NotExact

_TRAINER = "stable_baselines3"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.TRAIN)(validate)
    app.command(rich_help_panel=options.TRAIN)(prove)
    app.command(rich_help_panel=options.TRAIN)(train)


def validate(
    run_file: options.RunFile,
    store: options.OptionalStore = None,
    instance_types: options.InstanceTypes = None,
    overrides: options.Overrides = None,
    prove_too: Annotated[
        bool, typer.Option("--prove", help="Also interrupt, resume and compare a short training: a small prove.")
    ] = False,
) -> None:
    """Check a run file by building what it describes; without the extra `sb3`, what can be told from the file alone.

    Makes model and environment, steps twice, trains once, takes one snapshot; writes nothing. Estimates memory and
    checkpoints, and refuses what an instance has no room for. With `--store` also whether the run id may be used there.
    Of an experiment file each combination of levels is built, and all runs are listed with what they will take, by the
    speeds and prices that sessions in `--store` have recorded.

    `train-cloud validate run.yaml --set environment.n_envs=4 --instance-type g5.2xlarge`
    """
    from train_cloud.config import is_experiment, load_run_file
    from train_cloud.platforms.ec2 import fit
    from train_cloud.runtime.masking import hide_variables

    if is_experiment(run_file):
        from train_cloud.cli.experiment import validate_experiment

        validate_experiment(run_file, store, instance_types or (), overrides or (), prove_too=prove_too)
        return
    checked = load_run_file(run_file, overrides or ())
    types = fit.look_up(instance_types)
    if instance_types:
        fit.check_gpus(types, checked.device)
    if store is not None:
        from train_cloud.report.preflight import check_before_training

        checked = checked.with_hardware(check_before_training(store, checked).get("hardware"))
    hide_variables(checked, warn=True)
    if not extras.is_here(_TRAINER):
        if prove_too:
            extras.need(_TRAINER, "validate --prove")
        echo(f"{checked.run_id}: the run file is right in itself")
        echo("  not tried     whether it can be trained: that takes pip install 'train-cloud[sb3]'")
        return
    os.environ.update(checked.env)  # before torch, which reads some when it is imported
    from train_cloud.sb3.environment import StateTrial

    # Its processes play while this one loads torch.
    begun = StateTrial(checked, None) if checked.environment is not None else None
    from train_cloud.sb3.check import check
    from train_cloud.sb3.resources import check_memory

    model = checked.initial_model
    initial = None
    if model is not None and (store is not None or model.run is None):
        from train_cloud.runtime.initial_model import read_initial

        initial = read_initial(model, store or "").initial
    demonstrations = None
    if checked.pretraining is not None:
        from train_cloud.runtime.pretraining import read_demonstrations

        demonstrations = read_demonstrations(checked.pretraining)
    found = check(checked, initial, begun, demonstrations)
    if checked.evaluation is not None:
        from train_cloud.child_process import code_on_path
        from train_cloud.evaluate.play import check as check_evaluation

        with code_on_path(checked.code.folder):
            check_evaluation(checked)
    for name, there in types.items() if found.buffer_bytes else ():
        check_memory(checked, found.buffer_bytes, there.memory_bytes, name, beside=found.beside_bytes)
    stored = found.stored_bytes(checked)
    if store is not None:
        fit.check_store(store, stored)
    what = f"script {checked.entry_point}"
    if checked.environment is not None:
        what = f"{checked.algorithm} on {checked.environment.id}"
    pace = f"a commit every {checked.save_frequency:,}"
    if checked.save_frequency is None:
        pace = f"at most {checked.max_seconds_at_risk:g} seconds at risk"
    echo(f"{checked.run_id}: {what}, {checked.total_timesteps:,} timesteps, {pace}")
    for name, space in (("observations", found.observation_space), ("actions", found.action_space)):
        if space is not None:
            echo(f"  {name:<13} {shorten(str(space), 100, placeholder=' …')}")
    if found.buffer_bytes:
        kind = "replay buffer" if found.capacity else "rollout"
        echo(f"  {kind:<13} {found.buffer_bytes / 1e6:,.1f} MB of memory when full")
        needed = (found.buffer_bytes + found.beside_bytes) / 2**30
        echo(f"  memory        {needed:.1f} GiB in all: fits into {', '.join(types)}")
        each = found.parts_bytes + min(checked.save_frequency or 0, found.capacity) * found.row_bytes
        sizes = f"{each / 1e6:,.1f} MB each, at most {stored / 1e6:,.1f} in the store"
        if checked.save_frequency is None and found.row_bytes:
            sizes = f"{found.parts_bytes / 1e6:,.1f} MB each, and {found.row_bytes:,.0f} bytes for each timestep since"
        echo(f"  checkpoints   {sizes}")
    if found.choice is not None:
        exact = "exact" if found.choice.exact else f"not exact, because {found.choice.because}"
        if found.not_kept:
            exact = f"not exact: no checkpoint keeps {'; '.join(found.not_kept)}"
        echo(f"  resume        {exact} (environment's state: {found.choice.provider})")
    if found.hardware is not None:
        for name in ("n_envs", "batch_size"):
            echo(f"  hardware      {name} {found.hardware[name]}: {found.hardware['because'][name]}")
    told_of_precision = {
        "bf16": "bf16: on a CPU it is slower than fp32, by 1.2 to 1.9 times where it was measured",
        "tf32": "tf32: a CPU has none, and computes in fp32",
    }
    if checked.precision in told_of_precision:
        echo(f"  precision     {told_of_precision[checked.precision]}")
    if model is not None:
        told = "fits" if initial is not None else "not tried: give --store"
        echo(f"  begins with   {model.source} ({told})")
    if demonstrations is not None:
        echo(f"  pretrains on  {len(demonstrations):,} steps of {len(demonstrations.starts)} episodes")
    if checked.seeds is not None:
        echo(f"  seeds         {', '.join(map(str, checked.seeds))}: a run for each")
    echo("  it can be trained")
    if prove_too:
        _prove(run_file, checked.run_id, None, overrides, quick=True)


def prove(
    run_file: options.RunFile,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="TIMESTEPS",
            help="How long to train.",
            show_default="enough for updates, the end of an episode and a commit",
        ),
    ] = None,
    overrides: options.Overrides = None,
) -> None:
    """Show that an interruption changes nothing: train twice, interrupt one, compare everything.

    Trains for a short while in fresh processes and a store in a temporary folder: once without interruption, once
    stopped by SIGTERM and then killed, each at an awkward step, and resumed. Compares parameters, optimisers, replay
    buffer, normaliser, generators, callbacks, environments, observations, actions, rewards and scalars, bit for bit.
    Exit code 1 and a list of what differs where anything does.

    `train-cloud prove run.yaml --steps 5000`
    """
    from train_cloud.config import load_run_file

    _prove(run_file, load_run_file(run_file, overrides or ()).run_id, steps, overrides, quick=False)


_MOST_DIFFERENCES = 12


def _prove(run_file: Path, run_id: str, steps: int | None, overrides: list[str] | None, *, quick: bool) -> None:
    """:raises NotExact: the two differ"""
    extras.need(_TRAINER, "prove")
    from train_cloud.operations.prove import prove as prove_run

    def say(text: str) -> None:
        echo(f"  {text}", err=True)

    proof = prove_run(run_file, steps=steps, overrides=overrides or (), quick=quick, say=say)
    how = " and ".join(f"{name} at step {at:,}" for name, at in proof.interruptions)
    echo(f"{run_id}: {proof.timesteps:,} timesteps without interruption, and with {how}")
    echo(f"  reached       {', '.join(proof.reached) or 'neither an update nor the end of an episode'}")
    if proof.provider:
        echo(f"  state by      {proof.provider} (of the environment)")
    if proof.missed:
        echo(f"  not reached   {', '.join(proof.missed)}: nothing is shown of that; give more --steps")
    if proof.because is not None:
        echo(f"  status says   exact: no, because {proof.because}")
    if proof.attributes:
        left = f"; not equal, and nowhere named: {len(proof.unaccounted)}" if proof.unaccounted else ""
        echo(f"  after resumes {proof.attributes:,} attributes are what they were{left}")
    for path in proof.unaccounted[:_MOST_DIFFERENCES]:
        echo(f"  not the same  {path}")
    if proof.equal:
        echo(f"  equal         {', '.join(proof.compared)}")
        return
    if proof.first is not None:
        echo(f"  first         {proof.first}")
    # A tensor follows from what else differs, and there are many.
    paths = sorted(proof.differences, key=lambda path: path.startswith(("tensors", "rows", "scalar")))
    for path in paths[:_MOST_DIFFERENCES]:
        echo(f"  differs       {path}")
    if len(proof.differences) > _MOST_DIFFERENCES:
        echo(f"  differs       and {len(proof.differences) - _MOST_DIFFERENCES} more")
    where = str(proof.first) if proof.first is not None else paths[0]
    if not proof.reproducible:
        raise NotExact(f"{run_id} is not reproducible: started twice, it differs before any interruption, {where}")
    known = f", as the run says itself: {proof.because}" if proof.because is not None else ""
    raise NotExact(f"{run_id} does not go on exactly: {where}{known}")


def train(
    run_file: options.RunFile,
    store: options.Store,
    state_dir: options.StateDir = None,
    overrides: options.Overrides = None,
    schedule_total: options.ScheduleTotal = None,
    train_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="Train on where a callback has ended the run early; of an experiment, also what was cancelled or has "
            "failed for good.",
        ),
    ] = False,
    parallel: options.Parallel = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of an experiment: print its runs, and create nothing.")
    ] = False,
) -> None:
    """Train, or go on from where this run was interrupted.

    Ctrl-C or SIGTERM stops it after a commit (exit code 75); the same command goes on with the very next step. A
    completed run goes on if total_timesteps is larger than what it has reached; one that a callback of yours has ended
    early, if it is larger than it was, or with `--continue`.

    An experiment file stands for many runs, which are trained side by side (docs/experiments.md).

    `train-cloud train run.yaml --store ./store --set total_timesteps=2e6`
    """
    changes = options.with_schedule_total(overrides, schedule_total)
    from train_cloud.config import is_experiment
    from train_cloud.config.pipeline import is_pipeline

    if is_experiment(run_file):
        from train_cloud.cli.experiment import train_experiment

        train_experiment(run_file, store, state_dir, changes, parallel=parallel, train_on=train_on, dry_run=dry_run)
        return
    if is_pipeline(run_file):
        _train_pipeline(run_file, store, state_dir, changes)
        return
    for name, value in (("--parallel", parallel), ("--dry-run", dry_run)):
        if value:
            raise InputError(name, value, f"only an experiment file takes it, and {run_file} is none: leave it out")
    extras.need(_TRAINER, "train")
    from train_cloud.operations.train import train as train_run

    raise typer.Exit(train_run(run_file, store=store, state_dir=state_dir, overrides=changes, train_on=train_on))


def _train_pipeline(path: Path, store: str, state_dir: Path | None, overrides: list[str]) -> None:
    """On a worker: one session after the other on this machine."""
    from train_cloud.platforms.ec2.worker import Worker
    from train_cloud.platforms.here import here

    if not isinstance(here(), Worker):
        raise InputError("run file", str(path), "it is a pipeline file: train-cloud pipeline run trains it")
    extras.need(_TRAINER, "train")
    from train_cloud.experiments.pipeline.worker import train_next

    raise typer.Exit(train_next(path, store=store, state_dir=state_dir or Path(".train-cloud"), overrides=overrides))
