# SPDX-License-Identifier: Apache-2.0
"""Search for training options on Optuna: every trial is a training that really uses its values."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo.cfg.load import read_yaml, write_yaml
from yolo.engine.folders import run_folder
from yolo.engine.late import DivergedError
from yolo.errors import ConfigError, MissingFileError, nearest
from yolo.options import resolve_call

if TYPE_CHECKING:
    from optuna import Study, Trial

    from yolo.api import YOLO
    from yolo.engine.trainer import Trainer

LOGGER = logging.getLogger(__name__)

Range = Sequence[Any]
"""(low, high), (low, high, "log"), or a list of choices of other kinds or another length."""

SPACE: dict[str, Range] = {
    "lr0": (1e-4, 1e-2, "log"),
    "lrf": (0.01, 1.0, "log"),
    "weight_decay": (1e-5, 1e-2, "log"),
    "warmup_epochs": (0.0, 5.0),
    "box": (1.0, 15.0),
    "cls": (0.2, 4.0),
    "dfl": (0.4, 6.0),
    "hsv_h": (0.0, 0.1),
    "hsv_s": (0.0, 0.9),
    "hsv_v": (0.0, 0.9),
    "degrees": (0.0, 45.0),
    "translate": (0.0, 0.5),
    "scale": (0.0, 0.9),
    "fliplr": (0.0, 1.0),
    "mosaic": (0.0, 1.0),
    "mixup": (0.0, 0.5),
}
"""What is searched unless told otherwise, as far as the task has these options."""


@dataclass(frozen=True)
class TuneResult:
    """What a search has found.

    Attributes:
        best: the best trial's values by option; empty where no trial was finished.
        fitness: its fitness, None likewise.
        folder: holds best.yaml (`train(cfg=...)` reads it), the runs, and the study.
        study: Optuna's.
    """

    best: dict[str, Any]
    fitness: float | None
    folder: Path
    study: Study


def tune(
    model: YOLO,
    space: Mapping[str, Range] | str | Path | None,
    iterations: int,
    storage: str | None,
    resume: str | Path | None,
    timeout: float | None,
    options: Mapping[str, Any],
) -> TuneResult:
    """Search; arguments as of `YOLO.tune`."""
    optuna = _optuna()
    given = {k: v for k, v in options.items() if k not in {"project", "name", "exist_ok"}}
    wanted, given = _checked(model, space, given)
    folder = _folder(model, resume, options)
    study = optuna.create_study(
        study_name=folder.name,
        storage=storage or f"sqlite:///{folder / 'study.db'}",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    )
    if not storage:  # with a server, others may be at work on them
        _take_up(optuna, study)
    # On from where the numbers of an earlier call ended.
    seed = int(given.get("seed", 0)) + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    left = iterations - len(study.get_trials(deepcopy=False, states=ended))

    def run(trial: Trial) -> float:
        values = {name: _suggest(trial, name, span) for name, span in wanted.items()}
        return _train(optuna, model, trial, folder, {**given, **values})

    if left > 0:
        study.optimize(run, n_trials=left, timeout=timeout, catch=(DivergedError,))
    return _result(optuna, study, folder, given)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "tune needs the package optuna; install it with: pip install 'plainyolo[tune]'"
        ) from error
    return optuna


def _folder(model: YOLO, resume: str | Path | None, options: Mapping[str, Any]) -> Path:
    """Return the folder of a new search, or of the one that goes on."""
    if resume is None:
        project, name = options.get("project"), options.get("name")
        return run_folder(project, name, model.task, "tune", options.get("exist_ok", False))
    folder = Path(resume).absolute()
    if not folder.is_dir():
        raise MissingFileError(
            f"tune: resume={resume}: expected the folder of a search, found none"
        )
    return folder


def _checked(
    model: YOLO, space: Mapping[str, Range] | str | Path | None, given: dict[str, Any]
) -> tuple[dict[str, Range], dict[str, Any]]:
    """Return the ranges and the options, after a look that each end of a range can be used."""
    known = model.spec.train_config.model_fields
    if isinstance(space, str | Path):
        space = read_yaml(Path(space))
    wanted = dict(space or {k: v for k, v in SPACE.items() if k in known and k not in given})
    for name, span in wanted.items():
        if name not in known:
            raise ConfigError(f"tune: space: unknown option {name!r}. {nearest(name, known)}")
        if name in given:
            raise ConfigError(f"tune: {name} is both fixed ({given[name]!r}) and in the space")
        if isinstance(span, str) or not isinstance(span, Sequence) or not span:
            raise ConfigError(
                f"tune: space: {name}: expected (low, high), (low, high, 'log') or a list of "
                f"choices, found {span!r}"
            )
        for value in span[:2] if _is_range(span) else span:
            resolve_call(model.spec, "train", model.overrides, {**given, name: value})
    if "optimizer" not in {**wanted, **given}:
        given = {**given, "optimizer": "AdamW"}
    if given.get("optimizer") == "auto" and {"lr0", "momentum"} & set(wanted):
        raise ConfigError(
            "tune: optimizer=auto chooses lr0 and momentum itself, so they can't be searched; "
            "name an optimizer, or leave them out of the space"
        )
    return wanted, given


def _is_range(span: Range) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in span[:2])
    return numbers and (len(span) == 2 or (len(span) == 3 and span[2] == "log"))


def _suggest(trial: Trial, name: str, span: Range) -> Any:
    if not _is_range(span):
        return trial.suggest_categorical(name, list(span))
    low, high = span[:2]
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=len(span) == 3)
    return trial.suggest_float(name, low, high, log=len(span) == 3)


def _take_up(optuna: Any, study: Study) -> None:
    """Ask again for trials that another process began and didn't end."""
    running = optuna.trial.TrialState.RUNNING
    for trial in study.get_trials(states=(running,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _train(
    optuna: Any, model: YOLO, trial: Trial, folder: Path, options: Mapping[str, Any]
) -> float:
    """Run one trial; return its best fitness."""
    run = copy.deepcopy(model)
    pruned = False

    def report(trainer: Trainer) -> None:
        nonlocal pruned
        if trainer.fitness is None or trainer.finished:
            return
        trial.report(trainer.fitness, trainer.epoch)
        if trial.should_prune():
            trainer.stop = pruned = True

    run.add_callback("on_fit_epoch_end", report)
    run.train(**{
        "plots": False, "verbose": False, **options, "project": folder / "trials",
        "name": f"trial{trial.number}",
    })  # fmt: skip
    if pruned:
        raise optuna.TrialPruned
    assert run.trainer
    best = run.trainer.best_fitness
    return float(run.metrics.fitness if best is None else best)


def _result(optuna: Any, study: Study, folder: Path, given: Mapping[str, Any]) -> TuneResult:
    """Write best.yaml and say what was found."""
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not done:
        LOGGER.warning("tune: no trial was finished; the study is in %s", folder)
        return TuneResult({}, None, folder, study)
    best = study.best_trial
    fixed = {name: given[name] for name in ("optimizer",) if name in given}
    write_yaml(folder / "best.yaml", {**fixed, **best.params})
    LOGGER.info(
        "tune: best of %d trials is number %d with fitness %.4f; train(cfg='%s') uses it",
        len(done), best.number, best.value, folder / "best.yaml",
    )  # fmt: skip
    return TuneResult(dict(best.params), best.value, folder, study)
