"""evaluate: play a checkpoint's model, and keep what was found out.

A process of its own: the training's random generators, environments and memory are out of its reach.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from train_cloud import child_process
from train_cloud.artifacts import tensorboard
from train_cloud.checkpoint import find, restore, signing
from train_cloud.checkpoint.manifest import Manifest
from train_cloud.checkpoint.survey import committed
from train_cloud.config import RunFile, load_run_file
from train_cloud.config.current import training
from train_cloud.evaluate.results import Evaluation, Results, best, results, scalars, summarise
from train_cloud.report.recorded_run_file import recorded_run_file
from train_cloud.run import layout
from train_cloud.run.session import now
from train_cloud.runtime.evaluations import RESULTS, is_recorded, model_checksum, recorded
from train_cloud.runtime.masking import hide_variables
from train_cloud.store import ObjectStore, open_store
from train_cloud.whole_file import write_whole

BEST = "best_model"
#: Beside the training, which has the machine first.
_NICENESS = 10
_PARTS = {"model", "skeleton", "normalizer", "lock", "run"}


def evaluate(
    root: str,
    run: Path | str,
    *,
    out: Path,
    at: int | None = None,
    events: Path | None = None,
    record: bool = False,
    overrides: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a preserved checkpoint as the run file's section ``evaluation`` says.

    :param root: store root
    :param run: the run file, or the run's id: then what its own records say
    :param out: artifact folder: results, videos and routes go there
    :param at: timesteps of the checkpoint; None for the newest
    :param events: TensorBoard folder of the run; None writes no scalars
    :param record: keep the results with the run, and the model if it is the best so far
    :raises InputError: there is no such checkpoint, or the environment cannot be made
    :raises CorruptCheckpoint: what is stored is not what was committed
    """
    written = load_run_file(run, overrides) if isinstance(run, Path) else None
    signing.use(written.signing_key if written is not None else None)
    run_id = written.run_id if written is not None else str(run)
    run_store = open_store(layout.run_url(root, run_id))
    _, newest = committed(run_store, run_id)
    manifest = find(run_store, newest, at)
    config = written or recorded_run_file(run_store, manifest, run_id, overrides, base=Path().absolute(), to_play=True)
    os.environ.update(config.env)
    hide_variables(config)
    if record and hasattr(os, "nice"):
        os.nice(_NICENESS)
    with child_process.code_on_path(config.code.folder), training(config):
        return evaluate_checkpoint(config, run_store, manifest, out=out, events=events, record=record)


def evaluate_checkpoint(
    config: RunFile, store: ObjectStore, manifest: Manifest, *, out: Path, events: Path | None, record: bool
) -> Evaluation:
    """The same, for whoever has read run file and manifest."""
    snapshot = restore(store, manifest, parts=_PARTS)
    if record and is_recorded(store, snapshot):
        earlier = recorded(store)
        write_results(results(config.run_id, earlier), out)
        return next(each for each in earlier if each.timesteps == manifest.timesteps)

    from train_cloud.evaluate import rendering
    from train_cloud.evaluate.play import Player, check, play
    from train_cloud.runtime.exporting import write_export

    earlier = recorded(store) if record else []
    last = earlier[-1].rendering if earlier else None
    with rendering.applied(rendering.candidates(os.environ, last)[0]):  # some read it when they are imported
        check(config)
    settings = config.evaluated
    environment = settings.environment or config.environment
    assert environment is not None
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_export(
            snapshot,
            model,
            run_yaml=snapshot.parts["run"].blob.decode(),
            lock=snapshot.parts["lock"].blob.decode(),
            environment=environment.model_dump(mode="json"),
        )
        performance = play(
            Player(
                run_id=config.run_id,
                timesteps=manifest.timesteps,
                model=model,
                algorithm=snapshot.facts["algorithm"]["class"],
                environment=environment,
                evaluation=settings,
                code_folder=config.code.folder,
                out=out,
                rendering=last,
            )
        )
        episodes = performance.episodes
        evaluation = Evaluation(
            timesteps=manifest.timesteps,
            model=model_checksum(snapshot.parts["model"]),
            at=now(),
            seconds=time.monotonic() - began,
            deterministic=settings.deterministic,
            overall=summarise(episodes),
            categories={name: summarise({name: played}) for name, played in episodes.items()},
            episodes=tuple(episode for played in episodes.values() for episode in played),
            warnings=performance.warnings,
            rendering=None if performance.rendering is None else dict(performance.rendering),
        )
        found = results(config.run_id, [*earlier, evaluation])
        if record and best(found.evaluations) == evaluation:
            _replace(model, out / BEST, evaluation)
    if events is not None:
        tensorboard.write_scalars(_event_file(events, manifest.timesteps), manifest.timesteps, scalars(evaluation))
    if record:
        # Last: whatever a kill has left out until here is made again.
        body = evaluation.model_dump_json(by_alias=True).encode()
        store.put(layout.evaluation_key(manifest.timesteps), body)
    write_results(found, out)
    return evaluation


def write_results(found: Results, out: Path) -> None:
    write_whole(out / RESULTS, (found.model_dump_json(by_alias=True, indent=2) + "\n").encode())


def _event_file(events: Path, timesteps: int) -> Path:
    """One for each evaluation, named after it: played again after a kill, it takes its own place."""
    return events / "evaluation" / f"events.out.tfevents.{timesteps:012d}.evaluation"


def _replace(model: Path, folder: Path, evaluation: Evaluation) -> None:
    """The best model so far takes the former one's place, whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(model, unfinished)
    (unfinished / "evaluation.json").write_text(evaluation.model_dump_json(by_alias=True, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
