# SPDX-License-Identifier: Apache-2.0
"""Track ids: which object of a frame is which object of the frames before.

The algorithms are those of the package `trackers` (Roboflow, Apache-2.0): an extra, imported when
the first frame comes. A `Tracker` belongs to one stream of frames and holds all that is remembered
of it. Boxes are matched whatever their class; what else a result holds (masks, keypoints) stays
with its box.

Sources: Zhang et al., ByteTrack, arXiv:2110.06864; Aharon et al., BoT-SORT, arXiv:2206.14651;
Cao et al., OC-SORT, arXiv:2203.14360; Bewley et al., SORT, arXiv:1602.00763; Yang et al., C-BIoU,
arXiv:2211.14317.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo.cfg.load import read_yaml
from yolo.engine.draw import viewable
from yolo.errors import ConfigError, MissingPackageError, nearest

if TYPE_CHECKING:
    from yolo.cfg.schema import PredictConfig
    from yolo.engine.predictor import Predictor
    from yolo.engine.results import Results

LOGGER = logging.getLogger(__name__)

CONF = 0.1
"""The default score floor of tracking: weak detections may belong to objects known already."""

TRACKERS: Mapping[str, str] = {
    "botsort": "BoTSORTTracker",
    "bytetrack": "ByteTrackTracker",
    "cbiou": "CBIoUTracker",
    "ocsort": "OCSORTTracker",
    "sort": "SORTTracker",
}
"""Name -> class in the package `trackers`."""

SETTINGS: Mapping[str, Any] = {"track_activation_threshold": 0.25, "high_conf_det_threshold": 0.25}
"""What differs from the package's defaults, which suit surer detectors: a track starts at the score
that `predict` reports from."""

_MATCH = ("minimum_iou_threshold", "minimum_iou_threshold_first_assoc")
_FAMILIAR: Mapping[str, tuple[str, ...]] = {
    "track_high_thresh": ("high_conf_det_threshold",),
    "new_track_thresh": ("track_activation_threshold",),
    "track_buffer": ("lost_track_buffer",),
    "match_thresh": _MATCH,  # as a distance, 1 - IoU
    "gmc_method": ("cmc_method",),
}
"""Settings as other packages' tracker files call them, and what they are here."""

_UNUSED = frozenset(
    {"track_low_thresh", "fuse_score", "proximity_thresh", "appearance_thresh", "with_reid"}
    | {"model"}
)
"""Further settings of such files, without a counterpart; `conf=` is the lowest score tracked."""

_FIRST_LOOKS = 4  # at the first frame of a stream, more than any default asks for


class Tracker:
    """Follows the objects of one stream.

    Give it to `model.track(frame, tracker=mine)` where several streams take turns: one object a
    stream. It remembers until `reset()`.

    Args:
        name: of the algorithm ("bytetrack", also as "bytetrack.yaml"), or a YAML file with
            `tracker_type` and settings.
        **settings: of the algorithm's class in the package `trackers`, such as
            `lost_track_buffer=60` frames.

    Raises:
        ConfigError: if there is no such algorithm or setting.
        MissingFileError: if there is no such file.
        MissingPackageError: if the package `trackers` isn't installed.
    """

    def __init__(self, name: str | Path = "botsort", **settings: Any) -> None:
        kind, listed = _read(name)
        self.name = kind
        package = _package()
        make = getattr(package, TRACKERS[kind])
        known = inspect.signature(make).parameters
        own = {key: value for key, value in SETTINGS.items() if key in known}
        given = _translate(kind, {**listed, **settings}, known)
        try:
            self._tracker: Any = make(**{**own, **given})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"tracker {kind!r}: {given}: {error}") from None
        # The others warn when they get an image.
        self._sees = bool(getattr(self._tracker, "enable_cmc", False))
        self._started = False

    def reset(self) -> None:
        """Forget all objects; ids begin with 1 again."""
        self._tracker.reset()
        self._started = False

    def update(self, result: Results) -> Results:
        """Return the objects of the stream's next frame that are tracked, with their ids.

        Objects of the first frame have their ids at once, later ones from their second frame on;
        what isn't (yet) sure to be an object is left out.

        Raises:
            ConfigError: if the result has no boxes to follow.
        """
        rows = result.rows
        if rows is None:
            raise ConfigError("track needs boxes to follow, and this model's results have none")
        found = rows.numpy()
        ids = self._match(found, result.orig_img)
        for _ in range(0 if self._started else _FIRST_LOOKS):
            if not len(found) or (ids >= 0).any():
                break
            ids = self._match(found, result.orig_img)
        self._started = True
        kept = np.flatnonzero(ids >= 0)
        return result.tracked(kept, ids[kept] + 1)

    def _match(self, found: Any, image: np.ndarray) -> np.ndarray:
        """Show the tracker one frame; return (N,) ids from 0, -1 for none."""
        from supervision import Detections

        detections = Detections(
            xyxy=np.asarray(found.xyxy, np.float64).reshape(-1, 4),
            confidence=np.asarray(found.conf, np.float64),
            class_id=np.asarray(found.cls, np.int64),
            data={"row": np.arange(len(found))},
        )
        frame = {"frame": viewable(image)} if self._sees else {}
        tracked = self._tracker.update(detections, **frame)
        ids = np.full(len(found), -1, np.int64)
        if len(tracked):  # in another order than they were given
            ids[tracked.data["row"]] = tracked.tracker_id
        return ids


class Follower:
    """Gives every result of a prediction run its ids, on `on_predict_postprocess_end`.

    Args:
        tracker: what to follow with.
        keep: go on across videos; else each video of the source starts afresh.
        asked: what the user asked for by `tracker=`.
    """

    def __init__(self, tracker: Tracker, keep: bool, asked: Any = None) -> None:
        self.tracker, self.keep, self.asked = tracker, keep, asked
        self._stream: int | None = None

    @classmethod
    def for_call(cls, config: PredictConfig, last: Follower | None) -> Follower:
        """Return the follower of a call with these options, after one with `last`."""
        asked = config.tracker
        if isinstance(asked, Tracker):
            return cls(asked, True, asked)
        goes_on = config.persist and last is not None and last.asked == asked
        return cls(last.tracker if last and goes_on else Tracker(asked), config.persist, asked)

    def __call__(self, predictor: Predictor) -> None:
        """Replace the results of the batch at hand by tracked ones."""
        frames = zip(predictor.frames, predictor.results, strict=True)
        for i, (frame, result) in enumerate(frames):
            stream = frame.place if frame.is_video else 0  # still images are one stream
            if self._stream not in (None, stream) and not self.keep:
                self.tracker.reset()
            self._stream = stream
            predictor.results[i] = self.tracker.update(result)


def _package() -> Any:
    try:
        import trackers
    except ImportError as error:
        raise MissingPackageError(
            "track needs the package `trackers`: pip install 'plainyolo[track]'"
        ) from error
    return trackers


def _read(name: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the name of an algorithm and the settings that a file gives."""
    settings: dict[str, Any] = {}
    text = str(name)
    if Path(text).is_file() or not re.fullmatch(r"\w+(\.ya?ml)?", text):
        settings = {str(key): value for key, value in read_yaml(text).items()}
        text = str(settings.pop("tracker_type", "nothing"))
        known = f"{name}: tracker_type: "
    else:
        text, known = text.rpartition(".")[0] or text, "tracker="
    if text not in TRACKERS:
        close = nearest(text, TRACKERS)
        raise ConfigError(
            f"{known}{text!r}: expected one of {', '.join(TRACKERS)}, or a YAML file that names "
            f"one as tracker_type. {close}".rstrip()
        )
    return text, settings


def _translate(kind: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under the names that the algorithm's class knows."""
    settings: dict[str, Any] = {}
    unused = []
    for name, value in given.items():
        target = next((new for new in _FAMILIAR.get(name, (name,)) if new in known), None)
        if target is not None:
            settings[target] = 1 - value if name == "match_thresh" else value
        elif name in _UNUSED or name in _FAMILIAR:
            unused.append(name)
        else:
            raise ConfigError(
                f"tracker {kind!r} has no setting {name!r}. {nearest(name, known)} "
                f"Known: {', '.join(known)}"
            )
    if unused:
        LOGGER.info("tracker '%s': without effect here: %s", kind, ", ".join(unused))
    return settings
