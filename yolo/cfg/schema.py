# SPDX-License-Identifier: Apache-2.0
"""Every option with its type, default, range and meaning: the only home of a default.

A mode has one frozen class; a task adds its own options by a subclass in its own folder. Values
are checked as a careful reader would: no 0 for False, no text for numbers, but 3.0 for 3 and a
list for a tuple. `yolo.cfg.load.resolve` makes the objects; nothing assigns to one afterwards.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

_SPAN = re.compile(r"\d+(\.\d+)?\s*(s|sec|min|h)")


def option(default: Any, help: str, **bounds: float) -> Any:
    """Declare an option.

    Args:
        default: its value when nobody sets it.
        help: a few words for the tables; no full stop.
        bounds: `ge`, `gt`, `le`, `lt`.
    """
    return Field(default=default, description=help, **typing.cast(Any, bounds))


def fraction(default: float, help: str) -> Any:
    """Declare an option between 0 and 1, both allowed."""
    return option(default, help, ge=0, le=1)


def leaves(annotation: Any) -> frozenset[Any]:
    """Return the plain types and literal values that an annotation is made of."""
    parts = typing.get_args(annotation)
    if not parts:
        return frozenset({annotation})
    if typing.get_origin(annotation) is Literal:
        return frozenset(parts)
    return frozenset(leaf for part in parts for leaf in leaves(part))


def _tidy(value: Any, kinds: frozenset[Any]) -> Any:
    """Bring harmless spellings of a value into the one form that the strict check knows."""
    if isinstance(value, list | tuple):
        return tuple(_tidy(item, kinds) for item in value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a NumPy or torch scalar
        value = value.item()
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    if isinstance(value, str):
        same = [x for x in kinds if isinstance(x, str) and x.casefold() == value.casefold()]
        return same[0] if same else value
    return value


class Config(BaseModel):
    """Base of all option classes: frozen, strict, and closed to unknown names."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )
    for_mode: ClassVar[str] = ""
    """The word for messages: train, val, predict."""

    @field_validator("*", mode="before")
    @classmethod
    def _accept_familiar_spellings(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = leaves(cls.model_fields[str(info.field_name)].annotation)
        return value if Any in kinds else _tidy(value, kinds)


class CommonConfig(Config):
    """What every mode understands."""

    model: str | Path | None = option(None, "network YAML, checkpoint or exported file")
    data: Any = option(None, "dataset YAML, COCO JSON, folder, objects, a list, or 'shapes'")
    task: str | None = option(None, "task name; normally read from the model")
    imgsz: int | tuple[int, int] = option(640, "input side, or (height, width), in pixels")
    batch: int | float = option(16, "images a step over all devices; -1 or 0..1: what fits the GPU")
    device: int | str | tuple[int | str, ...] | None = option(None, "cpu, cuda, 0, '0,1', mps")
    ranks: int | None = option(None, "training processes; None: one a device", ge=1)
    workers: int = option(8, "most loader processes; never more than the usable cores", ge=0)
    project: str | Path | None = option(None, "parent of the run folder, under the current folder")
    name: str | None = option(None, "name of the run folder")
    exist_ok: bool = option(False, "write into an existing run folder")
    seed: int = option(0, "of every random choice", ge=0)
    verbose: bool = option(True, "per-image and per-class lines in the log")
    plots: bool = option(True, "write figures and pictures")
    amp: bool | Literal["bf16", "fp16", "fp32"] = option(
        True, "True: mixed precision on CUDA, fp32 on the CPU; or the precision by name"
    )
    half: bool = option(False, "fp16 in val and predict on CUDA; fp32 on the CPU")
    channels_last: bool | None = option(None, "memory layout; None: wherever it is faster")
    cache_dir: str | Path | None = option(None, "folder of label and image caches; None: the run's")
    plugins: tuple[str, ...] = option((), "your own Python files to import first")
    strict: bool = option(False, "stop at the first bad label or image")
    single_cls: bool = option(False, "treat all classes as one")
    classes: tuple[int, ...] | None = option(None, "keep these class ids alone")
    fraction: float = option(1.0, "share of the images to use", gt=0, le=1)

    @field_validator("imgsz")
    @classmethod
    def _check_size(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError(f"expected sides of at least 1 pixel, found {value!r}")
        return value

    @field_validator("batch")
    @classmethod
    def _check_batch(cls, value: int | float) -> int | float:
        value = int(value) if float(value).is_integer() else value
        if not (value == -1 or 0 < value < 1 or (isinstance(value, int) and value >= 1)):
            raise ValueError(
                "expected a whole number of at least 1, -1 (what fits the GPU), or a share of "
                f"the GPU's memory between 0 and 1, found {value!r}"
            )
        return value

    @field_validator("device", mode="before")
    @classmethod
    def _name_device(cls, value: Any) -> Any:
        if type(value).__name__ == "device":  # torch.device, known without importing torch
            return str(value)
        return None if value == "" else value

    @field_validator("plugins", mode="before")
    @classmethod
    def _split_plugins(cls, value: Any) -> Any:
        if value is None:
            return ()
        items = value.split(",") if isinstance(value, str) else value
        items = [items] if isinstance(items, Path) else items
        if not isinstance(items, list | tuple):
            return items
        names = [str(x).strip() if isinstance(x, str | Path) else x for x in items]
        return tuple(name for name in names if name != "")

    @field_validator("classes", mode="before")
    @classmethod
    def _listify_classes(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


class TrainConfig(CommonConfig):
    """Options of training that tasks share."""

    for_mode: ClassVar[str] = "train"

    epochs: int = option(100, "passes over the training images", ge=1)
    time: float | None = option(None, "limit in hours; the epochs are planned anew", gt=0)
    patience: int = option(100, "epochs without a better score before stopping; 0: never", ge=0)
    save: bool = option(True, "write checkpoints")
    save_period: int = option(-1, "keep a checkpoint every N epochs; below 1: none", ge=-1)
    save_every: int | str | None = option(None, "also save every N steps, or every '10min'")
    cache: bool | Literal["ram", "disk"] = option(False, "keep decoded images; True: in memory")
    pretrained: bool | str | Path = option(True, "start from the loaded weights, or from a file")
    optimizer: Literal["auto", "SGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp"] = (
        option("auto", "what auto chose is printed and recorded")
    )
    deterministic: bool = option(True, "choose deterministic algorithms")
    rect: bool = option(False, "batches of similar shape, unshuffled and without mosaic")
    sampler: Literal["balanced"] | None = option(
        None, "balanced: objects of every class equally often, not every image once"
    )
    cos_lr: bool = option(False, "cosine instead of linear decay")
    close_mosaic: int = option(10, "last epochs without mosaic, mixup, cutmix, copy_paste", ge=0)
    resume: bool | str | Path = option(False, "go on from last.pt, exactly")
    freeze: int | str | tuple[int | str, ...] | None = option(
        None,
        "first N layers, or indices, backbone, neck, head, names (model.*.cv2); BatchNorm included",
    )
    layer_lr: float | dict[int | str, float] | None = option(
        None,
        "factors of the learning rate, {backbone: 0.1}, layers as freeze names them; or a number, "
        "the factor from each layer to the one before it",
    )
    teacher: str | Path | None = option(None, "checkpoint of a trained network to learn from")
    distill: str | dict[str, Any] | None = option(
        None, "how: cwd, mgd, logit or self, or {name: ..., gain: ..., and its options}"
    )
    multi_scale: float = option(0.0, "vary imgsz by this share; True: 0.5", ge=0, lt=1)
    val: bool = option(True, "validate in the epochs; the last one always is")
    val_every: int = option(1, "epochs from one validation to the next", ge=1)
    split: Literal["train", "val", "test"] = option("val", "images to validate on")
    monitor: str | None = option(None, "metric that chooses best.pt; None: the task's fitness")
    mode: Literal["max", "min"] | None = option(None, "is a larger monitor better; None: by name")
    conf: float = fraction(0.001, "score floor of the validation")
    iou: float = fraction(0.7, "overlap at which NMS drops a box")
    max_det: int = option(300, "most detections an image", ge=1)
    profile: bool = option(False, "write a profiler trace and a table of where a step goes")
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = option(
        False, "torch.compile the model; reduce-overhead replays CUDA graphs of the step"
    )
    sync_bn: bool = option(False, "BatchNorm over the batch of all ranks; on CUDA alone")

    lr0: float = fraction(0.01, "first learning rate; set, it wins over optimizer=auto")
    lrf: float = fraction(0.01, "last learning rate as a share of lr0")
    momentum: float = fraction(0.937, "or Adam's beta1; set, it wins over optimizer=auto")
    weight_decay: float = fraction(5e-4, "scaled by batch * accumulation / nbs")
    warmup_epochs: float = option(3.0, "length of the linear ramp", ge=0)
    warmup_momentum: float = fraction(0.8, "momentum at the start of the ramp")
    warmup_bias_lr: float = fraction(0.1, "learning rate of biases at the start of the ramp")
    nbs: int = option(64, "nominal batch: gradients accumulate up to it", ge=1)

    hsv_h: float = fraction(0.015, "hue jitter")
    hsv_s: float = fraction(0.7, "saturation jitter")
    hsv_v: float = fraction(0.4, "brightness jitter")
    degrees: float = option(0.0, "rotation, +/-", ge=0)
    translate: float = fraction(0.1, "shift, +/- share of the side")
    scale: float = fraction(0.5, "zoom, 1 +/- this")
    shear: float = option(0.0, "degrees, +/-", ge=0)
    perspective: float = fraction(0.0, "strength; 0.001 is much")
    flipud: float = fraction(0.0, "probability of an upside-down flip")
    fliplr: float = fraction(0.5, "probability of a left-right flip")
    bgr: float = fraction(0.0, "probability of swapped colour channels")
    mosaic: float = fraction(1.0, "probability of four images in one")
    mixup: float = fraction(0.0, "probability of blending two images")
    cutmix: float = fraction(0.0, "probability of pasting a part of another image")
    copy_paste: float = fraction(0.0, "probability of pasting an object by its outline")
    copy_paste_mode: Literal["flip", "mixup"] = option("flip", "paste from itself or another image")
    augmentations: tuple[Any, ...] = option((), "your own transforms: callables on one sample")
    augment_on: Literal["cpu", "device"] = option(
        "cpu", "where pixels are augmented; device: workers send pieces of images, the GPU paints"
    )

    @field_validator("multi_scale", mode="before")
    @classmethod
    def _read_familiar_switch(cls, value: Any) -> Any:
        return 0.5 * value if isinstance(value, bool) else value  # the option was a switch in v8

    @field_validator("layer_lr")
    @classmethod
    def _check_factors(
        cls, value: float | dict[int | str, float] | None
    ) -> float | dict[int | str, float] | None:
        if isinstance(value, dict):
            if min(value.values(), default=1) <= 0:
                raise ValueError(
                    f"expected factors above 0, found {value!r}; freeze= holds layers as they are"
                )
        elif value is not None and not 0 < value <= 1:
            raise ValueError(
                "expected {layers: factor}, as {'backbone': 0.1}, or one number above 0 and up "
                f"to 1, found {value!r}"
            )
        return value

    @field_validator("save_every")
    @classmethod
    def _check_interval(cls, value: int | str | None) -> int | str | None:
        good = _SPAN.fullmatch(value) if isinstance(value, str) else value is None or value >= 1
        if not good:
            raise ValueError(
                f"expected steps (500) or a time ('90s', '10min', '2h'), found {value!r}"
            )
        return value

    @field_validator("augmentations", mode="before")
    @classmethod
    def _check_callables(cls, value: Any) -> Any:
        items = (
            tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)
        )
        for item in items:
            if not callable(item):
                raise ValueError(f"expected callables on one sample, found {item!r}")
        return items


class ValConfig(CommonConfig):
    """Options of validation that tasks share."""

    for_mode: ClassVar[str] = "val"

    split: Literal["train", "val", "test"] = option("val", "which images")
    rect: bool = option(True, "pad each image as little as the stride allows")
    conf: float = fraction(0.001, "score floor")
    iou: float = fraction(0.7, "overlap at which NMS drops a box")
    max_det: int = option(300, "most detections an image", ge=1)
    agnostic_nms: bool = option(False, "one NMS for all classes")
    save_json: bool = option(False, "write predictions.json: what was scored, unrounded")
    save_txt: bool = option(False, "write one label file an image")
    save_conf: bool = option(False, "with the score in save_txt")


class PredictConfig(CommonConfig):
    """Options of prediction that tasks share."""

    for_mode: ClassVar[str] = "predict"

    source: Any = option(None, "file, folder, glob, list, array, PIL image, tensor, video, camera")
    stream: bool = option(False, "give a generator instead of a list")
    batch: int = option(1, "images at once", ge=1)
    vid_stride: int = option(1, "take every N-th frame", ge=1)
    stream_buffer: bool = option(False, "keep every frame of a live stream, not just the newest")
    rect: bool = option(True, "pad as little as the stride allows")
    conf: float = fraction(0.25, "score floor; of track: 0.1")
    iou: float = fraction(0.7, "overlap at which NMS drops a box")
    max_det: int = option(300, "most detections an image", ge=1)
    agnostic_nms: bool = option(False, "one NMS for all classes")
    all_scores: bool = option(False, "fill result.scores: every class's score of each kept box")
    save: bool = option(False, "write annotated pictures and videos (command line: True)")
    save_frames: bool = option(False, "write annotated video frames one by one")
    save_txt: bool = option(False, "write one label file an image")
    save_conf: bool = option(False, "with the score in save_txt")
    save_crop: bool = option(False, "write each object as its own picture")
    show: bool = option(False, "open a window")
    show_labels: bool = option(True, "draw class names")
    show_conf: bool = option(True, "draw scores")
    show_boxes: bool = option(True, "draw boxes")
    line_width: int | None = option(None, "in pixels; None: by image size", ge=1)
    tracker: Any = option("botsort", "track: bytetrack, ocsort, ..., a YAML file, or a Tracker")
    persist: bool = option(False, "track: go on with the tracker of the call before")


class ExportConfig(CommonConfig):
    """Options of export that tasks share."""

    for_mode: ClassVar[str] = "export"

    format: str = option("torchscript", "onnx, torchscript, torch_export, openvino or engine")
    batch: int = option(1, "images a call, unless dynamic", ge=1)
    dynamic: bool | Literal["batch"] = option(
        False, "'batch': any number of images; True: of any size, too"
    )
    half: bool = option(False, "compute in fp16; inputs and outputs stay fp32")
    int8: bool = option(False, "8-bit weights and maps, their scales measured on data=")
    split: Literal["train", "val", "test"] = option("val", "images to measure 8-bit scales on")
    opset: int | None = option(None, "ONNX operator set; None: what most runtimes know", ge=1)
    simplify: bool = option(True, "without effect: ONNX graphs are slim as they are made")
    compile: bool = option(False, "torch_export: compile to machine code by AOTInductor")
    workspace: float | None = option(None, "TensorRT's scratch memory in GiB", gt=0)
    nms: bool = option(False, "suppress overlapping boxes in the file")
    conf: float = fraction(0.25, "score floor of nms")
    iou: float = fraction(0.7, "overlap at which nms drops a box")
    max_det: int = option(300, "rows an image that nms gives", ge=1)
    agnostic_nms: bool = option(False, "one NMS for all classes")
    preprocess: Any = option(None, "a torch module before the network; 'raw': takes uint8 images")
    postprocess: Any = option(None, "a torch module on the outputs, as the file's last step")

    @field_validator("nms", mode="before")
    @classmethod
    def _read_unset(cls, value: Any) -> Any:
        return False if value is None else value  # as familiar metadata have it


class OptionRow(NamedTuple):
    """One line of the option tables."""

    name: str
    type: str
    default: str
    help: str


def type_text(annotation: Any) -> str:
    """Write an annotation the way a person would: "int or (int, int)"."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(part) for part in parts))
    if origin is Literal:
        first = ", ".join(map(repr, parts[:-1]))
        return f"{first} or {parts[-1]!r}" if first else repr(parts[-1])
    if origin is tuple:
        inner = [type_text(part) for part in parts if part is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in parts else f"({', '.join(inner)})"
    names = {Any: "any", Path: "path", type(None): "None"}
    return names.get(annotation) or str(getattr(annotation, "__name__", annotation))


def expected_text(field: FieldInfo) -> str:
    """Write a field's type and range: "int >= 1", "float in (0, 1]", "float > 0 or None"."""
    limits: dict[str, float] = {}
    for bound in field.metadata:
        limits.update({k: getattr(bound, k) for k in ("ge", "gt", "le", "lt") if hasattr(bound, k)})
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    left, right = "[" if "ge" in limits else "(", "]" if "le" in limits else ")"
    if low is None:
        span = ""
    elif high is None:
        span = f" {'>=' if 'ge' in limits else '>'} {low:g}"
    else:
        span = f" in {left}{low:g}, {high:g}{right}"
    kind, optional, _ = type_text(field.annotation).partition(" or None")
    return f"{kind}{span}{optional}"


def option_rows(
    schema: type[Config],
    without: type[Config] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[OptionRow]:
    """List the options of a class.

    Args:
        schema: whose options.
        without: leave out what this class has too with the same default (a task's own remain).
        defaults: what a task has in place of the class's defaults.
    """
    known = without.model_fields if without else {}
    values = {n: (defaults or {}).get(n, field.default) for n, field in schema.model_fields.items()}
    return [
        OptionRow(name, expected_text(field), repr(values[name]), field.description or "")
        for name, field in schema.model_fields.items()
        if name not in known or known[name].default != values[name]
    ]


def render_table(rows: Iterable[OptionRow], *, markdown: bool = False) -> str:
    """Lay rows out as aligned text, or as a Markdown table (for the README)."""
    lines = [OptionRow("option", "type", "default", "meaning"), *rows]
    if markdown:
        cells = [[text.replace("|", "\\|") for text in line] for line in lines]
        cells.insert(1, ["---"] * len(OptionRow._fields))
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    rows_ = (
        [f"{text:<{width}}" for text, width in zip(line[:3], widths, strict=True)] + [line.help]
        for line in lines
    )
    return "\n".join("  ".join(row) for row in rows_)
