# SPDX-License-Identifier: Apache-2.0
"""The facade: what users of YOLOv8 know, from Python."""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import nano
import yolo
from yolo import YOLO
from yolo.data.shapes import write_shapes
from yolo.engine.checkpoint import load_checkpoint, save_checkpoint
from yolo.errors import (
    CheckpointError,
    ConfigError,
    MissingFileError,
    ModelError,
    UnknownNameError,
)
from yolo.tasks.spec import TASKS

IMAGE = np.full((90, 120, 3), 80, np.uint8)
PARTS = {
    "detect": {"boxes"}, "segment": {"boxes", "masks"}, "pose": {"boxes", "keypoints"},
    "obb": {"obb"}, "classify": {"probs"},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "set", train=6, val=4, size=96)


@pytest.fixture(scope="module")
def trained(network, data, tmp_path_factory):
    """The best.pt of a short run."""
    return nano.train(tmp_path_factory.mktemp("run"), network=network, data=data).trainer.best


@pytest.fixture
def model(network):
    return YOLO(network)


# ---------------------------------------------------------------------- loading


def test_a_network_file_gives_an_untrained_model(model, network):
    assert model.task == "detect"
    assert model.names == {i: str(i) for i in range(5)}
    assert model.ckpt == {}
    assert model.ckpt_path is None
    assert model.cfg == model.model_name == str(network)
    assert model.device == torch.device("cpu")
    assert model.stride == (8, 16)  # looked up in the inner module
    assert len(list(model.parameters())) > 10
    assert model.trainer is model.predictor is model.metrics is None
    assert "detect" in repr(model)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint_brings_names_task_and_training_options(trained, data, kind):
    model = YOLO(kind(trained))
    assert model.names == load_checkpoint(trained).names
    assert model.names[0] != "0"
    assert model.ckpt_path == str(trained)
    assert model.ckpt["epoch"] == 0
    assert model.overrides["imgsz"] == 64
    assert model.overrides["data"] == str(data)
    assert not model.model.training


def test_names_are_a_copy(trained):
    model = YOLO(trained)
    model.names[0] = "changed"
    assert model.names[0] != "changed"


@pytest.mark.parametrize(
    ("argument", "error", "text"),
    [
        ((), ConfigError, r"YOLO\('yolov8n\.yaml'\) or YOLO\('best\.pt'\); found nothing"),
        ((3,), ConfigError, "found int"),
        (("missing.pt",), MissingFileError, r"missing\.pt: no such file.*missing\.yaml.*data="),
        (("yolov8q.yaml",), MissingFileError, r"(?s)yolov8q\.yaml.*Known: .*yolov8n\.yaml"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_do(argument, error, text):
    with pytest.raises(error, match=text):
        YOLO(*argument)


def test_a_foreign_checkpoint_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt: "):
        YOLO(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_a_facade_is_no_model_name(model):
    with pytest.raises(ConfigError, match="found YOLO"):
        YOLO(model)


def test_a_task_that_is_not_the_models(trained):
    with pytest.raises(ValueError, match="'nothing'"):
        YOLO(trained, task="nothing")
    assert YOLO(trained, task="detect").task == "detect"


def test_a_network_is_for_one_task(network):
    assert YOLO(network, task="detect").task == "detect"
    with pytest.raises(ModelError, match=r"for 'segment', found one for 'detect' .*holds Detect"):
        YOLO(network, task="segment")
    with pytest.raises(UnknownNameError, match=r"unknown task 'segmentt'\. Similar: 'segment'"):
        YOLO(network, task="segmentt")


@pytest.mark.parametrize("name", list(TASKS))
def test_names_of_networks_lead_to_their_tasks(name):
    suffix = TASKS[name].suffix
    with torch.device("meta"):
        for spelling in (f"yolov8n{suffix}.yaml", f"yolov8n{suffix}"):
            model = YOLO(spelling)
            assert (model.task, model.model.yaml["scale"]) == (name, "n")


# ---------------------------------------------------------------------- weights


def test_save_and_load_round_trip(trained, network, tmp_path, caplog):
    model = YOLO(trained)
    model.save(tmp_path / "copy.pt")
    again = YOLO(tmp_path / "copy.pt")
    assert nano.same(dict(model.model.state_dict()), dict(again.model.state_dict()))
    assert again.names == model.names
    fresh = YOLO(network)
    caplog.set_level(logging.INFO, "yolo")
    assert fresh.load(trained) is fresh
    assert nano.same(dict(model.model.state_dict()), dict(fresh.model.state_dict()))
    assert fresh.names == model.names
    count = len(model.model.state_dict())
    assert f"took {count} of {count} entries" in caplog.text
    with pytest.raises(FileNotFoundError):
        fresh.load(tmp_path / "none.pt")


def test_weights_of_other_classes_need_permission(trained, tmp_path, caplog):
    model = YOLO(trained)
    other = TASKS[model.task].model({**model.yaml, "nc": 2, "names": {0: "x", 1: model.names[3]}})
    fresh = YOLO(trained)
    fresh.model = other
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        fresh.load(trained)
    message = str(caught.value)
    assert "with 5 classes, don't fit this network, for 'detect' with 2: model.5.cv3.0" in message
    assert "instead of" in message
    assert message.endswith("load(..., partial=True)")
    assert nano.same(before, dict(other.state_dict()))
    caplog.set_level(logging.INFO, "yolo")
    fresh.load(trained, partial=True)
    assert f"classes known already: {model.names[3]}" in caplog.text
    after, source = fresh.model.state_dict(), model.model.state_dict()
    key = "model.5.cv3.0.2.bias"
    assert torch.equal(after["model.0.conv.weight"], source["model.0.conv.weight"])
    assert torch.equal(after[key][1], source[key][3])
    assert fresh.names == {0: "x", 1: model.names[3]}


def test_weights_of_another_task_need_permission(trained, network, tmp_path):
    saved = load_checkpoint(trained)
    saved.task = "other"
    save_checkpoint(tmp_path / "other.pt", saved)
    with pytest.raises(CheckpointError, match=r"for 'other' .*don't fit.*another task"):
        YOLO(network).load(tmp_path / "other.pt")
    YOLO(network).load(tmp_path / "other.pt", partial=True)
    with pytest.raises(CheckpointError, match=r"holds a model for 'other'; known tasks: .*detect"):
        YOLO(tmp_path / "other.pt")


def test_safetensors_are_a_model_file_too(trained, tmp_path):
    model = YOLO(trained)
    model.save(tmp_path / "a.safetensors")
    again = YOLO(tmp_path / "a.safetensors")
    assert nano.same(dict(model.model.state_dict()), dict(again.model.state_dict()))
    assert again.names == model.names


def test_reset_weights_starts_afresh(trained):
    model = YOLO(trained)
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    assert model.reset_weights() is model
    after = model.model.state_dict()
    assert not torch.equal(before["model.0.conv.weight"], after["model.0.conv.weight"])
    assert model.names == load_checkpoint(trained).names


def test_info_counts(model, caplog):
    caplog.set_level(logging.INFO, "yolo")
    layers, parameters, gradients, gflops = model.info()
    assert parameters == sum(p.numel() for p in model.parameters())
    assert gradients == parameters - 16
    assert layers > 50
    assert gflops > 0
    assert "Detect" in caplog.text


def test_moving_and_fusing_return_the_facade(model):
    assert model.cpu().to("cpu").eval().fuse() is model
    assert len(copy.deepcopy(model).predict(IMAGE, imgsz=64, verbose=False)) == 1
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert len(model.predict(IMAGE, imgsz=64, verbose=False)) == 1
    with pytest.raises(ConfigError, match="a fused model can't be saved: load the file again"):
        model.save("fused.pt")
    with pytest.raises(ConfigError, match="a fused model can't be trained"):
        model.train(data="shapes")
    with pytest.raises(ConfigError, match="device='nowhere'"):
        model.to("nowhere")


def test_task_map_knows_every_task(model):
    assert model.task_map.keys() == set(TASKS)
    parts = model.task_map[model.task]
    assert parts["model"] is type(model.model)
    assert parts.keys() == {"model", "trainer", "validator", "predictor"}


def test_an_unknown_attribute_is_one(model):
    with pytest.raises(AttributeError, match="nonsense"):
        _ = model.nonsense


def test_familiar_methods_that_are_not_offered(model):
    for name in ("benchmark", "embed"):
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=f"YOLO.{name} isn't offered: .*(run|use|call) "):
            getattr(model, name)


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize("mode", ["train", "val", "predict"])
def test_an_unknown_option_names_the_nearest(model, mode):
    source = {"source": IMAGE} if mode == "predict" else {"data": "shapes"}
    with pytest.raises(ConfigError, match=r"(?i)imgzs.*similar.*'imgsz'") as caught:
        getattr(model, mode)(**source, imgzs=64)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_missing_data_shows_the_call(model):
    with pytest.raises(ConfigError, match=r"train needs data=.*train\(data='shapes'\)"):
        model.train()
    with pytest.raises(ConfigError, match="val needs data="):
        model.val()


def test_options_of_training_are_inherited(trained):
    model = YOLO(trained)
    model.predict(IMAGE, verbose=False)
    assert model.predictor.args.imgsz == 64
    model.predict(IMAGE, imgsz=96, verbose=False)
    assert model.predictor.args.imgsz == 96
    model.predict(IMAGE, verbose=False)
    assert model.predictor.args.imgsz == 64
    assert model.val(plots=False, verbose=False).box.map >= 0  # the training's data


def test_cfg_file_lies_below_keywords(model, data, tmp_path):
    (tmp_path / "options.yaml").write_text("epochs: 1\nimgsz: 96\nplots: false\nlr0: 0.002\n")
    given = {"batch": 4, "imgsz": 64, "device": "cpu", "workers": 0, "verbose": False}
    model.train(data=str(data), cfg=tmp_path / "options.yaml", project=str(tmp_path), **given)
    args = model.trainer.args
    assert (args.epochs, args.imgsz, args.lr0) == (1, 64, 0.002)


def test_a_wrong_task_is_refused(model):
    with pytest.raises(ConfigError, match="this model is for 'detect'"):
        model.predict(IMAGE, task="nothing")


@pytest.mark.parametrize(
    ("mode", "option", "home"),
    [
        ("train", "vid_stride", "predict"),
        ("train", "agnostic_nms", "val and predict"),
        ("val", "kobj", "pose train"),
        ("train", "retina_masks", "segment "),
        ("predict", "auto_augment", "classify train"),
    ],
)
def test_an_option_of_another_mode_is_sent_home(model, mode, option, home):
    given = {"source": IMAGE} if mode == "predict" else {"data": "shapes"}
    with pytest.raises(ConfigError, match=f"{option!r} belongs to {home}.*, not to ") as error:
        getattr(model, mode)(**given, **{option: 7})
    assert "\n" not in str(error.value)


def test_an_option_of_another_task_is_left_out_aloud(model, caplog):
    """Scripts give one set of options to models of several tasks."""
    model.predict(IMAGE, retina_masks=False, imgsz=64, verbose=False)
    assert not caplog.records  # it's what happens anyway
    model.predict(IMAGE, retina_masks=True, imgsz=64, verbose=False)
    assert "'retina_masks' is for segment; it has no effect on this model" in caplog.text
    with pytest.raises(ConfigError, match="train needs data="):
        model.train(kobj=2.0, mask_ratio=2, overlap_mask=False, dropout=0.1, erasing=0.1, pose=1.0)
    words = [record.getMessage().split(";")[0] for record in caplog.records[1:]]
    assert words == [
        f"option '{name}' is for {task}"
        for name, task in (
            ("kobj", "pose"), ("mask_ratio", "segment"), ("overlap_mask", "segment"),
            ("dropout", "classify"), ("erasing", "classify"), ("pose", "pose"),
        )
    ]  # fmt: skip


# ---------------------------------------------------------------------- what calls leave alone


def test_predict_and_val_leave_the_model_as_it_was(trained, data, tmp_path):
    model = YOLO(trained)
    model.model.train()
    model.model.get_submodule("model.0.bn").eval()
    next(model.model.parameters()).requires_grad_(False)
    before = nano.state_of(model)
    random = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_num_threads()
    model.predict(IMAGE, verbose=False)
    assert nano.state_of(model) == before
    model.predict(IMAGE, half=True, amp="bf16", rect=False, verbose=False)
    assert nano.state_of(model) == before
    list(model.predict([IMAGE, IMAGE], stream=True, verbose=False))
    assert nano.state_of(model) == before
    model.val(data=str(data), plots=False, verbose=False)
    assert nano.state_of(model) == before
    model.val(data=str(data), plots=False, verbose=False, amp="bf16")
    assert nano.state_of(model) == before
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_num_threads()
    assert torch.equal(random[0], after[0])
    assert random[1:] == after[1:]


def test_files_stay_as_they_were(trained, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = hashlib.sha256(trained.read_bytes()).hexdigest()
    model = YOLO(trained)
    model.predict(IMAGE, verbose=False)
    model.val(data=str(data), plots=False, verbose=False)
    assert hashlib.sha256(trained.read_bytes()).hexdigest() == before
    assert not list(tmp_path.iterdir())


def test_val_writes_into_a_folder_of_its_own(trained, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = YOLO(trained)
    metrics = model.val(data=str(data), save_txt=True, plots=False, verbose=False, conf=0.0001)
    assert metrics is model.metrics
    assert metrics.save_dir == tmp_path / "runs" / "detect" / "val"
    assert list((metrics.save_dir / "labels").glob("*.txt"))
    again = model.val(data=str(data), save_json=True, plots=False, verbose=False)
    assert again.save_dir == tmp_path / "runs" / "detect" / "val-2"


def test_training_leaves_the_process_as_it_was(network, data, tmp_path):
    def process():
        return (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            cv2.getNumThreads(),
            dict(os.environ),
        )

    model = YOLO(network)
    before = process()
    model.train(data=str(data), **nano.options(tmp_path, "run", epochs=1, seed=7))
    YOLO(model.ckpt_path)
    assert process() == before


def test_a_bad_device_spoils_nothing(trained):
    model = YOLO(trained)
    wanted = str(torch.cuda.device_count())
    with pytest.raises(ConfigError, match=f"device='{wanted}'"):
        model.predict(IMAGE, device=wanted)
    assert len(model.predict(IMAGE, verbose=False)) == 1


# ---------------------------------------------------------------------- callbacks


def test_callbacks_can_be_added_cleared_and_reset(trained):
    model, calls = YOLO(trained), []
    model.add_callback("on_predict_start", lambda p: calls.append("start"))
    model.add_callback("on_predict_end", lambda p: calls.append("end"))
    model.predict(IMAGE, verbose=False)
    assert calls == ["start", "end"]
    model.clear_callback("on_predict_start")
    model.predict(IMAGE, verbose=False)
    assert calls == ["start", "end", "end"]
    model.reset_callbacks()
    model.predict(IMAGE, verbose=False)
    assert calls == ["start", "end", "end"]
    assert not any(model.callbacks.values())
    with pytest.raises(ConfigError, match=r"(?i)similar: 'on_train_end'"):
        model.add_callback("on_train_ends", print)


def test_a_trainer_class_can_be_given(network, data, tmp_path):
    class Mine(TASKS["detect"].trainer):
        def validate(self):
            return super().validate() | {"metrics/mine": 1.0}

    model = YOLO(network)
    model.train(Mine, data=str(data), **nano.options(tmp_path, "run", epochs=1))
    assert isinstance(model.trainer, Mine)
    assert "metrics/mine" in (tmp_path / "run" / "results.csv").read_text()


TRAINER = (
    "epoch epochs start_epoch model ema.ema optimizer scheduler scaler lr loss tloss loss_items "
    "loss_names label_loss_items metrics fitness best_fitness validator train_loader test_loader "
    "data args device batch_size accumulate amp save_dir wdir last best csv plots stop stopper "
    "epoch_time train_time_start world_size"
)
VALIDATOR = (
    "args metrics seen speed confusion_matrix dataloader device names save_dir jdict plots batch_i "
    "training"
)
PREDICTOR = "results batch dataset source_type save_dir args model seen speed plotted_img txt_path"
METRICS = (
    "keys fitness names speed save_dir curves curves_results nt_per_class confusion_matrix.matrix "
    "results_dict summary to_df to_csv to_json mean_results class_result"
)
PART = (
    "map map50 map75 mp mr p r f1 ap ap50 all_ap ap_class_index maps p_curve r_curve f1_curve "
    "prec_values px mean_results class_result image_metrics fitness"
)
"""What scripts and callbacks read of each object."""


def check_attributes(thing, names):
    for name in names.split():
        part = thing
        for word in name.split("."):
            part = getattr(part, word)


FEW = [
    pytest.param(n, marks=[] if n in {"detect", "classify"} else pytest.mark.slow) for n in TASKS
]
"""The others take seconds each."""


@pytest.mark.parametrize("name", FEW)
def test_the_classes_of_every_task_can_be_subclassed_and_given(name, tmp_path):
    package = importlib.import_module(f"yolo.tasks.{name}")
    spec, data = TASKS[name], nano.task_data(tmp_path, TASKS[name])

    def public(part):
        return getattr(package, getattr(spec, part).__name__)  # "SegmentationTrainer"

    class Coach(public("trainer")):
        def build_criterion(self):
            called.append("trainer")
            return super().build_criterion()

    class Judge(public("validator")):
        def make_metrics(self):
            called.append("validator")
            return super().make_metrics()

    class Seer(public("predictor")):
        def postprocess(self, outputs, prepared):
            called.append("predictor")
            return super().postprocess(outputs, prepared)

    called = []
    model = YOLO(nano.task_network(tmp_path, spec))
    assert model.task == name
    assert type(model.model) is public("model") is model.task_map[name]["model"]
    model.add_callback("on_train_epoch_end", lambda t: check_attributes(t, TRAINER))
    model.add_callback("on_val_end", lambda v: check_attributes(v, VALIDATOR))
    metrics = model.train(Coach, data=str(data), **nano.options(tmp_path, "run", epochs=1))
    assert isinstance(model.trainer, Coach)
    assert np.isfinite(list(metrics.results_dict.values())).all()
    assert spec.fitness in metrics.results_dict
    columns = (tmp_path / "run" / "results.csv").read_text().splitlines()[0].split(",")
    assert {*model.trainer.label_loss_items()} <= {*columns}
    assert {*metrics.results_dict} - {"fitness"} <= {*columns}

    check_attributes(metrics, METRICS)
    for part in {"box", "seg", "pose"} & {*dir(metrics)}:
        check_attributes(getattr(metrics, part), PART)
    assert {*dir(metrics)} & {"box", "top1"}

    again = YOLO(tmp_path / "run" / "weights" / "last.pt")
    again.add_callback("on_predict_batch_end", lambda p: check_attributes(p, PREDICTOR))
    assert again.task == name
    scores = again.val(Judge, data=str(data), plots=False, verbose=False, workers=0)
    assert scores is again.metrics
    (result,) = again.predict(IMAGE, predictor=Seer, verbose=False, conf=0.0)
    every = {"boxes", "masks", "keypoints", "obb", "probs"}
    assert {part for part in every if getattr(result, part) is not None} == PARTS[name]
    assert {"trainer", "validator", "predictor"} <= {*called}


def test_an_embedded_set_needs_no_folder(network, tmp_path, monkeypatch):
    from yolo.data import shapes

    monkeypatch.setattr(shapes, "TRAIN", 6)
    monkeypatch.setattr(shapes, "VAL", 4)
    monkeypatch.setattr(shapes, "SIZE", 96)
    model = YOLO(network)
    model.train(data="shapes", **nano.options(tmp_path, "run", epochs=1))
    assert len(model.trainer.train_loader.index) == 6
    assert model.trainer.data.root.is_relative_to(tmp_path / "run" / "cache")


def test_public_names():
    assert yolo.YOLO is YOLO
    assert isinstance(yolo.__version__, str)
