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
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path

import numpy as np

from mdprune_deploy.engines.base import Array, check_inputs
from mdprune_deploy.errors import BackendUnavailableError, BundleError, Error, UsageError
from mdprune_deploy.manifest import DomainModel

LIBRARY_VARIABLE = "MDPRUNE_LIBRARY"
"""Environment variable that may name the library's file."""
INDEX = "native/index.bin"
MAX_RANK = 8
_MESSAGE_BYTES = 1024
_OK, _INVALID_ARGUMENT, _UNSUPPORTED, _NO_MEMORY, _INTERNAL = 0, 1, 7, 5, 8


class NativeEngine:
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
        if threads < 1:
            raise UsageError(f"threads is {threads}, at least 1 is needed")
        if model.native is None:
            raise BackendUnavailableError(
                f"the bundle has no native target for domain {domain!r}; compile it with "
                "--target native"
            )
        self.domain = domain
        self.labels = model.labels
        self.threads = threads
        self.inputs = model.inputs
        self.outputs = model.outputs
        self._batched = model.dynamic_batch
        self._library = load_library()
        self._model = _open(root)
        self._context = _Context(self._model, domain, threads, variant)
        self.variant = self._context.isa
        self._lock = threading.Lock()

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


class _Model:
    """An opened bundle."""

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

    def output_shapes(self, domain: int) -> list[tuple[int, ...]]:
        """Returns the shapes of a domain's outputs for one image."""
        found = []
        for number in range(self.library.mdp_model_output_count(self.handle, domain)):
            tensor = TensorInfo()
            status = self.library.mdp_model_output(self.handle, domain, number, byref(tensor))
            _check(status, str(self.root), b"an output cannot be read")
            found.append(tuple(tensor.dims[: tensor.rank]))
        return found


class _Context:
    """One domain's activations."""

    def __init__(self, model: _Model, domain: str, threads: int, isa: str | None) -> None:
        self._library = model.library
        self._model = model
        self._handle = c_void_p()
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        options = Options(
            size=ctypes.sizeof(Options), threads=threads, isa=None if isa is None else isa.encode()
        )
        status = self._library.mdp_context_create(
            model.handle, byref(options), byref(self._handle), message, len(message)
        )
        _check(status, f"domain {domain!r}", message.value)
        self._close = weakref.finalize(self, self._library.mdp_context_destroy, self._handle)
        number = model.find(domain)
        self._check(self._library.mdp_context_select_domain(self._handle, number))
        self.output_shapes = model.output_shapes(number)

    @property
    def isa(self) -> str:
        """The instruction set that runs."""
        text: bytes = self._library.mdp_context_isa(self._handle)
        return text.decode()

    def run(self, batch: int, inputs: list[Array], outputs: list[Array]) -> None:
        """Runs a batch; all arrays are contiguous float32."""
        pointers = [
            (c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
            for arrays in (inputs, outputs)
        ]
        self._check(self._library.mdp_context_run(self._handle, batch, *pointers))

    def _check(self, status: int) -> None:
        if status != _OK:
            _check(status, str(self._model.root), self._library.mdp_context_message(self._handle))


def _check(status: int, what: str, message: bytes) -> None:
    if status == _OK:
        return
    text = f"{what}: {message.decode(errors='replace')}"
    if status == _INTERNAL:
        raise RuntimeError(text)
    kind: type[Error] = BundleError
    if status == _INVALID_ARGUMENT:
        kind = UsageError
    elif status in (_UNSUPPORTED, _NO_MEMORY):
        kind = BackendUnavailableError
    raise kind(text)


_models: weakref.WeakValueDictionary[tuple[int, ...], _Model] = weakref.WeakValueDictionary()
_models_lock = threading.Lock()


def _open(root: Path) -> _Model:
    """Returns the model of a bundle, the same one while somebody holds it and no other is there."""
    try:
        found = (root / INDEX).stat()
    except OSError as error:
        raise BundleError(f"{root / INDEX}: {error.strerror}") from error
    key = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    with _models_lock:
        model = _models.get(key)
        if model is None:
            model = _models[key] = _Model(root)
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
    "mdp_model_output_count": (c_size_t, [c_void_p, c_size_t]),
    "mdp_model_output": (c_int, [c_void_p, c_size_t, c_size_t, POINTER(TensorInfo)]),
    "mdp_context_create": (
        c_int, [c_void_p, POINTER(Options), POINTER(c_void_p), c_char_p, c_size_t],
    ),
    "mdp_context_destroy": (None, [c_void_p]),
    "mdp_context_select_domain": (c_int, [c_void_p, c_size_t]),
    "mdp_context_run": (c_int, [c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_void_p)]),
    "mdp_context_message": (c_char_p, [c_void_p]),
    "mdp_context_isa": (c_char_p, [c_void_p]),
}  # fmt: skip
