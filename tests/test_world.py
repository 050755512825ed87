# SPDX-License-Identifier: Apache-2.0
"""A detector that looks for words: train, predict with new words, validate, save, export."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import nano
import yolo
from yolo import YOLO, YOLOWorld
from yolo.backends import open_backend
from yolo.engine.checkpoint import load_checkpoint
from yolo.engine.words import TEXT_ENCODERS
from yolo.errors import ConfigError, ModelError

WIDTH = 8
TEXT = f"""
nc: 5
scales:
  n: [0.33, 0.125, 128]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 3, C2fAttn, [128, 64, 4, {WIDTH}]]
  - [[2, 3], 1, ImagePoolingAttn, [16, {WIDTH}, 2]]
  - [3, 1, Conv, [128, 3, 2]]
head:
  - [-1, 3, C2fAttn, [128, 64, 4, {WIDTH}]]
  - [[3, 6], 1, WorldDetect, [nc, {WIDTH}, true]]
"""
IMAGE = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)


def encode(names):
    """Made-up embeddings that depend on the name alone."""
    return [np.random.default_rng(list(name.encode())).normal(size=WIDTH) for name in names]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return nano.write_network(tmp_path_factory.mktemp("network"), TEXT)


@pytest.fixture(scope="module")
def names(data):
    return [*yaml.safe_load(data.read_text())["names"].values()]


@pytest.fixture(scope="module")
def trained(network, data, tmp_path_factory):
    """Trained for an epoch on the names of the data."""
    folder = tmp_path_factory.mktemp("run")
    return nano.train(folder, network=network, data=data, text_embeddings=encode)


@pytest.fixture
def train(tmp_path, network, data):
    def train(model=None, **options):
        return nano.train(tmp_path, network=network, data=data, model=model, **options)

    return train


def scores(model, source=IMAGE):
    """All scores of all anchor points."""
    x = torch.from_numpy(np.ascontiguousarray(source[:32, :64, ::-1])).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        return model.model.eval()(x)[:, 4:]


def test_the_familiar_name_is_the_same_class():
    assert YOLOWorld is YOLO
    assert "YOLOWorld" in yolo.__all__


def test_training_learns_by_the_names_of_the_data(trained, names):
    """Gradients reach what reads the words; the words themselves stay."""
    assert [*trained.names.values()] == names
    assert np.isfinite(list(trained.trainer.history[0].values())).all()
    saved = load_checkpoint(trained.trainer.best)
    assert saved.network["nc"] == len(names)
    words = saved.network["words"]
    expected = torch.nn.functional.normalize(torch.tensor(np.stack(encode(names))).float(), dim=1)
    torch.testing.assert_close(words, expected)
    assert torch.equal(trained.trainer.ema.ema.head.text, words)


def test_one_step_moves_every_part_that_reads_words(train):
    moved = {}

    def step(trainer):
        before = {k: v.clone() for k, v in trainer.model.named_parameters()}
        trainer.train_step(next(iter(trainer.train_loader.epoch(0))))
        trainer.optimizer_step()
        after = dict(trainer.model.named_parameters())
        moved.update({k: not torch.equal(before[k], after[k]) for k in before})
        trainer.stop = True

    given = {"lr0": 0.01, "warmup_epochs": 0, "optimizer": "SGD", "nbs": 4}
    train(text_embeddings=encode, callbacks={"on_train_start": step}, **given)
    readers = [k for k in moved if any(part in k for part in (".attn.", "model.4.", ".cv4."))]
    assert len(readers) > 20
    # A softmax over cells doesn't see what is added to every key.
    assert {k for k in readers if not moved[k]} <= {"model.4.key.1.bias"}


def test_the_file_predicts_on_without_an_encoder(trained, names, tmp_path):
    best = YOLO(trained.trainer.best)
    assert torch.equal(scores(best), scores(trained))
    for name in ("copy.pt", "copy.safetensors"):
        best.save(tmp_path / name)
        again = YOLO(tmp_path / name)
        assert torch.equal(scores(again), scores(best))
        assert [*again.names.values()] == names


def test_new_words(trained, tmp_path):
    model = YOLO(trained.trainer.best)
    known = [*model.names.values()][:2]
    (result,) = model.predict(IMAGE, imgsz=64, conf=0, verbose=False)
    assert model.set_classes(["zebra", known[1]], encode) is model
    (result,) = model.predict(IMAGE, imgsz=64, conf=0, verbose=False)
    assert result.names == {0: "zebra", 1: known[1]}
    assert set(result.boxes.cls.tolist()) <= {0, 1}
    first = scores(model)
    np.savez(tmp_path / "words.npz", names=["x", "zebra"], embeddings=encode(["x", "zebra"]))
    model.set_classes(["zebra"], tmp_path / "words.npz")
    assert scores(model).shape[1] == 1
    model.set_classes(["zebra", known[1]], encode)
    assert torch.equal(scores(model), first)
    model.set_classes([known[1]])  # among the words that it has
    assert model.names == {0: known[1]}


def test_other_embeddings_of_the_same_words_are_noticed(trained):
    model = YOLO(trained.trainer.best)

    def surest():
        (result,) = model.predict(IMAGE, imgsz=64, conf=0, verbose=False)
        return result.boxes.conf[0]

    model.set_classes(["a"], np.ones((1, WIDTH)))
    first = surest()
    model.set_classes(["a"], -np.ones((1, WIDTH)))
    assert surest() != first


def test_validation_scores_the_words_in_the_order_of_the_data(trained, data, names):
    given = {"data": str(data), "imgsz": 64, "plots": False, "verbose": False, "device": "cpu"}
    model = YOLO(trained.trainer.best)
    before = model.val(**given).results_dict
    model.set_classes(names, encode)
    assert model.val(**given).results_dict == before


def test_words_given_before_training_are_used_in_it(train, network, names):
    model = YOLO(network).set_classes([*names[::-1], "more"], encode)
    runner = train(model).trainer
    assert [*runner.model.names.values()] == names
    expected = torch.tensor(np.stack(encode(names))).float()
    torch.testing.assert_close(
        runner.model.head.text, torch.nn.functional.normalize(expected, dim=1)
    )
    again = YOLO(runner.best).reset_weights()
    assert torch.equal(again.model.head.text, runner.model.head.text)


def test_a_trained_model_goes_on_with_its_words(trained, train):
    model = YOLO(trained.trainer.best)
    before = model.model.head.text.clone()
    runner = train(model, callbacks={"on_train_start": lambda t: setattr(t, "stop", True)}).trainer
    assert torch.equal(runner.model.head.text, before)


def test_resuming_is_exact(train, network):
    whole = train(name="whole", epochs=2, text_embeddings=encode, seed=3)

    def stop(trainer):
        trainer.stop = trainer.epoch == 0

    train(
        name="part", epochs=2, text_embeddings=encode, seed=3, callbacks={"on_fit_epoch_end": stop}
    )
    part = whole.trainer.save_dir.parent / "part" / "weights" / "last.pt"
    resumed = YOLO(part)
    resumed.train(resume=True, epochs=2)
    assert nano.same(nano.weights_of(resumed), nano.weights_of(whole))


def test_weights_for_a_fresh_network_bring_their_words(trained, network):
    model = YOLO(network).load(trained.trainer.best)
    assert torch.equal(scores(model), scores(trained))


def test_pretrained_brings_its_words(trained, train):
    stop = {"on_train_start": lambda trainer: setattr(trainer, "stop", True)}
    runner = train(pretrained=str(trained.trainer.best), callbacks=stop).trainer
    assert torch.equal(runner.model.head.text, trained.trainer.ema.ema.head.text)
    assert torch.equal(load_checkpoint(runner.best).network["words"], runner.model.head.text)


@pytest.mark.parametrize("kind", ["cwd", "mgd", "logit", "self"])
def test_one_step_of_learning_from_a_network_of_words(trained, train, names, tmp_path, kind):
    """The teacher knows more words, in another order."""
    steps = {}

    def step(trainer):
        trainer.train_step(next(iter(trainer.train_loader.epoch(0))))
        steps.update({name: float(trainer.loss_items[name]) for name in trainer.loss_names})
        trainer.stop = True

    teacher = tmp_path / "teacher.pt"
    YOLO(trained.trainer.best).set_classes(["zebra", *names[::-1]], encode).save(teacher)
    given = {} if kind == "self" else {"teacher": teacher}
    given |= {"distill": kind, "text_embeddings": encode, "callbacks": {"on_train_start": step}}
    learner = train(**given).trainer.learner
    assert all(0 < steps[name] < 1000 for name in learner.distiller.names)
    assert [*learner.teacher().names.values()] == names
    torch.testing.assert_close(learner.teacher().head.text, learner.student.head.text)


def test_a_network_of_words_teaches_an_ordinary_one(trained, data, names, tmp_path):
    plain, best = nano.write_network(tmp_path), trained.trainer.best
    given = {"network": plain, "data": data, "distill": "logit"}
    model = nano.train(tmp_path, teacher=best, **given)
    assert model.trainer.history[0]["train/kd_loss"] > 0
    other = tmp_path / "other.pt"
    YOLO(best).set_classes(["zebra", *names[1:]], encode).save(other)
    with pytest.raises(
        ConfigError, match=rf"other\.pt: the network has no embedding of .{names[0]}"
    ):
        nano.train(tmp_path, "again", teacher=other, **given)


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_an_exported_file_needs_no_words(trained, format, tmp_path):
    model = YOLO(trained.trainer.best).set_classes(["zebra", "cat"], encode)
    model.ckpt_path = str(tmp_path / "zebra.pt")
    path = model.export(format=format, imgsz=(64, 96), verbose=False)
    backend = open_backend(path)
    assert dict(backend.names) == {0: "zebra", 1: "cat"}
    x = np.random.default_rng(1).random((1, 3, 64, 96), np.float32)
    with torch.no_grad():
        expected = model.model.eval()(torch.from_numpy(x)).numpy()
    (found,) = backend.infer(x)
    assert found.shape == (1, 4 + 2, 8 * 12 + 4 * 6)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert len(YOLO(path, task="detect").predict(IMAGE, conf=0, verbose=False)) == 1


def test_what_is_missing_is_said(train, network, trained, data, tmp_path):
    with pytest.raises(ModelError, match=r"no embedding of .*text_embeddings="):
        train()
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match="no words yet"):
        YOLO(network).predict(IMAGE, verbose=False)
    with pytest.raises(ModelError, match="no words yet"):
        YOLO(network).export(format="torchscript")
    with pytest.raises(ModelError, match="no words yet"):
        YOLO(network).val(data=str(data), imgsz=64, plots=False, verbose=False)
    plain = nano.write_network(tmp_path)
    with pytest.raises(ConfigError, match="classes of this network are fixed"):
        nano.train(tmp_path, network=plain, data=data, text_embeddings=encode)
    with pytest.raises(ModelError, match="are fixed"):
        YOLO(plain).set_classes(["a"], np.ones((1, WIDTH)))
    with pytest.raises(ModelError, match="are fixed"):
        YOLO("yolov8n-cls.yaml").set_classes(["a"], np.ones((1, WIDTH)))


def test_the_page_keeps_its_word(network, data, names, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "world.md").read_text(encoding="utf-8")
    tour, clip, own = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    words = [*names, "cat", "red car"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TEXT_ENCODERS, "_parts", dict(TEXT_ENCODERS._parts))
    np.savez("words.npz", names=words, embeddings=encode(words))
    Path("yolov8n-worldv2.yaml").write_text(network.read_text())
    Path("images").symlink_to(data.parent / "images" / "val")
    for given, small in (
        ("shapes", data),
        ("epochs=20, imgsz=256", "epochs=1, imgsz=64, plots=False"),
    ):
        tour = tour.replace(given, str(small))
    space = {}
    exec(compile(tour.replace('"onnx"', '"torchscript"'), "world.md", "exec"), space)
    assert space["results"][0].names == {0: "cat", 1: "red car"}
    exported = Path(space["model"].ckpt_path).with_suffix(".torchscript")
    assert YOLO("cats.pt").names == YOLO(exported).names == {0: "cat", 1: "red car"}
    exec(compile(own, "world.md", "exec"), space)
    space["model"].set_classes(["dog"], {"name": "mine", "size": "large"})
    with pytest.raises(ConfigError, match="name another cache"):
        exec(compile(clip, "world.md", "exec"), space)
