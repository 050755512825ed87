# SPDX-License-Identifier: Apache-2.0
"""Files as Ultralytics saves them, and hostile ones, written without that package.

A pickle names classes and keeps attributes; so modules with the right names, made up here for a
moment and filled with the parameters of our own network, give the very same kind of file.
"""

from __future__ import annotations

import copy
import io
import sys
import types
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from yolo.cfg.load import read_yaml
from yolo.cfg.networks import FOLDER

BACKBONE = [
    [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 3, "C2f", [64, True]],
    [-1, 1, "Conv", [64, 3, 2]],
]  # fmt: skip


def tiny_network(spec, nc=3, **changes):
    """Build the task's head on a backbone of a few rows, 8 channels wide."""
    yaml = read_yaml(FOLDER / f"yolov8{spec.suffix}.yaml")
    source, *head = yaml["head"][-1]
    rows = {"backbone": BACKBONE, "head": [[[2, 3] if isinstance(source, list) else -1, *head]]}
    scales = {"scales": {"n": [0.33, 0.03125, 256]}, "scale": "n"}
    model = spec.model({**yaml, **rows, **scales, "nc": nc, **changes})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@contextmanager
def named_modules():
    """Give a function that makes classes by full name; they are gone afterwards."""
    before = set(sys.modules)

    def make(full, base=nn.Module):
        module, _, name = full.rpartition(".")
        parts = module.split(".")
        for i in range(len(parts)):
            where = ".".join(parts[: i + 1])
            sys.modules.setdefault(where, types.ModuleType(where))
        if not hasattr(sys.modules[module], name):
            made = type(name, (base,), {"__module__": module, "__qualname__": name})
            setattr(sys.modules[module], name, made)
        return getattr(sys.modules[module], name)

    try:
        yield make
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def disguise(module, make, package="ultralytics.nn.modules.block"):
    """Copy a module so that classes of ours have foreign names."""
    ours = type(module).__module__.startswith("yolo")
    twin = nn.Module() if ours else module.__class__.__new__(module.__class__)
    if ours:
        twin.__class__ = make(f"{package}.{type(module).__name__}")
    else:
        twin.__dict__.update(module.__dict__)
    twin._parameters = dict(module._parameters)
    twin._buffers = dict(module._buffers)
    twin._modules = {name: disguise(m, make, package) for name, m in module._modules.items()}
    return twin


def peer_content(
    model, task, make, *, slot="model", names=None, package=None, text=None, **changes
):
    """Return the dict that is pickled; `changes` replace its keys."""
    model = copy.deepcopy(model)
    inner = disguise(model.model, make, package or "ultralytics.nn.modules.block")
    whole = make("ultralytics.nn.tasks.SomeModel")()
    whole.model = inner
    whole.yaml = {k: v for k, v in model.yaml.items() if k != "names"} | {"yaml_file": "/a/b.yaml"}
    whole.names = dict(model.names) if names is None else names
    whole.stride = torch.tensor(model.stride)
    if text is not None:
        whole.txt_feats = text
    whole.half()
    content = {
        "epoch": -1, "model": None, "ema": None, "version": "8.2.0", "date": "2024-01-01",
        "train_args": {"task": task, "imgsz": 64, "data": "a.yaml", "classes": [1], "lr0": 0.01},
        "train_metrics": {"fitness": 0.5}, "train_results": {"epoch": [1, 2], "lr/pg0": [0.1, 0.2]},
    }  # fmt: skip
    return {**content, slot: whole, **changes}


def write_peer_file(path, model, task, **changes):
    """Write a network of ours as the peer would."""
    with named_modules() as make:
        torch.save(peer_content(model, task, make, **changes), path)
    return path


def torch_zip(path: Path, pickle: bytes, entries=(), compression=zipfile.ZIP_STORED) -> Path:
    """Write a torch file around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", b"3\n")
        for name, data in entries:
            archive.writestr(f"archive/{name}", data)
    return path


def torch_bytes(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


ARGS = """
task: null
mode: train
model: yolov8n.yaml
data: d.yaml
epochs: 7
time: null
patience: 100
batch: 64
imgsz: 32
save: true
save_period: -1
cache: false
device: ''
workers: 0
project: p
name: a
exist_ok: false
pretrained: true
cls_remap: true
optimizer: auto
verbose: true
seed: 0
deterministic: true
single_cls: false
rect: false
cos_lr: false
close_mosaic: 10
resume: false
amp: true
fraction: 0.1
profile: false
freeze: null
multi_scale: 0.0
compile: false
channels_last: null
overlap_mask: true
mask_ratio: 4
dropout: 0.0
val: false
split: val
save_json: false
conf: null
iou: 0.7
max_det: 300
quantize: null
half: false
int8: false
dnn: false
plots: false
nms: null
source: null
vid_stride: 1
stream_buffer: false
visualize: false
augment: false
agnostic_nms: false
classes: null
retina_masks: false
embed: null
show: false
save_frames: false
save_txt: false
save_conf: false
save_crop: false
show_labels: true
show_conf: true
show_boxes: true
line_width: null
format: torchscript
keras: false
optimize: false
dynamic: false
simplify: true
opset: null
workspace: null
lr0: 0.01
lrf: 0.01
momentum: 0.937
weight_decay: 0.0005
warmup_epochs: 3.0
warmup_momentum: 0.8
warmup_bias_lr: 0.1
distill_model: null
dis: 6.0
box: 7.5
cls: 0.5
cls_pw: 0.0
dfl: 1.5
pose: 12.0
kobj: 1.0
rle: 1.0
angle: 1.0
nbs: 64
hsv_h: 0.02
hsv_s: 0.7
hsv_v: 0.4
degrees: 0.0
translate: 0.1
scale: 0.5
shear: 0.0
perspective: 0.0
flipud: 0.0
fliplr: 0.5
bgr: 0.0
mosaic: 1.0
mixup: 0.0
cutmix: 0.0
copy_paste: 0.0
copy_paste_mode: flip
auto_augment: randaugment
erasing: 0.4
cfg: null
tracker: tracktrack.yaml
save_dir: /tmp/p/a
"""
"""The args.yaml of a run elsewhere: the options of all modes, most at their defaults."""
