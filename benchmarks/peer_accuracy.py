# SPDX-License-Identifier: Apache-2.0
"""Train the peer as a black box and write down what it finds; runs in the peer's environment.

    PEER_PYTHON benchmarks/peer_accuracy.py --model yolov8n.yaml --data DATA --out FOLDER --seed 0

It writes FOLDER/predictions.json (COCO's result rows as the peer's validation gives them, or for
classifiers {file name: class index} pairs) and FOLDER/times.json. `benchmarks.accuracy` starts
it and judges what it wrote. Nothing here belongs to the product.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--imgsz", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["YOLO_CONFIG_DIR"] = scratch
        os.environ["YOLO_OFFLINE"] = "true"
        import torch
        import ultralytics

        if args.threads:
            torch.set_num_threads(args.threads)
        ultralytics.settings.update({"sync": False})
        model = ultralytics.YOLO(args.model)
        start = time.perf_counter()
        model.train(
            data=args.data,
            epochs=args.epochs,
            imgsz=args.imgsz,
            batch=args.batch,
            seed=args.seed,
            device="cpu",
            amp=False,
            plots=False,
            project=scratch,
            name="train",
        )
        seconds = time.perf_counter() - start
        best = ultralytics.YOLO(Path(scratch) / "train" / "weights" / "best.pt")
        if best.task == "classify":
            found = {}
            for file in sorted(Path(args.data).glob("val/*/*")):
                result = best.predict(file, imgsz=args.imgsz, device="cpu", verbose=False)[0]
                found[str(file.relative_to(args.data))] = best.names[int(result.probs.top1)]
            (out / "predictions.json").write_text(json.dumps(found))
        else:
            best.val(
                data=args.data,
                imgsz=args.imgsz,
                batch=args.batch,
                device="cpu",
                save_json=True,
                plots=False,
                project=scratch,
                name="val",
            )
            shutil.copy(Path(scratch) / "val" / "predictions.json", out / "predictions.json")
        shutil.copy(Path(scratch) / "train" / "results.csv", out / "results.csv")
    about = {"version": ultralytics.__version__, "torch": torch.__version__, "seconds": seconds}
    (out / "times.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
