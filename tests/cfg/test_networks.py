# SPDX-License-Identifier: Apache-2.0
"""Finding network descriptions by name and path."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from yolo.cfg.load import read_yaml
from yolo.cfg.networks import FOLDER, choose_scale, find_network, known_networks
from yolo.errors import MissingFileError, ModelError

ROWS = "backbone:\n  - [-1, 1, Conv, [16, 3, 2]]\n"
SCALES = "scales:\n  n: [1, 1, 64]\n  s: [1, 2, 64]\n"


@pytest.mark.golden
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_rows_are_the_golden_facts(path, golden):
    expected = json.loads(json.dumps(golden("graphs.json")[path.stem]).replace('"None"', "null"))
    assert read_yaml(path) == expected


@pytest.mark.parametrize(
    ("name", "file", "scale"),
    [
        ("yolov8n.yaml", "yolov8.yaml", "n"),
        ("yolov8n", "yolov8.yaml", "n"),
        (Path("yolov8m-p6.yaml"), "yolov8-p6.yaml", "m"),
        ("yolov8x-ghost-p2.yaml", "yolov8-ghost-p2.yaml", "x"),
        ("yolov8l-ghost", "yolov8-ghost.yaml", "l"),
    ],
)
def test_own_names(name, file, scale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_network(name)
    assert (found.path, found.scale) == (FOLDER / file, scale)
    assert found.stem == Path(name).name.removesuffix(".yaml")


def test_no_letter_means_the_first_scale_said_aloud(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert find_network("yolov8.yaml").scale == "n"
    assert "using the first, 'n'" in caplog.text


def test_an_existing_file_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("yolov8n.yaml").write_text("nc: 3\n" + ROWS)
    found = find_network("yolov8n.yaml")
    assert (found.yaml["nc"], found.scale) == (3, None)


def test_a_user_s_family_is_found_from_any_folder(tmp_path):
    (tmp_path / "net3-wide.yaml").write_text(SCALES + ROWS)
    found = find_network(tmp_path / "net3s-wide.yaml")
    assert (found.path.name, found.scale) == ("net3-wide.yaml", "s")


@pytest.mark.parametrize(
    ("stem", "scale"),
    [
        ("yolov8s", "s"),
        ("mine8s-custom", "s"),
        ("mine-s", "s"),
        ("n_mine", "n"),
        ("yolov8n-s", "n"),
        ("mines", None),
        ("yolov8x", None),
    ],
)
def test_letter_in_the_name(stem, scale, caplog):
    with caplog.at_level(logging.WARNING):
        assert choose_scale({"n": [], "s": []}, stem, "f") == (scale or "n")
    assert bool(caplog.records) == (scale is None)


def test_one_scale_is_that_one_and_none_is_none(caplog):
    assert choose_scale({"s": []}, "mine", "f") == "s"
    assert choose_scale(None, "yolov8n", "f") is None
    assert not caplog.records


def test_missing_files_say_where_and_what_there_is(tmp_path):
    with pytest.raises(MissingFileError) as caught:
        find_network("yolov8n-pp2.yaml")
    text = str(caught.value)
    assert "Similar: 'yolov8n-p2.yaml'" in text
    assert str(FOLDER / "yolov8-pp2.yaml") in text
    assert "yolov8x-ghost-p6.yaml" in text
    with pytest.raises(MissingFileError) as caught:
        find_network(tmp_path / "yolov8n.yaml")  # a folder was given: ours isn't meant
    assert str(tmp_path / "yolov8.yaml") in str(caught.value)


def test_bad_files(tmp_path):
    (tmp_path / "a.yaml").write_text("scales: [1, 2]\n")
    with pytest.raises(ModelError, match="expected `scales` as a mapping"):
        find_network(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("nc: 3\nnc: 4\n")
    with pytest.raises(ModelError, match=r"b\.yaml:2"):
        find_network(tmp_path / "b.yaml")


def test_known_names_are_found():
    names = known_networks()
    assert len(names) == 5 * len(list(FOLDER.glob("*.yaml")))
    assert all(find_network(name).scale == name[6] for name in names)


@pytest.mark.processes
def test_no_torch():
    code = "import sys, yolo.cfg.networks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
