"""What CUDA kernels cost: registers, shared memory and spills, by kernel and architecture.

`ptxas -v` says so as it compiles; the build leaves its words beside each object (`*.ptxas`).

    python -m kernels.tools.resources build/kernels --csv FILE [--no-spills REGEX ...]

prints one row per kernel, over all architectures, and writes one row per kernel and architecture.
Exits with 1 if a kernel that `--no-spills` names spills registers or no kernel has such a name.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
PROPERTIES = re.compile(r"Function properties for (\S+)")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """What one thread or block of a kernel takes on one architecture; bytes but for the registers.

    Dynamic shared memory is chosen at the launch and not among it.
    """

    kernel: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> int:
        """Bytes of registers written to and read from local memory."""
        return self.spill_stores + self.spill_loads


def parse(text: str) -> Iterator[Resources]:
    """Yields the kernels that `ptxas -v` tells of in `text`, with their mangled names.

    Device functions that were not inlined have properties but no entry, and are left out.

    Raises:
        ValueError: An entry function comes without its figures.
    """
    entry: tuple[str, str] | None = None
    function = ""
    frame: tuple[int, ...] | None = None
    for line in text.splitlines():
        if found := ENTRY.search(line):
            if entry is not None:
                raise ValueError(f"no figures for {entry[0]} on {entry[1]}")
            entry, frame = (found[1], found[2]), None
        elif found := PROPERTIES.search(line):
            function = found[1]
        elif found := SPILLS.search(line):
            if entry is not None and function == entry[0]:
                frame = tuple(int(number) for number in found.groups())
        elif found := USED.search(line):
            if entry is None or frame is None:
                raise ValueError(f"figures of an unknown kernel: {line.strip()}")
            shared = SHARED.search(line)
            yield Resources(*entry, int(found[1]), int(shared[1]) if shared else 0, *frame)
            entry = None
    if entry is not None:
        raise ValueError(f"no figures for {entry[0]} on {entry[1]}")


def demangle(kernels: Sequence[Resources]) -> list[Resources]:
    """Returns them with readable names, without the result, the arguments and our namespaces.

    Where `c++filt` (binutils) is not installed the names stay as they are.
    """
    if shutil.which("c++filt") is None:
        return list(kernels)
    names = "\n".join(kernel.kernel for kernel in kernels)
    done = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    return [
        replace(kernel, kernel=short_name(name))
        for kernel, name in zip(kernels, done.stdout.splitlines(), strict=True)
    ]


def short_name(signature: str) -> str:
    """`void mdprune::cuda::pool<float>(Pool)` becomes `pool<float>`."""
    name = signature.removeprefix("void ")
    depth = 0
    for position, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and not name.startswith("(anonymous", position):
            name = name[:position]
            break
    return re.sub(r"mdprune::(cuda::)?|\(anonymous namespace\)::", "", name)


def architecture_number(name: str) -> int:
    """`sm_90a` is 90."""
    return int(re.sub(r"\D", "", name))


def table(kernels: Iterable[Resources]) -> str:
    """Returns one line per kernel; a range where the architectures differ."""
    by_name: dict[str, list[Resources]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.kernel, []).append(kernel)
    rows: list[tuple[str, ...]] = [
        ("kernel", "architectures", "registers", "shared", "stack", "spills")
    ]
    for name, group in sorted(by_name.items()):
        columns = (
            [each.registers for each in group],
            [each.shared for each in group],
            [each.stack for each in group],
            [each.spills for each in group],
        )
        ranges = [
            f"{min(column)}" if min(column) == max(column) else f"{min(column)}-{max(column)}"
            for column in columns
        ]
        rows.append((name, str(len(group)), *ranges))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def spilling(kernels: Sequence[Resources], patterns: Iterable[str]) -> list[str]:
    """Returns a complaint per kernel that a pattern finds and that spills.

    A pattern that finds none gets a complaint too.
    """
    complaints = []
    for pattern in patterns:
        found = [kernel for kernel in kernels if re.search(pattern, kernel.kernel)]
        if not found:
            complaints.append(f"no kernel is named like {pattern!r}")
        complaints += [
            f"{kernel.kernel} spills {kernel.spills} bytes on {kernel.architecture}"
            for kernel in found
            if kernel.spills
        ]
    return complaints


def write_csv(kernels: Iterable[Resources], path: Path) -> None:
    """Writes one row per kernel and architecture."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Resources))
        writer.writerows(astuple(kernel) for kernel in kernels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(description="Registers, shared memory and spills of kernels")
    parser.add_argument("folder", type=Path, help="where the build left *.ptxas")
    parser.add_argument("--csv", type=Path, help="write the whole table here")
    parser.add_argument("--no-spills", action="append", default=[], metavar="REGEX")
    options = parser.parse_args(arguments)
    found: list[Resources] = []
    for path in sorted(options.folder.rglob("*.ptxas")):
        found += parse(path.read_text(encoding="utf-8"))
    if not found:
        print(f"no kernels in {options.folder}", file=sys.stderr)
        return 1
    found = demangle(found)
    found.sort(key=lambda each: (each.kernel, architecture_number(each.architecture)))
    print(table(found))
    if options.csv is not None:
        write_csv(found, options.csv)
    complaints = spilling(found, options.no_spills)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
