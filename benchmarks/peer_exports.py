# SPDX-License-Identifier: Apache-2.0
"""Let the peer export networks and run exported files, as a black box, and write down its boxes.

    PEER_PYTHON benchmarks/peer_exports.py REQUEST_JSON ANSWER_JSON

A request has `images` (files), `make` (networks to export: a YAML, the weights as .npz, names, a
folder, export options) and `run` (files to predict with: a task and predict options). The answer
has the file that each item of `make` became, and for each of `run` and each image its rows: x1 y1
x2 y2 score class and keypoints, or cx cy w h score class angle, or probabilities.
`benchmarks.export_parity` starts it, in the peer's environment.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def made(item: dict[str, Any]) -> str:
    """Export a network of given weights with the peer; return the file."""
    import numpy as np
    import torch
    import ultralytics

    model = ultralytics.YOLO(item["network"], task=item["task"])
    arrays = np.load(item["weights"], allow_pickle=False)
    model.model.load_state_dict({key: torch.from_numpy(arrays[key]) for key in arrays.files})
    model.model.names = dict(enumerate(item["names"]))
    os.chdir(item["folder"])
    return str(Path(model.export(**item["options"])).absolute())


def rows_of(result: Any) -> list[list[float]]:
    """Return what one image's result says."""
    import torch

    if result.probs is not None:
        return [result.probs.data.tolist()]
    if result.obb is not None:
        found = result.obb
        parts = [found.xywhr[:, :4], found.conf[:, None], found.cls[:, None], found.xywhr[:, 4:]]
    else:
        found = result.boxes
        parts = [found.xyxy, found.conf[:, None], found.cls[:, None]]
    if result.keypoints is not None and len(found):
        parts.append(result.keypoints.data.flatten(1))
    if result.masks is not None and len(found):
        parts.append((result.masks.data > 0).flatten(1).sum(1, keepdim=True).float().sqrt())
    return torch.cat([part.cpu().float() for part in parts], 1).tolist()


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["YOLO_CONFIG_DIR"] = scratch
        os.environ["YOLO_OFFLINE"] = "true"
        os.environ["YOLO_AUTOINSTALL"] = "false"
        import ultralytics

        ultralytics.settings.update({"sync": False})
        files = [made(item) for item in request["make"]]
        rows = []
        for item in request["run"]:
            file = files[item["file"]] if isinstance(item["file"], int) else item["file"]
            model = ultralytics.YOLO(file, task=item["task"])
            options = {"verbose": False, "device": "cpu", **item["options"]}
            rows.append([rows_of(model.predict(i, **options)[0]) for i in request["images"]])
    answer = {"made": files, "rows": rows}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
