# SPDX-License-Identifier: Apache-2.0
"""The list of formats: each has a writer and something that runs it."""

from __future__ import annotations

import importlib

import pytest

from yolo.backends import BACKENDS, is_exported
from yolo.cfg.schema import ExportConfig
from yolo.errors import UnknownNameError
from yolo.export.formats import FORMATS


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_format_has_a_writer_and_a_runtime(form):
    module, _, name = form.writer.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert form.suffix in BACKENDS
    assert is_exported(f"best{form.suffix}")
    assert form.takes <= ExportConfig.model_fields.keys()


def test_a_near_miss_is_answered():
    with pytest.raises(UnknownNameError, match="Similar: 'onnx'"):
        FORMATS["onxx"]
