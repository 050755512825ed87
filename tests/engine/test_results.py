# SPDX-License-Identifier: Apache-2.0
"""`Results`: None rules, indexing, text, files, tables."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import cv2
import numpy as np
import pytest
import torch

from yolo.engine.results import OBB, Boxes, Keypoints, Masks, Probs, Results
from yolo.errors import DataError, MissingPackageError

NAMES = {0: "cat", 1: "dog", 2: "a/b"}
ROWS = np.array(
    [[10, 20, 30, 50, 0.9, 1], [0, 0, 40, 30, 0.8, 0], [50, 10, 79, 59, 0.3, 0]], np.float32
)
KINDS = [np.asarray, torch.as_tensor]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def make(image, **parts):
    return Results(image, "/some/where/pic.png", NAMES, **parts)


def test_parts_and_none_rules(image):
    result = make(image, boxes=ROWS, masks=np.ones((3, 32, 32), np.uint8))
    assert isinstance(result.boxes, Boxes)
    assert isinstance(result.masks, Masks)
    assert result.keypoints is None
    assert result.obb is None
    assert result.probs is None
    assert result.scores is None
    assert result.save_dir is None
    assert result.speed == {"preprocess": None, "inference": None, "postprocess": None}
    assert len(result) == 3
    assert make(image, boxes=ROWS[:0], masks=np.ones((0, 32, 32))).masks is None
    assert result[[False, False, False]].masks is None
    assert len(make(image, probs=np.ones(7, np.float32))) == 7
    assert len(make(image)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_indexing_and_iteration(image, kind):
    result = make(
        image,
        boxes=kind(ROWS),
        keypoints=kind(np.zeros((3, 4, 3), np.float32)),
        scores=kind(np.eye(3, dtype=np.float32)),
    )
    picked = result[result.boxes.conf > 0.5]
    assert len(picked) == 2
    assert picked.keypoints.shape == (2, 4, 3)
    assert tuple(picked.scores.shape) == (2, 3)
    assert [len(row) for row in result] == [1, 1, 1]
    assert float(result[1].boxes.conf[0]) == pytest.approx(0.8)
    assert float(result[1].scores[0, 1]) == 1
    arrays = result.numpy()
    assert isinstance(arrays.boxes.data, np.ndarray)
    assert isinstance(arrays.scores, np.ndarray)
    assert arrays.orig_img is image


def test_update_is_in_place_and_clips(image):
    result = make(image, boxes=ROWS)
    result.update(boxes=np.array([[-3, -3, 200, 30, 0.5, 1]], np.float32))
    assert result.boxes.xyxy.tolist() == [[0, 0, 80, 30]]
    result.update(keypoints=np.zeros((1, 2, 2)), masks=np.ones((1, 4, 4)))
    assert isinstance(result.keypoints, Keypoints)
    assert len(result.boxes) == 1
    result.update(obb=np.zeros((1, 7)), probs=np.zeros(3))
    assert isinstance(result.obb, OBB)
    assert isinstance(result.probs, Probs)


def test_new_is_empty(image):
    new = make(image, boxes=ROWS).new()
    assert new.boxes is None
    assert new.path == "/some/where/pic.png"
    assert new.names == NAMES


def test_unknown_attribute_helps(image):
    with pytest.raises(AttributeError, match=r"no 'box'.*boxes"):
        _ = make(image).box
    assert not hasattr(make(image), "box")


def test_pickle_and_copy(image):
    result = make(image, boxes=ROWS, points=Boxes(ROWS, (60, 80)))
    for twin in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert np.array_equal(twin.boxes.data, ROWS)
        assert np.array_equal(twin.points.data, ROWS)


def test_a_part_from_outside_goes_along(image):
    drawn = []

    class Points(Boxes):
        def draw(self, canvas, result):
            drawn.append((canvas.shape, result.path))

    result = make(image, points=Points(ROWS, (60, 80)))
    assert len(result) == 3
    assert len(result[1].points) == 1
    result.plot()
    assert drawn == [((60, 80, 3), "/some/where/pic.png")]
    assert result.verbose() == "3 points, "
    assert result.summary() == []


def test_a_part_from_outside_says_how_it_is_written(image, tmp_path):
    class Points(Boxes):
        def verbose(self, result):
            return f"{len(self)} of {result.names[0]}, "

        def label_rows(self, result, save_conf):
            return [f"{result.orig_shape[0]} {save_conf}"] * len(self)

        def summary_rows(self, result, normalize, decimals):
            return [{"normalize": normalize, "decimals": decimals}]

    result = make(image, points=Points(ROWS, (60, 80)))
    assert result.verbose() == "3 of cat, "
    result.plot()  # which asks for no more than it has
    result[1:].save_txt(tmp_path / "a.txt", save_conf=True)
    assert (tmp_path / "a.txt").read_text() == "60 True\n60 True\n"
    assert result.summary(normalize=True, decimals=2) == [{"normalize": True, "decimals": 2}]
    assert result.to_csv() == "normalize,decimals\nFalse,5\n"
    both = make(image, boxes=ROWS, points=Points(ROWS, (60, 80)))
    assert len(both.summary()) == 4


def test_verbose(image):
    assert make(image, boxes=ROWS).verbose() == "2 cats, 1 dog, "
    assert make(image, boxes=ROWS[:0]).verbose() == "(no detections), "
    assert make(image, probs=np.array([0.02, 0.98], np.float32)).verbose() == (
        "dog 0.98, cat 0.02, "
    )


@pytest.mark.parametrize("kind", KINDS)
def test_save_txt_of_boxes_appends(image, kind, tmp_path):
    result = make(image, boxes=kind(ROWS))
    path = tmp_path / "labels" / "a.txt"
    assert result.save_txt(path, save_conf=True) == str(path)
    assert path.read_text().splitlines()[0] == "1 0.25 0.583333 0.25 0.5 0.9"
    result.save_txt(path)
    lines = path.read_text().splitlines()
    assert len(lines) == 6
    assert lines[3] == "1 0.25 0.583333 0.25 0.5"
    nothing = tmp_path / "none.txt"
    assert make(image, boxes=ROWS[:0]).save_txt(nothing) == str(nothing)
    assert not nothing.exists()


def test_save_txt_of_the_other_kinds(image, tmp_path):
    def rows(**parts):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
        make(image, **parts).save_txt(path, save_conf=True)
        return path.read_text().splitlines()

    mask = np.zeros((3, 60, 80), np.uint8)
    mask[0, 10:30, 20:40] = 1  # the second is empty, the third a single point
    mask[2, 3, 3] = 1
    found = rows(boxes=ROWS, masks=mask)
    assert len(found) == 1
    assert found[0].split()[:3] == ["1", "0.25", "0.166667"]
    assert len(found[0].split()) == 1 + 8 + 1

    points = np.tile(np.array([8, 6, 0.5], np.float32), (3, 2, 1))
    found = rows(boxes=ROWS, keypoints=points)
    assert found[0] == "1 0.25 0.583333 0.25 0.5 0.1 0.1 0.5 0.1 0.1 0.5 0.9"
    found = rows(boxes=ROWS, keypoints=points[..., :2])
    assert found[0] == "1 0.25 0.583333 0.25 0.5 0.1 0.1 0.1 0.1 0.9"

    found = rows(obb=np.array([[40, 30, 20, 10, 0, 3, 0.5, 2]], np.float32))
    values = "0.625 0.583333 0.625 0.416667 0.375 0.416667 0.375 0.583333"
    assert found == [f"2 {values} 0.5 3"]
    assert rows(probs=np.array([0.07, 0.93], np.float32)) == ["0.93 dog", "0.07 cat"]


def test_save_crop(image, tmp_path, caplog):
    result = make(image, boxes=np.vstack([ROWS, [[0.4, 0.2, 9.7, 9.5, 0.9, 2]]]))
    result.save_crop(tmp_path, "im.jpg")
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.jpg"))
    assert names == ["a_b/im.jpg", "cat/im-2.jpg", "cat/im.jpg", "dog/im.jpg"]
    assert cv2.imread(str(tmp_path / "dog" / "im.jpg")).shape == (30, 20, 3)
    assert cv2.imread(str(tmp_path / "a_b" / "im.jpg")).shape == (10, 10, 3)
    make(image, probs=np.ones(2, np.float32)).save_crop(tmp_path)
    assert "needs boxes" in caplog.text


def test_class_names_lead_nowhere_else(image, tmp_path):
    result = Results(image, "a.jpg", {1: "../../evil", 0: ".."}, boxes=ROWS)
    result.save_crop(tmp_path / "crops")
    assert {p.parent.parent for p in tmp_path.rglob("*.jpg")} == {tmp_path / "crops"}


def test_summary(image):
    row = make(image, boxes=ROWS).summary()[0]
    assert row == {
        "name": "dog",
        "class": 1,
        "confidence": 0.9,
        "box": {"x1": 10.0, "y1": 20.0, "x2": 30.0, "y2": 50.0},
    }
    normal = make(image, boxes=ROWS).summary(normalize=True, decimals=3)[0]["box"]
    assert normal == {"x1": 0.125, "y1": 0.333, "x2": 0.375, "y2": 0.833}
    mask = np.zeros((1, 60, 80), np.uint8)
    mask[0, 10:30, 20:40] = 1
    row = make(
        image,
        boxes=np.insert(ROWS[:1], 4, 12, axis=1),
        masks=mask,
        keypoints=np.zeros((1, 2, 2), np.float32),
    ).summary()[0]
    assert row["track_id"] == 12
    assert sorted(row["segments"]["x"]) == [20.0, 20.0, 39.0, 39.0]
    assert row["keypoints"] == {"x": [0.0, 0.0], "y": [0.0, 0.0], "visible": [1.0, 1.0]}
    box = make(image, obb=np.array([[40, 30, 20, 10, 0, 0.5, 2]])).summary()[0]["box"]
    assert list(box) == ["x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"]
    probs = make(image, probs=np.array([0.25, 0.75], np.float32)).summary()
    assert probs[0] == {"name": "dog", "class": 1, "confidence": 0.75}
    assert make(image, boxes=ROWS[:0]).summary() == []


def test_json_csv_and_frames(image, monkeypatch):
    result, empty = make(image, boxes=ROWS), make(image, boxes=ROWS[:0])
    assert json.loads(result.to_json()) == result.summary()
    assert result.tojson() == result.to_json()
    assert json.loads(empty.to_json()) == []
    assert empty.to_csv() == "\n"
    lines = result.to_csv().splitlines()
    assert lines[0] == "name,class,confidence,box"
    assert lines[1].startswith("dog,1,0.9,")
    frame = result.to_df()
    assert list(frame["name"]) == ["dog", "cat", "cat"]
    assert empty.to_df().shape == (0, 0)
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingPackageError, match="pip install pandas"):
        result.to_df()


def test_plot_leaves_the_original_alone(image):
    before = image.copy()
    result = make(image, boxes=ROWS)
    drawn = result.plot()
    assert np.array_equal(image, before)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert not np.array_equal(drawn, image)
    other = np.zeros_like(image)
    assert result.plot(img=other).any()
    assert not other.any()
    assert result.plot(boxes=False).tolist() == image.tolist()
    assert result.plot(pil=True).size == (80, 60)


def test_save_writes_a_picture(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = make(image, boxes=ROWS)
    assert result.save() == "results_pic.png"
    assert cv2.imread("results_pic.png").shape == image.shape
    assert result.save("out/x.jpg", labels=False) == "out/x.jpg"
    result.path = "video.mp4"
    assert result.save() == "results_video.jpg"
    with pytest.raises(DataError, match="picture suffix"):
        result.save("out/x.xyz")
    result.plot(save=True, filename=tmp_path / "y.png")
    assert (tmp_path / "y.png").exists()


def test_show_opens_the_viewer(image, monkeypatch):
    from PIL import Image

    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self: shown.append(self.size))
    assert make(image, boxes=ROWS).show() is None
    assert shown == [(80, 60)]


def test_what_third_parties_read(image):
    """Supervision's converters read exactly these (API.md, section 10)."""
    result = make(
        image,
        boxes=torch.as_tensor(ROWS),
        masks=torch.ones((3, 30, 40), dtype=torch.uint8),
    )
    assert result.boxes.cls.cpu().numpy().astype(int).tolist() == [1, 0, 0]
    assert result.boxes.xyxy.cpu().numpy().shape == (3, 4)
    assert result.boxes.id is None
    assert result.obb is None
    assert result.masks
    assert tuple(result.masks.data.shape[1:]) == (30, 40)
    assert result.masks.data.cpu().numpy().dtype == np.uint8
    pose = make(image, boxes=torch.as_tensor(ROWS), keypoints=torch.ones((3, 4, 2)))
    assert pose.keypoints.xy.numel() == 24
    assert pose.keypoints.conf.cpu().numpy().tolist() == [[1.0] * 4] * 3


def test_scores_of_other_objects_are_dropped(image):
    result = make(image, boxes=ROWS, scores=np.eye(3, dtype=np.float32))
    result.update(boxes=ROWS[:, :6] + 0)
    assert result.scores is not None
    result.update(boxes=ROWS[:2])
    assert result.scores is None


def test_crops_take_the_stem_of_any_file_name(image, tmp_path):
    make(image, boxes=ROWS[:1]).save_crop(tmp_path, "a.b.png")
    assert (tmp_path / "dog" / "a.b.jpg").is_file()
