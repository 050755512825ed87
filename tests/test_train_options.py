# SPDX-License-Identifier: Apache-2.0
"""Options that change what a training does with its data, its network and its steps."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time

import cv2
import numpy as np
import pytest
import torch
import yaml

import nano
from yolo import TASKS, YOLO
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import load_checkpoint
from yolo.errors import ConfigError, DataError
from yolo.tasks.detect.train import DetectionTrainer


@pytest.fixture(scope="module")
def trained(network, data, tmp_path_factory):
    """The best.pt of a run of one epoch."""
    return nano.train(tmp_path_factory.mktemp("start"), network=network, data=data).trainer.best


def watching(seen, what):
    """Return a trainer that notes `what(batch, images, targets)` of each step."""

    class Watching(DetectionTrainer):
        def preprocess_batch(self, batch):
            images, targets = super().preprocess_batch(batch)
            seen.append(what(batch, images, targets))
            return images, targets

    return Watching


# ---------------------------------------------------------------------- network and steps


def test_bf16_trains_on_the_cpu(train):
    model = train(amp="bf16", epochs=2)
    assert model.trainer.amp_dtype is torch.bfloat16
    assert all(v.dtype != torch.bfloat16 for v in nano.weights_of(model).values())
    assert np.isfinite([row["train/cls_loss"] for row in model.trainer.history]).all()
    assert not nano.same(nano.weights_of(model), nano.weights_of(train("plain", epochs=2)))


@pytest.mark.parametrize("wanted", [False, None, True])
def test_channels_last_is_the_layout_of_training(train, wanted):
    layouts = set()

    def look(batch, images, targets):
        layouts.add(images.is_contiguous(memory_format=torch.channels_last))

    model = train(channels_last=wanted, trainer=watching([], look))
    weight = model.trainer.model.model[1].conv.weight
    layouts.add(weight.is_contiguous(memory_format=torch.channels_last))
    assert layouts == {wanted is not False}


@pytest.mark.parametrize("freeze", [2, [0, 3], ["model.1", "model.4"], "model.3"])
def test_frozen_layers_stay_as_they_are(train, trained, freeze):
    start = YOLO(trained)
    before = copy_of(start)
    after = nano.weights_of(train(model=start, freeze=freeze))
    names = {2: [0, 1]}.get(freeze) if isinstance(freeze, int) else freeze
    names = [names] if isinstance(names, str) else names
    prefixes = tuple(f"model.{n}." if isinstance(n, int) else f"{n}." for n in names)
    held = [key for key in before if key.startswith(prefixes)]
    assert any("running_mean" in key for key in held)
    assert [key for key in held if not torch.equal(before[key], after[key])] == []
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    assert any("running_mean" in key for key in moved)
    assert any("conv.weight" in key for key in moved)


def test_freezing_everything_is_refused(train):
    with pytest.raises(ConfigError, match="freezes all of the network"):
        train(freeze=6)
    with pytest.raises(ConfigError, match=r"no module 'model\.9'.*model\.0 to model\.5"):
        train(freeze=[9])


def test_layer_lr_scales_the_steps_of_layers(train):
    """The first step of SGD is in proportion to the rate."""

    def first_step(name, **options):
        moved = {}

        def step(trainer):
            before = copy_of(trainer)
            trainer.train_step(next(iter(trainer.train_loader.epoch(0))))
            trainer.optimizer_step()
            for key, value in trainer.model.named_parameters():
                moved[key] = value.detach() - before[key]
            trainer.stop = True

        given = {"lr0": 0.01, "warmup_epochs": 0, "optimizer": "SGD", "nbs": 4, **options}
        train(name, callbacks={"on_train_start": step}, **given)
        return moved

    plain, found = first_step("plain"), first_step("found", layer_lr={"backbone": 0.1, "head": 2})
    assert plain.keys() == found.keys()
    for key, step in plain.items():
        factor = 2 if key.startswith("model.5.") else 0.1
        torch.testing.assert_close(found[key], factor * step, rtol=1e-3, atol=1e-6)
    assert plain["model.0.conv.weight"].abs().max() > 1e-4


def test_layer_lr_goes_with_auto_and_resumes_exactly(train, tmp_path, caplog):
    caplog.set_level(logging.INFO, "yolo")
    options = {"layer_lr": 0.8, "epochs": 3, "save_every": 2}
    whole, plain = train("whole", verbose=True, **options), train("plain", epochs=3)
    assert not nano.same(nano.weights_of(whole), nano.weights_of(plain))

    def kill(trainer):
        if trainer.iteration == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("cut", callbacks={"on_train_batch_end": kill}, **options)
    last = tmp_path / "cut" / "weights" / "last.pt"
    YOLO(last).train(resume=True)
    assert nano.same(nano.weights_of(whole), load_checkpoint(last).weights)
    rates = [
        [{k: v for k, v in row.items() if k.startswith("lr/")} for row in run.trainer.history]
        for run in (whole, plain)
    ]
    assert rates[0] == rates[1]
    assert [*rates[0][0]] == ["lr/pg0", "lr/pg1", "lr/pg2"]
    assert "at 0.32768, " in caplog.text  # model.0, of six
    with pytest.raises(ConfigError, match="layer_lr can't change"):
        YOLO(last).train(resume=True, layer_lr=0.5)


def test_compile_wraps_the_training_forward_alone(train, monkeypatch):
    calls = []

    def fake(module, mode):
        calls.append(module)
        assert mode is None

        def call(images):
            calls.append(images.shape)
            return module(images)

        return call

    monkeypatch.setattr(torch, "compile", fake)
    model = train(compile=True)
    assert calls[0] is model.trainer.model
    assert [tuple(shape) for shape in calls[1:]] == [(4, 3, 64, 64)] * 3 + [(2, 3, 64, 64)]
    assert nano.same(nano.weights_of(model), nano.weights_of(train("plain")))


def test_what_torch_cannot_compile_is_one_line(train, monkeypatch):
    def fake(module, mode):
        def call(images):
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nmany lines")

        return call

    monkeypatch.setattr(torch, "compile", fake)
    with pytest.raises(ConfigError, match=r"^compile='max-autotune': .*\(no C\+\+ compiler\)"):
        train(compile="max-autotune")


@pytest.mark.parametrize("task", [name for name, spec in TASKS.items() if spec.outputs.boxes])
def test_a_task_has_the_same_targets_whatever_paints_its_images(task, tmp_path):
    spec, compared = TASKS[task], []

    def tensors(targets):
        found = []
        targets.map(lambda tensor: found.append(tensor) or tensor)
        return found

    def compare(trainer):
        painted = list(trainer.train_loader.epoch(0))
        trainer.args = trainer.args.model_copy(update={"augment_on": "device"})
        pieces = trainer.build_train_loader().epoch(0)
        for expected, batch in zip(painted, pieces, strict=True):
            images, targets = trainer.preprocess_batch(batch)
            other, labels = trainer.preprocess_batch(expected)
            assert (images - other).abs().mean() < 1 / 255
            assert images.stride() == other.stride()
            pairs = list(zip(tensors(targets), tensors(labels), strict=True))
            assert all(torch.equal(a, b) for a, b in pairs)
            compared.append(len(pairs))
        trainer.stop = True

    network, data = nano.task_network(tmp_path, spec), nano.task_data(tmp_path, spec)
    nano.train(
        tmp_path, network=network, data=data, degrees=20.0, callbacks={"on_train_start": compare}
    )
    assert compared


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_network_trains_as_it_does_plainly(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    compiled, plain = (
        train(name, compile=value).trainer.history[0]
        for name, value in (("compiled", True), ("plain", False))
    )
    for name in ("train/box_loss", "train/cls_loss", "train/dfl_loss"):
        assert compiled[name] == pytest.approx(plain[name], rel=1e-3)


def test_profile_tells_where_the_time_of_the_steps_goes(train):
    """14 images in batches of 4: the second epoch ends the trace, the later ones are timed."""
    moments = []

    def note(trainer):
        if trainer.epoch >= 2:
            moments.append(time.perf_counter())

    events = dict.fromkeys(("on_train_epoch_start", "on_train_epoch_end"), note)
    events["on_train_batch_end"] = lambda _: time.sleep(0.02)  # steps of the usual length
    folder = train(profile=True, epochs=4, callbacks=events).trainer.save_dir
    assert (folder / "trace.json").stat().st_size > 1000
    stages, _, operations = (folder / "profile.txt").read_text().partition("\n\n")
    assert "aten::" in operations
    found = {row[:20].strip(): float(row[20:].split()[0]) for row in stages.splitlines()[1:]}
    total = found.pop("all")
    assert set(found) == {
        "data", "forward", "assigner", "loss", "backward", "optimizer", "EMA", "logging, callbacks",
    }  # fmt: skip
    assert sum(found.values()) == pytest.approx(total, abs=0.05)
    wall = moments[1] - moments[0] + moments[3] - moments[2]
    assert total == pytest.approx(1000 * wall / 8, rel=0.05)


def test_multi_scale_varies_the_input_and_resumes_exactly(train, tmp_path):
    sizes = []
    watcher = watching(sizes, lambda batch, images, targets: (images.shape[-2:], targets.size))
    options = {"multi_scale": 0.5, "epochs": 3, "save_every": 2}
    whole = train("whole", **options)

    def kill(trainer):
        if trainer.iteration == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("cut", callbacks={"on_train_batch_end": kill}, trainer=watcher, **options)
    last = tmp_path / "cut" / "weights" / "last.pt"
    YOLO(last).train(watcher, resume=True)
    assert {found for found, _ in sizes} == {known for _, known in sizes}
    assert {found for found, _ in sizes} <= {(s, s) for s in (32, 48, 64, 80, 96)}
    assert len(set(sizes)) > 2
    assert nano.same(nano.weights_of(whole), load_checkpoint(last).weights)


# ---------------------------------------------------------------------- fine-tuning


def copy_of(owner):
    return {key: value.clone() for key, value in owner.model.state_dict().items()}


def other_classes(folder, names):
    """Write a set whose classes have other names."""
    file = write_shapes(folder, train=8, val=4, size=96)
    content = yaml.safe_load(file.read_text())
    old = content["names"]
    file.write_text(yaml.safe_dump(content | {"names": dict(enumerate(names))}))
    assert len(old) == len(names)
    return file


def test_other_classes_get_a_new_head(train, trained, tmp_path, caplog):
    caplog.set_level(logging.INFO, "yolo")
    start = YOLO(trained)
    names = [f"other{i}" for i in range(5)]
    file = other_classes(tmp_path / "other", names)
    first, before = {}, copy_of(start)
    start.add_callback("on_train_start", lambda trainer: first.update(copy_of(trainer)))
    train("tuned", model=start, data=file, verbose=True)
    line = next(text for text in caplog.messages if text.startswith("weights of"))
    assert str(trained) in line
    assert f"took {len(before) - 4} of {len(before)} entries" in line
    assert line.endswith("new: model.5.cv3.0.2, model.5.cv3.1.2")
    changed = {key for key in before if not torch.equal(before[key], first[key])}
    assert changed <= {f"model.5.cv3.{i}.2.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")}
    assert start.names == dict(enumerate(names))


def test_known_classes_keep_their_rows(train, trained, tmp_path, caplog):
    caplog.set_level(logging.INFO, "yolo")
    start = YOLO(trained)
    names = list(start.names.values())
    moved = [names[2], "other", names[0], "another", names[1]]
    first, before = {}, copy_of(start)
    start.add_callback("on_train_start", lambda trainer: first.update(copy_of(trainer)))
    train("tuned", model=start, data=str(other_classes(tmp_path / "o", moved)), verbose=True)
    assert f"classes known already: {names[2]}, {names[0]}, {names[1]}" in caplog.text
    key = "model.5.cv3.0.2.weight"
    assert torch.equal(first[key][[0, 2, 4]], before[key][[2, 0, 1]])
    assert not torch.equal(first[key][1], before[key][3])


def test_pretrained_names_a_file_or_switches_off(train, trained):
    file = trained
    named = train("named", pretrained=str(file), epochs=1)
    loaded = train("loaded", model=YOLO(file), epochs=1)
    fresh = train("fresh", model=YOLO(file), pretrained=False, epochs=1)
    assert nano.same(nano.weights_of(named), nano.weights_of(loaded))
    # fresh weights by the same seed, as in the first run
    assert nano.same(nano.weights_of(fresh), load_checkpoint(file.with_name("last.pt")).weights)


def test_pretrained_takes_what_overlaps_and_lists_the_rest(train, trained, tmp_path, caplog):
    caplog.set_level(logging.INFO, "yolo")
    file = nano.write_network(tmp_path, nano.NETWORK.replace("C2f, [128,", "C2f, [64,"))
    first, given = {}, load_checkpoint(trained).weights
    callbacks = {"on_train_start": lambda trainer: first.update(copy_of(trainer))}
    train(model=YOLO(file), pretrained=trained, callbacks=callbacks, verbose=True)
    line = next(text for text in caplog.messages if text.startswith("weights of"))
    fits = [key for key, value in first.items() if given[key].shape == value.shape]
    assert f"{trained}: took {len(fits)} of {len(first)} entries; new: model.3.cv1.bn" in line
    assert any(key.startswith("model.0.") for key in fits)
    assert len(fits) < len(first)
    assert all(torch.equal(first[key], given[key]) for key in fits)


# ---------------------------------------------------------------------- data


def test_single_cls_learns_one_class(train):
    model = train(single_cls=True)
    assert model.names == {0: "item"}
    assert model.model.nc == 1
    assert model.val(plots=False, verbose=False).nt_per_class.tolist() == [
        len(model.trainer.test_loader.index.arrays["classes"])
    ]


def test_classes_keeps_some_ids(train):
    index = train(classes=[0, 3]).trainer.train_loader.index
    assert set(np.unique(index.arrays["classes"])) == {0, 3}


def test_fraction_takes_a_share_of_the_training_images(train):
    trainer = train(fraction=0.5).trainer
    assert len(trainer.train_loader.index) == 7
    assert len(trainer.test_loader.index) == 6


def test_balanced_sampling_draws_rare_classes_as_often_as_others(train):
    trainer = train(sampler="balanced").trainer
    counts = trainer.train_loader.index.class_counts()
    images, classes = trainer.train_loader.index.objects()
    drawn = [classes[images == place] for place in trainer.train_loader.order.places(0)]
    shares = np.bincount(np.concatenate(drawn), minlength=len(counts))[counts > 0]
    assert np.ptp(shares) < np.ptp(counts[counts > 0])
    with pytest.raises(ConfigError, match="expected rect=True or sampler='balanced', found both"):
        train("both", sampler="balanced", rect=True)


def test_rect_keeps_like_shapes_together(train, tmp_path):
    file = write_shapes(tmp_path / "wide", train=8, val=4, size=(64, 128))
    shapes = []
    watcher = watching(shapes, lambda batch, images, targets: tuple(images.shape[-2:]))
    train(data=file, rect=True, trainer=watcher)
    assert set(shapes) == {(32, 64)}


def test_height_and_width_differ_all_the_way(train):
    sizes = []
    watcher = watching(sizes, lambda batch, images, targets: tuple(images.shape[-2:]))
    model = train(imgsz=(64, 96), trainer=watcher)
    assert set(sizes) == {(64, 96)}
    assert model.val(plots=False, verbose=False, batch=3).box.map >= 0
    result = model.predict(np.zeros((100, 300, 3), np.uint8), rect=False, verbose=False)
    assert model.predictor.args.imgsz == (64, 96)
    assert result[0].orig_shape == (100, 300)


def listing(folder):
    return {
        path.relative_to(folder): path.stat().st_mtime_ns
        for path in [folder, *folder.rglob("*")]
        if path.exists()
    }


def test_caches_change_nothing_and_lie_in_the_run_folder(train, tmp_path):
    file = write_shapes(tmp_path / "own", train=10, val=4, size=96)
    before = listing(tmp_path / "own")
    for path in [*(tmp_path / "own").rglob("*"), tmp_path / "own"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        runs = {
            mode: train(f"cache-{mode}", data=file, cache=mode, mixup=0.5)
            for mode in (False, True, "disk")
        }
        assert listing(tmp_path / "own") == before
    finally:
        for path in [tmp_path / "own", *(tmp_path / "own").rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    for model in runs.values():
        assert nano.same(nano.weights_of(runs[False]), nano.weights_of(model))
    assert os.listdir(runs["disk"].trainer.save_dir / "cache")
    elsewhere = train("elsewhere", data=file, cache="disk", cache_dir=str(tmp_path / "c"))
    assert os.listdir(tmp_path / "c")
    assert not (elsewhere.trainer.save_dir / "cache").exists()


def darker(sample):
    sample.image = sample.image // 2
    return sample


def noisy(sample):
    shift = sample.rng.integers(0, 9, sample.image.shape, dtype=np.uint8)
    sample.image = sample.image // 2 + shift
    return sample


def test_own_transforms_run_and_are_recorded(train):
    plain = train("plain")
    dark = train("dark", augmentations=[darker])
    assert not nano.same(nano.weights_of(plain), nano.weights_of(dark))
    noise = [train(f"noisy{n}", augmentations=[noisy], workers=n) for n in (0, 1)]
    assert nano.same(*map(nano.weights_of, noise))
    config = load_checkpoint(noise[0].trainer.last).config
    assert config["augmentations"][0].endswith(":noisy")
    with pytest.raises(ConfigError, match=r"transforms of your own \(.*:noisy\); give them again"):
        YOLO(noise[0].trainer.last).train(resume=True, epochs=3)
    YOLO(noise[0].trainer.last).train(resume=True, epochs=2, augmentations=[noisy])


def test_a_transform_that_returns_nothing_is_named(train):
    def forgetful(sample):
        sample.image[:] = 0

    with pytest.raises(DataError, match="'forgetful': expected a Sample back"):
        train(augmentations=[forgetful])


def write_multispectral(folder, suffix):
    """Write 4-channel 16-bit images whose objects show in the fourth channel alone."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            image = rng.integers(0, 300, (64, 64, 4)).astype(np.uint16)
            x, y = rng.integers(4, 30, 2)
            image[y : y + 24, x : x + 24, 3] += 40_000
            row = f"0 {(x + 12) / 64} {(y + 12) / 64} {24 / 64} {24 / 64}\n"
            path = folder / "images" / split / f"{i}{suffix}"
            label = folder / "labels" / split / f"{i}.txt"
            for file in (path, label):
                file.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(row)
            np.save(path, image) if suffix == ".npy" else cv2.imwrite(str(path), image)
    file = folder / "data.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [square]\nchannels: 4\n")
    return file


def test_four_channels_of_16_bits_keep_their_range(train, tmp_path):
    file = write_multispectral(tmp_path / "set", ".png")
    seen = []
    watcher = watching(seen, lambda b, images, t: (b.images.dtype, len(images[0]), images.max()))
    options = {"epochs": 12, "hsv_v": 0.0, "mosaic": 0.0, "warmup_epochs": 0, "lr0": 0.01}
    fresh = train(data=file, trainer=watcher, **options)
    assert {row[:2] for row in seen} == {(torch.uint16, 4)}
    assert max(row[2] for row in seen) == pytest.approx(40_150 / 65_535, abs=0.01)
    scored = fresh.val(plots=False, verbose=False)
    assert scored.box.map == pytest.approx(fresh.metrics.box.map, abs=1e-6)
    image = tmp_path / "set" / "images" / "val" / "0.png"
    (result,) = fresh.predict(image, conf=0.001, verbose=False)
    array = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
    (again,) = fresh.predict(array, conf=0.001, verbose=False)
    assert len(result) > 0
    assert torch.equal(result.boxes.data, again.boxes.data)
    (flat,) = fresh.predict(array // 256, conf=0.001, verbose=False)
    assert not torch.equal(result.boxes.conf[:3], flat.boxes.conf[:3])


def test_coco_json_with_sparse_ids_and_crowds(train, tmp_path):
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        cv2.imwrite(str(tmp_path / "pictures" / f"{i}.png"), rng.integers(0, 255, (64, 80, 3)))
        images.append({"id": 100 + i, "file_name": f"{i}.png", "height": 64, "width": 80})
        for k, category in enumerate((7, 90, 7)):
            annotations.append({
                "id": len(annotations) + 1, "image_id": 100 + i, "category_id": category,
                "bbox": [4 + 20 * k, 10, 16, 30], "area": 300, "iscrowd": int(k == 2),
            })  # fmt: skip
    categories = [{"id": 90, "name": "late"}, {"id": 7, "name": "early"}]
    file = tmp_path / "all.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    yaml_file = tmp_path / "coco.yaml"
    yaml_file.write_text("train: all.json\nval: all.json\nimages: pictures\n")
    ignored = []
    watcher = watching(ignored, lambda b, i, t: 0 if t.ignore is None else t.ignore.any(-1).sum())
    fresh = train(data=str(yaml_file), trainer=watcher, mosaic=0.0, multi_scale=0.5)
    assert sorted(fresh.names.values()) == ["early", "late"]
    assert sum(ignored) == 8
    metrics = fresh.val(
        plots=False, verbose=False, save_json=True, project=str(tmp_path), name="val"
    )
    assert metrics.nt_per_class.sum() == 16
    rows = json.loads((tmp_path / "val" / "predictions.json").read_text())
    assert {row["category_id"] for row in rows} <= {7, 90}
    assert {row["image_id"] for row in rows} <= {100 + i for i in range(8)}


# ---------------------------------------------------------------------- several runs


def test_trainings_in_one_process_do_not_touch_each_other(train, data):
    first = nano.weights_of(train("a", epochs=2))
    train("b", seed=3)
    assert nano.same(first, nano.weights_of(train("c", epochs=2)))


def test_one_facade_trains_predicts_and_trains_on(train, tmp_path):
    model = train("first")
    image = np.full((96, 96, 3), 90, np.uint8)
    before = model.predict(image, conf=0.0001, verbose=False)[0].boxes.data
    best = nano.weights_of(model)
    train("second", model=model)
    after = model.predict(image, conf=0.0001, verbose=False)[0].boxes.data
    assert before.shape != after.shape or not torch.equal(before, after)
    again = train("again", model=YOLO(tmp_path / "first" / "weights" / "best.pt"))
    assert nano.same(nano.weights_of(model), nano.weights_of(again))
    assert not nano.same(best, nano.weights_of(model))
    assert yaml.safe_load((tmp_path / "second" / "args.yaml").read_text())["model"] == str(
        tmp_path / "first" / "weights" / "best.pt"
    )
