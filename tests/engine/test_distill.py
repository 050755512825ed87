# SPDX-License-Identifier: Apache-2.0
"""Distillation in a training run: every kind on every task, exact resume, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nano
from yolo import TASKS, YOLO
from yolo.cfg.load import read_yaml
from yolo.engine import distill
from yolo.engine.checkpoint import Checkpoint, digest, load_checkpoint, save_checkpoint
from yolo.engine.distill import Strength
from yolo.errors import CheckpointError, ConfigError, MissingFileError, UnknownNameError
from yolo.nn.distill import DISTILLERS

ROOT = Path(__file__).parents[2]


def save_teacher(path, spec, yaml, *, seed=1, **changes):
    """Save a fresh network as a trained one would be; give its path."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = spec.model({**yaml, "names": {}, **changes})
    task = changes.get("task", spec.name)
    saved = Checkpoint(task, model.names, dict(model.yaml), dict(model.state_dict()))
    save_checkpoint(path, saved)
    return path


@pytest.fixture(scope="module")
def teacher(network, data, tmp_path_factory):
    """A detector of twice the width of the smallest network's."""
    yaml = YOLO(network).model.yaml
    names = read_yaml(data)["names"]
    return save_teacher(
        tmp_path_factory.mktemp("teacher") / "big.pt",
        TASKS["detect"],
        {**yaml, "scales": {"n": [0.33, 0.25, 128]}},
        names=names,
    )


@pytest.mark.parametrize(
    ("decay", "wanted"),
    [
        ("constant", [0, 0.5, 1, 1, 0, 0]),
        ("linear", [0, 0.5 * 0.875, 0.75, 0.5, 0, 0]),
        ("cosine", [0, 0.5 * 0.96194, 0.853553, 0.5, 0, 0]),
    ],
)
def test_strength_over_a_run(decay, wanted):
    strength = Strength(ramp=0.2, until=0.8, decay=decay)
    found = [strength.at(done) for done in (0, 0.1, 0.2, 0.4, 0.8, 1.0)]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert Strength().at(0) == 1


CHOICES = ["cwd", "mgd", "logit", {"name": "self", "gain": 2.0}]


@pytest.mark.parametrize("task", TASKS)
def test_one_step_with_each_kind(task, tmp_path):
    """The last kind has no teacher."""
    spec, seen = TASKS[task], []

    def all_learn(trainer):
        learning = [p for p in trainer.learner.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in learning)

    def steps(trainer):
        batch = next(iter(trainer.train_loader.epoch(0)))
        names = dict(trainer.model.names)
        wide = {**trainer.network, "scales": {"n": [0.33, 0.125, 128]}, "nc": len(names)}
        wide |= {k: trainer.model.yaml[k] for k in ("kpt_shape",) if k in trainer.model.yaml}
        path = save_teacher(tmp_path / "big.pt", spec, wide, names=names)
        plain = trainer.criterion
        start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        args = trainer.args
        for i, choice in enumerate(CHOICES):
            given = {"distill": choice, "teacher": path if i < len(CHOICES) - 1 else None}
            trainer.args = args.model_copy(update=given)
            trainer.model.load_state_dict(start)
            trainer.learner = trainer.step_model = trainer.build_learner()
            trainer.criterion = distill.build_criterion(trainer, plain)
            trainer.loss_names = trainer.criterion.names
            trainer.loss_sums = torch.zeros(len(trainer.loss_names) + 1)
            trainer.optimizer, _, _ = trainer.build_optimizer()
            teacher, parts = trainer.learner.teacher(), trainer.learner.distiller
            before, adapters = digest(teacher.state_dict()), digest(parts.state_dict())
            trainer.batch_i = 0
            trainer.train_step(batch)
            terms = trainer.loss_names[len(plain.names) :]
            assert terms == parts.names
            items = {name: float(trainer.loss_items[name]) for name in terms}
            assert all(0 < value < 100 for value in items.values()), (choice, items)
            assert teacher is trainer.ema.ema or digest(teacher.state_dict()) == before
            assert (digest(parts.state_dict()) != adapters) == any(True for _ in parts.parameters())
            after = trainer.model.state_dict()
            assert any(not torch.equal(start[key], after[key]) for key in start), choice
            seen.append(choice)
        trainer.stop = True

    nano.train(
        tmp_path,
        network=nano.task_network(tmp_path, spec),
        data=nano.task_data(tmp_path, spec),
        callbacks={"on_train_start": steps, "optimizer_step": all_learn},
        lr0=1e-3, optimizer="SGD", nbs=4,
    )  # fmt: skip
    assert seen == CHOICES


def test_a_gain_of_nothing_changes_nothing(train, teacher):
    """The loop, the average, and the student's start and files are those of a plain run."""
    plain = train("plain")
    taught = train("taught", teacher=teacher, distill={"name": "mgd", "gain": 0.0})
    assert nano.same(nano.weights_of(plain), nano.weights_of(taught))
    files = [
        load_checkpoint(m.trainer.wdir / n) for m in (plain, taught) for n in ("last.pt", "best.pt")
    ]
    assert all(saved.network == files[0].network for saved in files)
    assert all(saved.weights.keys() == files[0].weights.keys() for saved in files)
    assert files[3].state is None
    assert any("distiller" in name for name in files[2].state["model"])


def test_exits_live_in_training_alone_and_all_terms_teach(tmp_path):
    spec, seen = TASKS["classify"], []
    model = nano.train(
        tmp_path,
        network=nano.task_network(tmp_path, spec),
        data=nano.task_data(tmp_path, spec),
        callbacks={"on_train_epoch_end": lambda t: seen.extend(t.idle_terms.teaching)},
        distill="self",
        batch=8,
    )
    assert set(seen) == {"loss", "kd", "exit", "exit_kd", "hint"}
    assert any("heads" in name for name in load_checkpoint(model.trainer.last).state["model"])
    assert load_checkpoint(model.trainer.best).weights.keys() == model.model.state_dict().keys()
    assert not any("heads" in name for name in model.model.state_dict())


def test_terms_are_columns_and_end_when_they_should(train, teacher):
    """In half precision, and with batches accumulated; validation knows the labels alone."""
    choice = {"name": "cwd", "until": 0.5}
    model = train(teacher=str(teacher), distill=choice, epochs=2, nbs=12, amp="bf16")
    first, second = model.trainer.history
    assert 0 < first["train/cwd_loss"] < 100
    assert all(torch.isfinite(value).all() for value in nano.weights_of(model).values())
    assert second["train/cwd_loss"] == 0
    assert "val/box_loss" in first
    assert "val/cwd_loss" not in first


class Killed(BaseException):
    """Stands for the end of the process: nothing in the library may catch it."""


@pytest.mark.parametrize(
    "choice",
    [{"name": "mgd", "decay": "cosine", "ramp": 0.3}, pytest.param("self", marks=pytest.mark.slow)],
)
def test_resumed_in_the_middle_of_an_epoch_is_identical(
    train, teacher, network, data, tmp_path, monkeypatch, choice
):
    """nbs=12: gradients, the adapters' among them, are under way when the run is cut."""
    from_file = {} if choice == "self" else {"teacher": "big.pt"}
    options = {"distill": choice, **from_file, "nbs": 12, "save_every": 3, "epochs": 2}
    monkeypatch.chdir(teacher.parent)
    whole = load_checkpoint(train("whole", **options).trainer.last)

    def cut(trainer):
        if trainer.iteration == 5:
            raise Killed

    model = YOLO(network)
    model.add_callback("on_train_batch_end", cut)
    with pytest.raises(Killed):
        model.train(data=str(data), **nano.options(tmp_path, "cut", **options))
    last = tmp_path / "cut" / "weights" / "last.pt"
    monkeypatch.chdir(tmp_path)  # the path was relative
    assert load_checkpoint(last).state["iteration"] in range(1, 6)
    if from_file:
        other = save_teacher(
            tmp_path / "other.pt", TASKS["detect"], load_checkpoint(teacher).network, seed=2
        )
        with pytest.raises(CheckpointError, match=r"other\.pt holds other weights than when"):
            YOLO(last).train(resume=True, teacher=other)
    YOLO(last).train(resume=True)
    again = load_checkpoint(last)
    assert nano.same(whole.weights, again.weights)
    assert nano.same(whole.state["model"], again.state["model"])
    skipped = {"time"}
    for row, other in zip(whole.history, again.history, strict=True):
        assert [row[k] for k in row if k not in skipped] == [
            other[k] for k in row if k not in skipped
        ]


def test_a_distiller_of_one_s_own(train, teacher, monkeypatch, tmp_path):
    monkeypatch.setattr(DISTILLERS, "_parts", dict(DISTILLERS._parts))

    page = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
    plugin = tmp_path / "mydistiller.py"
    plugin.write_text(
        next(b for b in page.split("```python\n") if "class Mean" in b).split("```")[0]
    )
    model = train(teacher=teacher, distill="mean", plugins=str(plugin))
    assert model.trainer.history[0]["train/mean_loss"] > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"distill": "cdw"}, UnknownNameError, "unknown distill 'cdw'.*cwd.*Known: .*logit"),
        ({"distill": {"tau": 1.0}}, ConfigError, "needs a 'name'"),
        ({"distill": {"name": "cwd", "untl": 1}}, ConfigError, "tau.*until.*found 'untl'.*until"),
        ({"distill": {"name": "self", "decay": "cos"}}, ConfigError, "decay as one of .*cosine"),
        ({"distill": {"name": "self", "ramp": 0.9, "until": 0.5}}, ConfigError, "ramp <= until"),
        ({"distill": {"name": "self", "gain": -1}}, ConfigError, "gain >= 0, found -1"),
        ({"distill": "cwd"}, ConfigError, "needs teacher=, a checkpoint"),
        ({"teacher": "big.pt"}, ConfigError, "teacher=big.pt needs distill=: one of cwd, logit"),
        ({"teacher": "no.pt", "distill": "cwd"}, MissingFileError, r"no\.pt: no such checkpoint"),
    ],
)
def test_a_wrong_option_is_refused_before_the_first_batch(train, options, error, message):
    with pytest.raises(error, match=message):
        train(**options)


def test_a_teacher_that_does_not_fit_is_refused_before_the_first_batch(train, teacher, tmp_path):
    spec, saved = TASKS["detect"], load_checkpoint(teacher)
    yaml, names = saved.network, saved.names
    rows = {
        "head": [[[2, 3], 1, "Detect", ["nc"]]],
    }
    cases = [
        ({"nc": 4}, "expected 5 classes as the data have, found 4"),
        ({"ch": 1}, "expected 3 channels of the image as the data have, found 1"),
        (rows, "expected maps of the network's strides at its head"),
        ({"task": "pose"}, "expected a network for 'detect', found one for 'pose'"),
        ({"names": {i: names[4 - i] for i in names}}, "classes in another order"),
    ]
    for i, (changes, message) in enumerate(cases):
        path = save_teacher(tmp_path / f"{i}.pt", spec, yaml, **changes)
        with pytest.raises(ConfigError, match=message):
            train(teacher=path, distill="cwd")
    path = save_teacher(tmp_path / "bins.pt", spec, yaml, reg_max=8)
    with pytest.raises(ConfigError, match="the network has reg_max 16, the teacher 8"):
        train(teacher=path, distill="logit")


RUN = """
import json, os, sys
import torch
from yolo import YOLO

def freeze_norms(trainer):
    for module in trainer.learner.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()

network, data, options = sys.argv[1:]
model = YOLO(network)
model.add_callback("on_train_batch_start", freeze_norms)
model.train(data=data, **json.loads(options))
"""


@pytest.mark.processes
@pytest.mark.slow
def test_two_ranks_learn_as_one(network, data, teacher, tmp_path):
    """The adapters' gradients are averaged like the student's; uneven shares, and an idle end."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    states = []
    for ranks in (1, 2):
        options = nano.options(
            tmp_path, f"of{ranks}", epochs=2, batch=3, nbs=3, optimizer="SGD", lr0=0.01,
            teacher=str(teacher), distill={"name": "cwd", "until": 0.7},
        )  # fmt: skip
        subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                f"--nproc-per-node={ranks}", str(script), str(network), str(data),
                json.dumps(options),
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path, capture_output=True, text=True, timeout=240, check=True,
        )  # fmt: skip
        saved = load_checkpoint(tmp_path / f"of{ranks}" / "weights" / "last.pt")
        states.append((saved.state["model"], [r["train/cwd_loss"] for r in saved.history]))
    (one, losses), (two, others) = states
    assert any("adapters" in name for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    assert others == pytest.approx(losses, rel=1e-4)


def test_a_term_of_training_alone_cannot_be_monitored_in_validation(
    network, data, teacher, tmp_path
):
    options = nano.options(tmp_path, "run", epochs=1, distill="cwd", teacher=str(teacher))
    with pytest.raises(ConfigError, match=r"val/cwd_loss"):
        YOLO(network).train(data=str(data), monitor="val/cwd_loss", **options)
    YOLO(network).train(data=str(data), monitor="train/cwd_loss", mode="min", **options)
