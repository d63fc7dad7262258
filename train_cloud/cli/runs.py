"""``fork``, ``rollback``, ``repair``, ``cancel`` and ``delete``: what a person does to a whole run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.report import find, is_run_file
from train_cloud.cli.terminal import echo
from train_cloud.errors import CloudError, InputError, StoreUnavailable, TrainCloudError

if TYPE_CHECKING:
    from train_cloud.cli.experiment import Group


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.RUNS)(fork)
    app.command(rich_help_panel=options.RUNS)(rollback)
    app.command(rich_help_panel=options.RUNS)(repair)
    app.command(rich_help_panel=options.RUNS)(cancel)
    app.command(rich_help_panel=options.RUNS)(delete)


def fork(
    run: options.Run,
    new_id: Annotated[str, typer.Option("--as", metavar="RUN_ID", help="The new run's id.", show_default=False)],
    at: Annotated[
        int | None,
        typer.Option("--at", metavar="TIMESTEPS", help="A preserved checkpoint.", show_default="the newest"),
    ] = None,
    overrides: options.Overrides = None,
    store: options.OptionalStore = None,
    without_buffer: Annotated[
        bool, typer.Option("--without-buffer", help="Begin with an empty replay buffer.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The new run's file.", show_default="./RUN_ID.yaml"),
    ] = None,
) -> None:
    """Begin a new run with the state of another one's checkpoint.

    Everything is copied; neither run needs the other afterwards. `--set` may change the budget and what acts on the
    next update alone, such as the learning rate; not the environment, the networks or the buffer.

    `train-cloud fork pendulum-sac --store ./store --at 50000 --set hyperparameters.learning_rate=1e-4 --as slower`
    """
    from train_cloud.operations.fork import fork as fork_run

    root, run_id = _one(run, store)
    base = Path(run).absolute().parent if is_run_file(run) else None
    made = fork_run(
        root, run_id, new_id, at=at, overrides=overrides or (), with_rows=not without_buffer, base=base, out=out
    )
    for field, before, after in made.changes:
        echo(f"{field}: {before!r} becomes {after!r}")
    if made.code:
        echo(f"code: {made.code}")
    buffer = "" if made.rows else ", with an empty replay buffer"
    echo(f"{new_id} begins at {made.timesteps:,} timesteps ({made.bytes / 1e6:,.1f} MB copied){buffer}")
    if root.startswith("s3://"):
        echo(f"  terraform apply -var run_file={made.run_file}    or, on this machine,")
    echo(f"  train-cloud train {made.run_file} --store {root}")


def rollback(
    run: options.Run,
    to: Annotated[int, typer.Option("--to", metavar="TIMESTEPS", help="A preserved checkpoint.", show_default=False)],
    store: options.OptionalStore = None,
) -> None:
    """Go back to an earlier checkpoint of a run.

    What came after it goes with the next session's first commit. A worker that lives is fenced: it writes nothing
    more, and the machine that replaces it goes on from there.

    `train-cloud rollback pendulum-sac --store ./store --to 50000`
    """
    from train_cloud.operations.rollback import rollback as roll_back

    root, run_id = _one(run, store)
    head = roll_back(root, run_id, to)
    echo(f"{run_id} is at {head.timesteps:,} timesteps again; train-cloud train or relaunch goes on from there")


def repair(
    run: options.Run,
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="TIMESTEPS", help="Another checkpoint.", show_default="the newest whole one"),
    ] = None,
    store: options.OptionalStore = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Write a run's head again, where it is gone or names what is damaged.

    Looks first, reads every byte of the checkpoint that it goes back to, says what it found, and asks. A worker that
    lives is fenced: it writes nothing more.

    `train-cloud repair pendulum-sac --store ./store`
    """
    from train_cloud.operations.repair import plan
    from train_cloud.operations.repair import repair as write_anew

    root, run_id = _one(run, store)
    planned = plan(root, run_id, to)
    echo(f"{run_id}: {planned.fault}")
    for each in planned.found.checkpoints:
        said = f"{len(each.lacks)} of its objects are missing" if each.lacks else "whole"
        if each is planned.chosen:
            said = "whole, every byte of it read"
        said = planned.damaged.get(each.timesteps, said)
        echo(f"  {each.timesteps:>12,} timesteps, session {each.token.session}: {said}")
    for key in planned.found.unreadable:
        echo(f"  {key} is no manifest")
    goes = f"{run_id} goes back to {planned.chosen.timesteps:,} timesteps; the next session deletes what came after"
    if not yes and typer.prompt(f"{goes}. Type the run's id to go on") != run_id:
        raise InputError("run", run_id, "another id was typed: nothing was changed")
    head = write_anew(planned)
    echo(f"{run_id} is at {head.timesteps:,} timesteps again; train-cloud train or relaunch goes on from there")


def cancel(
    run: options.RunOrExperiment = None,
    store: options.OptionalStore = None,
    experiment: options.ExperimentName = None,
) -> None:
    """End a run, or all runs of an experiment, with what is committed.

    The outcome is `stopped`. A worker that trains it can commit nothing more: it leaves within a minute, or at its next
    commit, and its machine's group goes to 0. Nothing is deleted; `train` of the run, or of the experiment with
    `--continue`, goes on.

    `train-cloud cancel pendulum-sac --store ./store`
    """
    from train_cloud.cli.experiment import found_members
    from train_cloud.operations.cancel import cancel as cancel_run

    group = found_members(run, experiment, store)
    if group is None:
        root, run_id = _one(_named(run), store)
        head = cancel_run(root, run_id)
        echo(f"{run_id} is {head.outcome} at {head.timesteps:,} timesteps: {head.reason or 'all is trained'}")
        return
    if group.file is not None and group.file.search is not None:
        from train_cloud.experiments.search.study import Study

        Study(group.file, group.root).cancel()

    def end(run_id: str) -> None:
        head = cancel_run(group.root, run_id, begun=False)
        echo(f"{run_id} is {head.outcome} at {head.timesteps:,} timesteps")

    _with_each([member.run_id for member in group.members], end, "cancelled")


def delete(
    run: options.RunOrExperiment = None,
    store: options.OptionalStore = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Although a worker seems to be at work.")] = False,
    experiment: options.ExperimentName = None,
) -> None:
    """Delete a run, or an experiment with all its runs, with everything that is stored of it.

    A versioned bucket keeps what is deleted for as long as its lifecycle rule says, 3 days in ours.

    `train-cloud delete pendulum-sac --store ./store`
    """
    from train_cloud.cli.experiment import found_members
    from train_cloud.operations.delete import delete as delete_run
    from train_cloud.run.layout import run_url

    group = found_members(run, experiment, store)
    if group is not None:
        _delete_experiment(group, yes=yes, force=force)
        return
    root, run_id = _one(_named(run), store)
    url = run_url(root, run_id)
    if not force and root.startswith("s3://"):
        _refuse_group(run_id)
    if not yes and typer.prompt(f"Everything under {url} is deleted. Type the run's id to go on") != run_id:
        raise InputError("run", run_id, "another id was typed: nothing was deleted")
    echo(f"{delete_run(root, run_id, force=force)} objects under {url} are deleted")


def _delete_experiment(group: Group, *, yes: bool, force: bool) -> None:
    from train_cloud.operations.delete import delete as delete_run
    from train_cloud.operations.delete import delete_experiment_files
    from train_cloud.report.status import run_ids

    there = [member.run_id for member in group.members if member.run_id in set(run_ids(group.root))]
    if not force and group.root.startswith("s3://"):
        for run_id in there:
            _refuse_group(run_id)
    if not force:
        _refuse_what_needs_force(group, there)
    asked = f"{len(there)} runs of {group.name} under {group.root} are deleted. Type the experiment's name to go on"
    if not yes and typer.prompt(asked) != group.name:
        raise InputError("experiment", group.name, "another name was typed: nothing was deleted")

    def remove(run_id: str) -> None:
        echo(f"{run_id}: {delete_run(group.root, run_id, force=force)} objects are deleted")

    _with_each(there, remove, "deleted")
    echo(f"experiments/{group.name}: {delete_experiment_files(group.root, group.name)} objects are deleted")


def _refuse_what_needs_force(group: Group, run_ids: Sequence[str]) -> None:
    """Before any run is deleted: half an experiment is worth nothing."""
    from train_cloud.report.status import statuses

    found = statuses(group.root, run_ids)
    for states, what in (
        (("running", "starting"), "a worker seems to be at work, stop it"),
        (("damaged",), "it is damaged, train-cloud repair may help"),
    ):
        if named := [one.run_id for one in found if one.state in states]:
            more = f", and {len(named) - 1} more" if len(named) > 1 else ""
            raise InputError("run", f"{named[0]}{more}", f"nothing was deleted: {what}, or add --force")


def _with_each(run_ids: Sequence[str], act: Callable[[str], None], done: str) -> None:
    """Do this with all of an experiment's runs; one that is damaged, or at work, stops none of the others.

    :raises TrainCloudError: of the first with which it failed, after all have been tried
    """
    failed: dict[str, TrainCloudError] = {}
    for run_id in run_ids:
        try:
            act(run_id)
        except StoreUnavailable:
            raise  # nor would it be there for the next one
        except TrainCloudError as error:
            failed[run_id] = error
    for run_id, why in failed.items():
        echo(f"{run_id} is not {done}: {why}")
    if failed:
        first = next(iter(failed.values()))
        raise TrainCloudError(f"{len(failed)} of {len(run_ids)} runs are not {done}, the first: {first}") from first


def _named(run: str | None) -> str:
    if run is None:
        raise InputError("run", None, "name a run, an experiment file, or an experiment with --experiment")
    return run


def _one(run: str, store: str | None) -> tuple[str, str]:
    root, run_id = find(run, store)
    if run_id is None:
        raise InputError("run", run, "name one run: its file, its id, or its folder's URL")
    return root, run_id


def _refuse_group(run_id: str) -> None:
    """A group that is open would send one machine after the other to a run that is gone."""
    from train_cloud.platforms.ec2.group import RUN_TAG, find_groups
    from train_cloud.platforms.ec2.group import Group as Machines

    with contextlib.suppress(CloudError):  # whoever may not ask may still delete
        for name in find_groups(RUN_TAG, run_id):
            if Machines(name).capacity():
                fix = f"its Auto Scaling group {name} sends workers: run terraform destroy first, or add --force"
                raise InputError("run", run_id, fix)
