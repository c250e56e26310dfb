"""Documents as `mdprune bench --json` writes them, with all that may be there."""

from __future__ import annotations

import copy
from typing import Any

MEASURED = {
    "engine": "native", "device": "cpu", "precision": "float32", "variant": "avx512", "note": None,
    "threads": 1, "rounds": 200, "macs": 300, "macs_dense": 1000, "p50_ms": 2.0, "p90_ms": 2.2,
    "p99_ms": 2.5, "min_ms": 1.8, "max_ms": 9.0, "mean_ms": 2.05, "cv": 0.04, "drift": 1.01,
    "per_second": 488.0, "first_p50_ms": 2.4, "host_to_device_p50_ms": None,
    "compute_p50_ms": None, "device_to_host_p50_ms": None, "dense_p50_ms": 5.0, "ratio": 0.4,
}  # fmt: skip
OPERATORS = [
    {"name": "conv1", "kind": "Convolution", "us": 900.0, "floor_us": 600.0, "bound": "compute",
     "macs": 200, "bytes": 1000},
    {"name": "pool", "kind": "Pool", "us": 80.0, "floor_us": 60.0, "bound": "memory", "macs": 0,
     "bytes": 500},
]  # fmt: skip
ENERGY = {
    "meter": "INA3221", "total": "VDD_IN", "runs": 900, "seconds": 2.0, "mj": 30.0,
    "above_idle_mj": 12.0, "watts": 13.5, "idle_watts": 8.1, "rails_mj": {"VDD_IN": 30.0},
}  # fmt: skip


def run(domain: str, **changes: Any) -> dict[str, Any]:
    """Returns one engine's figures of a domain."""
    percentiles = [1.8 + 0.007 * index for index in range(100)] + [9.0]
    return {"domain": domain, **MEASURED, "percentiles_ms": percentiles, **changes}


def document(*domains: str, scale: float = 1.0) -> dict[str, Any]:
    """Returns what a measurement with one engine gives; sizes and times times `scale`."""
    names = domains or ("first", "second")
    count = range(1, len(names) + 1)
    steps = [
        {"domains": n, "pss": n << 20, "weights": n << 19, "plans": n << 18, "other": n << 18,
         "device": None}
        for n in count
    ]  # fmt: skip
    rate = {"per_second": 5e10, "source": "stated"}
    return copy.deepcopy({
        "version": 1, "bundle": "bundle", "date": "2026-01-31T12:00:00+00:00",
        "settings": {"engines": ["native"], "threads": 1, "runs": 200, "seconds": 10.0},
        "domains": dict.fromkeys(names, MEASURED),
        "runs": [run(name) for name in names],
        "machine": {"processor": "A processor", "cores": 4, "instruction_sets": ["avx2"],
                    "system": "Linux", "python": "3.11", "versions": {"numpy": "2.0"}},
        "clocks": {"before": {}, "after": {}, "changed": []},
        "memory": {
            "series": [{"setup": "native", "steps": steps, "note": None},
                       {"setup": "one context", "steps": steps, "note": None}],
            "copies": {"private": [n << 21 for n in count], "dense": [n << 22 for n in count]},
            "arena": 1 << 18,
        },
        "energy": [{"engine": "native", "note": "no meter", "domains": {}}],
        "switch": [{"engine": "native", "loop_p50_us": 0.5, "loop_p99_us": 0.7,
                    "after_run_p50_us": 16.0, "after_run_p99_us": 30.0}],
        "operators": [
            {"engine": "native", "domain": name, "isa": "avx512", "runs": 50, "peak": rate,
             "bandwidth": rate, "operators": OPERATORS}
            for name in names
        ],
    })  # fmt: skip
