"""The shared weight file: placement, sharing proved by offsets, and the figures."""

from pathlib import Path

import numpy as np
import pytest

from mdprune_deploy.layout.store import CACHE_LINE, PAGE, StoreWriter, TensorRef


def _random(elements: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(elements).astype(np.float32)


def test_tensors_come_back_from_their_place(tmp_path: Path) -> None:
    tensors = [_random(n, seed=n) for n in (1, 5, 1023, 1024, 1025, 3000, 16)]
    with StoreWriter(tmp_path / "weights.bin") as store:
        refs = [store.add(tensor, "a") for tensor in tensors]
    data = (tmp_path / "weights.bin").read_bytes()
    assert len(data) == store.size
    for tensor, ref in zip(tensors, refs, strict=True):
        assert data[ref.offset : ref.offset + ref.length] == tensor.tobytes()
        assert ref.offset % (PAGE if tensor.nbytes >= 4096 else CACHE_LINE) == 0
    ends = [0, *(ref.offset + ref.length for ref in refs)]
    for end, ref in zip(ends, refs, strict=False):
        assert end <= ref.offset and not any(data[end : ref.offset]), "padding is zeros"


def test_page_alignment_starts_at_exactly_one_page(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "weights.bin") as store:
        store.add(b"x", "a")
        assert store.add(bytes(PAGE - 1), "a").offset == CACHE_LINE
        assert store.add(bytes(PAGE), "a").offset == 2 * PAGE


def test_identical_tensors_are_stored_once(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "weights.bin") as store:
        first = store.add(_random(2048), "a")
        size = store.size
        assert store.add(_random(2048), "b") == first
        assert store.add(_random(2048).reshape(2, 1024), "a") == first, "the shape is no matter"
        assert store.size == size
        private = store.add(_random(100, seed=1), "b")
    assert store.owners == {first: ("a", "b"), private: ("b",)}
    assert store.bytes_shared == 2048 * 4
    assert store.bytes_private == 100 * 4


def test_equal_hashes_do_not_make_equal_tensors(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "weights.bin", digest=lambda data: b"always") as store:
        a = store.add(_random(2048, seed=1), "a")
        b = store.add(_random(2048, seed=2), "b")
        assert a != b
        assert store.add(_random(2048, seed=2), "c") == b
    assert store.bytes_private == 2048 * 4


def test_non_contiguous_and_big_endian_arrays_are_stored_in_row_major_little_endian(
    tmp_path: Path,
) -> None:
    array = _random(4096).reshape(64, 64)
    with StoreWriter(tmp_path / "weights.bin") as store:
        ref = store.add(array.T, "a")
        assert store.add(np.ascontiguousarray(array.T).astype(">f4"), "b") == ref
        assert store.add(np.float32(1).reshape(()), "a").length == 4


def test_same_calls_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with StoreWriter(tmp_path / name) as store:
            for seed in (1, 2, 1, 3):
                store.add(_random(1500, seed=seed), f"domain {seed}")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_refuses_an_empty_tensor_and_an_existing_file(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "weights.bin") as store:
        with pytest.raises(ValueError, match="empty tensor of 'a'"):
            store.add(np.zeros((0, 3), np.float32), "a")
        assert store.add(b"0123", "a") == TensorRef(0, 4)
    with pytest.raises(FileExistsError):
        StoreWriter(tmp_path / "weights.bin")
