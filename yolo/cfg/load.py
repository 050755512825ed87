# SPDX-License-Identifier: Apache-2.0
"""Make checked options out of what people write: keyword arguments, command line words, YAML files.

Layers are merged once, the rightmost wins, and the result is frozen. A name that nobody knows is an
error with the nearest one; familiar old names are translated aloud. YAML is read as plain data:
no tags, no duplicate keys, no expansion without bounds.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from yolo.cfg.schema import (
    Config,
    ExportConfig,
    PredictConfig,
    TrainConfig,
    ValConfig,
    expected_text,
    leaves,
)
from yolo.errors import ConfigError, MissingFileError, YoloError, nearest

LOGGER = logging.getLogger(__name__)
C = TypeVar("C", bound=Config)

MAX_YAML_BYTES = 16 << 20
MAX_YAML_NODES = 1_000_000  # after the expansion of aliases; LVIS' 1203 names need about 2500
MAX_CLASSES = 1_000_000  # that a file may ask for by a count alone; each gets a name

MODES: tuple[type[Config], ...] = (TrainConfig, ValConfig, PredictConfig, ExportConfig)
"""The option classes of the modes, for messages and tables."""

ALIASES: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "hide_labels": ("show_labels", lambda value: not value),
    "hide_conf": ("show_conf", lambda value: not value),
    "boxes": ("show_boxes", lambda value: value),
    "line_thickness": ("line_width", lambda value: value),
}
"""Familiar older names: the name of today, and how the value is translated."""

REMOVED = frozenset({"label_smoothing", "save_hybrid", "crop_fraction", "keras"})
"""Names that old scripts still pass; accepted with a warning and without effect."""

REFUSED: Mapping[str, str] = {
    "augment": "there is no test-time augmentation; use a larger imgsz, or merge your own calls",
    "visualize": "use model.model(images, capture=[row]) for the feature maps of a layer",
    "embed": "use model.model(images, capture=[row]) and average over height and width",
    "optimize": "torch.export files are compiled where they run; leave it out",
    "end2end": "use nms=True",
    "dnn": "ONNX files run on onnxruntime; leave it out",
    "save_dir": "the run folder is project/name; use project= and name=",
}
"""Names that are known and not offered, with what to use instead."""

_ELSEWHERE = {"tracker": "track", "persist": "track"}

FAMILIAR = frozenset(
    {"cfg", "cls_pw", "cls_remap", "distill_model", "dis", "rle", "angle", "dlog", "dgrad", "dlam"}
    | {"v5loader", "min_memory", "image_weights"}
)
"""Names in options files of other origin that mean nothing here, at whatever value."""

FOREIGN_MODES = frozenset({"train", "val", "predict", "track", "export", "benchmark", "tune"})


Elsewhere = Callable[[str], Sequence[tuple[str, type[Config]]]]
"""Option name -> (task, option class) of the tasks and modes that have it."""


def resolve(
    schema: type[C], *layers: Mapping[str, Any], elsewhere: Elsewhere = lambda name: ()
) -> C:
    """Merge layers of options and check them.

    The names that any layer gave are in the result's `model_fields_set`. An option of the same mode
    that only other tasks have is left out aloud, since scripts give one set of options to several
    models; one of another mode is an error, since it can't do here what its user expects.

    Args:
        schema: the class of options to make.
        layers: name -> value, the rightmost wins; none of them is changed.
        elsewhere: asked about a name that `schema` doesn't have, it lists the (task, schema) that
            have it.

    Raises:
        ConfigError: an unknown name, a wrong type, a value out of range; one line each.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            merged.update(_translate(schema, str(name), value, elsewhere))
    try:
        return schema.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(schema, error, merged))) from None


def _translate(schema: type[Config], name: str, value: Any, elsewhere: Elsewhere) -> dict[str, Any]:
    """Turn one option as given into the options of `schema` that it means (none or one)."""
    known = schema.model_fields
    if name in known:
        return {name: value}
    if name in REMOVED:
        LOGGER.warning("option '%s' has no effect any more; leave it out", name)
        return {}
    if name in REFUSED:
        if value is None or value is False:
            return {}
        raise ConfigError(f"option {name!r} ({schema.for_mode}) isn't offered: {REFUSED[name]}")
    if name in ALIASES and ALIASES[name][0] in known:
        now, convert = ALIASES[name]
        LOGGER.warning("option '%s' is called '%s' now", name, now)
        return {now: convert(value)}
    if name in ("quantize", "int8") and "half" in known:
        return _read_precision(schema, name, value)
    homes = elsewhere(name)
    here = [(task, home) for task, home in homes if home.for_mode == schema.for_mode]
    if not here:
        raise ConfigError(_explain_unknown(schema, name, homes))
    if value != here[0][1].model_fields[name].default:
        tasks = " and ".join(task for task, _ in here)
        LOGGER.warning("option '%s' is for %s; it has no effect on this model", name, tasks)
    return {}


def _read_precision(schema: type[Config], name: str, value: Any) -> dict[str, Any]:
    """Read the newer spelling of `half` and `int8`: quantize=8, 16, 32 or None.

    Only export makes 8-bit weights; elsewhere they are refused with the way.
    """
    if value is None or value is False:
        return {}
    eight = "int8" in schema.model_fields
    if name == "quantize" and value in (16, 32, *([8] if eight else [])) and value is not True:
        return {"half": value == 16, **({"int8": value == 8} if eight else {})}
    raise ConfigError(
        f"option {name!r}: expected quantize={'8, ' if eight else ''}16 or 32, found "
        f"{reprlib.repr(value)}. 8-bit weights are made by export; then run the exported file"
    )


def _explain_unknown(
    schema: type[Config], name: str, homes: Sequence[tuple[str, type[Config]]]
) -> str:
    """Write the message about a name that `schema` doesn't have; `homes` are schemas that do."""
    mode = schema.for_mode
    general = [other.for_mode for other in MODES if name in other.model_fields]
    special = [f"{task} {home.for_mode}" for task, home in homes]
    home = _ELSEWHERE.get(name) or " and ".join(general or special)
    if home:
        return f"option {name!r} belongs to {home}, not to {mode}. See 'yolo cfg'"
    parts = [
        f"unknown option {name!r} ({mode}).",
        nearest(name, schema.model_fields),
        "See 'yolo cfg'",
    ]
    return " ".join(part for part in parts if part)


def _explain(schema: type[Config], error: ValidationError, given: Mapping[str, Any]) -> list[str]:
    """Write one line for each option that pydantic found fault with."""
    lines: dict[str, str] = {}
    for fault in error.errors():
        name = str(fault["loc"][0]) if fault["loc"] else ""
        own = fault.get("ctx", {}).get("error")
        if own is not None:  # a validator of ours has said it already
            lines[name] = f"option {name!r} ({schema.for_mode}): {own}. See 'yolo cfg'"
        if name in lines:
            continue
        field, value = schema.model_fields[name], given.get(name)
        words = [x for x in leaves(field.annotation) if isinstance(x, str)]
        close = nearest(value, words) if isinstance(value, str) else ""
        text = (
            f"option {name!r} ({schema.for_mode}): expected {expected_text(field)}, "
            f"found {reprlib.repr(value)} ({type(value).__name__})."
        )
        lines[name] = " ".join(part for part in (text, close, "See 'yolo cfg'") if part)
    return list(lines.values())


def parse_value(text: str) -> Any:
    """Read a value from the command line.

    Returns:
        None, True or False (in any case), a Python literal (number, list, tuple, ...), else `text`.
    """
    words = {"none": None, "true": True, "false": False}
    if text.casefold() in words:
        return words[text.casefold()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)")
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)


class _Reader(yaml.SafeLoader):
    """Safe loader with YAML 1.2's scalars, without duplicate keys or unbounded aliases.

    YAML 1.1 takes `no` for False, 1:20 for 80, 010 for 8 and 1e-3 for text: class names and
    learning rates suffer. Here a plain scalar is null, true or false, a number, or text.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; refuse a key that stands in it twice."""
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, Any], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            first = seen.get((key.tag, key.value))
            if first is not None:
                problem = f"key {key.value!r} stands in line {first} already"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[key.tag, key.value] = key.start_mark.line + 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document; refuse aliases that would expand without bounds."""
        node = super().get_single_node()
        if node is not None and _expanded_size(node, {}) > MAX_YAML_NODES:
            problem = f"aliases expand to more than {MAX_YAML_NODES} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node


def _resolve_scalars_plainly(reader: type[_Reader]) -> None:
    """Give the loader its rules; `first` is the characters that such a scalar can begin with."""
    for tag, pattern, first in (
        ("null", _NULL, ["~", "n", "N", ""]),
        ("bool", _BOOL, list("tTfF")),
        ("int", _INT, list("-+0123456789")),
        ("float", _FLOAT, list("-+.0123456789")),
        ("merge", re.compile("<<"), ["<"]),
    ):
        whole = re.compile(rf"(?:{pattern.pattern})\Z")
        reader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", whole, first)


_resolve_scalars_plainly(_Reader)


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the values below a node as if every alias were written out.

    Raises:
        yaml.constructor.ConstructorError: if the node contains itself.
    """
    known = sizes.get(id(node))
    if known == 0:  # its count has begun and not ended: we are inside it
        raise yaml.constructor.ConstructorError(
            None, None, "an alias stands for what contains it", node.start_mark
        )
    if known is None:
        sizes[id(node)] = 0
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known = 1 + sum(_expanded_size(child, sizes) for child in children)
        sizes[id(node)] = known
    return known


def read_yaml(path: str | PurePath, *, error: type[YoloError] = ConfigError) -> dict[Any, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Args:
        path: a file in UTF-8, at most 16 MiB.
        error: what to raise when the contents are bad.

    Raises:
        MissingFileError: there is no such file.
        YoloError: (as `error`) not UTF-8, not YAML, a key twice, aliases that expand to more than
            a million values, something else than a mapping; "file:line: what".
    """
    text = _read_text(Path(path), error)
    try:
        found = yaml.load(text, Loader=_Reader)  # a SafeLoader: plain data, no objects
    except yaml.reader.ReaderError as fault:
        line = text.count("\n", 0, fault.position) + 1
        raise error(f"{path}:{line}: {fault.reason}; remove the character") from None
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = str(fault.problem or fault.context)
        if fault.context and fault.context_mark:
            what += f", {fault.context} begun in line {fault.context_mark.line + 1}"
        raise error(f"{where}: {what}") from None
    except RecursionError:
        raise error(f"{path}: nested too deeply for a YAML file of options") from None
    except ValueError as fault:  # an explicit tag that its text doesn't fit
        raise error(f"{path}: {fault}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise error(f"{path}:1: expected `key: value` lines, found a {type(found).__name__}")
    return found


def read_options(path: str | PurePath, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the options of `cfg=file`, such as the args.yaml of a run.

    Args:
        path: the file.
        given: options beside it, which win.

    Raises:
        MissingFileError, ConfigError: see `read_yaml`; and if the file names plugins that `given`
            doesn't: code is imported only where the user himself names it.
    """
    options = {str(name): value for name, value in read_yaml(path).items()}
    options.pop("save_dir", None)  # where a run went; no option
    if options.get("mode") in FOREIGN_MODES:  # what a run was; not the option of this name
        del options["mode"]
    plugins = options.pop("plugins", None)
    if plugins and not given.get("plugins"):
        listed = plugins if isinstance(plugins, str) else ",".join(map(str, plugins))
        raise ConfigError(
            f"{path}: names plugins, and a file can't import code. If you trust it, give "
            f"plugins={listed} yourself"
        )
    return options


def _read_text(path: Path, error: type[YoloError]) -> str:
    """Read a UTF-8 file of bounded size; a byte-order mark is dropped."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise MissingFileError(f"{path}: expected a YAML file, found {found} (in {os.getcwd()})")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise error(f"{path}: expected a YAML file of at most {MAX_YAML_BYTES >> 20} MiB")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = raw.count(b"\n", 0, fault.start) + 1
        raise error(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None


class _Writer(yaml.SafeDumper):
    """Dumper that quotes whatever YAML 1.1 or the reader above would take for more than text."""


_Writer.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"(?:{_FLOAT.pattern})\Z"), list("-+.0123456789")
)
_Writer.add_multi_representer(PurePath, lambda writer, path: writer.represent_str(os.fspath(path)))


def _represent_text(writer: _Writer, text: str) -> yaml.Node:
    """Quote text with rare line breaks; PyYAML writes them bare and reads them as blanks."""
    quotes = '"' if any(mark in text for mark in "\r\x85\u2028\u2029") else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=quotes)


_Writer.add_representer(str, _represent_text)


def write_yaml(path: str | PurePath, mapping: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, keys in their order, so that a crash leaves the old file or the new.

    Raises:
        ConfigError: a value is no plain data (text, number, bool, None, path, list, dict).
    """
    try:
        text = yaml.dump(
            dict(mapping), Dumper=_Writer, sort_keys=False, allow_unicode=True, width=100
        )
    except yaml.representer.RepresenterError as fault:
        value = reprlib.repr(fault.args[-1])
        raise ConfigError(f"{path}: expected plain data to write, found {value}") from None
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(target)
