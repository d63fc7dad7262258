"""Scalars into TensorBoard event files that go on over interruptions."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter


class SessionTensorBoard(TensorBoardOutputFormat):
    """SB3's format, writing one file per session.

    :param folder: shared by all sessions of the run
    :param session: number in the file's name, so that files sort in the order in which they were written
    :param timesteps: where this session goes on; TensorBoard hides what an earlier file has beyond it
        (``purge_step``, torch.utils.tensorboard.SummaryWriter)
    """

    def __init__(self, folder: Path, session: int, timesteps: int) -> None:
        self.writer = SummaryWriter(
            str(folder), purge_step=timesteps + 1 if timesteps else None, filename_suffix=f".session-{session:06d}"
        )
        self._is_closed = False
