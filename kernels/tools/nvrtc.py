"""NVIDIA's run-time compiler 12.9 through ctypes: the last one that knows GPUs before Turing.

It is the extra `kernels` of this project: wheels with a library and headers, no toolkit and no GPU.
Which NVRTC is loaded is stated here, not searched for: PyTorch may bring a newer one.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path


class NvrtcError(Exception):
    """NVRTC is not there or refuses; the message has its log."""


def package_folder(name: str) -> Path:
    """Returns the folder of one of NVIDIA's wheels.

    Raises:
        NvrtcError: It is not installed.
    """
    try:
        spec = importlib.util.find_spec(f"nvidia.{name}")
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise NvrtcError(
            f"nvidia.{name} 12.9 is not installed: pip install 'mdprune-deploy[kernels]'"
        )
    return Path(next(iter(spec.submodule_search_locations)))


class Nvrtc:
    """The loaded library."""

    def __init__(self) -> None:
        path = package_folder("cuda_nvrtc") / "lib" / "libnvrtc.so.12"
        if not path.is_file():
            raise NvrtcError(f"{path} is not there: pip install 'mdprune-deploy[kernels]'")
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            text = self._library.nvrtcGetErrorString(status).decode()
            raise NvrtcError(f"{function}: {text}")

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def compile(
        self,
        source: str,
        kernels: Sequence[str],
        options: Sequence[str],
        headers: Mapping[str, str],
    ) -> tuple[bytes, str]:
        """Compiles to a cubin.

        Args:
            source: CUDA C++.
            kernels: Expressions that name instances of kernel templates, which are compiled in.
            options: NVRTC's.
            headers: Text of files that `source` may include, by name.

        Returns:
            The cubin and the log.

        Raises:
            NvrtcError: The source does not compile.
        """
        program = ctypes.c_void_p()
        count = len(headers)
        texts = (ctypes.c_char_p * count)(*(text.encode() for text in headers.values()))
        names = (ctypes.c_char_p * count)(*(name.encode() for name in headers))
        arguments = (source.encode(), b"kernels.cu", count, texts, names)
        self._call("nvrtcCreateProgram", ctypes.byref(program), *arguments)
        try:
            for kernel in kernels:
                self._call("nvrtcAddNameExpression", program, kernel.encode())
            encoded = [option.encode() for option in options]
            array = (ctypes.c_char_p * len(encoded))(*encoded)
            status = self._library.nvrtcCompileProgram(program, len(encoded), array)
            log = self._text(program, "ProgramLog").rstrip(b"\0").decode()
            if status != 0:
                raise NvrtcError(log)
            return self._text(program, "CUBIN"), log
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))
