# SPDX-License-Identifier: Apache-2.0
"""TorchScript files hold their metadata where the familiar loaders look for them."""

from __future__ import annotations

import json
import zipfile

import exports
from yolo.cfg.schema import ExportConfig
from yolo.export.exporter import Exporter
from yolo.tasks.spec import TASKS


def test_the_metadata_are_in_the_archive(tmp_path):
    spec = next(iter(TASKS.values()))
    config = ExportConfig(imgsz=(64, 96), verbose=False)
    path = Exporter(config, spec, exports.network(spec), tmp_path / "a.b").run()
    assert path.name == "a.b.torchscript"
    with zipfile.ZipFile(path) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("/extra/config.txt")]
        facts = json.loads(archive.read(entry))
    assert facts["imgsz"] == [64, 96]
    assert facts["names"] == {str(i): name for i, name in enumerate(exports.NAMES)}
