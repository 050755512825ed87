# SPDX-License-Identifier: Apache-2.0
"""Finding images and their labels on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from yolo.data.folder import label_path, list_files, written_whole
from yolo.errors import DataError


def touch(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/d/images/a.b.png", "/images/d/labels/a.b.txt"),
        ("/d/train/a.jpg", "/d/train/a.txt"),
        ("/d/my_images/a.jpg", "/d/my_images/a.txt"),
        ("/d/images/images.jpg", "/d/labels/images.txt"),
    ],
)
def test_label_path(image: str, label: str) -> None:
    assert label_path(image) == label


def test_folders_are_searched_in_a_fixed_order(tmp_path: Path) -> None:
    touch(tmp_path, "images/b.jpg", "images/a/z.PNG", "images/a.webp", "images/c/d/b.jpg")
    touch(tmp_path, "images/.hidden.jpg", "images/.git/x.jpg", "images/note.md")
    touch(tmp_path, "labels/b.txt", "labels/c/d/b.txt", text="0 .5 .5 .1 .1")
    files = list_files([tmp_path / "images"], tmp_path)
    names = [os.path.relpath(path, tmp_path / "images") for path in files.paths]
    assert names == sorted(["a.webp", "a/z.PNG", "b.jpg", "c/d/b.jpg"])
    assert (files.stats[:, 2] > 0).tolist() == [False, False, True, True]
    assert files.problems == []


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/part").symlink_to(tmp_path / "store")
    (tmp_path / "store/loop").symlink_to(tmp_path / "images")
    (tmp_path / "images/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert [Path(p).name for p in list_files([tmp_path / "images"], tmp_path).paths] == ["a.jpg"]


def test_array_is_an_image_unless_it_is_a_cache_of_one(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.npy", "b.npy")
    paths = list_files([tmp_path], tmp_path).paths
    assert [Path(p).name for p in paths] == ["a.jpg", "b.npy"]


def test_list_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "lists/images/c.jpg", "cwd/images/d.jpg")
    touch(
        tmp_path, "lists/l.txt", text="images/a.jpg\n\n./images/c.jpg\nimages/d.jpg\nimages/x.jpg\n"
    )
    absolute = str(tmp_path / "images/b.jpg")
    with open(tmp_path / "lists/l.txt", "a", encoding="utf-8") as file:
        file.write(f"{absolute}\n{absolute}\n")
    monkeypatch.chdir(tmp_path / "cwd")
    files = list_files([tmp_path / "lists/l.txt"], tmp_path)
    assert sorted(Path(path).name for path in files.paths) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert [(p.line, p.kind) for p in files.problems] == [(7, "duplicate"), (5, "image")]
    # a folder that holds the listed images already
    both = list_files([tmp_path / "images", tmp_path / "lists/l.txt"], tmp_path)
    assert len(both.paths) == len(set(both.paths)) == 4


def test_list_must_be_text(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: expected a folder of images or a \.txt list"):
        list_files([tmp_path / "a.jpg"], tmp_path)
    (tmp_path / "l.txt").write_bytes(b"a.jpg\n\xff.jpg\n")
    with pytest.raises(DataError, match=r"l\.txt:2: expected UTF-8 text, found byte 0xff"):
        list_files([tmp_path / "l.txt"], tmp_path)


def test_label_without_image_is_named_but_not_every_text_file(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg")
    touch(tmp_path, "labels/a.txt", "labels/lost.txt", text="0 .5 .5 .1 .1")
    touch(tmp_path, "labels/classes.txt", text="cat\ndog")
    (tmp_path / "l.txt").write_text("images/a.jpg", encoding="utf-8")
    for source in (tmp_path / "images", tmp_path / "l.txt"):
        problems = list_files([source], tmp_path).problems
        assert [(Path(p.file).name, p.kind) for p in problems] == [("lost.txt", "orphan")]


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with pytest.raises(FileNotFoundError), written_whole(target) as waiting:
        (waiting / "x").rename(target)
    assert os.listdir(tmp_path / "a") == []
    target.mkdir()
    for name in ("first", "second"):
        with written_whole(target) as waiting:
            (waiting / name).touch()
    assert os.listdir(target) == ["first"]
    assert os.listdir(tmp_path / "a") == ["b"]


def test_fingerprint_sees_every_change(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg")
    seen = set()

    def look() -> None:
        before = len(seen)
        seen.add(list_files([tmp_path / "images"], tmp_path).fingerprint())
        assert len(seen) == before + 1

    look()
    touch(tmp_path, "labels/a.txt", text="0 .5 .5 .1 .1")
    look()
    os.utime(tmp_path / "labels/a.txt", ns=(5, 5))
    look()
    os.utime(tmp_path / "images/b.jpg", ns=(5, 5))
    look()
    (tmp_path / "images/b.jpg").rename(tmp_path / "images/c.jpg")
    look()
    assert list_files([tmp_path / "images"], tmp_path).fingerprint() in seen
