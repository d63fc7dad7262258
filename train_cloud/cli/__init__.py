"""The ``train-cloud`` command. Commands import what they need when they run; only this package prints."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from train_cloud import extras, hash_seed
from train_cloud.cli import (
    account,
    architectures,
    artifacts,
    compare,
    data,
    evaluate,
    files,
    init,
    launch,
    pipeline,
    record,
    rehearse,
    report,
    runs,
    sagemaker,
    train,
    worker,
)
from train_cloud.errors import Findings, Interrupted, TrainCloudError
from train_cloud.installed import is_installed
from train_cloud.safe_text import adopt, clean, guarded, show_traceback

EXIT_CODES = {
    0: "completed",
    75: "interrupted: everything is committed, the same command goes on",
    64: "bad input: nothing was changed",
    73: "fenced: a newer worker has the run",
    1: "failed",
}

#: What they do depends on the hash seed, and must be the same each time.
_REPEATABLE = ("train", "evaluate", "record")

app = typer.Typer(
    name="train-cloud",
    help="Train RL agents on interruptible machines: exact resume, one writer, and the money stops.\n\n"
    "Train here, stop it with Ctrl-C, run it again, and it goes on with the very next step:\n\n"
    "`train-cloud train examples/pendulum_sac.yaml --store ./store`",
    epilog="**Exit codes**\n\n" + "\n".join(f"- `{code:>2}` {meaning}" for code, meaning in EXIT_CODES.items()),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _ToStderr(logging.Handler):
    """Looks ``sys.stderr`` up at each line: while the progress bar lives, it puts something else there."""

    def emit(self, record: logging.LogRecord) -> None:
        print(clean(self.format(record)), file=sys.stderr, flush=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        import train_cloud

        typer.echo(f"train-cloud {train_cloud.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    # systemd stamps every line itself.
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(handlers=[_ToStderr()], level=logging.WARNING, format=f"{stamp}%(message)s", datefmt="%H:%M:%S")
    logging.getLogger("train_cloud").setLevel(logging.INFO)


for module in (
    init,
    train,
    launch,
    record,
    files,
    architectures,
    rehearse,
    pipeline,
    report,
    compare,
    artifacts,
    data,
    evaluate,
    runs,
    account,
    worker,
    sagemaker,
):
    module.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Every error raised on purpose becomes one line on stderr, here only.

    :param arguments: by default this process's own; then it may be started again with a fixed hash seed
    """
    with guarded():
        try:
            return _run(arguments)
        except Exception:  # noqa: BLE001 - shown as Python shows it, but no secret and nothing that a terminal obeys
            show_traceback(*sys.exc_info())
            return 1


def _run(arguments: Sequence[str] | None) -> int:
    try:
        adopt()
        if arguments is None and next((word for word in sys.argv[1:] if word[:1] != "-"), None) in _REPEATABLE:
            hash_seed.fix()
        app(args=arguments, prog_name="train-cloud")
    except TrainCloudError as error:
        return _refused(error)
    except ModuleNotFoundError as error:
        if (missing := extras.explained(error)) is None:
            raise
        return _refused(missing)
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if _in_code_of_the_users(error):
            raise
        # A folder that is full, may not be written, or is none: nothing of it is a defect of the program.
        where = error.filename or "a file that is to be written"
        print(clean(f"train-cloud: {where}: {error.strerror or error}"), file=sys.stderr)
        return 1
    except SystemExit as leaving:
        # 2 is typer's word for a usage error, 130 for Ctrl-C; both have a code of ours.
        codes: dict[object, int] = {None: 0, 2: 64, 130: Interrupted.exit_code}
        return codes.get(leaving.code, leaving.code if isinstance(leaving.code, int) else 1)
    return 0


def _refused(error: TrainCloudError) -> int:
    for each in error.every if isinstance(error, Findings) else (error,):
        print(f"train-cloud: {' '.join(clean(str(each)).split())}", file=sys.stderr)
    return error.exit_code


def _in_code_of_the_users(error: BaseException) -> bool:
    """Whether it passed through a file that is neither ours nor Python's nor of an installed package."""
    ours = Path(__file__).parents[1]
    places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return not all(
        place.startswith("<")
        or is_installed(place)
        or Path(place).resolve().is_relative_to(ours)
        or Path(place).name == "train-cloud"  # the command itself
        for place in places
    )
