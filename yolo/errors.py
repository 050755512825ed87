# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause.

Each message's first line says what, where, expected, found, and what to do.
The command line prints the message without a traceback and exits with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class YoloError(Exception):
    """Base of every error that a user's input can cause."""

    def __str__(self) -> str:  # a KeyError would print the repr of its message
        return str(self.args[0]) if self.args else ""


class ConfigError(YoloError, TypeError, ValueError):
    """An option is unknown, has the wrong type or lies outside its range."""


class DataError(YoloError, ValueError):
    """A dataset, a label file or an image can't be used."""


class CorruptImageError(DataError):
    """An image's header is sound, but its pixels can't be decoded."""


class ModelError(YoloError, ValueError):
    """A network description or its weights can't be used."""


class CheckpointError(YoloError, ValueError):
    """A checkpoint can't be read, or doesn't fit what is asked of it."""


class ExportError(YoloError, RuntimeError):
    """An exported file doesn't compute what the model does, or couldn't be made."""


class MissingFileError(YoloError, FileNotFoundError):
    """A file that the user named isn't there."""


class MissingPackageError(YoloError, ImportError):
    """An optional package is needed and absent; the message has the install line."""


class UnknownNameError(YoloError, KeyError, ValueError):
    """A name isn't in a registry; the message lists the nearest names and all of them."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names resemble `name`.

    Returns:
        A sentence such as "Similar: 'imgsz'." or an empty string when nothing is near.
    """
    found = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.6)
    return f"Similar: {', '.join(map(repr, found))}." if found else ""
