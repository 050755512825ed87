# SPDX-License-Identifier: Apache-2.0
"""Images on disk: folders, lists, and the label file beside each image.

Listing asks each folder once for names, sizes and times; these make the label cache's key, so a
warm start opens no label and no image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from yolo.data.images import ARRAY_SUFFIX, IMAGE_SUFFIXES
from yolo.data.labels import LabelFormat, LabelledImage, LabelRules, parse_labels, to_pixels
from yolo.data.masks import read_mask_labels
from yolo.data.report import Problem, ScanReport
from yolo.data.scan import Label, evenly_spaced, scan_files
from yolo.errors import DataError

Stat = tuple[int, int]
"""Size in bytes and modification time in ns."""

NO_LABEL: Stat = (-1, -1)

_SUFFIXES = {suffix[1:] for suffix in (*IMAGE_SUFFIXES, ARRAY_SUFFIX, ".txt")}


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `folder` when it is whole.

    Where another process was faster, its folder stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    waiting = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    waiting.mkdir()
    try:
        yield waiting
        with suppress(OSError):
            folder.rmdir()  # an empty folder gives way
        try:
            os.rename(waiting, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


@dataclass(slots=True)
class FileSource:
    """The images of a split in sorted order, with what tells a changed file from an old one.

    Attributes:
        paths: n absolute image files.
        stats: (n, 4) int64: size and time of the image, size and time of its label (-1: none).
        problems: what listing found: missing images, labels without image, repeated entries.
        label: fills in an image's objects; it is told the size of the label file, -1 for none.
    """

    paths: list[str]
    stats: np.ndarray
    problems: list[Problem]
    label: Label[int]

    def part(self, fraction: float) -> FileSource:
        """Return a share of the images, spread evenly, with all findings."""
        rows = evenly_spaced(len(self.paths), fraction)
        return replace(self, paths=[self.paths[i] for i in rows], stats=self.stats[rows])

    def fingerprint(self) -> str:
        """Return a hash that changes with any image, label or list entry."""
        digest = hashlib.blake2b(os.fsencode("\0".join(self.paths)), digest_size=16)
        digest.update(np.ascontiguousarray(self.stats).tobytes())
        digest.update("\n".join(map(str, self.problems)).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def scan(self, report: ScanReport, workers: int) -> Iterator[LabelledImage]:
        """Read headers and labels; report what is wrong and yield what is usable, in order."""
        for problem in self.problems:
            report.add(problem)
        items = zip(self.paths, self.stats[:, 2].tolist(), strict=True)
        yield from scan_files(items, self.label, report, workers)


def label_path(image: str) -> str:
    """Return the label file of an absolute image path.

    The last folder named `images` becomes `labels`; without one the label is beside the image.
    """
    stem = os.path.splitext(image)[0]
    head, found, tail = stem.rpartition(f"{os.sep}images{os.sep}")
    return f"{head}{os.sep}labels{os.sep}{tail}.txt" if found else f"{stem}.txt"


def list_files(
    sources: Sequence[Path], root: Path, label: Label[int] = lambda *_: []
) -> FileSource:
    """List the images of folders (searched recursively) and of list files.

    Args:
        sources: folders and .txt lists, absolute.
        root: folder that a list's relative lines refer to, the current folder coming second;
            a line that begins with `./` refers to the list's own folder.
        label: see `FileSource`.

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
                    reason = f"{path} is listed already"
                    problems.append(Problem(str(source), line, reason, "duplicate"))
                else:
                    names[name] = (str(source), line)
    entries: list[tuple[str, Stat, Stat]] = []
    for folder in sorted(wanted):
        entries += _list_folder(folder, wanted[folder], problems)
    entries.sort(key=lambda entry: entry[0])
    stats = [(*image, *label) for _, image, label in entries]
    table = np.array(stats, dtype=np.int64).reshape(-1, 4)
    return FileSource([entry[0] for entry in entries], table, problems, label)


def label_reader(label_format: LabelFormat, rules: LabelRules) -> Label[int]:
    """Return what reads an image's label file: rows of text, or a mask (`yolo.data.masks`)."""

    def label(image: LabelledImage, size: int) -> list[Problem]:
        file = label_path(image.path)
        try:
            data = Path(file).read_bytes() if size > 0 else b""
        except FileNotFoundError:
            return read_mask_labels(f"{file[:-4]}.png", image, label_format.kinds, rules)
        except OSError as error:
            return [Problem(file, 0, f"the label can't be read: {error.strerror}")]
        instances, problems = parse_labels(data, file, label_format, rules)
        image.instances = to_pixels(instances, image.shape)
        return problems

    return label


def _walk(folder: str) -> Iterator[str]:
    """Yield a folder and all below it, links followed, none twice."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real not in seen:
            seen.add(real)
            yield current
            with os.scandir(current) as entries:
                waiting += sorted(e.path for e in entries if e.name[0] != "." and e.is_dir())


def _read_list(file: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Yield the absolute image paths of a list file, with their 1-based lines."""
    if file.suffix.lower() != ".txt":
        raise DataError(f"{file}: expected a folder of images or a .txt list of them")
    for line, raw in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            found = f"byte 0x{raw[error.start]:02x}; save the list as UTF-8"
            raise DataError(f"{file}:{line}: expected UTF-8 text, found {found}") from None
        if text:
            path = file.parent / text if text.startswith("./") else root / text
            yield os.path.abspath(path if path.exists() or not Path(text).exists() else text), line


def _list_folder(
    folder: str, listed: dict[str, tuple[str, int]] | None, problems: list[Problem]
) -> list[tuple[str, Stat, Stat]]:
    """List one folder: (image path, its stat, its label's stat), all images or the listed ones."""
    images, labels = _scan_folder(folder)
    stems = set(map(_stem, images))
    if listed is not None:
        for name in sorted(set(listed) - set(images)):
            file, line = listed[name]
            reason = f"expected an image, found none at {os.path.join(folder, name)}"
            problems.append(Problem(file, line, reason, "image"))
        images = {name: images[name] for name in images if name in listed}
    label_folder = os.path.dirname(label_path(os.path.join(folder, "x.jpg")))
    masks: dict[str, Stat] = {}
    if label_folder != folder:
        pictures, labels = _scan_folder(label_folder)
        masks = {name[:-4]: stat for name, stat in pictures.items() if name.endswith(".png")}
    for stem in sorted(set(labels) - stems):
        path = os.path.join(label_folder, f"{stem}.txt")
        if _looks_like_label(path):
            problems.append(Problem(path, 0, f"no image {stem}.* in {folder}", "orphan"))
    labels = {**masks, **labels}
    start = os.path.join(folder, "")
    return [(start + k, stat, labels.get(_stem(k), NO_LABEL)) for k, stat in images.items()]


def _scan_folder(folder: str) -> tuple[dict[str, Stat], dict[str, Stat]]:
    """Return the stats of a folder's images by name, and of its .txt files by stem."""
    images: dict[str, Stat] = {}
    texts: dict[str, Stat] = {}
    entries: list[os.DirEntry[str]] = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:  # few words: a million times they are most of a warm start
        name = entry.name
        stem, _, suffix = name.rpartition(".")
        suffix = suffix.lower()
        if suffix not in _SUFFIXES or not stem or name[0] == ".":
            continue
        try:
            stat = entry.stat()
        except OSError:  # a link to nowhere
            continue
        facts = (stat.st_size, stat.st_mtime_ns)
        if suffix == "txt":
            texts[stem] = facts
        else:
            images[name] = facts
    # An array is an image, too, but not beside a picture of its name: others keep caches so.
    arrays = {name for name in images if name.lower().endswith(ARRAY_SUFFIX)}
    pictures = {_stem(name) for name in images if name not in arrays} if arrays else set()
    for name in arrays:
        if _stem(name) in pictures:
            del images[name]
    return images, texts


def _stem(name: str) -> str:
    """Return a file's name without its suffix, which it has."""
    return name[: name.rindex(".")]


def _looks_like_label(path: str) -> bool:
    """Tell a label from notes and class lists: its first words are five numbers."""
    try:
        with open(path, "rb") as file:
            words = file.read(4096).split()[:5]
        return len([float(word) for word in words]) == 5
    except (OSError, ValueError):
        return False
