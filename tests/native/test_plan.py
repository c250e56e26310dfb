"""The plan's file: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest

from mdprune_deploy.emit.native import operators as op
from mdprune_deploy.emit.native.plan import (
    Place,
    Plan,
    Port,
    Tensor,
    Type,
    WeightFile,
    index_bytes,
    parse_plan,
    plan_bytes,
    read_plan,
)
from mdprune_deploy.errors import BundleError

EVERY = (
    op.Convolution(
        name="conv", x=0, y=1, scale=2, residual=1, index=3, y2=4, shift2=2, spatial=2,
        residual_index=6,
        activation=op.Activation(op.Function.CLIP, -0.5, 6.0), kernel=(1, 3, 5), stride=(1, 2, 1),
        dilation=(1, 1, 2), pad=(0, 1, 4), transposed=1, groups=1, form=0, filters=9,
        weights=((5, 6, None, None), (7, None, 3, 8)),
    ),
    op.Depthwise(x=0, y=1, weight=5, spatial=1, kernel=(1, 1, 3)),
    op.Pool(x=0, y=1, kind=op.PoolKind.MEAN_WHOLE, spatial=3, kernel=(2, 2, 2)),
    op.Affine(x=0, y=1, shift=2),
    op.Unary(x=0, y=0, activation=op.Activation(op.Function.MISH)),
    op.Binary(a=0, b=1, y=2, kind=op.BinaryKind.MODULO),
    op.Select(condition=0, a=1, b=2, y=3),
    op.Reduce(x=0, y=1, kind=op.ReduceKind.LOG_SUM_EXP, outer=2, n=3, inner=4),
    op.Softmax(x=0, y=0, log=1, outer=2, n=3, inner=4),
    op.Normalize(x=0, y=0, epsilon=0.25, outer=2, n=3, inner=4),
    op.MatMul(a=0, b=1, y=2),
    op.Move(x=0, y=1, x_offset=7, y_offset=3, size=(2, 3), x_stride=(-3, 0), y_stride=(1, -2)),
    op.Gather(x=0, y=1, index=3, outer=2, n=3, inner=4),
    op.Fill(y=1, value=-1.5),
    op.Interpolate(x=0, y=1, index=3, weight=2, taps=2, outer=2, n=3, inner=4),
)  # fmt: skip


def plan() -> Plan:
    return Plan(
        dynamic_batch=True,
        arena=128,
        files=(WeightFile("weights.bin", 4096),),
        tensors=(
            Tensor(Place.INPUT, Type.F32, (1, 3), 0),
            Tensor(Place.ARENA, Type.F32, (1, 3), 64),
            Tensor(Place.DATA, Type.I32, (2, 1), 64),
            Tensor(Place.WEIGHTS, Type.F32, (9, 2, 4), 128, file=0),
            Tensor(Place.OUTPUT, Type.F32, (), 0),
        ),
        inputs=(Port("x", 0),),
        outputs=(Port("y", 4),),
        labels=("Ameise", "Bär", ""),
        operators=EVERY,
        data=bytes(64) + np.asarray([5, 7], dtype="<i4").tobytes(),
    )


def test_every_operator_has_a_code_of_its_own() -> None:
    assert [type(operator).code for operator in EVERY] == list(range(1, 16))
    assert list(op.OPERATORS) == list(range(1, 16))


@pytest.mark.parametrize("operator", EVERY, ids=lambda o: type(o).__name__)
def test_words_are_read_as_written(operator: op.Operator) -> None:
    words = operator.words()
    assert all(0 <= word < 1 << 32 for word in words)
    again = type(operator).parse(words, operator.name)
    assert again == operator
    for changed in (words[:-1], [*words, 0]):
        with pytest.raises(ValueError, match=r"an operator has too (few|many) words"):
            type(operator).parse(changed)


def test_the_words_of_a_convolution_are_those_of_the_specification() -> None:
    half, six = (struct.unpack("<I", struct.pack("<f", x))[0] for x in (-0.5, 6.0))
    none = 0xFFFFFFFF
    assert EVERY[0].words() == [
        0, 1, 2, none, 1, 3, 2, half, six, 4, none, 2, 0, 0, 0, 2,
        1, 3, 5, 1, 2, 1, 1, 1, 2, 0, 1, 4, 1, 1, 0, 9, 2, 5, 6, none, none, 7, none, 3, 8,
        6,
    ]  # fmt: skip


def test_a_plan_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "d.plan"
    path.write_bytes(plan_bytes(plan()))
    assert read_plan(path) == plan()
    assert read_plan(path).constant(2).tolist() == [[5], [7]]


def test_the_header_is_that_of_the_specification() -> None:
    content = plan_bytes(plan())
    assert content[:8] == b"MDPPLAN\0"
    version, flags, size, arena = struct.unpack_from("<IIQQ", content, 8)
    assert (version, flags, size, arena) == (1, 1, len(content), 128)
    words = sum(len(operator.words()) for operator in EVERY)
    assert struct.unpack_from("<8I", content, 32) == (1, 5, 1, 1, 3, 15, words, 0)
    text, start, data, zero = struct.unpack_from("<4Q", content, 64)
    tables = 24 + 5 * 48 + 2 * 16 + 3 * 8 + 15 * 24 + 4 * words
    assert start % 64 == 0
    assert 0 <= start - (96 + tables + text) < 64
    assert (data, zero) == (72, 0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    content = plan_bytes(plan())
    path = tmp_path / "d.plan"
    for damaged, message in (
        (b"MDPPLAN\1" + content[8:], "no plan of version 1"),
        (content[:8] + b"\2" + content[9:], "no plan of version 1"),
        (content[:-1], "its header says"),
        (content[:40], "cannot be read"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=message):
            read_plan(path)
    with pytest.raises(BundleError, match="No such file"):
        read_plan(tmp_path / "none")


def test_a_table_that_leaves_the_file_is_refused() -> None:
    content = bytearray(plan_bytes(plan()))
    struct.pack_into("<I", content, 36, 1 << 20)
    with pytest.raises(ValueError, match="a table leaves the file"):
        parse_plan(bytes(content))


def test_the_index_names_domains_in_order() -> None:
    content = index_bytes([("vögel", "v.plan", 77), ("b", "b.plan", 1 << 40)])
    name = "vögel".encode()
    assert content == b"".join(
        [
            b"MDPINDEX", struct.pack("<II", 1, 2),
            struct.pack("<I", len(name)), name, struct.pack("<I", 6), b"v.plan",
            struct.pack("<Q", 77),
            struct.pack("<I", 1), b"b", struct.pack("<I", 6), b"b.plan", struct.pack("<Q", 1 << 40),
        ]
    )  # fmt: skip


def test_tensors_can_be_renumbered() -> None:
    changed = EVERY[0].renumbered(lambda tensor: tensor + 10)
    assert changed.reads() == [10, 12, 11, 13, 12, 15, 16, 17, 13, 18, 16]
    assert changed.writes() == [11, 14]
    assert dataclasses.replace(changed, weights=()).reads() == [10, 12, 11, 13, 12, 16]
