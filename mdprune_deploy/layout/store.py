"""The shared weight file: every distinct tensor once, placed so that it can be mapped.

`weights.bin` is tensor bytes and zero padding, nothing else; whoever names a tensor keeps its
offset and length. Tensors of a page or more start on a page, so that a runtime maps them without
a copy; smaller ones start on a cache line, in the gap that the tensor before them left in its
last page.

Two tensors are the same when their bytes are the same, whatever their shapes and dtypes: a hash
finds the candidates, a comparison of the bytes read back from the file decides. Only hashes and
positions stay in memory, so the file may be larger than it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

PAGE = 4096
CACHE_LINE = 64


@dataclass(frozen=True, order=True)
class TensorRef:
    """Where a tensor lies in the store.

    Attributes:
        offset: Bytes from the start of the file.
        length: Bytes of the tensor.
    """

    offset: int
    length: int


def _sha256(data: memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _as_bytes(data: npt.NDArray[Any] | bytes | memoryview) -> memoryview:
    """Returns the little-endian, row-major bytes of `data`."""
    if isinstance(data, np.ndarray):
        little = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))
        return little.reshape(-1).view(np.uint8).data
    return memoryview(data).cast("B")


class StoreWriter:
    """Writes a shared weight file, tensor by tensor, in the order of the calls.

    The same calls give the same bytes. Use it as a context manager; the file must not exist yet.
    What is left behind when an error leaves the block is the caller's to remove.

    Args:
        path: The file to create.
        digest: Finds candidates for equality; equal bytes must give equal digests.
        page: Where tensors of a page or more start: a multiple of this.

    Raises:
        OSError: The file cannot be created or written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        digest: Callable[[memoryview], bytes] = _sha256,
        page: int = PAGE,
    ) -> None:
        self.path = Path(path)
        self._page = page
        self._digest = digest
        self._file = self.path.open("x+b")
        self._end = 0
        self._candidates: dict[tuple[int, bytes], list[TensorRef]] = {}
        self._owners: dict[TensorRef, list[str]] = {}

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Writes out what is buffered and closes the file; the figures stay readable."""
        self._file.close()

    def flush(self) -> None:
        """Makes every tensor added so far visible to other readers of the file."""
        self._file.flush()

    def add(self, data: npt.NDArray[Any] | bytes | memoryview, owner: str) -> TensorRef:
        """Stores a tensor, or finds it where it already is.

        Args:
            data: An array of any shape and dtype, or its bytes, little-endian and row-major.
            owner: The domain that names the tensor.

        Returns:
            Where the tensor lies.

        Raises:
            ValueError: The tensor has no elements.
            OSError: The file cannot be written.
        """
        view = _as_bytes(data)
        if not view.nbytes:
            raise ValueError(f"an empty tensor of {owner!r} has no place in the weight file")
        candidates = self._candidates.setdefault((view.nbytes, self._digest(view)), [])
        ref = next((ref for ref in candidates if self._read(ref) == view), None)
        if ref is None:
            ref = self._append(view)
            candidates.append(ref)
        owners = self._owners.setdefault(ref, [])
        if owner not in owners:
            owners.append(owner)
        return ref

    def _append(self, view: memoryview) -> TensorRef:
        alignment = self._page if view.nbytes >= PAGE else CACHE_LINE
        offset = -(-self._end // alignment) * alignment
        self._file.seek(self._end)
        self._file.write(bytes(offset - self._end))
        self._file.write(view)
        self._end = offset + view.nbytes
        return TensorRef(offset, view.nbytes)

    def _read(self, ref: TensorRef) -> bytes:
        self._file.seek(ref.offset)
        return self._file.read(ref.length)

    @property
    def digests(self) -> Mapping[TensorRef, bytes]:
        """The digest of every stored tensor."""
        return {ref: key[1] for key, refs in self._candidates.items() for ref in refs}

    @property
    def owners(self) -> Mapping[TensorRef, tuple[str, ...]]:
        """Per stored tensor the domains that name it, both in the order of the calls."""
        return {ref: tuple(owners) for ref, owners in self._owners.items()}

    @property
    def size(self) -> int:
        """Bytes of the file: tensors and padding."""
        return self._end

    @property
    def bytes_shared(self) -> int:
        """Bytes of the tensors that two or more domains name; padding is not counted."""
        return sum(ref.length for ref, owners in self._owners.items() if len(owners) > 1)

    @property
    def bytes_private(self) -> int:
        """Bytes of the tensors that one domain names; padding is not counted."""
        return sum(ref.length for ref, owners in self._owners.items() if len(owners) == 1)


class ClosesStore:
    """A context manager that closes a store at the end.

    Attributes:
        store: The store.
    """

    store: StoreWriter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.store.close()
