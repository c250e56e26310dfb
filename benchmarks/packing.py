"""What it costs to read weights from slabs instead of a packed copy: by cache line, by slab.

Every network of one size is as many matrix products of their own weights as do not fit a cache,
each for as many positions as a late layer has, with half of the rows and half of the filters used.
The same products are read from packed copies and from slabs: one, or the same rows in several. What
slabs take longer is fitted, by least squares, to

    `LINE_NS` * cache lines touched + `GROUP_NS` * slabs * panels of filters

per product, the constants of `mdprune_deploy.layout.choose`. Times are medians of runs in turn.
Run `python -m benchmarks.packing`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdprune_deploy.emit.native.operators import Convolution, Weights
from mdprune_deploy.emit.native.plan import (
    ALIGNMENT,
    Place,
    Plan,
    Port,
    Tensor,
    Type,
    WeightFile,
    index_bytes,
    plan_bytes,
)
from mdprune_deploy.emit.native.product import packed
from mdprune_deploy.engines.native import Context, open_model
from mdprune_deploy.layout.choose import PANEL
from mdprune_deploy.layout.union import LINE, Selection, union

from .harness import relative_error, save, show

POSITIONS = 49
"""Of a 7x7 map."""
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Size:
    """Stored rows and filters, and in how many slabs the rows lie; 0 for a packed copy."""

    rows: int
    filters: int
    slabs: int


class PlanWriter:
    """Builds a bundle of one domain and one chain of products."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "native"
        self._folder.mkdir(parents=True)
        self._tensors: list[Tensor] = []
        self._data = bytearray()
        self._weights = bytearray()

    def tensor(self, place: Place, shape: tuple[int, ...], offset: int) -> int:
        """Adds a float tensor."""
        self._tensors.append(Tensor(place, Type.F32, shape, offset))
        return len(self._tensors) - 1

    def constant(self, array: np.ndarray, place: Place) -> int:
        """Adds a tensor of the plan's data or of the weight file."""
        to = self._data if place is Place.DATA else self._weights
        to.extend(bytes(-len(to) % ALIGNMENT))
        kind = Type.I32 if array.dtype == np.int32 else Type.F32
        self._tensors.append(Tensor(place, kind, array.shape, len(to)))
        to.extend(np.ascontiguousarray(array).tobytes())
        return len(self._tensors) - 1

    def bits(self, members: np.ndarray | None) -> int | None:
        """Adds a bit set."""
        if members is None:
            return None
        packed_bits = np.packbits(members, bitorder="little")
        words = np.pad(packed_bits, (0, -len(packed_bits) % 4)).view(np.int32)
        return self.constant(words, Place.DATA)

    def write(self, operators: list[Convolution], x: int, y: int) -> None:
        """Writes the bundle."""
        self._folder.joinpath("weights.bin").write_bytes(self._weights)
        plan = Plan(
            dynamic_batch=False,
            arena=0,
            files=(WeightFile("weights.bin", len(self._weights)),),
            tensors=tuple(self._tensors),
            inputs=(Port("x", x),),
            outputs=(Port("y", y),),
            labels=(),
            operators=tuple(operators),
            data=bytes(self._data),
        )
        content = plan_bytes(plan)
        self._folder.joinpath("d.plan").write_bytes(content)
        index = index_bytes([("d", "d.plan", len(content))])
        self._folder.joinpath("index.bin").write_bytes(index)


@dataclass(frozen=True, eq=False)
class Case:
    """Products of one size, ready to run.

    Attributes:
        size: The size.
        products: How many there are.
        lines: Cache lines that one touches of its slabs.
        slabs: Slabs that it reads.
        context: Where they run.
        x: The input, `(positions, rows)`.
        y: The output, `(positions, used filters)`; the last product stays in it.
        expected: That output.
    """

    size: Size
    products: int
    lines: int
    slabs: int
    context: Context
    x: np.ndarray
    y: np.ndarray
    expected: np.ndarray

    def seconds(self) -> float:
        """Runs all products."""
        start = time.perf_counter()
        self.context.run(1, [self.x], [self.y])
        return time.perf_counter() - start


def make_case(size: Size, mebibytes: int, folder: Path) -> Case:
    """Writes and opens the products of one size."""
    rng = np.random.default_rng(size.rows * size.filters)
    writer = PlanWriter(folder)
    products = max(2, (mebibytes << 20) // (4 * size.rows * size.filters))
    x = rng.standard_normal((POSITIONS, size.rows)).astype(np.float32)
    used = Selection(*(np.sort(rng.permutation(n)[: n // 2]) for n in (size.filters, size.rows)))
    everything = Selection(np.arange(size.filters), np.arange(size.rows))
    layout = union({"this": used, "others": everything}, grouped=True)
    (slab,) = layout.slabs
    (reading,) = layout.readers["this"].readings
    lines = layout.lines("this")[0]
    source = writer.tensor(Place.INPUT, x.shape, 0)
    target = writer.tensor(Place.OUTPUT, (POSITIONS, len(used.filters)), 0)
    operators = []
    for _ in range(products):
        weight = rng.standard_normal((size.filters, size.rows)).astype(np.float32)
        weights: Weights
        if size.slabs == 0:
            chosen = packed(weight[np.ix_(used.filters, used.channels)], 1)
            weights = ((writer.constant(chosen, Place.WEIGHTS), None, None, None),)
            index = used.channels
        else:
            parts = [np.arange(first, size.rows, size.slabs) for first in range(size.slabs)]
            stored = slab.take(weight)
            rows = np.ones(size.rows, np.bool_) if reading.rows is None else reading.rows
            weights = tuple(
                (
                    writer.constant(stored[:, part], Place.WEIGHTS),
                    writer.bits(reading.bits),
                    writer.bits(rows[part]),
                    None,
                )
                for part in parts
            )
            index = np.concatenate([slab.channels[part][rows[part]] for part in parts])
        operators.append(
            Convolution(
                x=source,
                y=target,
                index=writer.constant(index.astype(np.int32), Place.DATA),
                spatial=0,
                form=int(size.slabs == 0),
                filters=len(used.filters),
                weights=weights,
            )
        )
    writer.write(operators, source, target)
    expected = x[:, used.channels] @ weight[np.ix_(used.filters, used.channels)].T
    context = Context(open_model(folder), "d", 1, None)
    y = np.zeros_like(expected)
    return Case(size, products, lines, size.slabs, context, x, y, expected)


def measure(
    shape: tuple[int, int], counts: list[int], mebibytes: int, rounds: int
) -> list[dict[str, object]]:
    """Returns the rows of one size: a packed copy and every number of slabs."""
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            make_case(Size(*shape, count), mebibytes, Path(folder) / str(count))
            for count in [0, *counts]
        ]
        for case in cases:
            case.seconds()
            error = relative_error(case.y, case.expected)
            if error > TOLERANCE:
                raise AssertionError(f"{case.size}: relative error {error:.1e}")
        seconds = np.array([[case.seconds() for case in cases] for _ in range(rounds)])
    per_product = np.median(seconds, axis=0) / [case.products for case in cases] * 1e9
    panels = -(-(shape[1] // 2) // PANEL)
    return [
        {
            "rows": shape[0],
            "filters": shape[1],
            "slabs": case.slabs,
            "us": nanoseconds / 1e3,
            "more ns": nanoseconds - per_product[0],
            "lines": case.lines,
            "slabs x panels": case.slabs * panels,
        }
        for case, nanoseconds in zip(cases[1:], per_product[1:], strict=True)
    ]


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--filters", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--slabs", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--mebibytes", type=int, default=96, help="of all weights of one size")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for shape in itertools.product(arguments.rows, arguments.filters):
        rows += measure(shape, arguments.slabs, arguments.mebibytes, arguments.rounds)
    table = np.array([[row[name] for name in ("lines", "slabs x panels")] for row in rows], float)
    more = np.array([row["more ns"] for row in rows], float)
    scale = 1 / more.clip(1)  # relative errors, or the largest size alone decides
    line_ns, group_ns = np.linalg.lstsq(table * scale[:, None], more * scale, rcond=None)[0]
    rows = [{**row, "LINE_NS": line_ns, "GROUP_NS": group_ns} for row in rows]
    show(f"Reading from slabs: lines of {LINE} floats, panels of {PANEL} filters", rows)
    print(save("packing", vars(arguments), rows))


if __name__ == "__main__":
    main()
