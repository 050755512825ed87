# SPDX-License-Identifier: Apache-2.0
"""A network built from its description: routed forward, decoding, fusing, loading, information.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo.cfg.load import MAX_CLASSES
from yolo.cfg.networks import choose_scale, find_network
from yolo.errors import CheckpointError, ModelError
from yolo.nn import info
from yolo.nn.conv import SILU
from yolo.nn.parse import IMAGE, parse_model

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What `BaseModel.load_weights` did, as names of state-dict entries.

    Args:
        taken: loaded.
        missing: in the model alone; left as they were.
        unexpected: in the given weights alone.
        mismatched: of another shape, as name -> (the model's, the given); left as they were.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


class BaseModel(nn.Module):
    """A network from the rows of a description.

    Args:
        cfg: a network's name ("yolov8n.yaml"), a path, or the description itself, such as
            `yaml` of another model; None takes `default_cfg`.
        ch: channels of the image; None takes the description's `ch`, else 3.
        nc: number of classes; None takes the description's `nc`, else 80.
        verbose: log the table of layers.

    Attributes:
        default_cfg: what is built when no `cfg` is given.
        model: the rows' modules, an ``nn.Sequential``.
        rows: what each row reads.
        save: numbers of the rows whose output a later row reads.
        yaml: what builds this network again (with `nc`, `ch`, `scale`, `names`): plain data, but
            for the tensor `words` of a network that is guided by them.
        stride: pixels per cell of each level the head reads; (1,) for a head without levels.

    Raises:
        MissingFileError: if there is no such description.
        ModelError: if a row is wrong, naming its number and text.
    """

    default_cfg = "yolov8n.yaml"
    yaml: dict[str, Any]
    stride: tuple[int, ...]

    def __init__(
        self,
        cfg: str | Path | Mapping[str, Any] | None = None,
        ch: int | None = None,
        nc: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__()
        self.yaml, source = _describe(self.default_cfg if cfg is None else cfg, ch, nc)
        parsed = parse_model(
            self.yaml, self.yaml["ch"], self.yaml["nc"], self.yaml["scale"], source
        )
        self.model, self.save, self.rows = parsed
        _set_activation(self.model, self.yaml.get("activation", "SiLU"), source)
        try:
            self._init_head()
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from error
        if verbose:
            self.info()

    def _init_head(self) -> None:
        """Tell the head its strides, and let it choose the biases that depend on them."""
        head: Any = self.head
        self.stride = (1,)
        if hasattr(head, "stride"):
            self.stride = head.stride = info.find_strides(self)
        if hasattr(head, "init_bias"):
            head.init_bias()

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.model[-1]

    @property
    def nc(self) -> int:
        """Number of classes."""
        return int(self.yaml["nc"])

    @property
    def num_channels(self) -> int:
        """Channels of the image."""
        return int(self.yaml["ch"])

    @property
    def names(self) -> dict[int, str]:
        """Names of the classes by number."""
        names: dict[int, str] = self.yaml["names"]
        return names

    @names.setter
    def names(self, names: Mapping[int, str] | Iterable[str]) -> None:
        self.yaml["names"] = _class_names(names, self.nc)

    def forward(self, x: Tensor, side: Any = None, capture: Collection[int] = ()) -> Any:
        """Predict: the head's raw output in training mode, the decoded one in eval mode.

        Args:
            x: (B, C, H, W) float image, RGB, 0..1; H and W multiples of the largest stride.
            side: what layers with a side input get beside their map (text, say); None: what
                the head has as `side`, if anything.
            capture: numbers of rows whose outputs are wanted too.

        Returns:
            The output; with `capture`, a pair of it and a dict from row number to output.
        """
        out = self.raw(x, side, capture)
        raw, captured = out if capture else (out, None)
        result = raw if self.training else self.decode(raw)
        return (result, captured) if capture else result

    def raw(self, x: Tensor, side: Any = None, capture: Collection[int] = ()) -> Any:
        """Run all rows; the arguments and `capture` are those of `forward`.

        Returns:
            The head's raw output in either mode.
        """
        kept = self._run(x, side, len(self.rows), capture)
        raw = kept[len(self.rows) - 1]
        return (raw, {i: kept[i] for i in capture}) if capture else raw

    def features(self, x: Tensor, side: Any = None) -> Any:
        """Run all rows but the head.

        Returns:
            What the head would get: a map, or a list of maps where it reads several.
        """
        head = self.rows[-1]
        maps = [self._run(x, side, head.index, head.sources)[i] for i in head.sources]
        return maps if head.several else maps[0]

    def _run(self, x: Any, side: Any, stop: int, capture: Collection[int]) -> dict[int, Any]:
        """Run rows before `stop`; give the outputs of the last, of `save` and of `capture`."""
        for i in capture:
            if not 0 <= i < len(self.rows):
                raise ModelError(f"no row {i} to capture; expected 0 to {len(self.rows) - 1}")
        keep = {*self.save, *capture, stop - 1}
        kept = {IMAGE: x}
        given_side = side = getattr(self.head, "side", None) if side is None else side
        for row, module in zip(self.rows[:stop], self.model, strict=False):
            maps = [x if i == row.index - 1 else kept[i] for i in row.sources]
            given = maps if row.several else maps[0]
            if row.side:
                x = module(given, given_side if row is self.rows[-1] else side)
            else:
                x = module(given)
            if row.side == "renew":
                side = x
            if row.index in keep:
                kept[row.index] = x
        return kept

    def decode(self, raw: Any) -> Any:
        """Turn the head's raw output into predictions, see the head's `decode`."""
        head: Any = self.head
        return head.decode(raw)

    def fuse(self) -> BaseModel:
        """Let every layer fold what it can for inference (a `fuse()` method); returns self."""
        for module in list(self.modules()):
            fold = getattr(module, "fuse", None)
            if module is not self and callable(fold):
                fold()
        return self

    def info(
        self, detailed: bool = False, verbose: bool = True, imgsz: int | tuple[int, int] = 640
    ) -> tuple[int, int, int, float]:
        """Log the table of layers, and count.

        Args:
            detailed: list every parameter too.
            verbose: log; otherwise count only.
            imgsz: side or (h, w) of the image that operations are counted for, pixels.

        Returns:
            Layers (all distinct modules, containers included), parameters, parameters with a
            gradient, and GFLOPs (two operations per multiply-add).
        """
        size = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
        return info.report(self, size, detailed, verbose)

    def load_weights(self, state_dict: Mapping[str, Tensor]) -> LoadReport:
        """Take the weights whose name and shape fit; leave the rest of the model as it is.

        Raises:
            CheckpointError: if `state_dict` isn't a mapping from names to tensors.
        """
        if not isinstance(state_dict, Mapping) or not all(
            isinstance(value, Tensor) for value in state_dict.values()
        ):
            raise CheckpointError(
                f"expected weights as a mapping from names to tensors, got {type(state_dict)}"
            )
        own = self.state_dict()
        shapes = {
            name: (tuple(own[name].shape), tuple(value.shape))
            for name, value in state_dict.items()
            if name in own
        }
        taken = tuple(name for name, (mine, given) in shapes.items() if mine == given)
        self.load_state_dict({name: state_dict[name] for name in taken}, strict=False)
        return LoadReport(
            taken=taken,
            missing=tuple(name for name in own if name not in state_dict),
            unexpected=tuple(name for name in state_dict if name not in own),
            mismatched={name: pair for name, pair in shapes.items() if pair[0] != pair[1]},
        )


def _describe(
    cfg: str | Path | Mapping[str, Any], ch: int | None, nc: int | None
) -> tuple[dict[str, Any], str]:
    """Give the full description (a copy) and a name for messages."""
    if isinstance(cfg, Mapping):
        source = "network"
        yaml = copy.deepcopy(dict(cfg))
        scale = yaml.get("scale") or choose_scale(yaml.get("scales"), "", source)
    else:
        found = find_network(cfg)
        yaml, scale, source = dict(found.yaml), found.scale, str(found.path)
    count = yaml.get("nc", 80) if nc is None else nc
    channels = yaml.get("ch", 3) if ch is None else ch
    for key, value in (("nc", count), ("ch", channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{source}: expected {key} as a whole number >= 1, got {value!r}")
    if count > MAX_CLASSES:
        raise ModelError(f"{source}: expected nc as at most {MAX_CLASSES}, got {count}")
    if count != yaml.get("nc", count):
        _LOG.debug("%s: nc %s becomes %s", source, yaml["nc"], count)
        yaml.pop("names", None)
    names = _class_names(yaml.get("names") or {}, count)
    return {**yaml, "nc": count, "ch": channels, "scale": scale, "names": names}, source


def _class_names(names: Mapping[Any, Any] | Iterable[Any], count: int) -> dict[int, str]:
    """Number the names from 0; a class without a name has its number as name."""
    given = names if isinstance(names, Mapping) else dict(enumerate(names))
    try:
        known = {int(i): str(name) for i, name in given.items()}
    except (TypeError, ValueError):
        raise ModelError(f"expected `names` as a list or id: name pairs, got {names!r}") from None
    if any(not 0 <= i < count for i in known):
        raise ModelError(f"expected names for classes 0 to {count - 1}, got {sorted(known)}")
    return {i: known.get(i, str(i)) for i in range(count)}


def _set_activation(layers: nn.Module, name: Any, source: str) -> None:
    """Replace the common activation by one of the network's own, of the named kind.

    Its own even when the kind is the same: mode and hooks of two networks don't mix.
    """
    word = str(name).removeprefix("torch.").removeprefix("nn.").removesuffix("()")
    known = torch.nn.modules.activation.__all__
    try:
        chosen = getattr(nn, known[known.index(word)])()
    except (ValueError, TypeError):
        raise ModelError(
            f"{source}: activation {name!r}: expected the name of a torch.nn activation, without "
            f"arguments: {', '.join(sorted(known))}"
        ) from None
    for module in list(layers.modules()):
        for key, child in list(module.named_children()):
            if child is SILU:
                setattr(module, key, chosen)
