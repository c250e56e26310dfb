"""Cubins of the CUDA kernels for GPUs that nvcc 13 has dropped: Jetson Nano, TX2 and Xavier.

    python -m kernels.tools.legacy OUTPUT

compiles every instance that the launchers choose from with NVRTC 12.9 (extra `kernels`) and writes
`OUTPUT/sm_53.cubin`, `sm_62.cubin` and `sm_72.cubin`; no GPU and no toolkit is needed. Convolutions
and matrix products in half need the tensor cores of sm_75 and are left out; the other operators
store half and compute with float. The cubins are compiled and have never been run.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from .nvrtc import Nvrtc, NvrtcError, package_folder
from .resources import demangle, parse, table, write_csv

DEVICES = {"sm_53": "Jetson Nano", "sm_62": "Jetson TX2", "sm_72": "Jetson Xavier"}
FOLDER = Path(__file__).parents[1]  # kernels/

HEADERS = ("convolution", "depthwise", "matmul", "elementwise", "movement", "pool", "reduce")
TYPES = ("float", "__half")
WIDTHS = (("float", 4), ("float", 1), ("__half", 8), ("__half", 1))
BOOLS = ("true", "false")
WORDS = ("uint4", "std::uint32_t", "std::uint16_t")
FLOAT_TILES = {  # of what is compiled for tiles of products in float
    "convolution": ("FmaTile<32, 32, 2, 4>", "FmaTile<64, 64, 8, 3>"),
    "matmul": ("FmaTile<64, 64, 8, 3>",),
}
FOLDS = ("Sum", "Maximum", "Minimum", "Product", "LogSumExp")

# What the kernels' headers take from those of the host's compiler, which NVRTC has not.
HOST_HEADERS = {
    "cuda_runtime.h": "#define HUGE_VALF __int_as_float(0x7f800000)\n",
    "cstddef": "",
    "cstdint": """\
#pragma once
namespace std {
using ::ptrdiff_t;
using ::size_t;
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned;
using uint64_t = unsigned long long;
}  // namespace std
""",
    "type_traits": """\
#pragma once
namespace std {
template <bool condition, typename A, typename B>
struct conditional {
  using type = A;
};
template <typename A, typename B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool condition, typename A, typename B>
using conditional_t = typename conditional<condition, A, B>::type;
}  // namespace std
""",
    "vector": "namespace std { template <typename> class vector; }\n",
}


def instances() -> list[str]:
    """Returns the instances of kernel templates that launchers choose from."""
    names = [
        f"{kernel}_kernel<{element}, {width}>"
        for kernel in ("depthwise", "unary", "affine", "binary", "fill", "interpolate", "pool")
        for element, width in WIDTHS
    ]
    names += [
        f"{kernel}_kernel<float, {tile}, {x_runs}, {w_runs}>"
        for kernel, tiles in FLOAT_TILES.items()
        for tile, x_runs, w_runs in itertools.product(tiles, BOOLS, BOOLS)
    ]
    names += [
        f"convert_kernel<{source}, {to}, {width}>"
        for source, to, width in itertools.product(TYPES, TYPES, (4, 1))
    ]
    names += [
        f"{kernel}_kernel<{element}>"
        for kernel in ("select", "softmax", "normalize")
        for element in TYPES
    ]
    names += [f"{kernel}_kernel<{word}>" for kernel in ("move", "gather") for word in WORDS]
    names += [
        f"{kernel}_kernel<{word}>"
        for kernel in ("move_transposed", "gather_elements")
        for word in WORDS[1:]
    ]
    names += [
        f"{kernel}_kernel<{element}, {fold}>"
        for kernel in ("reduce", "reduce_parts")
        for element, fold in itertools.product(TYPES, FOLDS)
    ]
    return names


def compile_for(compiler: Nvrtc, architecture: str) -> tuple[bytes, str]:
    """Returns the cubin of all kernels for one architecture, and what ptxas says of them.

    Raises:
        NvrtcError: They do not compile without warnings.
    """
    source = "".join(f'#include "cuda/{header}.cuh"\n' for header in HEADERS)
    source += "using namespace mdprune::cuda;\n"
    options = [
        "--std=c++17",
        f"--gpu-architecture={architecture}",
        f"--include-path={FOLDER}",
        f"--include-path={package_folder('cuda_runtime') / 'include'}",
        "--device-as-default-execution-space",
        "--ptxas-options=-v",
    ]
    cubin, log = compiler.compile(source, instances(), options, HOST_HEADERS)
    warnings = [
        line
        for line in log.splitlines()
        if "warning" in line and "Architectures prior to" not in line
    ]
    if warnings:
        raise NvrtcError("\n".join(warnings))
    return cubin, log


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(description="CUDA kernels for GPUs before Turing")
    parser.add_argument("output", type=Path)
    output = parser.parse_args(arguments).output
    found = []
    try:
        compiler = Nvrtc()
        output.mkdir(parents=True, exist_ok=True)
        for architecture, device in DEVICES.items():
            cubin, log = compile_for(compiler, architecture)
            (output / f"{architecture}.cubin").write_bytes(cubin)
            kernels = list(parse(log))
            found += kernels
            print(
                f"{architecture} ({device}): {len(kernels)} kernels, {len(cubin) / 2**20:.1f} MiB; "
                "compiled, never run"
            )
    except NvrtcError as error:
        print(error, file=sys.stderr)
        return 1
    found = demangle(found)
    print(table(found))
    write_csv(found, output / "resources.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
