# SPDX-License-Identifier: Apache-2.0
"""The options a call of the facade runs with: keywords over a file over what the model brings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from yolo.cfg.load import FAMILIAR, MODES, read_options, resolve
from yolo.cfg.schema import Config, leaves
from yolo.errors import ConfigError
from yolo.tasks.spec import TaskSpec, homes_of_option

if TYPE_CHECKING:
    from yolo.engine.checkpoint import Checkpoint

LOGGER = logging.getLogger(__name__)

INHERITED = ("imgsz", "data", "single_cls", "classes", "channels_last", "cache_dir")
"""Training options that later calls on the same model start from."""


def resolve_call(
    spec: TaskSpec, mode: str, base: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Check the options of a call.

    Args:
        spec: the model's task.
        mode: train, val or predict.
        base: what the model brings; of its options those count that the mode has.
        options: what the caller gave; `cfg` names a file of options below the others.

    Raises:
        ConfigError: for an option that is unknown or doesn't fit, or another task's name.
    """
    schema: type[Config] = getattr(spec, f"{mode}_config")
    below = {**spec.defaults_for(mode), **_known(schema, base)}
    given = with_file(schema, below, options)
    config: Any = resolve(schema, below, given, elsewhere=homes_of_option)
    if options.get("plugins"):  # what a file or checkpoint says is never imported
        from yolo.plugins import load_plugins

        load_plugins(config.plugins)
    if config.task not in {None, spec.name}:
        raise ConfigError(f"task={config.task!r}: this model is for {spec.name!r}")
    return config


def _known(schema: type[Config], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in schema.model_fields}


def with_file(
    schema: type[Config], below: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Put the options of the file that `cfg` names below the others.

    A file may hold the options of all modes, as the args.yaml of a run does: those of other modes
    are left out, in one line of the log. So is a value that is the default anyway, unless it
    replaces one of `below`: a file that lists everything has chosen nothing.

    Args:
        schema: the options of the mode.
        below: what is used where nothing is given.
        options: what the caller gave.
    """
    given = dict(options)
    path = given.pop("cfg", None)
    if not path:
        return given
    listed = read_options(path, given)
    listed.pop("model", None)  # the facade holds one
    elsewhere = []
    for name, value in list(listed.items()):
        field = schema.model_fields.get(name)
        if field is None:
            foreign = name in FAMILIAR or any(name in other.model_fields for other in MODES)
            if foreign or homes_of_option(name):
                elsewhere.append(name)
                del listed[name]
            continue
        kinds = leaves(field.annotation)
        unset = value is None and not {type(None), Any} & kinds
        if unset or (value == field.default and name not in below):
            del listed[name]
    if elsewhere:
        LOGGER.info("%s: without effect in %s: %s", path, schema.for_mode, ", ".join(elsewhere))
    return {**listed, **given}


def training_options(
    spec: TaskSpec, base: Mapping[str, Any], options: Mapping[str, Any], own: str | None
) -> tuple[Any, Checkpoint | None]:
    """Check the options of a training, and read the run that `resume` names.

    Args:
        spec: the model's task.
        base: what the model brings.
        options: what the caller gave.
        own: the model's checkpoint, which `resume=True` means.

    Returns:
        The options and the checkpoint to go on from, None for a new run.

    Raises:
        YoloError: if the options or the run can't be used.
    """
    given = with_file(spec.train_config, {**spec.defaults_for("train"), **base}, options)
    asked = given.get("resume", False)
    from yolo.engine.resume import open_run, run_before_restart, settle

    path = own if asked is True else asked
    if not asked:
        config = resolve_call(spec, "train", base, given)
        path = run_before_restart(config, spec.name)
        if path is None:
            return config, None
    if path is None:
        raise ConfigError(
            "resume=True needs a model loaded from the last.pt of a run, as in "
            "YOLO('runs/detect/train/weights/last.pt').train(resume=True)"
        )
    saved = open_run(path)
    before = dict(saved.config)
    transforms = before.pop("augmentations", None)
    if transforms and "augmentations" not in given:
        raise ConfigError(
            f"resume: the run has transforms of your own ({', '.join(transforms)}); give them "
            "again, as augmentations=[...]"
        )
    then, now = (resolve_call(spec, "train", before, extra) for extra in ({}, given))
    return settle(saved, then, now, given), saved
