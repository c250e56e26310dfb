"""Compiles a benchmark network into a bundle, for the scripts that take one.

Run `python -m benchmarks.compile_case FOLDER [--network r50] [--domains 6]`; the bundle is
`FOLDER/r50-regular`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .harness import compile_case, make_case
from .masks import STYLES
from .networks import NETWORKS


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", choices=NETWORKS, default="r50")
    parser.add_argument("--style", choices=STYLES, default="regular")
    parser.add_argument("--domains", type=int, default=6)
    parser.add_argument("--targets", nargs="*", default=["onnx", "native"])
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    case = make_case(arguments.network, arguments.style, arguments.domains)
    print(compile_case(case, arguments.folder, arguments.targets)[0])


if __name__ == "__main__":
    main()
