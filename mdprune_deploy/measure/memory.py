"""Memory of 1, 2, 3 ... domains in one process, as the kernel counts it.

The proportional set size (PSS) counts a page that n processes map as 1/n of it, so memory that is
shared is counted once over all processes. A process of its own (`python -m` this module) loads one
domain after the other, runs each once, and notes what was added since before the first: pages of
the bundle's weight files and plans, told apart by the file they are mapped from, and memory of no
file, which is activations, buffers and what libraries allocate. Pages of other files, the code of
programs that come and go beside it, are not counted. Linux only.

    python -m mdprune_deploy.measure.memory BUNDLE ENGINE THREADS [DOMAIN ...]
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bundle import Bundle, read_bundle
from ..engines import Array, Engine
from ..engines.cuda import CudaEngine
from ..engines.native import Context, open_model
from ..errors import Error
from ..manifest import Manifest
from . import nvml
from .runner import Runner, make_inputs

SMAPS = Path("/proc/self/smaps")
ONE_CONTEXT = "one context"
"""Instead of an engine: the native runtime with one context for all domains."""
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")
_PSS = re.compile(r"Pss: +(\d+) kB")


@dataclass(frozen=True)
class Step:
    """Bytes that a number of domains take.

    Attributes:
        domains: How many are loaded.
        pss: All that was added.
        weights: Of it, mapped weight files.
        plans: Of it, other mapped files of the bundle: plans and models.
        other: Memory of no file: activations, buffers, what libraries allocate.
        device: Bytes on a GPU: what the engine says, else what the whole card's use grew by; None
            where nothing tells it.
    """

    domains: int
    pss: int
    weights: int
    plans: int
    other: int
    device: int | None = None


@dataclass(frozen=True)
class Series:
    """Memory against the number of domains.

    Attributes:
        setup: What was loaded: an engine, or `ONE_CONTEXT`.
        steps: One per domain, in the bundle's order.
        note: Why there are none, or None.
    """

    setup: str
    steps: tuple[Step, ...]
    note: str | None = None


@dataclass(frozen=True)
class Copies:
    """What 1, 2, 3 ... domains take without sharing, by the manifest: 4 bytes a weight.

    Attributes:
        private: A copy of its own weights for every domain, pruned.
        dense: A copy of the whole network for every domain.
    """

    private: tuple[int, ...]
    dense: tuple[int, ...]


def measure(bundle_dir: Path, setup: str, threads: int, domains: Sequence[str]) -> Series:
    """Measures in a process of its own; the caller should have nothing of the bundle mapped.

    Args:
        bundle_dir: The bundle.
        setup: A runner's text, such as `native:cuda`, or `ONE_CONTEXT`.
        threads: Threads that one call uses.
        domains: The domains, in order.
    """
    if not SMAPS.exists():
        return Series(setup, (), "no /proc/self/smaps here: PSS is counted on Linux only")
    command = [sys.executable, "-m", __spec__.name, str(bundle_dir), setup, str(threads)]
    done = subprocess.run([*command, *domains], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        return Series(setup, (), f"the process that measures failed: {lines[-1]}")
    rows = json.loads(done.stdout.splitlines()[-1])  # libraries may print, too
    return Series(setup, tuple(Step(**row) for row in rows))


def copies(manifest: Manifest, domains: Sequence[str]) -> Copies:
    """Returns what the domains would take as copies."""
    private, dense = [], []
    for name in domains:
        figures, native = manifest.report.domains[name], manifest.models[name].native
        own = figures.params_emitted if native is None else native.params_emitted
        private.append(4 * own)
        dense.append(4 * figures.params_dense)
    return Copies(tuple(np.cumsum(private).tolist()), tuple(np.cumsum(dense).tolist()))


def mapped(text: str, root: Path) -> dict[str, int]:
    """Returns bytes of PSS by what they are of: `weights`, `plans` and `other`.

    Args:
        text: The content of `/proc/PID/smaps`.
        root: The bundle, an absolute path without links.
    """
    found = {"weights": 0, "plans": 0, "other": 0}
    kind: str | None = None
    for line in text.splitlines():
        pss = _PSS.match(line)
        mapping = _MAPPING.match(line)
        if pss is not None and kind is not None:
            found[kind] += int(pss[1]) * 1024
        elif mapping is not None:
            kind = _kind(mapping[1], root)
    return found


def _kind(path: str, root: Path) -> str | None:
    """Returns what a mapping's pages count as, or None."""
    if path.startswith(f"{root}{os.sep}"):
        return "weights" if _holds_weights(path.rpartition("/")[2]) else "plans"
    return None if path.startswith("/") else "other"  # such as [heap]


def _holds_weights(name: str) -> bool:
    return name.removesuffix(" (deleted)").endswith((".bin", ".data")) and name != "index.bin"


def _steps(bundle: Bundle, setup: str, threads: int, domains: Sequence[str]) -> Iterator[Step]:
    """Loads and runs one domain after the other."""
    root = Path(os.path.realpath(bundle.root))
    inputs = {name: make_inputs(bundle.manifest.models[name].inputs, seed=0) for name in domains}
    loaded = (
        _OneContext(bundle, threads) if setup == ONE_CONTEXT else _Engines(bundle, setup, threads)
    )
    base = mapped(SMAPS.read_text(), root)
    for number, name in enumerate(domains, 1):
        loaded.add(name, inputs[name])
        now = mapped(SMAPS.read_text(), root)
        added = {key: max(0, now[key] - base[key]) for key in now}
        total = sum(added.values())
        yield Step(domains=number, pss=total, device=loaded.device(), **added)


class _Engines:
    """An engine for every domain."""

    def __init__(self, bundle: Bundle, setup: str, threads: int) -> None:
        self._bundle, self._runner, self._threads = bundle, Runner.parse(setup), threads
        self._engines: list[Engine] = []
        self._used = self._card()

    def add(self, name: str, inputs: list[Array]) -> None:
        """Loads a domain and runs it."""
        self._engines.append(self._runner.load(self._bundle, name, self._threads))
        self._engines[-1](*inputs)

    def device(self) -> int | None:
        """Returns the bytes on a GPU: what the engines say, or what the card's use grew by."""
        own = [engine.memory() for engine in self._engines if isinstance(engine, CudaEngine)]
        if own:
            return int(own[-1].weights + own[-1].tables + sum(memory.context for memory in own))
        now = self._card()
        return None if now is None or self._used is None else max(0, now - self._used)

    def _card(self) -> int | None:
        card = None if self._runner.on_host else nvml.card()
        return None if card is None else card.used_bytes()


class _OneContext:
    """One context of the native runtime for all domains."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle, self._threads = bundle, threads
        self._context: Context | None = None

    def add(self, name: str, inputs: list[Array]) -> None:
        """Switches to a domain and runs it."""
        model = open_model(self._bundle.root)
        if self._context is None:
            self._context = Context(model, name, self._threads, None)
        number = model.find(name)
        outputs = [np.empty(shape, np.float32) for shape in model.shapes(number, "output")]
        self._context.select(number)
        self._context.run(1, inputs, outputs)

    def device(self) -> None:
        """Nothing is on a GPU."""


def main() -> None:
    """Prints the steps as JSON."""
    path, setup, threads, *domains = sys.argv[1:]
    try:
        bundle = read_bundle(path)
        names = domains or list(bundle.manifest.models)
        steps = list(_steps(bundle, setup, int(threads), names))
    except Error as error:
        raise SystemExit(str(error)) from error
    print(json.dumps([dataclasses.asdict(step) for step in steps]))


if __name__ == "__main__":
    main()
