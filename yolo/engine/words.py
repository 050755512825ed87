# SPDX-License-Identifier: Apache-2.0
"""From names of classes to embeddings: given ones, files, text encoders, and a file that remembers.

An encoder is a function `(list of N names) -> (N, E)` numbers. With a decorator it gets a name, by
which the command line finds it, and options::

    from yolo.engine.words import TEXT_ENCODERS

    @TEXT_ENCODERS.register("mine")
    def encode(names, size="base"): ...

N names, E width of an embedding.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from yolo.engine.safetensors import package
from yolo.errors import (
    ConfigError,
    MissingFileError,
    MissingPackageError,
    ModelError,
    YoloError,
    nearest,
)
from yolo.registry import Registry

TEXT_ENCODERS: Registry[Callable[..., Any]] = Registry("text encoder")
SUFFIXES = (".npy", ".npz", ".safetensors")
_HELP = (
    "give them to set_classes(names, embeddings), or to train(text_embeddings=): a .npy, .npz or "
    ".safetensors file or a text encoder (docs/world.md)"
)


def check_names(names: Any) -> list[str]:
    """Return class names as a list.

    Raises:
        ModelError: if they are no names, or one is empty or there twice.
    """
    values = names.values() if isinstance(names, Mapping) else names
    given = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not given or not all(isinstance(name, str) and name.strip() for name in given):
        raise ModelError(
            f"expected names as a list of texts, such as ['cat', 'red car'], none empty, got "
            f"{names!r}"
        )
    twice = [name for name, count in Counter(given).items() if count > 1]
    if twice:
        raise ModelError(f"expected each name once, found {twice[0]!r} more often")
    return given


def unit_rows(values: Any) -> Tensor:
    """Return embeddings (N, E) at length 1, float32 on the CPU; what has it keeps its bits.

    Raises:
        ModelError: if they aren't rows of finite numbers, or one is all nought.
    """
    try:
        given = values if isinstance(values, Tensor) else np.asarray(values)
        rows = torch.as_tensor(given, device="cpu").detach().to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"expected embeddings as rows of numbers ({error})") from None
    length = rows.norm(dim=-1, keepdim=True)
    if rows.ndim != 2 or not (torch.isfinite(length) & (length > 0)).all():
        raise ModelError(
            f"expected embeddings (N, E) of finite numbers, none all nought, got {rows.ndim} "
            f"dimensions, {int(torch.isfinite(rows).sum())} finite of {rows.numel()} numbers"
        )
    return torch.where((length - 1).abs() < 1e-5, rows, F.normalize(rows, dim=1))


def embed(names: Sequence[str], source: Any) -> Tensor:
    """Return the embeddings (N, E) of names, at length 1.

    Args:
        names: N names.
        source: the embeddings as a tensor, array or rows; a file of them (`read_embeddings`); an
            encoder; a name in TEXT_ENCODERS, or a mapping with `name`, its options, and `cache`,
            a file for `cached`.

    Raises:
        YoloError: if there is no such file or encoder, or it hasn't one row a name.
    """
    if isinstance(source, Path) or (isinstance(source, str) and source.endswith(SUFFIXES)):
        found = read_embeddings(source, names)
    elif isinstance(source, (str, Mapping)):
        found = _chosen(source)(list(names))
    else:
        found = source(list(names)) if callable(source) else source
    rows = unit_rows(found)
    if len(rows) != len(names):
        raise ModelError(f"expected {len(names)} embeddings, one a name, found {len(rows)}")
    return rows


def embeddings_of(network: Mapping[str, Any], names: Sequence[str]) -> Tensor:
    """Return the embeddings of names among the words of a network's description.

    Raises:
        ModelError: if there is a name that it doesn't hold.
    """
    words = network.get("words", ())
    rows = dict(zip((network.get("names") or {}).values(), words, strict=False))
    return torch.stack(_pick(rows, names, "the network"))


def read_embeddings(path: str | Path, names: Sequence[str]) -> Any:
    """Read the embeddings (N, E) of names.

    A file holds rows in the order of the names: a .npy file, or `embeddings` (N, E). Or it holds
    more than those, in any order: `names` beside `embeddings`, or one vector under each name.

    Raises:
        MissingFileError: if it isn't there.
        ModelError: if it can't be read, or a name isn't in it.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: there is no such file of text embeddings")
    by_name = _arrays(path)
    rows = by_name.get("embeddings")
    if rows is not None and rows.ndim == 2:
        if "names" not in by_name:
            return rows
        by_name = dict(zip(by_name["names"].tolist(), rows, strict=False))
    return np.stack(_pick(by_name, names, str(path)))


def cached(encoder: Callable[[list[str]], Any], path: str | Path, origin: str = "") -> Any:
    """Return an encoder that keeps in a .npz file what it has been asked, and asks no more for it.

    Args:
        encoder: asked for what isn't there.
        path: the file, made where it is absent.
        origin: what the encoder is; a file that another has written is refused.
    """
    path = Path(path)

    def encode(names: list[str]) -> Any:
        stored = _arrays(path) if path.is_file() else {}
        if stored and str(stored.get("origin", "")) != origin:
            raise ConfigError(
                f"{path}: holds embeddings by {str(stored.get('origin', ''))!r}, expected "
                f"{origin!r}; name another cache"
            )
        known = dict(zip(stored.get("names", ()), stored.get("embeddings", ()), strict=False))
        new = [name for name in names if name not in known]
        if new:
            known |= dict(zip(new, unit_rows(encoder(new)).cpu().numpy(), strict=True))
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(file, names=[*known], embeddings=[*known.values()], origin=origin)
            os.replace(temporary, path)
        return np.stack([known[name] for name in names])

    return encode


def _chosen(source: str | Mapping[str, Any]) -> Callable[[list[str]], Any]:
    """Return the registered encoder that an option names."""
    options = {"name": source} if isinstance(source, str) else dict(source)
    cache = options.pop("cache", None)
    try:
        encoder = TEXT_ENCODERS.function(options, inputs=1)
    except YoloError as error:
        files = f"; or a file ({', '.join(SUFFIXES)})"
        raise type(error)(f"text embeddings {source!r}: {error}{files}") from None
    origin = json.dumps(options, sort_keys=True, default=str)
    return cached(encoder, cache, origin) if cache else encoder


def _arrays(path: Path) -> dict[str, Any]:
    """Read all arrays of a file by name."""
    try:
        if path.suffix == ".safetensors":
            tensors = package().torch.load_file(path)
            return {name: tensor.float().numpy() for name, tensor in tensors.items()}
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"embeddings": found}
        with found:
            return {name: found[name] for name in found.files}
    except MissingPackageError:
        raise
    except Exception as error:  # damage shows in many ways
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(f"{path}: expected arrays of text embeddings ({reason})") from error


def _pick(rows: Mapping[str, Any], names: Sequence[str], origin: str) -> list[Any]:
    missing = [name for name in names if name not in rows]
    if missing:
        which = repr(missing[0]) + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        near = nearest(missing[0], rows)
        raise ModelError(f"{origin} has no embedding of {which}; {_HELP}. {near}".rstrip())
    return [rows[name] for name in names]


@TEXT_ENCODERS.register("open_clip")
def open_clip(
    names: list[str],
    model: str = "ViT-B-32-quickgelu",
    pretrained: str | None = None,
    device: str = "cpu",
) -> Tensor:
    """Encode names with a CLIP of the package open_clip.

    Args:
        names: N names.
        model: the architecture's name there; this one belongs to the published YOLO-World weights.
        pretrained: path of weights; or a tag of that package, which then downloads them.
        device: where to run.

    Returns:
        (N, E) embeddings.

    Raises:
        MissingPackageError: without the package.
        ConfigError: without `pretrained`, or if the package can't use it or `model`.
    """
    if pretrained is None:
        raise ConfigError(
            "text encoder 'open_clip' needs pretrained=: the path of CLIP's weights, or a tag such "
            "as 'openai', for which that package downloads them"
        )
    try:
        import open_clip as clip
    except ImportError as error:
        raise MissingPackageError(
            "text encoder 'open_clip' needs the package open_clip_torch: "
            "pip install 'plainyolo[world]'"
        ) from error
    try:
        network = clip.create_model(model, pretrained=pretrained, device=device).eval()
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"text encoder 'open_clip': {str(error)[:300]}") from error
    with torch.inference_mode():
        found: Tensor = network.encode_text(clip.get_tokenizer(model)(names).to(device))
    return found.clone()
