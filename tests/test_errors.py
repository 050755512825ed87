# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect

import pytest

from yolo import errors
from yolo.errors import ConfigError, MissingFileError, UnknownNameError, YoloError, nearest

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_ours_and_prints_its_message_as_it_is(kind):
    assert issubclass(kind, YoloError)
    assert str(kind("data.yaml:3: expected 'train'")) == "data.yaml:3: expected 'train'"


def test_what_existing_code_catches():
    """A script that caught Python's own errors goes on to work."""
    with pytest.raises(FileNotFoundError):
        raise MissingFileError("a.pt: no such file")
    for kind in (TypeError, ValueError):
        with pytest.raises(kind):
            raise ConfigError("unknown option")
    with pytest.raises(KeyError, match="unknown layer"):
        raise UnknownNameError("unknown layer 'Cnov'")


def test_nearest():
    assert nearest("imgz", ["imgsz", "batch", "img"]) == "Similar: 'imgsz', 'img'."
    assert nearest("xyz", ["imgsz", "batch"]) == ""
    assert nearest(3, ["imgsz"]) == ""
