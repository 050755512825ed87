# SPDX-License-Identifier: Apache-2.0
"""Weights by path and by address: asked for, verified, resumed, atomic. The server is our own."""

from __future__ import annotations

import hashlib
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import nano
import yolo
from yolo import YOLO, fetch_weights
from yolo.cli import main
from yolo.engine import fetch
from yolo.engine.checkpoint import Checkpoint, save_checkpoint
from yolo.engine.fetch import find_weights, is_weights
from yolo.errors import CheckpointError, ConfigError, MissingFileError

pytestmark = pytest.mark.processes

CONTENT = bytes(range(256)) * 40
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; what it was asked for is in `asked`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.asked = CONTENT, []
        self.ranges = self.length = True
        self.stop_after = None

    def url(self, path="/some/w.pt"):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        start = self.headers.get("Range")
        server.asked.append((self.path, start))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path.startswith("/none"):
            self.send_error(404)
            return
        first = int(start[6:-1]) if start and server.ranges else 0
        if first and first >= len(server.content):
            self.send_error(416)
            return
        body = server.content[first:]
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/*")
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.stop_after])


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_once_and_is_verified(server, tmp_path, caplog):
    caplog.set_level(logging.INFO, "yolo")
    path = fetch_weights(server.url("/some/w.pt?token=secret"), SHA.upper())
    assert path.as_posix() == "weights/w.pt"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["w.pt"]
    assert "secret" not in caplog.text
    assert "/some/w.pt" in caplog.text
    assert fetch_weights(server.url(), SHA) == path
    assert len(server.asked) == 1
    path.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"w\.pt: expected SHA-256"):
        fetch_weights(server.url(), SHA)
    assert path.read_bytes() == b"mine"


def test_an_interrupted_download_goes_on(server, tmp_path):
    server.stop_after = 3000
    with pytest.raises(CheckpointError, match=r"ended after 3000 of 10240 bytes.*call again"):
        fetch_weights(server.url(), SHA, tmp_path)
    assert [name[:6] for name in names(tmp_path)] == [".w.pt."]
    server.stop_after = None
    assert fetch_weights(server.url(), SHA, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("/some/w.pt", "bytes=3000-")
    assert names(tmp_path) == ["w.pt"]


def test_a_server_without_ranges_starts_again_and_a_whole_part_is_only_verified(server, tmp_path):
    part = tmp_path / f".w.pt.{SHA[:16]}.part"
    part.write_bytes(b"something else")
    server.ranges = False
    assert fetch_weights(server.url(), SHA, tmp_path).read_bytes() == CONTENT
    (tmp_path / "w.pt").rename(part)
    server.ranges = True
    assert fetch_weights(server.url(), SHA, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["w.pt"]


def test_another_content_is_deleted(server, tmp_path):
    server.content = b"evil"
    with pytest.raises(CheckpointError, match="isn't the one asked for, and is deleted"):
        fetch_weights(server.url(), SHA, tmp_path)
    assert not names(tmp_path)


def test_redirections_stay_within_http(server, tmp_path):
    assert fetch_weights(server.url("/to//other/w.pt"), SHA, tmp_path / "a").is_file()
    (tmp_path / "w.pt").write_bytes(CONTENT)
    for other in (f"file://{tmp_path}/w.pt", "ftp://127.0.0.1/w.pt", "data:/w.pt"):
        with pytest.raises(CheckpointError, match="not downloaded"):
            fetch_weights(server.url(f"/to/{other}"), SHA, tmp_path / "b")
    assert not names(tmp_path / "b")


def test_what_a_server_may_do_wrong(server, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="Not Found"):
        fetch_weights(server.url("/none/w.pt"), SHA, tmp_path)
    server.length = False
    with pytest.raises(CheckpointError, match="doesn't say how long"):
        fetch_weights(server.url(), SHA, tmp_path)
    server.length = True
    monkeypatch.setattr(fetch, "MAX_BYTES", 10_000)
    with pytest.raises(CheckpointError, match="10240 bytes; expected at most 10000"):
        fetch_weights(server.url(), SHA, tmp_path)
    server.server_close()
    with pytest.raises(CheckpointError, match="not downloaded"):
        fetch_weights("http://127.0.0.1:9/w.pt", SHA, tmp_path)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("url", "sha256", "told"),
    [
        ("https://a.org/w.pt", None, "only if you say which file it must be: sha256="),
        ("https://u:secret@a.org/w.pt?secret", None, r"^https://a\.org/w\.pt:"),
        ("https://a.org/w.pt", "abc", "64 hexadecimal digits, got 'abc'"),
        ("file:///etc/w.pt", SHA, "expected an http or https address"),
        ("ftp://a.org/w.pt", SHA, "expected an http or https address"),
        ("http://[::1/w.pt", SHA, "expected an http or https address"),
        ("https:///w.pt", SHA, "expected an http or https address"),
        ("https://a.org/", SHA, "ends in a file name"),
        ("https://a.org/..%2f..%2f.pt", SHA, "ends in a file name"),
        ("https://a.org/w.pt%00", SHA, "ends in a file name"),
        ("https://a.org/w.exe", SHA, "ends in a file name"),
    ],
)
def test_addresses_and_digits_are_checked_before_anything_is_asked(tmp_path, url, sha256, told):
    with pytest.raises(ConfigError, match=told):
        fetch_weights(url, sha256, tmp_path)
    assert not names(tmp_path)


def test_a_file_that_is_not_there_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(MissingFileError) as caught:
        YOLO("yolov8n.pt")
    message = str(caught.value)
    assert f"looked in {tmp_path} and {tmp_path / 'weights'}" in message
    assert "nothing is downloaded unasked" in message
    assert "YOLO('yolov8n.yaml').train" in message
    assert "sha256=" in message
    with pytest.raises(MissingFileError, match=r"looked in \S*/folder\)"):
        find_weights("folder/yolov8n.pt")


def test_what_counts_as_weights():
    for name in ("a.pt", "b.safetensors", "HTTPS://a.org/x"):
        assert is_weights(name)
    for name in ("a.yaml", "yolov8n", "a.onnx"):
        assert not is_weights(name)


def test_the_facade_and_the_command_take_addresses(server, tmp_path, capsys):
    from yolo.tasks.detect.model import DetectionModel

    model = DetectionModel(nano.TINY)
    save_checkpoint(
        tmp_path / "tiny.pt",
        Checkpoint("detect", dict(model.names), model.yaml, dict(model.state_dict())),
    )
    server.content = (tmp_path / "tiny.pt").read_bytes()
    sha = hashlib.sha256(server.content).hexdigest()
    (tmp_path / "tiny.pt").unlink()
    found = YOLO(server.url("/tiny.pt"), sha256=sha)
    assert found.ckpt_path == "weights/tiny.pt"
    assert YOLO("tiny.pt", sha256=sha).ckpt_path == "weights/tiny.pt"
    with pytest.raises(CheckpointError, match="expected SHA-256"):
        YOLO("tiny.pt", sha256=SHA)
    (tmp_path / "weights" / "tiny.pt").unlink()
    import cv2

    cv2.imwrite("a.png", np.zeros((32, 32, 3), np.uint8))
    words = ["predict", f"weights={server.url('/tiny.pt')}", "source=a.png", "save=False"]
    assert main(words) == 2
    assert "say which file it must be" in capsys.readouterr().err
    assert main([*words, f"sha256={sha}", "imgsz=32"]) == 0
    assert yolo.fetch_weights is fetch_weights
