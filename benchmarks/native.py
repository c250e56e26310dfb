"""The native runtime without an engine around it: memory, switching and times of operators."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_size_t, c_uint64, c_void_p
from pathlib import Path
from types import TracebackType

import numpy as np

from mdprune_deploy.engines.native import Options, TensorInfo, library_path

from .harness import Array

MESSAGE_BYTES = 1024


class Memory(Structure):
    """`mdp_memory`: mapped weights, mapped plans of all domains, activations per context."""

    _fields_ = (("weights", c_size_t), ("plans", c_size_t), ("arena", c_size_t))


class ProfileEntry(Structure):
    """`mdp_profile_entry`."""

    _fields_ = (("name", c_char_p), ("kind", c_char_p), ("nanoseconds", c_uint64))


FUNCTIONS: dict[str, list[object]] = {
    "mdp_model_open": [c_char_p, POINTER(c_void_p), c_char_p, c_size_t],
    "mdp_model_close": [c_void_p],
    "mdp_model_find_domain": [c_void_p, c_char_p, POINTER(c_size_t)],
    "mdp_model_input_count": [c_void_p, c_size_t],
    "mdp_model_output_count": [c_void_p, c_size_t],
    "mdp_model_input": [c_void_p, c_size_t, c_size_t, POINTER(TensorInfo)],
    "mdp_model_output": [c_void_p, c_size_t, c_size_t, POINTER(TensorInfo)],
    "mdp_model_memory": [c_void_p, POINTER(Memory)],
    "mdp_context_create": [
        c_void_p, POINTER(Options), POINTER(c_void_p), c_char_p, c_size_t,
    ],
    "mdp_context_destroy": [c_void_p],
    "mdp_context_domain": [c_void_p],
    "mdp_context_select_domain": [c_void_p, c_size_t],
    "mdp_context_run": [c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_void_p)],
    "mdp_context_profile": [c_void_p, POINTER(POINTER(ProfileEntry)), POINTER(c_size_t)],
    "mdp_context_message": [c_void_p],
}  # fmt: skip


def open_library() -> ctypes.CDLL:
    """Opens the runtime's library, apart from the engine's declarations."""
    path = library_path()
    if path is None:
        raise SystemExit("the native runtime is not built: run `make setup`")
    library = ctypes.CDLL(str(path))
    for name, arguments in FUNCTIONS.items():
        getattr(library, name).argtypes = arguments
    library.mdp_context_message.restype = c_char_p
    library.mdp_context_domain.restype = c_size_t
    return library


class Context:
    """A model and one context of it, whose operators are measured.

    Args:
        bundle: The bundle's directory.
        threads: Threads that one call uses.
        isa: The instruction set; None for the fastest here.
    """

    def __init__(self, bundle: Path, threads: int = 1, isa: str | None = None) -> None:
        self.library = open_library()
        self.model, self.handle = c_void_p(), c_void_p()
        self._message = ctypes.create_string_buffer(MESSAGE_BYTES)
        self._check(
            self.library.mdp_model_open(
                str(bundle).encode(), byref(self.model), self._message, MESSAGE_BYTES
            )
        )
        name = None if isa is None else isa.encode()
        options = Options(size=ctypes.sizeof(Options), threads=threads, isa=name, profile=1)
        self._check(
            self.library.mdp_context_create(
                self.model, byref(options), byref(self.handle), self._message, MESSAGE_BYTES
            )
        )

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.library.mdp_context_destroy(self.handle)
        self.library.mdp_model_close(self.model)

    def memory(self) -> Memory:
        """Returns what the model takes, in bytes."""
        found = Memory()
        self._check(self.library.mdp_model_memory(self.model, byref(found)))
        return found

    def find(self, name: str) -> int:
        """Returns the number of a domain."""
        number = c_size_t()
        if self.library.mdp_model_find_domain(self.model, name.encode(), byref(number)):
            raise RuntimeError(f"no domain {name!r}")
        return number.value

    def arrays(self, domain: int, side: str) -> list[Array]:
        """Returns arrays of ones for a domain's inputs or outputs at batch 1; `side` says which."""
        found = []
        for number in range(getattr(self.library, f"mdp_model_{side}_count")(self.model, domain)):
            info = TensorInfo()
            function = getattr(self.library, f"mdp_model_{side}")
            self._check(function(self.model, domain, number, byref(info)))
            found.append(np.ones(info.dims[: info.rank], np.float32))
        return found

    def select(self, domain: int) -> None:
        """Switches to a domain."""
        if self.library.mdp_context_select_domain(self.handle, domain):
            raise RuntimeError(self.library.mdp_context_message(self.handle).decode())

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Runs a batch of 1 on contiguous arrays of float32."""
        pointers = [
            (c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
            for arrays in (inputs, outputs)
        ]
        if self.library.mdp_context_run(self.handle, 1, *pointers):
            raise RuntimeError(self.library.mdp_context_message(self.handle).decode())

    def profile(self) -> list[tuple[str, int]]:
        """Returns kind and nanoseconds of every operator of the last run."""
        entries, count = POINTER(ProfileEntry)(), c_size_t()
        self._check(self.library.mdp_context_profile(self.handle, byref(entries), byref(count)))
        return [(entries[i].kind.decode(), entries[i].nanoseconds) for i in range(count.value)]

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self._message.value.decode() or f"status {status}")
