"""Stands in for TensorRT and pycuda: engines name a model, which is evaluated when they run.

The classes have the methods of the real ones that mdprune calls, with their arguments; that the
real ones have them is `test_tensorrt_build.test_the_real_modules_have_what_is_called`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from mdprune_deploy.emit.tensorrt.evaluate import runner

_memory: dict[int, bytearray] = {}
built: list[str] = []
"""The models that engines were built of, in order."""


class Logger:
    WARNING = 2

    def __init__(self, level: int) -> None:
        pass


class Network:
    path = ""


class Parser:
    num_errors = 0

    def __init__(self, network: Network, logger: object) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        self._network.path = path
        return Path(path).is_file()


class Profile:
    def __init__(self) -> None:
        self.largest: dict[str, int] = {}

    def set_shape(self, name: str, least: tuple, best: tuple, most: tuple) -> None:
        assert least[0] == 1 and best == most and least[1:] == most[1:]
        self.largest[name] = most[0]


class Config:
    def __init__(self) -> None:
        self.batch = 1

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: data + b"more")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    def add_optimization_profile(self, profile: Profile) -> None:
        self.batch = max(profile.largest.values())


class Builder:
    def __init__(self, logger: object) -> None:
        pass

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << 1, "strongly typed"
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        built.append(network.path)
        return f"{config.batch} {network.path}".encode()


class Context:
    def __init__(self, data: bytes) -> None:
        batch, path = data.decode().split(" ", 1)
        self._largest = int(batch)
        self._path = Path(path)
        graph = onnx.load(path, load_external_data=False).graph
        self._outputs = [value.name for value in graph.output]
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._inputs[name] = tuple(shape)
        return shape[0] <= self._largest

    def get_tensor_shape(self, name: str) -> list[int]:
        zeros = {key: np.zeros(shape) for key, shape in self._inputs.items()}
        return list(self._run(zeros)[self._outputs.index(name)].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in _memory
        self._addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        assert handle == 7
        feeds = {
            name: np.frombuffer(_memory[self._addresses[name]], np.float32)[: np.prod(shape)]
            .reshape(shape)
            .astype(np.float64)
            for name, shape in self._inputs.items()
        }
        for name, array in zip(self._outputs, self._run(feeds), strict=True):
            data = array.astype(np.float32).tobytes()
            _memory[self._addresses[name]][: len(data)] = data
        return True

    def _run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        precision = "fp16" if ".fp16." in self._path.name else "fp32"
        return runner(self._path, self._path.parents[1] / "native", precision)(feeds)


class Runtime:
    def __init__(self, logger: object) -> None:
        pass

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        return SimpleNamespace(create_execution_context=lambda: Context(data))


class Event:
    def record(self, stream: object) -> None:
        pass

    def time_since(self, event: Event) -> float:
        return 2.0


def _allocate(size: int) -> int:
    address = 64 + 1024 * len(_memory)
    _memory[address] = bytearray(size)
    return address


def _to_device(to: Any, array: np.ndarray, stream: object) -> None:
    _memory[int(to)][: array.nbytes] = array.tobytes()


def _to_host(array: np.ndarray, source: Any, stream: object) -> None:
    data = _memory[int(source)][: array.nbytes]
    array[...] = np.frombuffer(data, array.dtype).reshape(array.shape)


def install(patch: pytest.MonkeyPatch) -> None:
    """Puts the modules where imports find them."""
    trt = ModuleType("tensorrt")
    vars(trt).update(
        __version__="10.3.0",
        Builder=Builder,
        Logger=Logger,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        OnnxParser=Parser,
        Runtime=Runtime,
    )
    device = SimpleNamespace(compute_capability=lambda: (8, 7))
    driver = ModuleType("pycuda.driver")
    vars(driver).update(
        Context=SimpleNamespace(get_device=lambda: device),
        Event=Event,
        Stream=lambda: SimpleNamespace(handle=7, synchronize=lambda: None),
        mem_alloc=_allocate,
        memcpy_dtoh_async=_to_host,
        memcpy_htod_async=_to_device,
    )
    for name, module in (
        ("tensorrt", trt),
        ("pycuda", ModuleType("pycuda")),
        ("pycuda.driver", driver),
        ("pycuda.autoprimaryctx", ModuleType("pycuda.autoprimaryctx")),
    ):
        patch.setitem(sys.modules, name, module)
    built.clear()
