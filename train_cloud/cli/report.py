"""``status`` and ``export``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from train_cloud.cli import options
from train_cloud.cli.terminal import echo
from train_cloud.errors import CloudError, InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from train_cloud.report.experiment import ExperimentStatus
    from train_cloud.report.status import RunStatus
    from train_cloud.run.cost import Cost

_MOST_CHECKPOINTS = 8
_COLOURS = {"completed": "green", "running": "cyan", "failed": "red", "damaged": "red"}
_STATES = {
    "starting": "a worker has booted at {since} and is being set up",
    "interrupted": "no worker has started since {since}",
    "waiting": "no worker has started since {since}",
}
_AWAITED = (
    "The Auto Scaling group sends one as soon as there is spot capacity; what it tried stands in its activities:\n"
    '  eval "$(terraform output -raw scaling_activities_command)"'
)
_SUSPENDED = (
    "its Auto Scaling group launches nothing, because AWS has suspended it ({reason}).\n"
    "  It does so after a day without capacity. Name more instance_types or zones and apply, then: "
    "train-cloud relaunch {run_id}"
)
_CLOSED = (
    "its max_runtime_hours are over: since {since} its group is taken to 0 from outside, every hour.\n"
    "  To go on, raise max_runtime_hours, terraform apply, then: train-cloud relaunch {run_id}"
)


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.LOOK)(status)
    app.command(rich_help_panel=options.LOOK)(logs)
    app.command(rich_help_panel=options.LOOK)(report)
    app.command(rich_help_panel=options.LOOK)(export)


def status(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run file, a run id, or the URL of a run's folder; without it, all runs of the store.",
            show_default=False,
        ),
    ] = None,
    store: options.OptionalStore = None,
    experiment: options.ExperimentName = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again and again, until Ctrl-C or until all has ended.")
    ] = False,
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.1, help="With --watch.")] = 5.0,
    as_json: options.AsJson = False,
) -> None:
    """Show how a run stands, session by session.

    State, progress, what ended each session, what it cost, its checkpoints, and whether it is exact so far. Of an
    experiment file, or with `--experiment`, a line for each run, and which are not begun.

    `train-cloud status s3://bucket/train-cloud/runs/pendulum-sac`
    """
    from train_cloud.cli.experiment import found_members
    from train_cloud.report.experiment import experiments
    from train_cloud.report.status import run_ids, statuses

    group = found_members(run, experiment, store)
    seeded = _seeded(run) if group is None else [member.run_id for member in group.members]
    if seeded and store is None:
        raise InputError("--store", None, "name a folder or s3://bucket/prefix, or set TRAIN_CLOUD_STORE")
    root, run_id = find(None, store) if seeded else find(run, store)
    if watch and as_json:
        raise InputError("--watch", True, "leave out one of --watch and --json")
    if watch:
        one = run_id

        def look() -> list[RunStatus]:
            return statuses(root, [name for name in run_ids(root) if not seeded or name in seeded])

        _watch(lambda: [_one(root, one)] if one else look(), every, len(seeded))
        return
    if run_id is not None:
        found = _one(root, run_id)
        if as_json:
            echo(found.model_dump_json(indent=1))
        else:
            _print(_run_view(found))
            for line in _jobs(found):
                echo(line)
        return
    everything = statuses(root, [name for name in run_ids(root) if not seeded or name in seeded])
    groups = experiments(everything)
    if as_json:
        echo("[" + ",\n".join(found.model_dump_json(indent=1) for found in everything) + "]")
    elif everything:
        if group is not None and group.file is not None and group.file.search is not None:
            from train_cloud.cli.search_view import trials

            _print(trials(group.file, group.trials))
        _print(_table_of_runs(everything))
        for each in groups:
            echo(_told(each))
    else:
        echo(f"no runs under {root}")
    if group is not None and not as_json:
        missing = sorted(set(seeded) - {found.run_id for found in everything})
        if missing:
            echo(f"not begun: {len(missing)} of {len(seeded)} runs: {', '.join(missing)}")


def logs(
    run: options.RunOrExperiment = None,
    store: options.OptionalStore = None,
    session: Annotated[
        int | None,
        typer.Option("--session", metavar="NUMBER", help="Of an earlier session.", show_default="the newest"),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until the run has ended.")] = False,
    boot: Annotated[bool, typer.Option("--boot", help="The last boot that failed, instead of a session.")] = False,
    job: Annotated[
        bool, typer.Option("--job", help="All that the newest SageMaker job has said, from CloudWatch.")
    ] = False,
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.1, help="With --follow.")] = 5.0,
    experiment: options.ExperimentName = None,
) -> None:
    """Print what a session's training has said; no machine needs to be alive for that.

    A worker sends its log with the other artifacts, once a minute, and when it ends. Of an experiment, the newest log
    of each run.

    `train-cloud logs pendulum-sac --store ./store --follow`
    """
    from train_cloud.cli.experiment import found_members
    from train_cloud.report.logs import boot_logs, follow_log, read_log, session_logs
    from train_cloud.run import layout
    from train_cloud.store import FileStore, open_store

    group = found_members(run, experiment, store)
    if group is not None:
        for name, chosen in (("--follow", follow), ("--boot", boot), ("--job", job), ("--session", session)):
            if chosen:
                raise InputError(name, chosen, f"name one run of {group.name}, for example {group.members[0].run_id}")
        for member in group.members:
            one = open_store(layout.run_url(group.root, member.run_id))
            assert isinstance(one, FileStore)
            if session_logs(one):
                number, body = read_log(one, None)
                echo(f"==> {member.run_id}, session {number} <==")
                _write(body)
        return
    if run is None:
        raise InputError("run", None, "name a run, or an experiment with --experiment")
    root, run_id = find(run, store)
    if run_id is None:
        raise InputError("run", run, "name one run: its file, its id, or its folder's URL")
    found = open_store(layout.run_url(root, run_id))
    assert isinstance(found, FileStore)
    if job:
        from train_cloud.cli.sagemaker import job_log

        for line in job_log(root, run_id):
            echo(line)
    elif boot:
        keys = boot_logs(found)
        if not keys:
            raise InputError("--boot", True, f"no boot of this run has left a log under {found.url}: none has failed")
        _write(bytes(found.get(keys[-1]).body))
    elif follow:
        for piece in follow_log(found, session, every=every):
            _write(piece)
    else:
        _write(read_log(found, session)[1])


def report(
    run: options.Run,
    store: options.OptionalStore = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="HTML file to write.", show_default="./RUN_ID.html")
    ] = None,
) -> None:
    """Write one HTML page about a run.

    Configuration, timeline with interruptions, curves, evaluations, videos, routes and cost in one file that loads
    nothing; for a run in any state.

    `train-cloud report pendulum-sac --store ./store`
    """
    root, run_id = find(run, store)
    if run_id is None:
        raise InputError("run", run, "name one run: its file, its id, or its folder's URL")
    from train_cloud.operations.html_report import write_page

    echo(str(write_page(root, run_id, out or Path(f"{run_id}.html"))))


def _write(body: bytes) -> None:
    echo(body.decode(errors="replace"), nl=False)
    sys.stdout.flush()


def export(
    run: options.Run,
    store: options.OptionalStore = None,
    at: Annotated[
        int | None,
        typer.Option("--at", metavar="TIMESTEPS", help="A checkpoint before the newest.", show_default="the newest"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write.", show_default="./RUN_ID-TIMESTEPS"),
    ] = None,
) -> None:
    """Write a model that plain Stable-Baselines3 loads.

    A folder with model.zip, the normaliser, the run file, the lock and play.py.

    `train-cloud export pendulum-sac --store ./store --out final && python final/play.py`
    """
    root, run_id = find(run, store)
    if run_id is None:
        raise InputError("run", run, "name one run: its file, its id, or its folder's URL")
    from train_cloud.operations.export import export as export_run

    echo(str(export_run(root, run_id, at=at, out=out)))


def _one(root: str, run_id: str) -> RunStatus:
    """Also what the group says, where a worker is missed. Only a hint: not everybody may ask."""
    from train_cloud.report.status import run_status

    found = run_status(root, run_id, checkpoints=True)
    if found.state not in ("waiting", "interrupted") or not found.url.startswith("s3://"):
        return found
    from train_cloud.platforms.ec2.group import RUN_TAG, Group, find_groups

    try:
        names = find_groups(RUN_TAG, found.run_id)
        suspended = Group(names[0]).suspended() if len(names) == 1 else {}
    except CloudError:
        return found
    told = "; ".join(f"{process}: {reason}" for process, reason in suspended.items())
    return found.model_copy(update={"suspended": told or None})


def _jobs(found: RunStatus) -> Iterable[str]:
    """How its jobs stand, where it is trained by a service's jobs."""
    if not found.url.startswith("s3://"):
        return ()
    from train_cloud.cli.sagemaker import job_lines

    return job_lines(found.url)


def _seeded(run: str | None) -> list[str]:
    """Ids of the runs of a run file with several seeds; none for anything else."""
    if run is None or not is_run_file(run):
        return []
    from train_cloud.config import expand, load_run_file

    run_file = load_run_file(run)
    return [one.run_id for one in expand(run_file)] if run_file.seeds is not None else []


def _told(group: ExperimentStatus) -> str:
    return_ = "no episode has ended yet"
    if group.mean is not None:
        sure = "" if group.interval is None else f" ± {group.interval:,.1f} (95 % of the mean)"
        return_ = f"training return {group.mean:,.1f}{sure} over {len(group.returns)} runs"
    elif group.returns:
        return_ = f"train-cloud compare --experiment {group.experiment} has its levels"
    return f"experiment {group.experiment}: {group.completed} of {len(group.runs)} runs completed, {return_}"


def is_run_file(run: str) -> bool:
    """Whether what names a run is its file."""
    return run.endswith((".yaml", ".yml")) or Path(run).is_file()


def locate(run: str | None, store: str | None) -> tuple[str, str | None]:
    """Store root and run id of what a person wrote to name a run; the id is None where it names a whole store."""
    from train_cloud.report.status import split_run_url

    if run is not None and is_run_file(run):
        from train_cloud.config import load_run_file

        run_file = load_run_file(run)
        if run_file.seeds is not None:
            raise InputError("run", run, "it has several seeds: name one of its runs, <run_id>-s<seed>")
        if run_file.signing_key is not None and run_file.signing_key in os.environ:
            from train_cloud.checkpoint import signing

            os.environ.setdefault(signing.VARIABLE, run_file.signing_key)
        run = run_file.run_id
    elif run is not None and ("/" in run or "\\" in run or store is None):
        return split_run_url(run) or (run, None)
    if store is None:
        raise InputError("--store", None, "name a folder or s3://bucket/prefix, or set TRAIN_CLOUD_STORE")
    return store, run


def find(run: str | None, store: str | None) -> tuple[str, str | None]:
    """As :func:`locate`, in a store that is there.

    :raises InputError: it is not
    """
    from train_cloud.store import check_exists

    root, run_id = locate(run, store)
    check_exists(root, "--store" if root == store else "RUN")
    return root, run_id


def _watch(read: Callable[[], list[RunStatus]], every: float, many: int = 0) -> None:
    """Show what is read in the same place until all runs have ended.

    :param many: so many there will be, though not all have begun
    """
    from rich.live import Live

    with Live(refresh_per_second=1, transient=False) as live:
        while True:
            found = read()
            live.update(_run_view(found[0]) if len(found) == 1 else _table_of_runs(found), refresh=True)
            if len(found) >= many and all(run.state in ("completed", "stopped", "failed") for run in found):
                return
            time.sleep(every)


def _print(view: RenderableType) -> None:
    from rich.console import Console

    # Into a file or a pipe, tables keep their full width: nobody scrolls there, and programs cut at columns.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(view)


def _progress(found: RunStatus) -> str:
    if found.total_timesteps is None:
        return f"{found.timesteps:,}"
    return f"{found.timesteps:,} of {found.total_timesteps:,} ({found.timesteps / found.total_timesteps:.0%})"


def _state(found: RunStatus) -> str:
    colour = _COLOURS.get(found.state, "yellow")
    return f"[{colour}]{found.state}[/{colour}]"


def _time(text: str | None) -> str:
    """ISO 8601 as people read it, in UTC to the second."""
    return "?" if text is None else text[:19].replace("T", " ") + " UTC"


def _run_view(found: RunStatus) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from train_cloud.report.status import exactness_in_words
    from train_cloud.run.cost import in_words

    lines = [f"[bold]{found.run_id}[/bold]  {_state(found)}  {_progress(found)} {found.unit}"]
    if found.score is not None:
        best = "none yet" if found.score["best"] is None else f"{found.score['best']:g}"
        lines.append(f"  score: {found.score['name']} ({found.score['direction']}), best {best}")
    if found.reason and found.reason != found.damaged:
        lines.append(f"  {escape(found.reason)}")
    if found.state in _STATES:
        lines.append(f"  {_STATES[found.state].format(since=_time(found.since))}")
    if found.closed is not None:
        lines.append(f"  {_CLOSED.format(since=_time(found.closed), run_id=found.run_id)}")
    elif found.suspended is not None:
        lines.append(f"  {escape(_SUSPENDED.format(reason=found.suspended, run_id=found.run_id))}")
    elif found.state in ("waiting", "interrupted") and found.url.startswith("s3://"):
        lines.append(f"  {_AWAITED}")
    if found.steps_per_second:
        left = timedelta(seconds=round(found.seconds_left or 0))
        lines.append(
            f"  {found.steps_per_second:,.1f} steps/s, about {left} left; committed: {found.committed_timesteps:,}"
        )
    if found.attempts:
        lines.append(f"  failures in a row without a new commit: {found.attempts}")
    lines.append(f"  exact: {escape(exactness_in_words(found))}")
    if found.damaged is not None:
        lines.append(f"  [red]damaged: {escape(found.damaged)}[/red]")
    if not found.sessions:
        return "\n".join(lines)
    if found.interruptions or found.repeated_at_most:
        again = in_words(found.repeated_timesteps, found.repeated_at_most)
        lines.append(f"  interruptions: {found.interruptions}, steps done again: {again}")
    if found.ranks > 1:
        lines.append(f"  ranks: {found.ranks}")
    if found.hardware is not None:
        lines.append(f"  hardware: {escape(_hardware(found.hardware))}")
    if found.curriculum is not None:
        lines.append(f"  curriculum: {escape(_curriculum(found.curriculum))}")
    if found.pretraining is not None:
        lines.append(f"  pretraining: {_pretraining(found.pretraining)}")
    if found.evaluation is not None:
        lines.append(f"  evaluation: {escape(_evaluation(found.evaluation))}")
        lines += [f"    {escape(warning)}" for warning in found.evaluation.get("warnings", ())]
    if found.not_exported is not None:
        lines.append(f"  [red]not exported: {escape(_not_exported(found))}[/red]")
    on_aws = any(session.instance_type for session in found.sessions)
    if on_aws:
        lines.append(f"  cost: {escape(_cost(found.cost))}")
    if found.checkpoints:
        kept = [f"{each.timesteps:,}{'' if each.whole else ' (without replay buffer)'}" for each in found.checkpoints]
        more = f" and {len(kept) - _MOST_CHECKPOINTS} more" if len(kept) > _MOST_CHECKPOINTS else ""
        lines.append(f"  checkpoints: {', '.join(kept[:_MOST_CHECKPOINTS])}{more}")
    table = Table(box=None, header_style="dim", padding=(0, 3, 0, 0))
    for name in (
        "session",
        "machine",
        "started",
        "timesteps",
        "notices",
        "ended by",
        *(["$"] if on_aws else []),
        "exact",
    ):
        right = name in ("session", "timesteps", "$")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "exact")
    for session, spent in zip(found.sessions, found.cost.sessions, strict=True):
        first, last = (
            "?" if number is None else f"{number:,}" for number in (session.first_timestep, session.last_timestep)
        )
        table.add_row(
            str(session.session),
            escape(session.instance_id),
            _time(session.started),
            f"{first} - {last}",
            escape(", ".join(str(notice.get("kind", "?")) for notice in session.notices) or "-"),
            escape(session.ended_by) if session.ended_by else "[cyan]at work[/cyan]",
            *(["unknown" if spent.dollars is None else f"{spent.dollars:.2f}"] if on_aws else []),
            escape(exactness_in_words(session)),
        )
    return Group("\n".join(lines), "", table)


def _not_exported(found: RunStatus) -> str:
    told = found.not_exported or {}
    missing = ", ".join(f"{at:,}" for at in told.get("timesteps", ()))
    because = told.get("because")
    return f"the models of {missing} timesteps, because {because} (by hand: train-cloud export {found.run_id} --at …)"


def _hardware(found: dict[str, Any]) -> str:
    batch = "" if found["batch_size"] is None else f", batch_size {found['batch_size']}"
    on = found["gpu"] or "no GPU"
    return f"n_envs {found['n_envs']}{batch}, chosen for {found['cores']} cores and {on}"


def _curriculum(found: dict[str, Any]) -> str:
    at = f"stage {found['name']} ({found['stage'] + 1} of {len(found['names'])}) since {found['since']:,} timesteps"
    if not found["episodes"]:
        return at
    rate = found["success_rate"]
    told = [*([] if rate is None else [f"success rate {rate:.0%}"]), f"mean return {found['mean_return']:,.2f}"]
    return f"{at}: {', '.join(told)} in {found['episodes']} of its episodes"


def _pretraining(found: dict[str, Any]) -> str:
    names = ("loss", "held_out_loss", "held_out_accuracy", "held_out_error")
    figures = [f"{name.replace('_', ' ')} {found[name]:.4g}" for name in names if name in found]
    return f"epoch {found['epoch']:.0f}, {', '.join(figures)}"


def _evaluation(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"failed at {found['timesteps']:,} timesteps, {found['failed']}"
    rate = found.get("success_rate")
    succeeded = "" if rate is None else f", success rate {rate:.0%}"
    fallen = "" if "below_cloned" not in found else f", below the cloned policy's {found['below_cloned']:,.2f}"
    return f"mean return {found['mean_return']:,.2f}{succeeded} at {found['timesteps']:,} timesteps{fallen}"


def _cost(cost: Cost) -> str:
    hours = f"{cost.hours:.2f} instance hours"
    if cost.dollars is None:
        return f"unknown, {hours}; {cost.sessions[-1].because}"
    parts = {"machines": cost.machine_dollars, "volumes": cost.volume_dollars, "addresses": cost.address_dollars}
    known = ", ".join(f"{name} ${dollars:.2f}" for name, dollars in parts.items() if dollars)
    lines = [f"${cost.dollars:.2f} for {hours} ({known})"]
    if cost.saved_dollars is not None:
        lines.append(f"${cost.saved_dollars:.2f} less than on demand")
    if cost.repeated_dollars:
        sure = all(each.repeated_timesteps == each.repeated_at_most for each in cost.sessions)
        lines.append(f"{'' if sure else 'at least '}${cost.repeated_dollars:.2f} of it for steps done again")
    if cost.unknown:
        lines.append(f"without session {', '.join(map(str, cost.unknown))}, whose price is unknown")
    for what, sessions in (("volume", cost.without_volume), ("address", cost.without_address)):
        if sessions:
            lines.append(f"without the {what} of session {', '.join(map(str, sessions))}, whose price is unknown")
    return ", ".join(lines)


def _table_of_runs(everything: list[RunStatus]) -> RenderableType:
    from rich.table import Table

    from train_cloud.run.cost import in_words

    table = Table(box=None, header_style="dim", padding=(0, 3, 0, 0))
    for name in ("run", "state", "timesteps", "steps/s", "left", "sessions", "again", "$", "return", "exact", "since"):
        left = name in ("run", "state", "exact", "since")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for found in everything:
        table.add_row(
            found.run_id,
            _state(found),
            _progress(found),
            f"{found.steps_per_second:,.0f}" if found.steps_per_second else "",
            str(timedelta(seconds=round(found.seconds_left))) if found.seconds_left is not None else "",
            str(len(found.sessions)),
            in_words(found.repeated_timesteps, found.repeated_at_most),
            "?" if found.cost.dollars is None else f"{found.cost.dollars:.2f}",
            f"{found.evaluation['mean_return']:,.1f}" if found.evaluation and "mean_return" in found.evaluation else "",
            found.exact_evidence or "?",
            _time(found.since),
        )
    return table
