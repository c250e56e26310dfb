"""The weight files of a bundle: one that is written, and those that are there already.

A tensor that lies in a file that is there is not written again: its hash finds the candidates, a
comparison of the bytes decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...layout.store import StoreWriter
from .plan import ALIGNMENT, WeightFile
from .record import Location, StoredTensor


class WeightFiles:
    """Stores tensors, or finds them.

    Args:
        folder: The bundle's `native` folder.
        name: The file to write.
        there: The tensors of the files that are there.

    Attributes:
        name: The file that is written.
        store: Its writer, for its figures.
    """

    def __init__(self, folder: Path, name: str, there: Sequence[StoredTensor] = ()) -> None:
        self.store = StoreWriter(folder / name, page=ALIGNMENT)
        self._folder = folder
        self.name = name
        self._there = there
        self._known: dict[tuple[int, str], list[Location]] = {}
        for tensor in there:
            self._known.setdefault((tensor.length, tensor.sha256), []).append(tensor.place)

    def add(self, array: npt.NDArray[Any], domain: str) -> Location:
        """Returns where a tensor lies, writing it if it is nowhere yet."""
        if self._known:
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            key = little.nbytes, hashlib.sha256(little.tobytes()).hexdigest()
            for place in self._known.get(key, ()):
                if self.read(place, little.nbytes) == little.tobytes():
                    return place
        return Location(self.name, self.store.add(array, domain).offset)

    def read(self, place: Location, length: int) -> bytes:
        """Returns bytes of a file that is there."""
        with (self._folder / place.file).open("rb") as file:
            file.seek(place.offset)
            return file.read(length)

    def size(self, name: str) -> WeightFile:
        """Returns a file with its size."""
        size = self.store.size if name == self.name else (self._folder / name).stat().st_size
        return WeightFile(name, size)

    def tensors(self) -> tuple[StoredTensor, ...]:
        """Returns what lies in all files."""
        written = [
            StoredTensor(Location(self.name, ref.offset), ref.length, digest.hex())
            for ref, digest in self.store.digests.items()
        ]
        return (*self._there, *written)
