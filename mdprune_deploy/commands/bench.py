"""`mdprune bench`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bench import DEFAULT_ENGINE, RUNS, SECONDS, Timing
from ..checkpoint import load_checkpoint
from ..errors import UsageError
from ..files import write_whole
from ..measure.document import Settings, measure
from ..measure.runner import HOST, Runner
from ..page import render
from .common import (
    BundleArgument,
    JsonOption,
    ThreadsOption,
    command,
    note,
    print_json,
    print_table,
    progress_bar,
    share,
    size,
)


@command
def bench(
    bundle: BundleArgument,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="D", help="A domain to time; all by default."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            metavar="E",
            help="What runs the domains: ENGINE[:DEVICE[:PRECISION]]; several are timed in turn.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="cpu|cuda", help="Where native engines compute."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="float32|float16", help="In which type they do."),
    ] = None,
    threads: ThreadsOption = 1,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="MODEL.pt",
            help="Time the dense networks of this checkpoint in the same run.",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", help="Timed calls of each domain.")
    ] = RUNS,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="S", help="How long to time each domain at most."),
    ] = SECONDS,
    latency_only: Annotated[
        bool,
        typer.Option("--latency-only", help="No memory, energy, switching and operators."),
    ] = False,
    peak: Annotated[
        float | None,
        typer.Option("--peak", metavar="GMACS", help="1e9 MACs a second, for operators' floors."),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option("--bandwidth", metavar="GBS", help="1e9 bytes a second, for the floors."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a report with plots, one file."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Times the domains of a bundle in turn, one call at batch 1 at a time; measures memory too."""
    for name, number in (("peak", peak), ("bandwidth", bandwidth)):
        if number is not None and not 0 < number < float("inf"):
            raise UsageError(f"{name} is {number}, a number above 0 is needed")
    if html is not None and not (html.parent.is_dir() and os.access(html.parent, os.W_OK)):
        raise UsageError(f"cannot write {html}: {html.parent} is no directory to write to")
    checkpoint = None if against is None else load_checkpoint(against)
    settings = Settings(
        runners=tuple(
            Runner.parse(text).filled(device, precision) for text in engine or [DEFAULT_ENGINE]
        ),
        domains=tuple(domain or ()),
        threads=threads,
        runs=runs,
        seconds=seconds,
        latency_only=latency_only,
        peak_gmacs=peak,
        bandwidth_gbs=bandwidth,
    )
    with progress_bar("measuring") as tick:
        timings, document = measure(bundle, settings, checkpoint, tick)
    for remark in _remarks(timings, document):
        note(remark)
    if html is not None:
        write_whole(html, render(document).encode())
        note(f"wrote {html}")
    if as_json:
        print_json(document)
    else:
        _show(bundle, timings, document)


def _remarks(timings: list[Timing], document: dict[str, Any]) -> list[str]:
    """Returns what a reader of the figures should know, each once."""
    found = [timing.note for timing in timings if timing.note]
    found += [f"while it ran, {change}" for change in document["clocks"]["changed"]]
    energies, memory = document["energy"] or [], document["memory"] or {"series": []}
    found += [f"no energy of {e['engine']}: {e['note']}" for e in energies if e["note"]]
    found += [f"no memory of {s['setup']}: {s['note']}" for s in memory["series"] if s["note"]]
    return list(dict.fromkeys(found))


def _show(bundle: Path, timings: list[Timing], document: dict[str, Any]) -> None:
    engines = len(document["settings"]["engines"])
    step = len(timings) // engines
    energies = document["energy"] or [{"domains": {}}] * engines
    for number, energy in enumerate(energies):
        _show_engine(bundle, timings[number * step :][:step], energy["domains"])
    for line in _lines(document):
        print(line)


def _show_engine(bundle: Path, timings: list[Timing], energy: dict[str, Any]) -> None:
    first = timings[0]
    headings = ["domain", "variant", "MACs", "MACs left", "p50 ms", "p90 ms", "p99 ms", "max ms"]
    headings += ["CV", "per second"]
    headings += ["to device ms"] if first.host_to_device_p50_ms is not None else []
    headings += ["mJ"] if energy else []
    headings += ["dense p50 ms", "ratio"] if first.ratio is not None else []
    where = "" if first.device == HOST else f" on {first.device}, {first.precision}"
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    title = f"{bundle}: {first.engine}{where}, {threads}, {first.rounds} rounds"
    print_table(title, headings, [_row(t, energy.get(t.domain)) for t in timings])


def _row(timing: Timing, energy: dict[str, Any] | None) -> list[str]:
    row = [
        timing.domain,
        timing.variant,
        f"{timing.macs:,}",
        share(timing.macs, timing.macs_dense),
        f"{timing.p50_ms:.3f}",
        f"{timing.p90_ms:.3f}",
        f"{timing.p99_ms:.3f}",
        f"{timing.max_ms:.3f}",
        f"{timing.cv:.1%}",
        f"{timing.per_second:,.0f}",
    ]
    if timing.host_to_device_p50_ms is not None:
        row.append(f"{timing.host_to_device_p50_ms:.3f}")
    if energy is not None:
        row.append(f"{energy['mj']:.2f}")
    if timing.dense_p50_ms is not None and timing.ratio is not None:
        row += [f"{timing.dense_p50_ms:.3f}", f"{timing.ratio:.2f}"]
    return row


def _lines(document: dict[str, Any]) -> list[str]:
    """Returns what is said below the tables: memory and switching."""
    found = []
    memory = document["memory"]
    for series in memory["series"] if memory else ():
        if series["steps"]:
            last = series["steps"][-1]
            parts = ", ".join(f"{size(last[key])} {key}" for key in ("weights", "plans", "other"))
            device = "" if last["device"] is None else f"; {size(last['device'])} on the device"
            what = f"memory of {last['domains']} domains, {series['setup']}"
            found.append(f"{what}: {size(last['pss'])} ({parts}){device}")
    for switch in document["switch"]:
        loop, after = switch["loop_p50_us"], switch["after_run_p50_us"]
        times = f"{loop:.1f} us in a loop, {after:.1f} us after a run"
        found.append(f"switching the domain, {switch['engine']}: {times}")
    return found
