# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from yolo.engine.folders import free_stem, run_folder


def test_run_folders_count_up_and_stay_under_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [run_folder(None, None, "any", "train").relative_to(tmp_path) for _ in range(3)]
    assert [str(n) for n in names] == [f"runs/any/train{s}" for s in ("", "-2", "-3")]
    assert run_folder("p", "n", "any", "val") == tmp_path / "p" / "n"
    assert run_folder("p", "n", "any", "val", exist_ok=True) == tmp_path / "p" / "n"


def test_two_runs_that_start_at_once_get_two_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: run_folder(tmp_path, None, "any", "val"), range(24)))
    assert len(set(found)) == 24
    assert all(folder.is_dir() for folder in found)


def test_stems_are_given_once():
    taken = set()
    assert [free_stem(stem, taken) for stem in ("a", "a", "a-2", "a")] == [
        "a",
        "a-2",
        "a-2-2",
        "a-3",
    ]
