# SPDX-License-Identifier: Apache-2.0
"""Find weights on the disk, or download those that the user names by address and SHA-256.

Nothing else in the package uses the network. A file arrives under a hidden name, which a later call
goes on with, and gets its own name only when its SHA-256 is the one that was asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from yolo.errors import CheckpointError, ConfigError, MissingFileError

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

LOGGER = logging.getLogger(__name__)

FOLDER: Final = "weights"
"""Below the current folder: where downloads go, and where a bare file name is looked for too."""

MAX_BYTES: Final = 4 << 30
TIMEOUT_S: Final = 30
_CHUNK = 1 << 20
_NAME = re.compile(r"\w[\w.-]*\.(pt|safetensors)")


def is_url(text: object) -> bool:
    """Tell whether a model is given by its address."""
    return isinstance(text, str) and re.match(r"https?://", text, re.IGNORECASE) is not None


def is_weights(model: str | Path) -> bool:
    """Tell whether a model is given by its weights; else it is a network's description."""
    return is_url(model) or Path(model).suffix in {".pt", ".safetensors"}


def find_weights(model: str | Path, sha256: str | None = None) -> Path:
    """Return the file of weights given by path or address, compared with `sha256` if that is given.

    Raises:
        MissingFileError: if there is no such file, with the ways to one.
        ConfigError, CheckpointError: see `fetch_weights`.
    """
    if is_url(model):
        return fetch_weights(str(model), sha256)
    path = Path(model)
    places = [path, Path(FOLDER, path)] if path.parent == Path() else [path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = " and ".join(str(place.absolute().parent) for place in places)
        raise MissingFileError(
            f"{path}: no such file (looked in {looked}), and nothing is downloaded unasked. "
            f"Train one: YOLO('{path.stem}.yaml').train(data=...); or give the path of weights "
            "that you have, those of Ultralytics 8.x too, which are read as they are; or an "
            f"address: YOLO('https://.../{path.name}', sha256='...')"
        )
    if sha256 is not None:
        verify(found, sha256)
    return found


def fetch_weights(url: str, sha256: str | None, folder: str | Path = FOLDER) -> Path:
    """Download a checkpoint, unless the folder has it already.

    Args:
        url: http or https address that ends in the file's name, .pt or .safetensors.
        sha256: 64 hexadecimal digits that the file's content must have.
        folder: where to keep the file; it is made if need be.

    Returns:
        Path of the verified file.

    Raises:
        ConfigError: if the address or the SHA-256 isn't one.
        CheckpointError: if the file can't be had, is too large, or has another content. What has
            arrived of an interrupted download is kept for the next call.
    """
    name = _file_name(url)
    if sha256 is None:
        raise ConfigError(
            f"{_shown(url)}: a file from the network is used only if you say which file it must "
            "be: sha256= with its 64 hexadecimal digits, from whoever publishes it or by "
            "`sha256sum` of a copy that you trust"
        )
    sha256 = checked_digits(sha256)
    path = Path(folder) / name
    if path.exists():
        verify(path, sha256)
        return path
    from http.client import HTTPException

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{name}.{sha256[:16]}.part")
    LOGGER.info("downloading %s to %s", _shown(url), path)
    try:
        _download(url, part)
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(
            f"{_shown(url)}: not downloaded ({reason}); what has arrived is kept, so call again"
        ) from error
    try:
        verify(part, sha256)
    except CheckpointError as error:
        part.unlink()
        raise CheckpointError(
            f"{_shown(url)}: the file that arrived isn't the one asked for, and is deleted: {error}"
        ) from error
    os.replace(part, path)
    return path


def verify(path: Path, sha256: str) -> None:
    """Compare a file with its SHA-256.

    Raises:
        ConfigError: if `sha256` isn't one.
        CheckpointError: if it differs.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    if found.hexdigest() != checked_digits(sha256):
        raise CheckpointError(f"{path}: expected SHA-256 {sha256}, found {found.hexdigest()}")


def checked_digits(sha256: str) -> str:
    """Return the digits in lower case.

    Raises:
        ConfigError: if they aren't 64 hexadecimal ones.
    """
    digits = str(sha256).strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ConfigError(f"sha256: expected 64 hexadecimal digits, got {str(sha256)[:80]!r}")
    return digits


def _file_name(url: str) -> str:
    """Check an address, and return the file name that it ends in."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme.lower() in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(f"expected an http or https address, got {str(url)[:200]!r}")
    name = PurePosixPath(unquote(parts.path)).name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{_shown(url)}: expected an address that ends in a file name such as yolov8n.pt or "
            f"best.safetensors, found {name[:80]!r}"
        )
    return name


def _shown(url: str) -> str:
    """Leave out what may be secret: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


def _opener() -> OpenerDirector:
    """Return what opens http and https addresses alone, also after a redirection."""
    import urllib.request  # heavy, and hardly ever needed

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _download(url: str, part: Path) -> None:
    """Bring `part` to the full length, going on from what it has."""
    from urllib.error import HTTPError
    from urllib.request import Request

    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"User-Agent": "plainyolo"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response: Any = _opener().open(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416 and start:  # nothing beyond what is here: its SHA-256 will tell
            return
        raise
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        )
        start = start if goes_on else 0
        if response.status == 206 and not goes_on:
            raise OSError("the server sent another part than the one asked for")
        announced = response.headers.get("Content-Length", "")
        if not announced.isdigit():
            raise OSError("the server doesn't say how long the file is")
        total = start + int(announced)
        if total > MAX_BYTES:
            raise OSError(f"the file has {total} bytes; expected at most {MAX_BYTES}")
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := response.read(min(_CHUNK, total - start)) if start < total else b"":
                file.write(chunk)
                start += len(chunk)
        if start < total:
            raise OSError(f"the connection ended after {start} of {total} bytes")
