"""Where demonstrations are read from: a file or folder that came with the code, S3, or Minari's own folder."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_cloud.config import RunFile
from train_cloud.config.pretraining import Pretraining as Settings
from train_cloud.errors import InputError, ObjectMissing, StoreForbidden
from train_cloud.snapshot import is_pretraining
from train_cloud.store import open_store
from train_cloud.whole_file import write_whole

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from train_cloud.envs.demonstrations import Demonstrations
    from train_cloud.sb3.pretraining import Pretraining
    from train_cloud.sb3.scalars import SessionTensorBoard

#: Figures of a pretraining's epochs, and the policy as it was after them: a ``state_dict`` for ``torch.load``.
FIGURES, CLONED = "pretraining.json", "bc_checkpoint.pt"

log = logging.getLogger(__name__)
_FIELD = "pretraining.demonstrations"


def pretraining_of(config: RunFile, model: BaseAlgorithm, facts: Mapping[str, Any]) -> Pretraining | None:
    """The pretraining that a run begins with; None where it has none.

    :param model: just built
    :param facts: of the newest checkpoint; where they say that the pretraining is over, nothing is read
    :raises InputError: the algorithm cannot be pretrained, or the demonstrations do not fit
    """
    if config.pretraining is None:
        return None
    from train_cloud.sb3.pretraining import Pretraining

    wanted = not facts or is_pretraining(facts)
    demonstrations = read_demonstrations(config.pretraining) if wanted else None
    pretraining = Pretraining(config, model, demonstrations)
    if demonstrations is not None:
        steps, episodes = len(demonstrations), len(demonstrations.starts)
        log.info("pretraining on %d steps of %d episodes: %s", steps, episodes, demonstrations.source)
    return pretraining


class Pretrained:
    """What a run's readers see of its pretraining.

    :param folder: of the run's artifacts
    :param resumed_at: timesteps; what was logged at steps beyond it, epochs too, was cut away when the session began
    :ivar board: where scalars go, once that is known
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        self._folder, self._resumed_at = folder, resumed_at
        self.board: SessionTensorBoard | None = None
        self._shown = 0

    def show(self, epochs: Sequence[Mapping[str, float]], policy: bytes | None) -> None:
        """Scalars of the epochs that were not shown yet, a file with all of them, and the cloned policy."""
        for figures in epochs[self._shown :]:
            epoch = int(figures["epoch"])
            if self.board is not None and epoch > self._resumed_at:
                named = {f"pretrain/{name}": value for name, value in figures.items() if name != "epoch"}
                self.board.add_scalars(named, epoch)
        self._shown = len(epochs)
        if epochs:
            body = json.dumps({"epochs": list(epochs)}, indent=1) + "\n"
            write_whole(self._folder / FIGURES, body.encode())
        if policy is not None:
            write_whole(self._folder / CLONED, policy)


def read_demonstrations(settings: Settings) -> Demonstrations:
    """
    :raises InputError: they are not there, damaged, or of another kind
    :raises StoreError: S3 does not answer
    """
    from train_cloud.envs.demonstrations import minari_folder, read

    source = settings.demonstrations
    if settings.minari is not None:
        return read(minari_folder(settings.minari), source)
    if settings.path is not None:
        return read(settings.path, source)
    with tempfile.TemporaryDirectory() as folder:
        return read(_fetched(source, Path(folder)), source)


def _fetched(source: str, folder: Path) -> Path:
    """Objects from S3, one or all below a folder, in files below ``folder``."""
    above, _, name = source.rstrip("/").rpartition("/")
    try:
        if name.endswith(".npz"):
            path = folder / name
            path.write_bytes(open_store(above).get(name).body)
            return path
        store = open_store(source.rstrip("/"))
        keys = [info.key for info in store.list()]
        if not keys:
            raise ObjectMissing(source)
        for key in keys:
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(key).body)
        return folder
    except ObjectMissing as error:
        raise InputError(
            _FIELD, source, "there is nothing of this name: name a .npz object, or a folder of one"
        ) from error
    except StoreForbidden as error:
        raise InputError(_FIELD, source, f"it may not be read: {error}") from error
