# SPDX-License-Identifier: Apache-2.0
"""Files with a user's own layers, losses and tasks: imported when, and only when, he names them.

Nothing that a network description or a checkpoint says is ever imported.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from yolo.errors import ConfigError, MissingFileError

_LOG = logging.getLogger(__name__)
_LOADED: dict[str, str] = {}  # module name -> file, in the order of loading


def load_plugins(paths: str | Path | Iterable[str | Path]) -> list[ModuleType]:
    """Import Python files, each once per process.

    A module's name follows from its path, the same in every process, so that objects of its
    classes can be pickled to a worker which has loaded the same files. A file that the user's own
    program has imported already, or that is running as the program, isn't run again.

    Args:
        paths: the files, or one file, or "a.py, b.py".

    Returns:
        The modules, in order.

    Raises:
        MissingFileError: if there is no such file.
        ConfigError: if a file isn't Python, or fails while it is imported.
    """
    if isinstance(paths, str):
        paths = [part for part in map(str.strip, paths.split(",")) if part]
    return [_load(Path(path)) for path in ([paths] if isinstance(paths, Path) else paths)]


def loaded_plugins() -> tuple[str, ...]:
    """Return the files that this process has loaded, for another process to load them as well."""
    return tuple(file for name, file in _LOADED.items() if name in sys.modules)


def _load(path: Path) -> ModuleType:
    file = path.expanduser().resolve()
    if not file.is_file():
        raise MissingFileError(f"no plugin file {str(path)!r} (looked for {file})")
    if file.suffix != ".py":
        raise ConfigError(f"plugin {str(path)!r}: expected a Python file (.py)")
    name = _module_name(file)
    known = sys.modules.get(name) or _imported_from(file)
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin {str(path)!r}: Python can't import it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before running it: dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise ConfigError(
            f"plugin {file}{_line_of(error, file)}: {type(error).__name__}: {error}"
        ) from error
    _LOADED[name] = str(file)
    _LOG.info("plugin %s loaded", file)
    return module


def _module_name(file: Path) -> str:
    """Derive a name from the path alone, since other processes must find the same."""
    stem = re.sub(r"\W", "_", file.stem)
    return f"yolo_plugin_{stem}_{zlib.crc32(str(file).encode()):08x}"


def _imported_from(file: Path) -> ModuleType | None:
    """Find a module that was imported from the file under another name."""
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None)
        if not isinstance(origin, str) or Path(origin).name != file.name:
            continue  # cheap test first: a process has thousands of modules
        if Path(origin).resolve() == file:
            return module
    return None


def _line_of(error: BaseException, file: Path) -> str:
    """Give ":line" of the file's last frame, or of its syntax error."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f":{error.lineno}"
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line
