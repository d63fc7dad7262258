"""``sync``, ``pull`` and ``tensorboard``: results to the store and home."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError, StoreUnavailable, TrainCloudError

_TRAINER = "stable_baselines3"

if TYPE_CHECKING:
    from train_cloud.artifacts.sync import Sync
    from train_cloud.cli.experiment import Group
    from train_cloud.store import ObjectStore


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.LOOK)(sync)
    app.command(rich_help_panel=options.LOOK)(pull)
    app.command(rich_help_panel=options.LOOK)(tensorboard)


def sync(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.", show_default=False)],
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Where it goes: s3://bucket/prefix, or a folder.", show_default=False)
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the manifest of what would be sent, and send nothing.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C or SIGTERM, and send the rest.")] = False,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="SECONDS", min=0.1, help="With --follow: from look to look.")
    ] = 60.0,
) -> None:
    """Send the output folder of any training script to S3, and keep it there.

    Only what changed travels. URL/s3_manifest.json says what is there, with checksums. A file that cannot be sent is an
    error, at the end of it all.

    `train-cloud sync ./results s3://bucket/experiments/first --follow`
    """
    if not folder.is_dir():
        raise InputError("DIR", str(folder), "name an existing folder")
    from train_cloud.artifacts.sync import Sync
    from train_cloud.artifacts.uploads import as_json
    from train_cloud.store import open_store
    from train_cloud.store.folder import FolderStore

    folder, store = folder.absolute(), open_store(url)
    if isinstance(store, FolderStore) and store.root.resolve().is_relative_to(folder.resolve()):
        raise InputError("URL", url, "it lies inside of DIR, and would be sent into itself: name a place outside")
    syncing = Sync(store, folder, name=folder.name, alone=False)
    if dry_run:
        echo(as_json(syncing.plan()).decode(), nl=False)
    elif follow:
        _follow(syncing, seconds)
    else:
        syncing.everything()
    _refuse_failed(syncing)
    if not dry_run:
        files, size = syncing.total()
        echo(f"{files:,} files, {size / 1e6:,.1f} MB under {url}")


def _follow(syncing: Sync, seconds: float) -> None:
    import signal
    import threading

    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    while not over.is_set():
        try:
            syncing.everything()
        except StoreUnavailable as error:
            echo(f"tried again in {seconds:g} s: {error}", err=True)
        over.wait(seconds)
    syncing.everything()


def _refuse_failed(syncing: Sync) -> None:
    if syncing.failed:
        (name, why), *others = syncing.failed.items()
        more = f" (and {len(others)} more)" if others else ""
        raise TrainCloudError(f"{name} could not be sent{more}: {why}")


def pull(
    run: options.RunOrExperiment = None,
    store: options.OptionalStore = None,
    what: Annotated[
        list[str] | None,
        typer.Option(
            "--what",
            metavar="NAME",
            help="A folder, a file or a glob among the artifacts, for example videos or final_model.zip. Repeatable.",
            show_default="everything",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write.", show_default="./RUN_ID")
    ] = None,
    experiment: options.ExperimentName = None,
) -> None:
    """Fetch a run's artifacts, and verify them by their checksums.

    What is there already is not fetched again, so that a pull that broke off goes on when it is repeated. Models of
    kept checkpoints that no session could export are exported here, if the run's packages are. Of an
    experiment, each run's into DIR/LEVEL/LEVEL, and config.json, all_results.json and s3_manifest.json.

    `train-cloud pull pendulum-sac --store s3://bucket/train-cloud --what final --what videos`
    """
    from train_cloud.cli.experiment import found_members
    from train_cloud.cli.report import find
    from train_cloud.report.pull import pull as pull_run

    group = found_members(run, experiment, store)
    if group is not None:
        _pull_experiment(group, what or (), out or Path(group.name))
        return
    if run is None:
        raise InputError("run", None, "name a run, an experiment file, or an experiment with --experiment")
    root, run_id = find(run, store)
    if run_id is None:
        raise InputError("run", run, "name one run: its file, its id, or its folder's URL")
    done = pull_run(root, run_id, what=what or (), out=out, each=lambda name, size: echo(f"{size:>12,}  {name}"))
    echo(f"{done.folder}: {done.fetched} files fetched ({done.bytes / 1e6:,.1f} MB), {done.kept} there already")
    if done.unverified:
        echo(f"no manifest names {', '.join(done.unverified)}: not verified", err=True)
    if not what:
        _export_left(root, run_id, done.folder)


def _export_left(root: str, run_id: str, folder: Path) -> None:
    """The models of kept checkpoints that no session could export, and none will any more if the run is over."""
    from train_cloud import extras
    from train_cloud.report.status import run_status
    from train_cloud.run.head import read_head
    from train_cloud.run.layout import run_url
    from train_cloud.store import open_store

    read = read_head(open_store(run_url(root, run_id)))
    left = run_status(root, run_id).not_exported if read is not None else None
    if left is None or read is None:
        return
    if extras.is_here(_TRAINER):
        from train_cloud.runtime.kept_models import keep

        try:
            for name in keep(open_store(run_url(root, run_id)), read[0].manifest, folder, ()):
                echo(f"exported here, as no session could: {name}")
            return
        except Exception as error:  # noqa: BLE001 - of the user's code or packages: what was fetched is there
            left = {**left, "because": f"{type(error).__name__}: {error}"}
    missing = ", ".join(f"{at:,}" for at in left.get("timesteps", ()))
    fix = "train-cloud export --at … does it by hand, where the run's code and packages are"
    echo(f"not exported: the models of {missing} timesteps, because {left.get('because')}; {fix}", err=True)


def _pull_experiment(group: Group, what: Sequence[str], out: Path) -> None:
    from train_cloud.experiments.files import pull_experiment

    done = pull_experiment(
        group.root, group.name, group.members, what=what, out=out, each=lambda name, size: echo(f"{size:>12,}  {name}")
    )
    fetched, kept, size = (sum(getattr(one, name) for one in done) for name in ("fetched", "kept", "bytes"))
    echo(f"{out}: {fetched} files of {len(done)} runs fetched ({size / 1e6:,.1f} MB), {kept} there already")
    unverified = [f"{one.folder / name}" for one in done for name in one.unverified]
    if unverified:
        echo(f"no manifest names {', '.join(unverified)}: not verified", err=True)


def tensorboard(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run files, run ids, or URLs of runs' folders.", show_default=False),
    ],
    store: options.OptionalStore = None,
    port: Annotated[int, typer.Option("--port", metavar="PORT", help="Of TensorBoard.", min=1, max=65535)] = 6006,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="SECONDS", min=0.1, help="From look to look into the store.")
    ] = 30.0,
) -> None:
    """Show runs in TensorBoard while they train, from the store alone.

    Starts TensorBoard on a temporary folder that follows the store, until Ctrl-C.

    `train-cloud tensorboard run-a run-b --store s3://bucket/train-cloud`
    """
    import tempfile

    from train_cloud.cli.report import find
    from train_cloud.report.pull import tensorboard as show
    from train_cloud.run import layout
    from train_cloud.store import open_store

    found: dict[str, ObjectStore] = {}
    for run in runs:
        root, run_id = find(run, store)
        if run_id is None:
            raise InputError("run", run, "name runs: their files, ids, or folders' URLs")
        found[run_id] = open_store(f"{layout.run_url(root, run_id)}/{layout.ARTIFACTS.rstrip('/')}")
        if next(iter(open_store(layout.run_url(root, run_id)).list()), None) is None:
            raise InputError("run", run, f"no such run under {root}")
    with tempfile.TemporaryDirectory(prefix="train-cloud-tensorboard-") as folder:
        show(found, Path(folder), port=port, interval=seconds, ready=lambda url: echo(f"TensorBoard: {url}"))
