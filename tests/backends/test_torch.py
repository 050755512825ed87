# SPDX-License-Identifier: Apache-2.0
"""The torch backend leaves the model alone and gives ordinary tensors."""

from __future__ import annotations

import copy
import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from yolo.backends.torch import TorchBackend, fingerprint
from yolo.cfg.schema import PredictConfig
from yolo.tasks.detect.model import DetectionModel
from yolo.tasks.detect.predict import DetectionPredictor
from yolo.tasks.spec import TASKS


class Seen(nn.Module):
    """Returns its input, so that a test can look at it."""

    names = {0: "cat"}  # noqa: RUF012 - read only
    stride = (8, 16, 32)

    def __init__(self, channels=3):
        super().__init__()
        self.num_channels = channels
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        self.layout = x.is_contiguous(memory_format=torch.channels_last)
        return x


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = DetectionModel("yolov8n.yaml", nc=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


@pytest.fixture(scope="module")
def backend(model):
    return TorchBackend(model, task="detect")


def digest(tensor):
    return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()


def state_of(module):
    return [
        (name, value.dtype, value.device, value.data_ptr(), value._version, digest(value))
        for name, value in module.state_dict().items()
    ] + [(name, p.requires_grad) for name, p in module.named_parameters()]


def test_pixels_become_rgb_planes_in_0_to_1():
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 64, 3), dtype=np.uint8)
    backend = TorchBackend(Seen())
    out = backend(images)
    expected = torch.from_numpy(images[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
    assert torch.equal(out, expected)
    assert backend.model.layout
    assert out.dtype == torch.float32
    assert (backend.stride, backend.channels, backend.names) == (32, 3, {0: "cat"})


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_other_channels_keep_their_order_and_16_bits_their_range(channels):
    images = np.random.default_rng(0).integers(0, 65535, (1, 32, 32, channels), dtype=np.uint16)
    out = TorchBackend(Seen(channels))(images)
    expected = images.transpose(0, 3, 1, 2).astype(np.float32) / 65535
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6)


def test_tensors_pass_through():
    tensor = torch.rand(1, 3, 32, 32)
    assert torch.equal(TorchBackend(Seen())(tensor), tensor)


def test_a_cpu_takes_a_few_images_at_once(monkeypatch):
    class Parts(Seen):
        def forward(self, x):
            self.__dict__.setdefault("sizes", []).append(len(x))
            return {"map": x, "more": (x.amax((1, 2, 3)), [x[:, :1]])}

    net = Parts()
    stack = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    whole = TorchBackend(net)(stack)
    monkeypatch.setattr("yolo.backends.torch.CPU_PIXELS", 2 * 8 * 8)
    backend = TorchBackend(net)
    parts = backend(stack)
    assert backend.model.sizes == [2, 2, 1]
    assert whole["map"].shape == (5, 3, 8, 8)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    monkeypatch.setattr("yolo.backends.torch.CPU_PIXELS", 1)
    torch.testing.assert_close(TorchBackend(net)(whole["map"])["more"], whole["more"])


def test_the_model_is_not_altered(model):
    model.train()
    before, modes = state_of(model), [m.training for m in model.modules()]
    backend = TorchBackend(model, task="detect")
    backend(np.zeros((1, 64, 64, 3), np.uint8))
    TorchBackend(model, dtype=torch.bfloat16)(np.zeros((1, 64, 64, 3), np.uint8))
    assert state_of(model) == before
    assert [m.training for m in model.modules()] == modes
    assert not backend.model.training


def test_fused_output_equals_the_model_s(model, backend):
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3), dtype=np.uint8)
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        x = torch.from_numpy(images[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
        expected = twin(x)
    out = backend(images)
    assert out.shape == (2, 4 + 3, 8 * 12 + 4 * 6 + 2 * 3)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-2)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backend.model.modules())


def test_outputs_are_ordinary_tensors(backend):
    out = backend(np.zeros((1, 64, 64, 3), np.uint8))
    assert not out.is_inference()
    out[0, 0, 0] = 5
    scale = torch.ones(1, requires_grad=True)
    (out * scale).sum().backward()
    assert scale.grad is not None


def test_half_precision(model, backend, caplog):
    assert TorchBackend(Seen(), dtype=torch.float16).dtype == torch.float32
    assert "half" in caplog.text
    images = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    half = TorchBackend(model, dtype=torch.bfloat16)
    out, full = half(images), backend(images)
    assert out.dtype == torch.float32
    assert next(half.model.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(out[:, :4], full[:, :4], rtol=0.1, atol=4)


def test_reuse_until_a_weight_changes():
    net = Seen()
    first = TorchBackend.reuse(None, net)
    assert TorchBackend.reuse(first, net) is first
    with torch.no_grad():
        net.weight.add_(1)
    second = TorchBackend.reuse(first, net)
    assert second is not first
    net.mean.fill_(2)
    third = TorchBackend.reuse(second, net)
    assert third is not second
    assert float(third.model.mean) == 2
    net.load_state_dict({"weight": torch.zeros(1), "mean": torch.zeros(1)})
    fourth = TorchBackend.reuse(third, net)
    assert float(fourth.model.weight) == 0
    net.names = {0: "renamed"}
    assert TorchBackend.reuse(fourth, net).names == {0: "renamed"}
    assert TorchBackend.reuse(fourth, Seen()) is not fourth
    fifth = TorchBackend.reuse(None, net)
    assert TorchBackend.reuse(fifth, net, channels_last=False) is not fifth
    assert TorchBackend.reuse(fifth, net, dtype=torch.bfloat16) is not fifth
    assert TorchBackend.reuse(fifth, net, "cpu", torch.float32, True) is fifth
    assert fingerprint(net) == fingerprint(net)


def test_pickle(backend):
    twin = pickle.loads(pickle.dumps(backend))
    images = np.full((1, 64, 64, 3), 90, np.uint8)
    assert torch.equal(backend(images), twin(images))


def test_threads_share_one_backend(backend):
    config = PredictConfig(imgsz=64, conf=0.001, max_det=5, verbose=False)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(12)]

    def predict(image):
        return DetectionPredictor(config, TASKS["detect"], backend)(image)[0].boxes.data

    expected = [predict(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predict, images))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert sum(map(len, expected)) > 0


def test_a_tensor_source_gives_what_the_model_says(backend):
    tensor = torch.rand(2, 3, 64, 96)
    config = PredictConfig(imgsz=640, conf=0.0001, batch=2, verbose=False)
    seen = []
    original = DetectionPredictor.postprocess

    class Spy(DetectionPredictor):
        def postprocess(self, outputs, prepared):
            seen.append(outputs)
            return original(self, outputs, prepared)

    results = Spy(config, TASKS["detect"], backend)(tensor)
    assert torch.equal(seen[0], backend(tensor))
    assert [r.orig_shape for r in results] == [(64, 96)] * 2


@pytest.mark.gpu
def test_cuda(model):
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3), dtype=np.uint8)
    full = TorchBackend(model)(images)
    for dtype, atol in ((torch.float32, 0.05), (torch.float16, 1.0)):
        out = TorchBackend(model, "cuda:0", dtype)(images)
        assert out.device.type == "cuda"
        torch.testing.assert_close(out.cpu(), full, rtol=1e-2, atol=atol)
    deep = np.random.default_rng(0).integers(0, 65535, (1, 32, 32, 5), dtype=np.uint16)
    out = TorchBackend(Seen(5), "cuda:0")(deep)
    np.testing.assert_allclose(
        out.cpu().numpy(), deep.transpose(0, 3, 1, 2).astype(np.float32) / 65535, rtol=1e-6
    )
    config = PredictConfig(imgsz=64, conf=0.001, verbose=False)
    backend = TorchBackend(model, "cuda:0", task="detect")
    (result,) = DetectionPredictor(config, TASKS["detect"], backend)(images[0])
    assert result.boxes.data.device.type == "cpu"


def test_a_new_model_at_an_old_address_is_no_match():
    net = Seen()
    old = TorchBackend.reuse(None, net)
    address = id(net)
    del net
    assert all(id(Seen()) != address for _ in range(100))  # the backend keeps the old one alive
    assert not pickle.loads(pickle.dumps(old)).fits(Seen())


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        net = Seen()
    first = TorchBackend.reuse(None, net)
    assert TorchBackend.reuse(first, net) is first
