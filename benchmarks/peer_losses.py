# SPDX-License-Identifier: Apache-2.0
"""Let the peer train on one batch as a black box and write down its weights and logged losses.

    PEER_PYTHON benchmarks/peer_losses.py --model yolov8n.yaml --data DATA --out FOLDER \
        --options OPTIONS_JSON

It writes FOLDER/weights.npz (the state dict that the training starts from, by name) and
FOLDER/results.csv. `benchmarks.loss_parity` starts it, in the peer's environment, and compares.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--options", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["YOLO_CONFIG_DIR"] = scratch
        os.environ["YOLO_OFFLINE"] = "true"
        import numpy as np
        import ultralytics

        ultralytics.settings.update({"sync": False})

        def keep_weights(trainer: Any) -> None:
            state = trainer.model.state_dict()
            np.savez(args.out / "weights.npz", **{k: v.cpu().numpy() for k, v in state.items()})

        model = ultralytics.YOLO(args.model)
        model.add_callback("on_train_start", keep_weights)
        options = json.loads(args.options)
        model.train(data=args.data, project=scratch, name="train", **options)
        shutil.copy(Path(scratch) / "train" / "results.csv", args.out / "results.csv")
        (args.out / "version").write_text(ultralytics.__version__)


if __name__ == "__main__":
    main()
