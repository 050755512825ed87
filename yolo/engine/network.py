# SPDX-License-Identifier: Apache-2.0
"""The network of a training run: built for the data, with weights taken over, partly frozen."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolo.engine.checkpoint import Checkpoint, load_checkpoint
from yolo.engine.words import check_names
from yolo.errors import CheckpointError, ConfigError, ModelError, nearest
from yolo.nn.parse import parse_model

if TYPE_CHECKING:
    from yolo.cfg.schema import CommonConfig, TrainConfig
    from yolo.data.datasets import DatasetSpec
    from yolo.engine.parts import TrainerParts
    from yolo.nn.model import BaseModel
    from yolo.tasks.spec import TaskSpec

SHOWN = 12
"""Names of layers that a line of the log lists before it only counts."""


def class_names(config: CommonConfig, data: DatasetSpec) -> dict[int, str]:
    """Return the classes to learn."""
    return {0: "item"} if config.single_cls else dict(data.names)


def memory_format(config: CommonConfig) -> torch.memory_format:
    """Return the layout of weights and maps: channels-last unless that is switched off."""
    return torch.contiguous_format if config.channels_last is False else torch.channels_last


def build_model(trainer: TrainerParts) -> tuple[BaseModel, list[str]]:
    """Build the network; return it with the names of its frozen modules.

    Raises:
        ConfigError: if everything would be frozen.
    """
    config: TrainConfig = trainer.args
    names = class_names(config, trainer.data)
    network = {k: v for k, v in trainer.network.items() if k != "names"}
    weights, known, origin = trainer.initial_weights, trainer.network.get("names"), config.model
    if isinstance(config.pretrained, (str, Path)) and trainer.resumed_from is None:
        saved = load_checkpoint(config.pretrained)
        weights, known, origin = saved.weights, saved.names, config.pretrained
        if "words" in saved.network and "words" not in network:
            words = {"names": known, "words": saved.network["words"]}
            trainer.network = {**trainer.network, **words}
    elif weights is not None and known and {*known.values()} < {*names.values()}:
        with torch.random.fork_rng(devices=[]):
            network |= _keys_for(trainer.spec.model(trainer.network), len(names))
    built: BaseModel = trainer.spec.model(network, ch=trainer.data.channels, nc=len(names))
    built.names = names
    if weights is not None:
        trainer.progress.line(take_weights(built, weights, str(origin), known))
    frozen = frozen_modules(built, config.freeze)
    for name, parameter in built.named_parameters():
        if any(name.startswith(f"{prefix}.") for prefix in frozen):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in built.parameters()):
        raise ConfigError(f"freeze={config.freeze!r} freezes all of the network; freeze less")
    return built.to(trainer.device).to(memory_format=memory_format(config)), frozen


def load_model(saved: Checkpoint, spec: TaskSpec, origin: str) -> BaseModel:
    """Build the network of a checkpoint and load its weights; no random number is drawn.

    Raises:
        ModelError: if a layer isn't known here or the weights don't fit the network.
    """
    build = spec.model  # read first: that registers the task's layers
    try:
        _check_size(saved)
        with torch.random.fork_rng(devices=[]):  # its fresh weights are overwritten at once
            model: BaseModel = build(saved.network)
        _check_fit(model.state_dict(), saved.weights)
    except ModelError as error:
        raise ModelError(f"{origin}: {error}") from error
    model.load_state_dict(saved.weights)
    model.names = dict(saved.names)
    return model.eval()


def _check_size(saved: Checkpoint) -> None:
    """Hold the description against the weights before anything as large as it says is made."""
    network = saved.network
    classes, channels = network.get("nc"), network.get("ch", 3)
    if type(classes) is not int or type(channels) is not int or classes != len(saved.names):
        raise ModelError(
            f"its network is for {classes!r} classes and {channels!r} channels, its names are "
            f"{len(saved.names)}"
        )
    try:
        with torch.device("meta"):
            parsed = parse_model(network, channels, classes, network.get("scale"))
    except Exception as error:  # a description from a file may be wrong in any way
        cause = error.__cause__
        if isinstance(cause, RuntimeError) and "meta" in str(cause):
            return  # a user's layer that computes with its tensors while it is built
        if isinstance(error, ModelError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"the network's description can't be used ({reason})") from error
    own = {f"model.{name}": value for name, value in parsed.layers.state_dict().items()}
    _check_fit(own, saved.weights)


def _check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    found = misfits(own, weights)
    if found:
        raise ModelError(f"the weights don't fit the network in the file: {listed(found)}")


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Say for each entry of two state dicts how it differs in shape; empty if they fit."""
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    others = {name: tuple(value.shape) for name, value in given.items()}
    found = [
        f"{name} {others[name]} instead of {shape}"
        for name, shape in shapes.items()
        if name in others and others[name] != shape
    ]
    found += [f"{name} is absent" for name in shapes if name not in others]
    return found + [f"{name} isn't known here" for name in others if name not in shapes]


def take_weights(
    built: BaseModel,
    weights: Mapping[str, Tensor],
    origin: str,
    names: Mapping[int, str] | None = None,
) -> str:
    """Load the weights that fit; return a sentence that lists what was and wasn't taken.

    Args:
        built: the network, with the names of its classes.
        weights: state dict.
        origin: where they come from, for messages.
        names: class names of `weights`. Rows of class layers go where the class of that name is
            now, and a class that wasn't known starts afresh. None takes the rows as they are.

    Raises:
        CheckpointError: if nothing fits.
    """
    given, shared = dict(weights), []
    if names is not None and dict(names) != built.names:
        shared = _move_class_rows(built, given, names)
    report = built.load_weights(given)
    if not report.taken:
        raise CheckpointError(f"weights of {origin}: none of them fits this network")
    text = f"weights of {origin}: took {len(report.taken)} of {len(built.state_dict())} entries"
    if shared:
        text += f"; classes known already: {listed(shared)}"
    left = {re.sub(r"\.\w+$", "", name) for name in (*report.mismatched, *report.missing)}
    return f"{text}; new: {listed(sorted(left))}" if left else text


def listed(names: Sequence[str]) -> str:
    """Join the first `SHOWN` names, and count the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def with_classes(model: BaseModel, names: Any) -> BaseModel:
    """Build a network again, for further classes: what it says of those it has stays, bit for bit.

    New classes come last. Their rows start at nought, at the bias that a fresh head has, so that
    they score alike everywhere, and low, until they are trained.

    Args:
        model: the network.
        names: of the new classes.

    Raises:
        ModelError: if a name is empty, there twice or known already; if there are no rows of
            classes; or if the head's other weights depend on their number.
    """
    new, known = check_names(names), [*model.names.values()]
    twice = [name for name in new if name in known]
    if twice:
        raise ModelError(f"expected names of new classes, the network knows {twice[0]!r} already")
    count = len(known) + len(new)
    keys = _keys_for(model, count)
    if not keys:
        raise ModelError(
            f"{type(model.head).__name__} has no rows of classes to add to, or no `keys_for` as "
            "`Detect` has; a network of words takes set_classes(names, embeddings)"
        )
    with torch.random.fork_rng(devices=[]):
        built = type(model)({**model.yaml, **keys}, nc=count)
    built.names = known + new
    own, weights = built.state_dict(), dict(model.state_dict())
    for key in _class_rows(built):
        prior, old = own[key].ndim == 1 and hasattr(built.head, "init_bias"), weights[key]
        rows = own[key][len(known) :].to(old.device)
        if old.shape[1:] == rows.shape[1:]:
            weights[key] = torch.cat((old, rows if prior else torch.zeros_like(rows)))
    try:
        _check_fit(own, weights)
    except ModelError as error:
        raise ModelError(
            f"{type(model.head).__name__}: its weights depend on the number of classes; let it "
            f"take the network's keys {', '.join(keys)}, as `Detect` does ({error})"
        ) from None
    built.load_state_dict(weights)
    return built.to(next(model.parameters()).device).train(model.training)


def _keys_for(model: BaseModel, count: int) -> dict[str, Any]:
    """Return the keys by which a description of more classes keeps this network's outputs."""
    head: Any = model.head
    return head.keys_for(count) if _class_rows(model) and hasattr(head, "keys_for") else {}


def _class_rows(built: BaseModel) -> list[str]:
    """Return the names of the weights that have a row for each class."""
    layers: Any = getattr(built.head, "class_layers", ())
    known = {id(module): name for name, module in built.named_modules()}
    return [f"{known[id(m)]}.{leaf}" for m in layers for leaf, _ in m.named_parameters()]


def _move_class_rows(
    built: BaseModel, given: dict[str, Tensor], names: Mapping[int, str]
) -> list[str]:
    """Put each class's rows where its name is now; return the names known on both sides."""
    places = {name: i for i, name in names.items()}
    pairs = [(i, places[name]) for i, name in built.names.items() if name in places]
    own = built.state_dict()
    for key in _class_rows(built):
        old = given.get(key)
        if old is None or old.shape[1:] != own[key].shape[1:] or len(old) != len(names):
            continue
        if not pairs:
            del given[key]
            continue
        rows = own[key].clone()
        for new, before in pairs:
            rows[new] = old[before]
        given[key] = rows
    return [built.names[new] for new, _ in pairs]


def frozen_modules(built: Any, freeze: Any) -> list[str]:
    """Turn `freeze` into names of modules.

    Args:
        built: a network made of `model.0`, `model.1`, ...
        freeze: the number of first layers; or a list, or one, of indices, names of parts
            ("backbone", "neck", "head": the rows before the YAML's `head`, between, the last one),
            and module names, with `*` and `?` as in file names.

    Raises:
        ConfigError: if nothing has the name.
    """
    if freeze is None:
        return []
    if isinstance(freeze, int):
        wanted: Sequence[Any] = range(freeze)
    else:
        wanted = [freeze] if isinstance(freeze, str) else freeze
    return [name for item in wanted for name in _modules(built, item, f"freeze={freeze!r}")]


def rate_factors(built: Any, layer_lr: Any) -> dict[nn.Parameter, float]:
    """Turn `layer_lr` into factors of learning rates.

    Args:
        built: a network made of `model.0`, `model.1`, ...
        layer_lr: {layers: factor}, layers as `freeze` names them; where several apply, the last
            one counts. Or a number: a layer has it to the power of the layers that follow.

    Returns:
        Factors by parameter; those that are left out keep the rate.

    Raises:
        ConfigError: if nothing has the name.
    """
    if layer_lr is None:
        return {}
    if not isinstance(layer_lr, Mapping):
        last = len(built.model) - 1
        return rate_factors(built, {i: layer_lr ** (last - i) for i in range(last + 1)})
    return {
        parameter: factor
        for item, factor in layer_lr.items()
        for name in _modules(built, item, f"layer_lr={layer_lr!r}")
        for parameter in built.get_submodule(name).parameters()
    }


def _modules(built: Any, item: int | str, option: str) -> list[str]:
    """Return the names of the modules that an index, a part or a pattern stands for."""
    layers = [f"model.{i}" for i in range(len(built.model))]
    first = len(built.yaml["backbone"])
    parts = {"backbone": layers[:first], "neck": layers[first:-1], "head": layers[-1:]}
    known = [name for name, _ in built.named_modules() if name]
    pattern = f"model.{item}" if isinstance(item, int) else item
    found = parts.get(pattern) or fnmatch.filter(known, pattern)
    if not found:
        text = (
            f"{option}: the network has no module {pattern!r}; it has model.0 to {layers[-1]} "
            f"and the parts {', '.join(parts)}. {nearest(pattern, [*parts, *known])}"
        )
        raise ConfigError(text.rstrip())
    return found


def set_train_mode(built: nn.Module, frozen: Sequence[str]) -> None:
    """Put the network into training mode, frozen parts with their BatchNorm into eval mode."""
    built.train()
    for name in frozen:
        built.get_submodule(name).eval()
