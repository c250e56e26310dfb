"""Time and peak memory of compiling with 1, 6 and 20 domains, verification included.

Every compile is a fresh process. `peak` is its largest resident size; `over idle` is that without
what the interpreter had taken once everything was imported.
Run `python -m benchmarks.compile_cost [--network r50] [--counts 1 6 20]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mdprune_deploy as mdp

from .harness import make_case, save, show
from .masks import STYLES
from .networks import NETWORKS

CHILD = "--compile"


def compile_here(checkpoint: Path, bundle: Path) -> dict[str, float]:
    """Compiles and returns the seconds and the peak of resident memory in MiB."""
    idle = peak_mib()
    begin = time.perf_counter()
    report = mdp.compile(checkpoint, bundle)
    seconds = time.perf_counter() - begin
    worst = max(figures.max_rel_error for figures in report.domains.values())
    return {"seconds": seconds, "peak": peak_mib(), "idle": idle, "max_rel_error": worst}


def peak_mib() -> float:
    """Returns the largest resident size of this process so far, in MiB.

    Not `getrusage`: a child's figure there starts from its parent's.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024


def compile_in_child(checkpoint: Path, bundle: Path) -> dict[str, float]:
    """Runs `compile_here` in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, CHILD, str(checkpoint), str(bundle)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def measure(network: str, style: str, counts: list[int]) -> list[dict[str, object]]:
    """Returns a row per number of domains."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            case = make_case(network, style, count)
            checkpoint = Path(folder) / f"{count}.pt"
            mdp.save_checkpoint(checkpoint, case.model, case.example, case.domains)
            found = compile_in_child(checkpoint, Path(folder) / str(count))
            rows.append(
                {
                    "case": case.name,
                    "domains": count,
                    "seconds": found["seconds"],
                    "seconds / domain": found["seconds"] / count,
                    "peak MiB": found["peak"],
                    "over idle MiB": found["peak"] - found["idle"],
                    "max_rel_error": found["max_rel_error"],
                }
            )
    return rows


def main() -> None:
    """Runs the script."""
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(compile_here(Path(sys.argv[2]), Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="r50")
    parser.add_argument("--style", choices=STYLES, default="learned")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 6, 20])
    arguments = parser.parse_args()
    rows = measure(arguments.network, arguments.style, arguments.counts)
    show("Compiling, verification included", rows)
    print(save("compile_cost", vars(arguments), rows))


if __name__ == "__main__":
    main()
