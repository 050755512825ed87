# SPDX-License-Identifier: Apache-2.0
"""The search: trials are real runs with their values, hopeless ones end, and it can go on."""

from __future__ import annotations

import sys

import pytest
import yaml

import nano
from yolo import YOLO
from yolo.cli import main
from yolo.errors import ConfigError, MissingFileError
from yolo.tuning import SPACE

optuna = pytest.importorskip("optuna")

SEARCH = {"lr0": (1e-3, 1e-2, "log"), "mosaic": [0.0, 1.0], "warmup_epochs": (0, 2)}


def search(network, data, folder, **changes):
    options = nano.options(folder, "search", epochs=1, plots=False)
    return YOLO(network).tune(**{"data": str(data), "space": SEARCH, **options, **changes})


def test_every_trial_is_a_run_with_its_values(network, data, tmp_path):
    found = search(network, data, tmp_path, iterations=2)
    trials = found.study.trials
    assert len(trials) == 2
    for trial in trials:
        run = found.folder / "trials" / f"trial{trial.number}"
        args = yaml.safe_load((run / "args.yaml").read_text())
        assert set(trial.params) == set(SEARCH)
        assert {name: args[name] for name in SEARCH} == trial.params
        assert args["optimizer"] == "AdamW"
        assert (run / "weights" / "best.pt").is_file()
    assert trials[0].params != trials[1].params
    assert found.fitness == max(trial.value for trial in trials)
    best = yaml.safe_load((found.folder / "best.yaml").read_text())
    assert best == {"optimizer": "AdamW", **found.best}

    # Stopped in the third trial: it is asked for again, and the count goes on.
    model = YOLO(network)

    def stop(trainer):
        raise RuntimeError("the machine was switched off")

    model.add_callback("on_train_batch_end", stop)
    again = {**nano.options(tmp_path, "search", epochs=1), "data": str(data), "space": SEARCH}
    with pytest.raises(RuntimeError, match="switched off"):
        model.tune(iterations=3, resume=found.folder, **again)
    more = search(network, data, tmp_path, iterations=4, resume=found.folder)
    states = [trial.state.name for trial in more.study.trials]
    assert states.count("COMPLETE") == 4
    assert more.folder == found.folder


def test_a_trial_that_another_process_left_is_taken_up(network, data, tmp_path):
    (tmp_path / "search").mkdir()
    storage = f"sqlite:///{tmp_path / 'search' / 'study.db'}"
    study = optuna.create_study(study_name="search", storage=storage, direction="maximize")
    left = study.ask()
    value = left.suggest_float("lr0", 1e-3, 1e-2, log=True)
    space = {"lr0": SEARCH["lr0"]}
    resume = tmp_path / "search"
    found = search(network, data, tmp_path, iterations=1, space=space, resume=resume)
    assert [trial.state.name for trial in found.study.trials] == ["FAIL", "COMPLETE"]
    assert found.best == {"lr0": value}


def test_hopeless_trials_are_cut_short(network, data, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 0)
    found = search(network, data, tmp_path, iterations=1, epochs=3)
    assert found.study.trials[0].state.name == "PRUNED"
    assert found.fitness is None
    rows = (found.folder / "trials" / "trial0" / "results.csv").read_text().splitlines()
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"lr00": (0.1, 0.2)}}, "unknown option 'lr00'.*lr0"),
        ({"space": {"lr0": 0.1}}, r"lr0: expected \(low, high\)"),
        ({"space": {"mosaic": (0.0, 2.0)}}, "mosaic"),
        ({"optimizer": "auto"}, "optimizer=auto chooses lr0"),
        ({"mosaic": 0.5}, "mosaic is both fixed"),
    ],
)
def test_what_cant_be_searched_is_refused_before_any_trial(
    network, data, tmp_path, changes, message
):
    with pytest.raises(ConfigError, match=message):
        search(network, data, tmp_path, **changes)
    assert not (tmp_path / "search").exists()


def test_missing_folder_and_missing_package(network, data, tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match="expected the folder of a search"):
        search(network, data, tmp_path, resume=tmp_path / "none")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'plainyolo\[tune\]'"):
        search(network, data, tmp_path)


def test_from_the_command_line(network, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("lr0: [0.001, 0.01, log]\n")
    words = f"tune model={network} data={data} epochs=1 imgsz=64 batch=8 workers=0 device=cpu"
    assert main([*words.split(), "iterations=1", "space=space.yaml", "name=words"]) == 0
    best = yaml.safe_load((tmp_path / "runs/detect/words/best.yaml").read_text())
    assert 0.001 <= best["lr0"] <= 0.01
    assert main(["tune", f"model={network}"]) == 2


def test_the_space_is_made_of_options(network):
    known = YOLO(network).spec.train_config.model_fields
    assert set(SPACE) <= set(known)
