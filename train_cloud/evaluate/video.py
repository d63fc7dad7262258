"""Episodes as H.264 MP4 files that every browser plays."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np

from train_cloud.config.evaluation import Video
from train_cloud.evaluate.rendering import Seen, as_picture

_FPS = 30


class Film:
    """Encodes frame by frame, so that a long episode takes no memory; its name is known only at the end.

    :param folder: where it will lie; earlier films of the same episode there go when this one is closed
    """

    def __init__(self, folder: Path, settings: Video, env: gymnasium.Env[Any, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._unfinished = folder / ".film.unfinished"  # a name that is not sent, see artifacts/sync.py
        self._settings = settings
        self._fps = settings.fps or env.metadata.get("render_fps") or _FPS
        self._writer: Generator[None, Any, None] | None = None
        self.seen = Seen()
        self._lacks = ""

    @property
    def frames(self) -> int:
        """Taken so far."""
        return self.seen.frames

    def add(self, env: gymnasium.Env[Any, Any]) -> None:
        """One frame, of the environment as it stands."""
        if self._lacks or self.frames >= self._settings.max_steps:
            return
        try:
            frame = as_picture(env.render())
        except ValueError as error:
            self._lacks = str(error)
            return
        self.seen.add(frame)
        turned = np.rot90(frame, -self._settings.rotate // 90)
        height, width = (side // 2 * 2 for side in turned.shape[:2])  # yuv420p has a colour for each four pixels
        if self._writer is None:
            self._writer = imageio_ffmpeg.write_frames(
                str(self._unfinished),
                (width, height),
                fps=self._fps,
                codec="libx264",
                macro_block_size=1,
                ffmpeg_log_level="error",
                output_params=["-f", "mp4"],
            )
            self._writer.send(None)
        self._writer.send(np.ascontiguousarray(turned[:height, :width]))

    def close(self, name: str, warnings: list[str]) -> Path | None:
        """Finish the file under its name; None, and a warning, where there was no frame. None where there is nothing to
        be seen, too, but without: another driver may do better.
        """
        if self._writer is not None:
            self._writer.close()
        if self._lacks or self.seen.blank or not self._unfinished.exists():
            if not self.seen.blank:
                warnings.append(f"no video {name}: {self._lacks or 'nothing was rendered'}")
            self._unfinished.unlink(missing_ok=True)
            return None
        for earlier in self._folder.glob(f"{name.rsplit('_', 1)[0]}_*.mp4"):
            earlier.unlink()
        return self._unfinished.rename(self._folder / f"{name}.mp4")
