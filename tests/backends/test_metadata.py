# SPDX-License-Identifier: Apache-2.0
"""Reading what files say of themselves: Python's notation, JSON, what is missing or wrong."""

from __future__ import annotations

import pytest

from yolo.backends.metadata import class_names, read_metadata
from yolo.errors import ModelError

FOREIGN = {
    "task": "pose", "imgsz": "[320, 640]", "names": "{0: 'cat', 1: 'dog'}", "stride": "32",
    "batch": "2", "channels": "3", "kpt_shape": "[17, 3]", "end2end": "False", "docs": "https://x",
    "args": "{'batch': 2, 'nms': None, 'dynamic': True, 'half': False}", "forward": "1",
}  # fmt: skip


def test_the_familiar_strings_are_read():
    found = read_metadata(FOREIGN, "x.onnx")
    assert (found.task, found.names) == ("pose", {0: "cat", 1: "dog"})
    assert (found.imgsz, found.stride, found.batch, found.channels) == ((320, 640), 32, 2, 3)
    assert (found.kpt_shape, found.dynamic, found.nms) == ((17, 3), True, False)


def test_plain_data_are_read_as_well():
    plain = {"task": "detect", "names": {"0": "a", "1": "b"}, "imgsz": 640, "args": {"nms": True}}
    found = read_metadata(plain, "x")
    assert (found.names, found.imgsz, found.nms) == ({0: "a", 1: "b"}, (640, 640), True)


def test_the_shape_of_the_input_wins():
    found = read_metadata(FOREIGN, "x", [4, 3, 64, 96])
    assert (found.batch, found.imgsz, found.dynamic) == (4, (64, 96), False)
    assert read_metadata(FOREIGN, "x", [None, 3, 64, 96]).dynamic == "batch"
    free = read_metadata(FOREIGN, "x", [None, 1, None, None])
    assert (free.dynamic, free.imgsz, free.channels) == (True, (320, 640), 1)


def test_what_is_missing_is_named_and_may_be_given():
    with pytest.raises(ModelError, match=r"x\.onnx: its metadata lack 'task' and 'names'.*task="):
        read_metadata({}, "x.onnx")
    found = read_metadata({}, "x", task="pose", names=["a"], kpt_shape=[4, 3])
    assert (found.task, found.names, found.kpt_shape) == ("pose", {0: "a"}, (4, 3))


def test_another_task_than_the_files_is_refused():
    with pytest.raises(ModelError, match="is a model for 'pose', not for 'detect'"):
        read_metadata(FOREIGN, "x", task="detect")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stride", "32.5"), ("stride", "big"), ("batch", "0"), ("imgsz", "[640]"),
        ("imgsz", "[640, -1]"), ("kpt_shape", "[17, 3, 1]"), ("names", "{0: 'a', 2: 'b'}"),
        ("names", "cat"), ("names", "[" * 100_000), ("names", "__import__('os')"),
        ("names", "{1e999: 'a'}"), ("names", "1-" * 400_000), ("names", "['" + "a" * 2_000_000),
        ("stride", "1e999"), ("batch", "9" * 30), ("imgsz", "[64, 1000000]"), ("stride", "True"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(key, value):
    with pytest.raises(ModelError, match=key):
        read_metadata({**FOREIGN, key: value}, "x")


def test_odd_facts_are_left_out():
    info = '{"dynamic": ["x"], "preprocess": ["raw"], "postprocess": null}'
    odd = {**FOREIGN, "args": "{'conf': 'high', 'nms': []}", "yolo_info": info}
    found = read_metadata(odd, "x")
    assert (found.conf, found.nms, found.dynamic) == (0, False, False)
    assert (found.preprocess, found.postprocess) == ("['raw']", None)
    for text in ("{", "[1]", "[" * 100_000):
        assert read_metadata({**odd, "yolo_info": text}, "x").preprocess is None


def test_class_names_come_in_order_of_their_ids():
    assert list(class_names({"1": "b", 0: "a"}, "x").items()) == [(0, "a"), (1, "b")]
