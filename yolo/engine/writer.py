# SPDX-License-Identifier: Apache-2.0
"""Files and windows of a prediction run. The run folder is made when the first file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.data.images import cv2
from yolo.data.sources import Frame
from yolo.engine.folders import free_stem, run_folder
from yolo.engine.records import safe_name, write_image
from yolo.engine.results import Results
from yolo.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from yolo.cfg.schema import PredictConfig

FALLBACK_FPS = 30.0


class Writer:
    """Writes what the options of one run ask for.

    Pictures go to `<stem>.jpg` (`-2` where a stem comes again), videos to `<stem>.avi` (MJPG, which
    every OpenCV build can write), frames to `<stem>_frames/<stem>_<n>.jpg`, labels to
    `labels/<stem>[_<n>].txt`, cut-outs to `crops/<class>/`.

    Args:
        config: options of the run.
        task: name of the task, part of the default run folder.

    Attributes:
        mode: default name of the run folder.
        folder: the run folder, None until something is written.
        picture: the last one drawn.
        label_file: the last one written.
    """

    def __init__(self, config: PredictConfig, task: str) -> None:
        self.config = config
        self.task = task
        self.mode = "predict"
        self.folder: Path | None = None
        self.picture: np.ndarray | None = None
        self.label_file: Path | None = None
        self._taken: set[str] = set()
        self._item, self._stem = (0, ""), ""  # at hand
        self._video: Any = None

    @property
    def wanted(self) -> bool:
        """Whether anything is to be written."""
        config = self.config
        return bool(config.save or config.save_frames or config.save_txt or config.save_crop)

    def write(self, frame: Frame, result: Results) -> None:
        """Write the files of one result.

        Raises:
            DataError: if a video can't be written.
        """
        folder = self._ensure_folder()
        result.save_dir = str(folder)
        stem = self._stem_of(frame)
        numbered = f"{stem}_{frame.number}" if frame.is_video else stem
        if self.config.save_txt:
            path = self.label_file = folder / "labels" / f"{numbered}.txt"
            path.unlink(missing_ok=True)  # save_txt appends; a new run starts afresh
            result.save_txt(path, save_conf=self.config.save_conf)
        if self.config.save_crop:
            result.save_crop(folder / "crops", f"{numbered}.jpg")
        frames = self.config.save_frames and frame.is_video
        if not (self.config.save or frames):
            return
        picture = self._draw(result)
        if frames:
            write_image(folder / f"{stem}_frames" / f"{numbered}.jpg", picture)
        if self.config.save and frame.is_video:
            self._write_video(folder / f"{stem}.avi", frame, picture)
        elif self.config.save:
            write_image(folder / f"{stem}.jpg", picture)

    def show(self, frame: Frame, result: Results) -> None:
        """Show one result in a window.

        Raises:
            MissingPackageError: if OpenCV has no windows here.
        """
        try:
            cv2.imshow(frame.path, self._draw(result))
            cv2.waitKey(1 if frame.is_video else 300)
        except cv2.error as error:
            raise MissingPackageError(
                "show=True needs a display and an OpenCV with windows (opencv-python, not "
                f"-headless); use save=True, or result.plot() in a notebook. OpenCV says: {error}"
            ) from error

    def close(self) -> None:
        """Finish the video being written."""
        if self._video is not None:
            self._video.release()
            self._video = None

    def _draw(self, result: Results) -> np.ndarray:
        config = self.config
        picture: np.ndarray = result.plot(
            conf=config.show_conf,
            labels=config.show_labels,
            boxes=config.show_boxes,
            line_width=config.line_width,
        )
        self.picture = picture
        return picture

    def _ensure_folder(self) -> Path:
        if self.folder is None:
            config = self.config
            self.folder = run_folder(
                config.project, config.name, self.task, self.mode, config.exist_ok
            )
        return self.folder

    def _stem_of(self, frame: Frame) -> str:
        """Return the file stem of a frame's item, not used by another item of this run."""
        item = (frame.place, frame.path)
        if item != self._item:
            self.close()  # the video of the item before
            live = frame.live or "://" in frame.path
            base = safe_name(frame.path if live else Path(frame.path).stem)
            self._item, self._stem = item, free_stem(base, self._taken)
        return self._stem

    def _write_video(self, path: Path, frame: Frame, picture: np.ndarray) -> None:
        if self._video is None:
            height, width = picture.shape[:2]
            fps = (frame.fps or FALLBACK_FPS) / self.config.vid_stride
            code = cv2.VideoWriter.fourcc(*"MJPG")
            self._video = cv2.VideoWriter(str(path), code, max(fps, 1.0), (width, height))
            if not self._video.isOpened():
                self._video = None
                raise DataError(f"{path}: OpenCV can't write this video; use save_frames=True")
        self._video.write(picture)
