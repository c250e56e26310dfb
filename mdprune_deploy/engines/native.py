"""The `native` engine: the C++ runtime through its C interface, `runtime/include/mdprune.h`.

A bundle is opened once per process, whatever the number of engines: weights of all domains are
mapped once. Every engine has a context of its own, which holds the activations' memory. ctypes
releases the interpreter's lock while the runtime computes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mdprune_deploy.engines.base import Array, DomainEngine, check_inputs
from mdprune_deploy.errors import BackendUnavailableError, BundleError, Error, UsageError
from mdprune_deploy.manifest import DomainModel

LIBRARY_VARIABLE = "MDPRUNE_LIBRARY"
"""Environment variable that may name the library's file."""
INDEX = "native/index.bin"
MAX_RANK = 8
Side = Literal["input", "output"]
_MESSAGE_BYTES = 1024
_OK, _INVALID_ARGUMENT, _UNSUPPORTED, _NO_MEMORY, _INTERNAL, _DEVICE = 0, 1, 7, 5, 8, 9


class NativeEngine(DomainEngine):
    """Runs one domain with the native runtime; calls from several threads take turns.

    Args:
        root: The bundle's directory.
        domain: The domain's name.
        model: The manifest's entry for it.
        threads: Threads that one call uses.
        variant: The instruction set, such as `"avx2"` or `"portable"`; None for the fastest here.

    Raises:
        BackendUnavailableError: The library or the bundle's native target is not there, or the
            processor lacks the instruction set.
        BundleError: The runtime cannot read the bundle.
        UsageError: `threads` is wrong.
    """

    name = "native"
    note: str | None = None

    def __init__(
        self,
        root: Path,
        domain: str,
        model: DomainModel,
        threads: int = 1,
        variant: str | None = None,
    ) -> None:
        super().__init__(domain, model, threads, "native", model.native)
        self._batched = model.dynamic_batch
        self._model = open_model(root)
        self._context = self._make_context(variant)
        self.variant = self._context.isa
        self._lock = threading.Lock()

    def _make_context(self, variant: str | None) -> Context:
        return Context(self._model, self.domain, self.threads, variant)

    def __call__(self, *arrays: Array) -> Array | list[Array]:
        """Runs the domain; see `Engine`."""
        check_inputs(self.domain, self.inputs, arrays)
        batch = self._batch(arrays)
        inputs = [np.ascontiguousarray(array) for array in arrays]
        outputs = [
            np.empty((batch, *shape[1:]) if self._batched else shape, dtype=np.float32)
            for shape in self._context.output_shapes
        ]
        with self._lock:
            self._context.run(batch if self._batched else 1, inputs, outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _batch(self, arrays: tuple[Array, ...]) -> int:
        if not self._batched:
            return 1
        sizes = {array.shape[0] for array in arrays}
        if len(sizes) != 1 or 0 in sizes:
            raise UsageError(
                f"domain {self.domain!r}: all inputs need one batch size of at least 1, given "
                f"{', '.join(str(array.shape[0]) for array in arrays)}"
            )
        size: int = sizes.pop()
        return size


class Options(Structure):
    """`mdp_context_options`."""

    _fields_ = (
        ("size", c_size_t),
        ("threads", c_size_t),
        ("isa", c_char_p),
        ("profile", c_int),
        ("parallel_for", c_void_p),
        ("parallel_user", c_void_p),
        ("parallel_workers", c_size_t),
        ("device", c_char_p),
        ("precision", c_char_p),
        ("stream", c_void_p),
        ("device_memory", c_int),
        ("tune", c_int),
    )


class TensorInfo(Structure):
    """`mdp_tensor`."""

    _fields_ = (
        ("name", c_char_p),
        ("rank", c_size_t),
        ("dims", c_size_t * MAX_RANK),
        ("elements", c_size_t),
        ("batched", c_int),
    )


class Memory(Structure):
    """`mdp_memory`, in bytes."""

    _fields_ = (("weights", c_size_t), ("plans", c_size_t), ("arena", c_size_t))


class DeviceMemory(Structure):
    """`mdp_device_memory`, in bytes."""

    _fields_ = (
        ("size", c_size_t), ("weights", c_size_t), ("tables", c_size_t), ("context", c_size_t),
    )  # fmt: skip


class DeviceTimes(Structure):
    """`mdp_device_times`, in nanoseconds."""

    _fields_ = (
        ("size", c_size_t), ("to_device", c_uint64), ("compute", c_uint64), ("to_host", c_uint64),
    )  # fmt: skip


class ProfileEntry(Structure):
    """`mdp_profile_entry`."""

    _fields_ = (("name", c_char_p), ("kind", c_char_p), ("nanoseconds", c_uint64))


@dataclass(frozen=True)
class OperatorTime:
    """How long an operator of the last run took.

    Attributes:
        name: The ONNX node that it came from.
        kind: What it is, such as `Convolution`.
        nanoseconds: Its time.
    """

    name: str
    kind: str
    nanoseconds: int


class Model:
    """An opened bundle: the weights and plans of all its domains.

    Args:
        root: The bundle's directory.
    """

    def __init__(self, root: Path) -> None:
        self.library = load_library()
        self.root = root
        self.handle = c_void_p()
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = self.library.mdp_model_open(
            os.fsencode(root), byref(self.handle), message, len(message)
        )
        _check(status, str(root), message.value)
        self._close = weakref.finalize(self, self.library.mdp_model_close, self.handle)

    def find(self, domain: str) -> int:
        """Returns a domain's number."""
        found = c_size_t()
        status = self.library.mdp_model_find_domain(self.handle, domain.encode(), byref(found))
        _check(status, f"{self.root}: domain {domain!r}", b"is not in the native index")
        return found.value

    def shapes(self, domain: int, side: Side) -> list[tuple[int, ...]]:
        """Returns the shapes of a domain's inputs or outputs for one image."""
        count = getattr(self.library, f"mdp_model_{side}_count")
        read = getattr(self.library, f"mdp_model_{side}")
        found = []
        for number in range(count(self.handle, domain)):
            tensor = TensorInfo()
            status = read(self.handle, domain, number, byref(tensor))
            _check(status, str(self.root), f"an {side} cannot be read".encode())
            found.append(tuple(tensor.dims[: tensor.rank]))
        return found

    def memory(self) -> Memory:
        """Returns what is mapped for all domains and what one context allocates."""
        found = Memory()
        status = self.library.mdp_model_memory(self.handle, byref(found))
        _check(status, str(self.root), b"its memory cannot be read")
        return found


class Context:
    """The activations of one domain at a time.

    Args:
        model: The bundle; it stays open while the context is there.
        domain: The domain that is selected first.
        threads: Threads that one run uses.
        isa: The instruction set; None for the fastest here.
        profile: Whether every run measures its operators.
        device: `"cpu"`, `"cuda"` or one of several, `"cuda:1"`.
        precision: Of a GPU's activations and weights, `"float32"` or `"float16"`.
        tune: Whether a GPU's tilings are measured.
        stream: A `cudaStream_t` of the caller's that every run is launched on, by
            `run_on_device`; None for one of its own and inputs in the processor's memory.
    """

    def __init__(
        self,
        model: Model,
        domain: str,
        threads: int,
        isa: str | None,
        *,
        profile: bool = False,
        device: str = "cpu",
        precision: str = "float32",
        tune: bool = False,
        stream: int | None = None,
    ) -> None:
        self._library = model.library
        self._model = model
        self.handle = c_void_p()
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        options = Options(
            size=ctypes.sizeof(Options),
            threads=threads,
            isa=None if isa is None else isa.encode(),
            profile=profile,
            device=device.encode(),
            precision=precision.encode(),
            tune=tune,
            stream=stream,
            device_memory=stream is not None,
        )
        status = self._library.mdp_context_create(
            model.handle, byref(options), byref(self.handle), message, len(message)
        )
        _check(status, f"domain {domain!r}", message.value)
        self._close = weakref.finalize(self, self._library.mdp_context_destroy, self.handle)
        number = model.find(domain)
        self.select(number)
        self.output_shapes = model.shapes(number, "output")

    def select(self, domain: int) -> None:
        """Switches to a domain by its number; `output_shapes` stays that of the first."""
        self._check(self._library.mdp_context_select_domain(self.handle, domain))

    @property
    def isa(self) -> str:
        """What runs: an instruction set, or a GPU and a precision."""
        text: bytes = self._library.mdp_context_isa(self.handle)
        return text.decode()

    def run(self, batch: int, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Runs a batch; all arrays are contiguous float32."""
        self._run(batch, [x.ctypes.data for x in inputs], [y.ctypes.data for y in outputs])

    def run_on_device(self, batch: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Launches a batch on the stream and returns; addresses of float32 in a GPU's memory."""
        self._run(batch, inputs, outputs)

    def _run(self, batch: int, *addresses: Sequence[int]) -> None:
        pointers = [(c_void_p * len(side))(*side) for side in addresses]
        self._check(self._library.mdp_context_run(self.handle, batch, *pointers))

    def device_memory(self) -> DeviceMemory:
        """Returns what a GPU holds: for all domains, and for this context alone."""
        found = DeviceMemory(size=ctypes.sizeof(DeviceMemory))
        self._check(self._library.mdp_context_device_memory(self.handle, byref(found)))
        return found

    def device_times(self) -> DeviceTimes:
        """Returns where a GPU's time of the last run went."""
        found = DeviceTimes(size=ctypes.sizeof(DeviceTimes))
        self._check(self._library.mdp_context_device_times(self.handle, byref(found)))
        return found

    def profile(self) -> list[OperatorTime]:
        """Returns the operators of the last run in order; none unless the context profiles."""
        entries, count = POINTER(ProfileEntry)(), c_size_t()
        self._check(self._library.mdp_context_profile(self.handle, byref(entries), byref(count)))
        return [
            OperatorTime(entry.name.decode(), entry.kind.decode(), entry.nanoseconds)
            for entry in entries[: count.value]
        ]

    def _check(self, status: int) -> None:
        if status != _OK:
            _check(status, str(self._model.root), self._library.mdp_context_message(self.handle))


def _check(status: int, what: str, message: bytes) -> None:
    if status == _OK:
        return
    text = f"{what}: {message.decode(errors='replace')}"
    if status == _INTERNAL:
        raise RuntimeError(text)
    kind: type[Error] = BundleError
    if status == _INVALID_ARGUMENT:
        kind = UsageError
    elif status in (_UNSUPPORTED, _NO_MEMORY, _DEVICE):
        kind = BackendUnavailableError
    raise kind(text)


_models: weakref.WeakValueDictionary[tuple[int, ...], Model] = weakref.WeakValueDictionary()
_models_lock = threading.Lock()


def open_model(root: Path) -> Model:
    """Opens a bundle: the same model while somebody holds it and no other bundle took its place."""
    try:
        found = (root / INDEX).stat()
    except OSError as error:
        raise BundleError(f"{root / INDEX}: {error.strerror}") from error
    key = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    with _models_lock:
        model = _models.get(key)
        if model is None:
            model = _models[key] = Model(root)
        return model


def library_path() -> Path | None:
    """Returns the file of the runtime's library, or None where there is none."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return Path(named)
    name = {"darwin": "libmdprune.dylib", "win32": "mdprune.dll"}.get(sys.platform, "libmdprune.so")
    path = Path(__file__).parents[1] / name
    return path if path.exists() else None


def load_library() -> ctypes.CDLL:
    """Returns the runtime's library with its functions declared.

    Raises:
        BackendUnavailableError: It is not there or cannot be loaded; the message says what to do.
    """
    path = library_path()
    if path is None:
        raise BackendUnavailableError(
            "the native runtime is not built: install mdprune-deploy with a C++17 compiler and "
            f"CMake at hand (pip install .), or name its library in {LIBRARY_VARIABLE}"
        )
    return _load(path)


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise BackendUnavailableError(f"the native runtime cannot be loaded: {error}") from error
    return library


_FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "mdp_version": (c_char_p, []),
    "mdp_model_open": (c_int, [c_char_p, POINTER(c_void_p), c_char_p, c_size_t]),
    "mdp_model_close": (None, [c_void_p]),
    "mdp_model_find_domain": (c_int, [c_void_p, c_char_p, POINTER(c_size_t)]),
    "mdp_model_memory": (c_int, [c_void_p, POINTER(Memory)]),
    "mdp_model_input_count": (c_size_t, [c_void_p, c_size_t]),
    "mdp_model_input": (c_int, [c_void_p, c_size_t, c_size_t, POINTER(TensorInfo)]),
    "mdp_model_output_count": (c_size_t, [c_void_p, c_size_t]),
    "mdp_model_output": (c_int, [c_void_p, c_size_t, c_size_t, POINTER(TensorInfo)]),
    "mdp_context_create": (
        c_int, [c_void_p, POINTER(Options), POINTER(c_void_p), c_char_p, c_size_t],
    ),
    "mdp_context_destroy": (None, [c_void_p]),
    "mdp_context_domain": (c_size_t, [c_void_p]),
    "mdp_context_select_domain": (c_int, [c_void_p, c_size_t]),
    "mdp_context_run": (c_int, [c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_void_p)]),
    "mdp_context_profile": (
        c_int, [c_void_p, POINTER(POINTER(ProfileEntry)), POINTER(c_size_t)],
    ),
    "mdp_context_device_memory": (c_int, [c_void_p, POINTER(DeviceMemory)]),
    "mdp_context_device_times": (c_int, [c_void_p, POINTER(DeviceTimes)]),
    "mdp_context_message": (c_char_p, [c_void_p]),
    "mdp_context_isa": (c_char_p, [c_void_p]),
}  # fmt: skip
