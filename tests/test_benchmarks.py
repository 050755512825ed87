# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own parts: the judge, the readers of other programs' files, the verdicts."""

from __future__ import annotations

import json
import math
import os
import time
from itertools import pairwise
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from benchmarks import ablation, accuracy, export_rows, growth, judge, loss_parity, overfit, run
from benchmarks.pages import put_section
from benchmarks.reliability import counted
from benchmarks.speed_rounds import Gauge
from yolo import TASKS
from yolo.data.shapes import single_ring
from yolo.errors import YoloError

SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)


def moved(x: float, y: float) -> np.ndarray:
    return SQUARE + np.array([x, y])


def turned(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return (SQUARE - 0.5) @ np.array([[c, s], [-s, c]]) + 0.5


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (SQUARE, 1),
        (SQUARE[::-1], 1),
        (moved(0.5, 0), 1 / 3),
        (moved(0.5, 0.5), 0.25 / 1.75),
        (moved(1, 0), 0),
        (moved(3, 3), 0),
        (SQUARE * 0.5 + 0.2, 0.25),
        (turned(math.pi / 4), (2 * math.sqrt(2) - 2) / (4 - 2 * math.sqrt(2))),
    ],
)
def test_polygon_overlap_is_what_geometry_says(other, expected):
    for far in (0, 1e4):
        assert judge.polygon_iou(SQUARE + far, other + far) == pytest.approx(expected, abs=1e-9)
        assert judge.polygon_iou(other + far, SQUARE + far) == pytest.approx(expected, abs=1e-9)


def test_polygon_overlap_equals_a_count_of_pixels():
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[0:1:400j, 0:1:400j]
    for _ in range(10):
        quads = [turned(rng.uniform(0, 7)) * rng.uniform(0.3, 0.6, 2) + rng.uniform(0.1, 0.3, 2)
                 for _ in range(2)]  # fmt: skip
        inside = []
        for quad in quads:
            edges = pairwise([*quad, quad[0]])
            sides = [(b[0] - a[0]) * (ys - a[1]) - (b[1] - a[1]) * (xs - a[0]) for a, b in edges]
            inside.append((np.stack(sides) >= 0).all(0))
        counted = (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()
        assert judge.polygon_iou(*quads) == pytest.approx(counted, abs=0.02)


@pytest.fixture
def split(tmp_path):
    """Write images (100 high, 200 wide) with label rows and return the images' folder."""

    def write(*files: list[str]):
        for name in ("images", "labels"):
            (tmp_path / name / "val").mkdir(parents=True, exist_ok=True)
        for i, rows in enumerate(files):
            image = tmp_path / "images" / "val" / f"{i:03d}.png"
            cv2.imwrite(str(image), np.zeros((100, 200, 3), np.uint8))
            (tmp_path / "labels" / "val" / f"{i:03d}.txt").write_text("\n".join(rows))
        return tmp_path / "images" / "val"

    return write


def row(class_id: int, *numbers: float) -> str:
    return " ".join([str(class_id), *(f"{x:.9f}" for x in numbers)])


def test_rotated_scores_of_upright_boxes_are_those_of_boxes(split):
    rng = np.random.default_rng(3)
    boxes, corners, found = [], [], []
    for i in range(6):
        centres, sizes = rng.uniform(0.3, 0.7, (5, 2)), rng.uniform(0.05, 0.3, (5, 2))
        classes = rng.integers(0, 2, 5)
        quads = centres[:, None] + sizes[:, None] * (SQUARE - 0.5)
        boxes.append([row(c, *x, *s) for c, x, s in zip(classes, centres, sizes, strict=True)])
        corners.append([row(c, *q.ravel()) for c, q in zip(classes, quads, strict=True)])
        for c, quad in zip(classes, quads, strict=True):
            points = quad * (200, 100) + rng.normal(0, 2, (1, 2))
            ltwh = [*points[0].tolist(), *(points[2] - points[0]).tolist()]
            found.append(
                {"file_name": f"{i:03d}.png", "category_id": int(c) + 1, "bbox": ltwh,
                 "poly": points.ravel().tolist(), "score": float(rng.uniform())}
            )  # fmt: skip
    upright = judge.coco_scores(judge.ground_truth(split(*boxes), "boxes"), found, "bbox")
    rotated = judge.coco_scores(judge.ground_truth(split(*corners), "corners"), found, "poly")
    assert 0.2 < upright[0] < upright[1] < 1
    assert rotated == pytest.approx(upright, abs=1e-9)


def test_a_bridged_hole_stays_a_hole(split):
    outline, hole = SQUARE * 80 + 10, SQUARE[::-1] * 40 + 30
    ring = single_ring([outline, hole])
    truth = judge.ground_truth(split([row(0, *(ring / (200, 100)).ravel())]), "polygons")
    (label,) = truth["annotations"]
    drawn = judge.mask.decode(label["segmentation"])
    assert drawn.shape == (100, 200)
    assert drawn[50, 50] == 0
    assert drawn[20, 20] == 1
    assert label["area"] == pytest.approx(80**2 - 40**2, rel=0.01)
    assert label["bbox"] == pytest.approx([10, 10, 80, 80], abs=1e-4)


def test_keypoints_are_compared_with_the_stated_spreads(split):
    box = 50 * 40 * 0.53  # square pixels of the label
    points = [0.3, 0.3, 2, 0.4, 0.5, 2, 0.3, 0.6, 1, 0.2, 0.4, 0]
    images = split([row(0, 0.3, 0.4, 0.25, 0.4, *points)])

    def similarity(shift: float) -> tuple[float, float]:
        moved = np.array(points).reshape(-1, 3) * (200, 100, 1) + (shift, 0, 0)
        found = {"file_name": "000.jpg", "category_id": 1, "score": 0.9}
        found["keypoints"] = moved.ravel().tolist()
        truth = judge.ground_truth(images, "keypoints")
        return judge.coco_scores(truth, [found], "keypoints")

    half = math.sqrt(-math.log(0.5) * 2 * box * (2 / 4) ** 2)  # pixels at which OKS is 0.5
    assert similarity(0) == pytest.approx((1, 1))
    assert similarity(half * 0.99)[1] == pytest.approx(1)
    assert similarity(half * 1.01)[1] == 0


def test_nothing_found_scores_nothing(split):
    truth = judge.ground_truth(split([row(0, 0.5, 0.5, 0.2, 0.2)]))
    assert judge.coco_scores(truth, []) == (0, 0)


def test_top1_reads_the_class_off_the_folder():
    assert judge.top1({"val/a/1.jpg": "a", "val/b/2.jpg": "a"}) == 0.5


# ---------------------------------------------------------------------- accuracy


def finished(who: str, seed: int, score: float) -> dict:
    return {
        "who": who, "task": "detect", "seed": seed, "epochs": 20, "imgsz": 256,
        "images": [400, 100], "scores": {"box mAP50-95": score}, "date": "2026-01-02",
        "versions": {"torch": "1"}, "seconds": 60.0,
    }  # fmt: skip


@pytest.mark.parametrize(("ours", "verdict"), [(0.31, "holds"), (0.29, "**below**")])
def test_the_verdict_allows_as_much_as_the_peers_seeds_lie_apart(ours, verdict):
    rows = [finished("peer", 0, 0.45), finished("peer", 1, 0.35), finished("ours", 0, ours)]
    line = accuracy.result_table(rows).splitlines()[-1]
    assert line.endswith(f"| 0.1000 | {ours - 0.4:+.4f} | {verdict} |")
    assert line in accuracy.page(rows, 20, 256)


def test_a_second_call_goes_on_and_adopted_runs_are_judged(tmp_path, monkeypatch, capsys):
    peer = tmp_path / "elsewhere" / "peer-classify-0"
    peer.mkdir(parents=True)
    calls = []

    def run_ours(task, data, seed, out, epochs, imgsz):
        calls.append((task, seed))
        found = {str(p.relative_to(data)): p.parent.name for p in data.glob("val/*/*")}
        (peer / "predictions.json").write_text(json.dumps(dict.fromkeys(found, "nothing")))
        (peer / "times.json").write_text('{"version": "8", "torch": "2", "seconds": 1}')
        out.mkdir()
        (out / "predictions.json").write_text(json.dumps(found))
        return {"seconds": 1.0, "versions": {}}

    monkeypatch.setattr(accuracy, "run_ours", run_ours)
    command = [
        "accuracy", "--out", str(tmp_path / "out"), "--tasks", "classify", "--seeds", "0",
        "--images", "2", "2", "--adopt-peer", str(peer.parent),
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    for _ in range(2):
        accuracy.main()
    assert calls == [("classify", 0)]
    rows = [json.loads(x) for x in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(r["who"], r["scores"]) for r in rows] == [
        ("ours", {"top-1": 1.0}),
        ("peer", {"top-1": 0.0}),
    ]
    assert "+1.0000 | holds" in capsys.readouterr().out


# ---------------------------------------------------------------------- losses, overfitting


def test_logged_losses_come_from_the_last_row_whatever_the_spaces(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text(
        "epoch,  train/box_loss, train/cls_loss,val/box_loss\n1,2,3,4\n2, 1.5,  2.5, 9\n"
    )
    assert loss_parity.logged_losses(file) == {"box": 1.5, "cls": 2.5}


def test_items_that_differ_are_named():
    items = [loss_parity.Item("t", "box", 1.0, 1.0005), loss_parity.Item("t", "cls", 1.0, 1.01)]
    equal, differs = loss_parity.table(items, 1e-3).splitlines()[2:]
    assert "equal" in equal
    assert "**differs**" in differs


@pytest.mark.parametrize("kind", sorted(judge.LABELS))
def test_the_one_batch_set_has_no_small_figures(tmp_path, kind):
    loss_parity.one_batch(tmp_path / kind, kind, seed=0)


def test_overfitting_is_judged_by_the_weakest_part(tmp_path):
    assert overfit.score({"metrics/mAP50(B)": 0.95, "metrics/mAP50(M)": 0.8, "fitness": 0}) == 0.8
    assert overfit.score({"metrics/mAP50-95(B)": 0.1, "metrics/mAP50(B)": 0.9}) == 0.9
    assert overfit.falls([3, 2, 1, 1, 1, 1, 1, 1, 1, 0.9])
    assert not overfit.falls([1.0] * 10)


def test_export_rows_lowers_the_floor_into_a_gap_and_counts_what_differs():
    scores = np.concatenate([np.linspace(0.2, 0.1, 15), np.linspace(0.08, 0.02, 30)])
    conf = export_rows.floor_of(scores)
    assert (scores > conf).sum() >= export_rows.MIN_BOXES
    assert np.abs(scores - conf).min() > 5e-4

    rows = np.array([[10, 10, 30, 30, 0.9, 1], [50, 50, 80, 90, 0.6, 0]], dtype=np.float32)
    spec = TASKS["detect"]

    def finding(given: np.ndarray) -> export_rows.Finding:
        return export_rows.compare(
            export_rows.Finding("detect", "a file", conf=0.25), spec, [rows], [given]
        )

    near = finding(rows + np.float32([0.1, 0, 0, 0.2, 5e-4, 0]))
    assert near.agrees
    assert (near.boxes, near.matched) == (2, 2)
    assert near.px == pytest.approx(0.2, abs=1e-4)
    assert near.score == pytest.approx(5e-4, abs=1e-6)
    assert not finding(rows[:1]).agrees
    assert not finding(np.concatenate([rows, rows[:1] + 20])).agrees
    assert not finding(rows + np.float32([0, 0, 0.6, 0, 0, 0])).agrees
    assert not finding(rows + np.float32([0, 0, 0, 0, 2e-3, 0])).agrees
    assert not finding(rows + np.float32([0, 0, 0, 0, 0, 1])).agrees
    assert "**differs**" in export_rows.table([finding(rows[:0])])


# ---------------------------------------------------------------------- ablation


def scored(row: str, *by_seed: float) -> list[dict]:
    return [
        {"row": row, "seed": seed, "pycocotools": score, "minutes": 2.0}
        for seed, score in enumerate(by_seed)
    ]


def cells(table: str, name: str) -> list[str]:
    (line,) = [x for x in table.splitlines() if f"| {name} |" in x]
    found = [cell.strip() for cell in line.split("|")[1:-1]]
    return found[found.index(name) + 1 :]


def test_the_default_comes_first_and_then_one_row_of_each_kind():
    order = list(dict.fromkeys(ablation.jobs([], [0, 1], [0, 1, 2])))
    names = list(dict.fromkeys(name for name, _ in order))
    kinds = [name.split("=")[0] for name in names]
    assert kinds[:5] == ["default", "cls_loss", "box_loss", "assigner", "distill"]
    assert {*names} == {*ablation.switches()}
    assert len(names) == 1 + 3 + 5 + 2 + 4
    assert [seed for name, seed in order if name == "distill=cwd"] == [0, 1, 2]
    assert [seed for name, seed in order if name == "distill=self"] == [0, 1]
    assert {*ablation.jobs(["simota"], [0], [0])} == {("assigner=simota", 0)}


def test_differences_are_in_pooled_spreads_and_what_is_missing_says_so():
    rows = [
        *scored("default", 0.40, 0.42), *scored("cls_loss=focal", 0.30, 0.30),
        *scored("box_loss=giou", 0.45), {"row": "box_loss=siou", "seed": 0, "error": "bad"},
    ]  # fmt: skip
    # Variances 0.0002 and 0, one degree of freedom each.
    assert ablation.seed_spread(rows, [0, 1]) == pytest.approx(0.01)
    table = ablation.result_table(rows, [0, 1])
    focal = ["0.3000 0.3000", "0.3000", "0.0000", "-0.1100", "-11.0", "2.0"]
    assert cells(table, "cls_loss=focal") == focal
    giou = ["0.4500 not run", "0.4500", "", "+0.0500", "+5.0", "2.0"]
    assert cells(table, "box_loss=giou") == giou
    assert cells(table, "box_loss=siou")[0] == "failed: bad"
    assert cells(table, "assigner=atss") == ["not run", "", "", "", "", ""]


@pytest.mark.parametrize(
    ("taught", "verdict"), [((0.5, 0.5), "improves"), ((0.3, 0.3), "**doesn't improve**")]
)
def test_a_lesson_is_judged_by_the_mean_over_equal_seeds(taught, verdict):
    rows = [*scored("default", 0.3, 0.5), *scored("distill=cwd", *taught)]
    found = cells(ablation.lesson_table(rows, [0, 1]), "distill=cwd")
    assert found[-2:] == [f"{sum(taught) / 2 - 0.4:+.4f}", verdict]
    assert cells(ablation.lesson_table(rows, [0, 1, 2]), "distill=cwd")[-1] == ""  # not yet


def test_an_ablation_goes_on_and_teaches_once(tmp_path, monkeypatch):
    calls = []

    def run_seed(data, seed, out, options, split):
        calls.append((options["model"], options.get("teacher")))
        if options.get("assigner") == "atss":
            raise YoloError("no such luck\nmore")
        return {"seed": seed, "pycocotools": 0.1}

    monkeypatch.setattr(ablation, "run_seed", run_seed)
    page = tmp_path / "page.md"
    words = ["x.yaml", "--out", str(tmp_path / "out"), "--seeds", "0", "--distill-seeds", "0"]
    args = ablation.parse([*words, "--page", str(page), "--only", "default", "cwd", "mgd", "atss"])
    best = str(args.out / "teacher-40" / "seed0" / "weights" / "best.pt")
    ablation.run(args)
    alone, taught = ("yolov8n.yaml", None), ("yolov8n.yaml", best)
    assert calls == [alone, alone, ("yolov8s.yaml", None), taught, taught]
    assert "failed: no such luck |" in page.read_text()
    ablation.run(args)
    assert calls[5:] == [alone]  # what failed is tried again


# ---------------------------------------------------------------------- growth


def grown(name: str, power: float) -> list[dict]:
    """Points of a curve that is flat at first, as every call's own cost makes it."""
    return [
        {"axis": "images", "name": name, "size": n, "seconds": 1e-3 + (n / 1e5) ** power, "mib": 1}
        for n in growth.AXES["images"].sizes
    ]


def test_an_exponent_is_the_slope_of_the_upper_half():
    table = growth.table([*grown("warm cache", 1), *grown("order of an epoch", 2)])
    assert cells(table, "warm cache")[3:] == ["1.00", "1 MiB", "", "holds"]
    worse = cells(table, "order of an epoch")[3:]
    assert worse == ["2.00", "1 MiB", "", "**more than n log n**"]
    assert cells(table, "forward")[2] == "not run"


def test_workers_are_judged_from_the_end_of_their_first_epoch():
    held = [{"Pss": value, "Pss_Anon": 1.0} for value in (100, 900, 950, 990)]
    row = {"name": "workers", "workers": 8, "images": 10, "epochs": 3, "steps": 2, "held": held}
    assert "+90 MiB, holds" in growth.worker_text(row)
    held[-1]["Pss"] = 1010
    assert "+110 MiB, **more" in growth.worker_text(row)


# ---------------------------------------------------------------------- speed


@pytest.mark.processes
def test_a_gpu_is_asked_how_busy_it_is(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor x in 10 '[N/A]' 30; do echo $x; done\nexec sleep 30\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    start = time.perf_counter()
    gauge = Gauge("cuda:0")
    while len(gauge.samples(start)) < 2 and time.perf_counter() < start + 20:
        time.sleep(0.01)
    assert gauge.samples(start) == [10, 30]
    assert gauge.samples(time.perf_counter()) == []
    gauge.close()


@pytest.mark.parametrize("device", ["cpu", "0"])
def test_rows_of_speed(tmp_path, device):
    (tmp_path / "images" / "val").mkdir(parents=True)
    places = {name: tmp_path / name for name in ("train", "many", "val", "weights", "images")}
    rows = [*run.rows(run.Files(folder=tmp_path, **places, device=device), fast=True)]
    assert len({row.name for row in rows}) == len(rows)
    targets = {row.name: row.target for row in rows}
    assert targets["training, yolov8n, 640 px, fastest"] == (2.3 if device == "cpu" else 2.0)
    assert targets["prediction, 640 px, batch 1, fp32"] == (0.75 if device == "cpu" else 0.6)
    for row in rows:
        if row.case == "train":
            mine = run.merged(row.options, row.ours)["train"]
            own = {name for name in mine if mine[name] != row.options["train"].get(name)}
            assert own <= {"amp", "compile", "augment_on"}, row.name


def test_the_table_of_speed_tells_of_both_memories():
    row = {
        "row": "training", "unit": "img/s", "target": 2.0, "holds": True, "ratio": 2.5,
        "spread": [2.0, 3.0], "ours": 250.0, "peer": 100.0,
        "peak_mib": {"ours": 100.0, "peer": 90.0},
    }  # fmt: skip
    line = run.table([row]).splitlines()[-1]
    assert line.endswith("| **2.50** | 2.00, 3.00 | ≥ 2: holds | 100 / 90 MiB **more** |")
    row |= {"gpu_mib": {"ours": 5.0, "peer": 6.0}, "busy": {"ours": 95.4, "peer": 60.0}}
    line = run.table([row]).splitlines()[-1]
    assert line.endswith("| 100 / 90 MiB **more**; GPU 5 / 6 MiB, busy 95 / 60 % |")


def test_a_section_is_put_in_the_place_of_its_old_self(tmp_path):
    page = tmp_path / "reliability.md"
    put_section(page, "Accidents", "one\n")
    put_section(page, "Checks", "two \\1\n")
    put_section(page, "Accidents", "three\n\n| a |\n")
    expected = "# Reliability\n\n## Accidents\n\nthree\n\n| a |\n\n## Checks\n\ntwo \\1\n"
    assert page.read_text() == expected


def test_what_tests_tell_is_counted():
    report = ElementTree.fromstring("""<testsuites><testsuite time="2.4">
      <testcase classname="a" name="one"><properties>
        <property name="inputs" value="20"/></properties></testcase>
      <testcase classname="a" name="two"><failure/><properties>
        <property name="inputs" value="5"/></properties></testcase>
      <testcase classname="a" name="three"><skipped/></testcase>
    </testsuite></testsuites>""")
    found = counted("inputs", report)
    assert (found["checked"], found["held"], found["skipped"]) == (25, 20, 1)
    assert found["failed"] == ["a::two"]
    assert counted("tests", report)["held"] == 1
