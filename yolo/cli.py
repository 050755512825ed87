# SPDX-License-Identifier: Apache-2.0
"""The `yolo` command: words on the command line become one call of the facade.

Exit status: 0 done, 1 `yolo check` found problems, 2 the user's mistake (one line, no traceback),
130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from yolo.command import EXAMPLES, HELP, Command, parse
from yolo.errors import ConfigError, YoloError, nearest

if TYPE_CHECKING:
    from yolo.cfg.schema import Config
    from yolo.tasks.spec import TaskSpec

LOGGER = logging.getLogger(__name__)


def _run_mode(command: Command) -> int:
    """Call the facade once, for the mode that the verb names."""
    mode, options = command.verb, dict(command.options)
    if options.get("mode") in EXAMPLES:  # said twice, or by a script of other origin
        del options["mode"]
    listed = _read_cfg(options.get("cfg"), options)
    _load_plugins(options.get("plugins"))
    task, words = _find_task(command.words, options.pop("task", listed.get("task")))
    options |= dict.fromkeys(_switches(words, mode, task), True)
    known = {**listed, **options}
    model = _take_model(mode, known)
    _require(mode, known)
    # The facade reads the file itself, and takes from it what is for this mode.
    given = {name: known[name] for name in known if name in options}
    if mode == "train" and "resume" in known:
        given["resume"] = known["resume"]
    sha256 = given.pop("sha256", None)
    from yolo import YOLO, __version__

    if not hasattr(YOLO, mode):
        raise ConfigError(f"'yolo {mode}' isn't part of version {__version__}")
    call = getattr(YOLO(model, task=task.name if task else None, sha256=sha256), mode)
    if mode in ("predict", "track"):
        for _ in call(**{"save": listed.get("save", True), **given, "stream": True}):
            pass  # one result at a time: a long video doesn't fill the memory
    else:
        call(**given)
    return 0


def _load_plugins(value: Any) -> None:
    """Import the files of `plugins=a.py,b.py` first: they may bring the task that a word names."""
    if value:
        from yolo.plugins import load_plugins

        load_plugins(value)


def _read_cfg(path: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the options of `cfg=`; `given` are those beside it."""
    if path is None:
        return {}
    from yolo.cfg.load import read_options

    return read_options(path, given)


def _find_task(words: Sequence[str], named: str | None) -> tuple[TaskSpec | None, list[str]]:
    """Return the task that a word or `task=` names, and the words left."""
    if not words and named is None:
        return None, []
    from yolo.tasks.spec import TASKS

    found = [word for word in words if word in TASKS]
    names = {*found, *([named] if named else [])}
    if len(names) > 1:
        raise ConfigError(f"expected one task, found {', '.join(sorted(names))}; leave one out")
    return TASKS[names.pop()] if names else None, [word for word in words if word not in found]


def _switches(words: Sequence[str], mode: str, task: TaskSpec | None) -> list[str]:
    """Check that plain words are options that can be switched on by their bare names.

    Raises:
        ConfigError: for any other word, with what was probably meant.
    """
    if not words:
        return []
    from yolo.cfg.schema import leaves
    from yolo.tasks.spec import TASKS

    fields = {  # what belongs to another task or mode is for the facade to answer
        name: option
        for place in (*EXAMPLES, mode)
        for spec in (*TASKS.values(), *([task] if task else []))
        for name, option in _schema(place, spec).model_fields.items()
    }
    for word in words:
        if word not in fields:
            raise _unknown_word(word, [*fields, *COMMANDS, *TASKS])
        if bool not in leaves(fields[word].annotation):
            example = fields[word].default
            raise ConfigError(f"option {word!r} needs a value, such as {word}={example}")
    return list(words)


def _unknown_word(word: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a word that is no mode, task or option."""
    parts = (f"unknown word {word!r}.", nearest(word, known), "See 'yolo help' and 'yolo cfg'")
    return ConfigError(" ".join(part for part in parts if part))


def _schema(mode: str, spec: TaskSpec) -> type[Config]:
    """Return the option class of a task's mode; modes without their own share another's."""
    home = {"track": "predict", "tune": "train"}.get(mode, mode)
    schema: type[Config] = getattr(spec, f"{home}_config")
    return schema


def _take_model(mode: str, given: dict[str, Any]) -> str:
    """Take the model (`weights` is another name) out of the options.

    `train resume=last.pt` needs no other.
    """
    resume = given.get("resume")
    model = given.pop("model" if given.get("model") is not None else "weights", None)
    if model is None and mode == "train" and isinstance(resume, str):
        given["resume"] = True
        return resume
    if model is None:
        raise ConfigError(f"{mode} needs model=..., as in: {EXAMPLES[mode]}")
    return str(model)


def _require(mode: str, given: Mapping[str, Any]) -> None:
    """Refuse a call that would lack its data, before anything heavy is imported."""
    if mode in ("train", "tune") and given.get("data") is None and not given.get("resume"):
        raise ConfigError(f"{mode} needs data=..., as in: {EXAMPLES[mode]}")
    if mode in ("predict", "track") and given.get("source") is None:
        raise ConfigError(f"{mode} needs source=..., as in: {EXAMPLES[mode]}")


def _check_labels(command: Command) -> int:
    """List the problems of a dataset's labels and images."""
    options = dict(command.options)
    _load_plugins(options.pop("plugins", None))
    task, words = _find_task(command.words, options.pop("task", None))
    data = options.pop("data", None)
    sources = [*words, *([data] if data is not None else [])]
    if len(sources) != 1 or options:
        found = " ".join([*sources, *options]) or "nothing"
        raise ConfigError(f"check needs one dataset, as in: yolo check data.yaml; found {found}")
    from yolo.data.check import check_dataset

    report = check_dataset(sources[0], task.label_format if task else None)
    for problem in report.problems:
        _say(str(problem))
    LOGGER.info("%s", report.table())
    return 1 if report.problems else 0


def _show_options(command: Command) -> int:
    """Print the tables of options, all or those of the modes and tasks named."""
    from yolo.cfg.load import MODES
    from yolo.cfg.schema import CommonConfig, option_rows, render_table
    from yolo.tasks.spec import TASKS

    by_mode = {schema.for_mode: schema for schema in MODES}
    for word in command.words:
        if word not in by_mode and word not in TASKS:
            raise _unknown_word(word, [*by_mode, *TASKS])
    modes = [mode for mode in by_mode if mode in command.words] or list(by_mode)
    tasks = [task for task in TASKS if task in command.words] or list(TASKS)
    tables = {"every mode": option_rows(CommonConfig)}
    for mode in modes:
        tables[mode] = option_rows(by_mode[mode], without=CommonConfig)
    for task in tasks:
        for mode in modes:
            schema, own = _schema(mode, TASKS[task]), TASKS[task].defaults_for(mode)
            tables[f"{task} {mode}"] = option_rows(schema, by_mode[mode], own)
    for title, rows in tables.items():
        if rows:
            _say(f"{title}\n\n{render_table(rows)}\n")
    return 0


def _show_machine(command: Command) -> int:
    """Print the versions and devices that a report of a fault should name."""
    from yolo.machine import machine_facts

    facts = machine_facts()
    width = max(map(len, facts))
    _say("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
    return 0


def _show_help(command: Command) -> int:
    """Print the help."""
    _say(HELP.rstrip())
    return 0


def _show_version(command: Command) -> int:
    """Print the version."""
    from yolo import __version__

    _say(__version__)
    return 0


COMMANDS: dict[str, Callable[[Command], int]] = {
    **dict.fromkeys(EXAMPLES, _run_mode),
    "check": _check_labels,
    "cfg": _show_options,
    "checks": _show_machine,
    "help": _show_help,
    "version": _show_version,
}
"""What each verb does; a function returns the exit status."""


def _say(text: str) -> None:
    """Write a line to the standard output."""
    sys.stdout.write(f"{text}\n")


class _PlainFormatter(logging.Formatter):
    """Messages as they are; warnings and worse with their level before them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record."""
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


@contextmanager
def _log_to_terminal() -> Iterator[None]:
    """Show the library's log on the standard error while the command runs."""
    logger, handler = logging.getLogger("yolo"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `yolo` command.

    Args:
        argv: the words after `yolo`; None: those of this process.

    Returns:
        The exit status.
    """
    with _log_to_terminal():
        try:
            status = _dispatch(parse(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
            return status
        except YoloError as error:
            message = str(error)
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except BrokenPipeError:  # `yolo cfg | head`: nobody reads on, and Python mustn't complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            return 130
    sys.stderr.write(f"error: {message}\n")
    return 2


def _dispatch(command: Command) -> int:
    """Call what the command line names; nothing at all means help."""
    if command.verb:
        return COMMANDS[command.verb](command)
    if not command.words and not command.options:
        return _show_help(command)
    if command.words:
        from yolo.tasks.spec import TASKS

        for word in command.words:
            if word not in TASKS:
                raise _unknown_word(word, [*COMMANDS, *TASKS])
    raise ConfigError(f"expected a mode ({', '.join(EXAMPLES)}), as in: {EXAMPLES['train']}")
