# SPDX-License-Identifier: Apache-2.0
"""What may be said after `yolo`, and how it is split into a `Command`.

Nothing heavy is imported here, so that help, version and most mistakes answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolo.errors import ConfigError

EXAMPLES = {
    "train": "yolo train model=yolov8n.yaml data=shapes epochs=10",
    "val": "yolo val model=runs/detect/train/weights/best.pt data=shapes",
    "predict": "yolo predict model=best.pt source=image.jpg",
    "track": "yolo track model=best.pt source=video.mp4",
    "export": "yolo export model=best.pt format=onnx",
    "tune": "yolo tune model=yolov8n.pt data=data.yaml epochs=30 iterations=50",
}
"""The modes, each with the shortest useful call."""

VERBS = (*EXAMPLES, "check", "cfg", "checks", "help", "version")
"""All that can be done: the modes, and what needs no model."""

REFUSED = {
    "benchmark": "run `python -m benchmarks.run` in a checkout",
    "settings": "there are none: give options to a call, or keep them in a file for cfg=",
    "copy-cfg": "`yolo cfg` lists every option; write those you change into a file for cfg=",
    "login": "there is no account, and nothing is sent anywhere",
    "logout": "there is no account, and nothing is sent anywhere",
    "solutions": "work on the Results of predict in Python",
}
"""Familiar words that aren't offered, with what to use instead."""

HELP = f"""\
yolo [TASK] MODE key=value ...

MODE   {(chr(10) + " " * 7).join(f"{mode:<8} {call}" for mode, call in EXAMPLES.items())}
TASK   seldom needed: the model knows it
Also   check    yolo check data.yaml: label problems as file:line: reason; status 1 if any
       cfg      yolo cfg [MODE|TASK]: every option with its default and range
       checks   versions and devices of this machine
       version, help

Order is free. Values: None, True, False, numbers, lists (imgsz=320,640), text; a bare name means
True. cfg=file.yaml holds options below those of the command line. plugins=a.py,b.py imports your
own blocks and tasks first. weights=https://.../x.pt sha256=... downloads weights into ./weights.
"""

_PAIR = re.compile(r"-{0,2}([A-Za-z_][A-Za-z0-9_-]*)\s*=(.*)", re.DOTALL)
_OPEN_PAIR = re.compile(r"-{0,2}[A-Za-z_][A-Za-z0-9_-]*\s*=")
_TEXT_OPTIONS = frozenset(
    {"model", "weights", "sha256", "data", "project", "name", "cfg", "cache_dir"}
    | {"plugins", "task", "format"}
)  # their values stay text: name=007 and name=1e3 are folders, not numbers


@dataclass(frozen=True)
class Command:
    """What a command line says.

    Attributes:
        verb: a mode, or one of help, version, checks, cfg, check; "" when there is none.
        words: the other plain words: a task, switched-on options, the file of `check`.
        options: name -> value as parsed.
    """

    verb: str
    words: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def parse(argv: Sequence[str]) -> Command:
    """Split a command line.

    Raises:
        ConfigError: an option without a value, or a word that isn't offered here.
    """
    words: list[str] = []
    texts: dict[str, str] = {}
    for word in _join_pairs(argv):
        pair = _PAIR.fullmatch(word)
        if pair is None:
            word = {"-h": "help", "-v": "version"}.get(word, word)
            words.append(word[2:].replace("-", "_") if word.startswith("--") else word)
            continue
        name = pair[1].replace("-", "_")
        texts[name] = pair[2].strip()
        if not texts[name]:
            raise ConfigError(f"option {name!r} has no value; write {name}=..., or {name}=None")
    for word in words:
        if word in REFUSED:
            raise ConfigError(f"'yolo {word}' isn't offered: {REFUSED[word]}")
    verb = "help" if "help" in words else next((word for word in words if word in VERBS), "")
    if verb in ("help", "version"):
        return Command(verb)
    if verb:
        words.remove(verb)
    options = {name: _value(name, text) for name, text in texts.items()}
    if not verb and options.get("mode") in EXAMPLES:
        verb = options.pop("mode")
    return Command(verb, tuple(words), options)


def _join_pairs(argv: Iterable[str]) -> list[str]:
    """Join `k = v`, `k= v` and `k =v` to one word each, and drop trailing commas."""
    joined: list[str] = []
    for raw in argv:
        word, last = raw.strip(), joined[-1] if joined else ""
        waiting = _OPEN_PAIR.fullmatch(last) is not None
        if word in ("", ","):
            continue
        if last and word.startswith("="):
            joined[-1] = f"{last} {word}"
        elif waiting and (last.endswith(" =") or not _PAIR.fullmatch(word)):
            joined[-1] = last + word
        else:
            joined.append(word)
    return [word[:-1] if len(word) > 1 and word.endswith(",") else word for word in joined]


def _value(name: str, text: str) -> Any:
    """Read an option's value. The import is late: it brings YAML and pydantic."""
    from yolo.cfg.load import parse_value

    if name in _TEXT_OPTIONS:
        return None if text.casefold() == "none" else text
    return parse_value(text)
