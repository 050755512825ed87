# SPDX-License-Identifier: Apache-2.0
"""Embeddings of names: given, from files, from encoders, remembered."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from yolo.engine.words import TEXT_ENCODERS, cached, check_names, embed, embeddings_of, unit_rows
from yolo.errors import (
    ConfigError,
    MissingFileError,
    MissingPackageError,
    ModelError,
    UnknownNameError,
)

NAMES = ["cat", "red car", "a/b"]
ROWS = np.eye(4, dtype=np.float32)[:3]


def encode(names, shift=0):
    """Made-up embeddings: the letters' numbers."""
    return [[len(name) + shift, *map(ord, name[:3])] for name in names]


@pytest.fixture
def encoders(monkeypatch):
    monkeypatch.setattr(TEXT_ENCODERS, "_parts", dict(TEXT_ENCODERS._parts))
    TEXT_ENCODERS.register("letters")(encode)


def named(folder):
    """All forms of files that hold names, in another order and with more than is asked for."""
    names, rows = [*NAMES[::-1], "more"], np.concatenate([ROWS[::-1], np.ones((1, 4))])
    np.savez(folder / "both.npz", names=names, embeddings=rows)
    each = {name: row.astype(np.float32) for name, row in zip(names, rows, strict=True)}
    np.savez(folder / "each.npz", **each)
    save_file(each, folder / "each.safetensors")
    return ["both.npz", "each.npz", "each.safetensors"]


def test_every_kind_of_source(tmp_path, encoders):
    np.save(tmp_path / "rows.npy", ROWS)
    np.savez(tmp_path / "rows.npz", embeddings=ROWS)
    save_file({"embeddings": ROWS}, tmp_path / "rows.safetensors")
    files = ["rows.npy", "rows.npz", "rows.safetensors", *named(tmp_path)]
    sources = [ROWS, torch.from_numpy(ROWS), ROWS.tolist(), lambda names: ROWS]
    for source in [*sources, *[tmp_path / f for f in files], *[str(tmp_path / f) for f in files]]:
        assert torch.equal(embed(NAMES, source), torch.from_numpy(ROWS)), source
    expected = unit_rows(encode(NAMES))
    for source in ("letters", {"name": "letters"}, {"name": "letters", "shift": 0}):
        assert torch.equal(embed(NAMES, source), expected)
    assert not torch.equal(embed(NAMES, {"name": "letters", "shift": 9}), expected)


def test_rows_have_length_1_and_keep_their_bits_then():
    rows = unit_rows(torch.randn(50, 512, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(50))
    assert torch.equal(unit_rows(rows.tolist()), rows)
    assert unit_rows(np.full((1, 3), 5, np.float64)).dtype == torch.float32


@pytest.mark.parametrize(
    "rows",
    [[[0.0, 0.0]], [[1.0, float("nan")]], [[float("inf"), 1.0]], [1.0, 2.0], [[1], [1, 2]], "x"],
)
def test_rows_that_are_none(rows):
    with pytest.raises(ModelError, match="expected embeddings"):
        unit_rows(rows)


def test_names():
    assert check_names({0: "cat", 1: "dog"}) == check_names(("cat", "dog")) == ["cat", "dog"]
    for bad in ("cat", [], ["cat", ""], [1], None):
        with pytest.raises(ModelError, match="expected names as a list of texts"):
            check_names(bad)
    with pytest.raises(ModelError, match="each name once, found 'cat'"):
        check_names(["cat", "dog", "cat"])


def test_words_of_a_description():
    network = {"names": {0: "cat", 1: "dog"}, "words": torch.eye(2)}
    assert embeddings_of(network, ["dog"]).tolist() == [[0.0, 1.0]]
    for without in (network, {}):
        with pytest.raises(ModelError, match=r"no embedding of 'dogs' and 1 more.*text_embeddings"):
            embeddings_of(without, ["dogs", "x"])


def test_files_that_do_not_serve(tmp_path, encoders):
    files = named(tmp_path)
    for file in files:
        with pytest.raises(
            ModelError, match=rf"{file} has no embedding of 'catt'; .*Similar: 'cat'"
        ):
            embed(["catt"], tmp_path / file)
    with pytest.raises(MissingFileError, match="no such file"):
        embed(NAMES, "nowhere.npz")
    np.save(tmp_path / "rows.npy", ROWS)
    with pytest.raises(ModelError, match="expected 2 embeddings, one a name, found 3"):
        embed(["a", "b"], tmp_path / "rows.npy")
    for suffix in (".npy", ".npz", ".safetensors"):
        (tmp_path / f"bad{suffix}").write_bytes(b"junk")
        with pytest.raises(ModelError, match=f"bad{suffix}: expected arrays"):
            embed(NAMES, tmp_path / f"bad{suffix}")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ModelError, match="expected arrays"):
        embed(NAMES, tmp_path / "objects.npy")


def test_encoders_that_are_unknown_or_called_wrongly(encoders):
    with pytest.raises(
        UnknownNameError, match=r"unknown text encoder 'leters'. Similar: 'letters'"
    ):
        embed(NAMES, "leters")
    with pytest.raises(ConfigError, match="expected shift, found 'size'"):
        embed(NAMES, {"name": "letters", "size": 3})
    with pytest.raises(ConfigError, match="needs a 'name'"):
        embed(NAMES, {"shift": 3})


def test_a_cache_is_asked_first_and_belongs_to_one_encoder(tmp_path, encoders):
    asked, file = [], tmp_path / "new" / "cache.npz"
    remember = cached(lambda names: asked.append(names) or encode(names), file)
    first = remember(["cat", "dog"])
    assert np.array_equal(remember(["dog", "bird", "cat"])[[2, 0]], first)
    assert asked == [["cat", "dog"], ["bird"]]
    assert [p.name for p in file.parent.iterdir()] == ["cache.npz"]
    expected = unit_rows(encode(["bird", "dog"]))
    assert torch.equal(embed(["bird", "dog"], file), expected)
    choice = {"name": "letters", "cache": tmp_path / "letters.npz"}
    for _ in range(2):
        assert torch.equal(embed(["bird", "dog"], choice), expected)
    for other in ({**choice, "shift": 1}, {**choice, "cache": file}):
        with pytest.raises(ConfigError, match="name another cache"):
            embed(["dog"], other)


def test_open_clip(monkeypatch):
    with pytest.raises(ConfigError, match="needs pretrained="):
        embed(NAMES, "open_clip")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    choice = {"name": "open_clip", "pretrained": "clip.pt"}
    with pytest.raises(MissingPackageError, match=r"pip install 'plainyolo\[world\]'"):
        embed(NAMES, choice)

    class Clip(torch.nn.Module):
        def encode_text(self, tokens):
            return torch.stack((tokens, 0 * tokens), 1).float()

    def create_model(model, pretrained, device):
        if pretrained == "bad":
            raise RuntimeError("not a known tag or valid file path")
        assert (model, pretrained, device) == ("ViT-B-32-quickgelu", "clip.pt", "cpu")
        return Clip()

    stand_in = types.SimpleNamespace(
        create_model=create_model,
        get_tokenizer=lambda model: lambda names: torch.tensor([len(n) for n in names]),
    )
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    found = embed(NAMES, choice)
    assert found.tolist() == [[1.0, 0.0]] * 3
    assert not found.is_inference()
    with pytest.raises(ConfigError, match="'open_clip': not a known tag"):
        embed(NAMES, {**choice, "pretrained": "bad"})
