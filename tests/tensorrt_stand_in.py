# SPDX-License-Identifier: Apache-2.0
"""A stand-in for NVIDIA's package tensorrt: what the documentation says of the calls used here.

The plan is the ONNX graph itself, run by onnxruntime on the CPU; maps are read from and written to
the addresses that are given. It is stricter than the real one about the order of calls.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from typing import Any

import numpy as np

from yolo.backends.quiet import import_onnxruntime

TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 INT64 UINT8 BOOL")
BuilderFlag = enum.Enum("BuilderFlag", "TF32 DEBUG")
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class ILogger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def __init__(self) -> None:
        self.made = True


class Logger(ILogger):
    def __init__(self, severity: Any) -> None:
        assert severity is ILogger.Severity.WARNING
        super().__init__()


def nptype(kind: DataType) -> type:
    names = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool_"}
    return getattr(np, names.get(kind.name, kind.name.lower()))


class OnnxParser:
    num_errors = 1

    def __init__(self, network: Any, logger: ILogger) -> None:
        assert logger.made
        self.network, self.logger = network, logger

    def parse(self, model: bytes) -> bool:
        if b"refuse me" in model:
            return False
        self.network.model = model
        return True

    def get_error(self, index: int) -> str:
        return f"In node {index}: unsupported"


class Builder:
    last: Any = None
    """The builder that was made last, for tests to look at."""

    def __init__(self, logger: ILogger) -> None:
        assert logger.made
        self.logger = logger
        self.cleared: list[Any] = []
        self.workspace = None
        self.profile: Any = None
        Builder.last = self

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return types.SimpleNamespace(model=None)

    def create_builder_config(self) -> Any:
        return types.SimpleNamespace(
            clear_flag=self.cleared.append,
            set_memory_pool_limit=self._limit,
            add_optimization_profile=lambda profile: setattr(self, "profile", profile.shapes),
        )

    def _limit(self, pool: MemoryPoolType, size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        assert type(size) is int
        self.workspace = size

    def create_optimization_profile(self) -> Any:
        profile = types.SimpleNamespace(shapes={})
        profile.set_shape = lambda name, *shapes: profile.shapes.update({name: shapes})
        return profile

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if self.workspace == 1:
            return None
        profile = json.dumps(self.profile).encode()
        return memoryview(b"plan" + profile + b"\0" + network.model)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert logger.made

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if not plan.startswith(b"plan"):
            return None
        profile, _, model = plan[4:].partition(b"\0")
        return Engine(json.loads(profile), model)


class Engine:
    def __init__(self, profile: Any, model: bytes) -> None:
        session = import_onnxruntime().InferenceSession(model, providers=["CPUExecutionProvider"])
        self.session, self.profile = session, profile
        self.inputs = {value.name: value for value in session.get_inputs()}
        self.values = {**self.inputs, **{value.name: value for value in session.get_outputs()}}
        self.num_io_tensors = len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        types_ = {"float": "FLOAT", "float16": "HALF", "uint8": "UINT8", "int64": "INT64"}
        return DataType[types_[self.values[name].type[len("tensor(") : -1]]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(n if isinstance(n, int) else -1 for n in self.values[name].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert index == 0
        shapes = (self.profile or {}).get(name) or [self.get_tensor_shape(name)] * 3
        return [tuple(shape) for shape in shapes]

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.found: dict[str, np.ndarray] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        if not all(a <= n <= b for a, n, b in zip(least, shape, largest, strict=True)):
            return False
        self.addresses = {}
        self.shape = shape
        self.x = np.zeros(shape, nptype(self.engine.get_tensor_dtype(name)))
        self._run(name)
        return True

    def _run(self, name: str) -> None:
        outputs = [n for n in self.engine.values if n not in self.engine.inputs]
        found = self.engine.session.run(outputs, {name: self.x})
        self.found = dict(zip(outputs, found, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.found[name].shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.addresses.keys() == self.engine.values.keys()
        (name,) = self.engine.inputs
        ctypes.memmove(self.x.ctypes.data, self.addresses[name], self.x.nbytes)
        self._run(name)
        for output, value in self.found.items():
            value = np.ascontiguousarray(value)
            ctypes.memmove(self.addresses[output], value.ctypes.data, value.nbytes)
        return True


def install(monkeypatch: Any, version: str = "10.9.0.34") -> types.ModuleType:
    """Let `import tensorrt` give the stand-in, and the CPU be a GPU for the files that use it."""
    import sys
    from contextlib import nullcontext

    import torch

    module = types.ModuleType("tensorrt")
    vars(module).update({k: v for k, v in globals().items() if isinstance(v, type)}, nptype=nptype)
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    quiet = types.SimpleNamespace(
        cuda_stream=7, wait_stream=lambda other: None, synchronize=lambda: None
    )
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: quiet)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: quiet)
    for name in ("yolo.backends.engine", "yolo.export.engine"):
        monkeypatch.setattr(f"{name}.cuda_device", lambda asked: torch.device("cpu"))
    return module
