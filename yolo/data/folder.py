# SPDX-License-Identifier: Apache-2.0
"""A YOLO dataset on disk: image folders, image lists and the label file beside each image.

Listing asks each folder once for names, sizes and times; these make the label cache's key, so a
warm start opens no label and no image.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from yolo.data.images import ARRAY_SUFFIX, IMAGE_SUFFIXES, image_shape
from yolo.data.labels import LabelFormat, LabelledImage, LabelRules, parse_labels, to_pixels
from yolo.data.report import Problem, ScanReport
from yolo.data.sample import Instances
from yolo.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

Stat = tuple[int, int]
"""Size in bytes and modification time in ns."""

NO_LABEL: Stat = (-1, -1)


@dataclass(slots=True)
class FileList:
    """The images of a split in sorted order, with what tells a changed file from an old one.

    Attributes:
        paths: n absolute image files.
        stats: (n, 4) int64: size and time of the image, size and time of its label (-1: none).
        problems: what listing found: missing images, labels without image, repeated entries.
    """

    paths: list[str]
    stats: np.ndarray
    problems: list[Problem] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Return a hash that changes with any file of the list."""
        digest = hashlib.blake2b(os.fsencode("\0".join(self.paths)), digest_size=16)
        digest.update(np.ascontiguousarray(self.stats).tobytes())
        digest.update("\n".join(map(str, self.problems)).encode(errors="surrogateescape"))
        return digest.hexdigest()


def label_path(image: str) -> str:
    """Return the label file of an absolute image path.

    The last folder named `images` becomes `labels`; without one the label is beside the image.
    """
    stem = os.path.splitext(image)[0]
    head, found, tail = stem.rpartition(f"{os.sep}images{os.sep}")
    return f"{head}{os.sep}labels{os.sep}{tail}.txt" if found else f"{stem}.txt"


def list_files(sources: Sequence[Path], root: Path) -> FileList:
    """List the images of folders (searched recursively) and of list files.

    Args:
        sources: folders and .txt lists, absolute.
        root: folder that a list's relative lines refer to, the current folder coming second;
            a line that begins with `./` refers to the list's own folder.

    Raises:
        DataError: if a source is neither, or a list isn't UTF-8 text.
    """
    problems: list[Problem] = []
    wanted: dict[str, dict[str, tuple[str, int]] | None] = {}  # folder -> listed names or all
    for source in sources:
        if source.is_dir():
            wanted.update(dict.fromkeys(_walk(os.fspath(source))))
    for source in sources:
        if not source.is_dir():
            for path, line in _read_list(source, root):
                folder, name = os.path.split(path)
                names = wanted.setdefault(folder, {})
                if names is None or name in names:
                    problems.append(
                        Problem(str(source), line, f"{path} is listed already", "duplicate")
                    )
                else:
                    names[name] = (str(source), line)
    entries: list[tuple[str, Stat, Stat]] = []
    for folder in sorted(wanted):
        entries += _list_folder(folder, wanted[folder], problems)
    entries.sort(key=lambda entry: entry[0])
    stats = [(*image, *label) for _, image, label in entries]
    table = np.array(stats, dtype=np.int64).reshape(-1, 4)
    return FileList([entry[0] for entry in entries], table, problems)


def evenly_spaced(count: int, fraction: float) -> np.ndarray:
    """Choose a share of 0..count-1, spread over the whole range, at least one.

    The first part of a sorted list is often one scene or one class; a spread choice isn't, and it
    is as repeatable.

    Args:
        count: how many there are.
        fraction: the share to choose, above 0, at most 1.
    """
    if fraction >= 1 or count == 0:
        return np.arange(count)
    chosen = max(1, round(count * fraction))
    return np.arange(chosen) * count // chosen


def in_threads(
    work: Callable[[T], R], items: Iterable[T], workers: int, chunk: int = 64
) -> Iterator[R]:
    """Map `work` over items in threads, results in the order of the items.

    Threads, not processes: opening files is what takes the time.
    """
    listed = list(items)
    if workers < 2 or len(listed) <= chunk:
        yield from map(work, listed)
        return
    pieces = [listed[i : i + chunk] for i in range(0, len(listed), chunk)]
    pool = ThreadPoolExecutor(workers, thread_name_prefix="yolo-scan")
    try:
        for results in pool.map(lambda piece: [work(item) for item in piece], pieces):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(slots=True)
class FolderSource:
    """Images with label text files, ready to be scanned.

    Attributes:
        files: the images, as listed.
        label_format: what a label row means.
        rules: classes and keypoints of the dataset.
    """

    files: FileList
    label_format: LabelFormat
    rules: LabelRules

    def fingerprint(self) -> str:
        """Return a hash that changes with any image, label or list entry."""
        return self.files.fingerprint()

    def scan(self, report: ScanReport, workers: int) -> Iterator[LabelledImage]:
        """Read headers and labels; report what is wrong and yield what is usable, in order."""
        for problem in self.files.problems:
            report.add(problem)
        items = zip(self.files.paths, self.files.stats[:, 2].tolist(), strict=True)
        for image, problems in in_threads(self._read, items, workers):
            for problem in problems:
                report.add(problem)
            if image is not None:
                yield image

    def _read(self, item: tuple[str, int]) -> tuple[LabelledImage | None, list[Problem]]:
        path, label_size = item
        try:
            shape = image_shape(path)
        except (DataError, FileNotFoundError) as error:
            return None, [Problem(path, 0, str(error).removeprefix(f"{path}: "), "image")]
        if label_size <= 0:
            return LabelledImage(path, shape, Instances.empty()), []
        label = label_path(path)
        try:
            data = Path(label).read_bytes()
        except OSError as error:
            return LabelledImage(path, shape, Instances.empty()), [
                Problem(label, 0, f"the label can't be read: {error.strerror}")
            ]
        instances, problems = parse_labels(data, label, self.label_format, self.rules)
        return LabelledImage(path, shape, to_pixels(instances, shape)), problems


def _walk(folder: str) -> Iterator[str]:
    """Yield a folder and all below it, links followed, none twice."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        yield current
        with os.scandir(current) as entries:
            waiting += sorted(
                entry.path for entry in entries if entry.name[0] != "." and entry.is_dir()
            )


def _read_list(file: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Yield the absolute image paths of a list file, with their 1-based lines."""
    if file.suffix.lower() != ".txt":
        raise DataError(f"{file}: expected a folder of images or a .txt list of them")
    for line, raw in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file}:{line}: expected UTF-8 text, found byte 0x{raw[error.start]:02x}; "
                "save the list as UTF-8"
            ) from None
        if not text:
            continue
        if text.startswith("./"):
            path = file.parent / text
        else:
            path = root / text
            if not path.exists() and Path(text).exists():
                path = Path(text)
        yield os.path.abspath(path), line


def _list_folder(
    folder: str, listed: dict[str, tuple[str, int]] | None, problems: list[Problem]
) -> list[tuple[str, Stat, Stat]]:
    """List one folder: (image path, its stat, its label's stat), all images or the listed ones."""
    images, beside = _scan_folder(folder)
    stems = {os.path.splitext(name)[0] for name in images}
    if listed is not None:
        for name in sorted(set(listed) - set(images)):
            file, line = listed[name]
            reason = f"expected an image, found none at {os.path.join(folder, name)}"
            problems.append(Problem(file, line, reason, "image"))
        images = {name: images[name] for name in images if name in listed}
    label_folder = os.path.dirname(label_path(os.path.join(folder, "x.jpg")))
    labels = beside if label_folder == folder else _scan_folder(label_folder)[1]
    for stem in sorted(set(labels) - stems):
        path = os.path.join(label_folder, f"{stem}.txt")
        if _looks_like_label(path):
            problems.append(Problem(path, 0, f"no image {stem}.* in {folder}", "orphan"))
    return [
        (os.path.join(folder, name), stat, labels.get(os.path.splitext(name)[0], NO_LABEL))
        for name, stat in images.items()
    ]


def _scan_folder(folder: str) -> tuple[dict[str, Stat], dict[str, Stat]]:
    """Return the stats of a folder's images by name, and of its .txt files by stem."""
    images: dict[str, Stat] = {}
    texts: dict[str, Stat] = {}
    arrays: dict[str, Stat] = {}
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return images, texts
    with entries:
        for entry in entries:
            name = entry.name
            stem, suffix = os.path.splitext(name)
            suffix = suffix.lower()
            if name[0] == "." or suffix not in (*IMAGE_SUFFIXES, ARRAY_SUFFIX, ".txt"):
                continue
            try:
                found = entry.stat()
            except OSError:  # a link to nowhere
                continue
            stat = (found.st_size, found.st_mtime_ns)
            if suffix == ".txt":
                texts[stem] = stat
            elif suffix == ARRAY_SUFFIX:
                arrays[name] = stat
            else:
                images[name] = stat
    if arrays:  # an image, too, but not beside a picture of its name: others keep caches so
        pictures = {os.path.splitext(name)[0] for name in images}
        images.update(
            (name, stat)
            for name, stat in arrays.items()
            if os.path.splitext(name)[0] not in pictures
        )
    return images, texts


def _looks_like_label(path: str) -> bool:
    """Tell a label from notes and class lists: its first words are five numbers."""
    try:
        with open(path, "rb") as file:
            words = file.read(4096).split()[:5]
        return len([float(word) for word in words]) == 5
    except (OSError, ValueError):
        return False
